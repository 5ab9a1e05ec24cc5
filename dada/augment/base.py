"""The fixed augmentations around a policy: crop, flip, colours, normalisation and cutout, of batches.

Those that are called `random_` take a typed key, consumed, and images [B, H, W, C], and keep shape and dtype,
but for what they say. They raise TypeError where the key is not typed, and ValueError for more than one key,
images of another rank or a number out of range. With `axis_name`, a mapped axis over which the batch is
divided, they draw for the whole batch and use the part of this device, with the same key on all devices.

The functions ending in `_with_boxes` take and return the parts of a `draws.ImagesWithBoxes`.
"""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from .. import ops
from ..ops import boxes as box_ops
from . import draws, image_keys

# Of images in [0, 1], as the papers have them; the deviation is the mean of the deviations of single images.
CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Principal components of the colours of ImageNet, as the papers' codes have them; eigenvectors are columns.
_EIGENVALUES = np.array([0.2175, 0.0188, 0.0045], np.float32)
_EIGENVECTORS = np.array(
    [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]], np.float32
)
# Of a policy among the fixed augmentations, see `base_augment`.
POSITIONS = ("first", "after_crop", "after_jitter")
_JITTER_OPS = tuple(ops.OPS.index(name) for name in ("Brightness", "Contrast", "Color"))


class BaseSettings(Protocol):
    """Fields of a Config that `base_augment` reads."""

    crop_padding: int  # pixels on every side; 0 for no crop
    flip: bool
    cutout_length: int  # side in pixels; 0 for no cutout
    color_jitter: float  # strength, see `random_color_jitter`; 0 for none
    lighting: float  # deviation, see `random_lighting`; 0 for none
    scale_jitter: float  # of images with boxes only: they are scaled by 1 minus to 1 plus this; 0 for none
    mean: tuple[float, float, float]  # per channel, of images in [0, 1]
    std: tuple[float, float, float]


def base_augment(
    keys: Any,
    settings: BaseSettings,
    images: jax.Array | draws.ImagesWithBoxes,
    policy: Callable,
    *,
    policy_position: str = "after_crop",
    axis_name: str | None = None,
) -> jax.Array | draws.ImagesWithBoxes:
    """Crop, flip, colour jitter, lighting, normalise, cutout, and in between the policy, as in the papers.

    Images with boxes: policy, flip, normalise, scale, as in Zoph et al. 2020, with `keys.crop` for the scale;
    the other settings and the position are not read.

    Args:
      keys: has a typed key for each random step, `crop`, `flip`, `color_jitter`, `lighting` and `cutout`: [],
        one for the batch, or [B], one for each image.
      settings: what is done.
      images: uint8 [B, H, W, 3], perhaps with boxes.
      policy: from uint8 [B, H, W, 3] to uint8, or to float32 in [0, 1] where no colour jitter follows; with
        boxes if the images have some.
      policy_position: "first", "after_crop" (and flip), or "after_jitter", as in the search of DADA.
      axis_name: mapped axis over which the batch is divided; read where the keys are of the batch.
    Returns:
      float32 [B, H, W, 3], normalised, perhaps with boxes. Gradient: to what `policy` depends on.
    Raises:
      ValueError: another policy_position.
    """
    if policy_position not in POSITIONS:
        raise ValueError(f"policy_position: got {policy_position!r}, expected one of {', '.join(POSITIONS)}")
    random = functools.partial(_randomly, axis_name)
    if isinstance(images, draws.ImagesWithBoxes):
        return _augment_with_boxes(random, keys, settings, images, policy)
    if policy_position == "first":
        images = policy(images)
    if settings.crop_padding:
        images = random(functools.partial(random_crop, padding=settings.crop_padding), keys.crop, images)
    if settings.flip:
        images = random(random_flip, keys.flip, images)
    if policy_position == "after_crop":
        images = policy(images)
    if settings.color_jitter:
        jitter = functools.partial(random_color_jitter, strength=settings.color_jitter)
        images = random(jitter, keys.color_jitter, images)
    if policy_position == "after_jitter":
        images = policy(images)
    if settings.lighting:
        lighting = functools.partial(random_lighting, deviation=settings.lighting)
        images = random(lighting, keys.lighting, images)
    images = normalize(images, settings.mean, settings.std)
    if settings.cutout_length:
        images = random(functools.partial(random_cutout, length=settings.cutout_length), keys.cutout, images)
    return images


