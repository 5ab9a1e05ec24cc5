"""Random numbers that belong to one image of the whole batch, wherever that image is computed.

The key of an image is fold_in(step key, index in the whole batch), so a batch that is divided over devices
is augmented exactly as it would be on one.

Copy alone: needs jax only.
"""

from collections.abc import Callable
from typing import NamedTuple

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


def image_keys(key: jax.Array, count: int, axis_name: str | None = None) -> ImageKeys:
    """Keys for `count` images, the part of this device where the batch is divided over `axis_name`."""
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(count))
    streams = jax.vmap(lambda key: jax.random.split(key, len(ImageKeys._fields)))(keys)
    return ImageKeys(*(streams[:, i] for i in range(len(ImageKeys._fields))))


def each_image(function: Callable) -> Callable:
    """Maps a batched augmentation (key, [1, H, W, 3]) over images with a key each."""
    return jax.vmap(lambda key, image: function(key, image[None])[0])
