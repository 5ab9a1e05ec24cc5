"""A table as Markdown, for readers, and as CSV, for programs.

Contract: the same cells give the same bytes.
"""

import csv
import io

from experiments.summaries import table_cells, table_definition

_CSV_COLUMNS = (
    *("column", "row", "n", "{metric}_last", "std_last", "{metric}_best", "std_best"),
    *("p_value_against_random", "paper", "paper_spread", "paper_epoch", "difference"),
    *("search_hours", "train_hours", "hardware"),
)
_NOT_RUN = "not run"
_MISSING = "–"


def markdown(definition: table_definition.Definition, cells: dict[tuple[str, str], table_cells.Cell]) -> str:
    """The whole table: one part for each column with runs, then one for the columns that were not run."""
    by_column = {
        column.key: [cells[column.key, row.key] for row in definition.rows if (column.key, row.key) in cells]
        for column in definition.columns
    }
    was_run = [column for column in definition.columns if any(cell.runs for cell in by_column[column.key])]
    lines = [f"# {definition.title}", "", *definition.about]
    for column in was_run:
        lines += ["", f"## {column.name}", "", *_column_lines(definition, by_column[column.key])]
    if was_run:
        lines += ["", *_explanation(definition)]
    not_run = [column for column in definition.columns if column not in was_run]
    if not_run:
        lines += ["", *_not_run_lines(definition, not_run, cells)]
    for table in filter(None, (definition.results, definition.hours)):
        lines += ["", f"The papers' {table.quantity}: {table.source} ({table.status})."]
        if table.spread_kind:
            lines.append(f"± is {table.spread_kind}.")
        lines += table.notes
    return "\n".join(lines) + "\n"


def _column_lines(definition, cells):
    has_paper = definition.results is not None
    heads = ["policy", f"{definition.metric_name}, %", "n", "best epoch, %"]
    heads += [f"paper ({definition.results.epoch} epoch), %", "difference"] if has_paper else []
    heads += ["p against random", "search, h", "training, h", "hardware"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    for cell in cells:
        values = [cell.row.name, _sample(cell.last), str(len(cell.runs)), _sample(cell.best, _MISSING)]
        values += [_paper(cell), _number(cell.difference, "+.2f")] if has_paper else []
        values += [_number(cell.p_value, ".2g"), _number(cell.search_hours, ".2g")]
        lines.append(_line([*values, _number(cell.train_hours, ".2g"), cell.hardware or _MISSING]))
    together = table_cells.random_policies(cells)
    if together:
        lines += ["", f"All random policies together: {_sample(together)} %, {together.count} runs."]
    return lines


def _explanation(definition):
    lines = [
        f"{definition.metric_title} after the last epoch, mean ± standard deviation over n seeds.",
        "*Best epoch* is chosen by the test itself, as in many papers, and is optimistic. *p against",
        "random*: Welch's two-sided test against the runs of all random policies together (for a random",
        "policy: of the other ones). Hours are of one seed, without compiling; those of runs that shared a",
        "device are divided by their number.",
    ]
    if definition.results:
        lines.append(f"The difference from the paper is that of the {definition.results.epoch} epoch.")
    return lines


def _not_run_lines(definition, columns, cells):
    """All columns without a run in one table, with the papers' values."""
    heads = ["policy", *(column.name for column in columns)]
    lines = ["## Not run", "", _line(heads), _line(["---"] * len(heads))]
    for row in definition.rows:
        of_row = [cells.get((column.key, row.key)) for column in columns]
        lines.append(_line([row.name, *(_not_run_cell(cell) for cell in of_row)]))
    if definition.results:
        lines += ["", f"In brackets the paper's value, {definition.results.quantity}."]
    return lines


def _not_run_cell(cell):
    if cell is None:
        return _MISSING
    return _NOT_RUN if cell.paper is None else f"{_NOT_RUN} ({_paper(cell)})"


def _line(values):
    return "| " + " | ".join(values) + " |"


def _sample(sample, missing=_NOT_RUN):
    if sample is None:
        return missing
    return f"{sample.mean:.2f}" + ("" if sample.deviation is None else f" ± {sample.deviation:.2f}")


def _paper(cell):
    if cell.paper is None:
        return _MISSING
    spread = "" if cell.paper_spread is None else f" ± {cell.paper_spread:g}"
    return (f"{cell.paper:.1f}" if round(cell.paper, 1) == cell.paper else f"{cell.paper:.2f}") + spread


def _number(value, form):
    return _MISSING if value is None else f"{value:{form}}".replace("-", "−")


def to_csv(definition: table_definition.Definition, cells: dict[tuple[str, str], table_cells.Cell]) -> str:
    """One line a cell; empty where there is nothing, n = 0 where nothing was run."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(name.format(metric=definition.metric) for name in _CSV_COLUMNS)
    for cell in cells.values():
        samples = []
        for sample in (cell.last, cell.best):
            samples += [None, None] if sample is None else [sample.mean, sample.deviation]
        numbers = [*samples, cell.p_value, cell.paper, cell.paper_spread]
        epoch = definition.results.epoch if cell.paper is not None else ""
        hours = [cell.difference, cell.search_hours, cell.train_hours]
        writer.writerow(
            [cell.column.key, cell.row.key, len(cell.runs)]
            + ["" if number is None else f"{number:.4g}" for number in numbers]
            + [epoch, *("" if number is None else f"{number:.4g}" for number in hours), cell.hardware]
        )
    return text.getvalue()
