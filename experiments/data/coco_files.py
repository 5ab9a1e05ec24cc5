"""Reader of images with boxes, as COCO lays them out.

Contract: a set is a folder, or a `.zip` with the same in it, which is never unpacked to disk:

    annotations/train.json, val.json, perhaps test.json      with the images in train/, val/, test/
    annotations/instances_train2017.json, ..._val2017.json   with the images in train2017/, val2017/

A JSON file has the lists "categories" (id, name), "images" (id, file_name, width, height) and "annotations"
(id, image_id, category_id, bbox as [x, y, width, height] in pixels, and perhaps area, by default that of the
box, and iscrowd, by default 0). Ids are unique integers, 0 allowed. What is missing ends as
FileNotFoundError, everything else that is wrong as ValueError, with one line that names file and entry.

What is no error: a box is clipped to its image, and dropped where no area is left; the number is said. Crowds
are not trained with. Images without boxes stay. The annotations that detections are compared with (`truths`)
are all those of the file, as they are: so the numbers are those of pycocotools.
"""

import contextlib
import json
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from absl import logging
from PIL import Image

from dada.detection import average_precision
from experiments.data import image_folder

PARTS = ("train", "val", "test")
_LARGEST = 1e15  # of a number of pixels, or of their squares
# Lists of a JSON file, with the fields that every entry has.
_FIELDS = {
    "categories": {"id": int, "name": str},
    "images": {"id": int, "file_name": str, "width": int, "height": int},
    "annotations": {"id": int, "image_id": int, "category_id": int, "bbox": list},
}


class Part(NamedTuple):
    """One part of a set, images by ascending id; the boxes of an image fill its first slots.

    Attributes:
      images: uint8 [N, H, W, 3].
      boxes: float32 [N, M, 4], (x_min, y_min, x_max, y_max) in pixels of `images`; M is that of all parts.
      labels: int32 [N, M], place of the category among the sorted ids.
      valid: bool [N, M].
      image_ids: int64 [N].
      scale: float64 [N, 2], by how much wider and higher an image is in its file.
      truths: annotations of each image, in pixels of its file.
      num_clipped, num_dropped: boxes that reached out of their image, and that had no area in it.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    valid: np.ndarray
    image_ids: np.ndarray
    scale: np.ndarray
    truths: list[average_precision.Truth]
    num_clipped: int
    num_dropped: int


class Coco(NamedTuple):
    """Parts by name, "train" and one or two more; ids and names of the categories, by label."""

    parts: dict[str, Part]
    category_ids: list[int]
    category_names: list[str]


class _Index(NamedTuple):
    """A JSON file: images by ascending id, annotations of each image by its id, categories by label."""

    file: pathlib.Path
    images: list[dict]
    annotations: dict[int, list[dict]]
    categories: list[tuple[int, str]]


def read(path: pathlib.Path, image_size: int | None = None) -> Coco:
    """Reads a set.

    Args:
      path: the folder or the `.zip`.
      image_size: side in pixels to which every image is brought (bicubic, aspect ratio not kept); None keeps
        the images, which then must all have one size.

    Raises:
      FileNotFoundError: a JSON file or an image is missing.
      ValueError: a file is damaged, or says what cannot be.
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size {image_size}: expected a positive number of pixels")
    with _root(path) as root:
        files = _find_parts(root)
        if "train" not in files or len(files) < 2:
            expected = "annotations/train.json and val.json or test.json (instances_train2017.json, ...)"
            got = " and ".join(files) or "none"
            raise FileNotFoundError(
                f"{path}: of the parts train, val and test got {got}, expected {expected}"
            )
        indices = {part: _read_index(file) for part, (file, _) in files.items()}
        categories = indices["train"].categories
        for index in indices.values():
            if index.categories != categories:
                expected = f"those of train, {categories}"
                raise ValueError(f"{index.file}: got the categories {index.categories}, expected {expected}")
        most = max(len(entries) for index in indices.values() for entries in index.annotations.values())
        parts, shape = {}, None
        for part, (_, folder) in files.items():
            parts[part] = _read_part(indices[part], folder, image_size, shape, max(1, most))
            shape = parts[part].images.shape[1:]
    return Coco(parts, *map(list, zip(*categories)))


