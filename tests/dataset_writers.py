"""Writes small data sets in the formats of their owners, for the tests of the loaders."""

import pickle
import tarfile

import numpy as np
import scipy.io

from experiments.data import cifar_files


def random_images(count, seed=0, shape=(32, 32, 3)):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def cifar_parts(name, per_file=20):
    """(images, labels) of every file of a small set; both forms have the same order of files."""
    num_files = 6 if name == "cifar10" else 2
    classes = cifar_files.CIFAR[name].num_classes
    return [
        (random_images(per_file, seed), (np.arange(per_file) * 7 + seed) % classes)
        for seed in range(num_files)
    ]


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_cifar(folder, name, form, parts):
    """Writes the parts in a published form and returns the unpacked folder."""
    cifar = cifar_files.CIFAR[name]
    layout = cifar.binary if form == "binary" else cifar.pickled
    folder = folder / layout.folder
    folder.mkdir(parents=True)
    for file, (images, labels) in zip(layout.train + layout.test, parts):
        if form == "binary":
            coarse = np.full((len(labels), cifar.label_bytes - 1), 99, np.uint8)
            records = [coarse, labels[:, None].astype(np.uint8), planes(images)]
            (folder / file).write_bytes(np.concatenate(records, axis=1).tobytes())
        else:
            batch = {"data": planes(images), cifar.label_key: labels.tolist(), "filenames": ["x"]}
            (folder / file).write_bytes(pickle.dumps(batch, protocol=2))
    return folder


def pack(folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)


def assert_holds(dataset, parts):
    train, test = parts[:-1], parts[-1]
    np.testing.assert_array_equal(dataset.train_images, np.concatenate([p[0] for p in train]))
    np.testing.assert_array_equal(dataset.train_labels, np.concatenate([p[1] for p in train]))
    np.testing.assert_array_equal(dataset.test_images, test[0])
    np.testing.assert_array_equal(dataset.test_labels, test[1])
    assert dataset.train_images.dtype == np.uint8 and dataset.train_labels.dtype == np.int32


def balanced(count, classes):
    return np.arange(count) % classes


def write_svhn(folder, part, count, seed, key="X"):
    images = random_images(count, seed)
    labels = np.arange(count) % 10 + 1
    content = {key: images.transpose(1, 2, 3, 0), "y": labels[:, None].astype(np.uint8)}
    scipy.io.savemat(folder / f"{part}_32x32.mat", content)
    return images, labels % 10
