"""One policy of several: means by hand, op masses, what does not fit together."""

import dataclasses

import numpy as np
import pytest

from dada import policies


def pairs(weights, sequences, **metadata):
    return policies.from_sequences("strength", sequences, weights=weights, **metadata)


def mean_mass(found):
    masses = [policies.op_mass(policy) for policy in found]
    return {name: np.mean([mass[name] for mass in masses]) for name in masses[0]}


def assert_same_mass(merged, found):
    for name, value in mean_mass(found).items():
        assert policies.op_mass(merged)[name] == pytest.approx(value, abs=1e-12), name


def test_sub_policies():
    found = [
        pairs([3, 1], [[("Rotate", 0.5, 0.2), ("Invert", 1.0, 0.0)], [("Color", 0.25, 1.0)]], seed=4),
        # The order of ops counts, uniform weights are weights, and 0 is never drawn.
        pairs(None, [[("Invert", 1.0, 0.0), ("Rotate", 0.5, 0.2)], [("Color", 0.75, 0.5)]], seed=5),
        pairs([0, 1], [[("Solarize", 1.0, 0.5)], [("Rotate", 0.1, 1.0), ("Invert", 1.0, 0.0)]], seed=6),
    ]
    merged = policies.merge(found)
    content, names = merged.content, [row.name for row in policies.space(merged).rows]
    rows = [[names[row] for row in sequence if row >= 0] for sequence in content.row]
    assert rows == [["Rotate", "Invert"], ["Color"], ["Invert", "Rotate"]]
    np.testing.assert_allclose(content.weight, [7 / 12, 1 / 4, 1 / 6])
    np.testing.assert_allclose(content.probability[0], [(0.75 * 0.5 + 0.1) / 1.75, 1.0])
    np.testing.assert_allclose(content.level[0], [(0.75 * 0.2 + 1.0) / 1.75, 0.0])
    np.testing.assert_allclose(content.probability[1, 0], (0.25 * 0.25 + 0.5 * 0.75) / 0.75)
    np.testing.assert_allclose(content.level[1, 0], (0.25 * 1.0 + 0.5 * 0.5) / 0.75)
    assert_same_mass(merged, found)
    assert merged.seed is None and "of 3 policies, of seeds 4, 5, 6" in merged.selection_rule
    assert policies.to_json(policies.merge(found)) == policies.to_json(merged)


def test_the_same_policy_many_times_is_itself():
    found = policies.load("dada_cifar10")
    order = np.lexsort(found.content.row.T)
    merged = policies.merge([found] * 3)
    again = np.lexsort(merged.content.row.T)
    for name in ("row", "probability", "level"):
        one, other = (getattr(policy.content, name) for policy in (found, merged))
        np.testing.assert_allclose(other[again], one[order], rtol=1e-12)
    assert (merged.method, merged.source, merged.data_set) == (found.method, found.source, found.data_set)


def layers(*probability, **metadata):
    content = policies.Layers(np.array([0, 1, 1], np.int32), np.array([0, 0.3, 0.9]), np.array(probability))
    return policies.Policy("layers", "deepaa", (), content, **metadata)


def test_layers():
    found = [layers([0.2, 0.3, 0.5], [0.0, 1.0, 0.0], method="a"), layers([0.6, 0.4, 0.0], method="b")]
    merged = policies.merge(found)
    # The layer that one lacks does nothing.
    np.testing.assert_allclose(merged.content.probability, [[0.4, 0.35, 0.25], [0.5, 0.5, 0.0]])
    np.testing.assert_array_equal(merged.content.level, found[0].content.level)
    assert merged.method is None
    moved = [dataclasses.replace(one, content=one.content._replace(row=one.content.row + 1)) for one in found]
    with pytest.raises(ValueError, match=r"layers: got \[2, 1\], expected as many in all, or .* Identity"):
        policies.merge(moved)


def schedule(p_tp, p_o, **changes):
    content = policies.Schedule(
        np.array([0, 1], np.int32), np.array([0.5, 1.0]), np.array(p_tp), np.array(p_o)
    )
    return policies.Policy("schedule", "ddas", (), content._replace(**changes))


def test_schedules():
    found = [schedule([0.2, 0.0], [[1.0, 0.0], [0.4, 0.6]]), schedule([0.6, 0.0], [[0.2, 0.8], [0.6, 0.4]])]
    merged = policies.merge(found)
    np.testing.assert_allclose(merged.content.p_tp, [0.4, 0.0])
    np.testing.assert_allclose(merged.content.p_o, [[0.4, 0.6], [0.5, 0.5]])
    assert_same_mass(merged, found)


ONE = schedule([0.2], [[1.0, 0.0]])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "policies: got none"),
        ([ONE, layers([1.0, 0, 0])], "policy 1, kind: got layers, expected schedule as of policy 0"),
        ([policies.random_policy(0), policies.identity()], "search_space: got strength, expected"),
        ([policies.identity(), pairs(None, [[]], extra_ops=("FlipUD",))], r"extra_ops: got \('FlipUD',\)"),
        ([ONE, schedule([0.2], [[1.0, 0.0]], num_ops=3)], "num_ops: got 3, expected 2"),
        ([ONE, ONE, schedule([0.2], [[1.0, 0.0]], level=np.array([0.5, 0.9]))], "policy 2, level: got "),
        ([ONE, schedule([0.2, 0.2], [[1.0, 0.0]] * 2)], "policy 1, epochs: got 2, expected 1"),
    ],
)
def test_policies_that_do_not_fit_together(found, message):
    with pytest.raises(ValueError, match=message):
        policies.merge(found)
