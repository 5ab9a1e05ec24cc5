"""DADA: augmentation-policy search by one-step bi-level optimisation (Li et al., ECCV 2020).

    min_phi V(theta'(phi)),   theta'(phi) = theta - eta (mu B + clip(grad L(theta, phi)) + lambda theta)

One step: every image draws its own sub-policy; g = grad of the training loss; theta' is the real next
iterate; v = grad of the loss of a fresh validation batch at theta'; one JVP along v scores every image,
s_i = < v, grad l_i >. The cost of image i's draw is -s_i. Levels follow d(-s)/d(level); choices and
application bits follow RELAX, REINFORCE with a leave-one-out baseline, or a relaxed mixture.

With `orthogonal_to_clean` v loses its part along the gradient of the un-augmented training batch, and ops
are paid only for what they add to it, as DDAS pays the difference to the un-augmented copy and DeepAA the
angle. That finds an op that sets the validation images apart from the training images, which large gradients
of other ops hide. Where both come from one source it takes away what a policy should serve: there, the
default, eq. (9) of the paper to the letter, found the better policies (experiments/results/small_data).

Deviations from the released code, which `dada_official` repeats with its defects:
- RELAX acts on the cost itself, its control variate trained on the variance of that estimator; the released
  one takes the difference of two losses, in which the control variate cancels.
- Every image has its own draw and its own score; the released code has one of both for a batch.
- Only the drawn row gets a gradient; there, all 210 probabilities do when 2 were drawn.
- Levels follow the derivative of the op; there, of "image + level", the same for every op.
- The validation batch is a fresh one; there, the first one in every step.
- The unrolled step is the real one, clipped; there, it is not clipped.
- Level is strength (space `strength`); in space `dada` level 0.5 is the identity of nine ops.
- Logits; there, probabilities and levels clipped where they are used, absorbing at 0 and 1.
- Pairs that have an op in common share gradients; there, each learns alone.
- The learning rate starts at its start value, and the policy is read at the end and keeps its weights; there,
  the rate runs one epoch ahead, and the policy is read before the last epoch and drawn uniformly.
- The policy gradient is that of a direction of unit length, with Adam at 0.05; there, in units of the loss,
  at 0.005. The papers' step size eta is left out in both: Adam divides it out, and late epochs weigh as much.
- The mixed derivative is exact, by one JVP; there, by finite differences.
- The last batch of an epoch is filled up with the first images of its order; there, it is smaller.

`validation_statistics` says what batch norm takes for the validation batch: its own statistics, as in the
released code, or the running ones, as a test does. What batch norm undoes, such as a change of brightness,
shows in a test but hardly under statistics of the batch's own (experiments/results/planted_training). On
images of one source the running ones gained nothing (experiments/results/small_data).

The training pass always has batch statistics: s_i is the derivative of l_i with the statistics of its
batch and carries what image i owes to the others' statistics, not what the others owe to image i's.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ... import checks, policies
from ...gradients import bilevel, estimators
from ...training import sgd
from ...training.sgd import Batch, mean_of_devices
from ..losses import clean_losses, inner_step, metrics, training_losses
from . import config as dada_config
from . import input as search_input
from . import space as policy_space
from .config import Config


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      train: the network, its momentum, and the step count.
      policy: `policy_space.Parameters`.
      control: parameters of RELAX's control variate.
      optimizer: Adam's state for (policy, control).
    """

    key: jax.Array
    train: sgd.TrainState
    policy: policy_space.Parameters
    control: Any
    optimizer: Any


