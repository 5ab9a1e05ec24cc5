"""One policy of several that were found alike, such as those of a search with several seeds.

The aim is their mixture: draw one of the S policies uniformly, then an image's ops from it. The form of a
policy decides how near a single one can come. All numbers of policy s have the index s.

sub_policies  Equal sequences of ops (the same ops in the same order) are one, with the normalised weights w
              summed within a policy, 0 where it lacks the sequence:

                  w = mean_s w_s,   p = sum_s w_s p_s / sum_s w_s,   level = sum_s w_s level_s / sum_s w_s

              Exact but for the spread of p and level between policies; op masses are means of those of the
              policies. All sequences of a weight above 0 are kept, heaviest first: at most as many as the
              policies have together.
layers        probability[k, a] = mean_s probability_s[k, a]. Exact layer by layer, but layers are drawn
              independently of each other. A policy with fewer layers has Identity in the others.
schedule      p_tp[e] = mean_s p_tp_s[e],   p_o[e] = sum_s p_tp_s[e] p_o_s[e] / sum_s p_tp_s[e]. Exact for one
              op; the ops of an image are drawn independently of each other.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from .policy import Layers, Policy, Schedule, SubPolicies, space, validate

# Must be the same in all policies, by kind.
_SAME = {"sub_policies": (), "layers": ("row", "level"), "schedule": ("row", "level", "num_ops")}


def merge(found: Sequence[Policy]) -> Policy:
    """Returns one policy in place of some of one kind and search space, nearest to their mixture.

    Args:
      found: one or more policies; layers have the same actions, schedules the same candidates, epochs and
        num_ops.
    Returns:
      The policy. Its metadata are what all have in common, else None; its selection rule says of how many,
      and which seeds, it is made.
    Raises:
      ValueError: policies that do not fit together; names what differs.
    """
    if not found:
        raise ValueError("policies: got none, expected one or more to merge")
    first, contents = found[0], [policy.content for policy in found]
    for number, other in enumerate(found[1:], start=1):
        for name in ("kind", "search_space", "extra_ops", "excluded_ops"):
            _require_same(number, name, getattr(other, name), getattr(first, name))
        for name in _SAME[first.kind]:
            _require_same(number, name, getattr(other.content, name), getattr(first.content, name))
    if first.kind == "sub_policies":
        content = _merge_sub_policies(contents)
    elif first.kind == "layers":
        content = _merge_layers(contents, [row.name for row in space(first).rows])
    else:
        content = _merge_schedules(contents)
    shared = {
        name: getattr(first, name) if len({getattr(policy, name) for policy in found}) == 1 else None
        for name in ("method", "preset", "data_set", "selection_rule", "source", "licence")
    }
    seeds = ", ".join(str(policy.seed) for policy in found)
    rule = f"mean of {len(found)} policies, of seeds {seeds}; each: {shared['selection_rule'] or 'as found'}"
    merged = dataclasses.replace(first, content=content, seed=None, **shared | {"selection_rule": rule})
    validate(merged)
    return merged


def _require_same(number, name, got, expected):
    if not np.array_equal(got, expected):
        raise ValueError(f"policy {number}, {name}: got {got}, expected {expected} as of policy 0")


def _merge_sub_policies(contents):
    weights, sums, width = {}, {}, max(content.row.shape[1] for content in contents)
    for content in contents:
        weight = np.ones(len(content.row)) if content.weight is None else content.weight
        for share, row, *numbers in zip(weight / weight.sum() / len(contents), *content[:3]):
            sequence = tuple(row[row >= 0].tolist())
            padded = [np.pad(array, (0, width - len(array))) for array in numbers]
            weights[sequence] = weights.get(sequence, 0.0) + share
            sums[sequence] = sums.get(sequence, 0.0) + share * np.array(padded)
    order = sorted((one for one in weights if weights[one] > 0), key=lambda one: -weights[one])
    row = np.array([one + (-1,) * (width - len(one)) for one in order], np.int32)
    means = np.array([sums[one] / weights[one] for one in order])
    return SubPolicies(row, means[:, 0], means[:, 1], np.array([weights[one] for one in order]))


def _merge_layers(contents, names):
    count = max(len(content.probability) for content in contents)
    row, level, _ = contents[0]
    idle = np.zeros(len(row))
    if any(len(content.probability) < count for content in contents):
        if "Identity" not in names or names.index("Identity") not in row:
            numbers = [len(content.probability) for content in contents]
            raise ValueError(f"layers: got {numbers}, expected as many in all, or an action Identity")
        idle[np.flatnonzero(row == names.index("Identity"))[0]] = 1.0
    filled = [
        np.concatenate([content.probability, np.tile(idle, (count - len(content.probability), 1))])
        for content in contents
    ]
    return Layers(row, level, np.mean(filled, axis=0))


def _merge_schedules(contents):
    first = contents[0]
    for number, content in enumerate(contents):
        _require_same(number, "epochs", len(content.p_tp), len(first.p_tp))
    p_tp = np.stack([content.p_tp for content in contents])
    # In an epoch in which nothing is applied, all count alike.
    weight = np.where(p_tp.sum(axis=0) > 0, p_tp, 1.0)
    p_o = np.stack([content.p_o for content in contents])
    mean = np.sum(weight[..., None] * p_o, axis=0) / weight.sum(axis=0)[:, None]
    return Schedule(first.row, first.level, np.mean(p_tp, axis=0), mean, first.num_ops)
