"""Draws the figure of a finished training from its run folder: RUN/figures/curves.png."""

import os
import pathlib

import numpy as np

from experiments.figures import chart_figures, figure_style
from experiments.runs import run_folder


def draw(run_path: str | os.PathLike) -> list[pathlib.Path]:
    """Draws loss, error and learning rate over the epochs; returns the paths of the figures.

    Raises: as `finished_run.draw`.
    """
    summary, lines = run_folder.read_summary(run_path), run_folder.read_metrics(run_path)
    if "recipe" not in summary or not lines:
        raise ValueError(f"{run_path}: no recipe or no epochs, expected the folder of a training")
    metrics = {name: np.array([line[name] for line in lines], np.float64) for name in lines[0]}
    title = "{policy}, {model}, {dataset}".format(**summary["recipe"])
    with figure_style.style():
        figure = chart_figures.training_curves(title, metrics, summary["best"]["epoch"] - 1)
        path = run_folder.RunFolder(run_path).figures_path / "curves.png"
        return [figure_style.save(path, figure)]
