"""The random ops of DeepAA once their numbers are drawn: crop, box and resized crop of one image.

Contract: see `one_image`. What an image lacks is painted in FILL, the mean colour of CIFAR and ImageNet. All
arguments but the image may be traced; the drawing itself is in `sampling`.

Reference: the released code of DeepAA (Zheng et al. 2022).
"""

import jax.numpy as jnp
import numpy as np

from .one_image import Image, Pair, checked

FILL = (125, 123, 114)
CROP_PADDING = 4  # pixels on each side, RandCrop
HALF_SIDE = 8  # of the box of RandCutout
HALF_SIDE_60 = 30  # of RandCutout60

_FILL = np.array(FILL, np.float32) / np.float32(255)
_BITS = 22  # of the fraction of Pillow's interpolation weights


def crop(image: Image, corner: Pair) -> Image:
    """Reads a window of the size of the image from another place, FILL outside: pads with FILL and crops.

    Args:
        corner: real `[2]`, whole numbers: row and column of the window's first pixel.
    Gradient: its own, to the image.
    """
    height, width, _ = checked("image", image).shape
    first = jnp.floor(corner).astype(jnp.int32)
    row, column = first[0] + jnp.arange(height)[:, None], first[1] + jnp.arange(width)[None]
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pixels = image[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    return jnp.where(inside[..., None], pixels, _FILL)


def box(image: Image, half_side: int, center: Pair) -> Image:
    """Paints FILL from trunc(center - half_side) to trunc(center + half_side), both included.

    Args:
        half_side: static integer; the box has 2 half_side + 1 pixels each way, cut off at the border.
        center: real `[2]`, row and column in pixels.
    Gradient: its own, to the image.
    """
    height, width, _ = checked("image", image).shape
    # A whole half side changes no fraction, so the sum need not be rounded.
    middle = jnp.floor(center).astype(jnp.int32)
    rows = jnp.abs(jnp.arange(height) - middle[0]) <= half_side
    columns = jnp.abs(jnp.arange(width) - middle[1]) <= half_side
    return jnp.where((rows[:, None] & columns)[..., None], _FILL, image)


def resized_crop(image: Image, corner: Pair, size: Pair) -> Image:
    """Crops a window inside the image and enlarges it to the image's size, bicubic as Pillow does.

    The weights are a table of 20 (H^2 + W^2) bytes.

    Args:
        corner: int `[2]`, row and column of the window's first pixel.
        size: int `[2]`, height in 1..H and width in 1..W of the window.
    Gradient: zero; the arithmetic is in integers.
    """
    levels = jnp.round(checked("image", image) * 255).astype(jnp.int32)
    levels = jnp.swapaxes(_enlarge_rows(jnp.swapaxes(levels, 0, 1), corner[1], size[1]), 0, 1)
    return _enlarge_rows(levels, corner[0], size[0]).astype(jnp.float32) / 255


def _enlarge_rows(levels, first, count):
    """Interpolates the `count` rows from `first` on to as many as there are."""
    starts, weights = _bicubic(levels.shape[0])
    source = jnp.asarray(starts)[count - 1][:, None] + np.arange(4)
    source = first + jnp.clip(source, 0, count - 1)
    weight = jnp.asarray(weights)[count - 1]
    total = sum(weight[:, tap, None, None] * levels[source[:, tap]] for tap in range(4))
    return jnp.clip((total + (1 << (_BITS - 1))) >> _BITS, 0, 255)


def _bicubic(size):
    """First source pixel `[size, size]` and fixed-point weights `[size, size, 4]` of Pillow.

    Entry [n - 1, k] is for output pixel k of `size` from n pixels.
    """
    count, place = np.arange(1, size + 1)[:, None], np.arange(size)
    center = (place + 0.5) * (count / size)
    start = np.floor(center - 1.5).astype(np.int32)
    pixel = start[..., None] + np.arange(4)
    distance = np.abs(pixel - center[..., None] + 0.5)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    weight = np.where(distance < 1, near, np.where(distance < 2, far, 0.0))
    weight = np.where((pixel >= 0) & (pixel < count[..., None]), weight, 0.0)
    weight /= weight.sum(-1, keepdims=True)
    return start, np.trunc(weight * 2**_BITS + np.copysign(0.5, weight)).astype(np.int32)
