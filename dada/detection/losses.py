"""The loss of a detector, image by image.

    l_i = (sum of the focal losses of image i + sum of |deltas - targets| over its positives) / max(1, n_i)

with n_i the positives of image i, the anchors that have to find a box. No image enters the loss of another,
so that a gradient with respect to the parameters can be told apart by images.

Reference: Lin et al. 2017, arXiv:1708.02002; the normaliser of torchvision, L1 of MMDetection.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from . import assignment, box_coding

ALPHA = 0.25  # weight of the right class; 1 - alpha weighs the wrong ones


def per_image(
    class_logits: jax.Array,
    box_deltas: jax.Array,
    anchors: jax.Array,
    boxes: jax.Array,
    labels: jax.Array,
    valid: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Loss of each image, and what it consists of.

    Args:
      class_logits: [B, A, C], floating.
      box_deltas: [B, A, 4], floating.
      anchors: [A, 4], in the order of the outputs.
      boxes: [B, N, 4], N at least 1; valid ones of positive width and height.
      labels: integer [B, N]; one of a valid box that an anchor has to find, outside [0, C), gives NaN.
      valid: bool [B, N].
    Returns:
      ([B] losses, {"class_loss", "box_loss", "positives"}), each [B]; a loss is the sum of the first two.
    Gradient: exact in all modes, to outputs and boxes; none through which anchors are positive.
    Raises:
      TypeError: labels are not integers, or valid is not bool.
      ValueError: shapes that do not fit.
    """
    _check(class_logits, box_deltas, anchors, boxes, labels, valid)
    # One image at a time: a table of anchors and boxes for each at once would be the largest array of a step.
    slots = jax.lax.map(lambda image: assignment.assign(anchors, *image), (boxes, valid))
    is_positive = slots >= 0
    taken = jnp.maximum(slots, 0)
    count = jnp.sum(is_positive, axis=1).astype(class_logits.dtype)

    found = jnp.take_along_axis(labels, taken, axis=1)
    is_class = is_positive[..., None] & (found[..., None] == jnp.arange(class_logits.shape[-1]))
    class_losses = jnp.sum(focal(class_logits, is_class), axis=-1)
    class_losses = jnp.where(slots == assignment.IGNORED, 0.0, class_losses)
    is_unknown = is_positive & ~jnp.any(is_class, axis=-1)
    class_losses = jnp.where(is_unknown, jnp.nan, class_losses)

    # What is no positive gets its own anchor to find: the logarithm of garbage would reach the gradient.
    targets = jnp.take_along_axis(boxes, taken[..., None], axis=1)
    targets = box_coding.encode(anchors, jnp.where(is_positive[..., None], targets, anchors))
    box_losses = jnp.sum(jnp.abs(box_deltas - targets), axis=-1)
    box_losses = jnp.where(is_positive, box_losses, 0.0)

    class_loss, box_loss = (
        jnp.sum(losses, axis=1) / jnp.maximum(count, 1.0) for losses in (class_losses, box_losses)
    )
    return class_loss + box_loss, {"class_loss": class_loss, "box_loss": box_loss, "positives": count}


def of_batch(
    anchors: Callable[[tuple[int, int]], Any],
    apply: Callable,
    params: Any,
    batch_stats: Any,
    images: Any,
    labels: jax.Array,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """`per_image` in the form in which the searches and the training step want a task.

    Args:
      anchors: from the (height, width) of images to the [A, 4] of the network.
      apply: a detector, (params, batch_stats, images, is_training, key, axis_name=) ->
        ((class logits, box deltas), batch_stats).
      params, batch_stats: its parameters and running statistics.
      images: has `images` [B, H, W, 3], normalised, and their `boxes` and `valid`.
      labels: integer [B, N].
      key: typed key for networks that draw random numbers.
      axis_name: mapped axis over which the batch is divided.
    Returns:
      ([B] losses, (new running statistics, means over images of what `per_image` says of them)).
    Gradient: as of `per_image`, through the network in training mode.
    Raises: as `per_image`.
    """
    outputs, new_stats = apply(params, batch_stats, images.images, True, key, axis_name=axis_name)
    of_network = anchors(images.images.shape[1:3])
    losses, parts = per_image(*outputs, of_network, images.boxes, labels, images.valid)
    return losses, (new_stats, jax.tree.map(jnp.mean, parts))


def focal(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Focal loss of each logit, alpha_t (1 - p_t)^2 (-log p_t), with p_t the probability of the target.

    Args:
      logits: floating, any shape.
      targets: bool, same shape.
    Returns:
      Array of that shape.
    Gradient: exact, of every order, for logits of any size.
    Reference: Lin et al. 2017, arXiv:1708.02002, equation 5, with gamma = 2.
    """
    wrong = jnp.where(targets, -logits, logits)  # logit of 1 - p_t
    weight = jnp.where(targets, ALPHA, 1.0 - ALPHA)
    return weight * jnp.square(jax.nn.sigmoid(wrong)) * jax.nn.softplus(wrong)


def _check(class_logits, box_deltas, anchors, boxes, labels, valid):
    if not jnp.issubdtype(labels.dtype, jnp.integer) or valid.dtype != bool:
        got = f"{labels.dtype} and {valid.dtype}"
        raise TypeError(f"losses: expected integer labels and valid of dtype bool, got {got}")
    batch, num_anchors = class_logits.shape[:2]
    expected = {
        "class_logits": (batch, num_anchors, class_logits.shape[-1]),
        "box_deltas": (batch, num_anchors, 4),
        "anchors": (num_anchors, 4),
        "boxes": (batch, max(1, labels.shape[-1]), 4),
        "labels": (batch, labels.shape[-1]),
        "valid": (batch, labels.shape[-1]),
    }
    arrays = (class_logits, box_deltas, anchors, boxes, labels, valid)
    for (name, shape), array in zip(expected.items(), arrays):
        if array.shape != shape:
            raise ValueError(f"losses: expected {name} {list(shape)}, got {list(array.shape)}")
