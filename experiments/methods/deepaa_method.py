"""What the search binary needs to know of DeepAA; a method as `dada_method` is one."""

import dataclasses
import pathlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from absl import flags

from dada import ops
from dada.searches.deepaa import config as deepaa_config
from dada.searches.deepaa import search as deepaa_search
from dada.training import sgd
from experiments.data import datasets
from experiments.methods import deepaa_run
from experiments.runs import compiled_loop, devices, run_folder

FLAGS = flags.FLAGS
library = deepaa_search
DIVIDED = ("num_points", "batch_size")

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(deepaa_config.Config)}
_SPLIT_SEED = 0  # the same three parts for all seeds of a search

flags.DEFINE_integer("num_layers", _DEFAULTS["num_layers"], "Layers, one after another.", lower_bound=1)
flags.DEFINE_integer("updates_per_layer", _DEFAULTS["updates_per_layer"], "Policy updates.", lower_bound=1)
flags.DEFINE_integer("num_points", 16, "Images per update, with clean ones of their class.", lower_bound=1)
flags.DEFINE_integer(
    "num_chains", _DEFAULTS["num_chains"], "From layer 2 on: draws for the training gradient.", lower_bound=1
)
flags.DEFINE_integer(
    "num_prefixes", _DEFAULTS["num_prefixes"], "From layer 2 on: draws of the layers below.", lower_bound=1
)
flags.DEFINE_float(
    "penalty", _DEFAULTS["penalty"], "From layer 2 on: deviations taken off a score.", lower_bound=0.0
)
flags.DEFINE_float(
    "stop_probability",
    None,
    "A layer with more Identity than this is the last one; 0 for never. Default: 0.95; official: 0.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_integer("chunk_size", _DEFAULTS["chunk_size"], "Images in the network at once.", lower_bound=1)
flags.DEFINE_string("proxy", None, "Run folder of a trained network of --model. Default: trains one first.")
flags.DEFINE_integer(
    "proxy_images", None, "Training images that only the proxy sees. Default: a tenth.", lower_bound=1
)


def defaults() -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    official = deepaa_config.OFFICIAL_SETTINGS if FLAGS.preset == "official" else {}
    settings = {**_DEFAULTS, **official}
    return {
        "search_space": "deepaa",
        "extra_ops": list(deepaa_config.CIFAR_OPS),
        "epochs": 45,
        "weight_decay": 5e-4,
        "valid_batch_size": 64,
        "policy_learning_rate": settings["policy_learning_rate"],
        "stop_probability": settings["stop_probability"] or 0.0,
    }


def _parts(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images of the proxy, of the search, and clean ones: a tenth, seven tenths, a fifth.

    Shuffled; in the official preset as they come.
    """
    count = len(dataset.train_labels)
    order = np.arange(count)
    if FLAGS.preset == "corrected":
        order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    first, last = FLAGS.proxy_images or count // 10, count - count // 5
    if first >= last:
        raise ValueError(f"--proxy_images={first}: expected less than {last} of the {count} training images")
    return order[:first], order[first:last], order[last:]


def split(dataset: datasets.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Images to augment and clean images, by their place in the training set.

    Raises:
      ValueError: a class has too few of them.
    """
    _, train, valid = _parts(dataset)
    for part, name, needed in ((train, "augmented", 1), (valid, "clean", FLAGS.valid_batch_size)):
        counts = np.bincount(dataset.train_labels[part], minlength=dataset.num_classes)
        if counts.min() < needed:
            raise ValueError(
                f"--valid_batch_size={FLAGS.valid_batch_size}: class {counts.argmin()} has {counts.min()} "
                f"images to be {name}, expected {needed} or more of every class"
            )
    return train, valid


def config(
    network: ModuleType, space: ops.SearchSpace, dataset: datasets.Dataset, steps_per_epoch: int
) -> deepaa_config.Config:
    """The settings that the flags say.

    Raises:
      ValueError: settings that do not go together. FileNotFoundError: --proxy is no run folder.
    """
    del steps_per_epoch
    if not network.FORWARD_MODE:
        raise ValueError(f"--model={FLAGS.model} has no forward mode, which DeepAA needs")
    if FLAGS.proxy is None:
        _proxy(dataset)
    else:
        model = run_folder.read_flags(FLAGS.proxy).get("model")
        if model != FLAGS.model or run_folder.RunFolder(FLAGS.proxy).latest_step() is None:
            raise ValueError(f"--proxy={FLAGS.proxy}: expected a trained {FLAGS.model}, got a run of {model}")
    return deepaa_config.Config(
        apply=network.apply,
        space=space,
        stop_probability=FLAGS.stop_probability or None,
        chunk_loop="scan" if compiled_loop.scans() or devices.mesh() is not None else "python",
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
        **{
            name: getattr(FLAGS, name)
            for name in (
                "preset",
                "num_layers",
                "updates_per_layer",
                "num_chains",
                "num_prefixes",
                "policy_learning_rate",
                "penalty",
                "chunk_size",
            )
        },
    )


def _proxy(dataset):
    part, _, _ = _parts(dataset)
    if FLAGS.batch_size > len(part):
        raise ValueError(f"--batch_size={FLAGS.batch_size}: the proxy has only {len(part)} training images")
    names = ("learning_rate", "weight_decay", "crop_padding", "flip", "cutout_length")
    return deepaa_run.Proxy(
        folder=FLAGS.proxy and pathlib.Path(FLAGS.proxy),
        images=sgd.Batch(dataset.train_images[part], dataset.train_labels[part]),
        num_epochs=FLAGS.epochs,
        batch_size=FLAGS.batch_size,
        settings={name: getattr(FLAGS, name) for name in names} | {"clip_norm": FLAGS.clip_norm or None},
    )


def planted_levels(config: deepaa_config.Config, row: int) -> tuple[float, ...]:
    """Levels of an op's actions, the last one first."""
    actions = zip(*deepaa_config.actions(config))
    return tuple(float(level) for other, level in actions if other == row)[::-1]


def run(task: Any, folders: dict[int, run_folder.RunFolder]) -> Iterator[tuple[int, Any]]:
    """`deepaa_run.run` with what the flags say of the proxy."""
    plan = deepaa_run.Plan(FLAGS.num_points, FLAGS.model, _proxy(task.dataset))
    return deepaa_run.run(plan, task, folders)
