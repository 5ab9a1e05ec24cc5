"""From draws and images to augmented images, batched.

Contract: pure functions that can be traced. `apply_draws` is the fast path of training, uint8 to
uint8; `apply_draws_differentiable` gives the same pixels as float32 and carries gradients to the
values of the draws, for searches. B images, K ops per image, applied in the order 0 .. K - 1.

Under `jit` with images divided over devices both give the pixels of one device; inside `shard_map` or `pmap`,
`apply_draws` moves nothing between devices.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from .. import ops
from ..ops import Draws
from . import fast_path


def apply_draws(images: jax.Array, draws: Draws, *, op_ids: tuple[int, ...] | None = None) -> jax.Array:
    """Applies to every image its own K ops, equal to Pillow on every pixel.

    Rotate90 needs square images; on others its result is undefined. The centre of a draw is read by
    cutouts and crops only.

    Args:
      images: uint8 [B, H, W, 3]; grey images as three equal channels. H * W <= 2**22, H + W < 2**14.
      draws: op int [B, K], value float [B, K], center float [B, K, 2].
      op_ids: static; the op ids that draws may hold, None for all; an op that is not among them may do
        nothing. On an accelerator every image pays for all of them: pass `ops.op_ids(space)`.
    Returns:
      uint8 [B, H, W, 3].
    Raises:
      TypeError: images are not uint8, or a draw has the wrong kind of number.
      ValueError: shapes do not fit.
    """
    _check_images("images", images, (jnp.uint8,), "uint8")
    height, width = images.shape[1:3]
    if height * width > 2**22 or height + width >= 2**14:
        raise ValueError(f"images: got shape {images.shape}, expected H * W <= {2**22} and H + W < {2**14}")
    _check_draws(draws, images.shape[0])
    return fast_path.apply(
        images,
        draws.op.astype(jnp.int32),
        draws.value.astype(jnp.float32),
        draws.center.astype(jnp.float32),
        tuple(range(len(ops.ALL_OPS))) if op_ids is None else tuple(op_ids),
    )


def apply_draws_differentiable(images: jax.Array, draws: Draws, op_ids: tuple[int, ...]) -> jax.Array:
    """Applies to every image its own K ops; same pixels as `apply_draws`, with gradients to the values.

    The derivative of every image with respect to each of its K values is computed forwards, with the
    image, and enters as x + sum_k (dx/dvalue_k) (value_k - stop_gradient(value_k)): no residuals of ops
    are stored, and the rest of a search needs no derivative of ops in reverse.

    Args:
      images: float32 [B, H, W, 3] in [0, 1], holding k/255; constants.
      draws: op int [B, K], value float [B, K], center float [B, K, 2]. Ops are traced, so a draw whose
        op is not in `op_ids` cannot be refused: it does nothing.
      op_ids: static; the op ids that draws may hold, 0 (Identity) among them, random ops not. On an
        accelerator every image pays for every one of them, so pass the ops of the search space only.
    Returns:
      float32 [B, H, W, 3].
    Gradient: to draws.value, through the surrogates that the ops declare; none to images, op and center.
    Raises:
      TypeError: images are not float32, or a draw has the wrong kind of number.
      ValueError: shapes do not fit; op_ids without 0, repeated or outside the op table.
    """
    _check_images("images", images, (jnp.float32,), "float32")
    _check_draws(draws, images.shape[0])
    op_ids = tuple(int(op) for op in op_ids)
    if 0 not in op_ids or len(set(op_ids)) < len(op_ids):
        raise ValueError(f"op_ids: got {op_ids}, expected distinct op ids, 0 (Identity) included")
    if not all(0 <= op < len(ops.OPS) for op in op_ids):
        raise ValueError(f"op_ids: got {op_ids}, expected ids in [0, {len(ops.OPS)})")
    branch_of_op = np.full(len(ops.OPS), op_ids.index(0), np.int32)
    branch_of_op[list(op_ids)] = np.arange(len(op_ids))
    branches = [
        lambda image, value, center, name=ops.OPS[op]: ops.apply_op(name, image, value, center)
        for op in op_ids
    ]

    def augment_one(per_image):
        image, branch, value, center = per_image

        def chain(value):
            def step(image, slot):
                return jax.lax.switch(slot[0], branches, image, *slot[1:]), None

            return jax.lax.scan(step, image, (branch, value, center))[0]

        # One tangent per value; the image itself is computed once.
        return jax.vmap(lambda tangent: jax.jvp(chain, (value,), (tangent,)), out_axes=(None, 0))(
            jnp.eye(value.shape[0], dtype=value.dtype)
        )

    value = jax.lax.stop_gradient(draws.value)
    per_image = (images, jnp.asarray(branch_of_op)[draws.op], value, draws.center)
    # One image after the other runs only the ops that were drawn, which is right on a CPU.
    augmented, slopes = jax.lax.stop_gradient(
        jax.lax.platform_dependent(
            per_image, cpu=functools.partial(jax.lax.map, augment_one), default=jax.vmap(augment_one)
        )
    )
    return augmented + jnp.einsum("bk...,bk->b...", slopes, draws.value - value)


def _check_images(name, images, dtypes, expected):
    if images.dtype not in dtypes:
        raise TypeError(f"{name}: got dtype {images.dtype}, expected {expected}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name}: got shape {images.shape}, expected [B, H, W, 3]")


def _check_draws(draws, batch):
    for name, array, kind in (
        ("op", draws.op, jnp.integer),
        ("value", draws.value, jnp.floating),
        ("center", draws.center, jnp.floating),
    ):
        if not jnp.issubdtype(array.dtype, kind):
            raise TypeError(f"draws.{name}: got dtype {array.dtype}, expected {kind.__name__}")
    shape = draws.op.shape
    if len(shape) != 2 or shape[0] != batch:
        raise ValueError(f"draws.op: got shape {shape}, expected [{batch}, K]")
    if draws.value.shape != shape or draws.center.shape != (*shape, 2):
        raise ValueError(
            f"draws: got value {draws.value.shape} and center {draws.center.shape}, expected "
            f"{shape} and {(*shape, 2)}"
        )
