"""Sets of images with boxes, by name or path.

Contract: `load` returns a `DetectionDataset` that fits on the device and is indexed there, as of `datasets`.
Only "embedded" ships with the project: 364 images of blood cells, 192 x 192 (see README.md).
"""

import pathlib
from typing import NamedTuple

import numpy as np

from experiments.data import coco_files, datasets

EMBEDDED = pathlib.Path(__file__).parent / "blood_cells.zip"


class DetectionDataset(NamedTuple):
    """Parts of a set (`coco_files.Part`), ids and names of categories by label, mean and std float32 (3,)."""

    name: str
    train: coco_files.Part
    test: coco_files.Part
    valid: coco_files.Part | None  # None: a search splits one off
    category_ids: list[int]
    category_names: list[str]
    mean: np.ndarray
    std: np.ndarray


def load(name: str, image_size: int | None = None) -> DetectionDataset:
    """Loads a set.

    Args:
      name: "embedded", or the path of a folder or `.zip` (`coco_files`). Its part val is for validation where
        there is a part test, else for testing.
      image_size: side in pixels to which all images are brought; None keeps their size.

    Raises:
      FileNotFoundError, ValueError: as of `coco_files.read`.
    """
    coco = coco_files.read(EMBEDDED if name == "embedded" else pathlib.Path(name), image_size)
    parts = dict(coco.parts)
    test = parts.pop("test", None) or parts.pop("val")
    statistics = datasets.pixel_statistics(parts["train"].images)
    return DetectionDataset(name, parts["train"], test, parts.get("val"), *coco[1:], *statistics)
