"""Data sets: embedded, reduced and custom sets, SVHN, image folders, stratified splits."""

import hashlib

import numpy as np
import pytest
import scipy.io
from PIL import Image

from dada import augment
from experiments.data import datasets, image_folder
from tests import dataset_writers


def sha(indices):
    return hashlib.sha256(np.asarray(indices, "<i4").tobytes()).hexdigest()[:16]


def test_embedded_set():
    dataset = datasets.load("embedded")
    assert dataset.train_images.shape == (4000, 32, 32, 3)
    assert dataset.test_images.shape == (1000, 32, 32, 3)
    assert dataset.num_classes == 10
    np.testing.assert_array_equal(np.bincount(dataset.train_labels), [400] * 10)
    np.testing.assert_array_equal(np.bincount(dataset.test_labels), [100] * 10)
    assert not dataset.train_images[:, :2].any() and not dataset.train_images[:, :, -2:].any()
    assert dataset.train_images[:, 2:-2, 2:-2].any()
    pixels = dataset.train_images / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 1, 2)), rtol=1e-6)
    assert dataset.mean.dtype == dataset.std.dtype == np.float32


def test_missing_files_are_listed(tmp_path):
    folder = dataset_writers.write_cifar(
        tmp_path, "cifar10", "binary", dataset_writers.cifar_parts("cifar10")
    )
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(FileNotFoundError) as error:
        datasets.load("cifar10", tmp_path)
    for text in (
        f"{folder} (without data_batch_5.bin)",
        "cifar-10-batches-py",
        "cifar-10-python.tar.gz",
        "--download",
    ):
        assert text in str(error.value)
    with pytest.raises(ValueError, match="--data_dir"):
        datasets.load("cifar10")
    with pytest.raises(FileNotFoundError, match=r"test_32x32\.mat"):
        datasets.load("svhn", tmp_path)


def test_svhn(tmp_path):
    train = dataset_writers.write_svhn(tmp_path, "train", 30, 1)
    test = dataset_writers.write_svhn(tmp_path, "test", 20, 2)
    dataset_writers.assert_holds(datasets.load("svhn", tmp_path), [train, test])
    extra = dataset_writers.write_svhn(tmp_path, "extra", 40, 3)
    dataset_writers.assert_holds(datasets.load("svhn", tmp_path), [train, extra, test])


@pytest.mark.parametrize("damage", ["truncated", "text", "key", "label"])
def test_damaged_svhn(tmp_path, damage):
    dataset_writers.write_svhn(tmp_path, "test", 20, 2)
    dataset_writers.write_svhn(tmp_path, "train", 30, 1, key="Z" if damage == "key" else "X")
    file = tmp_path / "train_32x32.mat"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:5000])
    if damage == "text":
        file.write_bytes(b"<html>not found</html>")
    if damage == "label":
        images = dataset_writers.random_images(2).transpose(1, 2, 3, 0)
        scipy.io.savemat(file, {"X": images, "y": np.array([[1], [11]], np.uint8)})
    with pytest.raises(ValueError, match=r"train_32x32\.mat"):
        datasets.load("svhn", tmp_path)


def test_reduced_sets(tmp_path):
    parts = dataset_writers.cifar_parts("cifar10", per_file=1000)
    dataset_writers.write_cifar(tmp_path, "cifar10", "binary", parts)
    reduced = datasets.load("reduced_cifar10", tmp_path)
    labels = np.concatenate([part[1] for part in parts[:-1]])
    kept, _ = datasets.stratified_split(labels, 1000)
    np.testing.assert_array_equal(reduced.train_labels, labels[kept])
    np.testing.assert_array_equal(np.bincount(reduced.train_labels), [400] * 10)
    np.testing.assert_array_equal(reduced.test_images, parts[-1][0])
    dataset_writers.write_svhn(tmp_path, "train", 1500, 1)
    dataset_writers.write_svhn(tmp_path, "extra", 500, 3)
    dataset_writers.write_svhn(tmp_path, "test", 20, 2)
    assert datasets.load("reduced_svhn", tmp_path).train_labels.shape == (1000,)
    dataset_writers.write_svhn(tmp_path, "train", 1000, 1)
    with pytest.raises(ValueError, match="1000 training images, expected more than 1000"):
        datasets.load("reduced_svhn", tmp_path)


