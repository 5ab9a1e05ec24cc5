"""Data sets as arrays, by name or path, and the stratified splits of the papers.

Contract: `load` returns a `Dataset` of uint8 images and int32 labels that fits on the device and is
indexed there; but those of a folder that is streamed from the host are decoded when they are needed
(`host_images`), and only test and validation images have to fit. Only "embedded" and its reduced form ship
with the project; the others come from files of the user (`dataset_files.py`, `image_folder.py`,
`cifar_files.py`), which are downloaded only on request (`dataset_download.py`).

Statistics: CIFAR-10, CIFAR-100 and SVHN use the CIFAR-10 values of the papers (their standard deviation is
the well-known mean of the deviations of single images), "embedded" those of its training pixels; sets of a
user's own those of ImageNet, in a file or a folder, held or streamed.
"""

import collections
import contextlib
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from dada import augment
from dada.training import sgd
from experiments.data import cifar_files, dataset_download, dataset_files, host_images, image_folder, sources

EMBEDDED = pathlib.Path(__file__).parent / "fashion_mnist_5k.npz"
# Training images that are kept: the sets on which the papers search, and a quarter of the embedded one, which
# even the smallest network overfits within minutes.
REDUCED = {"reduced_cifar10": 4000, "reduced_cifar100": 4000, "reduced_svhn": 1000, "reduced_embedded": 1000}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}
NAMES = ("embedded", *NUM_CLASSES, *REDUCED)
_MOST_BYTES = 2**32  # of training images of a folder that are held unless asked not to
_DOWNLOADS = {
    "cifar10": ("cifar-10-binary.tar.gz",),
    "cifar100": ("cifar-100-python.tar.gz",),
    "svhn": ("train_32x32.mat", "test_32x32.mat", "extra_32x32.mat"),
    "reduced_svhn": ("train_32x32.mat", "test_32x32.mat"),
}


class Dataset(NamedTuple):
    """Images uint8 [N, H, W, 3], labels int32 [N], mean and std float32 (3,) of [0, 1] pixels.

    Of `detection_datasets` images are `augment.ImagesWithBoxes`, labels [N, M] those of the boxes.
    """

    name: str
    train_images: np.ndarray | host_images.Images
    train_labels: np.ndarray
    test_images: np.ndarray | host_images.Images
    test_labels: np.ndarray
    class_names: tuple[str, ...]  # by label: of its folders, or else the labels
    mean: np.ndarray
    std: np.ndarray
    valid_images: np.ndarray | host_images.Images | None = (
        None  # of where a model will be used; None: a search splits one off
    )
    valid_labels: np.ndarray | None = None
    annotations: Any = None  # of the test images, for `average_precision`; of images with boxes only

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def is_streamed(self) -> bool:
        """Whether the training images stay on the host."""
        return isinstance(self.train_images, host_images.Images)


