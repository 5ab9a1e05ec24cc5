"""Non-maximum suppression, on the host: of boxes of one class that overlap, the best stays."""

import numpy as np

from .average_precision import Detections
from .candidates import Candidates

SCORE_THRESHOLD = 0.05
OVERLAP_THRESHOLD = 0.5
MOST_DETECTIONS = 100


def detections(candidates: Candidates, scale: np.ndarray) -> list[Detections]:
    """What a detector says of each image.

    Args:
      candidates: of B images.
      scale: [B, 2], by how much wider and higher an image was than what the network saw, so that boxes are in
        the pixels of the file.
    """
    found = []
    for scores, labels, boxes, factors in zip(*(np.asarray(part) for part in candidates), scale):
        kept = suppress(scores, labels, boxes)
        corners = boxes[kept].astype(np.float64).reshape(-1, 2, 2) * factors
        boxes_of_coco = np.concatenate([corners[:, 0], corners[:, 1] - corners[:, 0]], axis=1)
        found.append(Detections(boxes_of_coco, labels[kept], scores[kept].astype(np.float64)))
    return found


def suppress(scores: np.ndarray, labels: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The boxes of one image that stay.

    By descending score, a box stays unless its overlap (intersection over union) with one of its class that
    has stayed is above 0.5. Left out are scores of 0.05 or less, and what comes after the first 100 to stay.

    Args:
      scores: [K].
      labels: [K].
      boxes: [K, 4].
    Returns:
      Their indices, the best first; of equal scores the first.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[scores[order] > SCORE_THRESHOLD]
    kept = []
    while len(order) and len(kept) < MOST_DETECTIONS:
        best, order = order[0], order[1:]
        kept.append(best)
        is_same = labels[order] == labels[best]
        order = order[~(is_same & (_overlaps(boxes[best], boxes[order]) > OVERLAP_THRESHOLD))]
    return np.array(kept, np.int64)


def _overlaps(box, boxes):
    sides = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    intersection = np.prod(np.maximum(sides, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - intersection
    # Two boxes without an area do not overlap.
    return intersection / np.where(union > 0, union, 1)
