"""DeepAA: deep augmentation policies by gradient matching (Zheng et al., ICLR 2022).

A policy is a stack of layers, each a categorical over all actions (op, level); an image passes through all
of them. Layers are searched one after another: layer k starts near Identity, with layers 1 .. k - 1 frozen.
The network is trained beforehand and stays as it is, in inference mode. It wants augmented images to have
the gradient of clean ones:

    maximise  cos(g_T, g_V) = <g_T, g_V> / (|g_T| |g_V|)
    g_V = mean of grad l(z) over clean images z of one class
    g_T = sum_j p_j grad l(T_j x),   x an image of the same class, p = softmax(alpha)

The score of an action is the derivative of the cosine with respect to its probability,

    h_j = d cos / d p_j = <grad l(T_j x), u> / (|g_T| |g_V|),   u = g_V - (<g_T, g_V> / |g_T|^2) g_T

one forward-mode JVP along u for all actions at once. In layer 1 the sum over actions is exact. In layer k
g_T is the mean over sampled chains of k actions, and h_j a mean over sampled prefixes of k - 1 actions. Over
D data points (x, its class, clean images),

    h_j = mean_d h_dj - penalty std_d h_dj,    d/d alpha_i sum_j p_j h_j = p_i (h_i - sum_j p_j h_j)

with a penalty from layer 2 on: what is put on top must help almost everywhere.

Scale and bias of batch norm take no part in any gradient, as in the released code.

Preset "official" follows the released code: shears, translations and rotations that are searched with their
sign are mirrored at random where the policy is used; the search never ends early; losses are scaled by 1/4
in layer 1 and by D beyond, which counts against Adam's epsilon only. "corrected", the default: the policy is
used as it was searched, and the search ends with a layer that is almost surely Identity.

A step sends D (A + V + A) images through the network in layer 1 and D (chains + V + prefixes A) beyond, in
chunks of at most `chunk_size`: memory does not grow with the number of actions A.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import ops, policies
from ...training import sgd
from . import config as deepaa_config
from . import scores as deepaa_scores
from .config import Config

_OFFICIAL_FIRST_LAYER_SCALE = 0.25


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      step: updates done in all layers, int32 [].
      params, batch_stats: the network, frozen.
      logits: alpha of the layers so far, [k, A]; the last one is searched.
      optimizer: Adam's state for the last layer.
    """

    key: jax.Array
    step: jax.Array
    params: Any
    batch_stats: Any
    logits: jax.Array
    optimizer: Any


