"""From draws and images to augmented images, and the fixed augmentations around them; all batched.

Contract: pure functions that can be traced. `apply_draws` is the fast path of training, uint8 to
uint8; `apply_draws_differentiable` gives the same pixels as float32 and carries gradients to the
values of the draws, for searches. B images, K ops per image, applied in the order 0 .. K - 1.

Under `jit` with images divided over devices all functions give the pixels of one device; inside
`shard_map` or `pmap`, `apply_draws` moves nothing between devices. With `axis_name` random_crop, random_flip
and random_cutout draw for the whole batch and use this device's part: the same key on all devices.

Copy alone: with sampling.py, fast_path.py, op_table.py and what they import; normalize, random_crop,
random_flip and random_cutout need image_keys.py only.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from dada import fast_path, image_keys, op_table
from dada.sampling import Draws


def apply_draws(
    images: chex.Array, draws: Draws, *, op_ids: tuple[int, ...] | None = None
) -> chex.Array:
    """Applies to every image its own K ops, equal to Pillow on every pixel.

    Rotate90 needs square images; on others its result is undefined. The centre of a draw is read by
    cutouts and crops only.

    Args:
      images: uint8 [B, H, W, 3]; grey images as three equal channels. H * W <= 2**22, H + W < 2**14.
      draws: op int [B, K], value float [B, K], center float [B, K, 2].
      op_ids: static; the op ids that draws may hold, None for all; an op that is not among them may do
        nothing. On an accelerator every image pays for all of them: pass `op_table.op_ids(space)`.

    Returns:
      uint8 [B, H, W, 3].

    Raises:
      TypeError: images are not uint8, or a draw has the wrong kind of number.
      ValueError: shapes do not fit.
    """
    _check_images("images", images, (jnp.uint8,), "uint8")
    height, width = images.shape[1:3]
    if height * width > 2**22 or height + width >= 2**14:
        raise ValueError(
            f"images: got shape {images.shape}, expected H * W <= {2**22} and H + W < {2**14}"
        )
    _check_draws(draws, images.shape[0])
    return fast_path.apply(
        images,
        draws.op.astype(jnp.int32),
        draws.value.astype(jnp.float32),
        draws.center.astype(jnp.float32),
        tuple(range(len(op_table.ALL_OPS))) if op_ids is None else tuple(op_ids),
    )


def apply_draws_differentiable(
    images: chex.Array, draws: Draws, op_ids: tuple[int, ...]
) -> chex.Array:
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
    if not all(0 <= op < len(op_table.OPS) for op in op_ids):
        raise ValueError(f"op_ids: got {op_ids}, expected ids in [0, {len(op_table.OPS)})")
    branch_of_op = np.full(len(op_table.OPS), op_ids.index(0), np.int32)
    branch_of_op[list(op_ids)] = np.arange(len(op_ids))
    branches = [
        lambda image, value, center, name=op_table.OPS[op]: op_table.apply_op(
            name, image, value, center
        )
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
            per_image,
            cpu=functools.partial(jax.lax.map, augment_one),
            default=jax.vmap(augment_one),
        )
    )
    return augmented + jnp.einsum("bk...,bk->b...", slopes, draws.value - value)


def normalize(images: chex.Array, mean: chex.Array, std: chex.Array) -> chex.Array:
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
    key: chex.PRNGKey, images: chex.Array, padding: int = 4, *, axis_name: str | None = None
) -> chex.Array:
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


def random_flip(
    key: chex.PRNGKey, images: chex.Array, *, axis_name: str | None = None
) -> chex.Array:
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
    key: chex.PRNGKey, images: chex.Array, length: int, *, axis_name: str | None = None
) -> chex.Array:
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
            raise TypeError(
                f"draws.{name}: got dtype {array.dtype}, expected {kind.__name__}"
            )
    shape = draws.op.shape
    if len(shape) != 2 or shape[0] != batch:
        raise ValueError(f"draws.op: got shape {shape}, expected [{batch}, K]")
    if draws.value.shape != shape or draws.center.shape != (*shape, 2):
        raise ValueError(
            f"draws: got value {draws.value.shape} and center {draws.center.shape}, expected "
            f"{shape} and {(*shape, 2)}"
        )


def _check_random(key, images):
    if not jnp.issubdtype(getattr(key, "dtype", None), jax.dtypes.prng_key):
        raise TypeError(f"key: got {type(key).__name__}, expected a typed key of jax.random.key")
    if key.shape != () or images.ndim != 4:
        raise ValueError(
            f"got key of shape {key.shape} and images of shape {images.shape}, expected one key and "
            "images [B, H, W, C]"
        )
