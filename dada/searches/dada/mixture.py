"""Augmentation by a relaxed policy: op outputs mixed with Gumbel-softmax weights instead of one op drawn.

    slots   x <- x + b_j (sum_m S_jm op_m(x) - x)            for j = 1, 2 of the drawn sub-policy
    pairs   x <- sum_n S_n y_n,  y_n = second_n(first_n(x)),  each op mixed with its bit as above
    triples the same with y_n = third_n(second_n(first_n(x)))

with S = softmax(z / T) and b = sigmoid(z / T) from the latents of the draw (DADA, section 3.2). With
`hard` the values are one-hot and 0 or 1 and only the gradient is relaxed, so the images are those of
the discrete path. Every alternative is computed, which is what a relaxation is: per image, 2 ops per op of
the space in `slots`, and 2 per pair in `pairs` (210 for 15 ops; 1,365 in `triples`), all of them
applied to the whole batch and differentiated.
"""

import jax
import jax.numpy as jnp

from ... import ops
from ...gradients import relaxation
from . import space as policy_space


def _apply_row(space, row, images, level, sign, center):
    """One op of the space, by traced row, on a batch with a level and sign for each image."""
    rows = jnp.broadcast_to(row, level.shape)
    values = ops.level_to_value(space, rows, level, sign)
    branches = [
        lambda images, values, centers, name=op_row.op: jax.vmap(
            lambda image, value, center: ops.apply_op(name, image, value, center)
        )(images, values, centers)
        for op_row in space.rows
    ]
    return jax.lax.switch(row, branches, images, values, center)


def _mix(bit, images, applied):
    """images where bit is 0, applied where it is 1, exactly."""
    bit = bit[:, None, None, None]
    return (1.0 - bit) * images + bit * applied


def apply(
    space: ops.SearchSpace,
    parameters: policy_space.Parameters,
    draws: policy_space.Draw,
    keys: jax.Array,
    temperature: jax.Array,
    images: jax.Array,
    signs: jax.Array,
    centers: jax.Array,
    *,
    hard: bool,
) -> jax.Array:
    """Mixes the op outputs of every image with its own relaxed sample of the policy.

    Args:
      space: the search space.
      parameters: the policy, as logits.
      draws: [D] draws of `policy_space`, D = B, or 1 for one draw shared by the batch.
      keys: [D] typed keys that the draws were made with.
      temperature: [] > 0.
      images: float32 [B, H, W, 3] in [0, 1].
      signs: [B, K] of -1 and +1.
      centers: [B, K, 2] in pixels.
      hard: discrete values with relaxed gradients (straight-through) instead of mixtures.

    Returns:
      float32 [B, H, W, 3]. Gradient: exact for the mixture, in all of `parameters`.
    """
    batch, size = images.shape[0], parameters.application.shape[1]
    latents, _ = jax.vmap(policy_space.latents, (None, 0, 0))(parameters, keys, draws)
    bits = jax.nn.sigmoid(latents.application / temperature)
    group = draws.group
    count = group.shape[0]
    weights = jax.nn.softmax(latents.op[jnp.arange(count), group] / temperature)
    if hard:
        bits = relaxation.straight_through_bits(bits)
        weights = relaxation.straight_through_one_hot(weights)
    bits = jnp.broadcast_to(bits, (batch, *bits.shape[1:]))
    weights = jnp.broadcast_to(weights, (batch, *weights.shape[1:]))
    levels = jax.nn.sigmoid(parameters.level)

    if weights.shape[1] == 1:
        table = jnp.asarray(policy_space.combinations(len(space.rows), size))

        @jax.checkpoint  # the images of all combinations are recomputed in reverse, not stored
        def add_one(mixture, index):
            one = images
            for slot in range(size):
                level = jnp.broadcast_to(levels[index, slot], (batch,))
                applied = _apply_row(space, table[index, slot], one, level, signs[:, slot], centers[:, slot])
                one = _mix(bits[:, index, slot], one, applied)
            return mixture + weights[:, 0, index][:, None, None, None] * one, None

        return jax.lax.scan(add_one, jnp.zeros_like(images), jnp.arange(table.shape[0]))[0]

    row = jnp.broadcast_to(group, (batch,))
    for slot in range(size):
        outputs = jnp.stack(
            [
                _apply_row(space, index, images, levels[row, slot], signs[:, slot], centers[:, slot])
                for index in range(len(space.rows))
            ]
        )
        mixed = relaxation.weighted_parallel(images, outputs, weights[:, slot])
        images = _mix(bits[jnp.arange(batch), row, slot], images, mixed)
    return images
