"""Images with boxes: draws on every path, the search space and its policies, and the base augmentation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import augment, ops, policies
from dada.augment import sampling
from dada.searches.ddas import config as ddas_config

SIZE = (24, 24)
SPACE = ops.search_space("autoaugment_detection")
OP_IDS = tuple(ops.ALL_OPS.index(name) for name in ("Identity", "Rotate90", *(row.op for row in SPACE.rows)))
COUNT = 8 * len(OP_IDS)  # images
# Op, values at levels 0 and 1 for images of 640 pixels, whether its sign is drawn: tensorflow/tpu, 139e1f4.
CODE = """
AutoContrast - - -
Equalize - - -
Posterize 0 4 -
Solarize 0 256 -
SolarizeAdd 0 110 -
Color 0.1 1.9 -
Contrast 0.1 1.9 -
Brightness 0.1 1.9 -
Sharpness 0.1 1.9 -
CutoutGrey 0 100 -
BBox_Cutout 0 0.75 -
Rotate_BBox 0 30 +-
TranslateX_BBox 0 250 +-
TranslateY_BBox 0 250 +-
ShearX_BBox 0 0.3 +-
ShearY_BBox 0 0.3 +-
Rotate_Only_BBoxes 0 30 +-
TranslateX_Only_BBoxes 0 120 +-
TranslateY_Only_BBoxes 0 120 +-
ShearX_Only_BBoxes 0 0.3 +-
ShearY_Only_BBoxes 0 0.3 +-
Flip_Only_BBoxes - - -
Solarize_Only_BBoxes 0 256 -
Equalize_Only_BBoxes - - -
Cutout_Only_BBoxes 0 50 -
"""


def _batch(seed, count, slots=3, size=SIZE):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *size, 3)).astype(np.uint8)
    x, y = (np.sort(rng.uniform(0, side, (count, slots, 2)), -1) for side in size[::-1])
    boxes = np.stack([x, y], -1).reshape(count, slots, 4).astype(np.float32)
    return images, boxes, rng.random((count, slots)) < 0.7


def _draws(seed, op, size=SIZE):
    rng = np.random.default_rng(seed)
    rows = {row.op: row for row in SPACE.rows} | {row.op: row for row in ops.search_space("strength").rows}
    none = ops.OpRow("", 0.0, 1.0, "", None, False)
    ends = [
        [(rows.get(ops.ALL_OPS[o], none).low, rows.get(ops.ALL_OPS[o], none).high) for o in k] for k in op
    ]
    low, high = np.moveaxis(np.float32(ends), -1, 0)
    value = low + rng.uniform(0.1, 0.9, op.shape) * (high - low)
    return ops.Draws(np.int32(op), np.float32(value), np.float32(rng.random((*op.shape, 2)) * size))


def _ids(*names):
    return tuple(ops.ALL_OPS.index(name) for name in names)


def _apply(images, boxes, valid, draws, op_ids=OP_IDS):
    return augment.apply_draws(augment.ImagesWithBoxes(images, boxes, valid), draws, op_ids=op_ids)


def _apply_differentiable(images, boxes, valid, draws, op_ids=OP_IDS):
    return augment.apply_draws_differentiable(augment.ImagesWithBoxes(images, boxes, valid), draws, op_ids)


_fast = jax.jit(_apply)


@functools.cache
def _everything():
    """A batch in which every op of the space is drawn alone and in pairs; by both paths."""
    op = np.repeat(OP_IDS, 8)[:, None].repeat(2, 1)
    op[::2, 0] = 0
    op[1::4, 1] = np.random.default_rng(1).choice(OP_IDS, COUNT // 4)
    batch, draws = _batch(2, COUNT), _draws(3, op)
    fast = _fast(*batch, draws)
    images, *boxes = batch

    def loss(value, weights):
        arguments = np.float32(images) / np.float32(255), *boxes, draws._replace(value=value), OP_IDS
        result = _apply_differentiable(*arguments)
        return jnp.sum(weights * result[0], axis=(1, 2, 3)).sum(), result

    weights = np.random.default_rng(4).normal(size=images.shape).astype(np.float32)
    gradient, smooth = jax.jit(jax.grad(loss, has_aux=True))(draws.value, weights)
    return op, (*batch, draws), fast, smooth, np.asarray(gradient)


def test_the_differentiable_path_does_the_same():
    op, _, fast, smooth, _ = _everything()
    levels = np.asarray(smooth[0]) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    wrong = (np.round(levels) != fast[0]).any((1, 2, 3))
    assert not wrong.any(), [[ops.ALL_OPS[o] for o in pair] for pair in op[wrong]]
    np.testing.assert_allclose(smooth[1], fast[1], atol=1e-4)
    np.testing.assert_array_equal(smooth[2], fast[2])


def test_levels_have_gradients():
    op, *_, gradient = _everything()
    assert np.isfinite(gradient).all()
    for row in SPACE.rows:
        slopes = gradient[op == ops.ALL_OPS.index(row.op)]
        assert (slopes != 0).any() == bool(row.unit), row.name


def test_the_gradient_is_that_of_the_ops():
    op_ids = _ids("Identity", "Rotate_BBox", "TranslateX_Only_BBoxes", "Cutout_Only_BBoxes")
    op = np.array([op_ids[1:3], op_ids[2:4], op_ids[3:1:-1]])
    (images, boxes, valid), draws = _batch(5, len(op)), _draws(6, op)
    draws = draws._replace(center=np.float32(draws.center))
    images, valid = np.float32(images) / np.float32(255), np.ones_like(valid)
    weights = np.random.default_rng(7).normal(size=images.shape).astype(np.float32)

    def batched(value):
        arguments = images, boxes, valid, draws._replace(value=value), op_ids
        return jnp.sum(weights * _apply_differentiable(*arguments)[0])

    def one_by_one(value):
        total = 0.0
        for i in range(len(op)):
            state = images[i], boxes[i], valid[i]
            for k in range(2):
                name = ops.ALL_OPS[op[i, k]]
                state = ops.apply_op_with_boxes(name, *state, value[i, k], draws.center[i, k])
            total += jnp.sum(weights[i] * state[0])
        return total

    got, expected = (jax.jit(jax.grad(loss))(draws.value) for loss in (batched, one_by_one))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)
    assert np.asarray(got).any(0).all()


def test_the_schedule_of_accelerators_on_several_devices(monkeypatch):
    _, arguments, fast, *_ = _everything()
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *arguments, cpu, default: default(*arguments))
    mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = functools.partial(jax.shard_map, mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch"))
    images, boxes, valid = jax.jit(divided(_apply))(*arguments)
    np.testing.assert_array_equal(images, fast[0])
    np.testing.assert_allclose(boxes, fast[1], atol=1e-4)
    np.testing.assert_array_equal(valid, fast[2])
    smooth = divided(_apply_differentiable)
    jax.eval_shape(smooth, np.float32(arguments[0]), *arguments[1:])


def test_more_axes_no_slots_and_unknown_ops():
    op_ids = _ids("Identity", "Rotate_BBox", "Flip_Only_BBoxes", "BBox_Cutout")
    op = np.random.default_rng(8).choice(op_ids, (12, 2))
    batch, draws = _batch(9, 12), _draws(10, op)
    apply = functools.partial(_apply, op_ids=op_ids)
    jitted = jax.jit(apply)
    flat = jitted(*batch, draws)
    folded = jax.tree.map(lambda leaf: leaf.reshape(3, 4, *leaf.shape[1:]), (*batch, draws))
    for got, expected in zip(jax.jit(jax.vmap(apply))(*folded), flat):
        np.testing.assert_allclose(got.reshape(expected.shape), expected, atol=1e-5)
    images, boxes, valid = jitted(batch[0], batch[1][:, :0], batch[2][:, :0], draws)
    assert boxes.shape == (12, 0, 4) and valid.shape == (12, 0)
    still = ~(op == op_ids[1]).any(1)
    np.testing.assert_array_equal(images[still], batch[0][still])
    # Unknown here, but of a family that runs.
    images, boxes, valid = jitted(*batch, draws._replace(op=np.full_like(draws.op, *_ids("ShearX_BBox"))))
    np.testing.assert_array_equal(images, batch[0])
    np.testing.assert_array_equal(boxes, np.where(batch[2][..., None], batch[1], 0))
    np.testing.assert_array_equal(valid, batch[2])


@pytest.mark.parametrize("name", ["autoaugment_detection_v0", "autoaugment_detection_v3"])
def test_published_policies_run(name):
    found = policies.load(name)
    batch, sample = _batch(11, COUNT), jax.jit(sampling.sample, static_argnums=(1, 2, 3))
    draws = sample(jax.random.key(0), found, COUNT, SIZE)
    images, boxes, valid = _fast(*batch, draws)
    applied = {ops.ALL_OPS[op] for op in np.unique(draws.op)}
    content, rows = found.content, policies.space(found).rows
    assert applied == {"Identity", *(rows[row].op for row in content.row[content.probability > 0])}
    assert 0.5 < (images != batch[0]).any((1, 2, 3)).mean() < 1
    assert valid[batch[2]].mean() > 0.5 and not valid[~batch[2]].any()
    kept = np.asarray(boxes)[np.asarray(valid)]
    assert (kept >= 0).all() and (kept <= 24).all() and (kept[:, 2:] > kept[:, :2]).all()


def test_values_of_the_published_policies():
    v0, v3 = (policies.load(f"autoaugment_detection_{version}") for version in ("v0", "v3"))
    assert v0.content.row.shape == (5, 2) and v3.content.row.shape == (15, 2)
    values = [
        (v0, 0, 0, "TranslateX_BBox", 100 / 640),
        (v0, 1, 0, "TranslateY_Only_BBoxes", 24 / 640),
        (v0, 1, 1, "CutoutGrey", 80 / 640),
        (v0, 4, 1, "Color", 1.18),
        (v3, 0, 0, "Posterize", 1.0),
        (v3, 1, 0, "BBox_Cutout", 0.75),
        (v3, 4, 0, "SolarizeAdd", 22),
    ]
    for policy, n, k, name, value in values:
        row, level = policy.content.row[n, k], np.float32(policy.content.level[n, k])
        assert SPACE.rows[row].op == name
        assert ops.level_to_value(SPACE, row, level, np.float32(1)) == pytest.approx(value, rel=1e-6)
    assert max(map(len, policies.format_table(v0).splitlines())) < 130


def test_the_search_space_is_that_of_the_code():
    for row, line in zip(SPACE.rows, CODE.split("\n")[1:-1], strict=True):
        name, *ends, sign = line.split()
        side = 640 if row.unit in ("fraction of width", "fraction of height") else 1
        assert (row.name, row.random_sign) == (name, sign == "+-")
        assert [str(end) for end in ends] == (
            [f"{side * end:g}" for end in (row.low, row.high)] if row.unit else ["-", "-"]
        )


def test_candidates_of_ddas():
    space = ops.search_space("autoaugment_detection", ("Identity",))
    assert len(ddas_config.candidates(space).row) == 1 + 4 + 21 * 4
    assert len(ddas_config.candidates(space, (0.2, 0.6)).row) == 1 + 4 + 21 * 2


# ---- base augmentation ---------------------------------------------------------------------------


class Settings(NamedTuple):
    flip: bool = True
    scale_jitter: float = 0.5
    mean: tuple[float, ...] = (0.1, 0.2, 0.3)
    std: tuple[float, ...] = (0.5, 0.25, 0.2)


class Keys(NamedTuple):
    crop: jax.Array
    flip: jax.Array


def test_flips_move_boxes_with_the_images():
    key, (images, boxes, valid) = jax.random.key(1), _batch(12, 64)
    flipped, moved, still = augment.random_flip_with_boxes(key, images, boxes, valid)
    np.testing.assert_array_equal(flipped, augment.random_flip(key, images))
    mirrored = (np.asarray(flipped) != images).any((1, 2, 3))
    assert 10 < mirrored.sum() < 54
    expected = np.where(
        mirrored[:, None, None], [24, 0, 24, 0] + boxes[..., [2, 1, 0, 3]] * [-1, 1, -1, 1], boxes
    )
    np.testing.assert_allclose(moved, np.where(valid[..., None], expected, 0), atol=1e-5)
    np.testing.assert_array_equal(still, valid)


def test_scales_move_boxes_with_the_images():
    rng, (height, width) = np.random.default_rng(13), (32, 40)
    ends = np.sort(rng.integers(0, [width, height], (96, 2, 2)), axis=1)
    ends[:, 1] += 4
    boxes = np.clip(ends, 0, [width, height]).reshape(96, 1, 4)
    images = np.zeros((96, height, width, 3), np.float32)
    for image, (x0, y0, x1, y1) in zip(images, boxes[:, 0]):
        image[y0:y1, x0:x1] = 1
    valid = np.ones((96, 1), bool)
    arguments = images, np.float32(boxes), valid, (0.5, 2.0)
    run = jax.jit(augment.random_scale_with_boxes, static_argnums=4)
    scaled, moved, still = map(np.asarray, run(jax.random.key(2), *arguments))
    assert 0.6 < still.mean() < 1
    for image, box, is_valid in zip(scaled[..., 0], moved[:, 0], still[:, 0]):
        paint = image > 0.5
        if paint.any():
            rows, columns = np.flatnonzero(paint.any(1)), np.flatnonzero(paint.any(0))
            painted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert is_valid
            np.testing.assert_allclose(painted, box, atol=1)
        else:
            assert not is_valid or (box[2:] - box[:2]).min() < 1
    same, *_ = run(jax.random.key(2), *arguments[:3], (1.0, 1.0))
    np.testing.assert_allclose(same, images, atol=1e-6)


@pytest.mark.parametrize("per_image", [False, True])
def test_order_of_detection(per_image):
    images, boxes, valid = _batch(14, 4)
    keys = Keys(*jax.random.split(jax.random.key(4), (2, 4) if per_image else 2))
    settings = Settings()

    def policy(batch):
        images, boxes, valid = batch
        return augment.ImagesWithBoxes(images // 2, boxes + 1.0, valid.at[:, 0].set(False))

    def steps(keys, *batch):
        batch = augment.random_flip_with_boxes(keys.flip, *policy(augment.ImagesWithBoxes(*batch)))
        normalized = augment.normalize(batch[0], settings.mean, settings.std)
        return augment.random_scale_with_boxes(keys.crop, normalized, *batch[1:], (0.5, 1.5))

    @jax.jit
    def found_and_expected(keys, *batch):
        found = tuple(augment.base_augment(keys, settings, augment.ImagesWithBoxes(*batch), policy))
        if not per_image:
            return found, steps(keys, *batch)
        parts = [
            steps(jax.tree.map(lambda k: k[i], keys), *(leaf[i : i + 1] for leaf in batch))  # noqa: B023
            for i in range(4)
        ]
        return found, tuple(jnp.concatenate(leaves) for leaves in zip(*parts))

    found, expected = found_and_expected(keys, *map(jnp.asarray, (images, boxes, valid)))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5), found, expected)
    assert not found[2][:, 0].any()


# ---- bad arguments -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (
            lambda i, b, v: (i, b.astype(np.float64), v),
            TypeError,
            "boxes: got dtype float64, expected float32",
        ),
        (lambda i, b, v: (i, b, v.astype(np.int32)), TypeError, "valid: got dtype int32, expected bool"),
        (lambda i, b, v: (i, b[..., :3], v), ValueError, r"\(2, 3, 3\) and \(2, 3\), expected \[2, N, 4\]"),
        (lambda i, b, v: (i, b[:1], v[:1]), ValueError, r"expected \[2, N, 4\] and \[2, N\]"),
        (lambda i, b, v: (i.astype(np.int32), b, v), TypeError, "images: got dtype int32"),
    ],
)
def test_bad_boxes_are_named(change, error, text):
    images, boxes, valid = _batch(15, 2)
    draws = _draws(16, np.zeros((2, 1), int))
    with pytest.raises(error, match=text):
        _apply(*change(images, boxes, valid), draws)
    images = images if "images" in text else np.float32(images)
    with pytest.raises(error, match=text):
        _apply_differentiable(*change(images, boxes, valid), draws, (0,))


def test_ops_that_need_boxes_are_refused_without():
    images, _, _ = _batch(17, 2)
    draws = _draws(18, np.zeros((2, 1), int))
    with pytest.raises(ValueError, match="got Rotate_BBox, which need ImagesWithBoxes"):
        augment.apply_draws(images, draws, op_ids=_ids("Identity", "Rotate_BBox"))
    for path, op_id in ((augment.apply_draws_differentiable, "SolarizeAdd"),):
        with pytest.raises(ValueError, match="op_ids"):
            path(np.float32(images), draws, _ids("Identity", op_id))
    with pytest.raises(ValueError, match="got 'SolarizeAdd', expected one of Identity"):
        ops.apply_op("SolarizeAdd", jnp.zeros((4, 4, 3)), 1.0, jnp.zeros(2))
    with pytest.raises(ValueError, match="op_ids"):
        _apply_differentiable(np.float32(images), *_batch(17, 2)[1:], draws, _ids("Identity", "RandCrop"))
    with pytest.raises(ValueError, match="scales: got"):
        augment.random_scale_with_boxes(jax.random.key(0), np.float32(images), *_batch(17, 2)[1:], (2.0, 1.0))
