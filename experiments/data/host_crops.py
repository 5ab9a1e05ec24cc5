"""From an image of any size to one of the size that a network takes, exactly as torchvision does with Pillow.

Resizing is bicubic, in two passes, width before height, as Pillow 12 does it in one call: Pillow 13 takes the
other order for tall crops, which gives other bytes.
"""

import math

import numpy as np
from PIL import Image

_ATTEMPTS = 10
_RATIOS = 3 / 4, 4 / 3  # of width to height
# Uniform numbers that `random_resized_box` reads.
NUM_UNIFORM = 2 * _ATTEMPTS + 2


def random_resized_box(
    uniform: np.ndarray, width: int, height: int, least_area: float = 0.08
) -> tuple[int, int, int, int]:
    """A random part of an image: the first of ten that fits in, else the largest allowed one in the centre.

    Args:
      uniform: float [NUM_UNIFORM], in [0, 1): share of the area and aspect ratio of each attempt, then where
        the part lies, from top to bottom and from left to right.
      width, height: of the image, in pixels.
      least_area: smallest share of the image's area.
    Returns:
      (left, top, width, height) in pixels.
    Reference: Szegedy et al. 2015, section 6; `RandomResizedCrop` of torchvision.
    """
    *attempts, (down, right) = uniform.reshape(-1, 2).tolist()
    low, high = map(math.log, _RATIOS)
    for area, ratio in attempts:
        target = width * height * (least_area + (1 - least_area) * area)
        ratio = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int((width - w + 1) * right), int((height - h + 1) * down), w, h
    w, h = width, height
    if width / height < _RATIOS[0]:
        h = round(width / _RATIOS[0])
    elif width / height > _RATIOS[1]:
        w = round(height * _RATIOS[1])
    return (width - w) // 2, (height - h) // 2, w, h


def random_resized_crop(
    image: Image.Image, uniform: np.ndarray, size: int, least_area: float = 0.08
) -> Image.Image:
    """A part of `random_resized_box`, brought to size x size; the filter sees no pixel outside it."""
    left, top, width, height = random_resized_box(uniform, *image.size, least_area)
    return resize(image.crop((left, top, left + width, top + height)), size, size)


def center_crop(image: Image.Image, resized: int, size: int) -> Image.Image:
    """The shorter side becomes `resized`, the longer one in proportion, rounded down; then size x size."""
    shorter, longer = sorted(image.size)
    sides = {shorter: resized, longer: resized * longer // shorter}
    width, height = (sides[side] for side in image.size)
    image = resize(image, width, height)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def resize(image: Image.Image, width: int, height: int) -> Image.Image:
    """Bicubic, with a rounding to 8 bits between the passes."""
    narrow = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return narrow.resize((width, height), Image.Resampling.BICUBIC)
