"""The fixed augmentations around a policy: crop, flip, normalisation and cutout, of batches.

Each may run on a part of a batch: with `axis_name` it draws for the whole batch and uses the part of this
device, with the same key on all devices.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from . import image_keys

# Of images in [0, 1], as the papers have them; the deviation is the mean of the deviations of single images.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class BaseSettings(Protocol):
    """Fields of a Config that `base_augment` reads."""

    crop_padding: int  # pixels on every side; 0 for no crop
    flip: bool
    cutout_length: int  # side in pixels; 0 for no cutout
    mean: tuple[float, float, float]  # per channel, of images in [0, 1]
    std: tuple[float, float, float]


def base_augment(
    keys: Any,
    settings: BaseSettings,
    images: jax.Array,
    policy: Callable[[jax.Array], jax.Array],
    *,
    policy_first: bool = False,
    axis_name: str | None = None,
) -> jax.Array:
    """Crop, flip, policy, normalise, cutout: the order of the papers.

    Args:
      keys: has the typed keys `crop`, `flip` and `cutout`: [], one for the batch, or [B], one for each image.
      settings: what is done.
      images: uint8 [B, H, W, 3].
      policy: from uint8 [B, H, W, 3] to uint8, or to float32 in [0, 1].
      policy_first: the policy comes before the crop, as in DDAS.
      axis_name: mapped axis over which the batch is divided; read where the keys are of the batch.

    Returns:
      float32 [B, H, W, 3], normalised. Gradient: to what `policy` depends on.
    """

    def random(function, key, images):
        if key.ndim:
            return image_keys.each_image(function)(key, images)
        return function(key, images, axis_name=axis_name)

    if policy_first:
        images = policy(images)
    if settings.crop_padding:
        images = random(functools.partial(random_crop, padding=settings.crop_padding), keys.crop, images)
    if settings.flip:
        images = random(random_flip, keys.flip, images)
    if not policy_first:
        images = policy(images)
    images = normalize(images, settings.mean, settings.std)
    if settings.cutout_length:
        images = random(functools.partial(random_cutout, length=settings.cutout_length), keys.cutout, images)
    return images


def normalize(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Returns (images - mean) / std per channel, bytes as fractions of 255.

    Args:
      images: [..., C], uint8, or floating in [0, 1].
      mean: [C], in the unit of images in [0, 1].
      std: [C], positive.

    Returns:
      [..., C]: float32 for bytes, else the dtype of the images.

    Raises:
      TypeError: images are neither uint8 nor floating.
      ValueError: mean or std has not one entry per channel.
    """
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        images = images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images: got dtype {images.dtype}, expected uint8 or floating")
    channels = images.shape[-1:]
    for name, statistic in (("mean", mean), ("std", std)):
        if np.shape(statistic) != channels:
            raise ValueError(f"{name}: got shape {np.shape(statistic)}, expected {channels}")
    return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)


def random_crop(
    key: jax.Array, images: jax.Array, padding: int = 4, *, axis_name: str | None = None
) -> jax.Array:
    """Shifts every image by up to `padding` pixels each way; zeros come in.

    The same as padding with zeros and cropping to the old size at a uniform position.

    Args:
      key: typed key, consumed.
      images: any dtype [B, H, W, C].
      padding: static, >= 0, in pixels.
      axis_name: mapped axis over which the batch is divided, or None.

    Returns:
      [B, H, W, C], same dtype.

    Raises:
      TypeError: the key is not typed.
      ValueError: more than one key, images of another rank, or a negative padding.
    """
    _check_random(key, images)
    if padding < 0:
        raise ValueError(f"padding: got {padding}, expected at least 0")
    batch, height, width, channels = images.shape
    whole = image_keys.whole_count(batch, axis_name)
    corner = jax.random.randint(key, (whole, 2), 0, 2 * padding + 1)
    corner = image_keys.own_part(corner, axis_name)
    margin = (padding, padding)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))

    def crop(image, corner):
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, corner)


def random_flip(key: jax.Array, images: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Mirrors every image left to right with probability one half.

    Args:
      key: typed key, consumed.
      images: any dtype [B, H, W, C].
      axis_name: mapped axis over which the batch is divided, or None.

    Returns:
      [B, H, W, C], same dtype.

    Raises:
      TypeError: the key is not typed.
      ValueError: more than one key, or images of another rank.
    """
    _check_random(key, images)
    whole = image_keys.whole_count(images.shape[0], axis_name)
    mirrored = jax.random.bernoulli(key, 0.5, (whole, 1, 1, 1))
    return jnp.where(image_keys.own_part(mirrored, axis_name), images[:, :, ::-1], images)


def random_cutout(
    key: jax.Array, images: jax.Array, length: int, *, axis_name: str | None = None
) -> jax.Array:
    """Sets a square of every image to zero, after normalisation: to the mean colour.

    The centre is a uniform pixel; rows and columns centre - length // 2 up to and without
    centre + length // 2, cut off at the border (so an odd length acts as length - 1).

    Args:
      key: typed key, consumed.
      images: any dtype [B, H, W, C].
      length: >= 0, side of the square in pixels; 0 leaves the images.
      axis_name: mapped axis over which the batch is divided, or None.

    Returns:
      [B, H, W, C], same dtype.

    Raises:
      TypeError: the key is not typed.
      ValueError: more than one key, images of another rank, or a negative length.

    Reference: DeVries and Taylor 2017, as in the DADA code.
    """
    _check_random(key, images)
    if length < 0:
        raise ValueError(f"length: got {length}, expected at least 0")
    batch, height, width, _ = images.shape
    whole = image_keys.whole_count(batch, axis_name)
    center = jax.random.randint(key, (whole, 2), 0, jnp.array([height, width]))
    center = image_keys.own_part(center, axis_name)
    half = length // 2

    def covered(size, center):
        offset = jnp.arange(size) - center[:, None]
        return (offset >= -half) & (offset < half)

    rows, columns = covered(height, center[:, 0]), covered(width, center[:, 1])
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], 0, images)


def _check_random(key, images):
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"key: got {type(key).__name__}, expected a typed key of jax.random.key")
    if key.shape != () or images.ndim != 4:
        raise ValueError(
            f"got key of shape {key.shape} and images of shape {images.shape}, expected one key and "
            "images [B, H, W, C]"
        )
