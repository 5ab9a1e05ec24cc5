"""Figures of DeepAA: of some policies of kind "layers", or of a finished search.

    operations.png    share of every op in every layer, a panel for each policy
    magnitudes.png    distribution of the level of every op in every layer
    curves.png        of a search: cosine, Identity and leading ops of the layers over the steps

The first two are as in the README of DeepAA, with one colour for each op throughout.
"""

import itertools
import os
import pathlib

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from dada import ops, policies
from experiments.figures import figure_style, finished_search
from experiments.runs import run_folder

_MAGNITUDE_ROW = 0.42  # inches
_PADS = (0.04, 0.02)  # inches between panels
_LAYERS_SHOWN = 5  # room for as many, so that bars do not become as wide as the page
_HEADROOM = 1.4  # above the bars, for the share of the op

# A colour for each op, the same in all figures; there are more ops than colours that everybody tells apart,
# so their order in a bar, that of the list, has to help.
_BASE_OPS = [row.name for row in ops.search_space("deepaa").rows]
_COLORS = dict(zip((*_BASE_OPS, *ops.RANDOM_OPS), matplotlib.colormaps["tab20"].colors, strict=True))


def operations(title: str, shown: dict[str, policies.Policy]) -> Figure:
    """Draws a stacked bar for each layer, ops from the bottom in the order of the search space.

    `shown` has the policies by the name that stands above their panel; ops are told apart by name.
    """
    figure = figure_style.titled(title, 4.2, _PADS)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    handles = {}
    for panel, (label, policy) in zip(panels, shown.items()):
        percent = 100 * policies.layer_shares(policy)
        layers = np.arange(1, len(percent) + 1)
        bottom = np.zeros(len(percent))
        for row, column in zip(policies.space(policy).rows, percent.T):
            style = {"color": _color(row.name), "edgecolor": "white", "linewidth": 0.4}
            handles[row.name] = panel.bar(layers, column, 0.62, bottom, **style)
            bottom += column
        panel.set(title=label, xlabel="layer", xticks=layers, ylim=(0, 100))
        panel.set_xlim(0.5, max(len(layers), _LAYERS_SHOWN) + 0.5)
        panel.grid(axis="x", visible=False)
    panels[0].set_ylabel("share of the layer (%)")
    layout = {"loc": "outside lower center", "ncols": 6, "handlelength": 1, "columnspacing": 1.4}
    figure.legend(handles.values(), handles, **layout)
    return figure


def magnitudes(title: str, policy: policies.Policy) -> Figure:
    """Draws the distribution of the level of every op with a magnitude, given the op, in every layer.

    The bars of an op in a layer add up to 1; they are pale where the op is rarer than an action of a uniform
    layer.
    """
    space, content = policies.space(policy), policy.content
    rows = [index for index, row in enumerate(space.rows) if row.unit]
    share = policies.layer_shares(policy)
    num_layers = len(share)
    figure = figure_style.titled(title, 1.1 + _MAGNITUDE_ROW * len(rows), _PADS)
    axes = figure.subplots(len(rows), num_layers, sharey="col", squeeze=False)
    for line, row in enumerate(rows):
        op, member = space.rows[row], content.row == row
        levels = content.level[member]
        for layer, panel in enumerate(axes[line]):
            weight = content.probability[layer, member] / share[layer, row]
            alpha = 1.0 if share[layer, row] >= 1 / len(content.row) else 0.35
            panel.bar(np.arange(len(levels)), weight, 0.8, color=_color(op.name), alpha=alpha)
            panel.grid(visible=False)
            panel.set_xticks([])
            panel.tick_params(axis="y", labelsize=figure_style.SMALL, length=2)
            panel.locator_params(axis="y", nbins=2)
            corner = {"transform": panel.transAxes, "ha": "right", "va": "top"}
            text = f"{100 * share[layer, row]:.2g} %"
            panel.text(0.985, 0.97, text, fontsize=figure_style.SMALL - 1, **corner)
            if line == 0:
                panel.set_title(f"Layer {layer + 1}")
            if line == len(rows) - 1:
                panel.set_xlabel("level", labelpad=2)
        value = op.low + levels[[0, -1]] * (op.high - op.low)
        ends = [figure_style.value_text(op._replace(random_sign=False), end) for end in value]
        left = {"rotation": 0, "ha": "right", "va": "center", "fontsize": figure_style.SMALL}
        axes[line, 0].set_ylabel(f"{op.name}\n{ends[0]} to {ends[1]}", **left)
    for panel in axes[0]:
        panel.set_ylim(0, _HEADROOM * max(bar.get_height() for other in axes[:, 0] for bar in other.patches))
    return figure


