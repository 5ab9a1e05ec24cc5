"""Figures made of numbers: the curves of a search or a training, and the distribution that was learned.

Contract: arrays in, matplotlib figures out; no file is touched. To be called inside `figure_style.style()`. R
ops, T logged steps. A distribution is a `policy_space.Parameters` of probabilities and levels; `planted` has
the names of the planted ops.
"""

import itertools

import numpy as np
from matplotlib.ticker import MaxNLocator

from dada import ops
from dada.searches.dada import space as policy_space
from experiments.figures import figure_style

_LEAST_ROWS = 15  # of a map of pairs
_LEADING = len(figure_style.SERIES)
_PANELS = {
    "loss": ("Loss of a batch", "cross-entropy (nats)"),
    "accuracy": ("Accuracy on a batch", "share correct"),
}
_PANELS_OF_DETECTION = {
    "loss": ("Loss of a batch", "focal loss and that of boxes"),
    "box_loss": ("Loss of boxes", "L1 of what anchors are off"),
}


def curves(title, metrics, op_names, initial_mass, planted=()):
    """Draws losses, accuracies (or losses of boxes), entropy, temperature if it changes, and op mass.

    `metrics` has float [T] by name, "step" among them, and "op_mass" [T, R], which starts from `initial_mass`
    [R].
    """
    temperature = metrics.get("temperature", np.zeros(1))  # not of every method
    is_annealed = np.nanmax(temperature) > np.nanmin(temperature)
    figure = figure_style.titled(title, 5.8)
    upper, lower = figure.subfigures(2, 1, height_ratios=[1, 1.1])
    left, right = lower.subfigures(1, 2, width_ratios=[2.3, 1])
    panels = _PANELS if "train_accuracy" in metrics else _PANELS_OF_DETECTION
    axes = dict(zip(panels, upper.subplots(1, 2)))
    axes["mass"] = left.subplots()
    names = ("entropy", "temperature") if is_annealed else ("entropy",)
    axes |= dict(zip(names, right.subplots(len(names), 1, squeeze=False)[:, 0]))
    steps = metrics["step"]
    for name, (panel_title, label_of_y) in panels.items():
        axes[name].set(title=panel_title, ylabel=label_of_y)
        for split, color in (("train", figure_style.TRAIN), ("valid", figure_style.VALID)):
            label = "training" if split == "train" else "validation"
            _noisy_line(axes[name], steps, metrics[f"{split}_{name}"], color, label)
    # Above both panels, where it cannot cover a line.
    handles = axes["loss"].get_legend_handles_labels()
    upper.legend(*handles, loc="outside upper right", ncols=2, handlelength=1.2)

    _line(axes["entropy"], steps, metrics["entropy"], figure_style.INK)
    axes["entropy"].set(title="Entropy of the choice", ylabel="nats")
    if is_annealed:
        _line(axes["temperature"], steps, temperature, figure_style.INK)
        axes["temperature"].set(title="Temperature", ylabel="temperature")
    axes["mass"].set(title="Op mass", ylabel="expected applications per image")
    start = np.mean(initial_mass), "mean at the start"
    is_planted = [name in planted for name in op_names]
    leading_lines(axes["mass"], steps, metrics["op_mass"], op_names, is_planted, start)
    for panel in axes.values():
        figure_style.over_steps(panel, steps[-1], "search step")
    return figure


def training_curves(title, metrics, best):
    """Draws loss, error or average precision, and learning rate of a training over its epochs.

    `metrics` has float [E] by name, "epoch" among them; `best` is the index of the epoch that is best in the
    test.
    """
    figure = figure_style.titled(title, 3.0)
    loss, score, rate = figure.subplots(1, 3, width_ratios=[1, 1, 0.8])
    epochs, is_detection = metrics["epoch"], "test_AP" in metrics
    lines = ("train", figure_style.TRAIN, "training (augmented)"), ("test", figure_style.VALID, "test")
    for split, color, label in lines[: 1 if is_detection else 2]:
        _line(loss, epochs, metrics[f"{split}_loss"], color, label)
        if not is_detection:
            _line(score, epochs, 100.0 * (1.0 - metrics[f"{split}_accuracy"]), color, label)
    figure.legend(*loss.get_legend_handles_labels(), loc="outside upper right", ncols=2, handlelength=1.2)
    if is_detection:
        loss.set(title="Loss", ylabel="focal loss and that of boxes")
        score.set(title="Average precision in the test", ylabel="%", ylim=(0, 100))
        shown = 100.0 * metrics["test_AP"]
        _line(score, epochs, shown, figure_style.VALID)
        _line(score, epochs, 100.0 * metrics["test_AP50"], figure_style.VALID, linestyle="--")
    else:
        loss.set(title="Loss", ylabel="cross-entropy (nats)")
        score.set(title="Error", ylabel="% wrong", ylim=(0, None))
        shown = 100.0 * (1.0 - metrics["test_accuracy"])
    for index, name in ((best, "best"), (len(epochs) - 1, "last")):
        score.plot(epochs[index], shown[index], "o" if name == "last" else "D", **figure_style.HOLLOW)
    text = f"last (circle) {shown[-1]:.2f}\nbest (diamond) {shown[best]:.2f}"
    if is_detection:
        text += f"\nAP50 (dashed) {100.0 * metrics['test_AP50'][-1]:.2f}"
    score.text(0.97, 0.97, text, transform=score.transAxes, ha="right", va="top", fontsize=8)
    _line(rate, epochs, metrics["learning_rate"], figure_style.INK)
    rate.set(title="Learning rate", ylabel="at the end of the epoch", ylim=(0, None))
    for panel in (loss, score, rate):
        figure_style.over_steps(panel, epochs[-1], "epoch")
    return figure