def test_reduced_embedded_set():
    whole, reduced = (datasets.load(name) for name in ("embedded", "reduced_embedded"))
    kept, _ = datasets.stratified_split(whole.train_labels, 3000)
    np.testing.assert_array_equal(reduced.train_images, whole.train_images[kept])
    np.testing.assert_array_equal(reduced.train_labels, whole.train_labels[kept])
    np.testing.assert_array_equal(reduced.test_images, whole.test_images)


# First indices and hashes of both parts, as scikit-learn 1.9.1 gives them.
@pytest.mark.parametrize(
    ("labels", "test_size", "seed", "first", "second", "hashes"),
    [
        (
            dataset_writers.balanced(50000, 10),
            46000,
            0,
            [24812, 46016, 20855, 2915, 44866],
            [11780, 49725, 42375, 4415, 42781],
            ("568895192d173b3b", "f9644c0a1bcb3e01"),
        ),
        (
            dataset_writers.balanced(50000, 100),
            46000,
            0,
            [33502, 32071, 27232, 35227, 39219],
            [36624, 33321, 17415, 25470, 48968],
            ("c13d6766955e8c0c", "0155c4912f308393"),
        ),
        (
            np.repeat(np.arange(10), [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659]),
            72257,
            0,
            [3731, 41731, 11017, 31052, 41728],
            [26403, 60275, 3359, 69507, 20191],
            ("0291a4024b8034cb", "b19ebdd0bcf11509"),
        ),
        (
            np.arange(1000) ** 2 % 7,
            317,
            0,
            [122, 756, 989, 358, 178],
            [982, 553, 788, 13, 252],
            ("87223ef17c2667bf", "e916c9d94e896e5a"),
        ),
        (
            np.arange(1000) ** 2 % 7,
            500,
            3,
            [852, 822, 273, 882, 356],
            [146, 754, 894, 986, 749],
            ("30e782ab8763c878", "da2c1d98dcb33499"),
        ),
    ],
)
def test_stratified_split_is_that_of_scikit_learn(labels, test_size, seed, first, second, hashes):
    train, test = datasets.stratified_split(labels, test_size, seed)
    assert train[:5].tolist() == first and test[:5].tolist() == second
    assert (sha(train), sha(test)) == hashes


def test_search_split():
    dataset = datasets.load("embedded")._replace(train_labels=dataset_writers.balanced(4000, 10))
    train, valid = datasets.search_split(dataset)
    assert (sha(train), sha(valid)) == ("b7ce6d57d4253d61", "472245cd6188ae79")
    assert train.dtype == valid.dtype == np.int32
    assert sorted([*train, *valid]) == list(range(4000))
    other, _ = datasets.search_split(dataset, seed=1)
    assert not np.array_equal(other, train)


@pytest.mark.parametrize(
    ("labels", "test_size"), [([0, 0, 0, 1], 2), ([0, 0, 1, 1], 1), ([0, 0, 1, 1], 3), ([], 0)]
)
def test_impossible_split(labels, test_size):
    with pytest.raises(ValueError, match="expected two or more of each class"):
        datasets.stratified_split(np.array(labels, int), test_size)


@pytest.mark.parametrize("shape", [(24, 20, 3), (24, 20, 1), (24, 20)])
def test_npz(tmp_path, shape):
    file = tmp_path / "mine.npz"
    images, test_images = (
        dataset_writers.random_images(12, 1, shape),
        dataset_writers.random_images(6, 2, shape),
    )
    labels, test_labels = np.arange(12) % 3, np.arange(6, dtype=np.uint8) % 3
    np.savez(file, train_images=images, train_labels=labels, test_images=test_images, test_labels=test_labels)
    dataset = datasets.load(str(file))
    assert dataset.train_images.shape == (12, 24, 20, 3) and dataset.num_classes == 3
    expected = np.broadcast_to(images.reshape(12, 24, 20, -1), (12, 24, 20, 3))
    np.testing.assert_array_equal(dataset.train_images, expected)
    np.testing.assert_array_equal(dataset.std, np.float32(augment.IMAGENET_STD))  # as of a folder of these
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert dataset.test_labels.dtype == np.int32