def results(
    image_ids: np.ndarray, detections: Sequence[average_precision.Detections], category_ids: Sequence[int]
) -> list[dict]:
    """Detections in the form in which COCO wants results, ready for a JSON file.

    Args:
      image_ids: [N], of a part.
      detections: of each image.
      category_ids: by label.
    """
    return [
        {"image_id": image_id, "category_id": category_ids[label], "bbox": box, "score": score}
        for image_id, found in zip(image_ids.tolist(), detections)
        for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist())
    ]


@contextlib.contextmanager
def _root(path):
    """The folder, or what stands for it in an archive."""
    path = pathlib.Path(path)
    if path.is_dir():
        yield path
    elif path.is_file():
        try:
            archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path}: truncated, or not a .zip archive ({error})") from error
        with archive:
            yield zipfile.Path(archive)
    else:
        raise FileNotFoundError(f"{path}: no such folder or .zip file")


def _find_parts(root):
    """{part: (JSON file, folder of images)}, of the parts that are there."""
    found = {}
    for part in PARTS:
        for name, folder in ((part, part), (f"instances_{part}2017", f"{part}2017")):
            file = root / "annotations" / f"{name}.json"
            if part not in found and file.is_file():
                found[part] = file, root / folder
    return found


def _read_index(file):
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{file}: not a readable JSON file: {error}") from error
    categories, images, annotations = (_entries(content, kind, file) for kind in _FIELDS)
    if not images or not categories:
        raise ValueError(f"{file}: got {len(images)} images of {len(categories)} categories, expected some")
    of_image = {image["id"]: [] for image in images}
    known = {category["id"] for category in categories}
    for entry in annotations:
        where = f"{file}: annotation {entry['id']}"
        if entry["image_id"] not in of_image:
            raise ValueError(f"{where} is of image {entry['image_id']}, which is not in the file")
        if entry["category_id"] not in known:
            raise ValueError(f"{where} has category {entry['category_id']}, expected one of {sorted(known)}")
        if len(entry["bbox"]) != 4 or not all(map(_is_finite, entry["bbox"])):
            raise ValueError(f"{where} has bbox {entry['bbox']}, expected four finite numbers")
        if not _is_finite(entry.get("area", 0)) or entry.get("iscrowd", 0) not in (0, 1):
            got = f"area {entry.get('area')!r} and iscrowd {entry.get('iscrowd')!r}"
            raise ValueError(f"{where} has {got}, expected a finite number and 0 or 1")
        of_image[entry["image_id"]].append(entry)
    images.sort(key=lambda image: image["id"])
    return _Index(file, images, of_image, sorted((entry["id"], entry["name"]) for entry in categories))


def _entries(content, kind, file):
    """One of the lists of a JSON file, its entries with all fields and with ids of their own."""
    entries = content.get(kind) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{file}: expected a dictionary with a list {kind!r}")
    seen = set()
    for number, entry in enumerate(entries):
        for name, kind_of_value in _FIELDS[kind].items():
            value = entry.get(name) if isinstance(entry, dict) else None
            if type(value) is not kind_of_value:
                got = f"{kind}[{number}] has {name} {value!r}"
                raise ValueError(f"{file}: {got}, expected one of type {kind_of_value.__name__}")
        if entry["id"] in seen:
            raise ValueError(f"{file}: {kind}[{number}] has id {entry['id']}, which an earlier one has")
        seen.add(entry["id"])
    return entries


def _is_finite(value):
    return type(value) in (int, float) and abs(value) < _LARGEST


