"""Verify, the part about ops: it passes as the library stands, and fails where an op is broken."""

import jax

from dada import ops
from experiments.data import datasets, pillow_ops
from experiments.measure import verify_ops


def test_every_op_has_a_pillow_call_and_a_range():
    names = set(ops.OPS)
    assert set(pillow_ops.PILLOW) == names == {row.name for row in verify_ops.SPACE.rows}
    rows = {row.name: row for row in verify_ops.SPACE.rows}
    assert verify_ops._value_range(rows["TranslateXAbs"]) == (-10, 10)
    assert verify_ops._value_range(rows["Posterize2"]) == (0, 4)


def test_ops_pass_and_broken_ones_fail(monkeypatch):
    true_op = ops.apply_op

    def broken(name, image, value, center):
        if name == "Brightness":  # the right pixels, but descent does not know where to go
            return true_op(name, image, jax.lax.stop_gradient(value), center)
        result = true_op(name, image, value, center)
        return result.at[0, 0, 2].add(1 / 255) if name == "Invert" else result

    monkeypatch.setattr(ops, "apply_op", broken)
    images = datasets.load("embedded").train_images
    names = ("Rotate90", "Solarize", "Cutout", "Invert", "Brightness")
    lines = {line.op: line for line in verify_ops.op_lines(0, images, names)}
    assert [line.passed for line in lines.values()] == [True, True, True, False, False], lines
    assert lines["Rotate90"].pixels == 506 * 32 * 32 and lines["Rotate90"].found == "-"
    assert lines["Cutout"].pixels == 14 * 257 * 32 * 32
    assert lines["Invert"].differ == 506  # one pixel per image
    assert lines["Brightness"].differ == 0
