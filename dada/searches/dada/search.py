"""DADA: augmentation-policy search by one-step bi-level optimisation (Li et al., ECCV 2020).

One step updates the network on augmented training images and the policy by what a fresh validation batch says
of the draws. What it says is the score: `cosine`, the default, or `exact`, the gradient of the paper.

Deviations from the released code, which `dada_official` repeats with its defects:
- Only the drawn row gets a gradient; there, all 210 probabilities do when 2 were drawn.
- The validation batch is a fresh one; there, the first one in every step.
- Level is strength, and an op with directions has a row for each (space `directed`); in space `dada` level
  0.5 is the identity of nine ops, and directions are random.
- Logits; there, probabilities and levels clipped where they are used, absorbing at 0 and 1.
- Pairs that have an op in common share gradients; there, each learns alone.
- The learning rate starts at its start value, and the policy is read at the end and keeps its weights; there,
  the rate runs one epoch ahead, and the policy is read before the last epoch and drawn uniformly.
- The last batch of an epoch is filled up with the first images of its order; there, it is smaller.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from ... import checks, policies
from ...gradients import estimators
from ...training import sgd
from ...training.sgd import Batch
from . import cosine, exact
from . import space as policy_space
from .config import Config

_GRADIENTS = {"cosine": cosine.gradients, "exact": exact.gradients}


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      train: the network, its momentum, and the step count.
      mixture: of the score "cosine", the average of the training gradient; else ().
      policy: `policy_space.Parameters`.
      control: of the score "exact", parameters of RELAX's control variate; else ().
      optimizer: Adam's state for (policy, control).
    """

    key: jax.Array
    train: sgd.TrainState
    mixture: Any
    policy: policy_space.Parameters
    control: Any
    optimizer: Any


def _optimizer(config: Config) -> optax.GradientTransformation:
    def adam(learning_rate):
        # What was not drawn has a gradient of rounding, about 1e-9, of which Adam must not make whole steps.
        return optax.adam(learning_rate, b1=0.5, b2=0.999, eps=1e-6)

    rate = config.policy_learning_rate
    level_rate = rate * cosine.LEVEL_RATE if config.score == "cosine" else rate
    of_policy = policy_space.Parameters(op="choice", application="choice", level="level")
    return optax.partition(
        {"choice": adam(rate), "level": adam(level_rate), "control": adam(exact.CONTROL_LEARNING_RATE)},
        (of_policy, "control"),
    )


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step: uniform choices, application probabilities and levels one half."""
    key, control_key = jax.random.split(key)
    parameters = policy_space.init(config.policy_space, len(config.space.rows))
    mixture, control = jax.tree.map(jnp.zeros_like, params), ()
    if config.score == "exact":
        size = parameters.op.size + parameters.application.size
        mixture, control = (), estimators.init_control_variate(control_key, size)
    optimizer = _optimizer(config).init((parameters, control))
    return SearchState(key, sgd.init(params, batch_stats), mixture, parameters, control, optimizer)


def step(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the network and one of the policy, as `searches` says.

    With the score "cosine" each of `num_draws` sub-policies is applied to all images of the training batch.
    """
    checks.check_batches(train_batch, valid_batch)
    (gradient, control_gradient), state, numbers = _GRADIENTS[config.score](
        config, state, train_batch, valid_batch, axis_name
    )
    gradient = policy_space.share(gradient, len(config.space.rows))
    updates, optimizer = _optimizer(config).update((gradient, control_gradient), state.optimizer)
    parameters, control = optax.apply_updates((state.policy, state.control), updates)
    numbers["entropy"] = policy_space.entropy(parameters)
    numbers["op_mass"] = policy_space.op_mass(parameters, len(config.space.rows))
    return state._replace(policy=parameters, control=control, optimizer=optimizer), numbers


def extract_policy(config: Config, state: SearchState, **metadata) -> policies.Policy:
    """The policy that the search found, as an artefact to save, sample and train with.

    The `top_k` pairs or triples by weight, with their weights (slots: all 25, each slot's most probable op,
    uniform).
    """
    return policy_space.as_policy(config.space, state.policy, config.top_k, preset="corrected", **metadata)
