"""Images of one size, decoded from the files of a source when they are needed.

Contract: a training image is a pure function of its place in the source, of a seed and of the epoch.
"""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.data import host_crops, image_folder, sources

Change = Callable[[Image.Image], Image.Image]
CROPS = ("center", "random_resized")


class Preparation(NamedTuple):
    """From an image of any size to one of the size that a network takes; without image_size, as it is.

    Attributes:
      image_size: side in pixels.
      resize: shorter side before the centre crop, see `host_crops.center_crop`; None for `image_folder.fit`.
      crop: of training images, one of CROPS; all others are cropped in the centre.
      crop_area: smallest share of the image in a random crop.
      exif_orientation: turn photos upright.
    """

    image_size: int | None = None
    resize: int | None = None
    crop: str = "center"
    crop_area: float = 0.08
    exif_orientation: bool = True


class Images:
    """Images of a source, uint8 [N, H, W, 3]: a slice or indices take some of them, `np.asarray` decodes all.

    Raises:
      ValueError, where one is decoded: it is missing, damaged or has another size.
    """

    def __init__(self, source: sources.Source, preparation: Preparation, places: np.ndarray | None = None):
        self._source, self._preparation = source, preparation
        self._places = np.arange(len(source)) if places is None else places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, some: Any) -> "Images":
        return Images(self._source, self._preparation, self._places[some])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        del dtype, copy
        images = np.empty(self.shape, np.uint8)
        decoded = image_folder.in_threads(self._centered, self._places.tolist(), "decoding")
        for index, pixels in enumerate(decoded):
            images[index] = pixels
        return images

    @functools.cached_property
    def shape(self) -> tuple[int, int, int, int]:
        size = self._preparation.image_size
        height, width = (size, size) if size else self._decode(self._places[0]).size[::-1]
        return len(self), height, width, 3

    @property
    def digest(self) -> str:
        """Of all that decides the pixels."""
        text = f"{self._source.digest} {tuple(self._preparation)}"
        return hashlib.sha256(text.encode() + self._places.astype("<i8").tobytes()).hexdigest()[:16]

    def sample(self, seed: int, epoch: int, index: int, change: Change | None = None) -> np.ndarray:
        """Image `index`, 0 to N - 1, as it is in an epoch of a training: uint8 [H, W, 3].

        `change` is done before it is cropped.
        """
        place, how = int(self._places[index]), self._preparation
        if how.crop == "center":
            return self._centered(place, change)
        uniform = np.random.default_rng([seed, epoch, place]).random(host_crops.NUM_UNIFORM)
        image = self._decode(place, change)
        return np.asarray(host_crops.random_resized_crop(image, uniform, how.image_size, how.crop_area))

    def _centered(self, place, change=None):
        image, size = self._decode(place, change), self._preparation.image_size
        pixels = np.asarray(
            image if size is None else image_folder.fit(image, size, self._preparation.resize)
        )
        if pixels.shape != self.shape[1:]:
            got, expected = (f"{shape[1]} x {shape[0]}" for shape in (pixels.shape, self.shape[1:]))
            name = self._source.name(place)
            raise ValueError(f"{name} is {got}, expected {expected}: --image_size brings all to one size")
        return pixels

    def _decode(self, place, change=None):
        image = sources.decode(self._source, place, self._preparation.exif_orientation)
        return change(image) if change else image
