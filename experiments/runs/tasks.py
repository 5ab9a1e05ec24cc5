"""What a network learns to do: to name the class of an image, or to find objects of several classes in it."""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from dada import models
from dada.detection import candidates, losses
from dada.models import retinanet
from experiments.data import datasets

NAMES = ("classification", "detection")
DEFAULT_MODEL = {"classification": "wrn_40_2", "detection": "retinanet_resnet_18_16"}
# Flags that have no effect, by task; of a command that has them.
_UNREAD = {
    "classification": ("scale_jitter",),
    "detection": (
        *("data_dir", "download", "exif_orientation", "valid_dataset", "reduced_imagenet"),
        *("input", "decode_threads", "resize", "crop", "crop_area"),
        *("crop_padding", "cutout_length", "color_jitter", "lighting", "label_smoothing", "policy_position"),
    ),
}
# Candidates of an image, of which 100 count at most.
_CANDIDATES = 1000
# Of the other flags of detection, words that cannot be.
_ALLOWED = {
    "method": ("dada", "ddas"),
    "preset": ("corrected",),
    "estimator": ("relax", "reinforce"),  # mixtures of images would need mixtures of boxes
    "judge": (False,),
    "dtype": ("float32",),
}


def unread(settings: dict[str, Any]) -> dict[str, str]:
    """Flags that have no effect, and the flag that makes it so.

    Raises:
      ValueError: another flag does not go with the task.
    """
    task = settings["task"]
    if task == "detection":
        for flag, allowed in _ALLOWED.items():
            if settings.get(flag, allowed[0]) not in allowed:
                expected = f"{' or '.join(map(str, allowed))} with --task=detection"
                raise ValueError(f"--{flag}={settings[flag]}: expected {expected}")
    return {flag: f"--task={task}" for flag in _UNREAD[task] if flag in settings}


def network(settings: dict[str, Any], dataset: datasets.Dataset) -> tuple[ModuleType, Any]:
    """Module and Config of the network of the flags; ValueError for an unknown one."""
    if settings["task"] == "detection":
        return models.detector_by_name(settings["model"], dataset.num_classes)
    return models.by_name(settings["model"], dataset.num_classes, max(dataset.train_images.shape[1:3]))


def fields(settings: dict[str, Any], model: tuple[ModuleType, Any]) -> dict[str, Any]:
    """The fields of a library's Config that say what the network is and how it learns."""
    module, config = model
    if settings["task"] == "classification":
        return {"apply": module.apply}
    # As is usual: batch norm keeps what it has learned before.
    frozen = {"frozen_batch_norm": True} if settings["pretrained"] else {}
    return {
        "apply": functools.partial(module.apply, **frozen),
        "losses": functools.partial(losses.of_batch, functools.partial(retinanet.anchors, config)),
    }


def decoder(model: tuple[ModuleType, Any], image_size: tuple[int, int]) -> Callable:
    """From the outputs of a detector to its candidates (`detection.candidates`)."""
    _, config = model
    anchors = retinanet.anchors(config, image_size)

    def decode(outputs):
        return candidates.best(*outputs, anchors, image_size, _CANDIDATES)

    return decode
