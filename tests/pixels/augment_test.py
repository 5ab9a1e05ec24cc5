"""Draws applied to batches: Pillow is the oracle of every path."""

import jax
import jax.numpy as jnp
import numpy as np
import pillow_reference
import pytest

from dada import augment, ops
from dada.augment import fast_path
from dada.ops import Draws

_OPS = ops.OPS
_RANGES = {row.name: (row.low, row.high) for row in ops.search_space("autoaugment").rows}
# Beyond the search spaces: cutouts of negative side, posterize of no bit, extrapolating enhancers.
_RANGES |= {
    "Cutout": (-0.05, 0.6),
    "CutoutAbs": (-2.0, 20.0),
    "Posterize": (0.0, 8.5),
    "Contrast": (-0.5, 2.5),
    "Sharpness": (-0.5, 2.5),
    "Rotate": (-200.0, 200.0),
}

_apply = jax.jit(augment.apply_draws)


def _images(rng, count, size):
    """Noise, narrow histograms with constant channels among them, and smooth ramps."""
    noise = rng.integers(0, 256, (count, *size, 3))
    low, width = rng.integers(0, 200, (2, count, 1, 1, 3))
    narrow = low + noise % (width % 56 + 1)
    row, column = np.mgrid[: size[0], : size[1]]
    ramp = (5 * column + 3 * row)[..., None] * np.array([1, 2, 3]) + low
    kind = (np.arange(count) % 3)[:, None, None, None]
    return np.choose(kind, [noise, narrow, ramp % 256]).astype(np.uint8)


def _draws(rng, op, size):
    low, high = np.array([_RANGES.get(name, (0.0, 1.0)) for name in _OPS], np.float32)[op].T
    value = (low + rng.random(op.shape[::-1]) * (high - low)).T
    center = rng.random((*op.shape, 2)) * size
    return Draws(op.astype(np.int32), value.astype(np.float32), center.astype(np.float32))


def _pillow(images, draws):
    results = []
    for image, *draw in zip(images, *draws, strict=True):
        for op, value, center in zip(*draw, strict=True):
            image = pillow_reference.apply(_OPS[op], image, value, center)
        results.append(image)
    return np.stack(results)


def _op_ids(size):
    square = size[0] == size[1]
    return np.array([i for i, name in enumerate(_OPS) if square or name != "Rotate90"])


def _assert_same_pixels(got, expected, draws):
    wrong = (np.asarray(got) != expected).any((1, 2, 3))
    chains = [[(_OPS[o], float(v)) for o, v in zip(*pair)] for pair in zip(draws.op, draws.value)]
    assert not wrong.any(), [chain for chain, bad in zip(chains, wrong) if bad]


@pytest.mark.parametrize("size", [(32, 32), (5, 7), (2, 3), (96, 128)])
def test_every_op_and_chains_equal_pillow(size):
    rng = np.random.default_rng(0)
    is_large = max(size) > 32
    alone = np.repeat(_op_ids(size), 4 if is_large else 25)
    count = 20 if is_large else 320
    op = np.zeros((len(alone) + count, 3), int)
    op[: len(alone), 0] = alone
    chains = rng.choice(_op_ids(size), (count, 3))
    chains[np.arange(count)[:, None] % 3 < np.arange(3)] = 0  # 1, 2 or 3 ops per image
    op[len(alone) :] = chains
    images, draws = _images(rng, len(op), size), _draws(rng, op, size)
    _assert_same_pixels(_apply(images, draws), _pillow(images, draws), draws)


def test_large_image_equals_pillow():
    rng = np.random.default_rng(1)
    op = _op_ids((224, 224))[:, None]
    images, draws = _images(rng, len(op), (224, 224)), _draws(rng, op, (224, 224))
    _assert_same_pixels(_apply(images, draws), _pillow(images, draws), draws)


@pytest.mark.parametrize("batch", [1, 9])
def test_small_batches_of_one_op_equal_pillow(batch):
    rng = np.random.default_rng(batch)
    op = np.full((batch, 2), _OPS.index("Equalize"))
    op[:, 0] = _OPS.index("Rotate")
    images, draws = _images(rng, batch, (32, 32)), _draws(rng, op, (32, 32))
    _assert_same_pixels(_apply(images, draws), _pillow(images, draws), draws)


def test_identity_and_no_ops_leave_the_images():
    rng = np.random.default_rng(3)
    images = _images(rng, 9, (32, 32))
    for op in (np.zeros((9, 2), int), np.zeros((9, 0), int)):
        np.testing.assert_array_equal(_apply(images, _draws(rng, op, (32, 32))), images)


def test_schedule_of_accelerators_gives_the_same_pixels():
    rng = np.random.default_rng(4)
    op = np.repeat(np.arange(len(_OPS)), 6)[:, None]
    images, draws = _images(rng, len(op), (32, 32)), _draws(rng, op, (32, 32))

    def dense(images, draws):
        slot = [leaf[:, 0] for leaf in draws]
        pixels = fast_path._dense(fast_path._FAMILIES, (32, 32), fast_path._pack(images), *slot)
        return fast_path._unpack(pixels, (32, 32))

    _assert_same_pixels(jax.jit(dense)(images, draws), _pillow(images, draws), draws)


