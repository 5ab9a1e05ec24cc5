"""From outputs to detections: box coding, candidates, suppression, and all of it on the embedded set."""

import jax
import numpy as np
import pytest

from dada.detection import assignment, average_precision, box_coding, candidates, suppression
from dada.models import retinanet
from experiments.data import detection_datasets

ANCHORS = np.array([[0, 0, 10, 20], [20, 20, 40, 30]], np.float32)


def test_box_coding_worked_out_by_hand():
    boxes = np.array([[5, 5, 15, 15], [20, 20, 60, 30]], np.float32)
    expected = [[0.5, 0, 0, -np.log(2)], [0.5, 0, np.log(2), 0]]
    deltas = box_coding.encode(ANCHORS, boxes)
    np.testing.assert_allclose(deltas, expected, atol=1e-6)
    np.testing.assert_allclose(box_coding.decode(ANCHORS, deltas), boxes, atol=1e-5)
    # A side grows to at most 1000 / 16 times that of the anchor.
    large = box_coding.decode(ANCHORS[:1], np.array([[0, 0, 1e9, -1e9]], np.float32))
    np.testing.assert_allclose(large, [[5 - 312.5, 9.84, 5 + 312.5, 10.16]], rtol=1e-5)


def test_best_candidates():
    random = np.random.RandomState(0)
    logits = random.standard_normal((3, 2, 4)).astype(np.float32)
    deltas = random.standard_normal((3, 2, 4)).astype(np.float32)
    found = jax.jit(candidates.best, static_argnums=(3, 4))(logits, deltas, ANCHORS, (30, 50), 5)
    for image in range(3):
        order = np.argsort(-logits[image], axis=None)[:5]
        anchor, label = np.unravel_index(order, (2, 4))
        np.testing.assert_array_equal(found.labels[image], label)
        np.testing.assert_allclose(found.scores[image], 1 / (1 + np.exp(-logits[image][anchor, label])), 1e-6)
        boxes = box_coding.decode(ANCHORS[anchor], deltas[image, anchor])
        np.testing.assert_allclose(found.boxes[image], np.clip(boxes, 0, [50, 30, 50, 30]), rtol=1e-5)
    assert candidates.best(logits, deltas, ANCHORS, (30, 50)).scores.shape == (3, 8)


def test_suppression_worked_out_by_hand():
    boxes = np.array(
        [[0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 4], [0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 50, 50]],
        float,
    )
    # The second overlaps the first by 0.5, which is not more; the fourth has another class; the fifth goes.
    scores, labels = np.array([0.9, 0.8, 0.7, 0.6, 0.5, 0.4]), np.array([0, 0, 0, 1, 0, 0])
    assert suppression.suppress(scores, labels, boxes).tolist() == [0, 1, 3, 5]
    # The third is now covered by the second alone.
    assert suppression.suppress(scores[::-1], labels, boxes).tolist() == [5, 4, 3, 2]
    # Equal scores: the first; 0.05 is not enough.
    assert suppression.suppress(np.full(6, 0.3), np.zeros(6), boxes).tolist() == [0, 1, 5]
    assert suppression.suppress(np.full(6, 0.05), labels, boxes).tolist() == []
    many = np.arange(300)[:, None] * np.array([10.0, 0, 10, 0]) + [0, 0, 9, 9]
    kept = suppression.suppress(np.linspace(0.1, 1, 300), np.zeros(300), many)
    assert kept.tolist() == list(range(299, 199, -1))


def test_detections_are_in_pixels_of_the_file():
    found = candidates.Candidates(
        np.array([[0.9, 0.01], [0.5, 0.5]]),
        np.array([[1, 0], [0, 1]]),
        np.array([[[10, 10, 20, 40], [0, 0, 1, 1]], [[0, 0, 8, 8], [0, 0, 8, 8]]], np.float32),
    )
    first, second = suppression.detections(found, np.array([[2.0, 0.5], [1.0, 1.0]]))
    np.testing.assert_array_equal(first.boxes, [[20, 5, 20, 15]])
    assert first.labels.tolist() == [1] and first.scores.tolist() == [0.9]
    assert first.boxes.dtype == first.scores.dtype == float
    np.testing.assert_array_equal(second.boxes, [[0, 0, 8, 8]] * 2)


@pytest.mark.parametrize("image_size", [None, 128])
def test_a_network_that_says_what_it_has_to_finds_all(image_size):
    """Anchors, assignment, coding, candidates, suppression and average precision fit together."""
    dataset = detection_datasets.load("embedded", image_size)
    side = dataset.test_images.shape[1]
    config = retinanet.Config(18, 3, width=16, levels=3, anchor_scale=2.0)
    anchors = retinanet.anchors(config, (side, side))
    rows = slice(0, 12)
    boxes, valid, labels = (
        array[rows] for array in (dataset.test_images.boxes, dataset.test_images.valid, dataset.test_labels)
    )
    slots = np.stack([assignment.assign(anchors, *image) for image in zip(boxes, valid)])
    # Every box is looked for by some anchor.
    assert all(set(range(mask.sum())) <= set(image) for image, mask in zip(slots, valid))
    image, anchor = np.nonzero(slots >= 0)
    slot = slots[image, anchor]
    logits = np.full((*slots.shape, 3), -20, np.float32)
    # A box has one anchor that is surest, else anchors of two boxes could hide each other.
    logits[image, anchor, labels[image, slot]] = 10
    deltas = np.zeros((*slots.shape, 4), np.float32)
    deltas[image, anchor] = box_coding.encode(anchors[anchor], boxes[image, slot])
    truths, scale = (part[rows] for part in dataset.annotations)
    found = suppression.detections(candidates.best(logits, deltas, anchors, (side, side), 1000), scale)
    evaluation = average_precision.evaluate(truths, found, 3)
    assert evaluation.numbers["AP"] > 0.98
