"""Figures made of images: captioned grids, and the sheet of all ops over their levels.

Contract: arrays in, matplotlib figures out; no file is touched, nothing is random. An image is uint8
[H, W, 3], or one of an `augment.ImagesWithBoxes`, whose boxes are drawn. Positions are inches from the top
left corner of a page. To be called inside `figure_style.style()`.
"""

import itertools
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from dada import augment, ops
from experiments.figures import figure_style

_MARGIN = 0.12
_GAP = 0.08
_TITLE = 0.42  # height of the title of a page
_LINE = 0.135  # height of a line of small text
_LABEL = 0.78  # width of the labels left of a row


class Block(NamedTuple):
    """A titled grid of images with one size of cell."""

    title: str
    images: list[list[Any]]  # rows of columns; None leaves a cell blank
    row_labels: tuple[str, ...] = ()
    column_labels: tuple[str, ...] = ()
    captions: tuple[tuple[str, ...], ...] = ()  # below each cell, of up to `caption_lines` lines
    caption_lines: int = 0  # height that is kept free below every row


def image_grid(title: str, blocks: list[Block]):
    """Draws blocks of images, all with the same number of columns, below each other."""
    columns = max(len(row) for block in blocks for row in block.images)
    # Few columns get no larger images than seven would: a page of two classes stays a page.
    width = (figure_style.PAGE_WIDTH - 2 * _MARGIN - _LABEL) / max(columns, 7) - _GAP
    first = next(image for block in blocks for row in block.images for image in row if image is not None)
    height = width * first.shape[0] / first.shape[1]
    row_heights = [height + _GAP + _LINE * block.caption_lines for block in blocks]
    block_heights = [
        0.34 + _LINE * bool(block.column_labels) + len(block.images) * row_height
        for block, row_height in zip(blocks, row_heights)
    ]
    figure, axes = _page(title, _TITLE + sum(block_heights) + _MARGIN)
    top = _TITLE
    for block, row_height, block_height in zip(blocks, row_heights, block_heights):
        axes.text(_MARGIN, top + 0.12, block.title, va="center")
        y = top + 0.28
        if block.column_labels:
            y += _LINE
            for column, label in enumerate(block.column_labels):
                x = _MARGIN + _LABEL + column * (width + _GAP) + width / 2
                _small(axes, x, y - 0.05, label, ha="center")
        for row, images in enumerate(block.images):
            if block.row_labels:
                _small(axes, _MARGIN, y + height / 2, block.row_labels[row], va="center")
            for column, image in enumerate(images):
                x = _MARGIN + _LABEL + column * (width + _GAP)
                _place(axes, image, x, y, width, height)
                if block.captions:
                    _caption(axes, x + width / 2, y + height, block.captions[row][column])
            y += row_height
        top += block_height
    return figure


class OpImages(NamedTuple):
    """An image after one op, a row of the search space."""

    row: ops.OpRow
    values: list[float]  # physical, at each level, the positive side of a mirrored op; one for no magnitude
    images: list[Any]  # for each value


def ops_sheet(title: str, original: Any, heads: tuple[str, ...], sheet: list[OpImages]):
    """Draws all ops of a search space, in its order: those with a magnitude over their levels, then the
    others once.

    `original` is an image; `heads` are those of the columns.
    """
    over_levels = [op for op in sheet if op.row.unit]
    once = [op for op in sheet if not op.row.unit]
    num_rows = -(-len(over_levels) // 2)
    label, between = 0.92, 0.2
    block_width = (figure_style.PAGE_WIDTH - 2 * _MARGIN - between) / 2
    # Few columns get no larger images than five would.
    width = (block_width - label) / max(len(heads), 5) - _GAP / 2
    height = width * original.shape[0] / original.shape[1]
    row_height = height + _LINE + _GAP
    per_line = int((figure_style.PAGE_WIDTH - 2 * _MARGIN) // (width + 0.24))
    once_lines = -(-(len(once) + 1) // per_line)
    levels_top = _TITLE + 0.3
    once_top = levels_top + num_rows * row_height + 0.36
    figure, axes = _page(title, once_top + once_lines * row_height + _MARGIN)

    for index, op in enumerate(over_levels):
        block, line = divmod(index, num_rows)
        left = _MARGIN + block * (block_width + between)
        y = levels_top + line * row_height
        axes.text(left, y + height / 2 - 0.04, op.row.name, fontsize=8)
        unit = op.row.unit.replace("fraction of", "% of")
        _small(axes, left, y + height / 2 + 0.1, unit, color=figure_style.NEUTRAL)
        for column, (value, image) in enumerate(zip(op.values, op.images)):
            x = left + label + column * (width + _GAP / 2)
            if line == 0:
                _small(axes, x + width / 2, y - 0.04, heads[column], ha="center")
            _place(axes, image, x, y, width, height)
            _caption(axes, x + width / 2, y + height, figure_style.value_text(op.row, value))

    axes.text(_MARGIN, once_top - 0.12, "Without a level:", va="center")
    step = (figure_style.PAGE_WIDTH - 2 * _MARGIN) / per_line
    shown = [("original", original), *((op.row.name, op.images[0]) for op in once)]
    for (line, column), (name, image) in zip(itertools.product(range(once_lines), range(per_line)), shown):
        x, y = _MARGIN + column * step + (step - width) / 2, once_top + line * row_height
        _place(axes, image, x, y, width, height)
        _caption(axes, x + width / 2, y + height, name)
    return figure


def _page(title, height):
    """(figure, axes), blank but for the title; one unit of the axes is one inch."""
    figure = Figure(figsize=(figure_style.PAGE_WIDTH, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, figure_style.PAGE_WIDTH), ylim=(height, 0))
    axes.text(_MARGIN, 0.22, title, va="center", fontsize=9.5, weight="bold")
    return figure, axes


def _small(axes, x, y, text, **options):
    axes.text(x, y, text, fontsize=figure_style.SMALL, **options)


def _caption(axes, x, bottom, text):
    """Lines below an image; each on its own, so that letters like g do not shift it."""
    for line, words in enumerate(text.split("\n")):
        _small(axes, x, bottom + 0.115 + line * _LINE, words, ha="center")


def _place(axes, image, x, y, width, height):
    if image is None:
        return
    boxes = ()
    if isinstance(image, augment.ImagesWithBoxes):
        image, boxes, valid = image
        scale = np.tile([width / image.shape[1], height / image.shape[0]], 2)
        boxes = np.array([x, y, x, y]) + boxes[valid] * scale
    # Small images show their pixels; large ones are shrunk and need a filter.
    interpolation = "nearest" if max(image.shape) <= 64 else "antialiased"
    box = (x, x + width, y + height, y)
    axes.imshow(image, extent=box, interpolation=interpolation, aspect="auto")
    # Bright images would run into the page.
    frames = [
        ((x, y, x + width, y + height), figure_style.FAINT),
        *((box, figure_style.BOX) for box in boxes),
    ]
    for (left, top, right, bottom), color in frames:
        style = {"fill": False, "edgecolor": color, "linewidth": 0.5}
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))
    bottom = axes.figure.get_figheight()
    axes.set(xlim=(0, figure_style.PAGE_WIDTH), ylim=(bottom, 0))  # imshow moves the limits
