"""The plain training step: SGD, loss, and the state that they carry.

Contract: everything is a pure function of its arguments. Images come in augmented and normalised; `apply` is
a network's (params, batch_stats, images, is_training, key, axis_name=) -> (logits, new_batch_stats). SGD is
PyTorch's, weight decay on all parameters included, so that a published learning rate means the same here. The
searches share `sgd_update`: their unrolled weights ARE the next iterate.

Symbols: theta parameters, B momentum, g gradient, eta learning rate, mu momentum decay, lambda weight decay.

With `axis_name` the step runs under pmap or shard_map on a part of the batch. The mean over devices
is taken of the loss and again of its gradient, and both are needed: pmap, and shard_map without
`check_vma`, leave the gradient to be averaged; shard_map with `check_vma` has summed it already, so
that only the mean inside the loss counts (averaging equal numbers changes nothing).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Batch(NamedTuple):
    """images [B, H, W, 3] uint8 and labels [B] int32; or `augment.ImagesWithBoxes` and labels [B, N]."""

    images: Any
    labels: jax.Array


class TrainState(NamedTuple):
    """What a training run carries from step to step.

    Attributes:
      step: int32 scalar, number of updates done.
      params: network parameters theta, any pytree of floating arrays.
      batch_stats: running statistics of batch norm.
      momentum: B, same tree as params.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    momentum: Any


def init(params: Any, batch_stats: Any) -> TrainState:
    """State before the first step of a network with these parameters and running statistics: no momentum."""
    return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, jax.tree.map(jnp.zeros_like, params))


def sgd_update(
    params: Any,
    momentum: Any,
    gradient: Any,
    *,
    learning_rate: float | jax.Array,
    weight_decay: Any,
    momentum_decay: float = 0.9,
    clip_norm: float | None = None,
    nesterov: bool = False,
) -> tuple[Any, Any]:
    """One step of stochastic gradient descent as PyTorch takes it.

      h  = g * min(1, clip_norm / (|g| + 1e-6)) + lambda theta
      B' = mu B + h
      theta' = theta - eta B'                 (nesterov: theta - eta (h + mu B'))

    Args:
      params: theta, pytree of floating arrays.
      momentum: B, same tree.
      gradient: g, same tree.
      learning_rate: eta, number or scalar array.
      weight_decay: lambda, a number for every parameter, or a tree of numbers that is params or
        the upper part of it.
      momentum_decay: mu.
      clip_norm: largest 2-norm of the whole gradient, above 0; None for no clipping.
      nesterov: Python bool.
    Returns:
      (theta', B'), in the dtypes of params.
    Gradient: exact, the clip factor included; 0 of the clip factor at g = 0.
    Raises:
      ValueError: clip_norm is not above 0, or the trees differ.
    Reference: Sutskever et al. 2013 (momentum), with PyTorch's placement of the learning rate.
    """
    if clip_norm is not None:
        gradient = _clip(gradient, clip_norm)

    def decayed(decay, theta, g):
        return g + jnp.asarray(decay, theta.dtype) * theta

    def next_momentum(b, h):
        return jnp.asarray(momentum_decay, h.dtype) * b + h

    def descend(theta, direction):
        return theta - jnp.asarray(learning_rate, theta.dtype) * direction

    # A number is a tree of one leaf, and so the upper part of every tree.
    direction = jax.tree.map(
        lambda decay, *parts: jax.tree.map(functools.partial(decayed, decay), *parts),
        weight_decay,
        params,
        gradient,
    )
    new_momentum = jax.tree.map(next_momentum, momentum, direction)
    # Nesterov's direction h + mu B' has the form of the momentum update, B' in the place of B.
    step = jax.tree.map(next_momentum, new_momentum, direction) if nesterov else new_momentum
    return jax.tree.map(descend, params, step), new_momentum


