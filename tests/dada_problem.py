"""A DADA search that can be written out: a network of one convolution, four ops, bright squares."""

import functools

import jax
import jax.numpy as jnp
from bright_squares import CLASSES

from dada import augment, ops
from dada.searches import dada, dada_official
from dada.searches.dada import config as dada_config
from dada.searches.dada import cosine, exact
from dada.searches.dada import input as search_input
from dada.searches.dada import search as dada_search
from dada.searches.dada import space as policy_space
from dada.searches.dada_official import config as official_config
from dada.searches.dada_official import gradient as official_gradient
from dada.searches.dada_official import search as official_search
from dada.training import sgd

# Few ops, so that the step compiles quickly; "strength" by name, for extraction.
FULL = ops.search_space("strength")
OPS = ("ShearX", "Invert", "Brightness", "Cutout")
SPACE = FULL._replace(rows=tuple(row for row in FULL.rows if row.name in OPS))
DIRECTED = ops.SearchSpace("few", tuple(r for r in ops.search_space("directed").rows if r.op in OPS))


def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """3x3 convolution, softplus (smooth, so that finite differences can be fine), pooling, linear."""
    del is_training, key, axis_name
    features = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features = jax.nn.softplus(features)
    pooled = jnp.concatenate([features.mean((1, 2)), features[:, 1, 1]], -1)
    return pooled @ params["weight"] + params["bias"], batch_stats


def network(key=0):
    keys = jax.random.split(jax.random.key(key))
    return {
        "kernel": 0.4 * jax.random.normal(keys[0], (3, 3, 3, 6)),
        "weight": 0.3 * jax.random.normal(keys[1], (12, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }


_SMALL = {
    **{"apply": apply, "space": SPACE, "steps_per_epoch": 4, "num_epochs": 3},
    **{"crop_padding": 0, "flip": False, "cutout_length": 0},
}


def config(**changes):
    """The score of the paper, unless told otherwise."""
    return dada.Config(**{**_SMALL, "score": "exact", **changes})


def official(**changes):
    return dada_official.Config(**{**_SMALL, **changes})


def is_official(config):
    return isinstance(config, dada_official.Config)


def method(config):
    """The search that a configuration belongs to."""
    return official_search if is_official(config) else dada_search


def start(config, seed=0):
    return method(config).init(jax.random.key(seed), config, network(), {})


def spread(state, config, seed=5):
    """The state with a policy away from its symmetric start."""
    keys = jax.random.split(jax.random.key(seed), 3)
    noise = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, state.policy)]
    if is_official(config):
        noise = [0.3 * leaf for leaf in noise]
    return state._replace(policy=policy_space.Parameters(*map(jnp.add, state.policy, noise)))


@functools.partial(jax.jit, static_argnums=0)
def jitted_step(config, state, train, valid):
    return method(config).step(config, state, train, valid)


def gradients(config, state, train, valid, axis_name=None):
    """(gradients, network after its update, metrics)."""
    if is_official(config):
        return official_search.gradients(config, state, train, valid, axis_name)
    module = {"exact": exact, "cosine": cosine}[config.score]
    of_policy, state, metrics = module.gradients(config, state, train, valid, axis_name)
    return of_policy, state.train, metrics


jitted_gradients = functools.partial(jax.jit, static_argnums=0)(gradients)


def learning_rate(config, step):
    return (official_config if is_official(config) else dada_config).learning_rate(config, step)


def drawn(config, state, images):
    """What `gradients` draws, and its network input as a function of the policy."""

    @jax.jit
    def draw(state):
        return search_input.sample(
            jax.random.fold_in(state.key, state.train.step),
            official_gradient.as_logits(state.policy) if is_official(config) else state.policy,
            images.shape[0],
            is_shared=is_official(config),
        )

    sample = draw(state)
    heat = dada_config.temperature(config, state.train.step)

    def inputs(parameters):
        if is_official(config):
            return official_search.network_input(config, parameters, sample, images)
        return search_input.network_input(config, parameters, sample, heat, images)

    return sample.draws, inputs


def unrolled_loss(config, state, train, valid, inputs, clip_norm):
    """What the policy descends as a function of the network input: (V(theta'), theta')."""

    def mean_loss(params, images, labels):
        return jnp.mean(sgd.cross_entropy(apply(params, {}, images, True)[0], labels))

    gradient = jax.grad(mean_loss)(state.train.params, inputs, train.labels)
    params, _ = sgd.sgd_update(
        state.train.params,
        state.train.momentum,
        gradient,
        learning_rate=learning_rate(config, state.train.step),
        weight_decay=config.weight_decay,
        clip_norm=clip_norm,
    )
    images = augment.normalize(valid.images, config.mean, config.std)
    return mean_loss(params, images, valid.labels), params