def load(
    name,
    data_dir=None,
    download=False,
    image_size=None,
    valid_dataset=None,
    exif_orientation=True,
    *,
    resize=None,
    crop="center",
    crop_area=0.08,
    input=None,
):
    """Loads a data set.

    Args:
      name: one of NAMES; or the path of an `.npz` file or of a folder of images (`image_folder`), perhaps a
        packed one (`sources`).
      data_dir: folder with the official files of CIFAR or SVHN, or where to put them.
      download: fetch the official files into data_dir if they are not there.
      image_size: for folders of images only: side in pixels to which all are brought; None keeps their size.
      valid_dataset: path of validation images, which then are those of the data set: an `.npz` file with
        valid_images and valid_labels, or a folder of images per class, named as in the training folder, or by
        label (0, 1, ...) if the training images are no folder. They take the place of any that the data set
        has itself, so that a model can be fitted to several places of use with the same training images.
      exif_orientation: turn photos of folders upright; False, for folders only, is how the papers load them.
      resize, crop, crop_area: of folders only, see `host_images.Preparation`.
      input: where training images are: "device" or "host", which is for folders only. Default: host if these
        are packed, for random crops, and where they take more than 4 GiB.

    Returns:
      Dataset. The images of "embedded", CIFAR and SVHN are 32 x 32; a custom set keeps its size. A reduced
      set has the whole test part; the training part of "svhn" includes extra_32x32.mat where it is present.

    Raises:
      FileNotFoundError: files are missing or cannot be downloaded.
      ValueError: unknown name, or a file that is damaged, hostile or not what its name says; validation
        images of another size or class than the training images.

    Reference: reduced sets as the code of DADA (ECCV 2020) and Fast AutoAugment (NeurIPS 2019) makes them.
    """
    path = pathlib.Path(name)
    is_folder = name not in NAMES and path.is_dir()
    has_folder = is_folder or (valid_dataset is not None and pathlib.Path(valid_dataset).is_dir())
    if image_size is not None and (not has_folder or image_size < 1):
        expected = "a positive number of pixels, and only for a folder of images"
        raise ValueError(f"image_size {image_size} for {name!r}: expected {expected}")
    if not exif_orientation and not has_folder:
        raise ValueError(f"--noexif_orientation for {name!r}: expected only for a folder of images")
    if resize is not None and (not has_folder or not image_size or resize < image_size):
        expected = f"--image_size or more, which is {image_size}, and only for a folder of images"
        raise ValueError(f"--resize={resize} for {name!r}: expected {expected}")
    if crop != "center" and (not is_folder or not image_size or input == "device"):
        raise ValueError(
            f"--crop={crop} for {name!r}: expected a folder of images, --image_size and --input=host"
        )
    if input == "host" and not (is_folder and image_size):
        raise ValueError(f"--input=host for {name!r}: expected a folder of images, and --image_size")
    base, classes = name.removeprefix("reduced_"), None
    if download and base not in NUM_CLASSES:
        raise ValueError(f"--download for {name!r}: expected only for {', '.join(NUM_CLASSES)}")
    prepared = host_images.Preparation(image_size, resize, crop, crop_area, exif_orientation)
    if base in NUM_CLASSES:
        arrays = _read_official(name, data_dir, download)
        classes = range(NUM_CLASSES[base])
        mean, std = (np.array(values, np.float32) for values in (augment.CIFAR_MEAN, augment.CIFAR_STD))
    else:
        if base == "embedded":
            arrays = dataset_files.read_npz(EMBEDDED)
            padding = ((0, 0), (2, 2), (2, 2), (0, 0))  # 28 x 28 to 32 x 32, with black
            arrays = arrays._replace(
                train_images=np.pad(arrays.train_images, padding),
                test_images=np.pad(arrays.test_images, padding),
            )
        elif is_folder:
            arrays, classes = _read_folder(path, prepared, input)
        elif path.suffix == ".npz":
            arrays = dataset_files.read_npz(path)
        else:
            expected = f"one of {', '.join(NAMES)}, an .npz file or an existing folder of images"
            raise ValueError(f"data set {name!r}: expected {expected}")
        if arrays.test_images is None:
            arrays = _split_off_test(name, arrays)
        if name in REDUCED:
            arrays = _reduce(name, arrays)
        classes = classes or range(arrays.train_labels.max() + 1)
        if len(classes) < 2:
            raise ValueError(f"{name}: got one class, expected two or more")
        mean, std = pixel_statistics(arrays.train_images) if base == "embedded" else imagenet_statistics()
    classes = tuple(map(str, classes))
    train = arrays.train_images, arrays.train_labels.astype(np.int32)
    test = arrays.test_images, arrays.test_labels.astype(np.int32)
    valid = arrays.valid_images, arrays.valid_labels
    if valid_dataset is not None:
        shape = train[0].shape[1:]
        valid = _read_valid(pathlib.Path(valid_dataset), classes, shape, prepared)
    if valid[0] is not None:
        valid = valid[0], valid[1].astype(np.int32)
    return Dataset(name, *train, *test, classes, mean, std, *valid)


def _read_folder(path, prepared, input):
    """(Arrays, classes) of a folder of images, packed or not."""
    is_packed = sources.is_packed(path)
    if input is None:
        size = prepared.image_size
        streams = size and (is_packed or prepared.crop != "center" or _is_large(path, size))
        input = "host" if streams else "device"
    if input == "device" and not is_packed:
        return image_folder.read(path, prepared.image_size, prepared.exif_orientation, prepared.resize)
    arrays, parts = [], sources.open_parts(path)
    for name, source in parts.items():
        images = host_images.Images(source, prepared)
        arrays += [images if input == "host" else np.asarray(images), source.labels]
        if images.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(f"{path}: {name} images have another size than train images: give --image_size")
    return dataset_files.Arrays(*arrays), list(source.classes)


