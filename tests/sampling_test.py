"""Draws: their distribution for every kind of policy, their repeatability, and bad arguments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import ops, policies
from dada.augment import sampling

COUNT = 20_000
SIZE = (24, 40)
_SAMPLE = jax.jit(sampling.sample, static_argnums=(1, 2, 3))


def _op(name):
    return ops.OPS.index(name)


def _assert_distribution(counts, probability):
    """Chi-squared test at the 0.1 % level; events of probability zero must not happen at all."""
    counts, probability = np.asarray(counts, float).ravel(), np.asarray(probability, float).ravel()
    assert np.all(counts[probability == 0] == 0)
    counts, probability = counts[probability > 0], probability[probability > 0]
    expected = counts.sum() * probability
    assert probability.sum() == pytest.approx(1) and expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    tail = jax.scipy.special.gammaincc((len(counts) - 1) / 2, statistic / 2)
    assert tail > 1e-3, (counts, expected)


def _pairs(first, second, size):
    return np.bincount(np.asarray(first) * size + np.asarray(second), minlength=size * size)


@functools.cache
def _three_sub_policies(weights):
    return policies.from_sequences(
        "strength",
        [
            [("Rotate", 0.3, 0.5), ("Contrast", 0.8, 0.25)],
            [("Solarize", 1.0, 0.5)],
            [("FlipLR", 0.5, 0.9), ("Cutout", 0.0, 0.5), ("Invert", 0.6, 0.0)],
        ],
        extra_ops=("FlipLR",),
        weights=weights,
    )


@functools.cache
def _layers():
    row = np.array([0, 5, 5, 9, 7], np.int32)  # Identity, Rotate twice, Solarize, Invert
    level = np.array([0.0, 0.0, 0.75, 0.5, 0.0])
    probability = np.array([[0.1, 0.2, 0.3, 0.4, 0.0], [0.6, 0.1, 0.1, 0.1, 0.1]])
    content = policies.Layers(row, level, probability)
    return policies.Policy("layers", "deepaa_mirrored", (), content)


@functools.cache
def _schedule():
    row = np.array([6, 0, 14], np.int32)  # Invert, ShearX, Cutout
    level = np.array([0.0, 0.5, 1.0])
    p_o = np.array([[1, 0, 0], [0.2, 0.3, 0.5]])
    content = policies.Schedule(row, level, np.array([0.35, 0.7]), p_o, 2)
    return policies.Policy("schedule", "strength", (), content)


POLICIES = {"sub_policies": lambda: _three_sub_policies((1, 2, 5)), "layers": _layers, "schedule": _schedule}


# ---- distributions ---------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [None, (1, 2, 5), (0, 1, 3)])
def test_sub_policies(weights):
    draws = _SAMPLE(jax.random.key(1), _three_sub_policies(weights), COUNT, SIZE, 1)
    assert draws.op.shape == (COUNT, 3) and draws.op.dtype == jnp.int32
    share = np.array(weights or (1, 1, 1)) / sum(weights or (1, 1, 1))
    first = [_op("Rotate"), _op("Solarize"), _op("FlipLR")]
    rotate, solarize, flip = (np.asarray(draws.op[:, 0]) == op for op in first)
    contrast = np.asarray(draws.op[:, 1]) == _op("Contrast")
    invert = np.asarray(draws.op[:, 2]) == _op("Invert")
    seen = {
        "rotate only": (rotate & ~contrast, share[0] * 0.3 * 0.2),
        "contrast only": (~rotate & contrast, share[0] * 0.7 * 0.8),
        "both": (rotate & contrast, share[0] * 0.3 * 0.8),
        "solarize": (solarize, share[1]),
        "flip only": (flip & ~invert, share[2] * 0.5 * 0.4),
        "invert only": (~flip & invert, share[2] * 0.5 * 0.6),
        "flip and invert": (flip & invert, share[2] * 0.5 * 0.6),
    }
    counts = [mask.sum() for mask, _ in seen.values()]
    probabilities = [probability for _, probability in seen.values()]
    nothing = (np.asarray(draws.op) == 0).all(axis=1).sum()
    assert sum(counts) + nothing == COUNT  # no other op, none in a wrong place
    _assert_distribution([*counts, nothing], [*probabilities, 1 - sum(probabilities)])


def test_values_and_signs_of_sub_policies():
    draws = _SAMPLE(jax.random.key(2), _three_sub_policies((1, 2, 5)), COUNT, SIZE, 1)
    op, value = np.asarray(draws.op), np.asarray(draws.value)
    expected = {
        "Rotate": (15.0, -15.0),
        "Contrast": (1.225, 0.775),
        "Solarize": (128.0,),
        "FlipLR": (0.9,),
        "Invert": (0.0,),
        "Identity": (0.0,),
    }
    assert {ops.OPS[index] for index in np.unique(op)} == set(expected)
    for name, values in expected.items():
        got = value[op == _op(name)]
        np.testing.assert_allclose(np.unique(got), sorted(values), rtol=1e-6)
        if len(values) == 2:
            _assert_distribution([(got > got.mean()).sum(), (got < got.mean()).sum()], [0.5, 0.5])


def test_layers_draw_one_action_each():
    draws = _SAMPLE(jax.random.key(3), _layers(), COUNT, SIZE, 1)
    op, value = np.asarray(draws.op), np.asarray(draws.value)
    assert op.shape == (COUNT, 2)
    action = np.full(op.shape, -1)
    action[op == 0] = 0
    action[(op == _op("Rotate")) & np.isclose(np.abs(value), 30)] = 1
    action[(op == _op("Rotate")) & np.isclose(np.abs(value), 15)] = 2
    action[(op == _op("Solarize")) & (value == 128)] = 3
    action[op == _op("Invert")] = 4
    assert action.min() == 0
    first, second = _layers().content.probability
    _assert_distribution(_pairs(action[:, 0], action[:, 1], 5), np.outer(first, second))
    rotated = value[action == 2]
    _assert_distribution([(rotated > 0).sum(), (rotated < 0).sum()], [0.5, 0.5])


def test_deepaa_as_searched_keeps_the_sign():
    mirrored = _layers()
    artefact = policies.Policy("layers", "deepaa", (), mirrored.content)
    draws = _SAMPLE(jax.random.key(3), artefact, 500, SIZE)
    rotations = np.asarray(draws.value)[np.asarray(draws.op) == _op("Rotate")]
    np.testing.assert_allclose(np.unique(rotations), [-30, 15])


@pytest.mark.parametrize("epoch", [0, 1])
def test_schedule_applies_all_ops_or_none(epoch):
    draws = _SAMPLE(jax.random.key(4), _schedule(), COUNT, SIZE, epoch)
    op = np.asarray(draws.op)
    assert op.shape == (COUNT, 2)
    names = ["Identity", "Invert", "ShearX", "Cutout"]
    code = np.argmax(op[..., None] == [_op(name) for name in names], axis=-1)
    content = _schedule().content
    expected = np.zeros((4, 4))
    expected[0, 0] = 1 - content.p_tp[epoch]
    expected[1:, 1:] = content.p_tp[epoch] * np.outer(content.p_o[epoch], content.p_o[epoch])
    _assert_distribution(_pairs(code[:, 0], code[:, 1], 4), expected)


def test_the_identity_policy_does_nothing():
    draws = _SAMPLE(jax.random.key(5), policies.identity(), 64, SIZE)
    assert draws.op.shape == (64, 1) and not draws.op.any() and not draws.value.any()


@pytest.mark.parametrize("kind", POLICIES)
def test_centers_are_uniform(kind):
    draws = _SAMPLE(jax.random.key(6), POLICIES[kind](), COUNT, SIZE, 1)
    center = np.asarray(draws.center)
    assert center.shape == (*draws.op.shape, 2) and center.dtype == np.float32
    assert center.min() >= 0 and (center < SIZE).all()
    for slot in range(center.shape[1]):
        cell = (center[:, slot] // (4, 8)).astype(int)  # 6 rows of 4 pixels, 5 columns of 8
        _assert_distribution(np.bincount(cell[:, 0] * 5 + cell[:, 1], minlength=30), [1 / 30] * 30)


@pytest.mark.parametrize("kind", POLICIES)
def test_images_are_drawn_independently(kind):
    draws = _SAMPLE(jax.random.key(7), POLICIES[kind](), COUNT, SIZE, 1)
    values, code = np.unique(draws.op[:, 0], return_inverse=True)
    counts = _pairs(code[0::2], code[1::2], len(values)).reshape(len(values), -1)  # neighbours
    share = np.bincount(code) / COUNT
    _assert_distribution(counts, np.outer(share, share))
    center = np.asarray(draws.center)[:, 0].reshape(-1, 4)
    correlation = np.corrcoef(center.T)  # row and column of two neighbours
    assert np.abs(correlation - np.eye(4)).max() < 5 / np.sqrt(len(center))


# ---- repeatability ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", POLICIES)
def test_same_key_same_draws(kind):
    artefact = POLICIES[kind]()
    first = _SAMPLE(jax.random.key(8), artefact, COUNT, SIZE, 1)
    again = _SAMPLE(jax.random.key(8), artefact, COUNT, SIZE, 1)
    other = _SAMPLE(jax.random.key(9), artefact, COUNT, SIZE, 1)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.op != other.op).any() and (first.center != other.center).any(-1).all()


def test_a_traced_epoch_is_the_same():
    static = jax.jit(sampling.sample, static_argnums=(1, 2, 3, 4))
    concrete = static(jax.random.key(1), _schedule(), COUNT, SIZE, 1)
    traced = _SAMPLE(jax.random.key(1), _schedule(), COUNT, SIZE, 1)
    np.testing.assert_array_equal(traced.op, concrete.op)


@pytest.mark.parametrize(
    "name", ["dada_cifar10", "autoaugment_svhn", "fast_autoaugment_imagenet", "identity"]
)
def test_shipped_policies_can_be_drawn(name):
    draws = _SAMPLE(jax.random.key(0), policies.load(name), 256, (32, 32))
    assert draws.op.shape[0] == 256 and np.isfinite(np.asarray(draws.value)).all()
    assert (name == "identity") == (not draws.op.any())


# ---- assemble_draws --------------------------------------------------------------------------


def test_assemble_draws_and_its_gradient():
    space = ops.search_space("strength", ("Rotate90",))
    row = jnp.array([[4, 8], [15, 10]])
    applied = jnp.array([[True, False], [True, True]])
    sign = jnp.array([[-1.0, 1.0], [1.0, -1.0]])
    level = jnp.full((2, 2), 0.5)
    center = jnp.arange(8.0).reshape(2, 2, 2)
    draws = sampling.assemble_draws(space, row, applied, level, sign, center)
    np.testing.assert_array_equal(draws.op, [[_op("Rotate"), 0], [_op("Rotate90"), _op("Contrast")]])
    np.testing.assert_allclose(draws.value, [[-15, 0], [0.5, 0.55]], rtol=1e-6)
    np.testing.assert_array_equal(draws.center, center)
    gradient = jax.grad(
        lambda level: sampling.assemble_draws(space, row, applied, level, sign, center).value.sum()
    )(level)
    np.testing.assert_allclose(gradient, [[-30, 0], [1, -0.9]], rtol=1e-6)


def test_random_signs():
    signs = sampling.random_signs(jax.random.key(3), (COUNT,))
    assert signs.dtype == jnp.float32
    _assert_distribution([(signs == 1).sum(), (signs == -1).sum()], [0.5, 0.5])


# ---- bad arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"row": jnp.zeros((2, 3))}, TypeError, "row: got dtype float32"),
        ({"applied": jnp.ones((2, 3))}, TypeError, "applied: got dtype float32, expected bool"),
        ({"applied": jnp.ones((2, 2), bool)}, ValueError, r"got \(2, 3\), \(2, 2\)"),
        ({"center": jnp.zeros((2, 3))}, ValueError, r"\(2, 3\) and \(2, 3\)"),
        ({"level": jnp.zeros((2, 1))}, ValueError, r"got \(2, 3\), \(2, 1\)"),
    ],
)
def test_bad_arrays(change, error, message):
    good = {
        "row": jnp.zeros((2, 3), int),
        "applied": jnp.ones((2, 3), bool),
        "level": jnp.zeros((2, 3)),
        "sign": jnp.ones((2, 3)),
        "center": jnp.zeros((2, 3, 2)),
    }
    with pytest.raises(error, match=message):
        sampling.assemble_draws(ops.search_space("dada"), **(good | change))


@pytest.mark.parametrize(
    "batch_size, image_size, epoch, message",
    [
        (0, (8, 8), 0, r"got 0 and \(8, 8\), expected B > 0"),
        (4, (8, 0), 0, r"got 4 and \(8, 0\), expected B > 0"),
        (4, (8, 8, 3), 0, r"expected B > 0 and \(H, W\)"),
        (4, (8, 8), None, r"epoch: got None, expected an integer in \[0, 2\)"),
        (4, (8, 8), 2, r"epoch: got 2, expected an integer in \[0, 2\)"),
        (4, (8, 8), -1, r"epoch: got -1"),
    ],
)
def test_bad_sizes(batch_size, image_size, epoch, message):
    with pytest.raises(ValueError, match=message):
        sampling.sample(jax.random.key(0), _schedule(), batch_size, image_size, epoch)