def leading_lines(axes, steps, values, labels, is_planted, start):
    """Draws the lines that end highest in colour, the others faintly, and the value at the start.

    `values` is [T, N] with N labels and N bools `is_planted`; `start` is (value, label).
    """
    order = np.argsort(-values[-1], kind="stable")
    for index in order[_LEADING:]:
        _line(axes, steps, values[:, index], figure_style.FAINT, linewidth=0.8)
    colors, lines = iter(figure_style.SERIES), itertools.cycle(figure_style.HIGHLIGHT_LINES)
    for index in order[:_LEADING]:
        color, line = (figure_style.HIGHLIGHT, next(lines)) if is_planted[index] else (next(colors), "-")
        label = f"{labels[index]}\n(planted)" if is_planted[index] else labels[index]
        _line(axes, steps, values[:, index], color, label, linestyle=line)
    if len(order) > _LEADING:
        axes.plot([], [], color=figure_style.FAINT, label=f"{len(order) - _LEADING} others")
    axes.axhline(start[0], label=start[1], **figure_style.START_LINE)
    axes.set_ylim(bottom=0)
    figure_style.legend_beside(axes)


def _line(axes, steps, values, color, label=None, **style):
    axes.plot(steps, values, color=color, label=label, marker="o" if len(steps) == 1 else None, **style)


def _noisy_line(axes, steps, values, color, label):
    """Every step faintly, and the mean of a twentieth of the steps."""
    window = max(1, len(steps) // 20)
    if window > 1:
        axes.plot(steps, values, color=color, alpha=0.25, linewidth=0.8)
        label = f"{label}, mean of {window} steps"
    kernel = np.full(window, 1.0 / window)
    _line(axes, np.convolve(steps, kernel, "valid"), np.convolve(values, kernel, "valid"), color, label)


def learned_policy(title, space, distribution, policy_mass, initial_mass, planted=()):
    """Draws op mass, probability and level of every op and, for pairs, the weights of all pairs.

    `policy_mass` [R] is the expected applications per image under the policy file, which keeps the heaviest
    pairs or triples; `initial_mass` [R] the same under the distribution before the first step.
    """
    num_ops = len(space.rows)
    has_slots = distribution.op.shape[1] > 1
    is_pairs = not has_slots and distribution.level.shape[1] == 2
    entries = _entries(distribution, num_ops)
    mass = np.sum(entries[0] * entries[1], axis=0)
    order = np.argsort(-mass, kind="stable")
    names = [space.rows[index].name for index in order]
    # The map has room for its scale and a list below the diagonal, also where ops are few.
    bars_height, map_height = 1.5 + 0.19 * num_ops, 1.2 + 0.23 * max(num_ops, _LEAST_ROWS)
    figure = figure_style.titled(title, bars_height + (map_height if is_pairs else 0))
    if is_pairs:
        upper, lower = figure.subfigures(2, 1, height_ratios=[bars_height, map_height])
        _pair_map(lower, names, distribution.op[0, 0], order)
    else:
        upper = figure
    bars, application, level = upper.subplots(1, 3, sharey=True, width_ratios=[1.4, 1, 1.15])
    handles = _mass_bars(bars, names, mass[order], policy_mass[order], initial_mass[order], planted)
    upper.legend(handles=handles, loc="outside lower left", ncols=3, handlelength=1)

    shares, probabilities, levels = (array[:, order] for array in entries)
    over = f"10–90% of {'slots' if has_slots else 'pairs' if is_pairs else 'triples'}"
    has_level = np.array([bool(space.rows[index].unit) for index in order])
    everywhere = np.ones(num_ops, bool)
    _dots(application, _spread(probabilities, shares), everywhere)
    application.set(title="Probability", xlabel=f"of being applied\n(mean, {over})")
    spread = _spread(levels, shares * probabilities)
    _dots(level, spread, has_level)
    level.set(title="Level and its value", xlabel=f"level\n(mean, {over})")
    means = np.where(has_level, spread[0], 0.0)
    values = np.asarray(ops.level_to_value(space, order, means, np.ones(num_ops)))
    for line, index in enumerate(order):
        row = space.rows[index]
        text = figure_style.value_text(row, values[line]) if row.unit else "–"
        level.text(1.08, line, text, va="center", fontsize=figure_style.SMALL + 0.5)
    for panel in (application, level):
        panel.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1], xticklabels=["0", "0.5", "1"])
        panel.axvline(0.5, color=figure_style.INK, linewidth=1.2, zorder=0.5)  # where all start
    for panel in (bars, application, level):
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", visible=False)
    return figure


