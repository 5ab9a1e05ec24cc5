"""Run summaries: what is kept of a training, one line of JSON each, without weights.

TABLE/runs.jsonl holds the runs of a table and TABLE/policies/ the policies that its searches found; from
these and the definition the table is drawn again at any time. `collect` makes both from run folders.

Contract: reads run folders; writes only in the folder of the table.
"""

import json
import os
import pathlib
import shutil
from collections.abc import Callable
from typing import NamedTuple

from dada import policies
from experiments.runs import contents, run_folder
from experiments.summaries import table_definition

FILE = "runs.jsonl"


class Search(NamedTuple):
    """The search whose policy a run was trained with."""

    seed: int
    flags: dict[str, str]
    seconds: float
    hardware: str
    policy: str  # file in the folder of the table


class Run(NamedTuple):
    """A finished training; values of the metric are in [0, 1]."""

    column: str
    row: str
    seed: int
    flags: dict[str, str]
    last: dict[str, float]  # epoch, and the metric of the table by its name
    best: dict[str, float]
    seconds: float  # of one seed, without compiling
    hardware: str
    jax: str
    commit: str | None
    search: Search | None = None


def read(definition: table_definition.Definition) -> list[Run]:
    """The runs of a table; none if nothing was collected yet.

    Raises:
      ValueError: a line is not a run, or not one of a cell of this table.
    """
    path = definition.path / FILE
    runs = []
    for number, line in enumerate(path.read_text().splitlines() if path.exists() else [], start=1):
        try:
            run = Run(**json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        run = run._replace(search=run.search and Search(**run.search))
        if _cell(definition, run.flags, run.search and run.search.flags) != (run.column, run.row):
            cell = f"row {run.row}, column {run.column}"
            raise ValueError(f"{path}, line {number}: its flags are not the recipe of {cell}")
        runs.append(run)
    return runs


def is_finished(
    path: pathlib.Path,
    wanted: dict[str, str],
    defaults: dict[str, str],
    made_of: Callable[[], dict[str, str | None]],
) -> bool:
    """Whether a run folder holds the finished run of a cell.

    Args:
      path: the folder, which need not exist.
      wanted: flags of the cell, as texts.
      defaults: those of flags that are newer than the run.
      made_of: what a run of the cell would be made of now, by content.

    Raises:
      ValueError: it holds a run of other flags or of other contents.
    """
    if not (path / "flags.txt").is_file():
        return False
    was_run = table_definition.what_was_run(run_folder.read_flags(path))
    if "policy" not in wanted:  # one that a search found
        was_run.pop("policy", None)
    if problem := table_definition.difference(wanted, was_run, defaults):
        raise ValueError(f"{path}: {problem}; choose another --run_dir")
    run_folder.check_contents(path, made_of())
    return run_folder.RunFolder(path).is_finished


def collect(
    definition: table_definition.Definition, folder: str | os.PathLike
) -> tuple[list[Run], list[str]]:
    """Adds the finished trainings below a folder to the runs of a table; a cell's seed is replaced.

    The folder is anything that holds run folders, of trainings and of the searches before them.

    Returns:
      (all runs of the table, paths of finished trainings that are in no cell of it).

    Raises:
      FileNotFoundError: no such folder.
      ValueError: a run folder does not hold what a training writes.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder, expected one with run folders")
    runs = {(run.column, run.row, run.seed): run for run in read(definition)}
    unused = []
    for path in sorted(file.parent for file in folder.rglob("summary.json")):
        if "recipe" not in run_folder.read_summary(path):
            continue  # a search
        run = _read_run(definition, path)
        if run is None:
            unused.append(str(path))
        else:
            runs[run.column, run.row, run.seed] = run
    places = [[entry.key for entry in entries] for entries in (definition.columns, definition.rows)]
    ordered = sorted(runs, key=lambda key: (places[0].index(key[0]), places[1].index(key[1]), key[2]))
    text = "".join(_to_line(runs[key]) for key in ordered)
    (definition.path / FILE).write_text(text)
    return [runs[key] for key in ordered], unused


def _to_line(run):
    fields = run._asdict() | {"search": run.search and run.search._asdict()}
    return json.dumps(fields, allow_nan=False, ensure_ascii=False) + "\n"


def _read_run(definition, path):
    """The run of a finished training, or None if no cell has its recipe; copies a policy that was found."""
    all_flags, summary = run_folder.read_flags(path), run_folder.read_summary(path)
    flags, search_flags, search_path = table_definition.what_was_run(all_flags), None, None
    cell = _cell(definition, flags, None)  # a policy that its recipe names
    if cell is None and (search_path := _search_folder(path, all_flags)):
        del flags["policy"]
        search_flags = table_definition.what_was_run(run_folder.read_flags(search_path))
        cell = _cell(definition, flags, search_flags)
    if cell is None:
        return None
    seed, kept = int(all_flags["seed"]), ("epoch", definition.metric)
    environment = run_folder.read_environment(path)
    return Run(
        *cell,
        seed=seed,
        flags=flags,
        **{which: {name: summary[which][name] for name in kept} for which in ("last", "best")},
        **_cost(path, summary),
        jax=environment["jax"],
        commit=environment["git_commit"],
        search=search_path and _read_search(definition, search_path, search_flags, path, cell, seed),
    )


def _read_search(definition, search_path, flags, path, cell, seed):
    folder = definition.path / "policies"
    folder.mkdir(exist_ok=True)
    copy = folder / f"{'_'.join(cell)}_seed_{seed}.json"
    # The training's own copy: what it was trained with, whatever became of the search since.
    shutil.copyfile(path / "policy.json", copy)
    return Search(
        seed=int(run_folder.read_flags(search_path)["seed"]),
        flags=flags,
        **_cost(search_path, run_folder.read_summary(search_path)),
        policy=str(copy.relative_to(definition.path)),
    )


def hardware(path: pathlib.Path) -> str:
    """On what the run in a folder was run."""
    environment = run_folder.read_environment(path)
    is_cpu = environment["platform"] == "cpu"
    return f"{environment['cpu_count']} CPU cores" if is_cpu else environment["device_kind"]


def _cost(path, summary):
    """Seconds of one seed, and on what."""
    seconds = round(summary["seconds_run"] / summary["seeds_at_once"], 1)
    return {"seconds": seconds, "hardware": hardware(path)}


def _search_folder(path, flags):
    """The folder of the search that found the policy of a training, or None: it has a name, or is a file."""
    policy = pathlib.Path(flags["policy"])
    if policy.suffix != ".json":
        return None
    # Run folders that were moved together still lie the same way from each other.
    moved = path / os.path.relpath(policy.parent, flags["run_dir"])
    for folder in (policy.parent, moved):
        if all((folder / name).is_file() for name in ("flags.txt", "summary.json")) and _found(folder, path):
            return folder
    return None


def _found(folder, path):
    """Whether the search in a folder found what was trained with; the flags alone say so of an older run."""
    trained = (run_folder.read_contents(path) or {}).get("policy")
    return trained in (None, contents.of_policies([policies.load(folder / "policy.json")]))


def _cell(definition, flags, search_flags):
    """Keys of the column and row with this recipe, or None."""
    defaults, is_same = definition.defaults, table_definition.is_same
    for cell, recipe in definition.recipes.items():
        if is_same(recipe.train_flags, flags, defaults["train"]) and is_same(
            recipe.search_flags, search_flags, defaults["search"]
        ):
            return cell
    return None
