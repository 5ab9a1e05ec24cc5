"""Runs that differ in nothing but their seed: their folders, and their states as one.

On an accelerator all seeds run at once, mapped by `vmap`; on a CPU, which `vmap` over weights slows five
times, and where training images are streamed from the host, one after the other.
"""

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.runs import command_line, compiled_loop, devices, run_folder


def open_folders(
    settings: dict[str, Any], contents: dict[str, str | None]
) -> dict[int, run_folder.RunFolder]:
    """Opens the run folders by seed: --run_dir itself for one seed, else --run_dir/seed_N.

    Each folder gets the resolved flags of a run with its seed alone, and the contents. With --resume, an
    earlier start may not have come to all seeds.

    Raises: as `run_folder.create`; ValueError too for seeds that JAX or NumPy does not take.
    """
    first, count = settings["seed"], settings["num_seeds"]
    if count > 1 and first + count > command_line.MAX_SEED:  # the judge has one more seed
        expected = f"expected seeds below {command_line.MAX_SEED}"
        raise ValueError(f"--seed={first} --num_seeds={count}: {expected}")
    root, resume = pathlib.Path(settings["run_dir"]), settings["resume"]
    is_many = count > 1
    if is_many and (root / "flags.txt").is_file():
        raise ValueError(f"{root} holds a run of one seed, got --num_seeds={count}")
    if is_many and resume and not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder to resume")
    if is_many and not resume and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise ValueError(f"{root} is not an empty folder: choose another, or add --resume")
    folders = {}
    for seed in range(first, first + count):
        path = root / f"seed_{seed}" if is_many else root
        resumes = resume and not (is_many and not (path / "flags.txt").is_file())
        flags = {**settings, "seed": seed, "num_seeds": 1}
        folders[seed] = run_folder.create(path, flags, contents, resume=resumes)
    return folders


def say_finished(settings: dict[str, Any]) -> None:
    """Tells that a resumed run has nothing to do."""
    if devices.is_primary():
        print(f"{settings['run_dir']} is finished: nothing is changed")


def groups(
    folders: dict[int, run_folder.RunFolder], maps_seeds: bool = True
) -> list[dict[int, run_folder.RunFolder]]:
    """The seeds that run at once, in turn; each alone without `maps_seeds`."""
    at_once = maps_seeds and compiled_loop.scans()
    return [folders] if at_once else [{seed: one} for seed, one in folders.items()]


def stack(trees: Sequence[Any]) -> Any:
    """Trees of equal structure as one, with a leading axis of seeds; a tree alone as it is."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if len(trees) > 1 else trees[0]


def rows(metrics: Any, count: int) -> Any:
    """Metrics of `count` seeds as NumPy arrays with a leading axis of seeds, which those of one lack."""
    arrays = jax.tree.map(np.asarray, metrics)
    return arrays if count > 1 else jax.tree.map(lambda leaf: leaf[None], arrays)


def unstack(tree: Any, count: int) -> list[Any]:
    """The trees of `count` seeds; undoes `stack`."""
    return [jax.tree.map(lambda leaf: leaf[i], tree) for i in range(count)] if count > 1 else [tree]  # noqa: B023
