"""CIFAR files: every published form, damaged ones, and pickles that try to run code."""

import functools
import os
import pickle

import numpy as np
import pytest

from experiments.data import cifar_files, datasets
from tests import dataset_writers

CIFAR_NAMES = ("cifar10", "cifar100")


@pytest.mark.parametrize("name", CIFAR_NAMES)
@pytest.mark.parametrize("form", ["binary", "pickled"])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_forms(tmp_path, name, form, packed):
    parts = dataset_writers.cifar_parts(name)
    folder = dataset_writers.write_cifar(tmp_path / "source", name, form, parts)
    data_dir = folder
    if packed:
        data_dir = tmp_path
        dataset_writers.pack(folder, tmp_path / getattr(cifar_files.CIFAR[name], form).archive)
    dataset = datasets.load(name, data_dir)
    dataset_writers.assert_holds(dataset, parts)
    np.testing.assert_allclose(dataset.mean, [0.4914, 0.4822, 0.4465])
    assert dataset.num_classes == cifar_files.CIFAR[name].num_classes
    if not packed:
        dataset_writers.assert_holds(datasets.load(name, folder.parent), parts)


def test_numpy_1_pickle_is_read(tmp_path):
    """The official pickles name numpy.core.multiarray and hold byte strings of Python 2."""
    parts = dataset_writers.cifar_parts("cifar10")
    folder = dataset_writers.write_cifar(tmp_path, "cifar10", "pickled", parts)
    for file in folder.iterdir():
        content = file.read_bytes()
        assert b"numpy._core.multiarray" in content
        file.write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    dataset_writers.assert_holds(datasets.load("cifar10", tmp_path), parts)


class Hostile:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.mkdir, eval, np.load, functools.partial])
def test_hostile_pickle_is_refused(tmp_path, function):
    folder = dataset_writers.write_cifar(
        tmp_path, "cifar10", "pickled", dataset_writers.cifar_parts("cifar10")
    )
    target = tmp_path / "made_by_the_pickle"
    argument = f"__import__('os').mkdir({str(target)!r})" if function is eval else str(target)
    batch = {"data": Hostile(function, argument), "labels": [0]}
    (folder / "data_batch_3").write_bytes(pickle.dumps(batch, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3.*refused"):
        datasets.load("cifar10", tmp_path)
    assert not target.exists()


@pytest.mark.parametrize(
    "batch",
    [
        [1, 2],
        {"data": np.zeros((2, 3072), np.uint8)},
        {"data": np.zeros((2, 3072), np.float32), "labels": [0, 1]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1, 2]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, "1"]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 2**70]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 2**32]},
        {"data": np.zeros((2, 3072), np.uint8), "labels": [0, -1]},
        {"data": "text", "labels": [0]},
        {"data": np.zeros((0, 3072), np.uint8), "labels": []},
    ],
)
def test_pickle_with_other_content(tmp_path, batch):
    folder = dataset_writers.write_cifar(
        tmp_path, "cifar10", "pickled", dataset_writers.cifar_parts("cifar10")
    )
    (folder / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=4))
    with pytest.raises(ValueError, match=r"data_batch_2.*expected"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 100, 30000])
def test_truncated_pickle(tmp_path, keep):
    folder = dataset_writers.write_cifar(
        tmp_path, "cifar10", "pickled", dataset_writers.cifar_parts("cifar10")
    )
    file = folder / "test_batch"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match="test_batch"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", CIFAR_NAMES)
@pytest.mark.parametrize("size", [0, 3072, 5000])
def test_truncated_binary(tmp_path, name, size):
    folder = dataset_writers.write_cifar(tmp_path, name, "binary", dataset_writers.cifar_parts(name))
    file = sorted(folder.iterdir())[0]
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{file.name}: has {size} bytes, expected a multiple"):
        datasets.load(name, tmp_path)


def test_binary_with_wrong_label(tmp_path):
    folder = dataset_writers.write_cifar(
        tmp_path, "cifar10", "binary", dataset_writers.cifar_parts("cifar10")
    )
    content = bytearray((folder / "data_batch_1.bin").read_bytes())
    content[3 * 3073] = 10
    (folder / "data_batch_1.bin").write_bytes(content)
    with pytest.raises(ValueError, match="record 3 has label 10, expected 0 to 9"):
        datasets.load("cifar10", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "no member", "link"])
def test_damaged_archive(tmp_path, damage):
    folder = dataset_writers.write_cifar(
        tmp_path / "source", "cifar10", "binary", dataset_writers.cifar_parts("cifar10")
    )
    archive = tmp_path / "cifar-10-binary.tar.gz"
    if damage == "no member":
        (folder / "data_batch_4.bin").unlink()
    if damage == "link":
        (folder / "data_batch_4.bin").unlink()
        (folder / "data_batch_4.bin").symlink_to("/etc/hostname")
    dataset_writers.pack(folder, archive)
    if damage == "truncated":
        archive.write_bytes(archive.read_bytes()[:20000])
    if damage == "not gzip":
        archive.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz"):
        datasets.load("cifar10", tmp_path)