def _is_large(path, image_size):
    """Whether the training images of a folder are too many to be held."""
    _, classes = image_folder.find_parts(path, collections.Counter())
    count = len(image_folder.list_files(path / "train", classes, collections.Counter()))
    return count * image_size * image_size * 3 > _MOST_BYTES


def _read_valid(path, classes, shape, prepared):
    """Validation images and labels of a file or folder of their own."""
    if path.is_dir() and not sources.is_packed(path):
        how = prepared.image_size, prepared.exif_orientation, prepared.resize
        return image_folder.read_valid(path, classes, shape, *how)
    if path.suffix == ".npz":
        return dataset_files.read_valid_npz(path, shape, len(classes))
    expected = "an .npz file or an existing folder of images per class"
    raise ValueError(f"--valid_dataset={path}: expected {expected}")


def require_files(name, data_dir=None):
    """Raises what `load` raises of a data set whose files are not there, without reading them."""
    base = name.removeprefix("reduced_")
    if base in NUM_CLASSES:
        _find_official(name, base, data_dir)
    elif base != "embedded" and not pathlib.Path(name).exists():
        raise FileNotFoundError(f"{name}: no such file or folder")


def _find_official(name, base, data_dir):
    if data_dir is None:
        raise ValueError(f"data set {name!r} needs --data_dir: the folder with its files")
    try:
        return dataset_files.find_svhn(data_dir) if base == "svhn" else cifar_files.find_cifar(base, data_dir)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; --download fetches the official files") from error


def _read_official(name, data_dir, download):
    """Arrays of CIFAR or SVHN, whole or reduced."""
    base = name.removeprefix("reduced_")
    if download and data_dir is not None:
        _download(name, base, data_dir)
    _find_official(name, base, data_dir)
    if base == "svhn":
        arrays = dataset_files.read_svhn(data_dir, with_extra=name == "svhn")
    else:
        arrays = cifar_files.read_cifar(base, data_dir)
    return _reduce(name, arrays) if name in REDUCED else arrays


def _reduce(name, arrays):
    """The first part of a stratified split of the training images."""
    left_out = len(arrays.train_labels) - REDUCED[name]
    if left_out <= 0:
        got = f"{len(arrays.train_labels)} training images"
        raise ValueError(f"{name}: got {got}, expected more than {REDUCED[name]}")
    kept, _ = stratified_split(arrays.train_labels, left_out)
    return arrays._replace(train_images=arrays.train_images[kept], train_labels=arrays.train_labels[kept])


def _download(name, base, data_dir):
    if base in cifar_files.CIFAR:
        with contextlib.suppress(FileNotFoundError):
            return cifar_files.find_cifar(base, data_dir)  # it is there
    for file_name in _DOWNLOADS.get(name, _DOWNLOADS[base]):
        dataset_download.fetch(file_name, data_dir)


