"""What a run is made of, by content: the same from another place, or in another file, is the same.

Contents are mappings from what it is to a text that ends in a digest, or to None where a run has none. A
digest is 16 hex digits of SHA-256: they tell accidents apart, not forgeries.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL

from dada import policies
from experiments.data import datasets, host_images

_PARTS = {"train": "training", "valid": "validation", "test": "test"}


def of_dataset(dataset: datasets.Dataset, parts: Iterable[str] = tuple(_PARTS)) -> dict[str, str | None]:
    """Of some of the parts "train", "valid" and "test", and of the statistics that pixels are scaled by."""
    found = {
        f"{_PARTS[part]} {kind}": _of_arrays(getattr(dataset, f"{part}_{kind}"))
        for part in parts
        for kind in ("images", "labels")
    }
    if dataset.annotations is not None and "test" in parts:
        found["test annotations"] = of_weights(dataset.annotations)
    statistics = [*dataset.mean.tolist(), *dataset.std.tolist()]
    return {**found, "mean and std of pixels": " ".join(map(str, statistics))}


def of_policies(found: Iterable[policies.Policy]) -> str | None:
    """Of what policies do, in order: not of their files' layout, nor of where they come from."""
    blank = dict.fromkeys(policies.METADATA)
    texts = [policies.to_json(dataclasses.replace(policy, **blank)) for policy in found]
    return " ".join(_digest(text.encode()) for text in texts) or None


def of_network(apply: Callable, model: tuple[Any, Any], image_size: tuple[int, int]) -> str:
    """Of all that a network computes, from its initial weights to its logits in a training step.

    Args:
      apply: as of policy_training.Config.
      model: from `tasks.network`.
      image_size: height and width.
    """
    module, config = model

    def network(key, images):
        return apply(*module.init(key, config), images, True, key)

    images = jax.ShapeDtypeStruct((2, *image_size, 3), jnp.float32)
    program = jax.make_jaxpr(network)(jax.random.key(0), images)
    return f"{config} {_digest(str(program).encode())}"


def of_weights(tree: Any) -> str:
    """Of a pytree of arrays."""
    return _digest(*(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)))


def _of_arrays(tree):
    """Of an array, of images with boxes, or of images that are not read yet; None of None."""
    if isinstance(tree, host_images.Images):
        return f"{list(tree.shape)} from files {tree.digest}, decoded by Pillow {PIL.__version__}"
    leaves = jax.tree.leaves(tree)
    return f"{list(leaves[0].shape)} {_digest(*map(np.ascontiguousarray, leaves))}" if leaves else None


def _digest(*parts):
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:16]
