"""The figure of a table of planted searches: planted ops down, searches across.

A cell is the darker the more seeds find the op, and says how many. A dot is the mass of the planted op at the
end of a seed, filled where it is the largest of all ops; the line across a cell is the mass at the start.

Contract: cells in, one PNG out.
"""

import os
import pathlib

import matplotlib

from experiments.figures import figure_style
from experiments.summaries import success_cells, success_definition

_SHADES = matplotlib.colormaps["Blues"]


def draw(
    definition: success_definition.Definition,
    cells: dict[tuple[str, str], success_cells.Cell],
    path: str | os.PathLike,
) -> pathlib.Path:
    """Draws the figure of a table; returns its path."""
    with figure_style.style():
        figure = figure_style.titled(definition.title.replace("*", ""), 1.4 + 0.21 * len(definition.cases))
        panels = figure.subplots(1, len(definition.searches), sharex=True, sharey=True, squeeze=False)[0]
        for axes, search in zip(panels, definition.searches):
            axes.set_title(search.name, fontsize=8.5)
            for line, case in enumerate(definition.cases):
                if (search.key, case.key) in cells:
                    _cell(axes, line, cells[search.key, case.key])
            axes.set(xlim=(0, 1.1), ylim=(len(definition.cases) - 0.5, -0.5))
            axes.tick_params(axis="y", length=0)
            axes.grid(visible=False)
        panels[0].set_yticks(range(len(definition.cases)), [case.name for case in definition.cases])
        figure.supxlabel("mass of the planted op at the end: a dot for each seed", fontsize=8.5)
        return figure_style.save(path, figure)


def _cell(axes, line, cell):
    if cell.runs:
        shade = _SHADES(0.45 * cell.found / len(cell.runs))
        axes.axhspan(line - 0.46, line + 0.46, color=shade, linewidth=0)
        axes.vlines(cell.runs[0].mass_start, line - 0.46, line + 0.46, color=figure_style.INK, linewidth=0.8)
    for run in cell.runs:
        fill = {"markerfacecolor": figure_style.HIGHLIGHT} if run.rank == 1 else {}
        axes.plot(run.mass, line, "o", **figure_style.HOLLOW | fill, clip_on=False)
    text = f"{cell.found} of {len(cell.runs)}" if cell.runs else "not run"
    text += " run" if 0 < len(cell.runs) < cell.num_seeds else ""
    beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": figure_style.SMALL}
    axes.text(1.02, line, text, **beside)
