"""The cells of a table: mean and spread over seeds, difference from the paper, test against random policies.

Contract: pure functions of a definition and its runs. Values of its metric are in percent. n runs of a cell
have seeds of their own; the standard deviation is that of a sample (n - 1).
"""

import statistics
from typing import NamedTuple

from experiments.runs import welch
from experiments.summaries import table_definition, table_runs


class Sample(NamedTuple):
    """Mean and standard deviation (None below two runs) of n numbers."""

    mean: float
    deviation: float | None
    count: int


class Cell(NamedTuple):
    """A cell of the table; what is missing is None."""

    row: table_definition.Row
    column: table_definition.Column
    runs: list[table_runs.Run]
    values: list[float]  # of the last epoch of each run, %
    last: Sample | None  # of these
    best: Sample | None  # of the epochs with the best test, %
    p_value: float | None  # against the runs of the random policies
    paper: float | None
    paper_spread: float | None
    difference: float | None  # from the paper's value, of the epoch that the paper means
    search_hours: float | None  # mean of a run's search; 0 without one
    train_hours: float | None
    paper_hours: float | None  # of the paper's search
    hardware: str


def sample(values: list[float]) -> Sample | None:
    """Summary of some numbers; None of none."""
    if not values:
        return None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Sample(statistics.fmean(values), deviation, len(values))


def cells(definition: table_definition.Definition, runs: list[table_runs.Run]) -> dict[tuple[str, str], Cell]:
    """All cells of a table by keys of column and row; cells that do not exist are left out."""
    return {
        (column.key, row.key): _cell(definition, column, row, runs)
        for column in definition.columns
        for row in definition.rows
        if (column.key, row.key) in definition.recipes
    }


def random_policies(column: list[Cell]) -> Sample | None:
    """Values of the last epoch of all runs with random policies among the cells of a column."""
    return sample([value for cell in column if cell.row.role == "random" for value in cell.values])


def _cell(definition, column, row, runs):
    def values(runs, epoch="last"):
        return [100.0 * getattr(run, epoch)[definition.metric] for run in runs]

    # Columns in which a row has one recipe share its runs.
    recipes = definition.recipes
    of_column = [
        run for run in runs if recipes[run.column, run.row].is_same(recipes.get((column.key, run.row)))
    ]
    of_cell = [run for run in of_column if run.row == row.key]
    random_rows = {other.key for other in definition.rows if other.role == "random"}
    # A random policy is compared with the other random policies.
    random_runs = [run for run in of_column if run.row in random_rows - {row.key}]
    paper, paper_spread = table_definition.lookup(definition.results, column.paper, row.paper)
    paper_hours, _ = table_definition.lookup(definition.hours, table_definition.hours_row(column), row.paper)
    last, best = sample(values(of_cell)), sample(values(of_cell, "best"))
    ours = best if definition.results and definition.results.epoch == "best" else last
    seconds = [run.search.seconds if run.search else 0.0 for run in of_cell]
    hardware = {run.hardware for run in of_cell} | {run.search.hardware for run in of_cell if run.search}
    return Cell(
        row=row,
        column=column,
        runs=of_cell,
        values=values(of_cell),
        last=last,
        best=best,
        p_value=welch.p_value(values(of_cell), values(random_runs)),
        paper=paper,
        paper_spread=paper_spread,
        difference=ours.mean - paper if ours and paper is not None else None,
        search_hours=statistics.fmean(seconds) / 3600 if of_cell else None,
        train_hours=statistics.fmean(run.seconds for run in of_cell) / 3600 if of_cell else None,
        paper_hours=paper_hours,
        hardware=", ".join(sorted(hardware)),
    )
