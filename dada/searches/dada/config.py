"""Settings of a DADA search, and what follows from them alone: schedules and the form of the policy."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from ... import augment, checks, ops
from ...training import schedules, sgd
from . import space as policy_space

MIXTURES = ("gumbel", "straight_through")
ESTIMATORS = ("relax", "reinforce", *MIXTURES)


@dataclasses.dataclass(frozen=True)
class CommonConfig:
    """Static settings that DADA and `dada_official` share; hashable.

    Defaults: the released CIFAR-10 search, but for `policy_learning_rate` and `hypergradient` (see `exact`).

    Attributes:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      space: the ops, their ranges and sign rules.
      num_epochs, steps_per_epoch: length of the search; they set the learning-rate schedule.
      hypergradient: "exact" (JVP) or "finite_difference".
      learning_rate ... clip_norm: SGD of the network.
      policy_learning_rate: Adam of the policy, betas 0.5 and 0.999.
      temperature: (at the start, at the end), linear in between; of the relaxed samples.
      crop_padding, flip, color_jitter, lighting, cutout_length, scale_jitter: base augmentation around the
        policy, as in the papers, see `augment.base_augment`.
      mean, std: per channel, of images in [0, 1].
      top_k: sub-policies kept by `extract_policy`.
      losses: of the examples of a batch, in the form of `sgd.classification_losses`.
    """

    apply: Callable
    space: ops.SearchSpace
    num_epochs: int = 20
    steps_per_epoch: int = 16
    hypergradient: str = "exact"
    learning_rate: float = 0.1
    learning_rate_floor: float = 0.001
    momentum_decay: float = 0.9
    weight_decay: float = 2e-4
    clip_norm: float | None = 5.0
    policy_learning_rate: float = 0.05
    temperature: tuple[float, float] = (0.5, 0.5)
    crop_padding: int = 4
    flip: bool = True
    cutout_length: int = 16
    color_jitter: float = 0.0
    lighting: float = 0.0
    scale_jitter: float = 0.0
    mean: tuple[float, float, float] = augment.CIFAR_MEAN
    std: tuple[float, float, float] = augment.CIFAR_STD
    top_k: int = 25
    losses: Callable = sgd.classification_losses

    def __post_init__(self):
        checks.check_choices(self, {"hypergradient": ("exact", "finite_difference")})
        checks.check_no_random_ops(ops.random_ops(self.space))
        checks.check_counts(self, "num_epochs", "steps_per_epoch")
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected two numbers above 0")


@dataclasses.dataclass(frozen=True)
class Config(CommonConfig):
    """Static settings of a corrected search.

    Attributes: those of `CommonConfig`, `learning_rate` for the score "cosine" ("exact" wants 0.1), and
      policy_space: "pairs", "triples" or "slots", see `space`.
      score: of a draw: "cosine", or "exact", the gradient of the paper, see the modules of these names. Only
        "exact" reads `estimator`, `hypergradient` and `temperature`.
      estimator: of the policy gradient. "gumbel" and "straight_through" mix the ops of "slots".
      num_draws: sub-policies of a step, each on all training images; of the score "cosine" only.
    """

    learning_rate: float = 0.005
    policy_space: str = "pairs"
    score: str = "cosine"
    estimator: str = "relax"
    num_draws: int = 8

    def __post_init__(self):
        super().__post_init__()
        spaces, scores = tuple(policy_space.SIZES), ("cosine", "exact")
        choices = {"policy_space": spaces, "score": scores, "estimator": ESTIMATORS}
        checks.check_choices(self, choices)
        if self.estimator in MIXTURES and self.policy_space != "slots":
            raise ValueError(
                f"policy_space: got {self.policy_space!r}, expected slots with estimator {self.estimator!r}"
            )
        if self.num_draws < 2:
            raise ValueError(f"num_draws: got {self.num_draws}, expected 2 or more")


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Network learning rate of a step: cosine, constant within an epoch."""
    return schedules.cosine(
        step // config.steps_per_epoch,
        learning_rate=config.learning_rate,
        num_epochs=config.num_epochs,
        floor=config.learning_rate_floor,
    )


def temperature(config: CommonConfig, step: jax.Array) -> jax.Array:
    """Temperature of the relaxed samples: linear over the whole search."""
    start, end = config.temperature
    fraction = jnp.clip(step / (config.num_epochs * config.steps_per_epoch), 0.0, 1.0)
    return start + (end - start) * fraction
