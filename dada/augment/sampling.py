"""From a key and a policy to draws: which op, which value, which centre or corner for every image.

Draws are arrays and nothing else, so that they can be logged, replayed and tested apart from the
pixels. B images, K ops in a row per image, R rows of the search space. Policies of all three kinds
end in the same form; a sequence with fewer than K ops is filled up with op 0 (Identity).

All functions are pure and can be traced; in `sample` everything but the key (and the epoch) is static.
"""

import math
import operator

import jax
import jax.numpy as jnp

from .. import ops
from ..ops import Draws, crop
from ..policies.policy import Policy, space, validate

# Uniform numbers that a random op needs.
NOISE_SIZE = 4
# RandCutout60 draws its centre in a window of this side in the middle of the image.
_CENTER_WINDOW = 256
# RandResizeCrop: share of the area, and logarithm of width over height.
_AREA_SHARE = (0.08, 1.0)
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))


def random_signs(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns -1 or +1 with equal probability, float32 [*shape]."""
    return jax.random.rademacher(key, shape, jnp.float32)


def random_centers(key: jax.Array, shape: tuple[int, ...], image_size: tuple[int, int]) -> jax.Array:
    """Returns points uniform on [0, H) x [0, W), float32 [*shape, 2] as (row, column) in pixels.

    The official DADA code draws from (1, H] x (1, W] instead, half a pixel off centre.
    """
    return jax.random.uniform(key, (*shape, 2)) * jnp.array(image_size, jnp.float32)


def assemble_draws(
    search_space: ops.SearchSpace,
    row: jax.Array,
    applied: jax.Array,
    level: jax.Array,
    sign: jax.Array,
    center: jax.Array,
    *,
    noise: jax.Array | None = None,
    image_size: tuple[int, int] | None = None,
) -> Draws:
    """Turns rows and levels into draws.

    Args:
      search_space: static.
      row: int [B, K], row of the search space.
      applied: bool [B, K]; where false the draw is op 0 with value 0.
      level: float [B, K] in [0, 1].
      sign: float [B, K], -1 or +1; ignored by rows without a random sign.
      center: float [B, K, 2], (row, column) in pixels, for the cutouts that have a level.
      noise: float [B, K, NOISE_SIZE], uniform on [0, 1), of which random ops are made; may be missing
        where the space has none.
      image_size: static, (H, W) in pixels; the same.
    Returns:
      Draws of [B, K].
    Gradient: value is linear in level; zero where nothing is applied.
    Raises:
      TypeError: row is not of an integer type, or applied not boolean.
      ValueError: shapes do not fit, or the space has random ops and there is no noise for them.
    """
    row, applied, center = jnp.asarray(row), jnp.asarray(applied), jnp.asarray(center)
    if applied.dtype != jnp.bool_:
        raise TypeError(f"applied: got dtype {applied.dtype}, expected bool")
    if row.ndim != 2 or applied.shape != row.shape or center.shape != (*row.shape, 2):
        raise ValueError(
            "row, applied and center: expected shapes [B, K], [B, K] and [B, K, 2], got "
            f"{row.shape}, {applied.shape} and {center.shape}"
        )
    value = ops.level_to_value(search_space, row, level, sign)
    op = jnp.asarray(ops.row_op_ids(search_space))[row]
    draws = Draws(
        op=jnp.where(applied, op, 0), value=jnp.where(applied, value, 0.0), center=center.astype(jnp.float32)
    )
    names = ops.random_ops(search_space)
    if not names:
        return draws
    if noise is None or image_size is None or noise.shape != (*row.shape, NOISE_SIZE):
        raise ValueError(
            f"search space {search_space.name!r} has the random ops {', '.join(names)}: expected an "
            f"image size and noise of shape {(*row.shape, NOISE_SIZE)}, got {image_size} and "
            f"{None if noise is None else noise.shape}"
        )
    return _draw_random_ops(draws, noise.astype(jnp.float32), image_size)


def _draw_random_ops(draws, noise, image_size):
    """Replaces what the random ops hold by what they do; other draws stay as they are."""
    op, value, center = draws
    extent = jnp.array(image_size, jnp.float32)
    place = noise[..., :2]  # in the unit square

    def is_op(name):
        return op == ops.ALL_OPS.index(name)

    margin = jnp.maximum(extent - _CENTER_WINDOW, 0.0) / 2
    corner, size = _draw_windows(place, noise[..., 2], noise[..., 3], image_size)
    for name, drawn in (
        ("RandCutout", place * extent),
        ("RandCutout60", margin + place * (extent - 2 * margin)),
        ("RandCrop", jnp.floor(place * (2 * crop.CROP_PADDING + 1)) - crop.CROP_PADDING),
        ("RandResizeCrop", corner),
    ):
        center = jnp.where(is_op(name)[..., None], drawn, center)
    size_number = (size[..., 0] - 1) * image_size[1] + size[..., 1] - 1
    value = jnp.where(is_op("RandResizeCrop"), size_number, value)
    nothing = is_op("RandFlip") & (noise[..., 0] >= 0.5)
    return Draws(jnp.where(nothing, 0, op), jnp.where(nothing, 0.0, value), center)


def _draw_windows(place, area_noise, ratio_noise, image_size):
    """Corner and size of RandResizeCrop, whole numbers in float32 [..., 2] each.

    One attempt, as in the released code of DeepAA (torchvision makes ten): a window that does not fit
    is replaced by the largest one in the middle whose form is allowed.
    """
    height, width = image_size
    extent = jnp.array(image_size, jnp.float32)

    def between(bounds, noise):
        return bounds[0] + noise * (bounds[1] - bounds[0])

    area = height * width * between(_AREA_SHARE, area_noise)
    ratio = jnp.exp(between(_LOG_RATIO, ratio_noise))
    size = jnp.round(jnp.sqrt(jnp.stack([area / ratio, area * ratio], axis=-1)))
    fits = jnp.all((size >= 1) & (size <= extent), axis=-1, keepdims=True)
    low, high = (math.exp(bound) for bound in _LOG_RATIO)
    largest = [min(height, round(width / low)), min(width, round(height * high))]
    largest = jnp.array(largest, jnp.float32)
    corner = jnp.where(fits, jnp.floor(place * (extent - size + 1)), jnp.floor((extent - largest) / 2))
    return corner, jnp.where(fits, size, largest)


def _choose(key, probability, shape):
    """Indices drawn from probability [M]: one uniform number each, inverse of the running sum."""
    return jax.random.choice(key, probability.shape[0], shape, p=probability)


def _draw_sub_policies(content, choice_key, apply_key, batch_size):
    count = len(content.row)
    if content.weight is None:
        index = jax.random.randint(choice_key, (batch_size,), 0, count)
    else:
        weight = content.weight / content.weight.sum()
        index = _choose(choice_key, jnp.asarray(weight, jnp.float32), (batch_size,))
    probability = jnp.asarray(content.probability, jnp.float32)[index]
    row = jnp.asarray(content.row)[index]
    applied = jax.random.bernoulli(apply_key, probability) & (row >= 0)
    return jnp.maximum(row, 0), applied, jnp.asarray(content.level, jnp.float32)[index]


def _draw_layers(content, choice_key, batch_size):
    keys = jax.random.split(choice_key, len(content.probability))
    probability = jnp.asarray(content.probability, jnp.float32)
    action = jax.vmap(lambda key, p: _choose(key, p, (batch_size,)))(keys, probability).T
    level = jnp.asarray(content.level, jnp.float32)[action]
    return jnp.asarray(content.row)[action], jnp.ones(action.shape, bool), level


def _draw_schedule(content, choice_key, apply_key, batch_size, epoch):
    shape = (batch_size, content.num_ops)
    candidate = _choose(choice_key, jnp.asarray(content.p_o, jnp.float32)[epoch], shape)
    p_tp = jnp.asarray(content.p_tp, jnp.float32)[epoch]
    augmented = jax.random.bernoulli(apply_key, p_tp, (batch_size, 1))  # all ops or none
    level = jnp.asarray(content.level, jnp.float32)[candidate]
    return jnp.asarray(content.row)[candidate], jnp.broadcast_to(augmented, shape), level


def sample(
    key: jax.Array,
    policy: Policy,
    batch_size: int,
    image_size: tuple[int, int],
    epoch: int | jax.Array | None = None,
) -> Draws:
    """Draws from a policy of any kind, independently for every image.

    sub_policies: a sub-policy by weight, then each of its ops with its own probability.
    layers: one action per layer (DeepAA). schedule: with probability p_tp[epoch] `num_ops` ops
    from p_o[epoch], with replacement, else none (DDAS).

    Args:
      key: random key, consumed.
      policy: static; its arrays become constants of the trace.
      batch_size: static, B.
      image_size: static, (H, W) in pixels.
      epoch: integer in [0, E), only read by a schedule; a traced one is not checked.
    Returns:
      Draws [B, K].
    Raises:
      ValueError: bad policy or size, or a schedule without an epoch.
    """
    validate(policy)
    sizes = (batch_size, *image_size)
    if len(sizes) != 3 or not all(operator.index(size) > 0 for size in sizes):
        raise ValueError(
            f"batch_size and image_size: got {batch_size} and {image_size}, "
            "expected B > 0 and (H, W) with H, W > 0"
        )
    # One stream per use.
    choice_key, apply_key, sign_key, center_key, noise_key = jax.random.split(key, 5)
    content = policy.content
    if policy.kind == "sub_policies":
        row, applied, level = _draw_sub_policies(content, choice_key, apply_key, batch_size)
    elif policy.kind == "layers":
        row, applied, level = _draw_layers(content, choice_key, batch_size)
    else:
        num_epochs = len(content.p_tp)
        known = epoch is not None and not isinstance(epoch, jax.core.Tracer)
        if epoch is None or (known and not 0 <= operator.index(epoch) < num_epochs):
            raise ValueError(f"epoch: got {epoch}, expected an integer in [0, {num_epochs})")
        row, applied, level = _draw_schedule(content, choice_key, apply_key, batch_size, epoch)
    sign = random_signs(sign_key, row.shape)
    center = random_centers(center_key, row.shape, image_size)
    noise = jax.random.uniform(noise_key, (*row.shape, NOISE_SIZE))
    return assemble_draws(
        space(policy), row, applied, level, sign, center, noise=noise, image_size=image_size
    )
