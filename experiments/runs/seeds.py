"""Runs that differ in nothing but their seed: their folders, and their states as one.

On an accelerator all seeds run at once, mapped by `vmap`; on a CPU, which `vmap` over weights slows five
times, one after the other.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import compiled_loop, run_folder


def open_folders(
    root: pathlib.Path, seeds: range, flags: dict[str, Any], *, resume: bool
) -> dict[int, run_folder.RunFolder]:
    """Opens the run folders by seed: `root` itself for one seed, else root/seed_N.

    Each folder gets the resolved flags of a run with its seed alone. With `resume`, an earlier start may not
    have come to all seeds.

    Raises: as `run_folder.create`.
    """
    is_many = len(seeds) > 1
    if is_many and resume and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder to resume")
    if is_many and not resume and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is not an empty folder: choose another, or add --resume")
    folders = {}
    for seed in seeds:
        path = root / f"seed_{seed}" if is_many else root
        resumes = resume and not (is_many and not path.exists())
        folders[seed] = run_folder.create(path, {**flags, "seed": seed, "num_seeds": 1}, resume=resumes)
    return folders


def groups(folders: dict[int, run_folder.RunFolder]) -> list[dict[int, run_folder.RunFolder]]:
    """The seeds that run at once, in turn."""
    return [folders] if compiled_loop.scans() else [{seed: one} for seed, one in folders.items()]


def stack(trees):
    """Trees of equal structure as one, with a leading axis of seeds."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def rows(metrics, is_stacked: bool):
    """Metrics as NumPy arrays with a leading axis of seeds, which those of one seed alone do not have."""
    arrays = jax.tree.map(np.asarray, metrics)
    return arrays if is_stacked else jax.tree.map(lambda leaf: leaf[None], arrays)


def each(tree, count: int) -> list:
    """The trees of all seeds, from one with a leading axis of seeds."""
    return [jax.tree.map(lambda leaf: leaf[i], tree) for i in range(count)]  # noqa: B023
