"""The score of the paper: the exact one-step gradient, by one JVP for all images (`--score=exact`).

    min_phi V(theta'(phi)),   theta'(phi) = theta - eta (mu B + clip(grad L(theta, phi)) + lambda theta)

Every image draws its own sub-policy; g = grad of the training loss; theta' is the real next iterate; v = grad
of the loss of a fresh validation batch at theta'; u is v pulled back through the step, at unit length: where
nothing is clipped, -v / |v|. One JVP along u scores every image, s_i = -< u, grad l_i >. The cost of image
i's draw is -s_i. Levels follow d(-s)/d(level); choices and application bits follow RELAX, REINFORCE with a
leave-one-out baseline, or a relaxed mixture.

Deviations from the released code, besides those that `search` names:
- RELAX acts on the cost itself, its control variate trained on the variance of that estimator; the released
  one takes the difference of two losses, in which the control variate cancels.
- Every image has its own draw and its own score; the released code has one of both for a batch.
- Levels follow the derivative of the op; there, of "image + level", the same for every op.
- The unrolled step is the real one, clipped; there, it is not clipped.
- The policy gradient is that of a direction of unit length, with Adam at 0.05; there, in units of the loss,
  at 0.005. The papers' step size eta is left out in both: Adam divides it out, and late epochs weigh as much.
- The mixed derivative is exact, by one JVP; there, by finite differences.

The training pass always has batch statistics: s_i is the derivative of l_i with the statistics of its
batch and carries what image i owes to the others' statistics, not what the others owe to image i's.

Reference: Li et al. 2020, eq. 9-10.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ...gradients import bilevel, estimators
from ...training import sgd
from ...training.sgd import Batch, mean_of_devices
from ..losses import clean_losses, inner_step, metrics, training_losses
from . import config as dada_config
from . import input as search_input
from . import space as policy_space
from .config import MIXTURES, Config

# Adam, of RELAX's control variate.
CONTROL_LEARNING_RATE = 0.01


def gradients(
    config: Config, state: Any, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[tuple[policy_space.Parameters, Any], Any, dict[str, jax.Array]]:
    """The gradient of the policy, and the state with its network after its update.

    Args: as in `search.step`.

    Returns:
      ((gradient for the policy, gradient for the control variate), state, metrics).
      The first is the gradient of V(theta'(phi)) over the length of u, eq. (2) of `bilevel`, running
      statistics held fixed: exact in the levels (relaxed mixtures: in everything), an estimate in the rest.
    """
    train, parameters = state.train, state.policy
    rate = dada_config.learning_rate(config, train.step)
    temperature = dada_config.temperature(config, train.step)
    sample = search_input.sample(
        jax.random.fold_in(state.key, train.step),
        parameters,
        train_batch.images.shape[0],
        is_shared=False,
        axis_name=axis_name,
    )

    def network_input(parameters):
        return search_input.network_input(config, parameters, sample, temperature, train_batch.images)

    inputs, pull_back_inputs = jax.vjp(network_input, parameters)
    losses = functools.partial(
        training_losses(config, train.batch_stats, train_batch.labels, axis_name), key=sample.network_key
    )

    # g, and theta', the next iterate.
    gradient, train_loss, (stats, scalars) = bilevel.loss_gradient(
        lambda params: losses(params, inputs), train.params, axis_name
    )
    params, momentum, pull_back = bilevel.look_ahead(inner_step(config, train, rate), gradient)

    # v, at images that no policy has touched.
    valid_gradient, *valid = bilevel.loss_gradient(
        clean_losses(sample.network_key, config, stats, valid_batch, axis_name), params, axis_name
    )

    # u, and the cost of a draw, < u, grad l_i > = -s_i.
    direction = bilevel.direction(pull_back, valid_gradient, least_norm=1e-12)
    is_exact = config.hypergradient == "exact"
    alignment = bilevel.alignment if is_exact else bilevel.alignment_finite_difference
    costs, pull_back_costs = jax.vjp(
        lambda inputs: alignment(lambda params: losses(params, inputs)[0], train.params, direction), inputs
    )

    # Levels by the derivative of the mean cost, choices and bits by the score function.
    (pathwise,) = pull_back_inputs(*pull_back_costs(jnp.full_like(costs, 1.0 / costs.size)))
    scores, control_gradient = _choice_gradient(config, state, sample, temperature, costs, axis_name)
    policy_gradient = mean_of_devices((jax.tree.map(jnp.add, pathwise, scores), control_gradient), axis_name)
    numbers = metrics((train_loss, scalars), valid, axis_name, learning_rate=rate, temperature=temperature)
    train = sgd.TrainState(train.step + 1, params, stats, momentum)
    return policy_gradient, state._replace(train=train), numbers


def _choice_gradient(config, state, sample, temperature, costs, axis_name):
    """The score-function part of the gradient, for (policy, control); zero for relaxed mixtures."""
    policy, no_control = state.policy, jax.tree.map(jnp.zeros_like, state.control)
    if config.estimator in MIXTURES:
        return jax.tree.map(jnp.zeros_like, policy), no_control
    costs = estimators.leave_one_out(costs, axis_name=axis_name)
    log_probability = policy_space.log_probability
    if config.estimator == "reinforce":
        return estimators.reinforce(log_probability, policy, sample.draws, costs), no_control

    def latents(policy, key, draw):
        return tuple(
            policy_space.features(latent, draw, temperature)
            for latent in policy_space.drawn_latents(policy, key, draw)
        )

    return estimators.relax(
        log_probability,
        latents,
        estimators.control_variate,
        policy,
        state.control,
        sample.draws,
        sample.draw_keys,
        costs,
    )
