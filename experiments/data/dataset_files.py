"""Readers of image files into NumPy arrays: SVHN, custom `.npz`, a folder of images per class.

Contract: what is missing ends as FileNotFoundError that lists what was looked for; what is truncated, hostile
or simply another file as ValueError that names the file, what was got and what was expected. Nothing here
downloads or writes, and `.npz` files are read without pickles. The CIFAR formats are in `cifar_files.py`.
"""

import contextlib
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.io
import tqdm
from absl import logging
from PIL import Image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class Arrays(NamedTuple):
    """Images uint8 [N, H, W, 3] and integer labels [N]; None for a part that there is not."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray | None
    valid_images: np.ndarray | None = None
    valid_labels: np.ndarray | None = None


def read_svhn(data_dir, with_extra):
    """Reads SVHN (cropped digits, MATLAB files), uint8 [N, 32, 32, 3]; label 10 of the files is digit 0.

    `with_extra` appends extra_32x32.mat to the training part where it lies in the folder.
    """
    data_dir = pathlib.Path(data_dir)
    *paths, extra = (data_dir / f"{part}_32x32.mat" for part in ("train", "test", "extra"))
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"svhn: not found: {', '.join(missing)}")
    train, test = map(_read_mat, paths)
    if with_extra and extra.is_file():
        train = tuple(np.concatenate(pair) for pair in zip(train, _read_mat(extra)))
    elif with_extra:
        logging.warning("svhn: %s not found; training on the train part alone", extra)
    return Arrays(*train, *test)


def _read_mat(path):
    try:
        content = scipy.io.loadmat(path, variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1)
    except Exception as error:  # a damaged file makes the parser fail in many ways
        raise ValueError(f"{path}: not a readable MATLAB file with variables X and y: {error!r}") from error
    if images.dtype != np.uint8 or images.shape != (32, 32, 3, labels.size) or not labels.size:
        raise ValueError(
            f"{path}: X is {images.dtype} {list(images.shape)} for {labels.size} labels, "
            f"expected uint8 [32, 32, 3, {labels.size}]"
        )
    if labels.dtype.kind not in "iu" or labels.min() < 1 or labels.max() > 10:
        raise ValueError(f"{path}: y is not made of integers from 1 to 10")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10


def read_npz(path):
    """Reads a custom set: {train,test}_{images,labels}, or images and labels alone, without a test part.

    Beside these may be valid_images and valid_labels. Images are uint8 [N, H, W, 3], [N, H, W] or
    [N, H, W, 1] (grey is repeated to three channels), labels [N] integers from 0.
    """
    with _open_npz(path) as archive:
        present = set(archive.files)
        names = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
        prefixes = ("train_", "test_") if set(names) <= present else ("",)
        if not {f"{prefixes[0]}images", f"{prefixes[0]}labels"} <= present:
            expected = f"{', '.join(names[:3])} and {names[3]}, or images and labels"
            raise ValueError(f"it holds {sorted(present)}, expected {expected}")
        parts = [array for prefix in prefixes for array in _read_part(archive, prefix)]
        valid = _read_part(archive, "valid_") if present & {"valid_images", "valid_labels"} else ()
    return Arrays(*parts, *[None] * (4 - len(parts)), *valid)


def read_valid_npz(path):
    """Reads valid_images and valid_labels alone, as `read_npz` does: (images, labels)."""
    with _open_npz(path) as archive:
        return _read_part(archive, "valid_")


@contextlib.contextmanager
def _open_npz(path):
    """The archive; what is wrong with it, or with what is read from it, is said with its path."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated, or not an .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            yield archive
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_part(archive, prefix):
    """Images and labels of the names with a prefix, checked."""
    where, name = f"{prefix}images", f"{prefix}labels"
    if not {where, name} <= set(archive.files):
        raise ValueError(f"it holds {sorted(archive.files)}, expected {where} and {name}")
    images, labels = archive[where], archive[name]
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 1)
    if images.dtype != np.uint8 or not (grey or (images.ndim == 4 and images.shape[-1] == 3)):
        expected = "uint8 [N, H, W, 3], [N, H, W] or [N, H, W, 1]"
        raise ValueError(f"{where} is {images.dtype} {list(images.shape)}, expected {expected}")
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        got = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"{where} has labels {got}, expected integers [{len(images)}]")
    if grey:
        images = np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=-1)
    return images, labels


