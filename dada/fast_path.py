"""One op per image over a whole 8-bit batch, each op evaluated only for the images that drew it.

Contract: uint8 in, uint8 out, the pixels of `op_table.apply_op` and so of Pillow. Inside, a pixel is
one uint32 with red in the lowest byte, so that moving a pixel is one load and one store.

Ops that share their arithmetic form a family and run together:

    geometry    every affine op is an inverse matrix in 16.16 fixed point and one gather
    point       Invert, Solarize, Posterize, Brightness: one table of 256 entries and one look-up
    equalize    one table per channel, from its histogram
    grey        Color, Contrast: a blend with the luma or with its mean
    smooth      Sharpness, Smooth: a blend with the 3 x 3 smoothing; Smooth has factor 0

and the remaining ops run `apply_op` under vmap, a family each. Two schedules give the same pixels:

    blocks   on CPU. The images are sorted by family and cut into blocks of one family; a loop runs
             over the blocks. Work is proportional to the images that have an op.
    dense    on accelerators, where starting a kernel costs more than the kernel: every family once
             over the batch, and a select. No loop, and nothing crosses devices.

Float arithmetic is written so that no compiler can change a pixel: sums and quotients are exact for
H * W <= 2**22, and a product is never contracted with the sum that follows it.

Copy alone: with op_table.py, color_ops.py and spatial_ops.py.
"""

from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dada import op_table, spatial_ops

_ID = {name: index for index, name in enumerate(op_table.OPS)}

# Images of one block: large enough to hide the cost of a loop step, small enough that the last, partly
# filled block of each family wastes little.
_BLOCK = 16


def apply(images: chex.Array, op: chex.Array, value: chex.Array, center: chex.Array) -> chex.Array:
    """Applies to every image its own K ops, one after the other.

    Args:
      images: uint8 [B, H, W, 3], H * W <= 2**22.
      op: int32 [B, K], op ids of op_table.OPS.
      value: float32 [B, K], in the unit of the op.
      center: float32 [B, K, 2], (row, column) in pixels.

    Returns:
      uint8 [B, H, W, 3].
    """
    size = images.shape[1:3]

    def slot(pixels, draw):
        schedules = {"cpu": partial(_by_blocks, size), "default": partial(_dense, size)}
        return lax.platform_dependent(pixels, *draw, **schedules), None

    draws = (op.T, value.T, center.swapaxes(0, 1))
    return _unpack(lax.scan(slot, _pack(images), draws)[0], size)


def _dense(size, pixels, op, value, center):
    family = jnp.asarray(_family_of_op())[op]
    result = pixels
    for index, (run, _) in enumerate(_FAMILIES, start=1):
        changed = run(size, pixels, op, value, center)
        result = jnp.where((family == index)[:, None], changed, result)
    return result


def _by_blocks(size, pixels, op, value, center):
    family_of_block, members, count = _plan_blocks(jnp.asarray(_family_of_op())[op])
    branches = [partial(run, size) for run, _ in _FAMILIES]

    def run_block(state):
        index, pixels = state
        member = members[index]
        arguments = [array.at[member].get(mode="clip") for array in (pixels, op, value, center)]
        changed = lax.switch(family_of_block[index], branches, *arguments)
        return index + 1, pixels.at[member].set(changed, mode="drop")

    return lax.while_loop(lambda state: state[0] < count, run_block, (0, pixels))[1]


def _plan_blocks(family):
    """Sorts images by family and cuts the images of each family into blocks.

    Returns:
      The family of each block, int32 [M], counted from 0 without Identity; its images, int32
      [M, _BLOCK], padded with the index B, which no image has; the number of blocks in use, [].
    """
    batch, num_families = family.shape[0], len(_FAMILIES)
    order = jnp.argsort(family, stable=True)
    size = jnp.sum(family[:, None] == np.arange(num_families + 1), axis=0, dtype=jnp.int32)
    start = (jnp.cumsum(size) - size)[1:]
    size = size[1:]
    num_blocks = -(-size // _BLOCK)
    end = jnp.cumsum(num_blocks)
    block = np.arange(batch // _BLOCK + num_families, dtype=np.int32)
    family_of_block = jnp.sum(block[:, None] >= end, axis=1, dtype=jnp.int32)
    family_of_block = jnp.minimum(family_of_block, num_families - 1)
    first = (block - (end - num_blocks)[family_of_block]) * _BLOCK
    rank = first[:, None] + np.arange(_BLOCK, dtype=np.int32)
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


def _each_image(name: str) -> Callable[..., chex.Array]:
    """The family of one op: `apply_op` on every image."""

    def run(size, pixels, op, value, center):
        del op
        images = _unpack(pixels, size).astype(jnp.float32) / 255
        changed = jax.vmap(partial(op_table.apply_op, name))(images, value, center)
        return _pack(jnp.round(changed * 255).astype(jnp.uint8))

    return run


def _inverse_matrices(size, op, value):
    """Coefficients (a, b, c, d, e, f) [N, 6] of source x = a x + b y + c, y = d x + e y + f, times 2**16."""
    height, width = size

    def where(name, coefficient):
        return jnp.where(op == _ID[name], coefficient, 0)

    def shift(name, extent):
        # Beyond its extent the image is black: the bound keeps the product below 2**31.
        def whole(pixels):
            return spatial_ops.round_half_up(jnp.clip(pixels, -extent - 1.0, extent + 1.0)) * one

        return where(name, whole(value * extent)) + where(name + "Abs", whole(value))

    one, half = 65536, 32768
    slope = spatial_ops.round_half_up(jnp.clip(value, -half / height, half / height) * 65536.0)
    del slope
    raise NotImplementedError
