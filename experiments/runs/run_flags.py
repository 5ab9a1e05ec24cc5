"""Flags that search and training share: where a run happens, on what data, and how the network trains."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from dada import models
from experiments.data import datasets, detection_datasets, host_images, reduced_imagenet
from experiments.runs import command_line, compilation_cache, devices, named_policy, tasks

# What may differ between the processes of one run.
PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id", "coordinator_timeout")
MAX_EPOCHS = 1_000_000
_MAX_SIDE = 4096  # pixels
# What says where, with which seed and how a run happens, not what was run.
NOT_RECIPE = (
    *("run_dir", "resume", "seed", "num_seeds", "data_dir", "download", "smoke", "measure_cost"),
    *("compilation_cache_dir", "num_devices", "input", "decode_threads"),
)
_LOADED = ("data_dir", "download", "image_size", "exif_orientation", "resize", "crop", "crop_area", "input")
# What `load_dataset` reads.
DATASET_FLAGS = (
    *("task", "dataset", "valid_dataset", "reduced_imagenet", *_LOADED),
    *("decode_threads", "pretrained"),
)
_PATHS = ("run_dir", "dataset", "data_dir", "valid_dataset", "policy", "pretrained", "proxy")


def define(values: flags.FlagValues) -> None:
    """Defines them."""
    add = command_line.definers(values)
    add.string("run_dir", None, "Folder for everything that the run writes; new or empty.")
    about = "Go on with a run that was interrupted, from its last checkpoint, if its inputs are the same."
    add.bool("resume", False, about)
    about = "Folder of compiled programs; empty for none. Default: dada/jax in the user's cache."
    add.string("compilation_cache_dir", None, about)
    add.integer("num_devices", None, "Devices that share every batch. Default: all.", 1)
    add.string("coordinator_address", None, "HOST:PORT of process 0, for a run of several processes.")
    add.integer("num_processes", None, "Processes of the run.", 1)
    add.integer("process_id", None, "Number of this process, from 0.", 0)
    add.integer("coordinator_timeout", 60, "Seconds to wait for the other processes at the start.", 1, 86_400)
    add.integer("seed", 0, "Seed of everything random.", 0, command_line.MAX_SEED)
    add.integer("num_seeds", 1, "Runs with seeds seed, seed + 1, ...", 1, command_line.MAX_SEEDS)

    add.enum("task", "classification", tasks.NAMES, "What the network learns to do.")
    about = (
        f"One of {', '.join(datasets.NAMES)}, an .npz or a folder; of detection embedded or files of COCO."
    )
    add.string("dataset", "embedded", about)
    add.string("data_dir", None, "Folder with the official files of CIFAR or SVHN.")
    add.bool("download", False, "Fetch the official files into --data_dir if they are missing.")
    about = "Side to which images of folders and of COCO are brought. Default: as they are."
    add.integer("image_size", None, about, 1, _MAX_SIDE)
    about = (
        "Shorter side before the centre crop, as in papers on ImageNet: 256 for 224. Default: --image_size."
    )
    add.integer("resize", None, about, 1, _MAX_SIDE)
    about = "Of training images of folders: as all others, or of random size and place, new in every epoch."
    add.enum("crop", "center", host_images.CROPS, about)
    add.float("crop_area", 0.08, "Smallest share of an image in a random crop.", 0.0, 1.0)
    about = (
        "Where training images are: decoded on the host when needed, for folders only, or held on the device."
    )
    add.enum("input", None, ("device", "host"), f"{about} Default: device, where they fit.")
    about = "Threads that decode them on the host. Default: one for each core."
    add.integer("decode_threads", None, about, 1, 1000)
    add.bool("exif_orientation", True, "Turn photos of folders upright, as their EXIF entry says.")
    about = "NAME[:VALUE],..., on every validation image of a search or test image of a training; or empty."
    add.string("planted_op", None, about)

    about = f"Network: {models.FORMS}; to find objects {models.DETECTOR_FORMS}."
    add.string("model", None, f"{about} Default: {' or '.join(tasks.DEFAULT_MODEL.values())}, by --task.")
    about = "The network sees only the middle of so many pixels of an image, after the policy. Default: all."
    add.integer("final_crop", None, about, 1, _MAX_SIDE)
    about = "Weights to start from, named as in torchvision, .safetensors or .npz; normalises as ImageNet."
    add.string("pretrained", None, about)
    about = "Passes over the training images; a search of DADA counts an image once for every draw of it."
    add.integer("epochs", None, about, 1, MAX_EPOCHS)
    add.integer("batch_size", 128, "Training images per step.", 2)
    add.float("learning_rate", 0.1, "Of the network, at the start.", lower_bound=0.0)
    add.float("weight_decay", 2e-4, "Of the network.", lower_bound=0.0)
    add.float("clip_norm", 5.0, "Largest norm of the network's gradient; 0 for none.", lower_bound=0.0)
    about = "Random crop with this padding; 0 for none. Default: 4, or 0 with --crop=random_resized."
    add.integer("crop_padding", None, about, 0, _MAX_SIDE)
    add.bool("flip", True, "Random horizontal flip.")
    add.integer("cutout_length", 16, "Side of the cutout after the policy; 0 for none.", 0, _MAX_SIDE)
    about = "Random brightness, contrast and colour: factors from 1 minus to 1 plus this; 0 for none."
    add.float("color_jitter", 0.0, about, 0.0, 1.0)
    about = "Random colour cast along ImageNet's principal components, its deviation; 0 for none."
    add.float("lighting", 0.0, about, lower_bound=0.0)
    about = "Random scale of images with boxes, by 1 minus to 1 plus this; 0 for none."
    add.float("scale_jitter", 0.0, about, 0.0, 0.9)


def as_dict(values: flags.FlagValues) -> dict[str, Any]:
    """The flags of a command by name, as they were given, without those of one process alone; ~ is a home."""
    given = {name: flag.value for name, flag in _flags(values).items() if name not in PROCESS_FLAGS}
    paths = {name: os.path.expanduser(given[name]) for name in _PATHS if given.get(name)}
    if given.get("judge_also"):
        names = named_policy.split(",".join(given["judge_also"]))
        paths["judge_also"] = [os.path.expanduser(name) for name in names]
    return {**given, **paths}


def given(values: flags.FlagValues) -> set[str]:
    """Names of the flags that were given, on the command line or in a flag file."""
    return {name for name, flag in _flags(values).items() if flag.present}


def unread(settings: Mapping[str, Any]) -> dict[str, str]:
    """Flags that have no effect, and the flag that makes it so.

    Raises: as `tasks.unread`.
    """
    of_crop = {"crop_area": "--crop=center"} if settings["crop"] == "center" else {}
    return of_crop | tasks.unread(settings)


def defaults(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the flags that were not given, where they depend on other flags."""
    model = tasks.DEFAULT_MODEL[settings["task"]]
    return {"crop_padding": 4 if settings["crop"] == "center" else 0, "model": model}


