"""From draws and images to augmented images, batched.

Contract: pure functions that can be traced. `apply_draws` is the fast path of training, uint8 to
uint8; `apply_draws_differentiable` gives the same pixels as float32 and carries gradients to the
values of the draws, for searches. B images, K ops per image, applied in the order 0 .. K - 1.

Both do the same for `ImagesWithBoxes`, from the same draws. After every op a box is what encloses the moved
one, clipped at the image; one that has no area then is not valid any more.

Under `jit` with images divided over devices both give the pixels of one device; inside `shard_map` or `pmap`,
`apply_draws` moves nothing between devices.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import ops
from ..ops import Draws
from . import fast_path


class ImagesWithBoxes(NamedTuple):
    """Images, and boxes that move with them; takes the place of images wherever these are augmented.

    Attributes:
      images: [B, H, W, 3].
      boxes: float32 [B, N, 4], (x min, y min, x max, y max) in pixels, edges: (0, 0, W, H) is the image.
      valid: bool [B, N]; what other slots hold changes nothing, and they return 0.
    """

    images: jax.Array
    boxes: jax.Array
    valid: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the images."""
        return self.images.shape


def map_images(function: Callable, images: jax.Array | ImagesWithBoxes) -> jax.Array | ImagesWithBoxes:
    """Applies to images a function that leaves boxes where they are."""
    if isinstance(images, ImagesWithBoxes):
        return images._replace(images=function(images.images))
    return function(images)


def apply_draws(
    images: jax.Array | ImagesWithBoxes, draws: Draws, *, op_ids: tuple[int, ...] | None = None
) -> jax.Array | ImagesWithBoxes:
    """Applies to every image, and to its boxes, its own K ops, equal to Pillow on every pixel.

    Rotate90 needs square images; on others its result is undefined. The centre of a draw is read by
    cutouts and crops only; ops inside boxes draw from its bits (`ops.boxes`).

    Args:
      images: uint8 [B, H, W, 3], perhaps with boxes; grey images as three equal channels. H * W <= 2**22,
        H + W < 2**14.
      draws: op int [B, K], value float [B, K], center float [B, K, 2].
      op_ids: static; the op ids that draws may hold, None for all, without boxes for all that need none; an
        op that is not among them may do nothing. On an accelerator every image pays for all of them: pass
        `ops.op_ids(space)`.
    Returns:
      Of the same kind.
    Raises:
      TypeError: images are not uint8, or boxes or a draw have the wrong kind of number.
      ValueError: shapes do not fit, or, without boxes, an op of `ops.BOX_OPS` is among op_ids.
    """
    if isinstance(images, ImagesWithBoxes):
        return _apply_with_boxes(images, draws, op_ids)
    draws = _checked(images, draws)
    op_ids = tuple(range(len(ops.ALL_OPS) - len(ops.BOX_OPS))) if op_ids is None else tuple(op_ids)
    need_boxes = [ops.ALL_OPS[op] for op in op_ids if ops.ALL_OPS[op] in ops.BOX_OPS]
    if need_boxes:
        raise ValueError(f"op_ids: got {', '.join(need_boxes)}, which need ImagesWithBoxes")
    return fast_path.apply(images, *draws, op_ids)


def _apply_with_boxes(batch, draws, op_ids):
    """The pixels and boxes of `ops.apply_op_with_boxes`; an op that is not among op_ids does nothing."""
    images, boxes, valid = batch
    draws = _checked(images, draws)
    _check_boxes(boxes, valid, images.shape[0])
    op_ids = tuple(sorted({0, *(range(len(ops.ALL_OPS)) if op_ids is None else op_ids)}))
    names = [ops.ALL_OPS[op] for op in op_ids]
    branches = [functools.partial(_complete, name) for name in names]
    fills_grey = np.array([name.endswith("_BBox") for name in names])
    # Moves as the op does, black where that one is grey; an op without a twin is unknown to `fast_path`.
    alone = [name.removesuffix("_BBox").removesuffix("_Image_Only") for name in names]
    twins = np.array([ops.ALL_OPS.index(name) for name in alone], np.int32)

    def slot(state, draw):
        images, boxes, valid = state
        branch, value, center = draw
        # What is grey before and after is black in between.
        exchange = jnp.where(jnp.asarray(fills_grey)[branch], jnp.uint8(128), 0)[:, None, None, None]
        single = (leaf[:, None] for leaf in (jnp.asarray(twins)[branch], value, center))
        images = fast_path.apply(images ^ exchange, *single, tuple(twins.tolist())) ^ exchange
        return _each_image(switch, select, (branch, images, boxes, valid, value, center)), None

    def switch(per_image):
        branch, *arguments = per_image
        return jax.lax.switch(branch, branches, *arguments)

    def select(per_image):  # a mapped switch inside shard_map fails: jax refuses its constant arrays
        branch, *arguments = per_image
        results = [run(*arguments) for run in branches]
        return jax.tree.map(lambda *leaves: jax.lax.select_n(branch, *leaves), *results)

    in_order = draws._replace(op=jnp.asarray(_branch_of_op(op_ids))[draws.op])
    in_order = jax.tree.map(lambda leaf: leaf.swapaxes(0, 1), in_order)
    return ImagesWithBoxes(*jax.lax.scan(slot, (images, boxes, valid), in_order)[0])


def _complete(name, image, boxes, valid, value, center):
    """What one op does besides what `fast_path` has done to the image."""
    if name not in ops.BOX_OPS or name.endswith(("_BBox", "_Image_Only")):
        return image, *ops.move_boxes(name, boxes, valid, value, center, image.shape[:2])
    unit = image.astype(jnp.float32) / 255
    unit, *moved = ops.apply_op_with_boxes(name, unit, boxes, valid, value, center)
    return jnp.round(unit * 255).astype(jnp.uint8), *moved


