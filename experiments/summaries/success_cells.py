"""The cells of a table of planted searches: how often a search finds an op, how soon, and at which level.

Contract: pure functions of a definition and its runs. An op is found if it has rank 1 at the end of the
search. Its level can be told right or wrong where its row has no random sign.
"""

import statistics
from typing import NamedTuple

from experiments.summaries import success_definition, success_runs

ENOUGH = 0.8  # share of the seeds that make a case a found one: 4 of 5
LEVEL_TOLERANCE = 0.15


class Cell(NamedTuple):
    """A planted op in a search."""

    runs: list[success_runs.Run]  # by seed
    num_seeds: int  # that it has once it is complete
    found: int
    median_step: float | None  # from which the op leads to the end, of the runs that find it
    level: float | None  # that was planted; None without magnitude or with a random sign
    level_found: float | None  # mean of the policies that have the op
    kept: tuple[int, int]  # verdicts that recommend the policy found, and all verdicts


class Totals(NamedTuple):
    """A whole search; pairs of a count and of what it is a part."""

    runs: tuple[int, int]  # that find the op
    cases: tuple[int, int]  # of the complete ones, those found with enough seeds
    levels: tuple[int, int]  # within the tolerance; a policy without the op has none
    kept: tuple[int, int]


def cells(
    definition: success_definition.Definition, runs: dict[success_runs.Key, success_runs.Run]
) -> dict[tuple[str, str], Cell]:
    """All cells by keys of search and case; those that do not exist are left out."""
    num_seeds = {search.key: search.num_seeds for search in definition.searches}
    return {
        key: _cell(recipe, [runs[k] for k in sorted(runs) if k[:2] == key], num_seeds[key[0]])
        for key, recipe in definition.recipes.items()
    }


def _cell(recipe, runs, num_seeds):
    steps = [run.steps_until_it_leads for run in runs if run.rank == 1 and run.steps_until_it_leads]
    has_level = runs and not recipe.row.random_sign
    levels = [run.level_found for run in runs if run.level_found is not None]
    return Cell(
        runs=runs,
        num_seeds=num_seeds,
        found=sum(run.rank == 1 for run in runs),
        median_step=statistics.median(steps) if steps else None,
        level=runs[0].level if has_level else None,
        level_found=statistics.fmean(levels) if has_level and levels else None,
        kept=_kept(runs),
    )


def _kept(runs):
    verdicts = [run.recommended for run in runs if run.recommended]
    return verdicts.count("found"), len(verdicts)


def totals(of_search: list[Cell]) -> Totals:
    """The totals of the cells of a search."""
    complete = [cell for cell in of_search if len(cell.runs) == cell.num_seeds]
    misses = [
        float("inf") if run.level_found is None else abs(run.level_found - cell.level)
        for cell in of_search
        if cell.level is not None
        for run in cell.runs
    ]
    return Totals(
        runs=(sum(cell.found for cell in of_search), sum(len(cell.runs) for cell in of_search)),
        cases=(sum(cell.found >= ENOUGH * cell.num_seeds for cell in complete), len(complete)),
        levels=(sum(miss <= LEVEL_TOLERANCE for miss in misses), len(misses)),
        kept=_kept([run for cell in of_search for run in cell.runs]),
    )
