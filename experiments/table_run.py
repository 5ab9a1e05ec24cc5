"""Runs what a table lacks: the searches and trainings of its columns, seed by seed.

    python -m experiments.table_run experiments/results/small_data --column=reduced_embedded_wrn_10_1 \\
        --run_dir=runs/small_data

Goes through the columns, in each through the seeds, and for each seed through the rows, in the `order` of the
definition; what is finished is skipped and what was interrupted goes on from its last checkpoint, so that the
same command can be given again at any time. Every run is a process of its own, `experiments.search` or
`experiments.train`, with the flags of its cell, in RUN_DIR/COLUMN/ROW/seed_N and
RUN_DIR/COLUMN/ROW/search/seed_N; what several columns have is run once, for the first of them. A folder with
a run of other flags, or of other data or another policy under the same names, is an error. A run that fails
is reported at the end and does not stop the others; cells whose data are not there are left out, and a line
says so. `experiments.tables TABLE --collect=RUN_DIR` puts the results into the table.

--seconds=540 ends in time: the run that is not finished then is stopped, and goes on with the next call.
--skip_recorded leaves out what is in the table already, where its run folders are not at hand.

On an accelerator --seeds_at_once=5 trains the seeds of a row together; policies found by a search differ
between seeds, so only the searches and not their trainings can.
"""

import functools
import itertools
import math
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from typing import NamedTuple

from absl import flags

from experiments import search, train
from experiments.data import datasets
from experiments.runs import command_line, run_flags
from experiments.summaries import table_definition, table_runs

_MARGIN = 15.0  # seconds for imports before the clock starts, and for what a command does at its end


class OutOfTime(Exception):
    """The seconds of a command are over."""


class _Cell(NamedTuple):
    key: tuple[str, str]  # of the column and row whose runs these are
    recipe: table_definition.Recipe
    folder: pathlib.Path
    search_folder: pathlib.Path | None  # rows that share a search share its folder


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.string("run_dir", None, "Folder for all runs of the table.")
    add.string("column", None, "Key of the column of the table that is run. Default: all.")
    add.list("rows", [], "Keys of the rows that are run. Default: all.")
    add.bool("skip_recorded", False, "Leave out what is in the table already.")
    add.integer("seed", 0, "First seed.", 0, command_line.MAX_SEED)
    add.integer("num_seeds", 1, "Runs with seeds seed, seed + 1, ...", 1, command_line.MAX_SEEDS)
    add.integer("seeds_at_once", 1, "Seeds of a row that one process gets.", lower_bound=1)
    define_shared(values)


def define_shared(values: flags.FlagValues) -> None:
    """Defines the flags of all commands that start runs."""
    add = command_line.definers(values)
    about = "End after so many seconds; the run that is not finished then goes on with the next call."
    add.integer("seconds", None, about, lower_bound=int(2 * _MARGIN))
    add.string("data_dir", None, "As of a search.")
    add.string("compilation_cache_dir", None, "As of a search.")


def _columns(definition, values):
    """The cells that the flags ask for, column by column, in the order in which they are run."""
    keys = [column.key for column in definition.columns]
    if values.column not in (None, *keys):
        raise ValueError(f"--column: got {values.column!r}, expected one of {', '.join(keys)}")
    columns = [_cells(definition, values, key) for key in keys if values.column in (None, key)]
    rows = dict.fromkeys(row for cells in columns for row in cells)
    if unknown := set(values.rows) - set(rows):
        raise ValueError(f"--rows: got {', '.join(sorted(unknown))}, expected some of {', '.join(rows)}")
    chosen = [row for row in definition.order if not values.rows or row in values.rows]
    return [[cells[row] for row in chosen if row in cells] for cells in columns]


def _cells(definition, values, column):
    """The cells of a column by row."""
    cells, search_folders = {}, {}
    for (other, row), recipe in definition.recipes.items():
        if other != column:
            continue
        key, *_ = (
            cell for cell, first in definition.recipes.items() if cell[1] == row and first.is_same(recipe)
        )
        folder = pathlib.Path(values.run_dir).expanduser().joinpath(*key)
        searched = recipe.search and search_folders.setdefault(tuple(recipe.search), folder / "search")
        cells[row] = _Cell(key, recipe, folder, searched)
    return cells


def _with_data(columns, values):
    """The cells whose data are there; prints a line for each data set that is not, with what is missing.

    Raises:
      FileNotFoundError: there is no such cell.
    """
    kept, lacking = [], {}
    for cells in columns:
        kept.append([])
        for cell in cells:
            if problem := _problem(cell, values):
                lacking.setdefault(problem, []).append(cell)
            else:
                kept[-1].append(cell)
    if not any(kept):
        raise FileNotFoundError(f"no cell can be run here: {'; '.join(lacking)}")
    for problem, left_out in lacking.items():
        print(f"{len(left_out)} cells cannot be run here: {problem}", file=sys.stderr, flush=True)
    return kept


def _problem(cell, values):
    """Which data a cell lacks, or None."""
    try:
        for command, line in ((train, cell.recipe.train), (search, cell.recipe.search)):
            if line is not None:
                settings = command.resolve([*line, *_shared(values)])
                datasets.require_files(settings["dataset"], settings.get("data_dir"))
    except (FileNotFoundError, ValueError) as error:
        return str(error)
    return None


def contents_reader(values: flags.FlagValues) -> Callable[..., dict[str, str | None]]:
    """A function of a command and its arguments: what a run of them would be made of now, by content.

    The shared flags of a table are added. A data set is read once for all runs that read it alike.
    """
    read = {}

    @functools.cache
    def contents_of(command, *arguments):
        settings = command.resolve([*arguments, *_shared(values)])
        key = str([settings.get(name) for name in run_flags.DATASET_FLAGS])
        if key not in read:
            read[key] = run_flags.load_dataset(settings)
        return command.contents_of(settings, read[key])

    return contents_of


