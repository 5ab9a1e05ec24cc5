"""The part of ImageNet that the searches keep: counts, classes, and what is refused."""

import numpy as np
import pytest

from experiments.data import datasets, reduced_imagenet


def imagenet(num_classes=1000, of_each=60):
    """Images of one pixel, which say their class and place; `of_each` is a count, or one of each class."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(num_classes, dtype=np.int32), of_each))
    images = np.stack([labels % 256, labels // 256, np.arange(len(labels)) % 256], -1).astype(np.uint8)
    test = np.arange(num_classes, dtype=np.int32)
    names = tuple(f"n{number:08d}" for number in range(num_classes))
    images = images[:, None, None]
    return datasets.Dataset(
        "imagenet", images, labels, images[: len(test)], test, names, np.ones(3), np.ones(3)
    )


@pytest.mark.parametrize(("name", "of_each"), [("dada", 50), ("ddas", 60)])
def test_a_reduced_set(name, of_each):
    whole = imagenet()
    reduced, kept = reduced_imagenet.reduce(name, whole), reduced_imagenet.classes(name)
    assert len(kept) == len(set(kept)) == 120 and (np.diff(kept) > 0).all()
    assert np.bincount(reduced.train_labels).tolist() == [of_each] * 120
    assert reduced.test_labels.tolist() == list(range(120)) and reduced.num_classes == 120
    assert reduced.class_names[0] == f"n{kept[0]:08d}"
    pixels = reduced.train_images[:, 0, 0].astype(int)
    np.testing.assert_array_equal(pixels[:, 0] + 256 * pixels[:, 1], kept[reduced.train_labels])


def test_the_classes_of_dada_are_those_of_its_code():
    kept = reduced_imagenet.classes("dada")
    assert kept[:3].tolist() == [16, 23, 52] and kept[-1] == 959 and kept.sum() == 64587
    train, valid = datasets.search_split(reduced_imagenet.reduce("dada", imagenet()))
    assert len(train) == len(valid) == 3000


def test_the_set_of_ddas_has_50_and_20_of_each_class():
    sizes = np.arange(1000) % 60 + 140  # classes of ImageNet, too, are of several sizes
    halves = datasets.search_parts(reduced_imagenet.reduce("ddas", imagenet(of_each=sizes)))
    for half, of_each in zip(halves, (50, 20)):
        part = datasets.stratified_part(half, 120 * of_each, "num")
        assert np.bincount(part.labels).tolist() == [of_each] * 120


@pytest.mark.parametrize("sizes", [(999, 60), (1000, 50)])
def test_another_set_is_refused(sizes):
    with pytest.raises(ValueError, match=r"--reduced_imagenet: got .* classes and .* images, expected 1,000"):
        reduced_imagenet.reduce("ddas", imagenet(*sizes))