def test_images_divided_over_devices_give_the_same_pixels():
    rng = np.random.default_rng(5)
    op = rng.integers(0, len(_OPS), (64, 2))
    images, draws = _images(rng, 64, (32, 32)), _draws(rng, op, (32, 32))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    over_batch = jax.NamedSharding(mesh, jax.P("batch"))
    divided = _apply(*jax.device_put((images, draws), over_batch))
    _assert_same_pixels(divided, _pillow(images, draws), draws)

    per_device = jax.shard_map(
        augment.apply_draws, mesh=mesh, in_specs=jax.P("batch"), out_specs=jax.P("batch")
    )
    compiled = jax.jit(per_device).lower(*jax.device_put((images, draws), over_batch)).compile()
    np.testing.assert_array_equal(compiled(*jax.device_put((images, draws), over_batch)), divided)
    assert not any(word in compiled.as_text() for word in ("all-reduce", "all-gather", "all-to-all"))


def test_differentiable_path_has_the_same_pixels():
    rng = np.random.default_rng(7)
    op = np.concatenate([np.arange(len(_OPS))[:, None].repeat(2, 1), rng.integers(0, 25, (75, 2))])
    images, draws = _images(rng, len(op), (28, 28)), _draws(rng, op, (28, 28))
    smooth = jax.jit(augment.apply_draws_differentiable, static_argnums=2)(
        images.astype(np.float32) / 255, draws, tuple(range(len(_OPS)))
    )
    levels = np.asarray(smooth) * 255
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-4)
    _assert_same_pixels(np.round(levels).astype(np.uint8), _pillow(images, draws), draws)


def test_differentiable_path_has_the_gradient_of_the_ops():
    rng = np.random.default_rng(8)
    op_ids = tuple(_OPS.index(name) for name in ("Identity", "ShearX", "Brightness", "Cutout"))
    op = np.array([[op_ids[1], op_ids[2]], [op_ids[3], 0], [op_ids[2], op_ids[3]]])
    draws = _draws(rng, op, (12, 12))
    draws = draws._replace(value=np.abs(draws.value).astype(np.float32))
    images = (_images(rng, 3, (12, 12)) / 255).astype(np.float32)
    weights = rng.normal(size=images.shape).astype(np.float32)

    def batched(value):
        augmented = augment.apply_draws_differentiable(images, draws._replace(value=value), op_ids)
        return jnp.sum(weights * augmented)

    def one_by_one(value):
        total = 0.0
        for i, image in enumerate(jnp.asarray(images)):
            for k in range(2):
                image = ops.apply_op(_OPS[op[i, k]], image, value[i, k], draws.center[i, k])
            total += jnp.sum(weights[i] * image)
        return total

    got = np.asarray(jax.jit(jax.grad(batched))(draws.value))
    expected = jax.jit(jax.grad(one_by_one))(jnp.asarray(draws.value))
    np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-4)
    applied = op != 0
    assert (got[applied] != 0).all() and (got[~applied] == 0).all()


def test_differentiable_path_ignores_ops_that_were_not_announced():
    images = np.full((1, 8, 8, 3), 0.2, np.float32)
    draws = Draws(
        np.full((1, 1), _OPS.index("Invert"), np.int32),
        np.zeros((1, 1), np.float32),
        np.zeros((1, 1, 2), np.float32),
    )
    only = augment.apply_draws_differentiable(images, draws, (0, _OPS.index("Blur")))
    np.testing.assert_array_equal(only, images)


def _good_call():
    images = np.zeros((2, 8, 8, 3), np.uint8)
    draws = _draws(np.random.default_rng(0), np.zeros((2, 1), int), (8, 8))
    return images, draws


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda i, d: (i.astype(np.float32), d), TypeError, "float32, expected uint8"),
        (lambda i, d: (i[0], d), ValueError, r"expected \[B, H, W, 3\]"),
        (lambda i, d: (i[..., :1], d), ValueError, r"expected \[B, H, W, 3\]"),
        (lambda i, d: (np.zeros((2, 1, 20000, 3), np.uint8), d), ValueError, "H \\+ W"),
        (lambda i, d: (i, d._replace(op=d.value)), TypeError, "draws.op"),
        (lambda i, d: (i, d._replace(value=d.op)), TypeError, "draws.value"),
        (lambda i, d: (i[:1], d), ValueError, r"expected \[1, K\]"),
        (lambda i, d: (i, d._replace(op=d.op[:, 0])), ValueError, "draws.op"),
        (lambda i, d: (i, d._replace(center=d.center[..., 0])), ValueError, "center"),
    ],
)
def test_apply_draws_names_what_is_wrong(change, error, text):
    with pytest.raises(error, match=text):
        augment.apply_draws(*change(*_good_call()))


@pytest.mark.parametrize("op_ids", [(1, 2), (0, 1, 1), (0, len(_OPS)), (0, -1)])
def test_differentiable_path_refuses_bad_op_ids(op_ids):
    images, draws = _good_call()
    with pytest.raises(ValueError, match="op_ids"):
        augment.apply_draws_differentiable(images.astype(np.float32), draws, op_ids)
    with pytest.raises(TypeError, match="uint8, expected float32"):
        augment.apply_draws_differentiable(images, draws, (0,))
