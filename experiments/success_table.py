"""Does a search find the op that was planted on the validation images? Runs what is missing, draws the table.

    python -m experiments.success_table experiments/results/success --run_dir=runs/success
    python -m experiments.success_table experiments/results/success

Goes through the seeds of TABLE/table.json (`success_definition`), for each through the planted ops, and for
each of these through the searches. Every run is a process of its own, `experiments.search`, in
RUN_DIR/SEARCH/CASE/seed_N. What is in TABLE/runs.jsonl is not run again, what is finished in RUN_DIR enters
it, and what was interrupted goes on from its last checkpoint; a run that fails is reported at the end and
does not stop the others. --seconds=540 ends in time; the run that is stopped goes on with the next call.
Then, and without --run_dir at once, the runs give TABLE/table.md, table.csv and table.png. Cells that were
not run say so.
"""

import functools
import pathlib

from absl import flags

from experiments import search, table_run
from experiments.figures import success_figure
from experiments.runs import command_line, run_flags
from experiments.summaries import success_cells, success_definition, success_runs, success_text, table_runs


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.string("run_dir", None, "Folder for all runs of the table. Without it nothing is run.")
    add.list("searches", [], "Keys of the searches that are run. Default: all.")
    add.list("cases", [], "Keys of the planted ops that are run. Default: all.")
    add.integer("seed", 0, "First seed.", 0, command_line.MAX_SEED)
    about = "Seeds from the first one, as far as a search has them. Default: all."
    add.integer("num_seeds", None, about, lower_bound=1)
    table_run.define_shared(values)


def _chosen(definition, values):
    """Keys of the runs that the flags ask for, in the order in which they are run."""
    keys = {}
    for flag in ("searches", "cases"):
        known, wanted = [entry.key for entry in getattr(definition, flag)], values[flag].value
        if unknown := set(wanted) - set(known):
            got = ", ".join(sorted(unknown))
            raise ValueError(f"--{flag}: got {got}, expected some of {', '.join(known)}")
        keys[flag] = [key for key in known if not wanted or key in wanted]
    last = definition.num_seeds if values.num_seeds is None else values.seed + values.num_seeds
    if not values.seed < last <= definition.num_seeds:
        expected = f"expected some of the {definition.num_seeds} of the table"
        raise ValueError(f"--seed={values.seed}, --num_seeds={values.num_seeds}: {expected}")
    num_seeds = {one.key: one.num_seeds for one in definition.searches}
    chosen = [
        (one, case, seed)
        for seed in range(values.seed, last)
        for case in keys["cases"]
        for one in keys["searches"]
        if (one, case) in definition.recipes and seed < num_seeds[one]
    ]
    if not chosen:
        raise ValueError("the table has no run of these --searches, --cases and seeds together")
    return chosen


def _run_missing(definition, values, end):
    """Runs and records what is missing until the deadline; returns the folders of the runs that failed."""
    recorded, root = success_runs.read(definition), pathlib.Path(values.run_dir).expanduser()
    missing = {
        key: root / key[0] / key[1] / f"seed_{key[2]}"
        for key in _chosen(definition, values)
        if key not in recorded
    }
    contents_of = table_run.contents_reader(values)

    def is_finished(key, path):
        recipe = definition.recipes[key[:2]]
        contents = functools.partial(contents_of, search, *recipe.arguments)
        return table_runs.is_finished(path, recipe.flags, definition.defaults, contents)

    for key, path in missing.items():  # before anything is started: no folder holds other runs
        is_finished(key, path)
    failed = []
    for key, path in missing.items():
        arguments = definition.recipes[key[:2]].arguments
        try:
            is_done = is_finished(key, path) or table_run.start(
                search, arguments, path, values, [key[2]], end
            )
        except table_run.OutOfTime as over:
            print(over, flush=True)
            break
        if is_done:
            success_runs.record(definition, key, path)
        else:
            failed.append(path)
    return failed


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    end = table_run.deadline(values)
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    if values.run_dir is None and (given := run_flags.given(values)):
        raise ValueError(f"--{min(given)} has no effect without --run_dir, the folder for all runs")
    definition = success_definition.load(arguments[0], search.resolve)
    failed = _run_missing(definition, values, end) if values.run_dir else []
    runs = success_runs.read(definition)
    cells = success_cells.cells(definition, runs)
    (definition.path / "table.md").write_text(success_text.markdown(definition, cells))
    (definition.path / "table.csv").write_text(success_text.to_csv(cells))
    success_figure.draw(definition, cells, definition.path / "table.png")
    of = sum(cell.num_seeds for cell in cells.values())
    print(f"{definition.path / 'table.md'}: {len(runs)} of {of} runs")
    if failed:
        raise command_line.Interrupted(f"{len(failed)} runs failed: {', '.join(map(str, failed))}")


if __name__ == "__main__":
    command_line.run(define, main)
