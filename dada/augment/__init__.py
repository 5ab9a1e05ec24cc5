"""From a policy and a key to augmented batches.

`sampling`: policy to draws. `draws`: draws to images, fast (`fast_path`) or differentiable. `base`: crop,
flip, colours, normalisation and cutout around a policy. `image_keys`: random numbers that belong to one image
wherever it is computed. Needs jax and numpy; copy with `ops` and `policies` beside it.
"""

from .base import (
    CIFAR_MEAN,
    CIFAR_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    base_augment,
    normalize,
    random_color_jitter,
    random_crop,
    random_cutout,
    random_flip,
    random_flip_with_boxes,
    random_lighting,
    random_scale_with_boxes,
)
from .draws import ImagesWithBoxes, apply_draws, apply_draws_differentiable, map_images
from .sampling import NOISE_SIZE, assemble_draws, random_centers, random_signs, sample

__all__ = [
    "CIFAR_MEAN",
    "CIFAR_STD",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "NOISE_SIZE",
    "ImagesWithBoxes",
    "apply_draws",
    "apply_draws_differentiable",
    "assemble_draws",
    "base_augment",
    "map_images",
    "normalize",
    "random_centers",
    "random_color_jitter",
    "random_crop",
    "random_cutout",
    "random_flip",
    "random_flip_with_boxes",
    "random_lighting",
    "random_scale_with_boxes",
    "random_signs",
    "sample",
]
