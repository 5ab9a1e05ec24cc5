"""What became of planted ops: one line of JSON for each search, in TABLE/runs.jsonl.

Contract: reads run folders; writes only in the folder of the table, whole lines at its end, so that several
commands can fill one table.
"""

import json
import pathlib
from typing import NamedTuple

from experiments.runs import run_folder
from experiments.summaries import success_definition, table_definition, table_runs


class Run(NamedTuple):
    """A finished search. Masses are expected applications per image; seconds are without compiling."""

    search: str
    case: str
    seed: int
    flags: dict[str, str]
    row: str  # of the search space, planted
    rank: int  # by mass at the end
    mass: float
    mass_start: float
    first: list[tuple[str, float]]  # the three ops with the largest mass
    level: float | None  # planted; None of an op without magnitude
    level_found: float | None  # mean in the policy file; None if it does not have the op
    steps: int
    steps_until_it_leads: int | None  # to the end of the search; None if it does not
    seconds_run: float
    seconds_compile: float | None  # None where it cannot be told from running
    hardware: str
    recommended: str | None = None  # the verdict of --judge; None without


Key = tuple[str, str, int]  # keys of search and case, and seed


def read(definition: success_definition.Definition) -> dict[Key, Run]:
    """The runs of a table; of two with one key the later; none if nothing was run yet.

    Raises:
      ValueError: a line is not a run, or not one of a cell of this table.
    """
    path = definition.path / table_runs.FILE
    runs = {}
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            run = Run(**json.loads(line))
            _check(definition, (run.search, run.case, run.seed), run.flags)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        runs[run.search, run.case, run.seed] = run
    return runs


def record(definition: success_definition.Definition, key: Key, path: pathlib.Path) -> Run:
    """Adds the finished run in a folder to the runs of a table; returns it."""
    flags, summary = table_definition.what_was_run(run_folder.read_flags(path)), run_folder.read_summary(path)
    (planted,), mass = summary["planted"], summary["op_mass"]
    start, compiling = summary["op_mass_initial"][planted["row"]], summary.get("seconds_compile")
    first = sorted(mass.items(), key=lambda op: -op[1])[:3]
    run = Run(
        *key,
        flags=flags,
        **{name: planted[name] for name in ("row", "rank", "level", "level_found", "steps_until_it_leads")},
        mass=round(mass[planted["row"]], 5),
        mass_start=round(start, 5),
        first=[(name, round(value, 5)) for name, value in first],
        steps=summary["steps"],
        seconds_run=round(summary["seconds_run"], 1),
        seconds_compile=None if compiling is None else round(compiling, 1),
        hardware=table_runs.hardware(path),
        recommended=summary["verdict"]["recommended"] if "verdict" in summary else None,
    )
    with open(definition.path / table_runs.FILE, "a") as file:
        file.write(json.dumps(run._asdict(), allow_nan=False) + "\n")
    return run


def _check(definition, key, flags):
    """Raises ValueError if flags are not those of a cell, or the cell has no such seed."""
    search, case, seed = key
    where = f"search {search}, case {case}, seed {seed}"
    recipe = definition.recipes.get((search, case))
    num_seeds = {one.key: one.num_seeds for one in definition.searches}
    if recipe is None or seed not in range(num_seeds[search]):
        raise ValueError(f"{where}: not in this table")
    if problem := table_definition.difference(recipe.flags, flags, definition.defaults):
        raise ValueError(f"{where}: {problem}")
