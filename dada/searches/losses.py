"""What the steps of DADA and DDAS have in common besides `bilevel`: losses, the inner step, metrics."""

import functools
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
    key: jax.Array | None, config: Any, batch_stats: Any, batch: sgd.Batch, axis_name: str | None = None
) -> Callable[[Any], tuple[jax.Array, jax.Array]]:
    """Cross-entropy of a batch that no policy has touched: params -> ([B] losses, accuracy []).

    Args:
      key: of networks that draw noise.
      config: has `apply`, as in `training_losses`, and `mean` and `std`, per channel, of images in [0, 1].
      batch_stats: running statistics; the batch has its own.
      batch: images uint8 [B, H, W, 3] and labels; this device's part.
      axis_name: mapped axis over which the batch is divided.
    """
    images = augment.normalize(batch.images, config.mean, config.std)
    of_batch = training_losses(config.apply, batch_stats, batch.labels, axis_name)

    def losses(params):
        values, (_, accuracy) = of_batch(params, images, key)
        return values, accuracy

    return losses


def inner_step(config: Any, train: sgd.TrainState, learning_rate: jax.Array, **more) -> Callable:
    """The update of the network: gradient -> (theta', momentum); `more` goes to `sgd.sgd_update`."""
    names = ("weight_decay", "momentum_decay", "clip_norm")
    settings = {name: getattr(config, name) for name in names} | more
    return functools.partial(
        sgd.sgd_update, train.params, train.momentum, learning_rate=learning_rate, **settings
    )


def metrics(
    train: tuple[jax.Array, jax.Array], valid: tuple[jax.Array, jax.Array], axis_name: str | None, **more
) -> dict[str, jax.Array]:
    """Loss of the whole batch and accuracy of this device's part, of both batches, and `more` as it is."""
    parts = {"train": train, "valid": valid}
    accuracies = sgd.mean_of_devices({name: accuracy for name, (_, accuracy) in parts.items()}, axis_name)
    return {
        **{f"{name}_loss": loss for name, (loss, _) in parts.items()},
        **{f"{name}_accuracy": accuracy for name, accuracy in accuracies.items()},
        **more,
    }
