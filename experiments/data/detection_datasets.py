"""Sets of images with boxes, by name or path, as of `datasets`.

Only "embedded" ships with the project: 364 images of blood cells, 192 x 192 (see README.md).
"""

import pathlib
from typing import NamedTuple

import numpy as np

from dada import augment
from dada.detection import average_precision
from experiments.data import coco_files, datasets

EMBEDDED = pathlib.Path(__file__).parent / "blood_cells.zip"


class Annotations(NamedTuple):
    """What detections in N images are compared with.

    Attributes:
      truths: of each image, in pixels of its file.
      scale: float64 [N, 2], by how much wider and higher an image is in its file.
    """

    truths: list[average_precision.Truth]
    scale: np.ndarray


def load(name: str, image_size: int | None = None) -> datasets.Dataset:
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
    arrays = {"train": parts["train"], "test": test, "valid": parts.get("val")}
    return datasets.Dataset(
        name,
        **{f"{part}_images": of_part and _images(of_part) for part, of_part in arrays.items()},
        **{f"{part}_labels": of_part and of_part.labels for part, of_part in arrays.items()},
        class_names=tuple(coco.category_names),
        annotations=Annotations(test.truths, test.scale),
        **dict(zip(("mean", "std"), datasets.pixel_statistics(arrays["train"].images))),
    )


def annotations(images: augment.ImagesWithBoxes, labels: np.ndarray) -> Annotations:
    """Those of images that are not as in their files any more: their boxes, in their own pixels."""
    truths = []
    for boxes, of_image, valid in zip(images.boxes.astype(np.float64), labels, images.valid):
        low, high = boxes[valid, :2], boxes[valid, 2:]
        boxes_of_coco, areas = np.concatenate([low, high - low], axis=1), np.prod(high - low, axis=1)
        is_crowd = np.zeros(len(areas), bool)
        truths.append(average_precision.Truth(boxes_of_coco, of_image[valid], areas, is_crowd))
    return Annotations(truths, np.ones((len(labels), 2)))


def _images(part):
    return augment.ImagesWithBoxes(part.images, part.boxes, part.valid)
