"""Draws all figures of a finished run, of whatever kind, into its folder."""

import os
import pathlib

import numpy as np

from experiments.data import datasets
from experiments.figures import deepaa_figures, search_figures, train_plot
from experiments.runs import run_folder


def draw(
    run_path: str | os.PathLike,
    dataset: datasets.Dataset | None = None,
    planted_valid_images: np.ndarray | None = None,
) -> list[pathlib.Path]:
    """Draws a training, or a search of any method; of DeepAA the training of its proxy too. Returns the
    paths.

    `dataset` and `planted_valid_images` are what a search has at hand, as in `search_figures.draw`.

    Raises:
      FileNotFoundError: not a run folder, a run that has not finished, or missing data files.
      ValueError: a file does not hold what such a run writes.
    """
    flags = run_folder.read_flags(run_path)
    if "policy" in flags:
        return train_plot.draw(run_path)
    if flags.get("method") != "deepaa":
        return search_figures.draw(run_path, dataset, planted_valid_images)
    proxy = pathlib.Path(run_path) / "proxy"
    return deepaa_figures.draw_run(run_path) + (train_plot.draw(proxy) if proxy.is_dir() else [])
