"""The validation side of a bi-level step: the checks of both batches, and the validation gradient."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from dada import augment, train_state
from dada.train_state import Batch


def check_batches(train_batch: Batch, valid_batch: Batch) -> None:
    """Raises AssertionError unless both have images uint8 [B, H, W, 3] and labels int32 [B]."""
    for batch in (train_batch, valid_batch):
        chex.assert_rank([batch.images, batch.labels], [4, 1])
        chex.assert_equal_shape_prefix([batch.images, batch.labels], 1)
        chex.assert_type([batch.images, batch.labels], [jnp.uint8, jnp.int32])


def gradient(
    apply: Callable,
    params: Any,
    batch: Batch,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    axis_name: str | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
    """v = grad V(theta'), the gradient of the mean loss of un-augmented images at the unrolled weights.

    Args:
      apply: (params, normalised images) -> logits [B, C].
      params: theta'.
      batch: images uint8 [B, H, W, 3] and labels; this device's part with `axis_name`.
      mean, std: per channel, of images in [0, 1].
      axis_name: mapped axis over which the batch is divided.

    Returns:
      (v, like `params`; `valid_loss` and `valid_accuracy`), all of the whole batch.
    """
    images = augment.normalize(batch.images, mean, std)

    def loss(params):
        logits = apply(params, images)
        each = train_state.cross_entropy(logits, batch.labels)
        return train_state.mean_of_devices(jnp.mean(each), axis_name), logits

    (value, logits), found = jax.value_and_grad(loss, has_aux=True)(params)
    right = train_state.accuracy(logits, batch.labels)
    metrics = {"valid_loss": value, "valid_accuracy": train_state.mean_of_devices(right, axis_name)}
    return train_state.mean_of_devices(found, axis_name), metrics