def cross_entropy(logits: jax.Array, labels: jax.Array, *, label_smoothing: float = 0.0) -> jax.Array:
    """Negative log-probability of the right class, per example.

      l_i = log sum_c exp(logits_ic) - (1 - epsilon) logits_i,label_i - epsilon mean_c logits_ic

    Args:
      logits: [B, C], floating.
      labels: [B], integer in [0, C); another value gives NaN.
      label_smoothing: epsilon in [0, 1], Python number; share of the target that is spread evenly
        over all C classes.
    Returns:
      [B], dtype of the logits.
    Raises:
      TypeError: labels are not integers.
      ValueError: shapes that do not fit.
    """
    _check_logits(logits, labels, "cross_entropy")
    # The shift leaves the value unchanged, so no gradient need flow through the maximum.
    shifted = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    chosen = shifted.at[jnp.arange(labels.shape[0]), labels].get(
        mode="fill", fill_value=jnp.nan, wrap_negative_indices=False
    )
    if label_smoothing:
        chosen = (1.0 - label_smoothing) * chosen + label_smoothing * jnp.mean(shifted, axis=-1)
    return jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - chosen


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of examples whose largest logit is that of the right class.

    Args:
      logits: [B, C], floating.
      labels: [B], integer in [0, C).
    Returns:
      float32 scalar in [0, 1].
    Raises:
      TypeError: labels are not integers.
      ValueError: shapes that do not fit.
    """
    _check_logits(logits, labels, "accuracy")
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def classification_losses(
    apply: Callable[..., tuple[jax.Array, Any]],
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    labels: jax.Array,
    key: jax.Array | None = None,
    axis_name: str | None = None,
    *,
    label_smoothing: float = 0.0,
) -> tuple[jax.Array, tuple[Any, dict[str, jax.Array]]]:
    """Cross-entropy of every example in training: the task of a network, unless another one is given.

    Args:
      apply: the network.
      params, batch_stats: its parameters and running statistics.
      images: what `train_step` has; a task of another kind may have more than images here.
      labels: [B], integer.
      key: typed PRNG key for networks that draw random numbers, consumed; one per device.
      axis_name: mapped axis over which the batch is divided, or None.
      label_smoothing: see `cross_entropy`.
    Returns:
      ([B] losses, (new running statistics, scalars by name: {"accuracy"})), of this device.
    """
    logits, new_stats = apply(params, batch_stats, images, True, key, axis_name=axis_name)
    losses = cross_entropy(logits, labels, label_smoothing=label_smoothing)
    return losses, (new_stats, {"accuracy": accuracy(logits, labels)})


def train_step(
    apply: Callable[..., tuple[jax.Array, Any]],
    state: TrainState,
    images: Any,
    labels: jax.Array,
    learning_rate: float | jax.Array,
    *,
    losses: Callable = classification_losses,
    weight_decay: Any,
    momentum_decay: float = 0.9,
    clip_norm: float | None = None,
    nesterov: bool = False,
    key: jax.Array | None = None,
    axis_name: str | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update on the mean loss of a batch.

    Args:
      apply: the network; set its own options with functools.partial.
      state: TrainState.
      images: [B, H, W, 3], floating, augmented and normalised; this device's part with `axis_name`.
      labels: [B], integer.
      learning_rate: eta of this step.
      losses: of the examples, in the form of `classification_losses`, which says what images and labels are.
      weight_decay: see `sgd_update`, like momentum_decay, clip_norm and nesterov.
      key: typed PRNG key for networks that draw random numbers, consumed; one per device.
      axis_name: mapped axis over which the batch is divided, or None.
    Returns:
      (new TrainState, {"loss"} and the scalars of `losses`): before the update, over all devices.
    """

    def mean_loss(params):
        values, aux = losses(apply, params, state.batch_stats, images, labels, key, axis_name)
        return mean_of_devices(jnp.mean(values), axis_name), aux

    (loss, (batch_stats, scalars)), gradient = jax.value_and_grad(mean_loss, has_aux=True)(state.params)
    params, momentum = sgd_update(
        state.params,
        state.momentum,
        mean_of_devices(gradient, axis_name),
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        momentum_decay=momentum_decay,
        clip_norm=clip_norm,
        nesterov=nesterov,
    )
    metrics = {"loss": loss, **mean_of_devices(scalars, axis_name)}
    return TrainState(state.step + 1, params, batch_stats, momentum), metrics


def mean_of_devices(tree: Any, axis_name: str | None) -> Any:
    """Mean of every leaf over a mapped axis; the tree itself where `axis_name` is None."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _clip(gradient, clip_norm):
    if clip_norm <= 0:
        raise ValueError(f"sgd_update: expected clip_norm above 0 or None, got {clip_norm}")
    squared = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
    # sqrt has no derivative at 0: a zero gradient takes the other branch, whose derivative is 0.
    is_zero = squared == 0.0
    norm = jnp.where(is_zero, 0.0, jnp.sqrt(jnp.where(is_zero, 1.0, squared)))
    factor = jnp.minimum(1.0, clip_norm / (norm + 1e-6))
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), gradient)


def _check_logits(logits, labels, name):
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integer labels, got dtype {labels.dtype}")
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(
            f"{name}: expected logits [B, C] and labels [B], got {logits.shape} and {labels.shape}"
        )