def _read_part(index, folder, image_size, shape, most):
    """Decodes the images of a part; `shape` is that of the training images, or None."""
    files = [folder / image["file_name"] for image in index.images]
    if missing := [file for file in files if not file.is_file()]:
        got = f"{len(missing)} of {len(files)} images are missing, first {missing[0]}"
        raise FileNotFoundError(f"{index.file}: {got}")
    labels_of = {category: label for label, (category, _) in enumerate(index.categories)}
    images, boxes = [], np.zeros((len(files), most, 4), np.float32)
    labels, valid = np.zeros((len(files), most), np.int32), np.zeros((len(files), most), bool)
    scale, truths, num_clipped, num_dropped = np.ones((len(files), 2)), [], 0, 0
    for row, file in enumerate(tqdm.tqdm(files, desc=index.file.stem, unit="image", disable=None)):
        entry = index.images[row]
        size = entry["width"], entry["height"]
        images.append(_read_image(file, index.file, size, image_size))
        shape = shape or images[0].shape
        if images[-1].shape != shape:
            got = f"{size[0]} x {size[1]}, others {shape[1]} x {shape[0]}"
            raise ValueError(f"{file} is {got}: give --image_size to bring all to one size")
        scale[row] = size[0] / shape[1], size[1] / shape[0]
        truths.append(_truth(index.annotations[entry["id"]], labels_of))
        corners, is_kept, is_clipped = _clip(truths[-1], size)
        count = np.count_nonzero(is_kept)
        boxes[row, :count] = (corners[is_kept].reshape(-1, 2, 2) / scale[row]).reshape(-1, 4)
        labels[row, :count], valid[row, :count] = truths[-1].labels[is_kept], True
        num_clipped += np.count_nonzero(is_kept & is_clipped)
        num_dropped += np.count_nonzero(~is_kept & ~truths[-1].is_crowd)
    if num_clipped or num_dropped:
        text = "%s: %d boxes reach out of their image and are clipped, %d have no area in it and are dropped"
        logging.warning(text, index.file, num_clipped, num_dropped)
    ids = np.array([image["id"] for image in index.images])
    return Part(np.stack(images), boxes, labels, valid, ids, scale, truths, num_clipped, num_dropped)


def _read_image(file, json_file, size, image_size):
    """Pixels of an image that has a (width, height), at a side of `image_size` if that is not None.

    As they lie in the file, whatever its EXIF entry says: so the boxes were drawn.
    """
    try:
        with file.open("rb") as raw, image_folder.open_image(raw) as opened:
            image, _ = image_folder.to_rgb(opened)
    except Exception as error:  # a damaged file makes the decoders fail in many ways
        raise ValueError(f"{file}: cannot be decoded as an image: {error}") from error
    if image.size != size:
        got = f"{image.size[0]} x {image.size[1]}, in {json_file} {size[0]} x {size[1]}"
        raise ValueError(f"{file} is {got}: its boxes cannot be right")
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _truth(annotations, labels_of):
    boxes = np.array([entry["bbox"] for entry in annotations], np.float64).reshape(-1, 4)
    labels = np.array([labels_of[entry["category_id"]] for entry in annotations], np.int32)
    areas = [entry.get("area", entry["bbox"][2] * entry["bbox"][3]) for entry in annotations]
    is_crowd = np.array([entry.get("iscrowd", 0) for entry in annotations], bool)
    return average_precision.Truth(boxes, labels, np.array(areas, np.float64), is_crowd)


def _clip(truth, size):
    """Corners of boxes in an image of (width, height), whether to train with one, and if it was clipped."""
    corners = np.concatenate([truth.boxes[:, :2], truth.boxes[:, :2] + truth.boxes[:, 2:]], axis=1)
    corners = corners.astype(np.float32)
    clipped = np.clip(corners, 0, np.tile(size, 2).astype(np.float32))
    has_area = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
    return clipped, has_area & ~truth.is_crowd, np.any(clipped != corners, axis=1)
