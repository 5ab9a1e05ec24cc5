"""The figure of a verdict: the test errors of all rows of the judge, RUN/figures/verdict.png."""

import os
import pathlib

from experiments.figures import figure_style
from experiments.runs import run_folder


def draw(run_path: str | os.PathLike) -> list[pathlib.Path]:
    """Draws what summary.json has of a verdict; returns the path of the PNG, or none without a verdict."""
    verdict = run_folder.read_summary(run_path).get("verdict")
    if verdict is None:
        return []
    rows = verdict["rows"]
    with figure_style.style():
        title = f"What short trainings say: {verdict['recommended']} is recommended"
        figure = figure_style.titled(title, 1.1 + 0.24 * len(rows))
        axes = figure.subplots()
        for line, row in enumerate(rows):
            is_recommended = row["name"] == verdict["recommended"]
            color = figure_style.HIGHLIGHT if is_recommended else figure_style.NEUTRAL
            style = {"fmt": "o", "color": color, "markersize": 5, "capsize": 2.5}
            axes.errorbar(row["mean"], line, xerr=row["deviation"], **style)
            axes.plot(row["errors"], [line] * row["n"], "o", color=figure_style.FAINT, markersize=3.5)
        axes.set_yticks(range(len(rows)), [row["name"] for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(
            f"error on {verdict['test_images']} validation images, % (dots: seeds; bar: mean ± std)"
        )
        return [figure_style.save(run_folder.RunFolder(run_path).figures_path / "verdict.png", figure)]
