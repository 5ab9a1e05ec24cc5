"""What the searches of DADA and DDAS keep of ImageNet: 120 of its 1,000 classes.

dada   the rule of the released code: a stratified part of 50,000 of all images, then 120 classes, which it
       lists; about 6,000 images, half of them to validate with
ddas   140 images of each of 120 classes, of which --num_train=6000 --num_valid=2400 takes 50 and 20. Those of
       the paper are random and not published: these are ours, of seed 0
"""

import numpy as np

from experiments.data import datasets

NAMES = ("dada", "ddas")
_NUM_CLASSES, _NUM_KEPT = 1000, 120
_DADA_IMAGES = 50_000
_DDAS_OF_EACH = 140  # two halves from which 50 can be taken; fewer than the smallest class has
# Places among the sorted WordNet ids, in the order of the labels.
_DADA_CLASSES = """
16 23 52 57 76 93 95 96 99 121 122 128 148 172 181 189 202 210 232 238 257 258 259 277 283 289 295 304 307
318 322 331 337 338 345 350 361 375 376 381 388 399 401 408 424 431 432 440 447 462 464 472 483 497 506 512
530 541 553 554 557 564 570 584 612 614 619 626 631 632 650 657 658 660 674 675 680 682 691 695 699 711 734
736 741 754 757 764 769 770 780 781 787 797 799 811 822 829 830 835 837 842 843 845 873 883 897 900 902 905
913 920 925 937 938 940 941 944 949 959
"""


def classes(name: str) -> np.ndarray:
    """Places of the classes that are kept, among the sorted WordNet ids: int [120], ascending."""
    if name == "dada":
        return np.array(_DADA_CLASSES.split(), int)
    return np.sort(np.random.RandomState(0).permutation(_NUM_CLASSES)[:_NUM_KEPT])


def reduce(name: str, dataset: datasets.Dataset) -> datasets.Dataset:
    """The part of ImageNet that one of NAMES keeps; labels are places among the classes kept.

    Raises:
      ValueError: the data set has other than 1,000 classes, or too few images.
    """
    count = len(dataset.train_labels)
    if dataset.num_classes != _NUM_CLASSES or count <= _DADA_IMAGES:
        got = f"{dataset.num_classes:,} classes and {count:,} images"
        raise ValueError(f"--reduced_imagenet: got {got}, expected 1,000 and more than {_DADA_IMAGES:,}")
    kept, label_of = classes(name), np.full(_NUM_CLASSES, -1, np.int32)
    label_of[kept] = np.arange(_NUM_KEPT)
    if name == "dada":
        of_all, _ = datasets.stratified_split(dataset.train_labels, count - _DADA_IMAGES)
    else:
        order = np.random.RandomState(0).permutation(count)
        of_all = order[datasets.first_of_each(dataset.train_labels[order], _DDAS_OF_EACH)]

    def part(images, labels, places):
        places = places[label_of[labels[places]] >= 0]
        return images[places], label_of[labels[places]]

    train = part(dataset.train_images, dataset.train_labels, of_all)
    test = part(dataset.test_images, dataset.test_labels, np.arange(len(dataset.test_labels)))
    valid = dataset.valid_images, dataset.valid_labels
    if valid[0] is not None:
        valid = part(*valid, np.arange(len(valid[1])))
    names = tuple(dataset.class_names[place] for place in kept)
    return datasets.Dataset(dataset.name, *train, *test, names, dataset.mean, dataset.std, *valid)
