"""Geometry and Cutout on one image: Pillow's pixels forward, smooth surrogates backward.

Contract: see `one_image`. Pixels are those of the nearest neighbour, black outside.

Arithmetic. Pillow maps output pixel (x, y) to the source column a (x + 1/2) + b (y + 1/2) + c, and
to a row likewise, in 16.16 fixed point: each coefficient is FIX(v) = floor(65536 v + 1/2), and the
half pixels are folded into the offset c before it is rounded. Here the coefficients come without
float64: those of shears and translations are exact, those of rotations come from exact whole parts
and fractions right to about 1e-7, so that one in 10**5 angles at most moves one by 1/65536.

Gradient. For geometry the surrogate samples bilinearly about the pixel p that the hard op reads: the
image's tangent is read at p, and a motion of the source position counts with the mean of the slopes on both
sides of p, (I(p + 1) - I(p - 1)) / 2, black outside. One-sided slopes, as bilinear sampling at the unrounded
position has them, are biased as long as the value is the nearest pixel's: descent on a translation stalls.

Compilers. XLA may contract `a * b - c` into one rounding where an argument is itself a product.
Values are clipped to their domain first, so they get rounded, and fused results are the eager ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .one_image import Image, Pair, Scalar, checked, straight_through

_CUTOUT_COLOR = np.array([125, 123, 114], np.float32) / np.float32(255)

# Width of the soft edges of Cutout in pixels.
_CUTOUT_WIDTH = 0.5

# 65536 * sin at the multiples of 1/8 degree: nearest whole number and rest. Pillow rounds the sine
# to 15 places.
_STEPS = 2880
_SINE = 65536.0 * np.round(np.sin(np.radians(np.arange(_STEPS) / 8.0)), 15)
_SINE_WHOLE = np.round(_SINE).astype(np.int32)
_SINE_REST = (_SINE - _SINE_WHOLE).astype(np.float32)
# Its slope per degree: nearest half, of 12 bits at most, and rest.
_SLOPE = 65536.0 * np.radians(1.0) * np.cos(np.radians(np.arange(_STEPS) / 8.0))
_SLOPE_COARSE = (np.round(2.0 * _SLOPE) / 2.0).astype(np.float32)
_SLOPE_REST = (_SLOPE - _SLOPE_COARSE).astype(np.float32)


def round_half_up(value):
    """floor(value + 1/2) as int32, without rounding the sum."""
    whole = jnp.floor(value)
    return (whole + (value >= whole + 0.5)).astype(jnp.int32)


class Frame(NamedTuple):
    """The rectangle that a geometric op moves, and where in it every pixel of the image lies."""

    rows: jax.Array  # int32, broadcast to [H, W], from the first row of the rectangle
    columns: jax.Array
    height: jax.typing.ArrayLike  # int, of the rectangle; broadcast to [H, W], too
    width: jax.typing.ArrayLike


def whole(image):
    """The frame of the image itself: rows [H, 1] and columns [1, W]."""
    height, width, _ = image.shape
    return Frame(jnp.arange(height)[:, None], jnp.arange(width)[None, :], height, width)


def gather(image, rows, columns):
    """Pixels of an image at whole positions `[H, W]`, black outside."""
    height, width, channels = image.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = jnp.where(inside, rows * width + columns, 0)
    pixels = image.reshape(-1, channels).at[place].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], pixels, 0.0)


def sample(image, rows, columns, motions):
    """Pixels at whole positions `[H, W]`, as smooth functions of motions about them.

    `motions` are pairs of an image axis and the real source position along it: only its tangent
    counts. The slopes are gathered along with the pixels, so that their transpose scatters once.
    """
    padded = jnp.pad(image, ((2, 2), (2, 2), (0, 0)))
    slopes = [0.5 * (jnp.roll(padded, -1, axis) - jnp.roll(padded, 1, axis)) for axis, _ in motions]
    stacked = jnp.concatenate([padded, *slopes], axis=-1)[1:-1, 1:-1]
    pixels, *slopes = jnp.split(gather(stacked, rows + 1, columns + 1), 1 + len(motions), axis=-1)
    for slope, (_, position) in zip(slopes, motions):
        pixels += slope * (position - jax.lax.stop_gradient(position))[..., None]
    return pixels


# A source maps a frame and a value to what every pixel reads: rows and columns of the frame, and the motions
# about them (`sample`).


def _hard(source, image, value):
    return gather(image, *source(whole(image), value)[:2])


def _soft(source):
    return lambda image, value: sample(image, *source(whole(image), value))


def _transposed(image):
    return jnp.swapaxes(checked("image", image), 0, 1)


def shear_source(frame, shear):
    """The source of `shear_x`."""
    bound = 32767.0 / frame.height
    clipped = jnp.clip(shear, -bound, bound)
    offset = 32768 + round_half_up(clipped * 32768.0)
    columns = frame.columns + ((offset + round_half_up(clipped * 65536.0) * frame.rows) >> 16)
    return frame.rows, columns, [(1, shear * (frame.rows + 0.5))]


def translate_source(frame, pixels):
    """The source of `translate_x`."""
    bound = frame.width + 1.0
    return frame.rows, frame.columns + round_half_up(jnp.clip(pixels, -bound, bound)), [(1, pixels)]


@straight_through(_soft(shear_source))
def shear_x(image: Image, shear: Scalar) -> Image:
    """Shears rows about the top left corner: source column = floor(x + 1/2 + shear (y + 1/2)).

    Args:
        shear: real scalar, columns per row, |shear| H < 32768.
    Gradient: bilinear about the pixels read (module docstring); the source column moves by y + 1/2.
    """
    return _hard(shear_source, image, shear)


def shear_y(image: Image, shear: Scalar) -> Image:
    """Shears columns about the top left corner: source row = floor(y + 1/2 + shear (x + 1/2)).

    Args:
        shear: real scalar, rows per column, |shear| W < 32768.
    Gradient: bilinear about the pixels read (module docstring); the source row moves by x + 1/2.
    """
    return jnp.swapaxes(shear_x(_transposed(image), shear), 0, 1)


@straight_through(_soft(translate_source))
def translate_x(image: Image, pixels: Scalar) -> Image:
    """Moves the image to the left by floor(pixels + 1/2) columns.

    Args:
        pixels: real scalar; negative moves to the right.
    Gradient: bilinear about the pixels read (module docstring); the source column moves by 1.
    """
    return _hard(translate_source, image, pixels)


def translate_y(image: Image, pixels: Scalar) -> Image:
    """Moves the image up by floor(pixels + 1/2) rows.

    Args:
        pixels: real scalar; negative moves down.
    Gradient: bilinear about the pixels read (module docstring); the source row moves by 1.
    """
    return jnp.swapaxes(translate_x(_transposed(image), pixels), 0, 1)


def _fixed_sine(step, rest):
    """65536 sin of (step / 8 + rest) degrees: a whole part, int32, and a fraction in [-1.1, 1.1].

    sin(t + r) = sin t + r cos t - r^2 / 2 sin t - r^3 / 6 cos t + O(r^4 / 24), |r| <= 1/16 degree.
    The product of the leading 12 bits of r and cos t is exact, what else they give is small.
    """
    step = step % _STEPS
    whole, coarse = jnp.asarray(_SINE_WHOLE)[step], jnp.asarray(_SLOPE_COARSE)[step]
    rest_coarse = jnp.round(rest * 65536.0) * np.float32(1 / 65536)
    leading = coarse * rest_coarse
    leading_whole = jnp.round(leading)
    radians = rest * np.float32(np.pi / 180)
    small = (
        jnp.asarray(_SLOPE_REST)[step] * rest
        + coarse * (rest - rest_coarse)
        - whole * (radians * radians * 0.5)
        - coarse * rest * (radians * radians * np.float32(1 / 6))
    )
    fraction = (leading - leading_whole) + (jnp.asarray(_SINE_REST)[step] + small)
    return whole + leading_whole.astype(jnp.int32), fraction


def rotation_coefficients(degrees, height, width):
    """Coefficients (cos, sin, -sin, row offset, column offset) in units of 1/65536, int32."""
    degrees = jnp.clip(degrees, -1e5, 1e5)
    step = jnp.floor(degrees * 8.0 + 0.5)
    rest = degrees - step * 0.125
    step = step.astype(jnp.int32)
    sine, sine_rest = _fixed_sine(step, rest)
    cosine, cosine_rest = _fixed_sine(step + _STEPS // 4, rest)
    # FIX(W/2 - cos (W - 1)/2 + sin (H - 1)/2) is half a whole number less a fraction, rounded.
    row = 65536 * height - sine * (width - 1) - cosine * (height - 1)
    row_rest = sine_rest * (width - 1.0) + cosine_rest * (height - 1.0)
    column = 65536 * width - cosine * (width - 1) + sine * (height - 1)
    column_rest = cosine_rest * (width - 1.0) - sine_rest * (height - 1.0)
    return (
        cosine + round_half_up(cosine_rest),
        sine + round_half_up(sine_rest),
        round_half_up(-sine_rest) - sine,
        (row + 1 - jnp.ceil(row_rest).astype(jnp.int32)) >> 1,
        (column + 1 - jnp.ceil(column_rest).astype(jnp.int32)) >> 1,
    )


def rotate_source(frame, degrees):
    """The source of `rotate`."""
    rows, columns, height, width = frame
    cosine, sine, minus_sine, row, column = rotation_coefficients(degrees, height, width)
    y, x = rows - 0.5 * (height - 1), columns - 0.5 * (width - 1)
    radians = degrees * np.float32(np.pi / 180)
    real_cosine, real_sine = jnp.cos(radians), jnp.sin(radians)
    return (
        (row + sine * columns + cosine * rows) >> 16,
        (column + cosine * columns + minus_sine * rows) >> 16,
        [(0, real_sine * x + real_cosine * y), (1, real_cosine * x - real_sine * y)],
    )


@straight_through(_soft(rotate_source))
def rotate(image: Image, degrees: Scalar) -> Image:
    """Turns the image counter-clockwise about its centre, in its frame (`Image.rotate`).

    Args:
        image: H + W < 16384.
        degrees: real scalar, |degrees| <= 1e5.
    Gradient: bilinear about the pixels read (module docstring); the source turns about the centre.
    """
    return _hard(rotate_source, image, degrees)


def flip_lr(image: Image) -> Image:
    """Mirrors left and right.

    Gradient: its own, the mirrored cotangent.
    """
    return checked("image", image)[:, ::-1]


def flip_ud(image: Image) -> Image:
    """Mirrors top and bottom.

    Gradient: its own, the mirrored cotangent.
    """
    return checked("image", image)[::-1]


def rotate90(image: Image) -> Image:
    """Turns a square image by 90 degrees counter-clockwise (`Image.Transpose.ROTATE_90`).

    Gradient: its own, the cotangent turned back.
    """
    image = checked("image", image)
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"image: expected a square one, got shape {image.shape}")
    return jnp.rot90(image)


def _window(size, side, center):
    """Covered pixels of one axis: trunc(max(0, center - side / 2)) and the floor(side) after it."""
    center, side = jnp.clip(center, -1e6, 1e6), jnp.clip(side, -1.0, 1e6)
    start = jnp.floor(center - 0.5 * side)
    # The difference may have been rounded up to a whole number; this comparison is exact.
    start = jnp.maximum(start - (center - start < 0.5 * side), 0.0)
    pixel = jnp.arange(size, dtype=jnp.float32)
    return (side >= 0.0) & (pixel >= start) & (pixel <= start + jnp.floor(side))


def _soft_window(size, side, center):
    fixed = jax.lax.stop_gradient(side)
    corner = center - 0.5 * fixed
    start = jnp.maximum(corner, 0.0)
    end = start + jnp.floor(fixed)
    # Between whole sides a growing hard box only moves back, so its far edge would misguide.
    start = start - jnp.where(corner > 0.0, side - fixed, 0.0)
    end = end + jnp.where(corner > 0.0, 0.0, side - fixed)
    pixel = jnp.arange(size, dtype=jnp.float32)
    near = jax.nn.sigmoid((pixel - start + 1.0) / _CUTOUT_WIDTH)
    return near * jax.nn.sigmoid((end + 0.5 - pixel) / _CUTOUT_WIDTH)


def _soft_cutout(image, side_pixels, center):
    center = jax.lax.stop_gradient(center)
    height, width, _ = image.shape
    covered = (
        _soft_window(height, side_pixels, center[0])[:, None, None]
        * _soft_window(width, side_pixels, center[1])[None, :, None]
    )
    return image + covered * (_CUTOUT_COLOR - image)


@straight_through(_soft_cutout)
def cutout(image: Image, side_pixels: Scalar, center: Pair) -> Image:
    """Paints a square of colour (125, 123, 114), as the official code of DADA does.

    The corner is trunc(max(0, center - side / 2)) and both ends are filled: floor(side) + 1 pixels
    each way, clipped at the image. A side of 0 still paints one pixel, a negative side none.

    Args:
        side_pixels: real scalar.
        center: real `[2]`, row and column in pixels, in [0, H] x [0, W].
    Gradient: of the soft box x + m (colour - x); m is the product over both axes of
        sigmoid(2 (k - start + 1)) sigmoid(2 (end + 1/2 - k)) at pixel k, with
        start = max(0, center - side / 2), end = start + floor(side). A side grown by d moves start
        by -d, or end by d where start = 0. To the centre: 0.
    """
    height, width, _ = image.shape
    rows = _window(height, side_pixels, center[0])
    columns = _window(width, side_pixels, center[1])
    return jnp.where(rows[:, None, None] & columns[None, :, None], _CUTOUT_COLOR, image)
