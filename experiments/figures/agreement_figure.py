"""The figure of several seeds of one search, RUN_DIR/figures/agreement.png: the mass of every op.

A bar for the mean of the seeds and a dot for each, filled where the op is above its start, as
`seed_agreement` defines it; at the right how many these are.
"""

import os
import pathlib

import numpy as np

from dada import policies
from experiments.figures import figure_style
from experiments.runs import run_folder


def draw(path: str | os.PathLike) -> list[pathlib.Path]:
    """Draws summary.json and policy.json of the folder around the seeds; returns the path, in a list."""
    summary, folder = run_folder.read_summary(path), run_folder.RunFolder(path)
    policy = policies.load(folder.policy_path)
    seeds, agreement, planted = (summary[name] for name in ("seeds", "agreement", "planted_ops"))
    mass = np.array([op["op_mass"] for op in agreement.values()])
    above = np.array([np.isin(seeds, op["seeds_above_start"]) for op in agreement.values()])
    lines, _ = np.indices(mass.shape)
    what = f"{policy.method} {policy.preset}, {policy.data_set}, {len(seeds)} seeds"
    with figure_style.style():
        figure = figure_style.titled(f"How far the seeds agree: {what}", 1.5 + 0.19 * len(mass))
        axes = figure.subplots()
        colors = [figure_style.HIGHLIGHT if name in planted else figure_style.SERIES[4] for name in agreement]
        axes.barh(lines[:, 0], mass.mean(axis=1), color=colors, height=0.7, label="mean of the seeds")
        label = "a seed in which the op has a larger share than at the start"
        hollow = {**figure_style.HOLLOW, "clip_on": False}  # whole also at 0
        axes.plot(
            mass[above], lines[above], "o", **hollow | {"markerfacecolor": figure_style.INK}, label=label
        )
        axes.plot(mass[~above], lines[~above], "o", **hollow, label="one in which it has not")
        for line, count in enumerate(above.sum(axis=1)):
            beside = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 8}
            axes.text(1.01, line, f"{count} of {len(seeds)}", **beside)
        figure.legend(loc="outside lower left", ncols=3, handlelength=1)
        names = [f"{name} (planted)" if name in planted else name for name in agreement]
        axes.set_yticks(lines[:, 0], names)
        axes.set(ylim=(len(mass) - 0.4, -0.6), xlim=(0, None))
        axes.set(title="Op mass of the policies", xlabel="expected applications per image")
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        return [figure_style.save(folder.figures_path / "agreement.png", figure)]