def test_npz_without_test_part_gives_up_a_fifth(tmp_path):
    images, labels = dataset_writers.random_images(53), dataset_writers.balanced(53, 4)
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    dataset = datasets.load(str(tmp_path / "mine.npz"))
    assert len(dataset.train_labels) == 42 and len(dataset.test_labels) == 11
    train, test = datasets.stratified_split(labels, 11)
    np.testing.assert_array_equal(dataset.train_images, images[train])
    np.testing.assert_array_equal(dataset.test_images, images[test])


def test_constant_images_have_no_zero_deviation():
    _, std = datasets.pixel_statistics(np.full((10, 8, 8, 3), 7, np.uint8))
    assert (std > 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((20, 8, 8, 3), np.float32)}, "float32"),
        ({"images": np.zeros((20, 8, 8, 4), np.uint8)}, r"\[20, 8, 8, 4\]"),
        ({"labels": np.arange(20) % 2 + 1}, "from 1 to 2, expected 0 to 1"),
        ({"labels": np.arange(20) % 2 * 5}, "without a gap"),
        ({"labels": np.arange(20) % 2 - 1}, "from -1 to 0"),
        ({"labels": np.arange(19) % 2}, r"expected integers \[20\]"),
        ({"labels": np.arange(20) / 2}, "float64"),
        ({"labels": np.array([None] * 20)}, "allow_pickle"),
        ({"labels": np.arange(20)}, "no fifth"),
        (
            {"images": np.zeros((0, 8, 8), np.uint8), "labels": np.zeros(0, int)},
            r"images is uint8 \[0, 8, 8\]",
        ),
    ],
)
def test_bad_npz(tmp_path, change, message):
    content = {"images": np.zeros((20, 8, 8, 3), np.uint8), "labels": np.arange(20) % 2, **change}
    np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(ValueError, match=message) as error:
        datasets.load(str(tmp_path / "bad.npz"))
    assert "bad.npz" in str(error.value)


def test_npz_whose_parts_do_not_fit(tmp_path):
    content = {
        "train_images": dataset_writers.random_images(4),
        "train_labels": dataset_writers.balanced(4, 2),
        "test_images": dataset_writers.random_images(4),
        "test_labels": dataset_writers.balanced(4, 2) + 1,
    }
    file = tmp_path / "bad.npz"
    np.savez(file, **content)
    with pytest.raises(ValueError, match="test_labels are from 1 to 2, expected 0 to 1"):
        datasets.load(str(file))
    np.savez(file, **content | {"test_images": dataset_writers.random_images(4, shape=(8, 8))})
    with pytest.raises(ValueError, match="one shape"):
        datasets.load(str(file))
    np.savez(file, train_images=dataset_writers.random_images(4))
    with pytest.raises(ValueError, match=r"holds \['train_images'\], expected"):
        datasets.load(str(file))


def test_file_that_is_no_npz(tmp_path):
    file = tmp_path / "bad.npz"
    np.savez(file, images=dataset_writers.random_images(20), labels=dataset_writers.balanced(20, 2))
    content = file.read_bytes()
    for damaged in (b"", b"text", content[:1000]):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bad\.npz: truncated"):
            datasets.load(str(file))
    flipped = bytearray(content)
    flipped[2000] ^= 255
    file.write_bytes(flipped)
    with pytest.raises(ValueError, match=r"bad\.npz"):
        datasets.load(str(file))
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        datasets.load(str(tmp_path / "none.npz"))


@pytest.mark.parametrize("name", ["", "cifar11", "reduced_mnist", "/no/such/folder"])
def test_unknown_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        datasets.load(name)
    if name:
        assert "embedded" in str(error.value) and repr(name) in str(error.value)


