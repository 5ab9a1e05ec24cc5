"""Losses of the network in a bi-level step, one for each image, in the form that `bilevel` takes."""

from collections.abc import Callable
from typing import Any

import jax

from .. import augment
from ..training import sgd


def training_losses(
    apply: Callable, batch_stats: Any, labels: jax.Array, axis_name: str | None = None
) -> Callable[[Any, jax.Array, jax.Array], tuple[jax.Array, tuple[Any, jax.Array]]]:
    """Cross-entropy of augmented images under the statistics of their batch.

    Args:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      batch_stats: running statistics before the step.
      labels: int32 [B].
      axis_name: mapped axis over which the batch is divided.

    Returns:
      (params, normalised images [B, H, W, 3], key of networks that draw noise) ->
      ([B] losses, (next running statistics, accuracy [])).
    """

    def losses(params, images, key):
        logits, stats = apply(params, batch_stats, images, True, key, axis_name=axis_name)
        return sgd.cross_entropy(logits, labels), (stats, sgd.accuracy(logits, labels))

    return losses


def clean_losses(
    apply: Callable[[Any, jax.Array], jax.Array],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    batch: sgd.Batch,
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Cross-entropy of a batch that no policy has touched.

    Args:
      apply: (params, normalised images) -> logits [B, C].
      mean, std: per channel, of images in [0, 1].
      batch: images uint8 [B, H, W, 3] and labels; this device's part.

    Returns:
      params -> ([B] losses, accuracy []).
    """
    images = augment.normalize(batch.images, mean, std)

    def losses(params):
        logits = apply(params, images)
        return sgd.cross_entropy(logits, batch.labels), sgd.accuracy(logits, batch.labels)

    return losses