def given_in_vain(values: flags.FlagValues, unread: Iterable[str]) -> list[str]:
    """Those of the flags that nothing reads which were given another value than their default."""
    return [name for name in unread if values[name].present and values[name].value != values[name].default]


def load_dataset(settings: Mapping[str, Any]) -> datasets.Dataset:
    """The data set that resolved flags say.

    Raises: as `datasets.load`; ValueError for a flag that has no effect.
    """
    if settings["task"] == "detection":
        dataset = detection_datasets.load(settings["dataset"], settings["image_size"])
    else:
        given = {name: settings[name] for name in _LOADED if name in settings}
        valid_dataset = settings.get("valid_dataset") or None
        dataset = datasets.load(settings["dataset"], **given, valid_dataset=valid_dataset)
        if reduced := settings.get("reduced_imagenet"):
            dataset = reduced_imagenet.reduce(reduced, dataset)
        if settings.get("decode_threads") and not dataset.is_streamed:
            got = f"--decode_threads={settings['decode_threads']}"
            raise ValueError(f"{got} has no effect with --input=device")
    if settings["pretrained"]:
        mean, std = datasets.imagenet_statistics()
        dataset = dataset._replace(mean=mean, std=std)
    return dataset


def load_again(texts: Mapping[str, str]) -> datasets.Dataset:
    """The data set of a run from its flags as text, of which only those of `define` and data are read."""
    values = flags.FlagValues()
    define(values)
    known = [f"--{name}={text}" for name, text in texts.items() if name in values]
    settings = as_dict(command_line.parse(define, known)[0])
    of_searches = {name: texts.get(name) for name in DATASET_FLAGS if name not in values}
    return load_dataset({**settings, **of_searches, "download": False})


def _flags(values):
    return {name: values[name] for name in values if name != "debug"}


def start(values: flags.FlagValues) -> None:
    """Joins the other processes of a run and finds compiled programs, before anything is computed.

    Raises:
      ValueError: flags that are missing or wrong. OSError: an address or a folder cannot be used.
    """
    if values["process_id"].value is not None and values["run_dir"].value is None:
        raise ValueError("--run_dir: got none, expected one folder for all processes of the run")
    if values["process_id"].value is None and given_in_vain(values, ["coordinator_timeout"]):
        raise ValueError("--coordinator_timeout has no effect without --process_id")
    devices.start(*(values[name].value for name in PROCESS_FLAGS))
    compilation_cache.use(values["compilation_cache_dir"].value)