def _optimizer(config: Config) -> optax.GradientTransformation:
    # Keras' default; without a scale on the loss, small enough never to count.
    epsilon = 1e-7 if config.preset == "official" else 1e-12
    return optax.adam(config.policy_learning_rate, eps=epsilon)


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step: one layer, near Identity."""
    logits = deepaa_config.initial_logits(config)
    return SearchState(
        key=key,
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=batch_stats,
        logits=logits[None],
        optimizer=_optimizer(config).init(logits),
    )


def next_layer(config: Config, state: SearchState) -> SearchState:
    """Freezes the layer that was searched and puts a new one on top."""
    logits = deepaa_config.initial_logits(config)
    return state._replace(
        logits=jnp.concatenate([state.logits, logits[None]]), optimizer=_optimizer(config).init(logits)
    )


def is_done(config: Config, state: SearchState) -> bool:
    """Whether the search ends with the layer that was searched last; its updates are done."""
    if config.stop_probability is not None:
        identity = jax.nn.softmax(state.logits[-1])[deepaa_config.identity_action(config)]
        if identity > config.stop_probability:
            return True
    return len(state.logits) >= config.num_layers


def policy_gradient(config: Config, state: SearchState, scores: jax.Array) -> jax.Array:
    """Ascent direction for the logits of the last layer, from the scores of all data points.

    h_j = mean_d h_dj - penalty std_d h_dj;   p_i (h_i - sum_j p_j h_j);   no penalty in layer 1

    Args:
      config: settings.
      state: whose last layer was scored.
      scores: float [D, A], h_dj.

    Returns:
      float [A].
    """
    is_first = len(state.logits) == 1
    penalty = 0.0 if is_first else config.penalty
    score = jnp.mean(scores, axis=0) - penalty * jnp.std(scores, axis=0)
    probability = jax.nn.softmax(state.logits[-1])
    gradient = probability * (score - probability @ score)
    if config.preset == "corrected":
        return gradient
    return gradient * (_OFFICIAL_FIRST_LAYER_SCALE if is_first else scores.shape[0])


@functools.partial(jax.jit, static_argnums=0)
def _update(config, state, scores, cosines):
    gradient = policy_gradient(config, state, scores)
    updates, optimizer = _optimizer(config).update(-gradient, state.optimizer)
    logits = state.logits.at[-1].add(updates)
    probability = jax.nn.softmax(logits[-1])
    row, _ = deepaa_config.actions(config)
    metrics = {
        "cosine": jnp.mean(cosines),
        "cosine_deviation": jnp.std(cosines),
        "layer": jnp.asarray(len(logits), jnp.int32),
        "identity": probability[deepaa_config.identity_action(config)],
        "entropy": -jnp.sum(probability * jax.nn.log_softmax(logits[-1])),
        "op_mass": jax.ops.segment_sum(probability, row, len(config.space.rows)),
    }
    return state._replace(step=state.step + 1, logits=logits, optimizer=optimizer), metrics


def step(
    config: Config,
    state: SearchState,
    train_batch: sgd.Batch,
    valid_batch: sgd.Batch,
    axis_name: str | None = None,
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the last layer.

    Jit it with `config` static where `chunk_loop` is "scan"; with "python" call it as it is.

    Args:
      config: static.
      state: from `init`, `next_layer` or the last `step`.
      train_batch: D data points, images uint8 [D, H, W, 3], labels int32 [D].
      valid_batch: V clean images for each, of its class: images uint8 [D, V, H, W, 3], labels int32 [D, V].
      axis_name: mapped axis over which the data points are divided. Every random number belongs to one
        data point, so the division changes nothing but rounding.

    Returns:
      (next state, metrics: scalars, and `op_mass` [number of ops] of the layer).

    Raises:
      AssertionError: wrong shapes or dtypes.
    """
    chex.assert_rank([train_batch.images, train_batch.labels], [4, 1])
    chex.assert_rank([valid_batch.images, valid_batch.labels], [5, 2])
    chex.assert_equal_shape_prefix([*train_batch, *valid_batch], 1)
    chex.assert_equal_shape_prefix(valid_batch, 2)
    chex.assert_type([train_batch.images, valid_batch.images], jnp.uint8)
    chex.assert_type([train_batch.labels, valid_batch.labels], jnp.int32)
    count = train_batch.labels.shape[0]
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * count
    step_key = jax.random.fold_in(state.key, state.step)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, first + jnp.arange(count))

    def body(_, point):
        key, image, label, valid_images = point
        return None, deepaa_scores.scores(key, config, network, state.logits, image, label, valid_images)

    points = (keys, train_batch.images, train_batch.labels, valid_batch.images)
    network = (state.params, state.batch_stats)
    _, (scores, cosines) = deepaa_scores.over_chunks(config, body, None, points)
    if axis_name is not None:
        scores, cosines = jax.lax.all_gather((scores, cosines), axis_name, tiled=True)
    return _update(config, state, scores, cosines)


def extract_policy(config: Config, state: SearchState, **metadata) -> policies.Policy:
    """The layers that the search found; in the official preset mirrored at random."""
    options = ops.space_options(config.space)
    is_mirrored = config.preset == "official" and config.space.name == "deepaa"
    row, level = deepaa_config.actions(config)
    logits = np.asarray(state.logits, np.float64)
    weight = np.exp(logits - logits.max(axis=1, keepdims=True))
    return policies.Policy(
        kind="layers",
        search_space="deepaa_mirrored" if is_mirrored else config.space.name,
        content=policies.Layers(row, level, weight / weight.sum(axis=1, keepdims=True)),
        method="deepaa",
        preset=config.preset,
        selection_rule="softmax of the searched logits, one row per layer",
        **options,
        **metadata,
    )
