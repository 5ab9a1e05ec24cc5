"""Policies that nothing was searched for: RandAugment, TrivialAugment, UniformAugment.

All three are `layers` policies: in every layer each image draws one action (op, level), independently.

    RandAugment(N, M)   N layers, uniform over the 14 ops at level M of 30
    TrivialAugment      1 layer, uniform over the ops and then over the levels 0 .. 30
    UniformAugment      2 layers; with probability one half nothing, else an op and a level, uniform

Levels 0 .. 30 as in the TrivialAugment code with its 31 strengths (its training script defaults to
30, which lets M = 30 exceed every range). Values that this code truncates to integers - degrees,
pixels, bits, thresholds - are truncated here, in the levels of the actions, so that a policy file
holds what is applied. Translations are pixels, at any image size: RandAugment has up to 100 of them
on ImageNet, where the M of its authors is of 10, not of 30; the TrivialAugment code has one range for
all. Deviations: Cutout fills with the grey of the DADA op, not with black; the UniformAugment paper
draws real levels, its code and this one 31. An op without magnitude is one action.

Reference: Cubuk et al. 2019, arXiv:1909.13719; Mueller and Hutter 2021, arXiv:2103.10158; LingChen
et al. 2020, arXiv:2003.14348.
"""

import numpy as np

from .. import ops
from .policy import Layers, Policy, validate

NUM_LEVELS = 31
_WHOLE_UNITS = ("degrees", "pixels", "bits", "threshold")
_CUTOUT_WIDTH = 32  # of the images whose cutout side is truncated to whole pixels


def trivialaugment(space_name: str) -> Policy:
    """Returns TrivialAugment: one op, drawn uniformly, at a level drawn uniformly.

    Args:
      space_name: "randaugment" for TrivialAugment (RA), "trivialaugment_wide" for (Wide).
    """
    row, level = _actions(space_name)
    return _layers(space_name, row, level, _uniform(row)[None], "TrivialAugment")


def uniformaugment() -> Policy:
    """Returns UniformAugment: two ops with replacement, each applied with probability one half."""
    row, level = _actions("uniformaugment")
    probability = 0.5 * _uniform(row)
    probability[row == 0] += 0.5  # row 0 is Identity: not applied
    return _layers("uniformaugment", row, level, np.stack([probability] * 2), "UniformAugment")


def randaugment(num_ops: int, magnitude: int, space_name: str = "randaugment") -> Policy:
    """Returns RandAugment(N, M): N ops drawn uniformly with replacement, all at one level.

    Args:
      num_ops: N, 1 or more.
      magnitude: M in 0 .. 30.
      space_name: "randaugment", or "randaugment_imagenet".
    Raises:
      ValueError: N or M is out of range.
    """
    if num_ops < 1 or not 0 <= magnitude < NUM_LEVELS:
        raise ValueError(
            f"RandAugment: got N = {num_ops} and M = {magnitude}, expected N of 1 or more and M in "
            f"0..{NUM_LEVELS - 1}"
        )
    rows = ops.search_space(space_name).rows
    level = np.array([_level(op, magnitude) for op in rows])
    probability = np.full((num_ops, len(rows)), 1 / len(rows))
    return _layers(space_name, np.arange(len(rows), dtype=np.int32), level, probability, "RandAugment")


def _level(op, strength):
    """Level of a strength in 0 .. 30, truncated where the op has whole numbers only."""
    if not op.unit:
        return 0.0
    scale = _CUTOUT_WIDTH if op.name == "Cutout" else 1
    # In integers, because 0.9 * 10 is a little less than 9 for a computer.
    thousandths = round(1000 * scale * abs(op.high - op.low))
    if op.unit in _WHOLE_UNITS or op.name == "Cutout":
        return (thousandths * strength // (1000 * (NUM_LEVELS - 1))) * 1000 / thousandths
    return strength / (NUM_LEVELS - 1)


def _actions(space_name):
    """Rows and levels of all actions of a space: int32 [A] and float64 [A]."""
    actions = [
        (index, _level(op, strength))
        for index, op in enumerate(ops.search_space(space_name).rows)
        for strength in range(NUM_LEVELS if op.unit else 1)
    ]
    row, level = zip(*actions)
    return np.array(row, np.int32), np.array(level)


def _uniform(row):
    """Probability of every action if first the op and then its level is drawn uniformly, [A]."""
    counts = np.bincount(row)
    return 1 / (len(counts) * counts[row])


def _layers(space_name, row, level, probability, method):
    policy = Policy("layers", space_name, (), Layers(row, level, probability), method=method)
    validate(policy)
    return policy