def _optimizer(config: Config) -> optax.GradientTransformation:
    def adam(learning_rate):
        return optax.adam(learning_rate, b1=0.5, b2=0.999)

    return optax.partition(
        {"policy": adam(config.policy_learning_rate), "control": adam(config.control_learning_rate)},
        ("policy", "control"),
    )


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step: uniform choices, application probabilities and levels one half."""
    key, control_key = jax.random.split(key)
    parameters = policy_space.init(config.policy_space, len(config.space.rows))
    control = estimators.init_control_variate(control_key, parameters.op.size + parameters.application.size)
    optimizer = _optimizer(config).init((parameters, control))
    return SearchState(key, sgd.init(params, batch_stats), parameters, control, optimizer)


def gradients(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[tuple[policy_space.Parameters, Any], sgd.TrainState, dict[str, jax.Array]]:
    """The network's next state, and the gradient of the policy at it.

    Args: as in `step`.

    Returns:
      ((gradient for the policy, gradient for the control variate), network after its update, metrics).
      The first is the gradient of < v, theta'(phi) > over the length of u, eq. (2) of `bilevel`, and so
      without `orthogonal_to_clean` that of V(theta'(phi)), running statistics held fixed: exact in the
      levels (relaxed mixtures: in everything), an estimate in the rest.
    """
    train, parameters = state.train, state.policy
    rate = dada_config.learning_rate(config, train.step)
    temperature = dada_config.temperature(config, train.step)
    sample = search_input.sample(
        jax.random.fold_in(state.key, train.step),
        parameters,
        train_batch.images.shape[0],
        is_shared=config.draws == "batch",
        axis_name=axis_name,
    )

    def network_input(parameters):
        return search_input.network_input(config, parameters, sample, temperature, train_batch.images)

    inputs, pull_back_inputs = jax.vjp(network_input, parameters)
    losses = functools.partial(
        training_losses(config.apply, train.batch_stats, train_batch.labels, axis_name),
        key=sample.network_key,
    )

    # g, and theta', the next iterate.
    gradient, train_loss, (stats, train_accuracy) = bilevel.loss_gradient(
        lambda params: losses(params, inputs), train.params, axis_name
    )
    params, momentum, pull_back = bilevel.look_ahead(inner_step(config, train, rate), gradient)

    # v, at images that no policy has touched.
    def apply_valid(params, images):
        of_batch = config.validation_statistics == "batch"
        return config.apply(params, stats, images, of_batch, sample.network_key, axis_name=axis_name)[0]

    clean = functools.partial(clean_losses, apply_valid, config)
    valid_gradient, *valid = bilevel.validation_gradient(
        clean(valid_batch),
        params,
        axis_name,
        orthogonal_to=clean(train_batch) if config.orthogonal_to_clean else None,
    )

    # The cost of a draw is < u, grad l_i >, which is -s_i: u points along -v.
    direction = bilevel.direction(pull_back, valid_gradient, least_norm=1e-12)
    is_exact = config.hypergradient == "exact"
    alignment = bilevel.alignment if is_exact else bilevel.alignment_finite_difference
    costs, pull_back_costs = jax.vjp(
        lambda inputs: alignment(lambda params: losses(params, inputs)[0], train.params, direction), inputs
    )

    # Levels by the derivative of the mean cost, choices and bits by the score function.
    (pathwise,) = pull_back_inputs(*pull_back_costs(jnp.full_like(costs, 1.0 / costs.size)))
    scores, control_gradient = _score_gradient(config, state, sample, temperature, costs, axis_name)
    policy_gradient = mean_of_devices((jax.tree.map(jnp.add, pathwise, scores), control_gradient), axis_name)
    numbers = metrics(
        (train_loss, train_accuracy), valid, axis_name, learning_rate=rate, temperature=temperature
    )
    return policy_gradient, sgd.TrainState(train.step + 1, params, stats, momentum), numbers


def step(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the network and one of the policy, as `searches` says."""
    checks.check_batches(train_batch, valid_batch)
    (gradient, control_gradient), train, numbers = gradients(
        config, state, train_batch, valid_batch, axis_name
    )
    if config.share_between_pairs:
        gradient = policy_space.share_between_pairs(gradient, len(config.space.rows))
    updates, optimizer = _optimizer(config).update((gradient, control_gradient), state.optimizer)
    parameters, control = optax.apply_updates((state.policy, state.control), updates)
    numbers["entropy"] = policy_space.entropy(parameters)
    numbers["op_mass"] = policy_space.op_mass(parameters, len(config.space.rows))
    return SearchState(state.key, train, parameters, control, optimizer), numbers


def _score_gradient(config, state, sample, temperature, costs, axis_name):
    """The score-function part of the gradient, for (policy, control); zero for relaxed mixtures."""
    parameters = state.policy
    no_control = jax.tree.map(jnp.zeros_like, state.control)
    if config.estimator in ("gumbel", "straight_through"):
        return jax.tree.map(jnp.zeros_like, parameters), no_control
    if config.draws == "image":
        costs = estimators.leave_one_out(costs, axis_name=axis_name)
    else:
        costs = mean_of_devices(jnp.mean(costs, keepdims=True), axis_name)
    if config.estimator == "reinforce":
        return (
            estimators.reinforce(policy_space.log_probability, parameters, sample.draws, costs),
            no_control,
        )

    def latents(parameters, key, draw):
        return tuple(
            policy_space.features(latent, draw, temperature)
            for latent in policy_space.drawn_latents(parameters, key, draw)
        )

    return estimators.relax(
        policy_space.log_probability,
        latents,
        estimators.control_variate,
        parameters,
        state.control,
        sample.draws,
        sample.draw_keys,
        costs,
    )


def extract_policy(config: Config, state: SearchState, **metadata) -> policies.Policy:
    """The policy that the search found, as an artefact to save, sample and train with.

    The `top_k` pairs by weight, with their weights (slots: all 25, each slot's most probable op, uniform).
    """
    return policy_space.as_policy(config.space, state.policy, config.top_k, preset="corrected", **metadata)
