"""What a table of trainings consists of, read from its definition: rows, columns, recipes, papers' values.

A definition is TABLE/table.json:
    title, about     text, and a list of sentences that are printed under it
    metric           what a training is judged by, one of `METRICS`; left out: test_error
    results, hours   names of files in `paper_tables`, or null: the papers' results and search costs
    columns          each with key, name, train and search (command lines), paper (row of the paper's tables)
    rows             each with key, name, role, train, search, paper (column of the paper's tables)

The recipe of a cell is the command line of its column followed by that of its row. `train` and `search` of a
row may be mappings from column keys, for a row that some columns do not have. Columns in which a row has the
same recipe share its runs, which are kept as those of the first of them. `order`, if there is one, is a list
of the rows that are run first, the most telling one at its start. A row with `search` trains with the
policy that a search with these flags and the same seed found. `role` is "identity" or "random" for the rows
that every table must have: without them no number says what a search is worth.

Contract: reads files, writes nothing.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from experiments.data import planting
from experiments.runs import run_flags, run_folder

PAPER_TABLES = pathlib.Path(__file__).resolve().parents[1] / "paper_tables"
# By name in the summary of a training: the task of such trainings, and the words of the table.
METRICS = {
    "test_error": ("classification", "test error"),
    "test_AP": ("detection", "test AP"),
    "test_AP50": ("detection", "test AP50"),
}
ROLES = ("identity", "random")
FILE = "table.json"
# By command, "train" and "search": all flags that a command line stands for. ValueError on a bad one.
Resolve = Mapping[str, Callable[[list[str]], dict[str, Any]]]


class PaperTable(NamedTuple):
    """A table of a paper, from its JSON file; `rows` and `spreads` hold a number or None per column."""

    source: str  # paper and table
    status: str  # how the numbers were checked
    quantity: str
    columns: list[str]
    rows: dict[str, list[float | None]]
    spreads: dict[str, list[float | None]] = {}  # noqa: RUF012 (never changed)
    spread_kind: str = ""
    epoch: str = "last"  # which epoch the results are of: "last" or "best"
    hardware: list[str] = []  # noqa: RUF012
    notes: list[str] = []  # noqa: RUF012


class Column(NamedTuple):
    """A network, a data set and a budget."""

    key: str
    name: str
    train: list[str]
    search: list[str] = []  # noqa: RUF012
    paper: str | None = None


class Row(NamedTuple):
    """A policy."""

    key: str
    name: str
    role: str | None = None
    train: list[str] | dict[str, list[str]] = []  # noqa: RUF012
    search: list[str] | dict[str, list[str]] | None = None
    paper: str | None = None


class Recipe(NamedTuple):
    """A cell: command lines without seed and folder, and the flags that they mean, as text."""

    train: list[str]
    search: list[str] | None
    train_flags: dict[str, str]
    search_flags: dict[str, str] | None

    def is_same(self, other: "Recipe | None") -> bool:
        """Whether the command lines mean the same flags."""
        return other is not None and self[2:] == other[2:]


class Definition(NamedTuple):
    """A whole table."""

    path: pathlib.Path
    title: str
    about: list[str]
    columns: list[Column]
    rows: list[Row]
    metric: str
    results: PaperTable | None
    hours: PaperTable | None
    recipes: dict[tuple[str, str], Recipe]  # by keys of column and row, without cells that do not exist
    defaults: dict[str, dict[str, str]]  # by command, the flags of an empty command line
    order: list[str]  # keys of all rows, as they are run

    @property
    def metric_name(self) -> str:
        """The metric in words."""
        return METRICS[self.metric][1]

    @property
    def metric_title(self) -> str:
        """The same at the start of a line."""
        return self.metric_name[0].upper() + self.metric_name[1:]


def load(folder: str | os.PathLike, resolve: Resolve) -> Definition:
    """Reads and checks TABLE/table.json, with the commands that its command lines are for.

    Raises:
      FileNotFoundError: no such file. ValueError: names the file and what is wrong in it.
    """
    path = pathlib.Path(folder) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the definition of a table")
    try:
        text = json.loads(path.read_text())
        columns = [Column(**column) for column in text["columns"]]
        rows = [Row(**row) for row in text["rows"]]
        results, hours = (text[name] and paper_table(text[name]) for name in ("results", "hours"))
        _check(columns, rows, results)
        order = text.get("order", [])
        if unknown := set(order) - {row.key for row in rows}:
            raise ValueError(f"order: got {', '.join(sorted(unknown))}, expected keys of rows")
        cells = {(column.key, row.key): _recipe(column, row, resolve) for column in columns for row in rows}
        metric = _metric(text.get("metric", "test_error"), filter(None, cells.values()))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    recipes = {cell: recipe for cell, recipe in cells.items() if recipe}
    defaults = {name: _flags(of_command, []) for name, of_command in resolve.items()}
    about = text["title"], text["about"]
    order = list(dict.fromkeys([*order, *(row.key for row in rows)]))
    return Definition(path.parent, *about, columns, rows, metric, results, hours, recipes, defaults, order)


def _metric(name, recipes):
    """The metric of this name, which all trainings must have."""
    if name not in METRICS:
        raise ValueError(f"metric: got {name!r}, expected one of {', '.join(METRICS)}")
    task, _ = METRICS[name]
    for recipe in recipes:
        if (got := recipe.train_flags["task"]) != task:
            raise ValueError(f"metric {name}: {' '.join(recipe.train)}: got --task={got}, expected {task}")
    return name


def _check(columns, rows, results):
    for entries in (columns, rows):
        keys = [entry.key for entry in entries]
        if not keys or len(set(keys)) < len(keys) or not all(key.isidentifier() for key in keys):
            raise ValueError(f"keys: got {', '.join(keys)}, expected one or more different identifiers")
    roles = [row.role for row in rows]
    if unknown := set(roles) - {None, *ROLES}:
        raise ValueError(f"role: got {', '.join(map(repr, unknown))}, expected one of {', '.join(ROLES)}")
    for role in ROLES:
        if role not in roles:
            raise ValueError(f"rows: none has the role {role!r}, expected one or more")
    for row in rows:
        if results and row.paper and row.paper not in results.columns:
            raise ValueError(f"row {row.key}: {row.paper!r} is not one of {', '.join(results.columns)}")


def paper_table(name: str) -> PaperTable:
    """Reads a table of a paper from `paper_tables`.

    Raises:
      ValueError: no such table, or one that is not complete.
    """
    known = sorted(file.stem for file in PAPER_TABLES.glob("*.json"))
    if name not in known:
        raise ValueError(f"paper table {name!r}: expected one of {', '.join(known)}")
    try:
        table = PaperTable(**json.loads((PAPER_TABLES / f"{name}.json").read_text()))
    except TypeError as error:
        raise ValueError(f"paper table {name}: {error}") from error
    for key, values in [*table.rows.items(), *table.spreads.items(), ("hardware", table.hardware)]:
        if values and len(values) != len(table.columns):
            raise ValueError(f"paper table {name}, {key}: got {len(values)} values for its columns")
    return table


def lookup(
    table: PaperTable | None, row: str | None, column: str | None
) -> tuple[float | None, float | None]:
    """Value and spread of a cell of a paper's table; None where it has none."""
    if table is None or row not in table.rows or column not in table.columns:
        return None, None
    index = table.columns.index(column)
    spreads = table.spreads.get(row)
    return table.rows[row][index], spreads[index] if spreads else None


