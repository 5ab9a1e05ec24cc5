"""Random numbers that belong to one image of the whole batch, wherever that image is computed.

The key of an image is fold_in(step key, index in the whole batch), so a batch that is divided over devices
is augmented exactly as it would be on one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class ImageKeys(NamedTuple):
    """One stream per use, each [B] typed keys; image i of the whole batch has its own, on any device."""

    crop: jax.Array
    flip: jax.Array
    draw: jax.Array
    sign: jax.Array
    center: jax.Array
    cutout: jax.Array
    color_jitter: jax.Array
    lighting: jax.Array


def image_keys(key: jax.Array, count: int, axis_name: str | None = None) -> ImageKeys:
    """Keys for `count` images, the part of this device where the batch is divided over `axis_name`."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))
    streams = jax.vmap(lambda key: jax.random.split(key, len(ImageKeys._fields)))(keys)
    return ImageKeys(*(streams[:, i] for i in range(len(ImageKeys._fields))))


def whole_count(count: int, axis_name: str | None = None) -> int:
    """Images of the whole batch, of which this device has `count`."""
    return count if axis_name is None else count * jax.lax.axis_size(axis_name)


def own_part(tree: Any, axis_name: str | None = None) -> Any:
    """This device's rows of arrays that have one for each image of the whole batch; they divide equally."""
    if axis_name is None:
        return tree

    def part(leaf):
        count = leaf.shape[0] // jax.lax.axis_size(axis_name)
        return jax.lax.dynamic_slice_in_dim(leaf, jax.lax.axis_index(axis_name) * count, count)

    return jax.tree.map(part, tree)


def each_image(function: Callable) -> Callable:
    """Maps a batched augmentation (key, [1, H, W, 3], ...) over images with a key each."""

    def one(key, *image):
        return jax.tree.map(lambda leaf: leaf[0], function(key, *(leaf[None] for leaf in image)))

    return jax.vmap(one)
