"""The default score: the angle between what a sub-policy teaches and what the validation images ask for.

D sub-policies are drawn in a step, and every one is applied to *the same* training images, in a pass of its
own, with batch statistics of its own:

    g_d    = grad of the mean training loss under draw d          d = 1 .. D
    theta' = step(theta, mean_d g_d)                              the real next iterate
    v      = grad of the loss of a fresh validation batch at theta'
    w      = v - (< v, m > / |m|^2) m     m the average of mean_d g_d over the steps before
    cost of draw d = -cos(w, g_d)

Choices, application bits and levels follow REINFORCE, its baseline the mean cost of the other draws.

Where this leaves the paper, eq. 9-10, whose cost is -< v, g >, and why ("The score" in experiments/results):
- The cosine: < v, g > pays a sub-policy for a long gradient, whatever its direction.
- The same images: which images an op meets changes g more than which op it is.
- Statistics of its own: a dark image among bright ones is another thing to batch norm than among dark ones.
- w in place of v: what the policy as a whole teaches already earns nothing. It is DeepAA's direction, the
  derivative of a cosine (`bilevel.tangent`), with m from other images, which the scored ones do not bias. It
  leaves a wrong op that came first by chance: without it, a planted TranslateX ended as TranslateY.
- Levels are drawn, logistic-normal about the learned one, so that an op is met at all strengths.
- REINFORCE in place of RELAX: with eight draws in a step, its control variate adds more noise than it takes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from ... import augment, ops
from ...augment import sampling
from ...augment.image_keys import ImageKeys, image_keys
from ...gradients import bilevel, estimators
from ...training import sgd
from ...training.sgd import Batch
from ..losses import clean_images, inner_step, metrics, training_losses
from . import config as dada_config
from . import input as search_input
from . import space as policy_space
from .config import Config

# Of the logit of a drawn level about the learned one.
LEVEL_DEVIATION = 0.7
# Of the policy's learning rate: at a high level the score hardly changes, and faster ones walk at random.
LEVEL_RATE = 0.3
MIXTURE_DECAY = 0.9


class Sample(NamedTuple):
    """The randomness of one step; D draws, n training images on this device."""

    draws: policy_space.Draw  # [D]
    levels: jax.Array  # [D, K], logits of the drawn levels
    image_keys: ImageKeys  # [n], the same under every draw
    network_key: jax.Array  # of networks that draw noise


def sample(
    key: jax.Array, config: Config, policy: policy_space.Parameters, count: int, axis_name: str | None = None
) -> Sample:
    """Draws sub-policies, bits and levels for a step.

    Args:
      key: typed key of the step, consumed.
      config: settings of the search.
      policy: of which the draws are, as logits.
      count: n, images on this device.
      axis_name: mapped axis over which the images are divided.
    """
    draw_key, level_key, image_key, network_key = jax.random.split(key, 4)
    draws = jax.vmap(policy_space.draw, (0, None))(jax.random.split(draw_key, config.num_draws), policy)
    mean = policy.level[draws.row]
    levels = mean + LEVEL_DEVIATION * jax.random.normal(level_key, mean.shape)
    return Sample(draws, levels, image_keys(image_key, count, axis_name), network_key)


def network_inputs(config: Config, policy: policy_space.Parameters, sample: Sample, images: Any) -> Any:
    """All images under every draw: policy and base augmentation, in the order of `input.network_input`.

    Args:
      config: settings of the search.
      policy: of which the draws are; only its shapes are read.
      sample: of `sample`.
      images: uint8 [n, H, W, 3], perhaps with boxes.

    Returns:
      float32 [D, n, H, W, 3], normalised; boxes and valid with the same first axes. Gradient: none.
    """
    num_draws, count = config.num_draws, images.shape[0]
    rows = jax.vmap(lambda draw: policy_space.ops(policy, len(config.space.rows), draw))(sample.draws)
    applied = jax.vmap(lambda draw: draw.bits[draw.row])(sample.draws)
    of_draws = (jnp.repeat(leaf, count, 0) for leaf in (rows, applied, jax.nn.sigmoid(sample.levels)))
    signs, centers = search_input.signs_and_centers(sample.image_keys, images.shape[1:3], rows.shape[1])
    keys, images, signs, centers = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * num_draws), (sample.image_keys, images, signs, centers)
    )
    concrete = sampling.assemble_draws(config.space, *of_draws, signs, centers)

    def apply_policy(images):
        return augment.apply_draws(images, concrete, op_ids=ops.op_ids(config.space))

    inputs = augment.base_augment(keys, config, images, apply_policy, policy_position="after_jitter")
    return jax.tree.map(lambda leaf: leaf.reshape(num_draws, count, *leaf.shape[1:]), inputs)


def log_probability(policy: policy_space.Parameters, draw: tuple[policy_space.Draw, jax.Array]) -> jax.Array:
    """log p of a draw and its levels, [K] logits, up to a constant; the level of an op that was not applied
    has no say."""
    choice, levels = draw
    scaled = (levels - policy.level[choice.row]) / LEVEL_DEVIATION
    density = -0.5 * jnp.sum(jnp.where(choice.bits[choice.row], scaled**2, 0.0))
    return policy_space.log_probability(policy, choice) + density


def gradients(
    config: Config, state: Any, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[tuple[policy_space.Parameters, tuple], Any, dict[str, jax.Array]]:
    """The gradient of the policy, and the state with its network after its update.

    Args: as in `search.step`.

    Returns:
      ((gradient for the policy, ()), state, metrics). The first is an unbiased estimate of the gradient of
      the expected cost of a draw with w held fixed; there is no control variate.
    """
    train, policy = state.train, state.policy
    rate = dada_config.learning_rate(config, train.step)
    key = jax.random.fold_in(state.key, train.step)
    drawn = sample(key, config, policy, train_batch.images.shape[0], axis_name)
    inputs = network_inputs(config, policy, drawn, train_batch.images)

    # A gradient as one vector, the loss, (the next running statistics, scalars).
    @jax.jit
    def one_pass(params, stats, labels, images, network_key):
        losses = training_losses(config, stats, labels, axis_name)
        gradient, *numbers = bilevel.loss_gradient(
            lambda params: losses(params, images, network_key), params, axis_name
        )
        return ravel_pytree(gradient)[0], *numbers

    # g_d; not under vmap, where gradients of weights are several times slower. A loop is compiled once, but
    # XLA:CPU is slow in it: there a program can find the calls of a jitted function.
    def pass_of(images):
        return one_pass(train.params, train.batch_stats, train_batch.labels, images, drawn.network_key)

    if jax.default_backend() == "cpu":
        draws = (jax.tree.map(lambda leaf: leaf[d], inputs) for d in range(config.num_draws))  # noqa: B023
        passes = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(pass_of, draws))
    else:
        passes = jax.lax.map(pass_of, inputs)
    mean, train_loss, (stats, scalars) = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), passes)
    mixture, unflatten = ravel_pytree(state.mixture)
    params, momentum = inner_step(config, train, rate)(unflatten(mean))  # theta'

    # v, at images that no policy has touched.
    valid_gradient, valid_loss, (_, valid_scalars) = one_pass(
        params, stats, valid_batch.labels, clean_images(config, valid_batch.images), drawn.network_key
    )

    direction = bilevel.orthogonal_part(valid_gradient, mixture)  # w
    costs = -jax.vmap(bilevel.cosine, (None, 0))(direction, passes[0])
    policy_gradient = estimators.reinforce(
        log_probability, policy, (drawn.draws, drawn.levels), estimators.leave_one_out(costs)
    )
    valid = (valid_loss, valid_scalars)
    numbers = metrics((train_loss, scalars), valid, axis_name, learning_rate=rate)
    train = sgd.TrainState(train.step + 1, params, stats, momentum)
    mixture = MIXTURE_DECAY * mixture + (1.0 - MIXTURE_DECAY) * mean
    return (policy_gradient, ()), state._replace(train=train, mixture=unflatten(mixture)), numbers
