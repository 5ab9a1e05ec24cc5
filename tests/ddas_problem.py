"""A DDAS search on small images: a network whose batch is coupled, four candidates, bright squares."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from bright_squares import CLASSES

from dada import ops
from dada.models import layers
from dada.searches.ddas import config as ddas_config
from dada.searches.ddas import input as ddas_input
from dada.searches.ddas import search as ddas_search

FULL = ops.search_space("ddas_sanity")
# Few ops, so that the step compiles quickly and a planted op is tried often.
OPS = ("Identity", "FlipUD", "Invert", "Brightness")
SPACE = FULL._replace(rows=tuple(row for row in FULL.rows if row.name in OPS))
CANDIDATES = ddas_config.Candidates((0, 1, 2, 3), (0.0, 0.0, 0.0, 0.02))


def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """3x3 convolution, batch norm, softplus, pooling, linear: images of a batch depend on each other."""
    del key
    features = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features, batch_stats = layers.batch_norm(
        params["norm"], batch_stats, features, is_training, momentum=0.1, axis_name=axis_name
    )
    features = jax.nn.softplus(features)
    pooled = jnp.concatenate([features.mean((1, 2)), features[:, 1, 1]], -1)
    return pooled @ params["weight"] + params["bias"], batch_stats


def network(key=0):
    keys = jax.random.split(jax.random.key(key))
    norm, stats = layers.init_batch_norm(6)
    params = {
        "kernel": 0.4 * jax.random.normal(keys[0], (3, 3, 3, 6)),
        "norm": norm,
        "weight": 0.3 * jax.random.normal(keys[1], (12, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }
    return params, stats


def full(settings):
    """The same candidates as rows of a space that has a name, for extraction."""
    names = [row.name for row in FULL.rows]
    rows = tuple(names.index(name) for name in OPS)
    candidates = settings.candidates._replace(row=rows)
    return dataclasses.replace(settings, space=FULL, candidates=candidates)


def config(**changes):
    settings = {
        **{"apply": apply, "space": SPACE, "candidates": CANDIDATES, "steps_per_epoch": 4, "num_epochs": 3},
        **{"crop_padding": 1, "flip": True, "cutout_length": 2, "learning_rate": 0.1},
        **(ddas_config.OFFICIAL_SETTINGS if changes.get("preset") == "official" else {}),
        **changes,
    }
    return ddas_config.Config(**settings)


def start(settings, seed=0, spread=0.5):
    """A state with a policy away from its symmetric start."""
    state = ddas_search.init(jax.random.key(seed), settings, *network())
    alpha = spread * jax.random.normal(jax.random.key(9), state.policy.p_o.shape)
    return state._replace(policy=state.policy._replace(p_o=alpha))


@functools.partial(jax.jit, static_argnums=0)
def jitted_step(settings, state, train, valid):
    return ddas_search.step(settings, state, train, valid)


@functools.partial(jax.jit, static_argnums=0)
def jitted_gradients(settings, state, train, valid, policies=None):
    return ddas_search.gradients(settings, state, train, valid, policies=policies)


jitted_copies = jax.jit(ddas_input.copies, static_argnums=1)