def hours_row(column: Column) -> str | None:
    """The row of the table of search costs: the data set without the network."""
    return column.paper and column.paper.split("/")[0]


def _recipe(column, row, resolve):
    """The recipe of a cell, or None if the row does not have this column."""
    train_part, search_part = (
        line.get(column.key) if isinstance(line, dict) else line for line in (row.train, row.search)
    )
    if train_part is None or (search_part is None and row.search is not None):
        return None
    train_line = [*column.train, *train_part]
    train_flags = _flags(resolve["train"], train_line)
    if row.search is None:
        return Recipe(train_line, None, train_flags, None)
    search_line = [*column.search, *search_part]
    # The policy is that of the search, whatever its path.
    del train_flags["policy"]
    return Recipe(train_line, search_line, train_flags, _flags(resolve["search"], search_line))


def _flags(resolve, arguments):
    try:
        return what_was_run(run_folder.flag_texts(resolve(arguments)))
    except ValueError as error:
        raise ValueError(f"{' '.join(arguments)}: {error}") from error


def what_was_run(flag_texts: dict[str, str]) -> dict[str, str]:
    """The flags of a run without those that say only where, with which seed and how often."""
    return {name: text for name, text in flag_texts.items() if name not in run_flags.NOT_RECIPE}


def is_same(wanted: dict[str, str] | None, flags: dict[str, str] | None, defaults: dict[str, str]) -> bool:
    """Whether a run had the wanted flags, and none where None is wanted."""
    if wanted is None or flags is None:
        return wanted is flags
    return difference(wanted, flags, defaults) is None


def difference(wanted: dict[str, str], flags: dict[str, str], defaults: dict[str, str]) -> str | None:
    """In which flag a run is not as wanted, in words; flags newer than the run have their defaults."""
    flags = {name: defaults.get(name) for name in wanted} | flags
    for name in sorted(flags):
        got, expected = flags[name], wanted.get(name)
        if name == "planted_op":
            is_same = _is_same_planted(planting.parse(expected), planting.parse(got))
        else:
            is_same = got == expected
        if not is_same:
            given = f"without --{name}" if got is None else f"with --{name}={got}"
            return f"a run {given}, expected {expected or 'none'}"
    return None


def _is_same_planted(wanted, planted):
    """Whether ops are those that are wanted; a run has resolved values and directions that were not given."""
    return len(wanted) == len(planted) and all(
        op.rstrip("+-") == planted_op and value in (None, planted_value)
        for (op, value), (planted_op, planted_value) in zip(wanted, planted)
    )
