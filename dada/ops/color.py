"""Colours and filters of one image: Pillow's 8-bit pixels forward, smooth surrogates backward.

Contract: see `one_image`. Numbers that are no levels are rounded to the nearest level first. The result
holds float32(k)/255, where k is what Pillow writes, for every image of up to 2**22 pixels and every value.
Gradients are written for x in [0, 1].

Deviation: 0 bits of Posterize give black, as Pillow did before it refused them.

Compilers. XLA may contract `a * b + c` into one rounding and turn `x / 255` into `x * (1 / 255)`.
Both change pixels; the comments say how this is prevented where it matters.
"""

import jax
import jax.numpy as jnp
import numpy as np

from .one_image import Image, Scalar, straight_through

# Luma in units of 2**-16, as Pillow converts RGB to L.
_LUMA = np.array([19595.0, 38470.0, 7471.0], np.float32)

# Width of the soft threshold of Solarize in levels: wide enough that an image without pixels right
# at the threshold still says in which direction to move it.
_SOLARIZE_WIDTH = 24.0


def _levels(image):
    """Whole levels 0..255 as float32, in which every sum below is exact."""
    return jnp.round(image * 255.0)


def _unit(levels):
    """float32(k) / 255: the first product is exact, so the sum rounds as the quotient would."""
    return levels * np.float32(1 / 256) + levels * np.float32(1 / 65280)


def _extremes(values):
    return jnp.min(values, axis=(0, 1)), jnp.max(values, axis=(0, 1))


def _stretch(image, stretched):
    """The image times the constant slope 1 / (hi - lo) of each channel, 1 where not `stretched`."""
    lo, hi = _extremes(image)
    slope = jnp.where(stretched, 1.0 / jnp.where(stretched, hi - lo, 1.0), 1.0)
    return image * jax.lax.stop_gradient(slope)


def _soft_auto_contrast(image):
    lo, hi = _extremes(image)
    return _stretch(image, hi > lo)


