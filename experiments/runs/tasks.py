"""What a network learns to do: to name the class of an image, or to find objects of several classes in it."""

import functools
import types
from collections.abc import Callable
from typing import Any

import jax

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
        "final_crop",
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


def network(settings: dict[str, Any], dataset: datasets.Dataset) -> tuple[Any, Any]:
    """The network of the flags as `init` and `apply`, and its Config; ValueError for one that cannot be."""
    name, crop, sides = settings["model"], settings.get("final_crop"), dataset.train_images.shape[1:3]
    if crop and crop > min(sides):
        raise ValueError(f"--final_crop={crop}: expected no more than {min(sides)}, which the images have")
    try:
        if settings["task"] == "detection":
            module, config = models.detector_by_name(name, dataset.num_classes)
        else:
            module, config = models.by_name(name, dataset.num_classes, crop or max(sides))
        jax.eval_shape(lambda: module.init(jax.random.key(0), config))  # refuses sizes
    except ValueError as error:
        raise ValueError(f"--model: {error}") from error
    return (_of_center(module, crop) if crop else module), config


def _of_center(module, size):
    """A network that sees the middle of its images, with odd margins as of `host_crops.center_crop`."""

    def apply(params, batch_stats, images, *args, **kwargs):
        top, left = (round((side - size) / 2) for side in images.shape[1:3])
        center = images[:, top : top + size, left : left + size]
        return module.apply(params, batch_stats, center, *args, **kwargs)

    return types.SimpleNamespace(init=module.init, apply=apply)


def fields(settings: dict[str, Any], model: tuple[Any, Any]) -> dict[str, Any]:
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


def decoder(model: tuple[Any, Any], image_size: tuple[int, int]) -> Callable:
    """From the outputs of a detector to its candidates (`detection.candidates`)."""
    _, config = model
    anchors = retinanet.anchors(config, image_size)

    def decode(outputs):
        return candidates.best(*outputs, anchors, image_size, _CANDIDATES)

    return decode