def apply_draws_differentiable(
    images: jax.Array | ImagesWithBoxes, draws: Draws, op_ids: tuple[int, ...]
) -> jax.Array | ImagesWithBoxes:
    """Applies to every image, and to its boxes, its own K ops, with gradients to the values.

    The derivative of every image with respect to each of its K values is computed forwards, with the
    image, and enters as x + sum_k (dx/dvalue_k) (value_k - stop_gradient(value_k)): no residuals of ops
    are stored, and the rest of a search needs no derivative of ops in reverse.

    Args:
      images: float32 [B, H, W, 3] in [0, 1], holding k/255, perhaps with boxes; constants.
      draws: op int [B, K], value float [B, K], center float [B, K, 2]. Ops are traced, so a draw whose
        op is not in `op_ids` cannot be refused: it does nothing.
      op_ids: static; the op ids that draws may hold, 0 (Identity) among them, random ops not. On an
        accelerator every image pays for every one of them, so pass the ops of the search space only.
    Returns:
      Of the same kind.
    Gradient: of images to draws.value, through the surrogates that the ops declare; of boxes none, and none
      to images, op and center.
    Raises:
      TypeError: images are not float32, or boxes or a draw have the wrong kind of number.
      ValueError: shapes do not fit; op_ids without 0, repeated or outside the op table.
    """
    if isinstance(images, ImagesWithBoxes):
        _check_boxes(images.boxes, images.valid, images.shape[0])

        def apply_op(name, state, value, center):
            return ops.apply_op_with_boxes(name, *state, value, center)

        known = (*ops.OPS, *ops.BOX_OPS)
        return ImagesWithBoxes(*_apply_differentiable(apply_op, known, images, draws, op_ids))

    def apply_op(name, state, value, center):
        return (ops.apply_op(name, *state, value, center),)

    return _apply_differentiable(apply_op, ops.OPS, (images,), draws, op_ids)[0]


def _apply_differentiable(apply_op, known, state, draws, op_ids):
    """Chains of ops of a state: images, the first part, and what goes with them."""
    _check_images("images", state[0], (jnp.float32,), "float32")
    _check_draws(draws, state[0].shape[0])
    op_ids = tuple(int(op) for op in op_ids)
    if 0 not in op_ids or len(set(op_ids)) < len(op_ids):
        raise ValueError(f"op_ids: got {op_ids}, expected distinct op ids, 0 (Identity) included")
    allowed = {ops.ALL_OPS.index(name) for name in known}
    if not allowed.issuperset(op_ids):
        raise ValueError(f"op_ids: got {op_ids}, expected ids of {', '.join(known)}")
    branches = [functools.partial(apply_op, ops.ALL_OPS[op]) for op in op_ids]

    def augment_one(per_image):
        state, branch, value, center = per_image

        def chain(value):
            def step(state, slot):
                return jax.lax.switch(slot[0], branches, state, *slot[1:]), None

            image, *others = jax.lax.scan(step, state, (branch, value, center))[0]
            return image, others

        # One tangent per value; the image itself is computed once.
        return jax.vmap(
            lambda tangent: jax.jvp(chain, (value,), (tangent,), has_aux=True), out_axes=(None, 0, None)
        )(jnp.eye(value.shape[0], dtype=value.dtype))

    value = jax.lax.stop_gradient(draws.value)
    per_image = (tuple(state), jnp.asarray(_branch_of_op(op_ids))[draws.op], value, draws.center)
    augmented, slopes, others = jax.lax.stop_gradient(_each_image(augment_one, augment_one, per_image))
    return augmented + jnp.einsum("bk...,bk->b...", slopes, draws.value - value), *others


def _branch_of_op(op_ids):
    """The index in op_ids of every op id, int32 [number of ops]; that of Identity where there is none."""
    branch = np.full(len(ops.ALL_OPS), op_ids.index(0), np.int32)
    branch[list(op_ids)] = np.arange(len(op_ids))
    return branch


def _each_image(alone, mapped, per_image):
    """`alone` for one image after the other, which runs only the ops that were drawn, on a CPU."""
    each = {"cpu": functools.partial(jax.lax.map, alone), "default": jax.vmap(mapped)}
    return jax.lax.platform_dependent(per_image, **each)


def _checked(images, draws):
    """The draws in the dtypes of `fast_path`."""
    _check_images("images", images, (jnp.uint8,), "uint8")
    height, width = images.shape[1:3]
    if height * width > 2**22 or height + width >= 2**14:
        raise ValueError(f"images: got shape {images.shape}, expected H * W <= {2**22} and H + W < {2**14}")
    _check_draws(draws, images.shape[0])
    op, value, center = draws
    return Draws(op.astype(jnp.int32), value.astype(jnp.float32), center.astype(jnp.float32))


def _check_images(name, images, dtypes, expected):
    if images.dtype not in dtypes:
        raise TypeError(f"{name}: got dtype {images.dtype}, expected {expected}")
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"{name}: got shape {images.shape}, expected [B, H, W, 3]")


def _check_boxes(boxes, valid, batch):
    for name, array, dtype in (("boxes", boxes, jnp.float32), ("valid", valid, jnp.bool_)):
        if array.dtype != dtype:
            raise TypeError(f"{name}: got dtype {array.dtype}, expected {dtype.__name__}")
    if valid.ndim != 2 or len(valid) != batch or boxes.shape != (*valid.shape, 4):
        raise ValueError(
            f"boxes and valid: got shapes {boxes.shape} and {valid.shape}, expected [{batch}, N, 4] and "
            f"[{batch}, N]"
        )


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
