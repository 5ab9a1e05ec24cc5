"""Settings of a DDAS search, and what follows from them alone."""

import dataclasses
from collections.abc import Callable

import jax

from dada import config_checks, op_table, schedules
from dada.ddas_candidates import Candidates

# Fields in which the released CIFAR scripts differ from the defaults; `ddas_search` says why.
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
        `OFFICIAL_SETTINGS`, as in Config(..., **OFFICIAL_SETTINGS), and `ddas_candidates.as_released`.
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
      crop_padding, flip, cutout_length: base augmentation after the policy, on every copy.
      mean, std: per channel, of images in [0, 1].
    """

    apply: Callable
    space: op_table.SearchSpace
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
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)

    def __post_init__(self):
        config_checks.check_choices(
            self, {"preset": ("corrected", "official"), "draws": ("image", "batch")}
        )
        if self.preset == "official" and self.draws != "batch":
            raise ValueError(f"draws: got {self.draws!r}, but the official preset has only batch")
        counts = ("num_policies", "num_ops", "smoothing", "num_epochs", "steps_per_epoch")
        config_checks.check_counts(self, *counts)
        is_inside = 0.0 < self.initial_p_tp < 1.0
        if not is_inside and (self.learn_p_tp or self.initial_p_tp not in (0.0, 1.0)):
            raise ValueError(
                f"initial_p_tp: got {self.initial_p_tp}, expected a number in "
                f"{'(0, 1), both excluded' if self.learn_p_tp else '[0, 1]'}"
            )
        if names := op_table.random_ops(self.space):
            raise ValueError(f"space: got the random ops {', '.join(names)}, which only DeepAA searches")
        rows, levels = self.candidates
        if len(rows) != len(levels) or not rows or not all(0 <= r < len(self.space.rows) for r in rows):
            raise ValueError(
                f"candidates: got rows {rows} and {len(levels)} levels, expected as many levels as rows, "
                f"rows in [0, {len(self.space.rows)})"
            )


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Network learning rate of a step, from `config.learning_rate` to 0 along half a cosine."""
    return schedules.cosine(
        step / config.steps_per_epoch,
        learning_rate=config.learning_rate,
        num_epochs=config.num_epochs,
    )
