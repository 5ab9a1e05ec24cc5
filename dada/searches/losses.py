"""What the steps of DADA and DDAS have in common besides `bilevel`: losses, the inner step, metrics."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from .. import augment
from ..training import sgd


def training_losses(
    config: Any, batch_stats: Any, labels: jax.Array, axis_name: str | None = None
) -> Callable[[Any, Any, jax.Array], tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]]:
    """Losses of augmented images under the statistics of their batch.

    Args:
      config: has `apply`, a network, and `losses`, in the form of `sgd.classification_losses`.
      batch_stats: running statistics before the step.
      labels: of the batch.
      axis_name: mapped axis over which the batch is divided.

    Returns:
      (params, normalised images, key of networks that draw noise) ->
      ([B] losses, (next running statistics, scalars by name, such as the accuracy)).
    """

    def losses(params, images, key):
        return config.losses(config.apply, params, batch_stats, images, labels, key, axis_name)

    return losses


def clean_losses(
    key: jax.Array | None, config: Any, batch_stats: Any, batch: sgd.Batch, axis_name: str | None = None
) -> Callable[[Any], tuple[jax.Array, dict[str, jax.Array]]]:
    """Losses of a batch that no policy has touched: params -> ([B] losses, scalars by name).

    Args:
      key: of networks that draw noise.
      config: as of `training_losses`, with `mean` and `std`, per channel, of images in [0, 1].
      batch_stats: running statistics; the batch has its own.
      batch: this device's part.
      axis_name: mapped axis over which the batch is divided.
    """
    images = clean_images(config, batch.images)
    of_batch = training_losses(config, batch_stats, batch.labels, axis_name)

    def losses(params):
        values, (_, scalars) = of_batch(params, images, key)
        return values, scalars

    return losses


def clean_images(config: Any, images: Any) -> Any:
    """Network input of images that no policy has touched.

    Args:
      config: has `mean` and `std`, per channel, of images in [0, 1].
      images: uint8 [B, H, W, 3], perhaps with boxes.

    Returns:
      float32 [B, H, W, 3], normalised, with boxes if there are some. Gradient: none.
    """
    return augment.map_images(lambda images: augment.normalize(images, config.mean, config.std), images)


def inner_step(config: Any, train: sgd.TrainState, learning_rate: jax.Array, **more) -> Callable:
    """The update of the network: gradient -> (theta', momentum); `more` goes to `sgd.sgd_update`."""
    names = ("weight_decay", "momentum_decay", "clip_norm")
    settings = {name: getattr(config, name) for name in names} | more
    return functools.partial(
        sgd.sgd_update, train.params, train.momentum, learning_rate=learning_rate, **settings
    )


def metrics(
    train: tuple[jax.Array, dict], valid: tuple[jax.Array, dict], axis_name: str | None, **more
) -> dict[str, jax.Array]:
    """Loss of the whole batch and scalars of this device's part, of both batches, and `more` as it is."""
    parts = {"train": train, "valid": valid}
    scalars = sgd.mean_of_devices({name: part for name, (_, part) in parts.items()}, axis_name)
    return {
        **{f"{name}_loss": loss for name, (loss, _) in parts.items()},
        **{f"{name}_{kind}": value for name, part in scalars.items() for kind, value in part.items()},
        **more,
    }
