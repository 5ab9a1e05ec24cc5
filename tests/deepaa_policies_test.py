"""The published DeepAA policies: their actions, and their op marginals against the published tables."""

import numpy as np
import pytest

from dada import policies
from dada.ops import table as op_table
from dada.searches.deepaa import config as deepaa_config

PUBLISHED = ("deepaa_cifar_1", "deepaa_cifar_2", "deepaa_imagenet_1", "deepaa_imagenet_2")

# Percent of every op in its order, a line per layer; the last number is the perplexity of the layer.
TABLES = {
    "deepaa_cifar_1": """
        2.36 4.49 5.27 16.42 12.82 7.19 0.06 1.72 7.42 16.05 0.03 6.19 8.55 7.18 3.83 0.01 0.40 0.00 37.9
        1.66 0.18 0.08 0.43 0.09 0.10 0.00 0.01 0.00 0.03 0.04 0.03 0.23 0.04 0.03 0.17 91.77 5.11 1.52
        3.52 0.04 0.02 0.20 0.02 0.02 0.13 0.00 0.00 0.02 0.86 0.03 1.07 0.11 0.05 1.05 3.10 89.75 1.72
        4.29 0.20 0.01 0.01 0.01 0.01 0.41 0.00 0.00 0.01 0.09 0.01 5.41 0.03 0.01 73.09 1.40 15.02 2.66
        7.25 0.14 0.01 0.01 0.01 0.01 1.89 0.00 0.00 0.01 0.05 0.01 57.78 0.03 0.01 0.01 0.89 31.88 4.38
        96.53 0.02 0.01 0.01 0.01 0.01 0.53 0.00 0.00 0.01 0.80 0.01 0.05 0.02 0.01 0.01 0.01 1.98 1.23
    """,
    "deepaa_cifar_2": """
        2.47 8.46 4.30 10.26 10.83 7.65 0.07 2.04 7.64 15.44 0.05 6.23 12.77 5.61 4.89 0.02 1.27 0.01 36.7
        0.35 0.05 0.01 0.03 0.03 0.01 0.00 0.00 0.00 0.00 0.00 0.00 0.01 0.01 0.00 0.05 99.12 0.31 1.07
        1.06 0.03 0.01 0.03 0.01 0.01 0.01 0.00 0.00 0.01 0.01 0.01 0.03 0.01 0.01 0.25 30.66 67.85 2.03
        3.33 0.15 0.01 0.01 0.01 0.01 0.01 0.00 0.00 0.01 0.01 0.01 0.03 0.01 0.01 23.30 0.58 72.51 2.10
        21.47 0.18 0.01 0.01 0.01 0.01 0.02 0.00 0.00 0.01 0.02 0.01 0.06 0.01 0.11 78.04 0.01 0.03 1.76
        99.12 0.06 0.01 0.01 0.01 0.01 0.01 0.00 0.00 0.00 0.01 0.01 0.65 0.01 0.04 0.01 0.00 0.05 1.07
    """,
    "deepaa_imagenet_1": """
        0.05 1.87 4.52 15.23 16.45 11.44 0.05 1.91 3.17 11.37 0.56 3.51 0.87 8.02 0.55 0.05 0.52 19.87 39.7
        0.02 1.01 1.01 1.04 1.04 2.51 0.03 0.41 3.08 0.91 0.36 0.48 0.49 0.84 0.26 0.47 11.77 74.26 3.7
        0.10 2.35 2.66 0.80 1.44 2.42 0.13 0.87 9.30 2.41 2.96 1.39 2.27 1.63 1.86 29.96 25.89 11.58 13.2
        0.62 5.35 4.42 0.84 1.06 2.21 1.92 0.25 2.35 1.67 20.71 2.46 9.31 1.95 25.60 11.96 0.38 6.94 43.6
        1.24 2.99 2.44 0.79 0.84 0.74 1.56 0.21 0.31 0.88 11.76 2.08 19.15 2.17 21.53 26.92 0.28 4.11 28.7
    """,
    "deepaa_imagenet_2": """
        0.02 2.09 5.37 17.83 15.77 11.51 0.02 2.16 2.84 11.24 0.29 2.99 1.33 9.93 0.28 0.02 0.65 15.65 38.3
        0.03 2.08 1.37 1.17 1.39 2.53 0.03 0.44 0.50 1.21 0.63 1.00 0.79 1.78 0.51 0.78 29.50 54.26 5.6
        0.24 2.06 1.95 0.39 1.20 1.61 0.23 0.82 3.53 1.54 8.63 2.63 3.19 3.34 4.65 32.99 1.10 29.90 14.2
        0.81 2.48 2.33 0.28 0.74 1.03 0.61 0.20 0.77 0.89 8.85 4.25 6.56 2.23 58.81 3.14 0.21 5.82 25.7
        2.07 2.72 5.15 0.33 1.75 1.09 0.67 0.30 0.28 0.85 17.21 7.46 17.68 2.82 14.85 21.21 0.19 3.38 35.8
    """,
}


def _table(name):
    return np.array([line.split() for line in TABLES[name].split("\n") if line.strip()], float)


@pytest.mark.parametrize("name", PUBLISHED)
def test_marginals_are_those_of_the_published_tables(name):
    found = policies.load(name)
    content = found.content
    share = content.probability @ np.eye(18)[content.row]
    table = _table(name)
    assert np.abs(100 * share - table[:, :-1]).max() < 0.01
    entropy = -np.sum(content.probability * np.log(content.probability), axis=1)
    np.testing.assert_allclose(np.exp(entropy), table[:, -1], rtol=0.02)


@pytest.mark.parametrize("name", PUBLISHED)
def test_actions_are_those_of_the_search(name):
    found = policies.load(name)
    of_imagenet = ("RandFlip", "RandCutout60", "RandResizeCrop")
    ops = deepaa_config.CIFAR_OPS if "cifar" in name else of_imagenet
    assert found.extra_ops == ops
    config = deepaa_config.Config(apply=lambda *_: None, space=op_table.search_space("deepaa", ops))
    row, level = deepaa_config.actions(config)
    np.testing.assert_array_equal(row, found.content.row)
    np.testing.assert_array_equal(level, found.content.level)
    assert len(row) == 139 and deepaa_config.identity_action(config) == 0
    searched, evaluated = config.space, policies.space(found)
    assert [op.name for op in searched.rows] == [op.name for op in evaluated.rows]
    assert not any(op.random_sign for op in searched.rows)
    assert [op.name for op in evaluated.rows if op.random_sign] == [op.name for op in searched.rows[1:6]]
