"""Which box an anchor has to find.

An anchor takes the box with which it overlaps most, from an overlap (intersection over union) of 0.5 on;
below 0.4 it is background, between the two it is ignored. So that every box is looked for, all anchors that
overlap most with a box take it, however little that is, if they touch it at all; of several such boxes they
take the last one.

Reference: Lin et al. 2017, arXiv:1708.02002, section 4; the last rule as in MMDetection, but that there a box
which no anchor touches is taken by all.
"""

import jax
import jax.numpy as jnp

POSITIVE_OVERLAP = 0.5
NEGATIVE_OVERLAP = 0.4
BACKGROUND = -1
IGNORED = -2


def assign(anchors: jax.Array, boxes: jax.Array, valid: jax.Array) -> jax.Array:
    """The slot of the box that each anchor has to find, of one image.

    Args:
      anchors: [A, 4].
      boxes: [N, 4], N at least 1.
      valid: bool [N].
    Returns:
      int32 [A]: a slot, or BACKGROUND, or IGNORED.
    Gradient: none.
    """
    boxes = jax.lax.stop_gradient(jnp.where(valid[:, None], boxes, 0.0))
    table = jnp.where(valid, overlaps(anchors, boxes), -1.0)
    # Computed once: where the compiler computes it again for the maximum, the two may differ by rounding.
    table = jax.lax.optimization_barrier(table)
    best, best_overlap = jnp.argmax(table, axis=1), jnp.max(table, axis=1)
    most_of_box = jnp.max(table, axis=0)
    takes = (table == most_of_box) & (most_of_box > 0)
    last_taken = jnp.max(jnp.where(takes, jnp.arange(len(valid)), -1), axis=1)
    conditions = [last_taken >= 0, best_overlap >= POSITIVE_OVERLAP, best_overlap < NEGATIVE_OVERLAP]
    return jnp.select(conditions, [last_taken, best, BACKGROUND], IGNORED).astype(jnp.int32)


def overlaps(first: jax.Array, second: jax.Array) -> jax.Array:
    """Intersection over union [A, N] of boxes [A, 4] of positive area and boxes [N, 4]."""
    first = first[:, None]
    low, high = jnp.maximum(first[..., :2], second[:, :2]), jnp.minimum(first[..., 2:], second[:, 2:])
    intersection = jnp.prod(jnp.maximum(high - low, 0.0), axis=-1)
    areas = [jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1) for boxes in (first, second)]
    return intersection / (areas[0] + areas[1] - intersection)
