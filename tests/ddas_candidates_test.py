"""Candidates of DDAS have the values of its formulas, and its schedules are smoothed as it says."""

import jax.numpy as jnp
import numpy as np
import pytest

from dada import ops
from dada.policies import schedule
from dada.searches.ddas import candidates as ddas_candidates

FULL = ops.search_space("ddas_sanity")


def test_mean_filter_looks_ahead():
    np.testing.assert_allclose(schedule.smooth(np.array([1.0, 2.0, 6.0, 7.0]), 2), [1.5, 4, 6.5, 6.5])
    np.testing.assert_allclose(schedule.smooth(np.array([1.0, 2.0]), 1), [1, 2])
    np.testing.assert_allclose(schedule.smooth(np.array([1.0, 2.0]), 6), [1.5, 1.5])


@pytest.mark.parametrize(
    ("name", "count"), [("ddas", 52), ("ddas_imagenet", 32), ("ddas_68", 68), ("ddas_sanity", 19)]
)
def test_candidates_have_the_values_of_the_formulas(name, count):
    space = ops.search_space(name)
    found = ddas_candidates.candidates(space)
    assert len(found.row) == len(found.level) == count
    ones = np.ones(count, np.float32)
    value = np.asarray(ops.level_to_value(space, np.array(found.row), np.float32(found.level), ones))
    position = 0
    for row in space.rows:
        for m in ddas_candidates.MAGNITUDES[name] if row.unit else (0.0,):
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
        released = ddas_candidates.as_released(space)
        values = ops.level_to_value(space, np.array(released.row), np.float32(released.level), ones)
        kinds = {(row, round(float(x), 4)) for row, x in zip(released.row, values) if space.rows[row].unit}
        assert len(kinds) == len([row for row in space.rows if row.unit])
        units = {(space.rows[row].unit, value) for row, value in kinds}
        assert units >= {("degrees", 84), ("bits", 0), ("factor", 5.14), ("pixels", 28)}


def test_at_magnitude_5_enhancers_do_nothing():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)) / 255, jnp.float32)
    for row, level in list(zip(*ddas_candidates.candidates(FULL)))[-4:]:
        assert FULL.rows[row].unit == "factor"
        value = ops.level_to_value(FULL, np.array(row), np.float32(level), np.float32(1))
        after = ops.apply_op(FULL.rows[row].name, image, value, jnp.zeros(2))
        np.testing.assert_array_equal(after, image)
