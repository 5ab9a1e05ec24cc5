"""Assignment and losses of a detector against cases worked out by hand, padded slots, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dada.detection import assignment, losses

ANCHORS = np.array(
    [[0, 0, 10, 10], [0, 0, 10, 4.5], [0, 0, 10, 3], [40, 40, 50, 50], [80, 80, 90, 90]], np.float32
)
# The first box is the first anchor, and 0.45 and 0.3 of it are the next two; the second box overlaps 0.22.
BOXES = np.array([[0, 0, 10, 10], [44, 44, 54, 54]], np.float32)
LN2 = np.log(2)


def _two_images(boxes=BOXES, garbage=0.0):
    """Outputs and annotations: one image with these boxes and class 1, one without any."""
    shape = (2, len(boxes) + 1)
    padded = np.full((*shape, 4), garbage, np.float32)
    labels, valid = np.full(shape, 77, np.int32), np.zeros(shape, bool)
    padded[0, : len(boxes)], labels[0, : len(boxes)], valid[0, : len(boxes)] = boxes, 1, True
    logits = np.zeros((2, len(ANCHORS), 2), np.float32)
    deltas = np.full((2, len(ANCHORS), 4), 7, np.float32)
    return logits, deltas, ANCHORS, padded, labels, valid


def test_assignment_worked_out_by_hand():
    slots = assignment.assign(ANCHORS, BOXES, np.array([True, True]))
    assert slots.tolist() == [0, assignment.IGNORED, assignment.BACKGROUND, 1, assignment.BACKGROUND]
    assert slots.dtype == np.int32
    overlaps = np.asarray(assignment.overlaps(ANCHORS, BOXES))
    np.testing.assert_allclose(overlaps[:, 0], [1, 0.45, 0.3, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(overlaps[:, 1], [0, 0, 0, 36 / 164, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        # No anchor touches it: nobody has to find it.
        ([[60, 60, 70, 70]], [-1, -1, -1, -1, -1]),
        # Both boxes overlap most with the same anchor, the later one less: it is the last one all the same.
        ([[0, 0, 10, 10], [0, 0, 10, 11]], [1, -2, -1, -1, -1]),
        ([[0, 0, 10, 11], [0, 0, 10, 10]], [1, -2, -1, -1, -1]),
        # Two anchors overlap most, and equally: both take it.
        ([[45, 45, 85, 85]], [-1, -1, -1, 0, 0]),
        # Twice the same box.
        ([[0, 0, 10, 10], [0, 0, 10, 10]], [1, -2, -1, -1, -1]),
        # 0.5 is enough, and from 0.4 on an anchor is ignored.
        ([[0, 0, 10, 6], [0, 0, 10, 6]], [0, 1, 0, -1, -1]),
        # A box without an area.
        ([[5, 5, 5, 9]], [-1, -1, -1, -1, -1]),
    ],
)
def test_rules_of_the_assignment(boxes, expected):
    boxes = np.array(boxes, np.float32)
    assert assignment.assign(ANCHORS, boxes, np.ones(len(boxes), bool)).tolist() == expected
    # Behind slots that are not valid, whatever is in them.
    padded = np.concatenate([np.full((1, 4), np.nan, np.float32), ANCHORS[:1], boxes])
    valid = np.arange(len(padded)) >= 2
    shifted = [slot + 2 if slot >= 0 else slot for slot in expected]
    assert jax.jit(assignment.assign)(ANCHORS, padded, valid).tolist() == shifted


def test_losses_worked_out_by_hand():
    logits, deltas, *rest = _two_images()
    deltas[0, 0], deltas[0, 3] = [0.1, 0, 0, 0], [0, 0, 0.2, 0]  # the targets are 0 and [.4, .4, 0, 0]
    values, parts = losses.per_image(logits, deltas, *rest)
    # At probability 1/2 a target gives 1/4 * 1/4 * ln 2, what is none 3/4 * 1/4 * ln 2.
    of_positives, of_background = 2 * (1 + 3) / 16 * LN2, 2 * (3 + 3) / 16 * LN2
    class_loss = [(of_positives + of_background) / 2, 5 / 2 * of_background]
    np.testing.assert_allclose(parts["class_loss"], class_loss, rtol=1e-6)
    np.testing.assert_allclose(parts["box_loss"], [(0.1 + 0.4 + 0.4 + 0.2) / 2, 0], rtol=1e-6)
    np.testing.assert_array_equal(parts["positives"], [2, 0])
    np.testing.assert_allclose(values, parts["class_loss"] + parts["box_loss"], rtol=1e-6)
    # Probability 3/4: of a class that is not there 3/4 * 9/16 * ln 4, of one that is 1/4 * 1/16 * ln 4/3.
    logits[0, 4, 0] = logits[0, 0, 1] = np.log(3)
    _, parts = losses.per_image(logits, deltas, *rest)
    change = 27 / 64 * np.log(4) - 3 / 16 * LN2 + 1 / 64 * np.log(4 / 3) - 1 / 16 * LN2
    np.testing.assert_allclose(parts["class_loss"][0], class_loss[0] + change / 2, rtol=1e-6)
    # The ignored anchor may say anything.
    logits[0, 1] = 50
    np.testing.assert_array_equal(
        losses.per_image(logits, deltas, *rest)[1]["class_loss"], parts["class_loss"]
    )


def test_slots_that_are_not_valid_change_nothing():
    @jax.jit
    def loss_and_gradients(*arguments):
        def loss(logits, deltas, boxes):
            return jnp.sum(losses.per_image(logits, deltas, ANCHORS, boxes, *arguments[4:])[0])

        logits, deltas, _, boxes = arguments[:4]
        return losses.per_image(*arguments), jax.grad(loss, argnums=(0, 1, 2))(logits, deltas, boxes)

    expected = loss_and_gradients(*_two_images())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    for garbage in (np.nan, np.inf, -5.0, 85.0):
        actual = loss_and_gradients(*_two_images(garbage=garbage))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_an_image_does_not_enter_the_loss_of_another():
    logits, deltas, anchors, boxes, labels, valid = _two_images()
    expected, _ = losses.per_image(logits, deltas, anchors, boxes, labels, valid)
    labels[1], valid[1, :2], boxes[1, :2] = 0, True, BOXES + 1
    changed, _ = losses.per_image(logits, deltas, anchors, boxes, labels, valid)
    assert changed[0] == expected[0] and changed[1] != expected[1]


def test_gradients_to_outputs_and_boxes_are_exact():
    with jax.enable_x64(True):
        logits, deltas, anchors, boxes, labels, valid = _two_images(
            BOXES + np.array([0.5, -0.25, 0.75, 0.25])
        )
        random = np.random.RandomState(0)
        logits, deltas = random.standard_normal(logits.shape), random.standard_normal(deltas.shape)

        def loss(logits, deltas, boxes):
            return losses.per_image(logits, deltas, anchors, boxes, labels, valid)[0]

        check_grads(jax.jit(loss), (logits, deltas, boxes.astype(float)), order=1, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("logit", [-1e4, -90.0, 0.0, 90.0, 1e4])
def test_focal_loss_is_finite_for_logits_of_any_size(logit):
    for target in (True, False):
        derivatives = [losses.focal, jax.grad(losses.focal), jax.grad(jax.grad(losses.focal))]
        values = [function(jnp.float32(logit), target) for function in derivatives]
        assert np.isfinite(values).all()
        wrong = -logit if target else logit
        if wrong > 50:
            np.testing.assert_allclose(values[0], (0.25 if target else 0.75) * wrong, rtol=1e-6)


def test_copies_of_a_batch_are_a_vmap():
    logits, deltas, anchors, boxes, labels, valid = _two_images()
    copies = np.stack([boxes, boxes + 2, boxes[:, ::-1]])
    valids = np.stack([valid, valid, valid[:, ::-1]])
    labels = np.zeros_like(labels)

    def loss(boxes, valid):
        return losses.per_image(logits, deltas, anchors, boxes, labels, valid)[0]

    actual = jax.jit(jax.vmap(loss))(copies, valids)
    np.testing.assert_allclose(actual, [loss(*copy) for copy in zip(copies, valids)], rtol=1e-6)


def test_bad_arguments_are_named():
    logits, deltas, anchors, boxes, labels, valid = _two_images()
    for label in (-1, 2):
        values, _ = losses.per_image(logits, deltas, anchors, boxes, np.full_like(labels, label), valid)
        assert np.isnan(values[0]) and np.isfinite(values[1])
    with pytest.raises(
        TypeError, match="expected integer labels and valid of dtype bool, got float32 and bool"
    ):
        losses.per_image(logits, deltas, anchors, boxes, labels.astype(np.float32), valid)
    with pytest.raises(TypeError, match="got int32 and int32"):
        losses.per_image(logits, deltas, anchors, boxes, labels, valid.astype(np.int32))
    with pytest.raises(ValueError, match=r"expected anchors \[5, 4\], got \[4, 4\]"):
        losses.per_image(logits, deltas, anchors[:4], boxes, labels, valid)
    with pytest.raises(ValueError, match=r"expected boxes \[2, 1, 4\], got \[2, 0, 4\]"):
        losses.per_image(logits, deltas, anchors, boxes[:, :0], labels[:, :0], valid[:, :0])
