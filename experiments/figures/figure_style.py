"""What all figures share: page, style, colours, saving, and how the value of an op is written.

Contract: nothing here touches matplotlib's global state; figures are made and saved inside `style()`. A PNG
depends on what is drawn and on the matplotlib version only. Colours are those of Okabe and Ito, which
colour-blind readers can tell apart.
"""

import os
import pathlib

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from dada import ops

PAGE_WIDTH = 8.0  # inches; a README shows a page about 800 pixels wide, so 7 points are 10 pixels
_DOTS_PER_INCH = 200

TRAIN, VALID = "#0072B2", "#D55E00"
NEUTRAL, FAINT, INK = "#7A7A7A", "#C8C8C8", "#262626"
SERIES = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BOX = "#00E000"  # around objects in images
HIGHLIGHT = "#D55E00"  # planted ops, wherever they are shown
HIGHLIGHT_LINES = ("-", "--", ":", "-.")  # of one after another
SMALL = 7.0  # points: captions of images; everything else is larger
START_LINE = {"color": INK, "linewidth": 1, "linestyle": (0, (4, 3))}
HOLLOW = {"markerfacecolor": "white", "markeredgecolor": INK, "markersize": 4}

_STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 8.5,
    **{
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 8.5,
    },
    **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 8),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), NEUTRAL),
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK),
    "axes.grid": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.6,
}


def style():
    """Returns a context in which figures have the style of the project, whatever the user's own is."""
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    return matplotlib.rc_context({**defaults, **_STYLE})


def titled(title: str, height: float, pads: tuple[float, float] = (0.09, 0.07)) -> Figure:
    """A figure of the width of a page with a title; its panels are apart by `pads` inches."""
    layout = ConstrainedLayoutEngine(w_pad=pads[0], h_pad=pads[1])
    figure = Figure(figsize=(PAGE_WIDTH, height), layout=layout)
    figure.suptitle(title, x=0.015, ha="left", fontsize=9.5, weight="bold")
    return figure


def legend_beside(axes: Axes) -> None:
    """A legend right of the axes, in the order of the ends of the lines: no label can cover a line."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=1.2)


def over_steps(axes: Axes, last: float, label: str, ticks: int = 5) -> None:
    """Makes the horizontal axis one of steps or epochs, from 0 to the last one."""
    axes.xaxis.set_major_locator(MaxNLocator(ticks, integer=True))
    axes.set(xlabel=label, xlim=(0, 1.02 * last))


def heat_map(axes: Axes, cells: np.ndarray, lightest: float, highest: float | None = None) -> AxesImage:
    """Draws [rows, columns] as blue cells without frame and ticks; NaN leaves a cell blank."""
    # The lightest shade is not the white of the paper.
    shades = ListedColormap(matplotlib.colormaps["Blues"](np.linspace(lightest, 1, 256)))
    image = axes.imshow(cells, shades, vmin=0, vmax=highest, aspect="auto", interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
    return image


def save(path: str | os.PathLike, figure: Figure) -> pathlib.Path:
    """Writes a PNG in one step, with the same bytes for the same figure; returns its path."""
    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    figure.savefig(part, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    os.replace(part, path)
    return path


def value_text(row: ops.OpRow, value: float) -> str:
    """A physical value in few characters, "±15°"; a value that is mirrored at random as "1±0.45"."""
    scale = 100.0 if row.unit.startswith("fraction") else 1.0
    suffix = {"degrees": "°", "bits": " bits", "pixels": " px"}.get(row.unit, "%" if scale > 1 else "")

    def number(quantity):
        text = f"{round(quantity * scale, 2) + 0.0:.3g}"  # + 0.0: no minus before a zero
        return text.replace("-", "−")

    if not row.random_sign:
        return number(value) + suffix
    around = number(row.identity) if row.identity else ""
    if number(value) == number(row.identity):
        return number(row.identity) + suffix
    return f"{around}±{number(abs(value - row.identity))}{suffix}"
