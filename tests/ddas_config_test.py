"""Candidates of DDAS have the values of its formulas, and settings that make no sense are refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from ddas_problem import FULL, config

from dada import ops, policies
from dada.policies import schedule
from dada.searches.ddas import config as ddas_config


@pytest.mark.parametrize(
    ("name", "count"), [("ddas", 52), ("ddas_imagenet", 32), ("ddas_68", 68), ("ddas_sanity", 19)]
)
def test_candidates_have_the_values_of_the_formulas(name, count):
    space = ops.search_space(name)
    found = ddas_config.candidates(space)
    assert len(found.row) == len(found.level) == count
    ones = np.ones(count, np.float32)
    value = np.asarray(ops.level_to_value(space, np.array(found.row), np.float32(found.level), ones))
    position = 0
    for row in space.rows:
        for m in ddas_config.MAGNITUDES[name] if row.unit else (0.0,):
            assert space.rows[found.row[position]] == row
            expected = {
                "degrees": int(3.0 * m),
                "bits": max(0, 4 - int(0.4 * m)),
                "shear": np.float32(0.03 * m),
                "pixels": int(2 * m) if row.name == "CutoutAbs" else int(m),
                "threshold": max(0, 256 - int(25.6 * m)),
                "factor": np.float32(0.18 * m + 0.1),
                "": 0.0,
            }[row.unit]
            if row.unit in ("shear", "factor"):
                np.testing.assert_allclose(value[position], expected, rtol=3e-7)
            else:
                assert value[position] == expected, (row.name, m)
            position += 1
    if name != "ddas_sanity":
        released = ddas_config.as_released(space)
        values = ops.level_to_value(space, np.array(released.row), np.float32(released.level), ones)
        kinds = {(row, round(float(x), 4)) for row, x in zip(released.row, values) if space.rows[row].unit}
        assert len(kinds) == len([row for row in space.rows if row.unit])
        units = {(space.rows[row].unit, value) for row, value in kinds}
        assert units >= {("degrees", 84), ("bits", 0), ("factor", 5.14), ("pixels", 28)}


def test_at_magnitude_5_enhancers_do_nothing():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)) / 255, jnp.float32)
    for row, level in list(zip(*ddas_config.candidates(FULL)))[-4:]:
        assert FULL.rows[row].unit == "factor"
        value = ops.level_to_value(FULL, np.array(row), np.float32(level), np.float32(1))
        after = ops.apply_op(FULL.rows[row].name, image, value, jnp.zeros(2))
        np.testing.assert_array_equal(after, image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "released"}, "preset: got 'released', expected one of corrected, official"),
        ({"draws": "copy"}, "draws: got 'copy'"),
        ({"preset": "official", "draws": "image"}, "the official preset has only batch"),
        ({"num_ops": 0}, "num_ops: got 0, expected 1 or more"),
        ({"initial_p_tp": 1.0}, r"initial_p_tp: got 1.0, expected a number in \(0, 1\)"),
        ({"initial_p_tp": 1.5, "learn_p_tp": False}, r"initial_p_tp: got 1.5, expected a number in \[0, 1\]"),
        ({"candidates": ddas_config.Candidates((99,), (0.0,))}, r"candidates: got rows \(99,\)"),
    ],
)
def test_bad_settings_say_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_other_bad_input():
    strength = ops.search_space("strength")
    for magnitudes in ((), (0.5, 0.5), (1.5,)):
        with pytest.raises(ValueError, match="magnitudes: got"):
            ddas_config.candidates(strength, magnitudes)
    with pytest.raises(ValueError, match="the released code has only ddas"):
        ddas_config.as_released(strength)
    with pytest.raises(ValueError, match="expected 'schedule' to freeze"):
        schedule.freeze(policies.identity())
