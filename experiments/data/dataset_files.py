"""Readers of files of arrays: SVHN, custom `.npz`.

Contract: what is missing ends as FileNotFoundError that lists what was looked for; what is truncated, hostile
or simply another file as ValueError that names the file, what was got and what was expected. Nothing here
downloads or writes, and `.npz` files are read without pickles. The CIFAR formats are in `cifar_files.py`,
folders of images in `image_folder.py`.
"""

import contextlib
import pathlib
import zipfile
from typing import NamedTuple

import numpy as np
import scipy.io
from absl import logging

# Names of the arrays of an .npz file.
_TRAIN_AND_TEST = {"train_images", "train_labels", "test_images", "test_labels"}
_ALONE = {"images", "labels"}
_VALID = {"valid_images", "valid_labels"}


class Arrays(NamedTuple):
    """Images uint8 [N, H, W, 3] and integer labels [N]; None for a part that there is not."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray | None
    test_labels: np.ndarray | None
    valid_images: np.ndarray | None = None
    valid_labels: np.ndarray | None = None


def find_svhn(data_dir):
    """Paths of the training and test part of SVHN in a folder; FileNotFoundError names what is missing."""
    paths = [pathlib.Path(data_dir) / f"{part}_32x32.mat" for part in ("train", "test")]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"svhn: not found: {', '.join(missing)}")
    return paths


def read_svhn(data_dir, with_extra):
    """Reads SVHN (cropped digits, MATLAB files), uint8 [N, 32, 32, 3]; label 10 of the files is digit 0.

    `with_extra` appends extra_32x32.mat to the training part where it lies in the folder.
    """
    train, test = map(_read_mat, find_svhn(data_dir))
    extra = pathlib.Path(data_dir) / "extra_32x32.mat"
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

    Beside these may be valid_images and valid_labels, and arrays named ..._index, which are not read; no
    others. Images are uint8 [N, H, W, 3], [N, H, W] or [N, H, W, 1] (grey is repeated to three channels).
    Labels are N integers along one axis, such as [N] or [N, 1]; those of training are 0, 1, ... without a
    gap, the others some of these.
    """
    with _open_npz(path, _TRAIN_AND_TEST, _ALONE) as archive:
        names = set(archive.files)
        prefix = "train_" if names >= _TRAIN_AND_TEST else ""
        images, labels = _read_part(archive, prefix)
        classes = np.unique(labels)
        if classes[-1] != len(classes) - 1:
            got = f"{len(classes)} numbers from {classes[0]} to {classes[-1]}"
            raise ValueError(f"{prefix}labels are {got}, expected 0 to {len(classes) - 1} without a gap")
        of_train = images.shape[1:], len(classes)
        test = _read_part(archive, "test_", *of_train) if prefix else (None, None)
        valid = _read_part(archive, "valid_", *of_train) if names & _VALID else (None, None)
    return Arrays(images, labels, *test, *valid)


def read_valid_npz(path, shape, num_classes):
    """Reads valid_images and valid_labels alone, as `read_npz` does: (images, labels).

    `shape`, (H, W, 3), and `num_classes` are of the training images.
    """
    with _open_npz(path, _TRAIN_AND_TEST, _ALONE, set()) as archive:
        return _read_part(archive, "valid_", shape, num_classes)


@contextlib.contextmanager
def _open_npz(path, *expected):
    """The archive; what is wrong with it, or with what is read from it, is said with its path.

    `expected` are sets of names that it may have, beside those of validation images.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: truncated, or not an .npz archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = {name for name in archive.files if not name.endswith("index")}
            if names - _VALID not in expected:
                forms = f"{', '.join(sorted(_TRAIN_AND_TEST))}, or images and labels"
                got = f"it holds {sorted(names)}"
                raise ValueError(f"{got}, expected {forms}, perhaps with valid_images and valid_labels")
            yield archive
    except (ValueError, OSError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: {error}") from error


def _read_part(archive, prefix, shape=None, num_classes=None):
    """Images and labels of the names with a prefix, checked, also against those of training if given."""
    where, name = f"{prefix}images", f"{prefix}labels"
    if not {where, name} <= set(archive.files):
        raise ValueError(f"it holds {sorted(archive.files)}, expected {where} and {name}")
    images, labels = _read_array(archive, where), _read_array(archive, name)
    grey = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 1)
    is_known = grey or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not is_known or not images.size:
        expected = "uint8 [N, H, W, 3], [N, H, W] or [N, H, W, 1], and some images"
        raise ValueError(f"{where} is {images.dtype} {list(images.shape)}, expected {expected}")
    if labels.dtype.kind not in "iu" or not labels.size == len(images) == max(labels.shape, default=0):
        got = f"{labels.dtype} {list(labels.shape)}"
        raise ValueError(f"{name} is {got}, expected integers [{len(images)}], one for each of {where}")
    if grey:
        images = np.repeat(images.reshape(*images.shape[:3], 1), 3, axis=-1)
    if shape is not None and images.shape[1:] != shape:
        got = f"{list(images.shape[1:])} and the training images are {list(shape)}"
        raise ValueError(f"{where} are {got}, expected one shape")
    lowest, highest = labels.min(), labels.max()
    if lowest < 0 or (num_classes is not None and highest >= num_classes):
        expected = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise ValueError(f"{name} are from {lowest} to {highest}, expected {expected}")
    return images, labels.reshape(-1)


def _read_array(archive, name):
    try:
        return np.asarray(archive[name])
    # A damaged or encrypted file, a pickle or an impossible shape can raise nearly anything.
    except Exception as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
