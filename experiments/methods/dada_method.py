"""What the search binary needs to know of DADA: its flags, settings, batches and report.

A method is a module with `library` (init, step, extract_policy), `split` of the training images, `run`, the
flags of the batches that several devices share, DIVIDED, and the functions of this one.
"""

import dataclasses
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from dada import ops
from dada.searches.dada import config as dada_config
from dada.searches.dada import search as dada_search
from dada.searches.dada import space as policy_space
from dada.searches.dada_official import official as dada_official
from experiments.data import datasets
from experiments.methods import search_loop, search_run

FLAGS = flags.FLAGS
library = dada_search
run = search_run.run
split = datasets.search_split
DIVIDED = ("batch_size", "valid_batch_size")

flags.DEFINE_enum("policy_space", "pairs", ("pairs", "slots"), "What the policy is made of.")
flags.DEFINE_enum("estimator", "relax", dada_config.ESTIMATORS, "Estimator of the policy gradient.")
flags.DEFINE_enum(
    "hypergradient",
    None,
    ("exact", "finite_difference"),
    "Directional derivatives by JVP or by differences. Default: exact; official: finite_difference.",
)
flags.DEFINE_integer("top_k", 25, "Sub-policies that the policy keeps.", lower_bound=1)
flags.DEFINE_float(
    "control_learning_rate", None, "Adam, of RELAX's control variate. Default: 0.01; official: 0.005.",
    lower_bound=0.0,
)
flags.DEFINE_bool("share_between_pairs", True, "Pairs that have an op in common share gradients.")
flags.DEFINE_bool("orthogonal_to_clean", False, "Pay ops for what un-augmented images do not teach.")
flags.DEFINE_enum(
    "validation_statistics",
    "batch",
    ("batch", "running"),
    "Of batch norm at the validation images; running: as in a test.",
)
flags.DEFINE_float("temperature", None, "Of relaxed samples: 0.5; 1.0 for mixtures.", lower_bound=1e-3)
flags.DEFINE_float(
    "final_temperature", None, "At the end. Default: --temperature; 0.1 for mixtures.", lower_bound=1e-3
)


def defaults() -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    is_official = FLAGS.preset == "official"
    is_mixture = FLAGS.estimator in ("gumbel", "straight_through") and not is_official
    settings = {field.name: field.default for field in dataclasses.fields(dada_config.Config)}
    settings.update(dada_official.SETTINGS if is_official else {})
    temperature = 1.0 if is_mixture else settings["temperature"][0]
    return {
        "search_space": "dada" if is_official else "strength",
        "valid_batch_size": FLAGS.batch_size,
        "draws": settings["draws"],
        "hypergradient": settings["hypergradient"],
        "policy_learning_rate": settings["policy_learning_rate"],
        "control_learning_rate": settings["control_learning_rate"],
        "temperature": temperature,
        "final_temperature": 0.1 if is_mixture else FLAGS.temperature or temperature,
    }


def config(
    network: ModuleType, space: ops.SearchSpace, dataset: datasets.Dataset, steps_per_epoch: int
) -> dada_config.Config:
    """The settings that the flags say.

    Raises:
      ValueError: settings that do not go together.
    """
    if FLAGS.hypergradient == "exact" and not network.FORWARD_MODE:
        raise ValueError(f"--model={FLAGS.model} has no forward mode: --hypergradient=finite_difference")
    return dada_config.Config(
        apply=network.apply,
        space=space,
        num_epochs=FLAGS.epochs,
        steps_per_epoch=steps_per_epoch,
        temperature=(FLAGS.temperature, FLAGS.final_temperature),
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
        clip_norm=FLAGS.clip_norm or None,
        **{
            name: getattr(FLAGS, name)
            for name in (
                "preset",
                "policy_space",
                "draws",
                "estimator",
                "hypergradient",
                "learning_rate",
                "weight_decay",
                "policy_learning_rate",
                "control_learning_rate",
                "share_between_pairs",
                "orthogonal_to_clean",
                "validation_statistics",
                "crop_padding",
                "flip",
                "cutout_length",
                "top_k",
            )
        },
    )


def planted_levels(config: dada_config.Config, row: int) -> tuple[float, ...]:
    """Levels at which an op is planted, the first that changes images, if no value is given."""
    del config, row
    return (0.5, 1.0)


def valid_indices(
    config: dada_config.Config, key: jax.Array, step: jax.Array, count: int, size: int
) -> jax.Array:
    """Validation images of a step, int32 [size]; the first ones in every step of the official preset."""
    if config.preset == "official":
        return jnp.arange(size)
    return search_loop.random_indices(key, step, count, size)


def learning_rate(config: dada_config.Config, step: jax.Array) -> jax.Array:
    """Learning rate of the network at a step."""
    return dada_config.learning_rate(config, step)


def report(config: dada_config.Config, state: dada_search.SearchState, found) -> dict[str, Any]:
    """What summary.json says of this method only: the start, and the learned distribution."""
    del found
    num_ops = len(config.space.rows)
    learned = dada_config.distribution(config, state.policy)
    start = policy_space.op_mass(policy_space.init(config.policy_space, num_ops), num_ops)
    return {
        "op_mass_initial": dict(zip([row.name for row in config.space.rows], start.tolist())),
        "distribution": {
            "op": jax.nn.softmax(learned.op),
            "application": jax.nn.sigmoid(learned.application),
            "level": jax.nn.sigmoid(learned.level),
        },
    }
