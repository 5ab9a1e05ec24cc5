"""DADA as the released code does it, with its defects.

Kept on purpose, each with the reason why it is a defect:
- RELAX is evaluated on two losses that share all noise, and the two are subtracted, so every term of the
  control variate cancels: what is left is REINFORCE, g = -C d log q, C = (L+ - L-) / (2 R).
- The scores of all N K bits are used, though K were drawn: the others do a random walk.
- The categorical log-probability is added to each of the N K entries, so its score is N K times too large.
- Levels get the gradient of "image + level", the same for every op and for ops without a magnitude.
- Raw probabilities and levels are learned, clipped where they are used: absorbing at 0 and 1.
- One draw serves the whole batch, and the validation batch is the same in every step; the caller passes it.
- The unrolled step is not clipped, the real one is.
- The learning rate runs one epoch ahead, and the policy is read before the last epoch.
- The centre of the op Cutout lies half a pixel off.

Not kept: an epoch's last batch is filled up, and a seed repeats a run. Left out: the code's second variant,
Gumbel-softmax, which models what was not drawn as an image of ones.

Reference: Li et al. 2020 and its released code.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ... import augment, checks, policies
from ...gradients import bilevel, estimators
from ...training import sgd
from ...training.sgd import Batch, mean_of_devices
from ..dada import config as dada_config
from ..dada import input as search_input
from ..dada import space as policy_space
from ..losses import clean_losses, inner_step, metrics, training_losses
from . import gradient as official_gradient
from .config import Config, learning_rate


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      train: the network, its momentum, and the step count.
      policy: `policy_space.Parameters`, raw: weights, probabilities and levels, clipped where they are used.
      control: the Q network, RELAX's control variate.
      optimizer: Adam's state for (policy, control).
      epoch_policy: the policy before the first step of the current epoch, which `extract_policy` reads.
    """

    key: jax.Array
    train: sgd.TrainState
    policy: policy_space.Parameters
    control: Any
    optimizer: Any
    epoch_policy: policy_space.Parameters


def policy_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam, as the released code has it for the policy."""
    return optax.adam(config.policy_learning_rate, b1=0.5, b2=0.999)


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step: equal weights, probabilities and levels one half."""
    key, control_key = jax.random.split(key)
    parameters = official_gradient.init_policy(policy_space.init("pairs", len(config.space.rows)))
    control = estimators.init_control_variate(control_key, parameters.op.size + parameters.application.size)
    optimizer = policy_optimizer(config).init((parameters, control))
    return SearchState(key, sgd.init(params, batch_stats), parameters, control, optimizer, parameters)


def network_input(
    config: Config, parameters: policy_space.Parameters, sample: search_input.Sample, images: jax.Array
) -> jax.Array:
    """Policy and base augmentation. Gradient: none, the levels are learned by another rule.

    Args:
      config: settings of the search.
      parameters: the policy, raw.
      sample: of `search_input.sample`.
      images: uint8 [B, H, W, 3].

    Returns:
      float32 [B, H, W, 3], normalised.
    """
    image_size = images.shape[1:3]
    signs, centers = search_input.signs_and_centers(sample.image_keys, image_size, parameters.level.shape[1])
    centers = official_gradient.shift_centers(centers, image_size)
    levels = official_gradient.level(parameters.level)
    apply_policy = functools.partial(
        search_input.apply_draws, config.space, parameters, sample.draws, levels, signs, centers
    )
    keys = sample.image_keys
    return augment.base_augment(keys, config, images, apply_policy, policy_position="after_jitter")


def gradients(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[tuple[policy_space.Parameters, Any], sgd.TrainState, dict[str, jax.Array]]:
    """The network's next state, and what the released code takes for the gradient of the policy.

    Args: as in `step`.

    Returns:
      ((gradient for the policy, gradient for the Q network), network after its update, metrics).
    """
    train, parameters = state.train, state.policy
    rate, temperature = learning_rate(config, train.step), dada_config.temperature(config, train.step)
    sample = search_input.sample(
        jax.random.fold_in(state.key, train.step),
        official_gradient.as_logits(parameters),
        train_batch.images.shape[0],
        is_shared=True,
        axis_name=axis_name,
    )
    inputs = network_input(config, parameters, sample, train_batch.images)
    losses = functools.partial(
        training_losses(config, train.batch_stats, train_batch.labels, axis_name), key=sample.network_key
    )
    gradient, train_loss, (stats, scalars) = bilevel.loss_gradient(
        lambda params: losses(params, inputs), train.params, axis_name
    )
    params, momentum = inner_step(config, train, rate)(gradient)
    unrolled, _ = inner_step(config, train, rate, clip_norm=None)(gradient)

    valid_gradient, *valid = bilevel.loss_gradient(
        clean_losses(sample.network_key, config, stats, valid_batch, axis_name), unrolled, axis_name
    )
    is_exact = config.hypergradient == "exact"
    alignment = bilevel.alignment if is_exact else bilevel.alignment_finite_difference
    policy_gradient = official_gradient.policy_gradient(
        lambda params, inputs: mean_of_devices(jnp.mean(losses(params, inputs)[0]), axis_name),
        lambda function: alignment(function, train.params, valid_gradient),
        parameters,
        state.control,
        jax.tree.map(lambda leaf: leaf[0], sample.draws),
        sample.draw_keys[0],
        temperature,
        inputs,
    )
    numbers = metrics((train_loss, scalars), valid, axis_name, learning_rate=rate, temperature=temperature)
    return policy_gradient, sgd.TrainState(train.step + 1, params, stats, momentum), numbers


def step(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the network and one of the policy, as `searches` says."""
    checks.check_batches(train_batch, valid_batch)
    gradient, train, numbers = gradients(config, state, train_batch, valid_batch, axis_name)
    updates, optimizer = policy_optimizer(config).update(gradient, state.optimizer)
    parameters, control = optax.apply_updates((state.policy, state.control), updates)
    starts_epoch = state.train.step % config.steps_per_epoch == 0
    epoch_policy = jax.tree.map(
        lambda new, old: jnp.where(starts_epoch, new, old), state.policy, state.epoch_policy
    )
    learned = official_gradient.as_logits(parameters)
    numbers["entropy"] = policy_space.entropy(learned)
    numbers["op_mass"] = policy_space.op_mass(learned, len(config.space.rows))
    return SearchState(state.key, train, parameters, control, optimizer, epoch_policy), numbers


def extract_policy(config: Config, state: SearchState, **metadata) -> policies.Policy:
    """The `top_k` pairs by weight, drawn uniformly, as they stood before the current epoch."""
    return policy_space.as_policy(
        config.space,
        official_gradient.as_logits(state.epoch_policy),
        config.top_k,
        is_weighted=False,
        moment=", as of the start of the last epoch",
        preset="official",
        **metadata,
    )
