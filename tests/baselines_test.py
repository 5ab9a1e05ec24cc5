"""RandAugment, TrivialAugment and UniformAugment: ranges, truncation, and what is drawn."""

import functools

import jax
import numpy as np
import pytest

from dada import ops, policies
from dada.augment import sampling
from dada.policies import baselines

COUNT = 20_000


@functools.partial(jax.jit, static_argnums=0)
def values(name, row, level):
    space = ops.search_space(name)
    return ops.level_to_value(space, row, level, np.ones(len(row), np.float32))


def of_op(found, name):
    """Values of all actions of one op, in the order of the levels."""
    content, rows = found.content, policies.space(found).rows
    all_values = np.asarray(values(found.search_space, content.row, content.level.astype(np.float32)))
    return all_values[[rows[row].name == name for row in content.row]]


def draw(found):
    return jax.jit(lambda key: sampling.sample(key, found, COUNT, (32, 32)))(jax.random.key(0))


def chi_squared(counts, expected):
    return float((((counts - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("name", ["randaugment", "randaugment_imagenet", "trivialaugment_wide"])
def test_the_space_has_the_fourteen_ops_in_order(name):
    rows = ops.search_space(name).rows
    assert [row.name for row in rows] == [
        *("Identity", "AutoContrast", "Equalize", "Rotate", "Solarize", "Color", "Posterize", "Contrast"),
        *("Brightness", "Sharpness", "ShearX", "ShearY", "TranslateXAbs", "TranslateYAbs"),
    ]
    mirrored = {row.name for row in rows if row.random_sign}
    assert mirrored == {"Rotate", "ShearX", "ShearY", "TranslateXAbs", "TranslateYAbs"}


@pytest.mark.parametrize(
    ("found", "op", "expected"),
    [
        (baselines.trivialaugment("randaugment"), "Rotate", np.arange(31)),
        (baselines.trivialaugment("randaugment"), "TranslateXAbs", np.arange(31) * 10 // 30),
        (baselines.trivialaugment("randaugment"), "Solarize", 256 - np.arange(31) * 256 // 30),
        # 8, 7, 6, 5 and 4 bits at 8, 7, 8, 7 and 1 of the 31 levels
        (baselines.trivialaugment("randaugment"), "Posterize", np.repeat([8, 7, 6, 5, 4], [8, 7, 8, 7, 1])),
        (baselines.trivialaugment("randaugment"), "Color", 0.1 + 1.8 * np.arange(31) / 30),
        (baselines.trivialaugment("randaugment"), "ShearX", 0.3 * np.arange(31) / 30),
        (baselines.trivialaugment("trivialaugment_wide"), "Rotate", np.arange(31) * 135 // 30),
        (baselines.trivialaugment("trivialaugment_wide"), "TranslateYAbs", np.arange(31) * 32 // 30),
        (baselines.trivialaugment("trivialaugment_wide"), "Posterize", 8 - np.arange(31) * 6 // 30),
        (baselines.trivialaugment("trivialaugment_wide"), "Contrast", 0.01 + 1.99 * np.arange(31) / 30),
        (baselines.trivialaugment("trivialaugment_wide"), "ShearY", 0.99 * np.arange(31) / 30),
        # N = 2 and M = 9 of 10: 90 % of every range
        (baselines.randaugment(2, 27, "randaugment_imagenet"), "TranslateXAbs", [90]),
        (baselines.randaugment(2, 27, "randaugment_imagenet"), "Rotate", [27]),
        (baselines.randaugment(2, 27, "randaugment_imagenet"), "Color", [1.72]),
        (baselines.uniformaugment(), "TranslateXAbs", np.arange(31) * 144 // 300),
        (baselines.uniformaugment(), "Cutout", (np.arange(31) * 64 // 300) / 32),
    ],
)
def test_values_are_those_of_the_code_truncated_where_it_truncates(found, op, expected):
    got = of_op(found, op)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    if op == "Posterize":  # which truncates once more
        np.testing.assert_array_equal(got.astype(int), expected)


@pytest.mark.parametrize("name", ["randaugment", "trivialaugment_wide"])
def test_trivialaugment_draws_every_op_equally_often(name):
    found = baselines.trivialaugment(name)
    assert found.content.probability.shape[0] == 1
    draws = draw(found)
    ids = ops.row_op_ids(policies.space(found))
    counts = np.array([(np.asarray(draws.op) == op).sum() for op in ids])
    assert counts.sum() == COUNT
    assert chi_squared(counts, np.full(14, COUNT / 14)) < 34.5  # one in a thousand for 13 degrees of freedom
    rotation = np.asarray(draws.value)[np.asarray(draws.op) == ops.OPS.index("Rotate")]
    assert abs(np.mean(rotation > 0) - np.mean(rotation < 0)) < 0.1


def test_uniformaugment_applies_each_of_two_ops_with_probability_one_half():
    found = baselines.uniformaugment()
    ids = ops.row_op_ids(policies.space(found))
    op = np.asarray(draw(found).op)
    assert op.shape == (COUNT, 2) and len(ids) == 16
    for layer in op.T:
        counts = np.array([(layer == index).sum() for index in ids])
        expected = np.full(16, COUNT / 32)
        expected[0] += COUNT / 2
        assert chi_squared(counts, expected) < 37.7  # one in a thousand for 15 degrees of freedom
    both = np.mean((op != 0).all(axis=1))
    assert abs(both - (15 / 32) ** 2) < 0.015


def test_randaugment_draws_n_ops_at_one_level():
    found = baselines.randaugment(3, 15)
    draws = draw(found)
    op, value = np.asarray(draws.op), np.abs(np.asarray(draws.value))
    assert op.shape == (COUNT, 3)
    counts = np.bincount(op.ravel(), minlength=len(ops.OPS))
    counts = counts[ops.row_op_ids(policies.space(found))]
    assert chi_squared(counts, np.full(14, COUNT * 3 / 14)) < 34.5
    middle = {"Rotate": 15, "TranslateXAbs": 5, "Solarize": 128, "Posterize": 6, "Color": 1.0, "ShearX": 0.15}
    for name, expected in middle.items():
        np.testing.assert_allclose(value[op == ops.OPS.index(name)], expected, rtol=1e-6)


def test_strongest_randaugment_stays_in_the_ranges():
    found = baselines.randaugment(1, 30)
    assert found.content.level.max() == 1.0


@pytest.mark.parametrize(("num_ops", "magnitude"), [(0, 5), (2, 31), (2, -1)])
def test_randaugment_refuses_what_it_cannot_be(num_ops, magnitude):
    with pytest.raises(ValueError, match="RandAugment: got N"):
        baselines.randaugment(num_ops, magnitude)


@pytest.mark.parametrize("found", [baselines.randaugment(2, 9), baselines.uniformaugment()])
def test_policies_survive_their_file(found, tmp_path):
    policies.save(tmp_path / "policy.json", found)
    again = policies.load(tmp_path / "policy.json")
    for before, after in zip(found.content, again.content):
        np.testing.assert_array_equal(before, after)
