"""Settings of a DDAS search, and its candidates: every op of a search space crossed with a few magnitudes.

    value(m) = the formula of RandAugment, which DDAS follows: 3 m degrees, 0.03 m shear, m pixels,
               4 - trunc(0.4 m) bits (0 and less: a black image), threshold 256 - trunc(25.6 m) (0 and
               less: full inversion), factor 0.18 m + 0.1, cutout 2 m pixels

K candidates. An op without magnitude is one candidate, an op with magnitude one for each m; the candidates
of an op stand together, in the order of the search space (the slot order of the released code).

    ddas            8 + 11 x {0, 2, 10, 14}: the 52 of the released CIFAR code
    ddas_imagenet   8 + 12 x {7, 14}: the 32 of the released ImageNet code
    ddas_68         8 + 12 x {2, 6, 10, 14, 18}: the only way to the paper's 68 that the ops of the
                    released code allow; the paper's five magnitudes are not known, these are a guess
    ddas_sanity     9 + 10 x {5}: section 4.1 of the paper, K = 19; at 5 the four enhancers do nothing

In every other search space magnitudes are levels in [0, 1]. The released code runs every op with magnitude
at m = 28, whatever its label says, because its closures share a loop variable: `as_released`.

Deviation: cutout is that of `ops` in colour and in the rounding of its corner.

Reference: Liu et al. 2021, section 3.5.3; Cubuk et al. 2019, arXiv:1909.13719.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax

from ... import augment, checks, ops
from ...training import schedules, sgd

MAGNITUDES = {
    "ddas": (0.0, 2.0, 10.0, 14.0),
    "ddas_imagenet": (7.0, 14.0),
    "ddas_68": (2.0, 6.0, 10.0, 14.0, 18.0),
    "ddas_sanity": (5.0,),
}
OTHER_MAGNITUDES = (0.25, 0.5, 0.75, 1.0)
LARGEST = 30.0
_RELEASED = 28.0  # what the loop variable held when the ops ran


class Candidates(NamedTuple):
    """K pairs of an op and a level; hashable."""

    row: tuple[int, ...]  # row of the search space
    level: tuple[float, ...]  # in [0, 1]


def level(row: ops.OpRow, magnitude: float) -> float:
    """The level in [0, 1] at which a row of a ddas space has the value of a magnitude in 0 .. 30."""
    if row.unit == "bits":
        return (row.low - max(0, 4 - int(0.4 * magnitude))) / (row.low - row.high)
    if row.unit == "threshold":
        return (row.low - max(0, 256 - int(25.6 * magnitude))) / (row.low - row.high)
    return magnitude / 32.0


def candidates(space: ops.SearchSpace, magnitudes: tuple[float, ...] | None = None) -> Candidates:
    """Crosses the ops of a search space with magnitudes.

    Args:
      space: R rows.
      magnitudes: numbers in [0, 30] in a ddas space, in [0, 1] in others; None for those of the space.

    Returns:
      K candidates.

    Raises:
      ValueError: no magnitude, one out of range, or one given twice.
    """
    is_ddas = space.name in MAGNITUDES
    if magnitudes is None:
        magnitudes = MAGNITUDES.get(space.name, OTHER_MAGNITUDES)
    largest = LARGEST if is_ddas else 1.0
    if not magnitudes or len(set(magnitudes)) < len(magnitudes):
        raise ValueError(f"magnitudes: got {magnitudes}, expected one or more different numbers")
    if not all(0.0 <= magnitude <= largest for magnitude in magnitudes):
        raise ValueError(f"magnitudes: got {magnitudes}, expected numbers in [0, {largest:g}]")
    pairs = [
        (index, (level(row, magnitude) if is_ddas else magnitude) if row.unit else 0.0)
        for index, row in enumerate(space.rows)
        for magnitude in (magnitudes if row.unit else (0.0,))
    ]
    return Candidates(*zip(*pairs))


def as_released(space: ops.SearchSpace) -> Candidates:
    """The candidates that the released code runs: as many, but all those with magnitude at m = 28.

    Raises:
      ValueError: not one of the ddas spaces.
    """
    if space.name not in MAGNITUDES:
        known = ", ".join(MAGNITUDES)
        raise ValueError(f"search space: got {space.name!r}, but the released code has only {known}")
    rows = candidates(space).row
    levels = (level(space.rows[row], _RELEASED) if space.rows[row].unit else 0.0 for row in rows)
    return Candidates(rows, tuple(levels))


# Fields in which the released CIFAR scripts differ from the defaults; `search` says why.
OFFICIAL_SETTINGS = {
    "preset": "official",
    "draws": "batch",
    "share_randomness": False,
    "learning_rate": 0.01,
    "policy_learning_rate": 0.005,
    "p_tp_learning_rate": 0.001,
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Static settings of a search; hashable. Defaults: the paper's CIFAR search, corrected.

    Attributes:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      space: the ops, their ranges and sign rules.
      candidates: K pairs of a row of the space and a level.
      num_epochs, steps_per_epoch: T, and updates in each; they set the learning-rate schedule.
      preset: "corrected", or "official": as the released code does; its other settings are
        `OFFICIAL_SETTINGS`, as in Config(..., **OFFICIAL_SETTINGS), and `as_released`.
      num_policies: L-hat, policies sampled per step (and, with draws "image", per image).
      num_ops: N_o, ops in a policy.
      draws: "batch": a sampled policy is applied to all images, as in the paper; "image": every image has
        its own policies, and its own coefficients.
      share_randomness: all copies of an image get the same crop, flip and cutout.
      initial_p_tp: p_tp at the start, in (0, 1); in [0, 1] if it is not learned.
      learn_p_tp: False keeps it (table 5 of the paper).
      learning_rate: of the network at the start; per step along half a cosine to 0.
      momentum_decay, nesterov, weight_decay, clip_norm: SGD of the network.
      policy_learning_rate: Adam of alpha_o, betas 0.5 and 0.999.
      p_tp_learning_rate: the same of alpha_tp.
      smoothing: F_s, epochs over which the policy's p_tp is averaged.
      crop_padding, flip, color_jitter, lighting, cutout_length, scale_jitter: base augmentation after the
        policy, on every copy, see `augment.base_augment`.
      mean, std: per channel, of images in [0, 1].
      losses: of the examples of a batch, in the form of `sgd.classification_losses`.
    """

    apply: Callable
    space: ops.SearchSpace
    candidates: Candidates
    num_epochs: int = 20
    steps_per_epoch: int = 63
    preset: str = "corrected"
    num_policies: int = 3
    num_ops: int = 2
    draws: str = "image"
    share_randomness: bool = True
    initial_p_tp: float = 0.35
    learn_p_tp: bool = True
    learning_rate: float = 0.32
    momentum_decay: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    policy_learning_rate: float = 0.05
    p_tp_learning_rate: float = 0.01
    smoothing: int = 1
    crop_padding: int = 4
    flip: bool = True
    cutout_length: int = 16
    color_jitter: float = 0.0
    lighting: float = 0.0
    scale_jitter: float = 0.0
    mean: tuple[float, float, float] = augment.CIFAR_MEAN
    std: tuple[float, float, float] = augment.CIFAR_STD
    losses: Callable = sgd.classification_losses

    def __post_init__(self):
        checks.check_choices(self, {"preset": ("corrected", "official"), "draws": ("image", "batch")})
        if self.preset == "official" and self.draws != "batch":
            raise ValueError(f"draws: got {self.draws!r}, but the official preset has only batch")
        counts = ("num_policies", "num_ops", "smoothing", "num_epochs", "steps_per_epoch")
        checks.check_counts(self, *counts)
        is_inside = 0.0 < self.initial_p_tp < 1.0
        if not is_inside and (self.learn_p_tp or self.initial_p_tp not in (0.0, 1.0)):
            raise ValueError(
                f"initial_p_tp: got {self.initial_p_tp}, expected a number in "
                f"{'(0, 1), both excluded' if self.learn_p_tp else '[0, 1]'}"
            )
        checks.check_no_random_ops(ops.random_ops(self.space))
        rows, levels = self.candidates
        if len(rows) != len(levels) or not rows or not all(0 <= r < len(self.space.rows) for r in rows):
            raise ValueError(
                f"candidates: got rows {rows} and {len(levels)} levels, expected as many levels as rows, "
                f"rows in [0, {len(self.space.rows)})"
            )


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Network learning rate of a step, from `config.learning_rate` to 0 along half a cosine."""
    return schedules.cosine(
        step / config.steps_per_epoch, learning_rate=config.learning_rate, num_epochs=config.num_epochs
    )