def curves(title: str, metrics: dict[str, np.ndarray], op_names: list[str], planted: list[str]) -> Figure:
    """Draws cosine, probability of Identity, entropy and the shares of the leading ops over the steps.

    `metrics` has float [T] by name and op_mass [T, R], all of the layer that a step searches.
    """
    figure = figure_style.titled(title, 4.6, _PADS)
    upper, lower = figure.subplots(2, 1)
    steps, layer = metrics["step"], metrics["layer"]
    starts = steps[np.flatnonzero(np.diff(layer, prepend=0))]
    lines = {"cosine": "cosine, mean over\ndata points", "identity": "probability of\nIdentity"}
    for (name, label), color in zip(lines.items(), (figure_style.TRAIN, figure_style.VALID)):
        _by_layer(upper, metrics, metrics[name], color, label)
    upper.set(title="Agreement with clean images, and how much is left alone")
    mass = metrics["op_mass"]
    is_identity = np.array(op_names) == "Identity"
    order = np.argsort(-np.where(is_identity, 0, mass.max(axis=0)), kind="stable")
    styles = itertools.cycle(figure_style.HIGHLIGHT_LINES)
    for index in order[:6]:
        is_planted = op_names[index] in planted
        label = f"{op_names[index]} (planted)" if is_planted else op_names[index]
        color, line = (figure_style.HIGHLIGHT, next(styles)) if is_planted else (_color(op_names[index]), "-")
        _by_layer(lower, metrics, mass[:, index], color, label, line)
    lower.set(title="Share of the leading ops in the layer that is searched", xlabel="update", ylim=(0, None))
    for panel in (upper, lower):
        panel.set_xlim(0, 1.01 * steps[-1])
        for number, start in enumerate(starts, start=1):
            panel.axvline(start - 1, color=figure_style.NEUTRAL, linewidth=0.8)
            top = {"transform": panel.get_xaxis_transform(), "va": "top", "fontsize": figure_style.SMALL}
            panel.text(start - 0.5, 1.0, f"layer {number}", **top)
        figure_style.legend_beside(panel)
    return figure


def _by_layer(axes, metrics, values, color, label, line="-"):
    """A line that is interrupted between layers."""
    for number in np.unique(metrics["layer"]):
        is_layer = metrics["layer"] == number
        style = {"color": color, "linestyle": line, "label": label if number == 1 else None}
        axes.plot(metrics["step"][is_layer], values[is_layer], **style)


def draw_run(run_path: str | os.PathLike) -> list[pathlib.Path]:
    """Draws the figures of a finished search into its folder; returns their paths.

    Raises:
      FileNotFoundError: not a run folder, or a run that has not finished.
      ValueError: a file does not hold what a search writes.
    """
    path = pathlib.Path(run_path)
    run_flags, summary = run_folder.read_flags(path), run_folder.read_summary(path)
    policy, lines = policies.load(path / "policy.json"), run_folder.read_metrics(path)
    if policy.kind != "layers" or not lines or "layers" not in summary:
        raise ValueError(f"{path}: no layers, expected the folder of a DeepAA search")
    names = ("step", "layer", "cosine", "identity", "op_mass")
    metrics = {name: np.array([line[name] for line in lines], np.float64) for name in names}
    space = policies.space(policy)
    planted = [op.name for op in finished_search.read_planted(path, run_flags, space)]
    what = f"deepaa {policy.preset}, {policy.data_set}, seed {policy.seed}"
    op_names = [row.name for row in space.rows]
    folder = run_folder.RunFolder(path).figures_path
    with figure_style.style():
        figures = {
            "operations": operations(f"Share of every op: {what}", {"": policy}),
            "magnitudes": magnitudes(f"Level of every op, given the op and its layer: {what}", policy),
            "curves": curves(f"The search, step by step: {what}", metrics, op_names, planted),
        }
        return [figure_style.save(folder / f"{name}.png", figure) for name, figure in figures.items()]


def draw_policies(folder: str | os.PathLike, names: list[str]) -> list[pathlib.Path]:
    """Draws some policies, shipped ones or files, into a folder, which is made; returns the paths.

    Raises:
      ValueError: no policy has that name, or it is of another kind.
    """
    shown = {name if "/" not in name else pathlib.Path(name).stem: policies.load(name) for name in names}
    for name, policy in shown.items():
        if policy.kind != "layers":
            raise ValueError(f"{name}: got a policy of kind {policy.kind!r}, expected 'layers'")
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with figure_style.style():
        title = "Share of every op in the layers of the policy"
        paths = [figure_style.save(folder / "operations.png", operations(title, shown))]
        for name, policy in shown.items():
            title = f"Level of every op, given the op and its layer: {name}"
            paths.append(figure_style.save(folder / f"magnitudes_{name}.png", magnitudes(title, policy)))
    return paths


def _color(name):
    return _COLORS.get(name, figure_style.NEUTRAL)
