"""The figure of a table: every run of every row, and the cost of the search against the result.

Contract: cells in, one PNG out. Columns with runs get a line of their own. Those that differ only in the
--num_valid of their searches have one together, in which the result is drawn over it. Of columns without
runs the papers' values are shown; how far to trust these is in `PaperTable.status`.
"""

import itertools
import os
import pathlib

import numpy as np

from experiments.figures import figure_style
from experiments.summaries import table_cells, table_definition

_PAPERS_A_LINE = 3
_HEIGHTS = {"row": 0.21, "frame": 1.3, "papers": 2.7, "num_valid": 4.2}  # inches
_LETTER, _LINE = 0.062, 0.125  # inches that a label in a cost panel takes
_HOLLOW = {"marker": "o", "markersize": 4.5, "linestyle": "", "color": figure_style.NEUTRAL}
_COST_TICKS = {0: "none", 0.1: "0.1", 1: "1", 10: "10", 100: "100", 1000: "1k", 10000: "10k"}


def draw(
    definition: table_definition.Definition,
    cells: dict[tuple[str, str], table_cells.Cell],
    path: str | os.PathLike,
) -> pathlib.Path | None:
    """Draws the figure of a table; returns its path, or None without runs and papers' values."""
    by_column = [
        [cells[column.key, row.key] for row in definition.rows if (column.key, row.key) in cells]
        for column in definition.columns
    ]
    run = [of_column for of_column in by_column if any(cell.runs for cell in of_column)]
    papers = [
        of_column
        for of_column in by_column
        if of_column not in run and len(_paper_points(definition, of_column[0])) > 1
    ]
    beside = min(len(papers), _PAPERS_A_LINE)
    lines = -(-len(papers) // _PAPERS_A_LINE)
    groups = [
        list(group) for _, group in itertools.groupby(run, lambda of_column: _group(definition, of_column))
    ]
    heights = [
        _HEIGHTS["frame"] + _HEIGHTS["row"] * len(group[0]) if len(group) == 1 else _HEIGHTS["num_valid"]
        for group in groups
    ]
    heights += [_HEIGHTS["papers"]] * lines
    if not heights:
        return None
    with figure_style.style():
        figure = figure_style.titled(definition.title.replace("*", ""), sum(heights) + 0.4)
        parts = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
        for part, (of_column, *others) in zip(parts, groups):
            name = of_column[0].column.name
            if others:
                part.suptitle(name.rpartition(", ")[0], x=0.015, ha="left", fontsize=9)
                _num_valid_panel(part, definition, [of_column, *others])
                continue
            part.suptitle(name, x=0.015, ha="left", fontsize=9)
            if not any(cell.row.search is not None or cell.paper_hours for cell in of_column):
                # Nothing was searched for: no cost to show.
                _runs_panel(part.subplots(), definition, of_column)
                continue
            runs, cost = part.subplots(1, 2, width_ratios=[1.3, 1])
            _runs_panel(runs, definition, of_column)
            size = 3.1, _HEIGHTS["row"] * len(of_column)
            _cost_panel(cost, definition, of_column, "Cost of the search", size)
        for index, part in enumerate(parts[len(groups) :]):
            part.suptitle("Not run here: values of the papers", x=0.015, ha="left", fontsize=9)
            chunk = papers[index * beside : (index + 1) * beside]
            panels = np.atleast_1d(part.subplots(1, beside))
            for panel, of_column in zip(panels, chunk + [None] * beside):
                if of_column is None:
                    panel.set_axis_off()
                else:
                    title = of_column[0].column.name.replace(", ", "\n", 1)
                    _cost_panel(panel, definition, of_column, title, (6.0 / beside, 1.5))
        return figure_style.save(path, figure)


def _runs_panel(axes, definition, cells):
    """One line a row: all runs as dots, mean and standard deviation."""
    axes.set_title(f"{definition.metric_title} of the last epoch")
    for line, cell in enumerate(cells):
        if not cell.runs:
            axes.text(0.01, line, "not run", transform=axes.get_yaxis_transform(), va="center", fontsize=7.5)
            continue
        axes.plot(cell.values, [line] * len(cell.values), "o", color=figure_style.FAINT, markersize=3.5)
        style = {"fmt": "o", "color": _color(cell), "markersize": 5, "capsize": 2.5}
        axes.errorbar(cell.last.mean, line, xerr=cell.last.deviation, **style)
    together = table_cells.random_policies(cells)
    if together:
        axes.axvline(together.mean, **figure_style.START_LINE)
        axes.text(together.mean, -0.7, " mean of all random", va="center", fontsize=figure_style.SMALL)
    axes.set_yticks(range(len(cells)), [f"{cell.row.name}  {n}" for n, cell in enumerate(cells, start=1)])
    axes.set_ylim(len(cells) - 0.4, -1.1)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("% (dots: seeds; bar: mean ± std)")


def _num_valid(definition, cell):
    """Validation images of the search of a cell, as text; None without a search or the flag."""
    return (definition.recipes[cell.column.key, cell.row.key].search_flags or {}).get("num_valid")


def _group(definition, cells):
    """What columns have in common that differ in the validation images of their searches only."""
    column = cells[0].column
    counts = [_num_valid(definition, cell) for cell in cells if cell.row.search is not None]
    return column.train if counts and all(counts) else column.key


def _num_valid_panel(figure, definition, columns):
    """The metric over the validation images of the searches; what has no search is a line across."""
    axes = figure.subplots()
    axes.set_title(f"{definition.metric_title} of the last epoch")
    axes.set(xlabel="labelled validation images of a search (bar: mean ± std)", ylabel="%", xscale="log")
    cells, by_row = list(itertools.chain(*columns)), {}
    for cell in cells:
        if cell.runs:
            by_row.setdefault(cell.row.key, []).append(cell)
    counts = sorted({int(_num_valid(definition, cell)) for cell in cells if cell.row.search is not None})
    ends, labels = (0.8 * counts[0], 1.25 * counts[-1]), []
    colors = itertools.cycle(figure_style.SERIES[1:])

    def across(sample, name, **style):
        axes.plot(ends, [sample.mean] * 2, **style)
        axes.errorbar(ends[1], sample.mean, yerr=sample.deviation, color=style["color"], capsize=2.5)
        labels.append((ends[1], sample.mean, name))

    for of_row in by_row.values():
        row = of_row[0].row
        if row.search is not None:
            x = [int(_num_valid(definition, cell)) for cell in of_row]
            y, deviation = zip(*((cell.last.mean, cell.last.deviation or 0.0) for cell in of_row))
            style = {"color": next(colors), "markersize": 5, "capsize": 2.5}
            axes.errorbar(x, y, yerr=deviation, fmt="o-", label=row.name, **style)
        elif row.role != "random":
            across(of_row[0].last, row.name, color=_color(of_row[0]), linewidth=1)
    together = table_cells.random_policies(columns[0])
    if together:
        across(together, "random policies", **figure_style.START_LINE)
    figure.legend(loc="outside upper right", ncols=4, handlelength=1.5)
    axes.set_xticks(counts, [f"{count:,}" for count in counts])
    axes.set_xticks([], minor=True)
    axes.set_xlim(ends[0], ends[1] * (ends[1] / ends[0]) ** 0.25)  # room for the names
    axes.set_ylim(axes.get_ylim())  # fixed, because labels are placed by it
    _write_labels(axes, labels, (7.2, _HEIGHTS["num_valid"] - 1.2))


def _color(cell):
    if cell.row.role:
        return figure_style.NEUTRAL
    return figure_style.HIGHLIGHT if cell.row.search is not None else figure_style.TRAIN


def _paper_points(definition, cell):
    """(hours, result, name) of the methods of which a paper gives both."""
    points = []
    if definition.results is None or definition.hours is None:
        return points
    hours_row = table_definition.hours_row(cell.column)
    for name in definition.results.columns:
        result, _ = table_definition.lookup(definition.results, cell.column.paper, name)
        hours, _ = table_definition.lookup(definition.hours, hours_row, name)
        if result is not None and hours is not None:
            points.append((hours, result, name))
    return points


def _cost_panel(axes, definition, cells, title, size):
    """Hours of search against test error: papers hollow and by name, our rows filled and by number.

    `size` is about that of the axes in inches, for the labels.
    """
    axes.set_title(title, fontsize=8.5)
    labels = _paper_points(definition, cells[0])
    for hours, result, _ in labels:
        axes.plot(hours, result, markerfacecolor="white", **_HOLLOW)
    for number, cell in enumerate(cells, start=1):
        if not cell.runs:
            continue
        # A published policy cost what its paper says.
        hours = cell.search_hours if cell.row.search is not None else cell.paper_hours or 0.0
        style = {"fmt": "o", "color": _color(cell), "markersize": 4.5}
        axes.errorbar(hours, cell.last.mean, yerr=cell.last.deviation, **style)
        labels.append((hours, cell.last.mean, str(number)))
    axes.set_xscale("symlog", linthresh=0.05, linscale=0.6)
    most = max(max(hours for hours, _, _ in labels), 0.5)
    ticks = {tick: text for tick, text in _COST_TICKS.items() if tick <= 3 * most}
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xticks([], minor=True)
    axes.set_xlim(-0.02, 10 * most)
    axes.set(xlabel="hours of search", ylabel=f"{definition.metric_name}, %")
    axes.margins(y=0.22)
    axes.set_ylim(axes.get_ylim())  # fixed, because labels are placed by it
    _write_labels(axes, labels, size)


def _write_labels(axes, labels, size):
    """Writes each label right of its point (left at the right edge), moved up or down clear of the others.

    A label that is moved away from its point gets a line to it.
    """
    to_axes = axes.transScale + axes.transLimits
    points = np.array([to_axes.transform(label[:2]) for label in labels]) * size
    widths = np.array([_LETTER * len(text) for _, _, text in labels])
    right = points[:, 0] + 0.07
    x = np.where(right + widths < size[0], right, points[:, 0] - 0.07 - widths)
    y = points[:, 1] + 1e-6 * np.arange(len(labels))  # equal ones move apart too
    for _ in range(100):
        for one in range(len(labels)):
            for other in range(len(labels)):
                if one == other:
                    continue
                on_point = x[one] - 0.05 < points[other, 0] < x[one] + widths[one] + 0.03
                if on_point and abs(y[one] - points[other, 1]) < 0.09:
                    y[one] += 0.01
                beside = x[one] >= x[other] + widths[other] or x[other] >= x[one] + widths[one]
                gap = y[one] - y[other]
                if not beside and abs(gap) < _LINE:
                    push = 0.5 * (_LINE - abs(gap)) * np.sign(gap)
                    y[one], y[other] = y[one] + push, y[other] - push
    places = zip(labels, points / size, x / size[0], y / size[1], widths)
    for (_, _, text), point, left, middle, width in places:
        if abs(middle - point[1]) * size[1] > _LINE:
            start = min(max(point[0], left), left + width / size[0])
            end = middle + np.sign(point[1] - middle) * 0.5 * _LINE / size[1]
            style = {"color": figure_style.FAINT, "linewidth": 0.8, "zorder": 0}
            axes.plot((point[0], start), (point[1], end), transform=axes.transAxes, **style)
        axes.text(left, middle, text, transform=axes.transAxes, va="center", fontsize=figure_style.SMALL)
