"""What the search binary needs to know of DDAS; a method as `dada_method` is one."""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dada import ops, policies
from dada.searches.ddas import candidates as ddas_candidates
from dada.searches.ddas import config as ddas_config
from dada.searches.ddas import search as ddas_search
from experiments.data import datasets
from experiments.methods import search_loop, search_run

FLAGS = flags.FLAGS
library = ddas_search
run = search_run.run
split = datasets.search_split
DIVIDED = ("batch_size", "valid_batch_size")

flags.DEFINE_integer("num_policies", 3, "Policies sampled in a step, or for an image of it.", lower_bound=1)
flags.DEFINE_integer("num_ops", 2, "Ops in a sampled policy.", lower_bound=1)
flags.DEFINE_list(
    "magnitudes",
    [],
    "Magnitudes of every op: 0..30 in a ddas space, levels 0..1 in others. Default: the space's own.",
)
flags.DEFINE_bool(
    "share_randomness", None, "One crop, flip and cutout for all copies of an image. Official: no."
)
flags.DEFINE_float("p_tp", 0.35, "Probability of augmenting an image at all, at the start.", 0.0, 1.0)
flags.DEFINE_bool("learn_p_tp", True, "Learn --p_tp; without it p_tp stays.")
flags.DEFINE_float(
    "p_tp_learning_rate", None, "Adam, of p_tp. Default: 0.01; official: 0.001.", lower_bound=0.0
)
flags.DEFINE_integer("smoothing", 1, "Epochs over which the policy's p_tp is averaged.", lower_bound=1)
flags.DEFINE_float("momentum", 0.0, "Of the network's SGD.", 0.0, 1.0)
flags.DEFINE_bool("nesterov", False, "Nesterov's momentum.")


def defaults() -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    settings = {field.name: field.default for field in dataclasses.fields(ddas_config.Config)}
    settings.update(ddas_config.OFFICIAL_SETTINGS if FLAGS.preset == "official" else {})
    names = ("draws", "share_randomness", "learning_rate", "weight_decay", "policy_learning_rate")
    return {
        "search_space": "ddas",
        "batch_size": 32,
        "valid_batch_size": 256,
        "clip_norm": 0.0,
        "p_tp_learning_rate": settings["p_tp_learning_rate"],
        **{name: settings[name] for name in names},
    }


def _candidates(space: ops.SearchSpace) -> ddas_candidates.Candidates:
    if FLAGS.preset == "official":
        if FLAGS.magnitudes:
            raise ValueError("--magnitudes: the official preset has one, 28, whatever its candidates say")
        return ddas_candidates.as_released(space)
    try:
        magnitudes = tuple(float(text) for text in FLAGS.magnitudes)
    except ValueError:
        raise ValueError(f"--magnitudes: got {','.join(FLAGS.magnitudes)}, expected numbers") from None
    return ddas_candidates.candidates(space, magnitudes or None)


def config(
    network: ModuleType, space: ops.SearchSpace, dataset: datasets.Dataset, steps_per_epoch: int
) -> ddas_config.Config:
    """The settings that the flags say.

    Raises:
      ValueError: settings that do not go together.
    """
    if FLAGS.draws == "image" and not network.FORWARD_MODE:
        raise ValueError(f"--model={FLAGS.model} has no forward mode: --draws=batch")
    return ddas_config.Config(
        apply=network.apply,
        space=space,
        candidates=_candidates(space),
        num_epochs=FLAGS.epochs,
        steps_per_epoch=steps_per_epoch,
        initial_p_tp=FLAGS.p_tp,
        momentum_decay=FLAGS.momentum,
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
        clip_norm=FLAGS.clip_norm or None,
        **{
            name: getattr(FLAGS, name)
            for name in (
                "preset",
                "num_policies",
                "num_ops",
                "draws",
                "share_randomness",
                "learn_p_tp",
                "learning_rate",
                "nesterov",
                "weight_decay",
                "policy_learning_rate",
                "p_tp_learning_rate",
                "smoothing",
                "crop_padding",
                "flip",
                "cutout_length",
            )
        },
    )


def planted_levels(config: ddas_config.Config, row: int) -> tuple[float, ...]:
    """Levels of an op's candidates, from the middle one up, then the ones below."""
    levels = [level for other, level in zip(*config.candidates) if other == row]
    middle = len(levels) // 2
    return (*levels[middle:], *levels[:middle])


def valid_indices(
    config: ddas_config.Config, key: jax.Array, step: jax.Array, count: int, size: int
) -> jax.Array:
    """Validation images of a step, int32 [size].

    In the official preset the batches of every epoch are the same ones in the same order.
    """
    if config.preset == "official":
        batch = step % config.steps_per_epoch % -(-count // size)
        return (batch * size + jnp.arange(size)) % count
    return search_loop.random_indices(key, step, count, size)


def learning_rate(config: ddas_config.Config, step: jax.Array) -> jax.Array:
    """Learning rate of the network at a step."""
    return ddas_config.learning_rate(config, step)


def report(
    config: ddas_config.Config, state: ddas_search.SearchState, found: policies.Policy
) -> dict[str, Any]:
    """What summary.json says of this method only: the start, and p_tp of every epoch as in the policy."""
    del state
    rows = np.array(config.candidates.row)
    share = np.bincount(rows, minlength=len(config.space.rows)) / len(rows)
    start = config.initial_p_tp * config.num_ops * share
    return {
        "op_mass_initial": dict(zip([row.name for row in config.space.rows], start.tolist())),
        "steps_per_epoch": config.steps_per_epoch,
        "p_tp_initial": config.initial_p_tp,
        "p_tp": found.content.p_tp,
    }
