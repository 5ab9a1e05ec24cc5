"""Runs what a table lacks: the searches and trainings of one of its columns, seed by seed.

    python -m experiments.table_run experiments/results/small_data --column=embedded_wrn_10_1 \\
        --run_dir=runs/small_data

Goes through the seeds, and for each through the rows of the table; what is finished is skipped and what was
interrupted goes on from its last checkpoint, so that the same command can be given again at any time. Every
run is a process of its own, `experiments.search` or `experiments.train`, with the flags of its cell, in
RUN_DIR/COLUMN/ROW/seed_N and RUN_DIR/COLUMN/ROW/search/seed_N; what several columns have is run once, for the
first of them. A folder with a run of other flags, or of other data or another policy under the same names, is
an error. A run that fails is reported at the end and does not stop the others. `experiments.tables TABLE
--collect=RUN_DIR` puts the results into the table.

On an accelerator --seeds_at_once=5 trains the seeds of a row together; policies found by a search differ
between seeds, so only the searches and not their trainings can.
"""

import functools
import pathlib
import subprocess
import sys
import types
from collections.abc import Callable

from absl import flags

from experiments import search, train
from experiments.runs import command_line, run_flags, run_folder
from experiments.summaries import table_definition


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.string("run_dir", None, "Folder for all runs of the table.")
    add.string("column", None, "Key of the column of the table that is run.")
    add.list("rows", [], "Keys of the rows that are run. Default: all.")
    add.integer("seed", 0, "First seed.", 0, command_line.MAX_SEED)
    add.integer("num_seeds", 1, "Runs with seeds seed, seed + 1, ...", 1, command_line.MAX_SEEDS)
    add.integer("seeds_at_once", 1, "Seeds of a row that one process gets.", lower_bound=1)
    add.string("data_dir", None, "As of a search.")
    add.string("compilation_cache_dir", None, "As of a search.")


def _recipes(definition, values):
    """The recipes of all rows that the column of the flags has."""
    columns = [column.key for column in definition.columns]
    if values.column not in columns:
        raise ValueError(f"--column: got {values.column!r}, expected one of {', '.join(columns)}")
    recipes = {row: recipe for (key, row), recipe in definition.recipes.items() if key == values.column}
    if unknown := set(values.rows) - set(recipes):
        raise ValueError(f"--rows: got {', '.join(sorted(unknown))}, expected some of {', '.join(recipes)}")
    return recipes


def contents_of(
    values: flags.FlagValues, command: types.ModuleType, *arguments: str
) -> dict[str, str | None]:
    """What a run of a command line with the shared flags of a table would be made of now, by content."""
    settings = command.resolve([*arguments, *_shared(values)])
    return command.contents_of(settings, run_flags.load_dataset(settings))


def _is_finished(
    path: pathlib.Path,
    wanted: dict[str, str],
    defaults: dict[str, str],
    contents: Callable[[], dict[str, str | None]],
) -> bool:
    """Whether a run folder holds a finished run; ValueError if it holds one of another recipe or content."""
    if not (path / "flags.txt").is_file():
        return False
    was_run = table_definition.what_was_run(run_folder.read_flags(path))
    if "policy" not in wanted:
        was_run.pop("policy", None)
    if not table_definition.is_same(wanted, was_run, defaults):
        problem = "holds a run with other flags than the table asks for: choose another --run_dir"
        raise ValueError(f"{path} {problem}")
    run_folder.check_contents(path, contents())
    return run_folder.RunFolder(path).is_finished


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
) -> bool:
    """Runs a command in a process of its own, with the shared flags of a table; whether it ended well.

    With several seeds, which follow each other, it makes a folder for each in `folder`. A run that was begun
    there is resumed.
    """
    line = [
        *(sys.executable, "-m", command.__name__, *arguments, *_shared(values)),
        *(f"--run_dir={folder}", f"--seed={seeds[0]}", f"--num_seeds={len(seeds)}"),
        *(["--resume"] if any(folder.glob("**/flags.txt")) else []),
    ]
    print(" ".join(line[1:]), flush=True)
    return subprocess.run(line, stdout=subprocess.DEVNULL).returncode == 0


