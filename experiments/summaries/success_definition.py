"""What a table of planted searches consists of, read from its definition: planted ops, searches, seeds.

A definition is TABLE/table.json:
    title, about     text, and a list of sentences that are printed under it
    num_seeds        every search runs with the seeds 0 .. num_seeds - 1
    cases            the planted ops, each with key, name and planted_op, as of a search; default: the key
    searches         each with key, name, flags (command line); cases (keys) and num_seeds of its own, if it
                     has fewer

A value in `planted_op` means the same images for every search, whatever levels its space has.

Contract: reads files, writes nothing.
"""

import json
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from dada import ops
from experiments.data import planting
from experiments.runs import run_folder
from experiments.summaries import table_definition


class Case(NamedTuple):
    """A planted op."""

    key: str  # also the name of its folders
    name: str
    planted_op: str


class Search(NamedTuple):
    """A way to search."""

    key: str
    name: str
    flags: list[str]
    cases: list[str]  # keys
    num_seeds: int


class Recipe(NamedTuple):
    """What a cell runs."""

    arguments: list[str]  # command line without seed and folder
    flags: dict[str, str]  # all that it means
    row: ops.OpRow  # of the search space


class Definition(NamedTuple):
    """A whole table."""

    path: pathlib.Path
    title: str
    about: list[str]
    num_seeds: int
    cases: list[Case]
    searches: list[Search]
    recipes: dict[tuple[str, str], Recipe]  # by keys of search and case, without cells that do not exist
    defaults: dict[str, str]  # the flags of an empty command line


def load(folder: str | os.PathLike, resolve: Callable[[list[str]], dict[str, Any]]) -> Definition:
    """Reads and checks TABLE/table.json; `resolve` gives all flags that a command line of a search means.

    Raises:
      FileNotFoundError: no such file. ValueError: names the file and what is wrong in it.
    """
    path = pathlib.Path(folder) / table_definition.FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected the definition of a table")
    try:
        text = json.loads(path.read_text())
        cases = [Case(**{"planted_op": case["key"], **case}) for case in text["cases"]]
        shared = {"cases": [case.key for case in cases], "num_seeds": text["num_seeds"]}
        searches = [Search(**{**shared, **search}) for search in text["searches"]]
        _check(text["num_seeds"], cases, searches)
        recipes = {
            (search.key, case.key): _recipe(search, case, resolve)
            for search in searches
            for case in cases
            if case.key in search.cases
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    about = text["title"], text["about"], text["num_seeds"]
    defaults = table_definition.what_was_run(run_folder.flag_texts(resolve([])))
    return Definition(path.parent, *about, cases, searches, recipes, defaults)


def _check(num_seeds, cases, searches):
    for entries in (cases, searches):
        keys = [entry.key for entry in entries]
        is_name = all(re.fullmatch(r"\w[\w.:+-]*", key) for key in keys)
        if not keys or len(set(keys)) < len(keys) or not is_name:
            raise ValueError(f"keys: got {', '.join(keys)}, expected one or more different names of folders")
    for search in searches:
        if unknown := set(search.cases) - {case.key for case in cases}:
            raise ValueError(
                f"search {search.key}: got the cases {', '.join(sorted(unknown))}, not of the table"
            )
        if not 1 <= search.num_seeds <= num_seeds:
            got = f"search {search.key}: got num_seeds {search.num_seeds}"
            raise ValueError(f"{got}, expected 1 to {num_seeds}, that of the table")


def _recipe(search, case, resolve):
    arguments = [*search.flags, f"--planted_op={case.planted_op}"]
    try:
        settings = resolve(arguments)
        planted, *more = planting.parse(settings["planted_op"])
        if more:
            raise ValueError("got several planted ops, expected one")
        options = (tuple(settings[name]) for name in ("extra_ops", "exclude_ops"))
        space = ops.search_space(settings["search_space"], *options)
        row = planting.row_of(space, *planted)
        if row is None:
            raise ValueError(f"{planted[0]} is not in the search space")
    except ValueError as error:
        raise ValueError(f"{' '.join(arguments)}: {error}") from error
    flags = table_definition.what_was_run(run_folder.flag_texts(settings))
    return Recipe(arguments, flags, space.rows[row])
