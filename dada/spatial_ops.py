"""Geometric operations and Cutout on one image: Pillow's pixels forward, a smooth surrogate backward.

Contract. An image is float32 `[H, W, 3]` in [0, 1] that holds k/255 for whole levels k; so does the result,
which is the 8-bit image that Pillow writes (nearest neighbour, black outside). Ops are pure, take traced
values, and work under `jit`, `vmap`, `jvp`, `vjp` and their compositions. A wrong dtype is a TypeError, a
wrong shape a ValueError.

Arithmetic. Pillow maps output pixel (x, y) to the source position (a (x + 1/2) + b (y + 1/2) + c, ...) in
16.16 fixed point: every coefficient is FIX(v) = floor(65536 v + 1/2) and the half pixels are folded into the
offset before it is rounded. Here the coefficients are formed without float64, from whole parts that are
exact and fractions that are right to about 1e-7 (rotation) or exact (the others), so that a rotation can
differ only where a coefficient lies that close to the middle of two multiples of 1/65536.

Gradient. The value is that of the hard op, the tangent that of a soft surrogate S: S + stop_gradient(hard - S)
without its rounding error. Second derivatives are those of S. For geometry, S samples the image bilinearly at
the unrounded source position, with black outside.

Compilers. XLA may contract `a * b - c` into one rounding when an argument is a product. Values are clipped
to their domain first, which forces them to be rounded, so fused and eager results are the same.

Copy alone: this file needs jax and numpy only.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np

_CUTOUT_COLOR = np.array([125, 123, 114], np.float32) / np.float32(255)

# Width of the soft edges of Cutout in pixels.
_CUTOUT_WIDTH = 0.5

# 65536 * sin at the multiples of 1/8 degree: nearest whole number and rest. Pillow rounds the sine to 15 places.
_STEPS = 2880
_SINE = 65536.0 * np.round(np.sin(np.radians(np.arange(_STEPS) / 8.0)), 15)
_SINE_WHOLE = np.round(_SINE).astype(np.int32)
_SINE_REST = (_SINE - _SINE_WHOLE).astype(np.float32)
# Its slope per degree: nearest half, of 12 bits at most, and rest.
_SLOPE = 65536.0 * np.radians(1.0) * np.cos(np.radians(np.arange(_STEPS) / 8.0))
_SLOPE_COARSE = (np.round(2.0 * _SLOPE) / 2.0).astype(np.float32)
_SLOPE_REST = (_SLOPE - _SLOPE_COARSE).astype(np.float32)


def _straight_through(soft):
    """Makes a function of (image, *values) an op with the tangent of `soft` and checked arguments."""

    def decorate(hard):
        core = jax.custom_jvp(hard)
        core.defjvp(lambda primals, tangents: (core(*primals), jax.jvp(soft, primals, tangents)[1]))
        signature = inspect.signature(hard)

        @functools.wraps(hard)
        def op(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            return core(*(_checked(name, value) for name, value in arguments.items()))

        return op

    return decorate


def _checked(name, value):
    value = jnp.asarray(value)
    if name == "image":
        if value.dtype != jnp.float32:
            raise TypeError(f"image: expected float32, got {value.dtype}")
        if value.ndim != 3 or value.shape[-1] != 3 or value.size == 0:
            raise ValueError(f"image: expected shape [H, W, 3], got {value.shape}")
        return value
    if not jnp.issubdtype(value.dtype, jnp.floating) and not jnp.issubdtype(value.dtype, jnp.integer):
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    shape = (2,) if name == "center" else ()
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {value.shape}")
    return value.astype(jnp.float32)


def _round_half_up(value):
    """floor(value + 1/2) as int32, without rounding the sum."""
    whole = jnp.floor(value)
    return (whole + (value >= whole + 0.5)).astype(jnp.int32)


def _gather(image, rows, columns):
    """Pixels of an image at whole positions `[H, W]`, black outside."""
    height, width, channels = image.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    place = jnp.where(inside, rows * width + columns, 0)
    pixels = image.reshape(-1, channels).at[place].get(mode="promise_in_bounds")
    return jnp.where(inside[..., None], pixels, 0.0)


def _grid(image):
    """Row and column numbers, int32 `[H, 1]` and `[1, W]`."""
    return jnp.arange(image.shape[0])[:, None], jnp.arange(image.shape[1])[None, :]


def _bilinear_columns(image, columns):
    """Samples every row at the real columns `[H, W]`; whole numbers are pixel centres."""
    rows, _ = _grid(image)
    left = jnp.floor(columns)
    weight = (columns - left)[..., None]
    left = left.astype(jnp.int32)
    return (1.0 - weight) * _gather(image, rows, left) + weight * _gather(image, rows, left + 1)


def _transposed(op):
    return lambda image, value: jnp.swapaxes(op(jnp.swapaxes(image, 0, 1), value), 0, 1)


def _hard_shear(image, shear):
    rows, columns = _grid(image)
    bound = 32767.0 / image.shape[0]
    shear = jnp.clip(shear, -bound, bound)
    offset = 32768 + _round_half_up(shear * 32768.0)
    slope = _round_half_up(shear * 65536.0)
    return _gather(image, rows, columns + ((offset + slope * rows) >> 16))


def _soft_shear(image, shear):
    rows, columns = _grid(image)
    return _bilinear_columns(image, columns + shear * (rows + 0.5))


def _hard_translate(image, pixels):
    rows, columns = _grid(image)
    width = image.shape[1]
    shift = _round_half_up(jnp.clip(pixels, -width - 1.0, width + 1.0))
    return _gather(image, rows, columns + shift)


def _soft_translate(image, pixels):
    rows, columns = _grid(image)
    return _bilinear_columns(image, columns + jnp.zeros_like(rows) + pixels)


@_straight_through(_soft_shear)
def shear_x(image, shear):
    """Shears rows about the top left corner: source column = x + 1/2 + shear (y + 1/2).

    Args:
        image: float32 `[H, W, 3]`, levels / 255.
        shear: real scalar, columns per row, |shear| H < 32768.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: to image and shear, of bilinear sampling at the unrounded columns.
    """
    return _hard_shear(image, shear)


@_straight_through(_transposed(_soft_shear))
def shear_y(image, shear):
    """Shears columns about the top left corner: source row = y + 1/2 + shear (x + 1/2).

    Args:
        image: float32 `[H, W, 3]`, levels / 255.
        shear: real scalar, rows per column, |shear| W < 32768.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: to image and shear, of bilinear sampling at the unrounded rows.
    """
    return _transposed(_hard_shear)(image, shear)


@_straight_through(_soft_translate)
def translate_x(image, pixels):
    """Moves the image to the left by floor(pixels + 1/2) columns.

    Args:
        image: float32 `[H, W, 3]`, levels / 255.
        pixels: real scalar, negative to the right.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: to image and pixels, of bilinear sampling at the unrounded columns.
    """
    return _hard_translate(image, pixels)


@_straight_through(_transposed(_soft_translate))
def translate_y(image, pixels):
    """Moves the image up by floor(pixels + 1/2) rows.

    Args:
        image: float32 `[H, W, 3]`, levels / 255.
        pixels: real scalar, negative moves down.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: to image and pixels, of bilinear sampling at the unrounded rows.
    """
    return _transposed(_hard_translate)(image, pixels)


def _fixed_sine(step, rest):
    """65536 sin of (step / 8 + rest) degrees as whole part int32 and rest float32 of about [-1, 1].

    sin(t + r) = sin t + r cos t - r^2 / 2 sin t - r^3 / 6 cos t + O(r^4 / 24) with |r| <= 1/16 degree. Of the
    second term the product of the leading 12 bits is exact, what remains is small.
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


