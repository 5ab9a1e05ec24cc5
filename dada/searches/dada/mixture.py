"""Augmentation by a relaxed policy of slots: op outputs mixed with Gumbel-softmax weights, not one drawn.

    x <- x + b_j (sum_m S_jm op_m(x) - x)   for the slots j = 1, 2 of the drawn sub-policy

with S = softmax(z / T) and b = sigmoid(z / T) from the latents of the draw (DADA, section 3.2). With
`hard` the values are one-hot and 0 or 1 and only the gradient is relaxed, so the images are those of
the discrete path. Every op of the space is computed in each slot, which is what a relaxation is.
"""

import functools

import jax
import jax.numpy as jnp

from ... import ops
from ...gradients import relaxation
from . import space as policy_space


def _apply_op(space, row, images, level, sign, center):
    """One op of the space on a batch, with a level and a sign for each image."""
    values = ops.level_to_value(space, jnp.full(level.shape, row), level, sign)
    return jax.vmap(functools.partial(ops.apply_op, space.rows[row].op))(images, values, center)


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
      draws: [B] draws of `policy_space`.
      keys: [B] typed keys that the draws were made with.
      temperature: [] > 0.
      images: float32 [B, H, W, 3] in [0, 1].
      signs: [B, K] of -1 and +1.
      centers: [B, K, 2] in pixels.
      hard: discrete values with relaxed gradients (straight-through) instead of mixtures.

    Returns:
      float32 [B, H, W, 3]. Gradient: exact for the mixture, in all of `parameters`.
    """
    group, size = draws.group, parameters.application.shape[1]
    latents, _ = jax.vmap(policy_space.latents, (None, 0, 0))(parameters, keys, draws)
    index = jnp.arange(images.shape[0])
    bits = jax.nn.sigmoid(latents.application[index, group] / temperature)
    weights = jax.nn.softmax(latents.op[index, group] / temperature)
    if hard:
        bits = relaxation.straight_through_bits(bits)
        weights = relaxation.straight_through_one_hot(weights)
    levels = jax.nn.sigmoid(parameters.level)[group]
    for slot in range(size):
        outputs = jnp.stack(
            [
                _apply_op(space, row, images, levels[:, slot], signs[:, slot], centers[:, slot])
                for row in range(len(space.rows))
            ]
        )
        mixed = relaxation.weighted_parallel(images, outputs, weights[:, slot])
        bit = bits[:, slot, None, None, None]
        images = (1.0 - bit) * images + bit * mixed  # exact for bits of 0 and 1
    return images
