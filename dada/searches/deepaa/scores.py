"""DeepAA's score of every action for one data point, in chunks of bounded memory.

    h_j = d cos(g_T, g_V) / d p_j = <grad l(T_j x), u> / (|g_T| |g_V|)
    u   = g_V - (<g_T, g_V> / |g_T|^2) g_T

with the symbols of `search`. Because <g_T, u> = 0, sum_j p_j h_j = 0 where the sum over actions is
exact, and the gradient for the logits through p is that of the cosine itself.

A chunk is one call of `_add_gradient` or `_alignments`: part of the caller's program with `chunk_loop`
"scan", a program of its own with "python". Augmented images exist inside a chunk only.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ... import augment, ops
from ...augment import sampling
from ...gradients import bilevel
from ...training import sgd
from . import config as deepaa_config
from .config import Config


class _Inputs(NamedTuple):
    """What goes through the network, N augmented images: which image, and what is done to it."""

    source: jax.Array  # int32 [N]
    draws: ops.Draws  # [N, K]


def over_chunks(config, body, carry, inputs):
    """`lax.scan`, or the same from Python, as `config.chunk_loop` says."""
    if config.chunk_loop == "scan":
        return jax.lax.scan(body, carry, inputs)
    outputs = []
    for index in range(jax.tree.leaves(inputs)[0].shape[0]):
        one = jax.tree.map(lambda leaf: leaf[index], inputs)  # noqa: B023
        carry, output = jax.block_until_ready(body(carry, one))  # one chunk in memory at a time
        outputs.append(output)
    return carry, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)


def _chunks(config, inputs, weight):
    """Leaves [N, ...] as equal chunks [M, n, ...]; what fills up the last one has weight 0."""
    count = weight.shape[0]
    chunks = -(-count // config.chunk_size)
    size = -(-count // chunks)
    index = np.arange(chunks * size).reshape(chunks, size)
    weight = jnp.where(index < count, weight[index % count], 0.0)
    return jax.tree.map(lambda leaf: leaf[index % count], inputs), weight


def _losses(config, network, images, label, inputs):
    """l_i, [N], of the inputs made from images uint8 [M, H, W, 3] of one class."""
    params, batch_stats = network
    augmented = augment.apply_draws(images[inputs.source], inputs.draws, op_ids=ops.op_ids(config.space))
    augmented = augment.normalize(augmented, config.mean, config.std)
    logits, _ = config.apply(params, batch_stats, augmented, False)
    return sgd.cross_entropy(logits, jnp.broadcast_to(label, inputs.source.shape))


@functools.partial(jax.jit, static_argnums=0)
def _add_gradient(config, network, images, label, gradient, inputs, weight):
    """gradient + sum_i w_i grad l_i, batch norm left out."""
    params, batch_stats = network
    part = jax.grad(
        lambda params: jnp.sum(weight * _losses(config, (params, batch_stats), images, label, inputs))
    )(params)

    def is_batch_norm(node):
        return isinstance(node, dict) and "scale" in node

    return jax.tree.map(
        lambda more, total: total if is_batch_norm(more) else total + more,
        part,
        gradient,
        is_leaf=is_batch_norm,
    )


@functools.partial(jax.jit, static_argnums=0)
def _alignments(config, network, images, label, direction, inputs):
    """< grad l_i, direction >, [N]."""
    params, batch_stats = network
    return bilevel.alignment(
        lambda params: _losses(config, (params, batch_stats), images, label, inputs), params, direction
    )


_tangent = jax.jit(bilevel.tangent)  # a program of its own with `chunk_loop` "python"


def scores(
    key: jax.Array,
    config: Config,
    network: tuple[Any, Any],
    logits: jax.Array,
    image: jax.Array,
    label: jax.Array,
    valid_images: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The score of every action for one data point: d cos(g_T, g_V) / d p_j.

    Args:
      key: typed random key, consumed.
      config: settings.
      network: (params, batch_stats).
      logits: float [k, A]; the last layer is scored, on top of the others.
      image: uint8 [H, W, 3], x.
      label: int32 [], its class.
      valid_images: uint8 [V, H, W, 3], clean images of that class.

    Returns:
      (h float [A], cos(g_T, g_V) []). In layer 1 exact but for rounding, random ops as drawn.
    """
    images = image[None]
    action_key, chain_key = jax.random.split(key)

    def gradient(images, inputs, weight):
        def body(total, chunk):
            return _add_gradient(config, network, images, label, total, *chunk), None

        start = jax.tree.map(jnp.zeros_like, network[0])
        return over_chunks(config, body, start, _chunks(config, inputs, weight))[0]

    # g_V = 1/V sum_z grad l(z)
    count = valid_images.shape[0]
    valid_gradient = gradient(valid_images, _clean(count), jnp.full(count, 1.0 / count))

    # T_j of every prefix, actions fastest; layer 1 has one prefix, of no action.
    every_action = _draw_every_action(action_key, config, logits[:-1], image)
    if len(logits) == 1:
        # g_T = sum_j p_j grad l(T_j x)
        train_gradient = gradient(images, every_action, jax.nn.softmax(logits[0]))
    else:
        # g_T = 1/E sum_e grad l(T_k .. T_1 x), every T_i drawn from its layer
        chains = _draw_chains(chain_key, config, logits, image)
        weight = jnp.full(config.num_chains, 1.0 / config.num_chains)
        train_gradient = gradient(images, chains, weight)

    direction, cosine = _tangent(train_gradient, valid_gradient)

    # h_j = < grad l(T_j x), u > / (|g_T| |g_V|)
    def body(_, chunk):
        return None, _alignments(config, network, images, label, direction, chunk[0])

    total = every_action.source.shape[0]
    _, alignments = over_chunks(config, body, None, _chunks(config, every_action, jnp.ones(total)))
    return alignments.reshape(-1)[:total].reshape(-1, logits.shape[1]).mean(0), cosine