def _rotation(degrees, height, width):
    """Fixed-point coefficients (cos, sin, -sin, row offset, column offset), int32, of a turn about the centre."""
    degrees = jnp.clip(degrees, -1e5, 1e5)
    step = jnp.floor(degrees * 8.0 + 0.5)
    rest = degrees - step * 0.125
    step = step.astype(jnp.int32)
    sine, sine_rest = _fixed_sine(step, rest)
    cosine, cosine_rest = _fixed_sine(step + _STEPS // 4, rest)
    # An offset is FIX(W/2 - cos (W - 1)/2 + sin (H - 1)/2): half of a whole number less a fraction, rounded.
    row = 65536 * height - sine * (width - 1) - cosine * (height - 1)
    row_rest = sine_rest * (width - 1.0) + cosine_rest * (height - 1.0)
    column = 65536 * width - cosine * (width - 1) + sine * (height - 1)
    column_rest = cosine_rest * (width - 1.0) - sine_rest * (height - 1.0)
    return (
        cosine + _round_half_up(cosine_rest),
        sine + _round_half_up(sine_rest),
        _round_half_up(-sine_rest) - sine,
        (row + 1 - jnp.ceil(row_rest).astype(jnp.int32)) >> 1,
        (column + 1 - jnp.ceil(column_rest).astype(jnp.int32)) >> 1,
    )


def _soft_rotate(image, degrees):
    height, width, _ = image.shape
    rows, columns = _grid(image)
    y, x = rows - 0.5 * (height - 1), columns - 0.5 * (width - 1)
    radians = degrees * np.float32(np.pi / 180)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    row = sine * x + cosine * y + 0.5 * (height - 1)
    column = cosine * x - sine * y + 0.5 * (width - 1)
    top, left = jnp.floor(row), jnp.floor(column)
    down, right = (row - top)[..., None], (column - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    upper = (1.0 - right) * _gather(image, top, left) + right * _gather(image, top, left + 1)
    lower = (1.0 - right) * _gather(image, top + 1, left) + right * _gather(image, top + 1, left + 1)
    return (1.0 - down) * upper + down * lower


@_straight_through(_soft_rotate)
def rotate(image, degrees):
    """Turns the image counter-clockwise about its centre, in its frame (`Image.rotate`).

    Args:
        image: float32 `[H, W, 3]`, levels / 255, H + W < 16384.
        degrees: real scalar, |degrees| <= 1e5.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: to image and degrees, of bilinear sampling at the unrounded positions.
    """
    rows, columns = _grid(image)
    cosine, sine, minus_sine, row, column = _rotation(degrees, image.shape[0], image.shape[1])
    source_rows = (row + sine * columns + cosine * rows) >> 16
    source_columns = (column + cosine * columns + minus_sine * rows) >> 16
    return _gather(image, source_rows, source_columns)


def flip_lr(image):
    """Mirrors left and right.

    Args:
        image: float32 `[H, W, 3]`.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: its own, the mirrored cotangent.
    """
    return _checked("image", image)[:, ::-1]


def flip_ud(image):
    """Mirrors top and bottom.

    Args:
        image: float32 `[H, W, 3]`.

    Returns:
        float32 `[H, W, 3]`.

    Gradient: its own, the mirrored cotangent.
    """
    return _checked("image", image)[::-1]


def rotate90(image):
    """Turns a square image by 90 degrees counter-clockwise (`Image.Transpose.ROTATE_90`).

    Args:
        image: float32 `[H, H, 3]`.

    Returns:
        float32 `[H, H, 3]`.

    Gradient: its own, the cotangent turned back.
    """
    image = _checked("image", image)
    if image.shape[0] != image.shape[1]:
        raise ValueError(f"image: expected a square one, got shape {image.shape}")
    return jnp.rot90(image)


def _window(size, side, center):
    """Whole pixels of one axis covered by the box: first = trunc(max(0, center - side / 2)), floor(side) more."""
    center, side = jnp.clip(center, -1e6, 1e6), jnp.clip(side, -1.0, 1e6)
    start = jnp.floor(center - 0.5 * side)
    # The difference may have been rounded up to a whole number; this comparison is exact.
    start = jnp.maximum(start - (center - start < 0.5 * side), 0.0)
    pixel = jnp.arange(size, dtype=jnp.float32)
    return (side >= 0.0) & (pixel >= start) & (pixel <= start + jnp.floor(side))


def _soft_window(size, side, center):
    start = jnp.maximum(center - 0.5 * side - 0.5, -0.5)
    pixel = jnp.arange(size, dtype=jnp.float32)
    edge = jax.nn.sigmoid((pixel - start) / _CUTOUT_WIDTH)
    return edge * jax.nn.sigmoid((start + side + 0.5 - pixel) / _CUTOUT_WIDTH)


def _soft_cutout(image, side_pixels, center):
    center = jax.lax.stop_gradient(center)
    height, width, _ = image.shape
    covered = (
        _soft_window(height, side_pixels, center[0])[:, None, None]
        * _soft_window(width, side_pixels, center[1])[None, :, None]
    )
    return image + covered * (_CUTOUT_COLOR - image)


@_straight_through(_soft_cutout)
def cutout(image, side_pixels, center):
    """Paints a square of colour (125, 123, 114), as the official code of DADA does.

    The corner is trunc(max(0, center - side / 2)) and both ends are filled: floor(side) + 1 pixels a side,
    clipped at the image. A side of 0 still paints one pixel; a negative side none.

    Args:
        image: float32 `[H, W, 3]`, levels / 255.
        side_pixels: real scalar.
        center: real `[2]`, row and column in pixels, in [0, H] x [0, W].

    Returns:
        float32 `[H, W, 3]`.

    Gradient: of the soft box x + m (colour - x), where m is the product over both axes of sigmoids of width 1/2
        pixel at both ends of [max(0, center - side / 2), + side + 1] in the image's frame; to the centre 0.
    """
    height, width, _ = image.shape
    rows = _window(height, side_pixels, center[0])
    columns = _window(width, side_pixels, center[1])
    return jnp.where(rows[:, None, None] & columns[None, :, None], _CUTOUT_COLOR, image)
