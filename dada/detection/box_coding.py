"""Boxes as a network says them: relative to an anchor.

    dx = (x - x_a) / w_a,  dy = (y - y_a) / h_a,  dw = log(w / w_a),  dh = log(h / h_a)

with (x, y) the centre of a box, w and h its sides, and the same with index a for its anchor.

Reference: Girshick et al. 2014, arXiv:1311.2524, appendix C.
"""

import math

import jax
import jax.numpy as jnp

# No side grows or shrinks to more than 1000 / 16 times that of its anchor: the exponential stays finite.
LARGEST_LOG_SIDE = math.log(1000 / 16)


def encode(anchors: jax.Array, boxes: jax.Array) -> jax.Array:
    """Deltas [..., 4] of boxes [..., 4] of positive width and height to anchors [..., 4].

    Gradient: exact; a box without a width or height gives one that is not finite.
    """
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    centers, sides = _centers_and_sides(boxes)
    return jnp.concatenate(
        [(centers - anchor_centers) / anchor_sides, jnp.log(sides / anchor_sides)], axis=-1
    )


def decode(anchors: jax.Array, deltas: jax.Array) -> jax.Array:
    """Boxes [..., 4] of deltas [..., 4] to anchors [..., 4]; dw and dh are clipped to +-log(1000 / 16)."""
    anchor_centers, anchor_sides = _centers_and_sides(anchors)
    centers = anchor_centers + deltas[..., :2] * anchor_sides
    log_sides = jnp.clip(deltas[..., 2:], -LARGEST_LOG_SIDE, LARGEST_LOG_SIDE)
    halves = anchor_sides * jnp.exp(log_sides) / 2
    return jnp.concatenate([centers - halves, centers + halves], axis=-1)


def _centers_and_sides(boxes):
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
