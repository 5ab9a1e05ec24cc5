"""The gradient of choices, application bits and drawn levels: the score function of what was drawn."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ...gradients import estimators
from . import space as policy_space


def gradient(
    estimator: str,
    log_probability: Callable[[policy_space.Parameters, tuple], jax.Array],
    parameters: tuple[policy_space.Parameters, Any],
    samples: tuple,
    keys: jax.Array,
    costs: jax.Array,
    temperature: jax.Array,
) -> tuple[policy_space.Parameters, Any]:
    """An unbiased estimate of the gradient of the expected cost.

    Args:
      estimator: "relax" or "reinforce".
      log_probability: (policy, sample) -> [], of what was drawn.
      parameters: (policy, control variate of RELAX).
      samples: (draws [S], and what else was drawn, such as levels).
      keys: [S] typed keys that the draws were made with.
      costs: [S], with their baseline subtracted.
      temperature: [] of the relaxed samples that the control variate reads.

    Returns:
      (gradient for the policy, gradient for the control variate; zero with "reinforce").
    """
    policy, control = parameters
    if estimator == "reinforce":
        no_control = jax.tree.map(jnp.zeros_like, control)
        return estimators.reinforce(log_probability, policy, samples, costs), no_control

    def latents(policy, key, sample):
        return tuple(
            policy_space.features(latent, sample[0], temperature)
            for latent in policy_space.drawn_latents(policy, key, sample[0])
        )

    return estimators.relax(
        log_probability, latents, estimators.control_variate, policy, control, samples, keys, costs
    )
