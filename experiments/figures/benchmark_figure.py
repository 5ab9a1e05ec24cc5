"""The figure of a benchmark: how many times as fast, and what steps cost. Ratios only."""

import os
import pathlib
from typing import Any

import numpy as np

from experiments.figures import figure_style
from experiments.measure import benchmark_report

_HEIGHT = 3.1
_BAR = 0.38
# Key, label and colour of the costs of a method; the keys are those of benchmark.json.
_COSTS = {
    "dada": (
        ("plain_steps", "DADA", figure_style.HIGHLIGHT),
        ("exact", "DADA, exact", figure_style.SERIES[1]),
        ("finite_difference", "DADA, exact by differences", figure_style.SERIES[3]),
    ),
    "ddas": (("plain_steps", "DDAS", figure_style.TRAIN), ("batch", "DDAS, batch", figure_style.SERIES[4])),
}
# Of the bars of DDAS.
_COUNTS = {"plain_steps": "operation_count_image", "batch": "operation_count"}


def draw(results: dict[str, Any], path: str | os.PathLike) -> pathlib.Path | None:
    """Draws what benchmark.json has of two parts; returns the path of the PNG, or None without both."""
    panels = {"augment": (_augment_panel, 1.0), "steps": (_steps_panel, 1.25)}
    shown = [name for name in panels if name in results]
    if not shown:
        return None
    environment = results["environment"]
    with figure_style.style():
        title = f"{benchmark_report.device(environment)}, jax {environment['jax']}"
        figure = figure_style.titled(title, _HEIGHT)
        widths = [panels[name][1] for name in shown]
        for name, axes in zip(shown, figure.subplots(1, len(shown), squeeze=False, width_ratios=widths)[0]):
            panels[name][0](axes, results[name])
        return figure_style.save(path, figure)


def _augment_panel(axes, part):
    cases = [name for name in part if benchmark_report.is_case(name)]
    axes.set_title("Images per second of apply_draws")
    for offset, key, label, color in (
        (-_BAR / 2, "ratio_to_pillow", "over Pillow, one thread", figure_style.TRAIN),
        (_BAR / 2, "ratio_to_vmap_switch", "over vmap(lax.switch)", figure_style.SERIES[1]),
    ):
        ratios = [part[name][key] for name in cases]
        places = np.arange(len(cases)) + offset
        axes.barh(places, ratios, _BAR, color=color, label=label)
        for place, ratio in zip(places, ratios):
            axes.text(ratio, place, f" {ratio:.3g}", va="center", fontsize=figure_style.SMALL)
    axes.axvline(1.0, color=figure_style.INK, linewidth=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.2)
    axes.set_yticks(range(len(cases)), [benchmark_report.case_title(name) for name in cases])
    axes.set_ylim(len(cases) + 1.0, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("times as many")
    axes.legend(loc="lower right", fontsize=figure_style.SMALL)


def _steps_panel(axes, part):
    axes.set_title("Cost of a search step")
    place, ticks, labelled = 0.0, {}, set()
    for name in part["dada"]:
        start = place
        for method, bars in _COSTS.items():
            bar_costs = part[method].get(name, {})
            for key, label, color in bars:
                if key not in bar_costs:
                    continue
                axes.bar(place, bar_costs[key], 0.8, color=color, label=None if label in labelled else label)
                labelled.add(label)
                top = bar_costs[key]
                if method == "ddas":
                    count = bar_costs[_COUNTS[key]]
                    line = {"color": figure_style.INK, "linewidth": 1.4}
                    line["label"] = None if "operation count" in labelled else "operation count"
                    axes.hlines(count, place - 0.45, place + 0.45, **line)
                    labelled.add("operation count")
                    top = max(top, count)
                axes.text(
                    place, top, f"{bar_costs[key]:.1f}", ha="center", va="bottom", fontsize=figure_style.SMALL
                )
                place += 1
        ticks[(start + place - 1) / 2] = name.upper().replace("_", "-")
        place += 1
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.4)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("plain training steps")
    axes.legend(loc="upper left", ncols=2, fontsize=figure_style.SMALL)
