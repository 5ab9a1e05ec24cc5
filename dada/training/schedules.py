"""Learning rates of searches and trainings, as functions of the epochs done, a real number.

Contract: each schedule maps `epoch` (a number or a traced scalar: updates done / updates per epoch, or
that rounded down) to the learning rate of the next update. Warm-up comes first and has its own clock:
the schedule behind it starts when the warm-up ends, so that what it calls epoch 0 is epoch `warmup_epochs`.

Symbols: eta learning rate, t epochs done, W warm-up epochs, m multiplier, T length of the cosine.

Reference: Loshchilov and Hutter 2017, arXiv:1608.03983 (cosine); Goyal et al. 2017, arXiv:1706.02677
(warm-up), in the form that the training code of Fast AutoAugment and DADA has.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

Number = float | jax.Array


def cosine(epoch: Number, *, learning_rate: Number, num_epochs: float, floor: float = 0.0) -> jax.Array:
    """Falls from `learning_rate` to `floor` along half a cosine.

      eta(t) = floor + (eta_0 - floor) (1 + cos(pi t / T)) / 2

    The published recipes set T to all epochs, warm-up included: with a warm-up the last updates are
    then above 0 (0.00062 of a peak of 0.4 for 5 of 200 epochs). T = E - W ends at 0.

    Args:
      epoch: t, at least 0; beyond T the learning rate stays at `floor`.
      learning_rate: eta_0.
      num_epochs: T, above 0.
      floor: eta(T).
    Returns:
      floating scalar.
    """
    share = jnp.clip(epoch / num_epochs, 0.0, 1.0)
    return floor + (learning_rate - floor) * (1.0 + jnp.cos(jnp.pi * share)) / 2.0


def step(
    epoch: Number, *, learning_rate: Number, decay_epochs: Sequence[float], factor: float = 0.1
) -> jax.Array:
    """Multiplies the learning rate by `factor` at each of `decay_epochs`.

    Args:
      epoch: t.
      learning_rate: before the first of them.
      decay_epochs: sequence of numbers.
      factor: above 0.
    Returns:
      floating scalar.
    """
    passed = sum((jnp.asarray(epoch >= boundary, jnp.float32) for boundary in decay_epochs), 0.0)
    return learning_rate * factor**passed


def with_warmup(
    epoch: Number,
    schedule: Callable[[Number], jax.Array],
    *,
    learning_rate: float,
    warmup_epochs: float,
    multiplier: float,
) -> jax.Array:
    """Linear warm-up, then another schedule from its beginning.

      t < W:   eta_0 (1 + (m - 1) t / W), and eta_0 t / W for m = 1
      t >= W:  schedule(t - W), which should start at eta_0 m

    Args:
      epoch: t.
      schedule: function of the epoch.
      learning_rate: eta_0.
      warmup_epochs: W, at least 0; 0 is the schedule itself.
      multiplier: m, at least 1. 1 is a case of its own: the warm-up then starts at 0.
    Returns:
      floating scalar.
    Raises:
      ValueError: a multiplier below 1, or one above 1 without warm-up epochs.
    """
    if multiplier < 1.0 or (multiplier > 1.0 and not warmup_epochs):
        raise ValueError(
            f"warm-up: got multiplier {multiplier} over {warmup_epochs} epochs, expected 1 or more, "
            "and 1 without warm-up epochs"
        )
    if not warmup_epochs:
        return schedule(epoch)
    share = epoch / warmup_epochs
    rising = learning_rate * (share if multiplier == 1.0 else 1.0 + (multiplier - 1.0) * share)
    return jnp.where(epoch < warmup_epochs, rising, schedule(epoch - warmup_epochs))