def deadline(values: flags.FlagValues) -> float:
    """When the last run must have ended, in seconds of time.monotonic()."""
    return math.inf if values.seconds is None else time.monotonic() + values.seconds - _MARGIN


def _groups(seeds: list[int], size: int) -> list[list[int]]:
    """Ascending seeds in groups of neighbours, at most `size` in each."""
    groups = []
    for seed in seeds:
        if groups and len(groups[-1]) < size and groups[-1][-1] == seed - 1:
            groups[-1].append(seed)
        else:
            groups.append([seed])
    return groups


def _shared(values):
    shared = {name: values[name].value for name in ("data_dir", "compilation_cache_dir")}
    return [f"--{name}={value}" for name, value in shared.items() if value is not None]


def start(
    command: types.ModuleType,
    arguments: list[str],
    folder: pathlib.Path,
    values: flags.FlagValues,
    seeds: list[int],
    end: float,
) -> bool:
    """Runs a command in a process of its own, with the shared flags of a table; whether it ended well.

    With several seeds, which follow each other, it makes a folder for each in `folder`. A run that was begun
    there is resumed.

    Raises:
      OutOfTime: it was not done at the deadline `end`, and killed, which loses what came after its last
        checkpoint.
      SystemExit: this process was told to end (SIGTERM); then the run is killed as well.
    """
    # By default the run would go on alone, and meet the next start in its folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    over = OutOfTime(f"the time is over; the same command goes on with the runs in {values.run_dir}")
    if (left := end - time.monotonic()) <= 0.0:
        raise over
    line = [
        *(sys.executable, "-m", command.__name__, *arguments, *_shared(values)),
        *(f"--run_dir={folder}", f"--seed={seeds[0]}", f"--num_seeds={len(seeds)}"),
        *(["--resume"] if any(folder.glob("**/flags.txt")) else []),
    ]
    print(" ".join(line[1:]), flush=True)
    try:
        return subprocess.run(line, stdout=subprocess.DEVNULL, timeout=left).returncode == 0
    except subprocess.TimeoutExpired as error:
        raise over from error


class _Runner:
    """Starts the processes of a table, and remembers the folders of those that failed."""

    def __init__(self, values, defaults, end):
        self.failed = []
        self._values, self._defaults, self._end = values, defaults, end
        self._contents = contents_reader(values)

    def _start(self, command, arguments, root, seeds):
        """Runs some seeds in one process, each in root/seed_N."""
        folder = root / f"seed_{seeds[0]}" if len(seeds) == 1 else root
        if not start(command, arguments, folder, self._values, seeds, self._end):
            self.failed += [root / f"seed_{seed}" for seed in seeds]

    def run(self, cell, seeds):
        """Searches, where the cell has a search, and trains with the seeds that are not finished yet."""
        if cell.search_folder:
            missing = [seed for seed in seeds if not self._is_searched(cell, seed)]
            for group in _groups(missing, self._values.seeds_at_once):
                self._start(search, cell.recipe.search, cell.search_folder, group)
            seeds = [seed for seed in seeds if cell.search_folder / f"seed_{seed}" not in self.failed]
        missing = [seed for seed in seeds if not self.is_trained(cell, seed)]
        for group in _groups(missing, 1 if cell.search_folder else self._values.seeds_at_once):
            policy = [f"--policy={_found(cell, group[0])}"] if cell.search_folder else []
            self._start(train, [*cell.recipe.train, *policy], cell.folder, group)

    def _is_searched(self, cell, seed):
        path, recipe = cell.search_folder / f"seed_{seed}", cell.recipe
        contents = functools.partial(self._contents, search, *recipe.search)
        return table_runs.is_finished(path, recipe.search_flags, self._defaults["search"], contents)

    def is_trained(self, cell, seed):
        """Whether the training of a seed is finished."""

        def contents():
            found = cell.search_folder and _found(cell, seed)
            policy = [f"--policy={found}"] if found and found.is_file() else []
            made_of = dict(self._contents(train, *cell.recipe.train, *policy))
            if found and not policy:  # the search is to be run, again
                del made_of["policy"]
            return made_of

        path = cell.folder / f"seed_{seed}"
        return table_runs.is_finished(path, cell.recipe.train_flags, self._defaults["train"], contents)


def _found(cell, seed):
    """The policy that the search of a seed finds."""
    return cell.search_folder / f"seed_{seed}" / "policy.json"


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    end = deadline(values)
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    if values.run_dir is None:
        raise ValueError("--run_dir: expected the folder for all runs of the table")
    definition = table_definition.load(arguments[0], {"train": train.resolve, "search": search.resolve})
    columns = _with_data(_columns(definition, values), values)
    recorded = table_runs.read(definition) if values.skip_recorded else []
    recorded = {(run.column, run.row, run.seed) for run in recorded}
    seeds = list(range(values.seed, values.seed + values.num_seeds))
    runner = _Runner(values, definition.defaults, end)
    for cell in itertools.chain(*columns):  # before anything is started: no folder holds other runs
        for seed in seeds:
            runner.is_trained(cell, seed)
    try:
        for cells, group in itertools.product(columns, _groups(seeds, values.seeds_at_once)):
            for cell in cells:
                runner.run(cell, [seed for seed in group if (*cell.key, seed) not in recorded])
        ending = f"all runs are in {values.run_dir}"
    except OutOfTime as over:
        ending = str(over)
    if runner.failed:
        names = ", ".join(map(str, runner.failed))
        raise command_line.Interrupted(f"{len(runner.failed)} runs failed: {names}")
    print(ending)


if __name__ == "__main__":
    command_line.run(define, main)