def _split_off_test(name, arrays):
    """A stratified fifth of a set without a test part becomes one."""
    images, labels = arrays.train_images, arrays.train_labels
    try:
        train, test = stratified_split(labels, -(-len(labels) // 5))
    except ValueError as error:
        raise ValueError(f"{name}: no fifth can be split off for testing: {error}") from error
    return arrays._replace(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
    )


def imagenet_statistics():
    """Mean and standard deviation of each channel, as the papers have them for ImageNet."""
    return (np.array(values, np.float32) for values in (augment.IMAGENET_MEAN, augment.IMAGENET_STD))


def pixel_statistics(images):
    """Mean and standard deviation of each channel, exact: from the counts of the 256 values."""
    values, counts = np.arange(256) / 255, np.zeros((3, 256), int)
    for start in range(0, len(images), 256):  # counting takes eight bytes for each
        for channel in range(3):
            counts[channel] += np.bincount(
                images[start : start + 256, ..., channel].reshape(-1), minlength=256
            )
    statistics = []
    for share in counts / images[..., 0].size:
        mean = share @ values
        # A channel of one colour would make normalisation divide by zero: one grey level instead.
        statistics.append((mean, max(np.sqrt(share @ (values - mean) ** 2), 1 / 255)))
    return np.array(statistics, np.float32).T


def search_split(dataset, seed=0):
    """Halves the training set for a search, each class in proportion; an odd image goes to validation.

    Images with boxes are all of one class here.

    Seed 0 gives the split of the papers (the first of a stratified shuffle split with test share 0.5).

    Returns:
      (train_indices, valid_indices), int32, disjoint, together the whole training set.

    Raises:
      ValueError: a class has one image only.
    """
    labels = _strata(dataset.train_labels)
    single = np.flatnonzero(np.bincount(labels) == 1)
    if single.size:
        got = f"{dataset.name}: class {dataset.class_names[single[0]]} has one training image"
        raise ValueError(f"{got}, expected two or more, or validation images of their own")
    train, valid = stratified_split(labels, -(-len(labels) // 2), seed)
    return train.astype(np.int32), valid.astype(np.int32)


def search_parts(dataset: Dataset) -> tuple[sgd.Batch, sgd.Batch]:
    """Images to search on and to validate with: the halves of `search_split`, or the set's own, all of each.

    Own validation images come in a random order, always the same, since batches may be taken in order.
    """
    train = sgd.Batch(dataset.train_images, dataset.train_labels)
    if dataset.valid_images is None:
        return tuple(part_of(train, index) for index in search_split(dataset))
    order = np.random.RandomState(0).permutation(len(dataset.valid_labels))
    return train, part_of(sgd.Batch(dataset.valid_images, dataset.valid_labels), order)


def part_of(images: sgd.Batch, index: Any) -> sgd.Batch:
    """The images of an index, with all that belongs to them."""
    return jax.tree.map(lambda leaf: leaf[index], images)


def stratified_part(images: sgd.Batch, count: int | None, flag: str) -> sgd.Batch:
    """`count` of the images, each class in proportion, in their order; None is all.

    A larger part includes a smaller one.

    Raises:
      ValueError: there are fewer than `flag` asks for.
    """
    labels = _strata(images.labels)
    if count is None:
        return images
    if count > len(labels):
        raise ValueError(f"--{flag}={count}: the search has only {len(labels)} such images")
    share = np.empty(len(labels))  # of its class that comes before an image
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    kept = np.sort(np.argsort(share, kind="stable")[:count])
    return part_of(images, kept)


def first_of_each(labels: np.ndarray, count: int) -> np.ndarray:
    """Places of the first `count` images of each class, or of all of a smaller class; ascending."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    return np.sort(order[np.arange(len(labels)) - np.repeat(starts, counts) < count])


def _strata(labels):
    """The classes that images are divided by, [N]."""
    return labels if labels.ndim == 1 else np.zeros(len(labels), np.int32)


def stratified_split(labels, test_size, seed=0):
    """Splits indices at random into two parts with the class shares of the whole.

    Gives what the first split of scikit-learn's `StratifiedShuffleSplit(test_size=..., random_state=seed)`
    gives, on which the published reduced sets rest; hence the legacy generator and the exact order of draws.

    Returns:
      (first, second), int64 index arrays [N - test_size] and [test_size], in random order.

    Raises:
      ValueError: a class has fewer than two images, or a part would have fewer images than there are classes.
    """
    present, class_of, counts = np.unique(labels, return_inverse=True, return_counts=True)
    train_size = len(labels) - test_size
    if not len(labels) or counts.min() < 2 or min(train_size, test_size) < len(counts):
        single = f" (one of class {present[counts.argmin()]})" if 1 in counts else ""
        split = f"{len(labels)} images of {len(counts)} classes{single} into {train_size} and {test_size}"
        expected = f"two or more of each class, and parts of {len(counts)} or more"
        raise ValueError(f"cannot split {split}: expected {expected}")
    generator = np.random.RandomState(seed)
    train_counts = _proportional_counts(counts, train_size, generator)
    test_counts = _proportional_counts(counts - train_counts, test_size, generator)
    members = np.split(np.argsort(class_of, kind="stable"), np.cumsum(counts)[:-1])
    train, test = [], []
    for indices, in_train, in_test in zip(members, train_counts, test_counts):
        shuffled = indices[generator.permutation(len(indices))]
        train.append(shuffled[:in_train])
        test.append(shuffled[in_train : in_train + in_test])
    return (generator.permutation(np.concatenate(train)), generator.permutation(np.concatenate(test)))


def _proportional_counts(counts, total, generator):
    """Shares of `total` in proportion to `counts`: floors, then largest remainders, ties drawn."""
    exact = counts / counts.sum() * total
    shares = np.floor(exact)
    remainders = exact - shares
    left = int(total - shares.sum())
    for value in np.unique(remainders)[::-1]:
        if left == 0:
            break
        tied = np.flatnonzero(remainders == value)
        chosen = generator.choice(tied, size=min(len(tied), left), replace=False)
        shares[chosen] += 1
        left -= len(chosen)
    return shares.astype(int)
