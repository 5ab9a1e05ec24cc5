"""Ops on images with boxes: boxes move with the paint, pixels are Pillow's, padding changes nothing."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pillow_reference
import pytest

from dada import augment, ops
from dada.ops import color

SIZES = [(40, 56), (48, 48)]
COUNT, SLOTS = 64, 4  # images and boxes of one call
GREY = 128
ONLY = [name for name in ops.BOX_OPS if name.endswith("_Only_BBoxes")]
# The largest value of every op that moves an image.
LARGEST = {
    **{"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.4, "TranslateY": 0.4, "Rotate": 30.0},
    **{"TranslateXAbs": 15.0, "TranslateYAbs": 15.0, "FlipLR": 0.0, "FlipUD": 0.0, "Rotate90": 0.0},
    **{"RandFlip": 0.0, "RandCrop": 0.0, "RandResizeCrop": 0.0},
}
LARGEST |= {f"{name}_BBox": LARGEST[name] for name in ops.OPS if f"{name}_BBox" in ops.BOX_OPS}


@jax.jit
def _jitted(images, boxes, valid, draws):
    return augment.apply_draws(augment.ImagesWithBoxes(images, boxes, valid), draws)


def _apply(images, boxes, valid, op, value, center, garbage=(2, 3, 30, 25)):
    """One op for each image, in calls of one shape; boxes [n, 1 .. SLOTS, 4] are filled up with garbage."""
    count, spare = len(images), -len(images) % COUNT
    junk = np.tile(np.float32(garbage), (count, SLOTS, 1))
    boxes = np.concatenate([np.where(valid[..., None], boxes, junk[:, : boxes.shape[1]]), junk], 1)
    valid = np.concatenate([valid, np.zeros((count, SLOTS), bool)], 1)
    op = np.broadcast_to(op, (count,))
    draws = ops.Draws(np.int32(op)[:, None], np.float32(value)[:, None], np.float32(center)[:, None])
    arrays = (images, np.float32(boxes)[:, :SLOTS], valid[:, :SLOTS], draws)
    filled = jax.tree.map(lambda leaf: np.concatenate([leaf, np.repeat(leaf[:1], spare, 0)]), arrays)
    parts = [
        _jitted(*jax.tree.map(lambda leaf: leaf[start : start + COUNT], filled))  # noqa: B023
        for start in range(0, count + spare, COUNT)
    ]
    return [np.concatenate(leaves)[:count] for leaves in zip(*parts)]


def _noise(rng, count, size):
    """Images in which no level is grey."""
    levels = rng.integers(0, 255, (count, *size, 3)).astype(np.uint8)
    return levels + (levels >= GREY)


def _op(name):
    return ops.ALL_OPS.index(name)


def _moved_point(name, value, center, x, y, size):
    """Where a point goes by the arithmetic of Pillow, in double precision."""
    height, width = size
    name = name.removesuffix("_BBox")
    if name in ("TranslateX", "TranslateY"):
        name, value = name + "Abs", np.float32(value) * np.float32(width if name[-1] == "X" else height)
    angle, middle_x, middle_y = math.radians(value), x - width / 2, y - height / 2
    rows, columns = divmod(round(float(value)), width)
    return {
        "ShearX": lambda: (x - value * y, y),
        "ShearY": lambda: (x, y - value * x),
        "TranslateXAbs": lambda: (x - math.floor(value + 0.5), y),
        "TranslateYAbs": lambda: (x, y - math.floor(value + 0.5)),
        "Rotate": lambda: (
            width / 2 + math.cos(angle) * middle_x + math.sin(angle) * middle_y,
            height / 2 - math.sin(angle) * middle_x + math.cos(angle) * middle_y,
        ),
        "FlipLR": lambda: (width - x, y),
        "RandFlip": lambda: (width - x, y),
        "FlipUD": lambda: (x, height - y),
        "Rotate90": lambda: (y, width - x),
        "RandCrop": lambda: (x - center[1], y - center[0]),
        "RandResizeCrop": lambda: (
            (x - center[1]) * width / (columns + 1),
            (y - center[0]) * height / (rows + 1),
        ),
    }[name]()


@pytest.mark.parametrize("size", SIZES)
def test_boxes_move_with_the_paint(size):
    rng, (height, width) = np.random.default_rng(1), size
    names = [name for name in LARGEST if height == width or name != "Rotate90"]
    op = np.repeat([_op(name) for name in names], 32)
    count = len(op)
    largest = np.array([LARGEST[ops.ALL_OPS[one]] for one in op])
    value = np.float32(largest * rng.uniform(0.1, 1, count) * np.tile([1, -1], count // 2))
    center = np.zeros((count, 2))
    is_crop, is_window = op == _op("RandCrop"), op == _op("RandResizeCrop")
    center[is_crop] = rng.integers(-4, 5, (32, 2))
    window = rng.integers([height // 2, width // 2], [height + 1, width + 1], (32, 2))
    center[is_window] = np.floor(rng.random((32, 2)) * (np.array(size) - window + 1))
    value[is_window] = (window[:, 0] - 1) * width + window[:, 1] - 1

    ends = np.sort(np.stack([rng.integers(0, [width, height], (count, 2)) for _ in range(2)], 1), axis=1)
    ends[:, 1] += 3
    boxes = np.clip(ends, 0, [width, height]).reshape(count, 4)
    images = np.zeros((count, *size, 3), np.uint8)
    for image, (x0, y0, x1, y1) in zip(images, boxes):
        image[y0:y1, x0:x1] = 255
    moved, found, valid = _apply(images, boxes[:, None], np.ones((count, 1), bool), op, value, center)

    extent, whole = np.array([width, height, width, height]), 0
    for i, name in enumerate(ops.ALL_OPS[one] for one in op):
        x0, y0, x1, y1 = boxes[i]
        corners = [
            _moved_point(name, float(value[i]), center[i], x, y, size) for x in (x0, x1) for y in (y0, y1)
        ]
        expected = np.clip([*np.min(corners, 0), *np.max(corners, 0)], 0, extent)
        about = (name, value[i], boxes[i])
        assert valid[i, 0] == (expected[2:] > expected[:2]).all(), about
        np.testing.assert_allclose(found[i, 0], expected if valid[i, 0] else 0, atol=1e-3, err_msg=about)
        paint = (moved[i] > 150).all(-1)
        if not valid[i, 0]:
            assert not paint.any(), about
            continue
        if not paint.any():
            continue
        rows, columns = np.flatnonzero(paint.any(1)), np.flatnonzero(paint.any(0))
        painted = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        tolerance = 2 if name.startswith("Rotate") else 1
        is_turned = name.removesuffix("_BBox") in ("Rotate", "ShearX", "ShearY")
        if is_turned and (np.min(corners, 0) < 0).any() | (np.max(corners, 0) > extent[:2]).any():
            # Of a figure that was cut off the box encloses what its corners say.
            assert (painted[:2] >= found[i, 0, :2] - tolerance).all(), about
            assert (painted[2:] <= found[i, 0, 2:] + tolerance).all(), about
            continue
        whole += 1
        np.testing.assert_allclose(painted, found[i, 0], atol=tolerance, err_msg=about)
    assert whole > 0.6 * count and valid[:, 0].mean() > 0.9


def test_other_ops_leave_the_boxes():
    size = SIZES[0]
    rng, names = np.random.default_rng(2), [name for name in ops.ALL_OPS if name not in LARGEST]
    boxes = np.tile(np.float32([[0, 0, 56, 40], [3.25, 4.5, 20, 11]]), (len(names), 1, 1))
    valid = np.ones((len(names), 2), bool)
    op = [_op(name) for name in names]
    images, center = _noise(rng, len(op), size), rng.random((len(op), 2)) * 40
    _, found, still = _apply(images, boxes, valid, op, np.full(len(op), 0.5), center)
    np.testing.assert_array_equal(found[:, :2], boxes)
    np.testing.assert_array_equal(still[:, :2], valid)
    assert not found[:, 2:].any() and not still[:, 2:].any()


# ---- inside boxes --------------------------------------------------------------------------------


def _region(box):
    """The pixels whose centres lie in a box."""
    x0, y0, x1, y1 = (math.ceil(edge - 0.5) for edge in box)
    return slice(y0, y1), slice(x0, x1)


def _inside(name, part, value, size):
    """What an op inside boxes makes of one of them, cut out; for Cutout every possible result."""
    name = name.removesuffix("_Only_BBoxes")
    if name == "Flip":
        return [part[:, ::-1]]
    if name == "Cutout":
        half = math.floor(np.float32(value) * np.float32(size[1]) + 0.5)
        results = np.tile(part, (part.shape[0] * part.shape[1], 1, 1, 1))
        for result, (row, column) in zip(results, np.ndindex(part.shape[:2])):
            result[max(0, row - half) : row + half, max(0, column - half) : column + half] = GREY
        return results
    if name in ("TranslateX", "TranslateY"):
        name, value = name + "Abs", np.float32(value) * np.float32(size[name[-1] == "X"])
    if name in ("Solarize", "Equalize"):
        return [pillow_reference.apply(name, part, value)]
    return [pillow_reference.apply(name, part ^ GREY, value) ^ GREY]


@pytest.mark.parametrize("size", SIZES)
def test_ops_inside_boxes_are_pillows_on_the_part(size):
    rng, (height, width) = np.random.default_rng(3), size
    names = np.repeat(ONLY, 48)
    count = len(names)
    largest = {"Rotate": 30, "Solarize": 256, "TranslateX": 0.19, "TranslateY": 0.19, "Cutout": 0.12}
    value = np.array([largest.get(name.split("_")[0], 0.3) for name in names]) * rng.uniform(0.05, 1, count)
    value *= [rng.choice([-1, 1]) if ops.ALL_OPS.index(name) and "utout" not in name else 1 for name in names]
    value = np.where(["Solarize" in name for name in names], np.abs(value), value).astype(np.float32)
    # Three boxes side by side, the first at the left and upper border, the last at the right and lower one.
    x = np.stack([rng.uniform(width * k / 6, width * (k + 1) / 6, count) for k in range(6)], 1)
    x[:, 0], x[:, -1] = 0, width
    y = np.sort(rng.uniform(0, height, (count, 3, 2)), axis=-1)
    y[:, 0, 0], y[:, 2, 1] = 0, height
    boxes = np.float32(np.stack([x[:, ::2], y[..., 0], x[:, 1::2], y[..., 1]], -1))
    valid = rng.random((count, 3)) < 0.8
    images = _noise(rng, count, size)
    images[::3] //= 4  # for Equalize
    center = rng.random((count, 2)) * size
    changed, found, still = _apply(images, boxes, valid, [_op(name) for name in names], value, center)
    np.testing.assert_array_equal(still[:, :3], valid)
    np.testing.assert_array_equal(found[:, :3], np.where(valid[..., None], boxes, 0))

    num_hit = num_valid = 0
    for i, name in enumerate(names):
        outside = np.ones(size, bool)
        for box in boxes[i][valid[i]]:
            region = _region(box)
            outside[region] = False
            part, result = images[i][region], changed[i][region]
            if not part.size:
                continue
            expected = _inside(name, part, value[i], size)
            same = [np.array_equal(result, one) for one in expected]
            about = (name, value[i], box)
            assert any(same) or np.array_equal(result, part), about
            if not np.array_equal(expected[0], part):
                num_hit += any(same)
                num_valid += 1
        np.testing.assert_array_equal(changed[i][outside], images[i][outside], err_msg=name)
    assert abs(num_hit / num_valid - 1 / 3) < 4 * math.sqrt(2 / 9 / num_valid)


def test_where_boxes_overlap_either_is_the_last():
    rng, count = np.random.default_rng(4), 384
    outer, inner = (slice(5, 35), slice(4, 50)), (slice(10, 30), slice(8, 30))
    boxes = np.float32([[4, 5, 50, 35], [8, 10, 30, 30]])
    images = np.repeat(_noise(rng, 1, SIZES[0]), count, 0)
    center = rng.random((count, 2)) * 40
    arguments = np.tile(boxes, (count, 1, 1)), np.ones((count, 2), bool)
    changed, *_ = _apply(images, *arguments, _op("Flip_Only_BBoxes"), np.zeros(count), center)
    base = images[0]
    all_of_outer, only_inner, outer_below = base.copy(), base.copy(), base.copy()
    all_of_outer[outer] = outer_below[outer] = base[outer][:, ::-1]
    only_inner[inner] = outer_below[inner] = base[inner][:, ::-1]
    # Outer alone or above the inner one, inner alone, inner above, none.
    kinds = [all_of_outer, only_inner, outer_below, base]
    seen = np.array([[np.array_equal(one, kind) for kind in kinds] for one in changed])
    assert (seen.sum(1) == 1).all()
    expected = np.array([2 / 9 + 1 / 18, 2 / 9, 1 / 18, 4 / 9])
    assert (np.abs(seen.mean(0) - expected) < 4 * np.sqrt(expected * (1 - expected) / count)).all()


def test_a_draw_applied_again_hits_the_same_boxes_with_any_padding():
    rng, names = np.random.default_rng(5), np.repeat(ops.BOX_OPS, 8)
    count = len(names)
    images, center = _noise(rng, count, SIZES[0]), rng.random((count, 2)) * 40
    x, y = (np.sort(rng.uniform(0, high, (count, 3, 2)), -1) for high in (56, 40))
    boxes, valid = np.stack([x, y], -1).reshape(count, 3, 4), rng.random((count, 3)) < 0.7
    run = functools.partial(
        _apply, images, boxes, valid, [_op(name) for name in names], np.full(count, 0.3), center
    )
    first, *others = (
        run(garbage) for garbage in ([0] * 4, [np.nan] * 4, [5, np.inf, -1e30, 7], [2, 3, 30, 25])
    )
    for other in others:
        for one, same in zip(first, other):
            np.testing.assert_array_equal(one, same)


def test_without_valid_boxes_nothing_happens_inside_boxes():
    names = np.repeat([*ONLY, "BBox_Cutout"], 8)
    images = _noise(np.random.default_rng(6), len(names), SIZES[0])
    boxes, valid = np.zeros((len(names), 1, 4)), np.zeros((len(names), 1), bool)
    center = np.random.default_rng(7).random((len(names), 2)) * 40
    op = [_op(name) for name in names]
    changed, found, still = _apply(images, boxes, valid, op, np.full(len(names), 0.5), center)
    np.testing.assert_array_equal(changed, images)
    assert not found.any() and not still.any()


# ---- the other new ops ---------------------------------------------------------------------------


def test_the_cutout_of_one_box():
    rng, count, size = np.random.default_rng(8), 256, SIZES[0]
    boxes = np.float32([[0, 0, 12.3, 10], [20, 12.7, 41, 31], [50, 35, 56, 40], [5, 20, 15, 40]])
    boxes, valid = np.tile(boxes, (count, 1, 1)), np.tile([True, True, False, True], (count, 1))
    images, center = _noise(rng, count, size), rng.random((count, 2)) * 40
    fraction = np.float32(rng.choice([0.2, 0.5, 0.75], count))
    changed, *_ = _apply(images, boxes, valid, _op("BBox_Cutout"), fraction, center)
    chosen = np.zeros(4)
    for before, after, share in zip(images, changed, fraction):
        painted = (after != before).any(-1)
        assert (after[painted] == GREY).all()
        matches = np.zeros(4)
        for index in (0, 1, 3):
            rows, columns = _region(boxes[0, index])
            half = [math.floor(share * (side.stop - side.start) / 2 + 0.5) for side in (rows, columns)]
            for row in range(rows.start, rows.stop):
                for column in range(columns.start, columns.stop):
                    mask = np.zeros(size, bool)
                    mask[
                        max(0, row - half[0]) : row + half[0], max(0, column - half[1]) : column + half[1]
                    ] = 1
                    matches[index] += np.array_equal(mask, painted)
        assert matches.any()
        chosen += matches > 0
    assert chosen.sum() < 1.2 * count and (chosen[[0, 1, 3]] > 0.25 * count).all()


def test_the_grey_cutout():
    rng, count, size = np.random.default_rng(9), 64, SIZES[0]
    images, center = _noise(rng, count, size), rng.random((count, 2)) * size
    fraction = np.float32(rng.choice([0.0, 0.05, 0.1, 100 / 640], count))
    no_boxes = np.zeros((count, 1, 4)), np.zeros((count, 1), bool)
    changed, *_ = _apply(images, *no_boxes, _op("CutoutGrey"), fraction, center)
    for before, after, share, (row, column) in zip(images, changed, fraction, center.astype(int)):
        half = math.floor(share * size[1] + 0.5)
        before[max(0, row - half) : row + half, max(0, column - half) : column + half] = GREY
        np.testing.assert_array_equal(after, before)


def test_solarize_add():
    levels = np.arange(256).repeat(3).reshape(16, 16, 3)
    additions = np.float32([0, 0.5, 22, 65.9999, 66, 110])
    got = jax.jit(jax.vmap(color.solarize_add, (None, 0)))(np.float32(levels) / np.float32(255), additions)
    for one, addition in zip(np.asarray(got), (0, 1, 22, 66, 66, 110)):
        expected = np.where(levels < 128, levels + addition, levels)
        np.testing.assert_array_equal(one, pillow_reference.unit(expected))
    slope = jax.grad(lambda addition: jnp.sum(color.solarize_add(jnp.float32(levels) / 255, addition)))(3.0)
    assert slope == pytest.approx(3 * 128 / 255, rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_whole_image_is_filled_with_grey(size):
    rng = np.random.default_rng(10)
    names = np.repeat([name for name in LARGEST if name.endswith("_BBox")], 12)
    value = np.float32([LARGEST[name] * rng.uniform(-1, 1) for name in names])
    images, op = _noise(rng, len(names), size), [_op(name) for name in names]
    no_boxes = np.zeros((len(names), 1, 4)), np.zeros((len(names), 1), bool)
    changed, *_ = _apply(images, *no_boxes, op, value, np.zeros((len(names), 2)))
    for name, before, after, v in zip(names, images, changed, value):
        expected = pillow_reference.apply(name.removesuffix("_BBox"), before ^ GREY, v) ^ GREY
        np.testing.assert_array_equal(after, expected, err_msg=f"{name} {v}")
