"""Average precision against pycocotools, a case worked out by hand, and a frozen one."""

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from dada.detection import average_precision

NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large"]
NAMES += ["AR_1", "AR_10", "AR_100", "AR_small", "AR_medium", "AR_large"]
# A case, and what pycocotools 2.0.11 says of it.
FROZEN_SEED = 5
FROZEN = [0.1302332416, 0.1632267072, 0.1294409649, 0.6227015559, 0.1420184554, 0.1824410627]
FROZEN += [0.0711111111, 0.4266666667, 0.825, 0.975, 0.7425, 0.9688888889]


def _truth(boxes, labels, is_crowd=None, areas=None):
    boxes = np.array(boxes, float).reshape(-1, 4)
    areas = boxes[:, 2] * boxes[:, 3] if areas is None else areas
    is_crowd = np.zeros(len(boxes), bool) if is_crowd is None else np.array(is_crowd, bool)
    return average_precision.Truth(boxes, np.array(labels, int), areas, is_crowd)


def _found(boxes, labels, scores):
    boxes = np.array(boxes, float).reshape(-1, 4)
    return average_precision.Detections(boxes, np.array(labels, int), np.array(scores, float))


def _random_case(seed):
    """A few images with crowds, boxes that count nowhere, ties, and detections near boxes and elsewhere."""
    random = np.random.RandomState(seed)
    num_classes, side = random.randint(1, 5), random.choice([60, 200, 400])
    truths, detections = [], []

    def boxes(count):
        drawn = random.uniform(0, side, (count, 2)), random.uniform(1, side / 2, (count, 2))
        drawn = np.concatenate(drawn, axis=1)
        return np.round(drawn) if random.rand() < 0.5 else drawn

    for _ in range(random.randint(1, 7)):
        count = random.choice([0, random.randint(1, 9), random.randint(1, 30)])
        # The last class often has no box.
        labels = random.randint(0, max(1, num_classes - 1), count)
        truth = _truth(boxes(count), labels, random.rand(count) < 0.2)
        truth.areas[:] *= random.uniform(0.5, 1, count)
        truth.areas[random.rand(count) < 0.2] = random.choice([32.0**2, 96.0**2])
        truths.append(truth)

        number = random.choice([0, 5, random.randint(1, 60), 150])
        found, labels = boxes(number), random.randint(0, num_classes, number)
        for index in np.flatnonzero(random.rand(number) < (0.7 if count else 0)):
            near = random.randint(count)
            found[index] = truth.boxes[near] + random.choice([0, 1, 3, 10]) * random.standard_normal(4)
            found[index, 2:] = np.maximum(found[index, 2:], 0.1)
            if random.rand() < 0.8:
                labels[index] = truth.labels[near]
        detections.append(_found(found, labels, np.round(random.rand(number), random.choice([1, 2, 6]))))
    return truths, detections, num_classes


def _by_pycocotools(truths, detections, num_classes):
    annotations = [
        {
            "image_id": image,
            "category_id": int(label) + 3,
            "bbox": box.tolist(),
            "area": area,
            "iscrowd": crowd,
        }
        for image, truth in enumerate(truths)
        for box, label, area, crowd in zip(truth.boxes, truth.labels, truth.areas, truth.is_crowd.tolist())
    ]
    for number, annotation in enumerate(annotations, start=1):  # 0 would stand for no match
        annotation["id"] = number
    results = [
        {"image_id": image, "category_id": int(label) + 3, "bbox": box.tolist(), "score": score}
        for image, found in enumerate(detections)
        for box, label, score in zip(found.boxes, found.labels, found.scores.tolist())
    ]
    expected = COCO()
    expected.dataset = {
        "info": {},
        "images": [{"id": image} for image in range(len(truths))],
        "annotations": annotations,
        "categories": [{"id": label + 3} for label in range(num_classes)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        expected.createIndex()
        evaluation = COCOeval(expected, expected.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


def test_numbers_are_those_of_pycocotools():
    compared, most, seen = 0, 0, np.zeros(12, bool)
    for seed in range(240):
        case = _random_case(seed)
        if not sum(len(found.scores) for found in case[1]):
            continue  # pycocotools takes no empty list
        numbers = average_precision.evaluate(*case).numbers
        assert list(numbers) == NAMES
        expected = _by_pycocotools(*case)
        np.testing.assert_array_equal(list(numbers.values()), expected, err_msg=str(seed))
        compared, most = compared + 1, max(most, *(len(found.scores) for found in case[1]))
        seen |= (expected > 0) & (expected < 0.99)
    assert compared >= 200 and most > 100 and seen.all()


def test_frozen_case():
    evaluation = average_precision.evaluate(*_random_case(FROZEN_SEED))
    np.testing.assert_allclose(list(evaluation.numbers.values()), FROZEN, atol=1e-10)


def test_case_worked_out_by_hand():
    # Class 0: two boxes; the best detection is right up to an overlap of 0.8, the next wrong, the last right.
    truths = [_truth([[0, 0, 10, 10], [20, 20, 40, 40]], [0, 0]), _truth([[0, 0, 100, 100]], [1])]
    detections = [
        _found([[0, 0, 10, 8], [70, 70, 9, 9], [20, 20, 40, 40]], [0, 0, 0], [0.9, 0.8, 0.7]),
        _found([], [], []),
    ]
    evaluation = average_precision.evaluate(truths, detections, 3)
    # Precision 1 up to a recall of 1/2, then 2/3; from an overlap of 0.85 on 1/3 up to 1/2, then 0.
    loose, tight = (51 * 1 + 50 * 2 / 3) / 101, 51 / 3 / 101
    np.testing.assert_allclose(evaluation.class_ap, [0.7 * loose + 0.3 * tight, 0, -1])
    np.testing.assert_allclose(evaluation.class_ap50, [loose, 0, -1])
    numbers = evaluation.numbers
    np.testing.assert_allclose(numbers["AP50"], loose / 2)
    np.testing.assert_allclose(numbers["AR_1"], 0.7 / 2 / 2)
    np.testing.assert_allclose(numbers["AR_100"], (0.7 + 0.3 / 2) / 2)
    # By area the first box is small, the second medium, the third, of class 1, large.
    np.testing.assert_allclose([numbers["AR_small"], numbers["AR_medium"], numbers["AR_large"]], [0.7, 1, 0])


def test_no_images_without_anything_count():
    evaluation = average_precision.evaluate([_truth([], [])], [_found([], [], [])], 2)
    assert set(evaluation.numbers.values()) == {-1.0}
    with pytest.raises(ValueError, match="expected one image each, got 1 and 0"):
        average_precision.evaluate([_truth([], [])], [], 2)