def _augment_with_boxes(random, keys, settings, images, policy):
    images = policy(images)
    if settings.flip:
        images = draws.ImagesWithBoxes(*random(random_flip_with_boxes, keys.flip, *images))
    images = draws.map_images(lambda images: normalize(images, settings.mean, settings.std), images)
    if jitter := settings.scale_jitter:
        scale = functools.partial(random_scale_with_boxes, scales=(1.0 - jitter, 1.0 + jitter))
        images = draws.ImagesWithBoxes(*random(scale, keys.crop, *images))
    return images


def _randomly(axis_name, function, key, *batch):
    if key.ndim:
        return image_keys.each_image(function)(key, *batch)
    return function(key, *batch, axis_name=axis_name)


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
    images = _fractions(images)
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

    Args: see the head of the file, and
      padding: static, >= 0, in pixels.
    """
    if padding < 0:
        raise ValueError(f"padding: got {padding}, expected at least 0")
    corner = _draw(
        key, images, axis_name, lambda whole: jax.random.randint(key, (whole, 2), 0, 2 * padding + 1)
    )
    _, height, width, channels = images.shape
    margin = (padding, padding)
    padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))

    def crop(image, corner):
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(crop)(padded, corner)


def random_flip(key: jax.Array, images: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Mirrors every image left to right with probability one half; see the head of the file."""
    return jnp.where(_mirrored(key, images, axis_name), images[:, :, ::-1], images)


def random_flip_with_boxes(
    key: jax.Array, images: jax.Array, boxes: jax.Array, valid: jax.Array, *, axis_name: str | None = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`random_flip` and the same of the boxes; see the head of the file."""
    mirrored = _mirrored(key, images, axis_name)
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    is_mirrored = mirrored[:, 0, 0, 0].astype(jnp.float32)
    across, constant = 1 - 2 * is_mirrored, is_mirrored * images.shape[2]
    return images, *_transform(images, boxes, valid, ((across, 0, constant), (0, 1, 0)))


def random_scale_with_boxes(
    key: jax.Array,
    images: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    scales: tuple[float, float],
    *,
    axis_name: str | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Scales every image bilinearly by a uniform factor; the size stays.

    What is larger is cropped at a uniform place, in whole pixels; what is smaller lies at the top left, with
    zeros beside and below it. After normalisation zero is the mean colour.

    Args: see the head of the file, with floating images, and
      scales: smallest and largest factor, positive.
    Reference: Zoph et al. 2020, 0.8 to 1.2, in its code; there the scaled image has whole pixels.
    """
    low, high = scales
    if not 0 < low <= high:
        raise ValueError(f"scales: got {scales}, expected 0 < smallest <= largest")
    noise = _draw(key, images, axis_name, lambda whole: jax.random.uniform(key, (whole, 3)))
    factor = low + noise[:, 0] * (high - low)
    spare = jnp.maximum((factor[:, None] - 1.0) * np.array(images.shape[1:3]), 0.0)
    corner = jnp.floor(noise[:, 1:] * spare)

    def scaled(image, factor, corner):
        factors = jnp.stack([factor, factor])
        return jax.image.scale_and_translate(
            image, image.shape, (0, 1), factors, -corner, "linear", antialias=False
        )

    images = jax.vmap(scaled)(images, factor, corner)
    point_map = (factor, 0, -corner[:, 1]), (0, factor, -corner[:, 0])
    return images, *_transform(images, boxes, valid, point_map)


def _transform(images, boxes, valid, point_map):
    """The boxes of all images; numbers of the map are [B] or the same for all."""
    move = functools.partial(box_ops.transform, image_size=images.shape[1:3])
    axes = jax.tree.map(lambda number: 0 if np.ndim(number) else None, point_map)
    return jax.vmap(move, (0, 0, axes))(boxes, valid, point_map)


def _mirrored(key, images, axis_name):
    """Whether to mirror each image, bool [B, 1, 1, 1]."""
    return _draw(key, images, axis_name, lambda whole: jax.random.bernoulli(key, 0.5, (whole, 1, 1, 1)))


def random_color_jitter(
    key: jax.Array, images: jax.Array, strength: float, *, axis_name: str | None = None
) -> jax.Array:
    """Brightness, Contrast and Color of every image, by three factors and in an order of its own.

    Factors are uniform on [1 - strength, 1 + strength]; each op rounds to 8 bits, as Pillow does.

    Args: see the head of the file; images are bytes [B, H, W, 3], and
      strength: in [0, 1].
    Reference: ColorJitter of torchvision, without hue.
    """
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"color_jitter: got {strength}, expected 0 to 1")
    noise = _draw(key, images, axis_name, lambda whole: jax.random.uniform(key, (whole, 2, 3)))
    order = jnp.argsort(noise[:, 0], axis=-1)
    factor = 1.0 + strength * (2.0 * noise[:, 1] - 1.0)
    drawn = ops.Draws(jnp.asarray(_JITTER_OPS)[order], factor, jnp.zeros((*order.shape, 2)))
    return draws.apply_draws(images, drawn, op_ids=_JITTER_OPS)


