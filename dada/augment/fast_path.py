"""One op per image over a whole 8-bit batch, each op evaluated only for the images that drew it.

Contract: uint8 in, uint8 out, the pixels of `ops.apply_op` and so of Pillow. Inside, a pixel is
one uint32 with red in the lowest byte, so that moving a pixel is one load and one store.

Ops that share their arithmetic form a family and run together:

    geometry    every affine op is an inverse matrix in 16.16 fixed point and one gather; crop too
    point       Invert, Solarize, Posterize, Brightness: one pass over the levels
    equalize    one table per channel, from its histogram, and one look-up
    grey        Color, Contrast: a blend with the luma or with its mean
    smooth      Sharpness, Smooth: a blend with the 3 x 3 smoothing; Smooth has factor 0
    box         RandCutout, RandCutout60: a comparison per pixel

and the remaining ops run `apply_op` under vmap, a family each. Two schedules give the same pixels:

    blocks   on CPU. The images are sorted by family and cut into blocks of one family; a loop runs
             over the blocks. Work is proportional to the images that have an op.
    dense    on accelerators, where starting a kernel costs more than the kernel: every family once
             over the batch, and a select. No loop, and nothing crosses devices.

Float arithmetic is written so that no compiler can change a pixel: sums and quotients are exact for
H * W <= 2**22, and a product is never contracted with the sum that follows it.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from .. import ops
from ..ops import crop, spatial

_ID = {name: index for index, name in enumerate(ops.ALL_OPS)}
_FILL = crop.FILL[0] | crop.FILL[1] << 8 | crop.FILL[2] << 16

# Images of one block: enough that they hide the cost of a loop step, few enough that the last, partly
# filled block of each family wastes little. Large images hide it alone.
_MAX_BLOCK = 8
_PIXELS_PER_BLOCK = 2**14


def apply(
    images: jax.Array, op: jax.Array, value: jax.Array, center: jax.Array, op_ids: tuple[int, ...]
) -> jax.Array:
    """`draws.apply_draws` of checked arguments: op int32, value and center float32, op_ids static.

    Families without one of `op_ids` are left out.
    """
    size = images.shape[1:3]
    families = tuple(family for family in _FAMILIES if any(_ID[name] in op_ids for name in family[1]))
    if not families:
        return images

    def slot(pixels, draw):
        schedules = {"cpu": partial(_by_blocks, families, size), "default": partial(_dense, families, size)}
        return lax.platform_dependent(pixels, *draw, **schedules), None

    draws = (op.T, value.T, center.swapaxes(0, 1))
    return _unpack(lax.scan(slot, _pack(images), draws)[0], size)


def _dense(families, size, pixels, op, value, center):
    family = jnp.asarray(_family_of_op(families))[op]
    result = pixels
    for index, (run, _) in enumerate(families, start=1):
        changed = run(size, pixels, op, value, center)
        result = jnp.where((family == index)[:, None], changed, result)
    return result


def _by_blocks(families, size, pixels, op, value, center):
    block_size = max(1, min(_MAX_BLOCK, _PIXELS_PER_BLOCK // (size[0] * size[1])))
    family = jnp.asarray(_family_of_op(families))[op]
    family_of_block, members, count = _plan_blocks(family, block_size, len(families))
    branches = [partial(run, size) for run, _ in families]

    def run_block(state):
        index, pixels = state
        member = members[index]
        arguments = [array.at[member].get(mode="clip") for array in (pixels, op, value, center)]
        changed = lax.switch(family_of_block[index], branches, *arguments)
        return index + 1, pixels.at[member].set(changed, mode="drop")

    return lax.while_loop(lambda state: state[0] < count, run_block, (0, pixels))[1]


def _plan_blocks(family, block_size, num_families):
    """Sorts images by family and cuts the images of each family into blocks.

    Returns:
      The family of each block, int32 [M], counted from 0 without Identity; its images, int32
      [M, block_size], padded with the index B, which no image has; the number of blocks in use, [].
    """
    batch = family.shape[0]
    order = jnp.argsort(family, stable=True)
    size = jnp.sum(family[:, None] == np.arange(num_families + 1), axis=0, dtype=jnp.int32)
    start = (jnp.cumsum(size) - size)[1:]
    size = size[1:]
    num_blocks = -(-size // block_size)
    end = jnp.cumsum(num_blocks)
    block = np.arange(batch // block_size + num_families, dtype=np.int32)
    family_of_block = jnp.sum(block[:, None] >= end, axis=1, dtype=jnp.int32)
    family_of_block = jnp.minimum(family_of_block, num_families - 1)
    first = (block - (end - num_blocks)[family_of_block]) * block_size
    rank = first[:, None] + np.arange(block_size, dtype=np.int32)
    member = order[jnp.clip(start[family_of_block][:, None] + rank, 0, batch - 1)]
    member = jnp.where(rank < size[family_of_block][:, None], member, batch)
    return family_of_block, member, end[-1]


def _pack(images):
    return _join(jnp.moveaxis(images.reshape(images.shape[0], -1, 3), -1, 0).astype(jnp.int32))


def _unpack(pixels, size):
    return lax.bitcast_convert_type(pixels, jnp.uint8)[..., :3].reshape(-1, *size, 3)


def _channels(pixels):
    return [((pixels >> shift) & 255).astype(jnp.int32) for shift in (0, 8, 16)]


def _join(channels):
    red, green, blue = channels
    return (red | green << 8 | blue << 16).astype(jnp.uint32)


# A family maps pixels uint32 [N, H * W] with op [N], value [N] and center [N, 2]; size is (H, W).


def _each_image(name: str) -> Callable[..., jax.Array]:
    """The family of one op: `apply_op` on every image."""

    def run(size, pixels, op, value, center):
        del op
        images = _unpack(pixels, size).astype(jnp.float32) / 255
        changed = jax.vmap(partial(ops.apply_op, name))(images, value, center)
        return _pack(jnp.round(changed * 255).astype(jnp.uint8))

    return run


def _geometry(size, pixels, op, value, center):
    height, width = size
    one, half = 65536, 32768  # a pixel and half a pixel in fixed point

    def only(name, coefficient):
        return jnp.where(op == _ID[name], coefficient, 0)

    def shift(name, extent):
        # One pixel beyond the extent all is black: the bound keeps the product below 2**31.
        def whole(move):
            return spatial.round_half_up(jnp.clip(move, -extent - 1.0, extent + 1.0)) * one

        return only(name, whole(value * extent)) + only(name + "Abs", whole(value))

    # The source of pixel (x, y) is (a x + b y + c, d x + e y + f) >> 16. Each line starts from the
    # identity or from nothing; the half pixel of a shear is rounded together with its offset.
    rotation = spatial.rotation_coefficients(value, height, width)
    cosine, sine, minus_sine, row_start, column_start = rotation
    # The bound is where all is black, and keeps the products below 2**31.
    shear = jnp.clip(value, -16383 / max(size), 16383 / max(size))
    slope, offset = spatial.round_half_up(shear * one), spatial.round_half_up(shear * half)
    turn, quarter = op == _ID["Rotate"], op == _ID["Rotate90"]
    mirror_x, mirror_y = only("FlipLR", 1) + only("RandFlip", 1), only("FlipUD", 1)
    is_crop = op == _ID["RandCrop"]
    first = jnp.where(is_crop[:, None], jnp.floor(center), 0.0).astype(jnp.int32)
    straight = 1 - quarter.astype(jnp.int32)
    a = jnp.where(turn, cosine, one * (straight - 2 * mirror_x))
    b = jnp.where(turn, minus_sine, only("ShearX", slope) + only("Rotate90", -one))
    c = half + only("ShearX", offset) + shift("TranslateX", width)
    c += ((mirror_x + quarter) * (width - 1) + first[:, 1]) * one
    d = jnp.where(turn, sine, only("ShearY", slope) + only("Rotate90", one))
    e = jnp.where(turn, cosine, one * (straight - 2 * mirror_y))
    f = half + only("ShearY", offset) + shift("TranslateY", height)
    f += (mirror_y * (height - 1) + first[:, 0]) * one
    c, f = jnp.where(turn, column_start, c), jnp.where(turn, row_start, f)
    a, b, c, d, e, f = (coefficient[:, None] for coefficient in (a, b, c, d, e, f))

    y, x = np.divmod(np.arange(height * width, dtype=np.int32), np.int32(width))
    column, row = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    source = jnp.where(inside, row * width + column, 0)
    moved = jnp.take_along_axis(pixels, source, axis=1, mode="promise_in_bounds")
    return jnp.where(inside, moved, jnp.where(is_crop, jnp.uint32(_FILL), 0)[:, None])


def _point(size, pixels, op, value, center):
    del size, center
    op, value = op[:, None], value[:, None]
    threshold = jnp.where(op == _ID["Invert"], 0.0, value)
    kept_bits = 0xFF00 >> jnp.clip(value, 0, 8).astype(jnp.int32)
    is_posterize = (op == _ID["Posterize"]) | (op == _ID["Posterize2"])

    def mapped(level):
        real = level.astype(jnp.float32)
        solarized = jnp.where(real < threshold, level, 255 - level)
        other = jnp.where(is_posterize, level & kept_bits, solarized)
        brightened = jnp.clip(value * real, 0, 255).astype(jnp.int32)
        return jnp.where(op == _ID["Brightness"], brightened, other)

    return _join(map(mapped, _channels(pixels)))


def _equalize(size, pixels, op, value, center):
    del op, value, center
    count, num_pixels = pixels.shape[0], size[0] * size[1]
    first = np.arange(count, dtype=np.int32)[:, None] * 768
    place = [first + 256 * channel + level for channel, level in enumerate(_channels(pixels))]
    histogram = jnp.zeros(count * 768).at[jnp.stack(place).reshape(-1)].add(1)
    # Cumulative sum in two steps of 16 as products with a triangle: jnp.cumsum is quadratic on CPU.
    triangle = np.triu(np.ones((16, 16), np.float32))
    product = partial(jnp.dot, precision=lax.Precision.HIGHEST)
    histogram = histogram.reshape(count, 3, 16, 16)
    within = product(histogram, triangle)
    before = product(within[..., -1], np.triu(triangle, 1))
    up_to = (within + before[..., None]).reshape(count, 3, 256)
    below = up_to - histogram.reshape(count, 3, 256)
    below_last = jnp.max(jnp.where(up_to < num_pixels, up_to, 0), axis=-1, keepdims=True)
    step = below_last.astype(jnp.int32) // 255
    # The added half keeps the quotient of whole numbers clear of the next whole number.
    quotient = ((step // 2 + below) + 0.5) / jnp.maximum(step, 1)
    equalized = jnp.minimum(quotient, 255).astype(jnp.int32)
    table = jnp.where(step == 0, np.arange(256, dtype=np.int32), equalized).reshape(-1)
    return _join(table.at[entry].get(mode="promise_in_bounds") for entry in place)


def _blend(degenerate, level, factor):
    """degenerate + factor (level - degenerate), clipped and truncated."""
    degenerate = degenerate.astype(jnp.float32)
    # The maximum never acts; it keeps the compiler from contracting the product with the sum.
    change = jnp.maximum(factor[:, None] * (level.astype(jnp.float32) - degenerate), -1e30)
    return jnp.clip(degenerate + change, 0, 255).astype(jnp.int32)


def _grey(size, pixels, op, value, center):
    del center
    num_pixels = size[0] * size[1]
    channels = _channels(pixels)
    red, green, blue = channels
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    mean = (2 * jnp.sum(luma, axis=1, keepdims=True) + num_pixels) // (2 * num_pixels)
    degenerate = jnp.where((op == _ID["Contrast"])[:, None], mean, luma)
    return _join(_blend(degenerate, channel, value) for channel in channels)


def _smooth(size, pixels, op, value, center):
    del center
    height, width = size
    num_pixels = height * width

    def window_sum(lanes):  # 3 x 3 around every pixel; nonsense at the border
        padded = jnp.pad(lanes, ((0, 0), (width + 1, width + 1)))
        across = sum(padded[:, i : i + num_pixels + 2 * width] for i in range(3))
        return sum(across[:, i * width : i * width + num_pixels] for i in range(3))

    # Red and blue share a word: the sum of 9 bytes stays below 2**16.
    red_blue, green = window_sum(pixels & 0xFF00FF), window_sum((pixels >> 8) & 0xFF)
    y, x = np.divmod(np.arange(num_pixels), width)
    interior = (y > 0) & (y < height - 1) & (x > 0) & (x < width - 1)
    factor = jnp.where(op == _ID["Sharpness"], value, 0.0)

    def blended(level, total):
        # (total + 4 level) / 13, rounded; 5042 / 2**16 divides by 13 exactly up to 3,330.
        smoothed = ((total.astype(jnp.int32) + 4 * level + 6) * 5042) >> 16
        return _blend(jnp.where(interior, smoothed, level), level, factor)

    totals = (red_blue & 0xFFFF, green, red_blue >> 16)
    return _join(map(blended, _channels(pixels), totals))


def _box(size, pixels, op, value, center):
    del value
    half_side = jnp.where(op == _ID["RandCutout60"], crop.HALF_SIDE_60, crop.HALF_SIDE)
    middle = jnp.floor(center).astype(jnp.int32)[..., None]
    y, x = np.divmod(np.arange(size[0] * size[1], dtype=np.int32), np.int32(size[1]))
    distance = jnp.maximum(jnp.abs(y - middle[:, 0]), jnp.abs(x - middle[:, 1]))
    return jnp.where(distance <= half_side[:, None], jnp.uint32(_FILL), pixels)


_FAMILIES = (
    (
        _geometry,
        (
            *("ShearX", "ShearY", "TranslateX", "TranslateY", "TranslateXAbs", "TranslateYAbs"),
            *("Rotate", "Rotate90", "FlipLR", "FlipUD", "RandFlip", "RandCrop"),
        ),
    ),
    (_point, ("Invert", "Solarize", "Posterize", "Posterize2", "Brightness")),
    (_equalize, ("Equalize",)),
    (_grey, ("Contrast", "Color")),
    (_smooth, ("Sharpness", "Smooth")),
    (_box, ("RandCutout", "RandCutout60")),
    *(
        (_each_image(name), (name,))
        for name in ("AutoContrast", "Blur", "Cutout", "CutoutAbs", "RandResizeCrop")
    ),
)


def _family_of_op(families) -> np.ndarray:
    """The family of every op id: 1 .. len(families), 0 for Identity and for ops of no family."""
    family = np.zeros(len(ops.ALL_OPS), np.int32)
    for index, (_, names) in enumerate(families, start=1):
        family[[_ID[name] for name in names]] = index
    return family
