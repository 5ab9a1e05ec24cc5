"""Runs what a table lacks: the searches and trainings of one of its columns, seed by seed.

    python -m experiments.table_run experiments/results/small_data --column=embedded_wrn_10_1 \\
        --run_dir=runs/small_data

Goes through the seeds, and for each through the rows of the table; what is finished is skipped and what was
interrupted goes on from its last checkpoint, so that the same command can be given again at any time. Every
run is a process of its own, `experiments.search` or `experiments.train`, with the flags of its cell, in
RUN_DIR/COLUMN/ROW/seed_N and RUN_DIR/COLUMN/ROW/search/seed_N. A run that fails is reported at the end and
does not stop the others. `experiments.tables TABLE --collect=RUN_DIR` puts the results into the table.

On an accelerator --seeds_at_once=5 trains the seeds of a row together; policies found by a search differ
between seeds, so only the searches and not their trainings can.
"""

import pathlib
import subprocess
import sys
from types import ModuleType

from absl import flags

from experiments import search, train
from experiments.runs import command_line, run_folder
from experiments.summaries import table_definition

FLAGS = flags.FLAGS
flags.declare_key_flag("run_dir")
flags.declare_key_flag("data_dir")
flags.declare_key_flag("seed")
flags.declare_key_flag("num_seeds")
flags.declare_key_flag("compilation_cache_dir")
flags.DEFINE_string("column", None, "Key of the column of the table that is run.")
flags.DEFINE_list("rows", [], "Keys of the rows that are run. Default: all.")
flags.DEFINE_integer("seeds_at_once", 1, "Seeds of a row that one process gets.", lower_bound=1)


def _recipes(definition):
    """The recipes of all rows that the column of the flags has."""
    columns = [column.key for column in definition.columns]
    if FLAGS.column not in columns:
        raise ValueError(f"--column: got {FLAGS.column!r}, expected one of {', '.join(columns)}")
    found = {row: recipe for (column, row), recipe in definition.recipes.items() if column == FLAGS.column}
    if unknown := set(FLAGS.rows) - set(found):
        raise ValueError(f"--rows: got {', '.join(sorted(unknown))}, expected some of {', '.join(found)}")
    return found


def _is_finished(path: pathlib.Path, wanted: dict[str, str], binary: ModuleType) -> bool:
    """Whether a run folder holds a finished run; one of other flags is an error.

    Raises:
      ValueError: the folder holds a run of another recipe.
    """
    if not (path / "flags.txt").is_file():
        return False
    found = table_definition.what_was_run(run_folder.read_flags(path))
    if "policy" not in wanted:
        found.pop("policy", None)
    if not table_definition.is_same(wanted, found, binary):
        raise ValueError(
            f"{path} holds a run with other flags than the table asks for: choose another --run_dir"
        )
    return (path / "summary.json").is_file()


def _start(binary: ModuleType, arguments: list[str], root: pathlib.Path, seeds: list[int]) -> bool:
    """Runs some seeds in one process, each in root/seed_N; returns whether they finished."""
    folder = root / f"seed_{seeds[0]}" if len(seeds) == 1 else root
    shared = [
        f"--{name}={value}"
        for name in ("data_dir", "compilation_cache_dir")
        if (value := FLAGS[name].value) is not None
    ]
    line = [
        *(sys.executable, "-m", binary.__name__, *arguments, *shared),
        *(f"--run_dir={folder}", f"--seed={seeds[0]}", f"--num_seeds={len(seeds)}"),
        *(["--resume"] if any(folder.glob("**/flags.txt")) else []),
    ]
    print(" ".join(line[1:]), flush=True)
    return subprocess.run(line, stdout=subprocess.DEVNULL).returncode == 0


def _runs(seeds: list[int], size: int) -> list[list[int]]:
    """Ascending seeds in groups of neighbours, at most `size` in each."""
    groups = []
    for seed in seeds:
        if groups and len(groups[-1]) < size and groups[-1][-1] == seed - 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _run_row(recipe, root, search_root, seeds):
    """Searches and trains with some seeds; returns the folders of those that failed."""
    failed = []
    if recipe.search is not None:
        missing = [
            s for s in seeds if not _is_finished(search_root / f"seed_{s}", recipe.search_flags, search)
        ]
        for group in _runs(missing, FLAGS.seeds_at_once):
            if not _start(search, recipe.search, search_root, group):
                failed += [search_root / f"seed_{seed}" for seed in group]
        seeds = [seed for seed in seeds if search_root / f"seed_{seed}" not in failed]
    missing = [seed for seed in seeds if not _is_finished(root / f"seed_{seed}", recipe.train_flags, train)]
    for group in _runs(missing, 1 if recipe.search is not None else FLAGS.seeds_at_once):
        policy = []
        if recipe.search is not None:
            policy = [f"--policy={search_root / f'seed_{group[0]}' / 'policy.json'}"]
        if not _start(train, [*recipe.train, *policy], root, group):
            failed += [root / f"seed_{seed}" for seed in group]
    return failed


def main(arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    table_definition.refuse_other_flags(__name__)
    if FLAGS.run_dir is None:
        raise ValueError("--run_dir: expected the folder for all runs of the table")
    definition = table_definition.load(arguments[0])
    recipes = _recipes(definition)
    folder = pathlib.Path(FLAGS.run_dir) / FLAGS.column
    # Rows that share a search share its folder.
    first = {}
    for row, recipe in recipes.items():
        if recipe.search is not None:
            first.setdefault(tuple(recipe.search), row)
    chosen = {row: recipe for row, recipe in recipes.items() if not FLAGS.rows or row in FLAGS.rows}
    seeds = list(range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds))
    for row, recipe in chosen.items():  # before anything is started: no folder holds other runs
        for seed in seeds:
            _is_finished(folder / row / f"seed_{seed}", recipe.train_flags, train)
    failed = []
    for group in _runs(seeds, FLAGS.seeds_at_once):
        for row, recipe in chosen.items():
            searched = folder / first[tuple(recipe.search)] / "search" if recipe.search is not None else None
            failed += _run_row(recipe, folder / row, searched, group)
    if failed:
        raise command_line.Interrupted(f"{len(failed)} runs failed: {', '.join(map(str, failed))}")
    print(f"all runs are in {folder}")


if __name__ == "__main__":
    command_line.run(main)
