"""A table of planted searches as Markdown, for readers, and as CSV, for programs.

Contract: the same cells give the same bytes.
"""

import csv
import io

from experiments.summaries import success_cells, success_definition

_CSV_COLUMNS = (
    *("search", "case", "num_seeds", "n", "found", "kept", "median_step", "level", "level_found"),
    *("mass", "mass_start", "seconds"),
)
_NOT_RUN = "not run"
_EXPLANATION = (
    "*5 of 5*: the searches, one for each seed, at whose end the planted op has the largest mass of all ops.",
    "*Step*: from which it leads to the end, the median of the searches that find it. *Level*: the mean of",
    "the policies that have the op, and the planted one in brackets; – for an op that has none or whose",
    "direction is drawn at random. *Kept*: how often `--judge` recommends the policy found.",
    f"Last line: searches that find the op; ops that at least {success_cells.ENOUGH:.0%} of the searches",
    "find, of those with all seeds run; levels within",
    f"{success_cells.LEVEL_TOLERANCE:g} of the planted one, which a policy without the op has not;",
    "policies kept. A cell with – alone is not part of this table.",
)


def markdown(
    definition: success_definition.Definition, cells: dict[tuple[str, str], success_cells.Cell]
) -> str:
    """The table: a line for each planted op, a column for each search, totals last."""
    heads = ["planted op", *(search.name for search in definition.searches)]
    lines = [f"# {definition.title}", "", *definition.about, ""]
    lines += [_line(heads), _line(["---"] * len(heads))]
    for case in definition.cases:
        of_case = [cells.get((search.key, case.key)) for search in definition.searches]
        lines.append(_line([case.name, *map(_cell, of_case)]))
    by_search = [[cell for key, cell in cells.items() if key[0] == one.key] for one in definition.searches]
    lines.append(_line(["all", *(_totals(success_cells.totals(of_search)) for of_search in by_search)]))
    return "\n".join([*lines, "", *_EXPLANATION]) + "\n"


def _line(values):
    return "| " + " | ".join(values) + " |"


def _cell(cell):
    if cell is None:
        return "–"
    if not cell.runs:
        return _NOT_RUN
    missing = cell.num_seeds - len(cell.runs)
    found = f"{cell.found} of {len(cell.runs)}" + (f" ({missing} {_NOT_RUN})" if missing else "")
    step = "never" if cell.median_step is None else f"step {cell.median_step:g}"
    level = "level –"
    if cell.level is not None:
        level_found = "none" if cell.level_found is None else f"{cell.level_found:.2f}"
        level = f"level {level_found} ({cell.level:.2f})"
    kept = (f"kept {cell.kept[0]} of {cell.kept[1]}",) if cell.kept[1] else ()
    return ", ".join((found, step, level, *kept))


def _totals(totals):
    if not totals.runs[1]:
        return _NOT_RUN
    names = ("searches", "ops", "levels", "kept")
    return ", ".join(_share(*pair, name) for pair, name in zip(totals, names) if pair[1])


def _share(count, of, name):
    return f"{count} of {of} {name} ({count / of:.0%})"


def to_csv(cells: dict[tuple[str, str], success_cells.Cell]) -> str:
    """One line a cell; empty where there is nothing. Masses and seconds are means over seeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for key, cell in cells.items():
        n = len(cell.runs)
        numbers = [cell.median_step, cell.level, cell.level_found]
        for name in ("mass", "mass_start", "seconds_run"):
            numbers.append(sum(getattr(run, name) for run in cell.runs) / n if n else None)
        counts = [cell.num_seeds, n, cell.found, cell.kept[0] if cell.kept[1] else ""]
        writer.writerow([*key, *counts, *("" if number is None else f"{number:.4g}" for number in numbers)])
    return text.getvalue()