def random_lighting(
    key: jax.Array, images: jax.Array, deviation: float, *, axis_name: str | None = None
) -> jax.Array:
    """Adds one colour to all pixels of an image, drawn along the principal components of ImageNet's colours.

      x_c + sum_j alpha_j lambda_j v_cj,   alpha_j normal with the given deviation

    Args: see the head of the file; images as of `normalize` with three channels, and
      deviation: of the alpha, >= 0.
    Returns:
      floating [B, H, W, 3], not clipped to [0, 1].
    Reference: Krizhevsky, Sutskever and Hinton 2012, section 4.1; components of the Torch code for ResNets.
    """
    if deviation < 0:
        raise ValueError(f"lighting: got {deviation}, expected at least 0")
    images = _fractions(images)
    alpha = deviation * _draw(key, images, axis_name, lambda whole: jax.random.normal(key, (whole, 1, 3)))
    # A sum, since some devices multiply matrices with a few digits only.
    shift = jnp.sum(alpha * (_EIGENVALUES * _EIGENVECTORS), axis=-1)
    return images + shift[:, None, None].astype(images.dtype)


def random_cutout(
    key: jax.Array, images: jax.Array, length: int, *, axis_name: str | None = None
) -> jax.Array:
    """Sets a square of every image to zero, after normalisation: to the mean colour.

    The centre is a uniform pixel; rows and columns centre - length // 2 up to and without
    centre + length // 2, cut off at the border (so an odd length acts as length - 1).

    Args: see the head of the file, and
      length: >= 0, side of the square in pixels; 0 leaves the images.
    Reference: DeVries and Taylor 2017, as in the DADA code.
    """
    if length < 0:
        raise ValueError(f"length: got {length}, expected at least 0")
    size = images.shape[1:3]
    center = _draw(
        key, images, axis_name, lambda whole: jax.random.randint(key, (whole, 2), 0, jnp.array(size))
    )
    half = length // 2

    def covered(size, center):
        offset = jnp.arange(size) - center[:, None]
        return (offset >= -half) & (offset < half)

    rows, columns = covered(size[0], center[:, 0]), covered(size[1], center[:, 1])
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], 0, images)


def _fractions(images):
    """Bytes as fractions of 255 in float32; floating images as they are."""
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise TypeError(f"images: got dtype {images.dtype}, expected uint8 or floating")
    return images


def _draw(key, images, axis_name, draw):
    """Checks key and images; draws for each image of the whole batch, and gives the part of this device."""
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"key: got {type(key).__name__}, expected a typed key of jax.random.key")
    if key.shape != () or images.ndim != 4:
        raise ValueError(
            f"got key of shape {key.shape} and images of shape {images.shape}, expected one key and "
            "images [B, H, W, C]"
        )
    return image_keys.own_part(draw(image_keys.whole_count(images.shape[0], axis_name)), axis_name)
