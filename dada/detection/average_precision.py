"""Average precision and recall as COCO defines them: the 12 numbers of pycocotools, to the last bit.

A detection is right if it overlaps enough with a box of its class that no better detection has taken.
Precision is averaged over 101 recalls, 10 thresholds of the overlap, and classes.

Boxes have COCO's form (x, y, width, height) in pixels of the file, float64: so the corners are rounded as
pycocotools rounds them. Images come in the order of their ids, which decides ties of scores.

Reference: Lin et al. 2014, arXiv:1405.0312; cocodataset.org, detection evaluation.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
# Boxes that count, by area in pixels, both ends included.
AREAS = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}
MOST_DETECTIONS = (1, 10, 100)


class Truth(NamedTuple):
    """The annotated boxes of one image.

    Attributes:
      boxes: float64 [n, 4], (x, y, width, height).
      labels: integer [n].
      areas: float64 [n], of the objects, which may be less than that of their boxes.
      is_crowd: bool [n]; a crowd need not be found, and what lies in it is not wrong.
    """

    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    is_crowd: np.ndarray


class Detections(NamedTuple):
    """What a detector says of one image: float64 boxes [n, 4], (x, y, width, height), labels, scores [n]."""

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class Evaluation(NamedTuple):
    """-1 stands for what has no annotated box.

    Attributes:
      numbers: AP (mean over overlaps), AP50, AP75, AP_small, AP_medium, AP_large; mean recalls AR_1, AR_10,
        AR_100 (with at most so many detections of a class in an image), AR_small, AR_medium, AR_large.
      class_ap, class_ap50: float64 [C], AP and AP50 of each class.
    """

    numbers: dict[str, float]
    class_ap: np.ndarray
    class_ap50: np.ndarray


def evaluate(truths: Sequence[Truth], detections: Sequence[Detections], num_classes: int) -> Evaluation:
    """Compares detections with annotations, image by image.

    Raises:
      ValueError: not as many truths as detections.
    """
    if len(truths) != len(detections):
        raise ValueError(f"evaluate: expected one image each, got {len(truths)} and {len(detections)}")
    shape = (len(AREAS), len(MOST_DETECTIONS), num_classes, len(THRESHOLDS))
    precision, recall = -np.ones((*shape, len(RECALLS))), -np.ones(shape)
    for label in range(num_classes):
        pairs = [(_of_class(t, label), _of_class(d, label)) for t, d in zip(truths, detections)]
        matches = [_match(*pair) for pair in pairs if len(pair[0].labels) or len(pair[1].labels)]
        if not matches:
            continue
        for number, most in enumerate(MOST_DETECTIONS):
            precision[:, number, label], recall[:, number, label] = _curves(matches, most)

    best = precision[:, -1]  # [area, class, threshold, recall]
    numbers = {"AP": best[0], "AP50": best[0, :, 0], "AP75": best[0, :, 5]}
    numbers |= {f"AP_{area}": best[index] for index, area in enumerate(AREAS) if area != "all"}
    numbers |= {f"AR_{most}": recall[0, number] for number, most in enumerate(MOST_DETECTIONS)}
    numbers |= {f"AR_{area}": recall[index, -1] for index, area in enumerate(AREAS) if area != "all"}
    return Evaluation(
        {name: _mean(values) for name, values in numbers.items()},
        np.array([_mean(values) for values in best[0]]),
        np.array([_mean(values) for values in best[0, :, 0]]),
    )


def _mean(values):
    """Mean of what is there, added up in the order of pycocotools: threshold, recall, class."""
    values = np.moveaxis(values, 0, -1)
    known = values[values > -1]
    return float(np.mean(known)) if known.size else -1.0


def _of_class(arrays, label):
    is_class = arrays.labels == label
    return type(arrays)(*(array[is_class] for array in arrays))


class _Match(NamedTuple):
    """One class in one image: A ranges of areas, T thresholds, D detections with the best first."""

    scores: np.ndarray  # [D]
    is_right: np.ndarray  # bool [A, T, D]
    is_wrong: np.ndarray  # bool [A, T, D]; a detection may be neither
    count: np.ndarray  # [A], boxes that are to be found


def _match(truth, found):
    order = np.argsort(-found.scores, kind="stable")[: MOST_DETECTIONS[-1]]
    boxes = found.boxes[order]
    # [A, G]: boxes that need not be found. A detection takes one of them where it can take no other.
    is_ignored = truth.is_crowd | _is_outside(truth.areas)
    is_taken = np.zeros((len(AREAS), len(THRESHOLDS), len(truth.labels)), bool)
    is_right = np.zeros((len(AREAS), len(THRESHOLDS), len(boxes)), bool)
    is_wrong = is_right | ~_is_outside(boxes[:, 2] * boxes[:, 3])[:, None]
    least = np.minimum(THRESHOLDS, 1 - 1e-10)[:, None]
    for index, overlaps in enumerate(_overlaps(boxes, truth)):
        is_open = (overlaps >= least) & (truth.is_crowd | ~is_taken)
        is_regular = is_open & ~is_ignored[:, None]
        is_right[..., index] = is_regular.any(-1)
        is_open = np.where(is_right[..., index, None], is_regular, is_open)
        best = np.max(np.where(is_open, overlaps, -1.0), axis=-1, keepdims=True, initial=-1.0)
        is_best = is_open & (overlaps == best)
        is_taken |= is_best & (np.cumsum(is_best[..., ::-1], axis=-1)[..., ::-1] == 1)  # the last one
        is_wrong[..., index] &= ~is_open.any(-1)
    return _Match(found.scores[order], is_right, is_wrong, np.sum(~is_ignored, axis=1))


def _is_outside(areas):
    """[A, n]: whether areas [n] are outside each range."""
    low, high = np.array(list(AREAS.values())).T[..., None]
    return (areas < low) | (areas > high)


def _overlaps(boxes, truth):
    """[D, G]: intersection over union; with a crowd over the area of the detection."""
    first, second = boxes[:, None], truth.boxes[None]
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    width, height = np.moveaxis(high - low, -1, 0)
    intersection = np.where((width > 0) & (height > 0), width * height, 0.0)
    area = first[..., 2] * first[..., 3]
    union = np.where(truth.is_crowd, area, area + second[..., 2] * second[..., 3] - intersection)
    return intersection / np.where(intersection > 0, union, 1.0)


def _curves(matches, most):
    """Precision at each recall [A, T, R] and last recall [A, T], with at most `most` detections an image."""
    order = np.argsort(-np.concatenate([match.scores[:most] for match in matches]), kind="stable")
    right, wrong = (
        np.cumsum(np.concatenate([part[..., :most] for part in parts], axis=-1)[..., order], axis=-1)
        for parts in zip(*((match.is_right, match.is_wrong) for match in matches))
    )
    count = np.sum([match.count for match in matches], axis=0)
    precision = -np.ones((*right.shape[:2], len(RECALLS)))
    recall = -np.ones(right.shape[:2])
    for area in np.flatnonzero(count):
        recalls = right[area] / count[area]
        # Spacing: what keeps 0 / 0 away in pycocotools, and makes the best precision a little less than 1.
        curves = right[area] / (wrong[area] + right[area] + np.spacing(1))
        curves = np.maximum.accumulate(curves[:, ::-1], axis=-1)[:, ::-1]
        curves = np.pad(curves, ((0, 0), (0, 1)))  # recalls that are not reached
        for threshold, curve in enumerate(curves):
            precision[area, threshold] = curve[np.searchsorted(recalls[threshold], RECALLS)]
        recall[area] = np.max(recalls, axis=-1, initial=0.0)
    return precision, recall