def _shortfalls():
    """Where `trunc(k * s - lo * s)` in double precision is one less than the exact quotient.

    That takes a whole quotient: k = lo + j * (hi - lo) / g with g = gcd(255, hi - lo), 1 <= j <= g.
    Bit j of entry [lo, hi] says that it happens. It never does where g > 17 (a test tries all).
    """
    lo, hi = np.arange(256)[:, None], np.arange(256)[None, :]
    span = np.maximum(hi - lo, 1)
    divisor = np.gcd(255, span)
    scale = 255.0 / span
    bits = np.zeros((256, 256), np.int32)
    for j in range(1, 18):
        quotient = ((lo + j * span // divisor) * scale + -lo * scale).astype(np.int32)
        bits |= ((j <= divisor) & (divisor <= 17) & (quotient < j * 255 // divisor)) << j
    return np.where(hi > lo, bits, 0)


_SHORTFALLS = _shortfalls()
# A table, as the while loop of jnp.gcd does not pass shard_map's check of replication.
_DIVISORS = np.gcd(255, np.arange(256)).astype(np.float32)


@straight_through(_soft_auto_contrast)
def auto_contrast(image: Image) -> Image:
    """Stretches every channel so that its extremes become 0 and 255 (`ImageOps.autocontrast`).

    k -> trunc(k * s - lo * s), s = 255 / (hi - lo), in double precision; a constant channel stays.

    Gradient: the channel's slope 1 / (hi - lo), lo and hi as constants; 1 where hi = lo.
    """
    level = _levels(image)
    lo, hi = _extremes(level)
    span = jnp.maximum(hi - lo, 1.0)
    # The half keeps the rounded quotient clear of whole numbers, from which others keep 1/255.
    quotient = jnp.floor((255.0 * (level - lo) + 0.5) / span)
    whole = quotient * span == 255.0 * (level - lo)
    divisor = jnp.asarray(_DIVISORS)[span.astype(jnp.int32)]
    j = jnp.round(quotient * divisor * np.float32(1 / 255)).astype(jnp.int32)
    bits = jnp.asarray(_SHORTFALLS)[lo.astype(jnp.int32), hi.astype(jnp.int32)]
    short = whole & (j <= 17) & ((bits >> jnp.minimum(j, 17)) & 1 == 1)
    return _unit(jnp.where(hi > lo, quotient - short, level))


@straight_through(lambda image: 1.0 - image)
def invert(image: Image) -> Image:
    """Replaces k by 255 - k (`ImageOps.invert`).

    Gradient: to the image -1.
    """
    return _unit(255.0 - _levels(image))


def _equalize_step(values):
    return jnp.sum(values < jnp.max(values, axis=(0, 1)), axis=(0, 1), dtype=jnp.int32) // 255


@straight_through(lambda image: _stretch(image, _equalize_step(image) > 0))
def equalize(image: Image) -> Image:
    """Flattens the histogram of every channel (`ImageOps.equalize`).

    k -> min(255, (step // 2 + #{pixels < k}) // step), step = #{pixels < maximum} // 255; a channel
    with step = 0 stays.

    Gradient: the map's mean slope 1 / (hi - lo), lo and hi as constants; 1 where step = 0.
    """
    return equalize_parts(image, jnp.zeros((), jnp.int32), 1)


def equalize_parts(image, part, count):
    """Equalizes every part of an image by itself; no gradient of its own.

    Args:
        part: int, broadcast to `[H, W]`: the part that a pixel belongs to, in 0 .. count - 1.
        count: static.
    """
    level = _levels(image).astype(jnp.int32)
    # One table for three channels: on a CPU 10 times faster than sorting, 100 than comparing.
    place = level + 256 * (3 * part[..., None] + jnp.arange(3))
    counts = jax.ops.segment_sum(jnp.ones(level.size, jnp.int32), place.reshape(-1), 768 * count)
    counts = counts.reshape(-1, 256)
    below = jnp.cumsum(counts, axis=1) - counts
    step = jnp.max(jnp.where(counts > 0, below, 0), axis=1, keepdims=True) // 255
    lookup = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
    return _unit(jnp.where(step > 0, lookup, jnp.arange(256)).reshape(-1)[place].astype(jnp.float32))


def _soft_solarize(image, threshold):
    level = jax.lax.stop_gradient(255.0 * image)
    return image + (1.0 - 2.0 * image) * jax.nn.sigmoid((level - threshold) / _SOLARIZE_WIDTH)


@straight_through(_soft_solarize)
def solarize(image: Image, threshold: Scalar) -> Image:
    """Inverts levels at or above a threshold t (`ImageOps.solarize`): k -> k if k < t else 255 - k.

    Args:
        threshold: real scalar in levels, 0 (all are inverted) to 256 (none is).
    Gradient: of x + (1 - 2x) * sigmoid((k - t) / 24) with k = 255 x as a constant.
    """
    level = _levels(image)
    return _unit(jnp.where(level < threshold, level, 255.0 - level))


def _soft_solarize_add(image, addition):
    return image + (_levels(image) < 128) * addition * np.float32(1 / 255)


@straight_through(_soft_solarize_add)
def solarize_add(image: Image, addition: Scalar) -> Image:
    """Adds floor(addition + 1/2) to levels below 128, clipped.

    Args:
        addition: real scalar in levels.
    Gradient: of x + addition / 255 below 128, unclipped; to the image 1.

    Reference: Zoph et al. 2020, arXiv:1906.11172, where the addition is truncated.
    """
    level = _levels(image)
    return _unit(jnp.clip(level + (level < 128) * jnp.floor(addition + 0.5), 0.0, 255.0))


def _keep_bits(level, bits):
    step = (1 << (8 - bits)).astype(jnp.float32)
    return jnp.floor(level / step) * step


def _soft_posterize(image, bits):
    level = _levels(image)
    lower = jnp.clip(bits, 0.0, 7.0).astype(jnp.int32)
    slope = (_keep_bits(level, lower + 1) - _keep_bits(level, lower)) / 255.0
    return image + bits * jax.lax.stop_gradient(slope)


@straight_through(_soft_posterize)
def posterize(image: Image, bits: Scalar) -> Image:
    """Keeps the top trunc(bits) bits of every level (`ImageOps.posterize`); 0 bits give black.

    Args:
        bits: real scalar, 0 to 8 (clipped to that).
    Gradient: to the image 1; to the bits P(n + 1) - P(n), the slope of the quantiser that is linear
        between whole numbers of bits: P(n) is the image of n bits, n = min(trunc(bits), 7).
    """
    return _unit(_keep_bits(_levels(image), jnp.clip(bits, 0.0, 8.0).astype(jnp.int32)))


def _blend(degenerate, level, factor):
    # Pillow rounds the product to float32 before it adds. The clip only stands between the two, so
    # that they cannot be contracted.
    product = jnp.clip(factor * (level - degenerate), -1e30, 1e30)
    return _unit(jnp.clip(jnp.floor(degenerate + product), 0.0, 255.0))


def _soft_blend(degenerate, image, factor):
    return degenerate + factor * (image - degenerate)


def _weighted(values, weights):
    # A sum over the last axis, of length 3, takes 20 times as long on a CPU.
    parts = [weights[i] * values[..., i : i + 1] for i in range(3)]
    return parts[0] + parts[1] + parts[2]


def _luma(level):
    """8-bit luma `[H, W, 1]`; the sum stays below 2**24 and so is exact."""
    return jnp.floor((_weighted(level, _LUMA) + 32768.0) * np.float32(1 / 65536))


def _soft_luma(image):
    return _weighted(image, _LUMA / np.float32(65536))


@straight_through(lambda image, factor: _soft_blend(jnp.mean(_soft_luma(image)), image, factor))
def contrast(image: Image, factor: Scalar) -> Image:
    """Blends with the mean grey d (`ImageEnhance.Contrast`): trunc(d + factor * (k - d)), clipped.

    Args:
        factor: real scalar; 0 gives grey, 1 the image, above 1 more contrast.
    Gradient: of d + factor * (x - d), unclipped, with d the exact mean luma of x.
    """
    level = _levels(image)
    pixels = level.shape[0] * level.shape[1]
    total = jnp.sum(_luma(level).astype(jnp.int32))
    mean = (2 * total + pixels) // (2 * pixels)
    return _blend(mean.astype(jnp.float32), level, factor)


@straight_through(lambda image, factor: _soft_blend(_soft_luma(image), image, factor))
def color(image: Image, factor: Scalar) -> Image:
    """Blends with the grey image d (`ImageEnhance.Color`): trunc(d + factor * (k - d)), clipped.

    Args:
        factor: real scalar; 0 gives grey, 1 the image, above 1 more colour.
    Gradient: of d + factor * (x - d), unclipped, with d the exact luma of every pixel.
    """
    level = _levels(image)
    return _blend(_luma(level), level, factor)


@straight_through(lambda image, factor: image * factor)
def brightness(image: Image, factor: Scalar) -> Image:
    """Blends with black (`ImageEnhance.Brightness`): trunc(factor * k), clipped.

    Args:
        factor: real scalar; 0 gives black, 1 the image, above 1 a brighter one.
    Gradient: of factor * x, unclipped.
    """
    return _blend(0.0, _levels(image), factor)


def _box(values, size):
    """Sums over the `size` x `size` windows inside the image, by shifted adds."""
    height, width = values.shape[0] - size + 1, values.shape[1] - size + 1
    rows = sum(values[i : i + height] for i in range(size))
    return sum(rows[:, i : i + width] for i in range(size))


def _filter_interior(values, border, interior):
    """Replaces all but the border by `interior(values)`; an image too small for that stays."""
    height, width, _ = values.shape
    if min(height, width) <= 2 * border:
        return values
    rows = np.minimum(np.arange(height), np.arange(height)[::-1])[:, None, None]
    columns = np.minimum(np.arange(width), np.arange(width)[::-1])[None, :, None]
    padding = ((border, border), (border, border), (0, 0))
    inside = (rows >= border) & (columns >= border)
    return jnp.where(inside, jnp.pad(interior(values), padding), values)


def _soft_smooth(image):
    return _filter_interior(image, 1, lambda x: (_box(x, 3) + 4.0 * x[1:-1, 1:-1]) * np.float32(1 / 13))


def _soft_blur(image):
    return _filter_interior(image, 2, lambda x: (_box(x, 5) - _box(x[1:-1, 1:-1], 3)) * np.float32(1 / 16))


def _smooth_levels(level):
    # Whole numbers over 13 keep clear of the halves, so the rounding of the product does no harm.
    return jnp.floor(_soft_smooth(level) + 0.5)


@straight_through(lambda image, factor: _soft_blend(_soft_smooth(image), image, factor))
def sharpness(image: Image, factor: Scalar) -> Image:
    """Blends with `smooth` (`ImageEnhance.Sharpness`): trunc(d + factor * (k - d)), clipped.

    Args:
        factor: real scalar; 0 gives `smooth(image)`, 1 the image, above 1 a sharper one.
    Gradient: of d + factor * (x - d), unclipped, with d the smoothed image before rounding.
    """
    level = _levels(image)
    return _blend(_smooth_levels(level), level, factor)


@straight_through(_soft_blur)
def blur(image: Image) -> Image:
    """Mean of the 16 rim pixels of the 5x5 window (`ImageFilter.BLUR`); 2 border pixels stay.

    Gradient: of the filter before rounding.
    """
    return _unit(jnp.floor(_soft_blur(_levels(image)) + 0.5))


@straight_through(_soft_smooth)
def smooth(image: Image) -> Image:
    """Mean of the 3x3 window, its centre weighing 5 (`ImageFilter.SMOOTH`); 1 border pixel stays.

    Gradient: of the filter before rounding.
    """
    return _unit(_smooth_levels(_levels(image)))
