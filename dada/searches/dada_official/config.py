"""Settings of the DADA search as the released code does it, and the schedules that follow from them."""

import dataclasses
from collections.abc import Callable

import jax

from ... import checks, ops
from ...training import schedules
from ..dada.config import temperature

__all__ = ["ESTIMATORS", "Config", "learning_rate", "temperature"]

ESTIMATORS = ("relax", "reinforce", "gumbel")


@dataclasses.dataclass(frozen=True)
class Config:
    """Static settings of a search; hashable. Defaults: the released CIFAR-10 search.

    Attributes:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      space: the ops, their ranges and sign rules.
      num_epochs, steps_per_epoch: length of the search; they set the learning-rate schedule.
      estimator: one of `ESTIMATORS`.
      hypergradient: "finite_difference" or "exact" (JVP).
      learning_rate ... clip_norm: SGD of the network.
      policy_learning_rate: Adam of the policy and of RELAX's control variate, betas 0.5 and 0.999.
      temperature: (at the start, at the end), linear in between; of the relaxed samples.
      crop_padding, flip, cutout_length: base augmentation around the policy, as in the papers.
      mean, std: per channel, of images in [0, 1].
      top_k: sub-policies kept by `extract_policy`.
    """

    apply: Callable
    space: ops.SearchSpace
    num_epochs: int = 20
    steps_per_epoch: int = 16
    estimator: str = "relax"
    hypergradient: str = "finite_difference"
    learning_rate: float = 0.1
    learning_rate_floor: float = 0.001
    momentum_decay: float = 0.9
    weight_decay: float = 2e-4
    clip_norm: float | None = 5.0
    policy_learning_rate: float = 0.005
    temperature: tuple[float, float] = (0.5, 0.5)
    crop_padding: int = 4
    flip: bool = True
    cutout_length: int = 16
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    top_k: int = 25

    def __post_init__(self):
        choices = {"estimator": ESTIMATORS, "hypergradient": ("exact", "finite_difference")}
        checks.check_choices(self, choices)
        checks.check_no_random_ops(ops.random_ops(self.space))
        checks.check_counts(self, "num_epochs", "steps_per_epoch")
        checks.check_temperature(self.temperature)


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Network learning rate of a step: cosine, constant within an epoch, and one epoch ahead.

    The released scheduler is stepped before the first epoch, so that `config.learning_rate` is never used and
    the last epoch runs at the floor.
    """
    return schedules.cosine(
        step // config.steps_per_epoch + 1,
        learning_rate=config.learning_rate,
        num_epochs=config.num_epochs,
        floor=config.learning_rate_floor,
    )