def write_folder(root, sizes, test="val"):
    """Two classes, PNG, one image of each size per class and part."""
    for part in ("train", test):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for i, (width, height) in enumerate(sizes):
                image = dataset_writers.random_images(1, i, (height, width, 3))[0]
                Image.fromarray(image).save(root / part / name / f"{i}.PNG")
            (root / part / name / "notes.txt").write_text("not an image")


@pytest.mark.parametrize("test", ["val", "test"])
def test_image_folder(tmp_path, test):
    write_folder(tmp_path, [(20, 12)] * 3, test)
    dataset = datasets.load(str(tmp_path))
    assert dataset.train_images.shape == dataset.test_images.shape == (6, 12, 20, 3)
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1, 1] and dataset.num_classes == 2
    np.testing.assert_array_equal(
        dataset.train_images[4], dataset_writers.random_images(1, 1, (12, 20, 3))[0]
    )


@pytest.mark.parametrize(("threads", "slow"), [(1, 0), (5, 0), (5, 9)])
def test_image_folder_in_threads(tmp_path, monkeypatch, threads, slow):
    """The pixels and the order of a plain loop, and the first of the damaged files."""
    write_folder(tmp_path, [(9, 8)] * 70)
    (tmp_path / "train" / "cat" / "20").mkdir()
    Image.new("L", (9, 8), 3).save(tmp_path / "train" / "cat" / "20" / "0.png")
    monkeypatch.setattr(image_folder, "_THREADS", threads)
    monkeypatch.setattr(image_folder, "_SLOW", slow)
    dataset = datasets.load(str(tmp_path))
    paths = [path for name in ("cat", "dog") for path in sorted((tmp_path / "train" / name).rglob("*.[Pp]*"))]
    expected = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    np.testing.assert_array_equal(dataset.train_images, expected)
    assert dataset.train_labels.tolist() == [0] * 71 + [1] * 70
    for name in ("cat/68.PNG", "dog/12.PNG"):
        (tmp_path / "train" / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"cat/68\.PNG: cannot be decoded"):
        datasets.load(str(tmp_path))


def test_image_folder_of_mixed_sizes(tmp_path):
    write_folder(tmp_path, [(20, 12), (16, 16), (7, 30)])
    with pytest.raises(ValueError, match=r"16 x 16.*20 x 12.*--image_size"):
        datasets.load(str(tmp_path))
    dataset = datasets.load(str(tmp_path), image_size=16)
    assert dataset.train_images.shape == (6, 16, 16, 3)
    np.testing.assert_array_equal(
        dataset.train_images[1], dataset_writers.random_images(1, 1, (16, 16, 3))[0]
    )
    wide = Image.fromarray(dataset_writers.random_images(1, 0, (12, 20, 3))[0]).resize(
        (27, 16), Image.BICUBIC
    )
    np.testing.assert_array_equal(dataset.train_images[0], np.asarray(wide)[:, 5:21])


def test_damaged_image_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="train/<class>"):
        datasets.load(str(tmp_path))
    write_folder(tmp_path, [(8, 8)])
    file = tmp_path / "val" / "dog" / "0.PNG"
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"dog/0\.PNG.*decoded"):
        datasets.load(str(tmp_path))
    file.unlink()
    (tmp_path / "val" / "cat" / "0.PNG").unlink()
    with pytest.raises(FileNotFoundError, match="val/cat: no image"):
        datasets.load(str(tmp_path))
    (tmp_path / "val" / "wolf").mkdir()
    with pytest.raises(ValueError, match="got class wolf, expected only the 2 of"):
        datasets.load(str(tmp_path))


def test_image_size_belongs_to_folders(tmp_path):
    write_folder(tmp_path, [(8, 8)])
    for name, size in (("embedded", 16), (str(tmp_path), 0)):
        with pytest.raises(ValueError, match=f"image_size {size}"):
            datasets.load(name, image_size=size)
