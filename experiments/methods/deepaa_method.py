"""The flags of DeepAA, and its method."""

import os
import pathlib
from typing import Any

import numpy as np
from absl import flags

from dada.searches import deepaa
from dada.searches.deepaa import config as deepaa_config
from dada.training import sgd
from experiments.data import datasets
from experiments.methods import deepaa_run
from experiments.methods.method import Method, Settings, defaults_of
from experiments.runs import command_line, compiled_loop, run_folder

_DEFAULTS = defaults_of(deepaa.Config)
_SPLIT_SEED = 0  # the same three parts for all seeds of a search
# Flags of the training of a proxy only, of that and --judge, and of the layers on top of the first one.
_OF_PROXY = ("epochs", "learning_rate", "weight_decay", "clip_norm")
_BASE = ("crop_padding", "flip", "cutout_length", "color_jitter", "lighting")
_OF_UPPER_LAYERS = ("num_chains", "num_prefixes", "penalty", "stop_probability")


def define(values: flags.FlagValues) -> None:
    """Defines the flags of this method only."""
    add = command_line.definers(values)
    add.integer("num_layers", _DEFAULTS["num_layers"], "Layers, one after another.", lower_bound=1)
    add.integer("updates_per_layer", _DEFAULTS["updates_per_layer"], "Policy updates.", lower_bound=1)
    add.integer("num_points", 16, "Images per update, with clean ones of their class.", lower_bound=1)
    for name, what in (("num_chains", "the training gradient"), ("num_prefixes", "the layers below")):
        add.integer(name, _DEFAULTS[name], f"From layer 2 on: draws for {what}.", 1, 1_000_000)
    add.float("penalty", _DEFAULTS["penalty"], "From layer 2 on: deviations off a score.", lower_bound=0.0)
    add.float(
        "stop_probability",
        None,
        "A layer with more Identity than this is the last one; 0 for never.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    add.integer("chunk_size", _DEFAULTS["chunk_size"], "Images in the network at once.", lower_bound=1)
    add.string("proxy", None, "Run folder of a trained network of --model. Default: trains one first.")
    about = "Training images that the search leaves to the proxy, to that of --proxy too. Default: a tenth."
    add.integer("proxy_images", None, about, lower_bound=1)


def unread(settings: Settings) -> dict[str, str]:
    """Flags that have no effect, and the flag that makes it so."""
    names = dict.fromkeys(("crop", "crop_area", "decode_threads"), "--method=deepaa")
    if settings["num_layers"] == 1:
        names |= dict.fromkeys(_OF_UPPER_LAYERS, "--num_layers=1")
    of_proxy = _OF_PROXY if settings["judge"] else (*_OF_PROXY, *_BASE)
    if settings["pretrained"]:
        names |= dict.fromkeys(("proxy", *of_proxy), "--pretrained")
    elif settings["proxy"]:
        given = run_folder.read_flags(os.path.expanduser(settings["proxy"]))
        other = (flag for flag in of_proxy if _number(given.get(flag)) != _number(settings[flag]))
        names |= dict.fromkeys(other, "--proxy, which was trained otherwise")
    return names


def _number(value):
    """Of a flag or its text; none is 0."""
    return float({"true": 1, "false": 0}.get(value, value or 0))


def defaults(settings: Settings) -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags or on the method."""
    official = deepaa_config.OFFICIAL_SETTINGS if settings["preset"] == "official" else {}
    fields = {**_DEFAULTS, **official}
    return {
        "search_space": "deepaa",
        "extra_ops": list(deepaa_config.CIFAR_OPS),
        "epochs": 45,
        "weight_decay": 5e-4,
        "valid_batch_size": 64,
        "policy_learning_rate": fields["policy_learning_rate"],
        "stop_probability": fields["stop_probability"] or 0.0,
    }


def _parts(dataset: datasets.Dataset, settings: Settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the images of the proxy, of the search, and clean ones: a tenth, seven tenths, a fifth.

    Shuffled; in the official preset as they come. A data set with validation images has its clean images in
    them, so that the search gets the fifth, too.
    """
    count = len(dataset.train_labels)
    order = np.arange(count)
    if settings["preset"] == "corrected":
        order = np.random.RandomState(_SPLIT_SEED).permutation(count)
    num_clean = count // 5 if dataset.valid_images is None else 0
    first, last = settings["proxy_images"] or count // 10, count - num_clean
    if first >= last:
        raise ValueError(f"--proxy_images={first}: expected less than {last} of the {count} training images")
    return order[:first], order[first:last], order[last:]


def _split(dataset: datasets.Dataset, settings: Settings) -> tuple[sgd.Batch, sgd.Batch]:
    """Images to augment and clean images, some of every class; validation images may lack a class."""
    train, clean = (
        sgd.Batch(dataset.train_images[part], dataset.train_labels[part])
        for part in _parts(dataset, settings)[1:]
    )
    classes = np.arange(dataset.num_classes)
    if dataset.valid_images is not None:
        clean = sgd.Batch(dataset.valid_images, dataset.valid_labels)
        classes = np.unique(clean.labels)
    for part, name in ((train, "augmented"), (clean, "clean")):
        missing = np.setdiff1d(classes, part.labels)
        if missing.size:
            raise ValueError(f"class {missing[0]} has no image to be {name}, expected one or more")
    return tuple(
        _equal_part(part, settings[flag], len(classes))
        for part, flag in ((train, "num_train"), (clean, "num_valid"))
    )


def _equal_part(part, count, num_classes):
    """`count` images, as many of every class where that can be: a data point draws its class first."""
    of_each, rest = divmod(count or 0, num_classes)
    _, counts = np.unique(part.labels, return_counts=True)
    if not of_each or rest or counts.min() < of_each:
        return part
    return datasets.part_of(part, datasets.first_of_each(part.labels, of_each))


def _largest_batches(train: sgd.Batch, clean: sgd.Batch) -> dict[str, tuple[int, str]]:
    """Clean images of the rarest class: a data point has as many of its own class, all different.

    --batch_size is of the proxy's images, see `_plan`.
    """
    del train
    classes, counts = np.unique(clean.labels, return_counts=True)
    rarest = counts.argmin()
    about = f"class {classes[rarest]} has {counts[rarest]} images to be clean"
    return {"valid_batch_size": (int(counts[rarest]), about)}


def _config(settings: Settings, fields: dict[str, Any], mesh: Any) -> deepaa.Config:
    loop = "scan" if compiled_loop.scans() or mesh is not None else "python"
    stop_probability = settings.get("stop_probability") or None
    return deepaa.Config(**{**fields, "stop_probability": stop_probability, "chunk_loop": loop})


def _plan(settings: Settings, dataset: datasets.Dataset) -> deepaa_run.Plan:
    part, _, _ = _parts(dataset, settings)
    path = settings.get("proxy")
    trains = path is None and not settings["pretrained"]
    if trains and settings["batch_size"] > len(part):
        raise ValueError(
            f"--batch_size={settings['batch_size']}: the proxy has only {len(part)} training images"
        )
    if path is not None:
        model = run_folder.read_flags(path).get("model")
        if model != settings["model"] or run_folder.RunFolder(path).latest_step() is None:
            raise ValueError(f"--proxy={path}: expected a trained {settings['model']}, got a run of {model}")
    proxy = deepaa_run.Proxy(
        folder=path and pathlib.Path(path),
        images=sgd.Batch(dataset.train_images[part], dataset.train_labels[part]),
        num_epochs=settings.get("epochs", 0),
        batch_size=settings["batch_size"],
        # Without a training the yardstick of --measure_cost is left, for which the numbers do not matter.
        settings={name: settings.get(name, 0.0) for name in ("learning_rate", "weight_decay", *_BASE)}
        | {"clip_norm": settings.get("clip_norm") or None},
    )
    return deepaa_run.Plan(settings["num_points"], settings["model"], proxy)


def _planted_levels(config: deepaa.Config, row: int) -> tuple[float, ...]:
    """Levels of an op's actions, the last one first."""
    actions = zip(*deepaa_config.actions(config))
    return tuple(float(level) for other, level in actions if other == row)[::-1]


CORRECTED = Method(
    library=deepaa,
    divided=("num_points", "batch_size"),
    streams=False,
    watched=("cosine",),
    maps_seeds=False,
    policy_position="first",
    stands_alone=True,  # it has flip, cutout and crop of its own, and the flags say how the proxy trains
    split=_split,
    largest_batches=_largest_batches,
    config=_config,
    plan=_plan,
    planted_levels=_planted_levels,
    total_steps=deepaa_run.total_steps,
    next_stop=deepaa_run.next_stop,
    start=deepaa_run.start,
    proceed=deepaa_run.proceed,
    steps=deepaa_run.Steps,
    plain_steps=deepaa_run.plain_steps,
    report=deepaa_run.report,
    contents=deepaa_run.proxy_contents,
)
METHODS = {"corrected": CORRECTED, "official": CORRECTED}  # the library's Config knows the preset
