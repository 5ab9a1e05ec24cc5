"""Draws all figures of a finished run, of whatever kind, into its folder."""

import os
import pathlib

import numpy as np

from experiments.data import datasets
from experiments.figures import (
    agreement_figure,
    chart_figures,
    deepaa_figures,
    figure_style,
    search_figures,
    verdict_figure,
)
from experiments.runs import run_folder


def draw(
    run_path: str | os.PathLike,
    dataset: datasets.Dataset | None = None,
    planted_valid_images: np.ndarray | None = None,
) -> list[pathlib.Path]:
    """Draws a training (RUN/figures/curves.png), a search of any method, or what its seeds found together.

    Returns the paths.

    `dataset` and `planted_valid_images` are what a search has at hand, as in `search_figures.draw`.

    Raises:
      FileNotFoundError: not a run folder, a run that has not finished, or missing data files.
      ValueError: a file does not hold what such a run writes.
    """
    path = pathlib.Path(run_path)
    if (path / "summary.json").is_file() and "agreement" in run_folder.read_summary(path):
        return agreement_figure.draw(path) + verdict_figure.draw(path)
    flags = run_folder.read_flags(path)
    if "policy" in flags:
        return draw_training(path)
    if flags.get("method") != "deepaa":
        return search_figures.draw(path, dataset, planted_valid_images) + verdict_figure.draw(path)
    proxy = path / "proxy"
    training = draw_training(proxy) if proxy.is_dir() else []
    return deepaa_figures.draw_run(path) + training + verdict_figure.draw(path)


def draw_training(run_path: str | os.PathLike) -> list[pathlib.Path]:
    """Draws loss, error and learning rate over the epochs of a training, or of the proxy of a search."""
    summary, lines = run_folder.read_summary(run_path), run_folder.read_metrics(run_path)
    if "recipe" not in summary or not lines:
        raise ValueError(f"{run_path}: no recipe or no epochs, expected the folder of a training")
    metrics = {name: np.array([line[name] for line in lines], np.float64) for name in lines[0]}
    # Of a path its last name: a title has one line.
    title = ", ".join(pathlib.Path(summary["recipe"][name]).name for name in ("policy", "model", "dataset"))
    with figure_style.style():
        figure = chart_figures.training_curves(title, metrics, summary["best"]["epoch"] - 1)
        path = run_folder.RunFolder(run_path).figures_path / "curves.png"
        return [figure_style.save(path, figure)]