def _mass_bars(axes, names, mass, policy_mass, initial_mass, planted):
    lines = np.arange(len(names))
    bars = axes.barh(lines, mass, color=figure_style.TRAIN, height=0.7, label="learned distribution")
    is_planted = np.isin(names, planted)
    axes.barh(lines[is_planted], mass[is_planted], color=figure_style.HIGHLIGHT, height=0.7)
    (file,) = axes.plot(policy_mass, lines, "D", **figure_style.HOLLOW, label="policy file")
    # One tick per bar: the start differs between ops in some policy spaces.
    style = {"color": figure_style.INK, "linewidth": 1.2, "label": "at the start"}
    start = axes.vlines(initial_mass, lines - 0.5, lines + 0.5, **style)
    axes.set_yticks(lines, [f"{name} (planted)" if name in planted else name for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(title="Op mass", xlabel="expected applications per image")
    return bars, file, start


def _dots(axes, spread, shown):
    """Dot at the mean, line from the 10th to the 90th percentile."""
    mean, low, high = (values[shown] for values in spread)
    lines = np.flatnonzero(shown)
    axes.hlines(lines, low, high, color=figure_style.SERIES[4], linewidth=3.5)
    axes.plot(mean, lines, "o", color=figure_style.TRAIN, markersize=4.5)


def _entries(distribution, num_ops):
    """Share, application probability and level of every op in every slot, [slots of a policy, R] each."""
    op, application, level = (np.asarray(leaf, np.float64) for leaf in distribution)
    if op.shape[1] == 1:  # pairs or triples
        member = np.eye(num_ops)[policy_space.combinations(num_ops, level.shape[1])]
        shares = op[0, 0][:, None, None] * member
    else:
        shares = op / len(op)
    flat = (-1, num_ops)
    application, level = (np.broadcast_to(x[..., None], shares.shape) for x in (application, level))
    return shares.reshape(flat), application.reshape(flat), level.reshape(flat)


def _spread(values, weights):
    """Weighted mean and weighted 10th and 90th percentile of every column, [3, R]."""
    result = []
    for value, weight in zip(values.T, weights.T):
        order = np.argsort(value)
        running = np.cumsum(weight[order])
        if running[-1] <= 0:
            result.append([np.nan] * 3)
            continue
        ends = np.searchsorted(running, np.array([0.1, 0.9]) * running[-1])
        result.append([value @ weight / running[-1], *value[order][ends]])
    return np.array(result).T


def _pair_map(figure, names, weights, order):
    """The weights of all pairs above the diagonal of [R, R], ops in the given order."""
    num_ops = len(names)
    matrix = np.zeros((num_ops, num_ops))
    first, second = policy_space.combinations(num_ops, 2).T
    matrix[first, second] = matrix[second, first] = weights
    matrix = matrix[np.ix_(order, order)]
    matrix[np.tril_indices(num_ops)] = np.nan
    axes = figure.subplots()
    axes.set_title("Weight of every pair of ops", pad=6)
    image = figure_style.heat_map(axes, matrix, 0.1)
    axes.set_xticks(range(1, num_ops), names[1:], rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    # On the diagonal, next to the cells; the triangle below is free for the scale and a list.
    for line, name in enumerate(names[:-1]):
        axes.text(line + 0.4, line, name, ha="right", va="center", fontsize=8)
    scale = figure.colorbar(image, cax=axes.inset_axes((0.0, 0.45, 0.3, 0.03)), orientation="horizontal")
    pairs = num_ops * (num_ops - 1) // 2
    scale.set_label(f"probability of the pair (start: 1/{pairs} = {1 / pairs:.4f})")
    scale.outline.set_visible(False)
    scale.locator = MaxNLocator(4)
    ranked = np.argsort(-np.nan_to_num(matrix), axis=None, kind="stable")[:5]
    places = zip(*np.unravel_index(ranked, matrix.shape))
    lines = [f"{matrix[pair]:.3f}  {names[pair[0]]} + {names[pair[1]]}" for pair in places]
    text = "\n".join(["Heaviest pairs", *lines])
    axes.text(0, 0, text, transform=axes.transAxes, va="bottom", fontsize=8, linespacing=1.4)
