"""Figures of a DDAS search: p_tp over the epochs, and p_o by op and level and over the epochs.

Contract: a `finished_search.FinishedSearch` in, matplotlib figures out; no file is touched. To be called
inside `figure_style.style()`. T epochs, K candidates.

Reference: Liu et al. 2021, figures 5 and 4.
"""

import numpy as np
from matplotlib.figure import Figure

from dada import ops
from experiments.figures import chart_figures, figure_style, finished_search


def draw(run: finished_search.FinishedSearch, what: str) -> dict[str, Figure]:
    """Returns the figures of a finished search of DDAS by name; `what` says in titles which it is."""
    return {"policy": _candidates(run, what), "p_tp": _p_tp(run, what)}


def _epoch_times(run):
    """When the policy was read, in epochs done: at the end of each, or at its start."""
    count = len(run.policy.content.p_tp)
    if run.policy.preset == "official":
        return np.arange(count)
    done = run.metrics["step"][-1] / run.summary["steps_per_epoch"]
    return np.minimum(np.arange(1, count + 1), done)


def _p_tp(run, what):
    figure = figure_style.titled(f"Probability of augmenting an image at all: {what}", 2.9)
    axes = figure.subplots()
    epochs = run.metrics["step"] / run.summary["steps_per_epoch"]
    axes.plot(epochs, run.metrics["p_tp"], color=figure_style.TRAIN, label="search, after every step")
    style = {**figure_style.HOLLOW, "label": "policy file, an entry per epoch"}
    axes.plot(_epoch_times(run), run.policy.content.p_tp, "o", **style)
    axes.axhline(run.summary["p_tp_initial"], label="at the start", **figure_style.START_LINE)
    axes.set(ylabel="p_tp", ylim=(0, 1.02))
    figure_style.over_steps(axes, epochs[-1], "epoch of the search", 10)
    figure_style.legend_beside(axes)
    return figure


def _candidates(run, what):
    num_ops = len(run.space.rows)
    content = run.policy.content
    planted = [op.name for op in run.planted]
    map_height = 0.9 + 0.19 * num_ops
    figure = figure_style.titled(f"The {len(content.row)} candidate ops, p_o: {what}", map_height + 3.0)
    upper, lower = figure.subfigures(2, 1, height_ratios=[map_height, 3.0])
    shown = sorted({0, (len(content.p_o) - 1) // 2, len(content.p_o) - 1})
    panels = upper.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    largest = content.p_o[shown].max()
    order = np.argsort(-np.nansum(_by_op(run, content.p_o[-1]), 1), kind="stable")
    for panel, epoch in zip(panels, shown):
        image = _map(panel, run, content.p_o[epoch], order, largest)
        moment = "start" if run.policy.preset == "official" else "end"
        panel.set_title(f"p_o at the {moment} of epoch {epoch + 1}")
    names = [run.space.rows[index].name for index in order]
    panels[0].set_yticks(range(num_ops), [f"{name} (planted)" if name in planted else name for name in names])
    scale = upper.colorbar(image, ax=panels, shrink=0.6, pad=0.01)
    scale.set_label(f"p_o (uniform: {1 / len(content.row):.3f})")
    scale.outline.set_visible(False)
    _evolution(lower.subplots(), run, planted)
    return figure


def _by_op(run, p_o):
    """p_o of every op and candidate of it, [R, most candidates of an op]; NaN where there is none."""
    rows = run.policy.content.row
    table = np.full((len(run.space.rows), np.bincount(rows).max()), np.nan)
    for row in range(len(table)):
        of_op = p_o[rows == row]
        table[row, : len(of_op)] = of_op
    return table


def _map(axes, run, p_o, order, largest):
    """A cell per candidate, ops below each other, with the value of the candidate written into it."""
    table = _by_op(run, p_o)[order]
    image = figure_style.heat_map(axes, table, 0.05, largest)
    for line, row in enumerate(order):
        for column, text in enumerate(_values(run, row)):
            color = "white" if table[line, column] > 0.6 * largest else figure_style.INK
            axes.text(column, line, text, ha="center", va="center", fontsize=6, color=color)
    return image


def _values(run, row):
    """The value of every candidate of an op, as text; "" for an op without magnitude."""
    op = run.space.rows[row]
    levels = run.policy.content.level[run.policy.content.row == row]
    if not op.unit:
        return [""] * len(levels)
    values = ops.level_to_value(run.space, np.full(len(levels), row), levels, np.ones(len(levels)))
    return [figure_style.value_text(op, value) for value in np.asarray(values).tolist()]


def _labels(run):
    """Name and value of every candidate, in order."""
    rows = run.policy.content.row
    texts = {row: iter(_values(run, row)) for row in set(rows.tolist())}
    return [f"{run.space.rows[row].name} {next(texts[row])}".strip() for row in rows.tolist()]


def _evolution(axes, run, planted):
    content, epochs = run.policy.content, _epoch_times(run)
    is_planted = [run.space.rows[row].name in planted for row in content.row]
    start = 1.0 / len(content.row), "uniform, as at the start"
    axes.set(title="p_o over the epochs", ylabel="probability of a draw")
    chart_figures.leading_lines(axes, epochs, content.p_o, _labels(run), is_planted, start)
    figure_style.over_steps(axes, max(epochs[-1], 1), "epoch of the search", 10)
