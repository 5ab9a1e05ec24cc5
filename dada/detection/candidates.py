"""From the outputs of a detector to the boxes of which `suppression` chooses: fixed shapes, inside jit."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from . import box_coding


class Candidates(NamedTuple):
    """The best pairs of an anchor and a class of each image, the best first.

    Attributes:
      scores: [B, K], probabilities.
      labels: int32 [B, K].
      boxes: [B, K, 4], clipped to the image.
    """

    scores: jax.Array
    labels: jax.Array
    boxes: jax.Array


def best(
    class_logits: jax.Array,
    box_deltas: jax.Array,
    anchors: jax.Array,
    image_size: tuple[int, int],
    count: int = 5000,
) -> Candidates:
    """The candidates of each image, of all levels together.

    Args:
      class_logits: [B, A, C].
      box_deltas: [B, A, 4].
      anchors: [A, 4], in the order of the outputs.
      image_size: (height, width) in pixels.
      count: K, or A * C where that is less.
    Gradient: to scores and boxes; none through the choice.
    """
    batch, num_anchors, num_classes = class_logits.shape
    flat = class_logits.reshape(batch, -1)
    logits, index = jax.lax.top_k(flat, min(count, num_anchors * num_classes))
    anchor = index // num_classes
    deltas = jnp.take_along_axis(box_deltas, anchor[..., None], axis=1)
    boxes = box_coding.decode(jnp.asarray(anchors)[anchor], deltas)
    height, width = image_size
    boxes = jnp.clip(boxes, 0.0, jnp.array([width, height, width, height], boxes.dtype))
    return Candidates(jax.nn.sigmoid(logits), (index % num_classes).astype(jnp.int32), boxes)