class _Runner:
    """Starts the processes of a table, and remembers the folders of those that failed."""

    def __init__(self, values, defaults):
        self.failed = []
        self._values, self._defaults = values, defaults
        self._contents = functools.cache(functools.partial(contents_of, values))

    def _start(self, command, arguments, root, seeds):
        """Runs some seeds in one process, each in root/seed_N."""
        folder = root / f"seed_{seeds[0]}" if len(seeds) == 1 else root
        if not start(command, arguments, folder, self._values, seeds):
            self.failed += [root / f"seed_{seed}" for seed in seeds]

    def search(self, recipe, root, seeds):
        """Searches with the seeds that are not finished yet."""
        missing = [seed for seed in seeds if not self.is_searched(recipe, root, seed)]
        for group in _groups(missing, self._values.seeds_at_once):
            self._start(search, recipe.search, root, group)

    def is_searched(self, recipe, root, seed):
        """Whether the search of a seed is finished."""
        contents = functools.partial(self._contents, search, *recipe.search)
        return _is_finished(root / f"seed_{seed}", recipe.search_flags, self._defaults["search"], contents)

    def is_trained(self, recipe, root, seed, search_root):
        """Whether the training of a seed is finished."""

        def contents():
            found = search_root and search_root / f"seed_{seed}" / "policy.json"
            policy = [f"--policy={found}"] if found and found.is_file() else []
            made_of = dict(self._contents(train, *recipe.train, *policy))
            if found and not policy:  # the search is to be run, again
                del made_of["policy"]
            return made_of

        return _is_finished(root / f"seed_{seed}", recipe.train_flags, self._defaults["train"], contents)

    def train(self, recipe, root, seeds, search_root):
        """Trains with the seeds that are not finished yet and whose search did not fail."""
        ready = [s for s in seeds if search_root is None or search_root / f"seed_{s}" not in self.failed]
        missing = [seed for seed in ready if not self.is_trained(recipe, root, seed, search_root)]
        for group in _groups(missing, 1 if search_root else self._values.seeds_at_once):
            policy = [f"--policy={search_root / f'seed_{group[0]}' / 'policy.json'}"] if search_root else []
            self._start(train, [*recipe.train, *policy], root, group)


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 1:
        raise ValueError(f"got {len(arguments)} arguments, expected one: the folder of the table")
    if values.run_dir is None:
        raise ValueError("--run_dir: expected the folder for all runs of the table")
    definition = table_definition.load(arguments[0], {"train": train.resolve, "search": search.resolve})
    recipes = _recipes(definition, values)
    folders = {}
    for row, recipe in recipes.items():
        first, *_ = (cell for cell, other in definition.recipes.items() if cell[1] == row and other == recipe)
        folders[row] = pathlib.Path(values.run_dir).expanduser().joinpath(*first)
    search_roots = {}  # rows that share a search share its folder
    for row, recipe in recipes.items():
        if recipe.search is not None:
            search_roots.setdefault(tuple(recipe.search), folders[row] / "search")
    chosen = {row: recipe for row, recipe in recipes.items() if not values.rows or row in values.rows}
    seeds = list(range(values.seed, values.seed + values.num_seeds))
    runner = _Runner(values, definition.defaults)
    for row, recipe in chosen.items():  # before anything is started: no folder holds other runs
        for seed in seeds:
            searched = recipe.search and search_roots[tuple(recipe.search)]
            runner.is_trained(recipe, folders[row], seed, searched)
    for group in _groups(seeds, values.seeds_at_once):
        for row, recipe in chosen.items():
            search_root = None if recipe.search is None else search_roots[tuple(recipe.search)]
            if search_root:
                runner.search(recipe, search_root, group)
            runner.train(recipe, folders[row], group, search_root)
    if runner.failed:
        names = ", ".join(map(str, runner.failed))
        raise command_line.Interrupted(f"{len(runner.failed)} runs failed: {names}")
    print(f"all runs are in {values.run_dir}")


if __name__ == "__main__":
    command_line.run(define, main)