def read_image_folder(root, image_size=None):
    """Reads a folder of images per class, as ImageNet is laid out.

    Args:
      root: folder with train/<class>/<image> and val/<class>/<image> (or test/), which are for testing; and
        perhaps valid/<class>/<image>, to validate with. Classes are in sorted order.
      image_size: side in pixels to which every image is brought (shorter side resized, bicubic; centre
        cropped); None keeps the images, which then must all have one size.

    Returns:
      Arrays with images uint8 [N, H, W, 3].

    Raises:
      FileNotFoundError: a folder is missing or empty. ValueError: no image, or one of another size.
    """
    root = pathlib.Path(root)
    tests = [root / name for name in ("val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise FileNotFoundError(
            f"{root}: expected folders train/<class>/ and val/<class>/ (or test/<class>/) in it"
        )
    classes, shape, parts = class_names(root), None, []
    for folder in (root / "train", tests[0], root / "valid"):
        if folder.is_dir():
            parts += read_classes(folder, classes, image_size, shape)
            shape = parts[0].shape[1:]
    return Arrays(*parts)


def class_names(root):
    """The classes of a folder of images that `read_image_folder` reads, by label."""
    return sorted(folder.name for folder in (pathlib.Path(root) / "train").iterdir() if folder.is_dir())


def read_classes(
    folder: pathlib.Path, classes: Sequence[str], image_size: int | None, shape: tuple[int, int, int] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads folder/<class>/<image>; some classes may have none.

    Args:
      classes: names of the training images' classes, by label.
      image_size: as of `read_image_folder`.
      shape: of the training images, (H, W, 3); None for that of the first image.

    Returns:
      Images uint8 [N, H, W, 3], labels int32 [N].

    Raises: as `read_image_folder`.
    """
    unknown = sorted({f.name for f in folder.iterdir() if f.is_dir()} - set(classes))
    if unknown:
        known = f"the {len(classes)} of the training images, {classes[0]} to {classes[-1]}"
        raise ValueError(f"{folder}: class {' and class '.join(unknown)} is not in {known}")
    files = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES
    ]
    if not files:
        raise FileNotFoundError(f"{folder}: no image ({', '.join(IMAGE_SUFFIXES)}) in its class folders")
    images, example = [], files[0][0] if shape is None else "a training image"
    for path, _ in tqdm.tqdm(files, desc=folder.name, unit="image", disable=None):
        images.append(_decode_image(path, image_size))
        shape = shape or images[0].shape
        if images[-1].shape != shape:
            raise ValueError(
                f"{path} is {images[-1].shape[1]} x {images[-1].shape[0]} and {example} is "
                f"{shape[1]} x {shape[0]}: give --image_size to bring all to one size"
            )
    return np.stack(images), np.array([label for _, label in files], np.int32)


def open_image(path):
    """Decodes an image file, also one inside an archive (`zipfile.Path`), to a PIL image with mode RGB.

    Raises:
      ValueError: it cannot be decoded.
    """
    damaged = (OSError, ValueError, SyntaxError, Image.DecompressionBombError, zipfile.BadZipFile, zlib.error)
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    except damaged as error:
        raise ValueError(f"{path}: cannot be decoded as an image: {error}") from error


def _decode_image(path, image_size):
    image = open_image(path)
    if image_size is not None:
        scale = image_size / min(image.size)
        width, height = (max(image_size, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - image_size) // 2, (height - image_size) // 2
        image = image.crop((left, top, left + image_size, top + image_size))
    return np.asarray(image)