def _clean(count):
    """Inputs of all images as they are."""
    nothing = jnp.zeros((count, 0))
    return _Inputs(jnp.arange(count), ops.Draws(nothing.astype(jnp.int32), nothing, jnp.zeros((count, 0, 2))))


def _draw_actions(key, config, action, image):
    """Draws of actions int [N, K] for an image."""
    row, level = (jnp.asarray(column)[action] for column in deepaa_config.actions(config))
    sign_key, center_key, noise_key = jax.random.split(key, 3)
    return sampling.assemble_draws(
        config.space,
        row,
        jnp.ones(row.shape, bool),
        level,
        sampling.random_signs(sign_key, row.shape),
        sampling.random_centers(center_key, row.shape, image.shape[:2]),
        noise=jax.random.uniform(noise_key, (*row.shape, sampling.NOISE_SIZE)),
        image_size=image.shape[:2],
    )


def _draw_layers(key, config, logits, count, image):
    """Draws of `count` chains, an action from each layer of logits [K, A]."""
    choice_key, draw_key = jax.random.split(key)
    action = jax.random.categorical(choice_key, logits, shape=(count, len(logits)))
    return _draw_actions(draw_key, config, action, image)


def _from_one_image(draws):
    return _Inputs(jnp.zeros(draws.op.shape[0], jnp.int32), draws)


@functools.partial(jax.jit, static_argnums=1)
def _draw_chains(key, config, logits, image):
    return _from_one_image(_draw_layers(key, config, logits, config.num_chains, image))


@functools.partial(jax.jit, static_argnums=1)
def _draw_every_action(key, config, logits, image):
    """All actions on each prefix of the layers below, [prefixes A, k]."""
    prefix_key, action_key = jax.random.split(key)
    num_prefixes, num_actions = config.num_prefixes if len(logits) else 1, logits.shape[1]
    prefixes = _draw_layers(prefix_key, config, logits, num_prefixes, image)
    action = jnp.tile(jnp.arange(num_actions), num_prefixes)[:, None]
    last = _draw_actions(action_key, config, action, image)
    return _from_one_image(
        jax.tree.map(
            lambda below, top: jnp.concatenate([jnp.repeat(below, num_actions, axis=0), top], axis=1),
            prefixes,
            last,
        )
    )
