"""Settings of a DADA search, and what follows from them alone: schedules and the form of the policy."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from dada import config_checks, dada_official, op_table, policy_space, schedules

ESTIMATORS = ("relax", "reinforce", "gumbel", "straight_through")


@dataclasses.dataclass(frozen=True)
class Config:
    """Static settings of a search; hashable. Defaults: the paper's CIFAR-10 search, corrected.

    Attributes:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      space: the ops, their ranges and sign rules.
      num_epochs, steps_per_epoch: length of the search; they set the learning-rate schedule.
      preset: "corrected", or "official": what the released code does, defects included; its other
        settings are `dada_official.SETTINGS`, as in Config(..., **dada_official.SETTINGS).
      policy_space: "pairs" or "slots", see `policy_space`.
      draws: "image" or "batch": what shares one draw of sub-policy and bits.
      estimator: one of `ESTIMATORS`.
      hypergradient: "exact" (JVP) or "finite_difference".
      learning_rate ... clip_norm: SGD of the network.
      policy_learning_rate: Adam of the policy, betas 0.5 and 0.999.
      control_learning_rate: Adam of RELAX's control variate.
      share_between_pairs: pairs that have an op in common share gradients; not in the official preset.
      orthogonal_to_clean: the validation gradient loses its part along the gradient of the un-augmented
        training batch, so that ops are paid only for what they add; not in the official preset.
      validation_statistics: "batch", or "running": at the validation images the network is as in a test,
        with the running statistics after the step's training pass, held fixed, and without drawn noise;
        not in the official preset.
      temperature: (at the start, at the end), linear in between; of the relaxed samples.
      crop_padding, flip, cutout_length: base augmentation around the policy, as in the papers.
      mean, std: per channel, of images in [0, 1].
      top_k: sub-policies kept by `extract_policy`.
    """

    apply: Callable
    space: op_table.SearchSpace
    num_epochs: int = 20
    steps_per_epoch: int = 16
    preset: str = "corrected"
    policy_space: str = "pairs"
    draws: str = "image"
    estimator: str = "relax"
    hypergradient: str = "exact"
    learning_rate: float = 0.1
    learning_rate_floor: float = 0.001
    momentum_decay: float = 0.9
    weight_decay: float = 2e-4
    clip_norm: float | None = 5.0
    policy_learning_rate: float = 0.05
    control_learning_rate: float = 0.01
    share_between_pairs: bool = True
    orthogonal_to_clean: bool = False
    validation_statistics: str = "batch"
    temperature: tuple[float, float] = (0.5, 0.5)
    crop_padding: int = 4
    flip: bool = True
    cutout_length: int = 16
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2023, 0.1994, 0.2010)
    top_k: int = 25

    def __post_init__(self):
        choices = {
            "preset": ("corrected", "official"),
            "policy_space": ("pairs", "slots"),
            "draws": ("image", "batch"),
            "estimator": ESTIMATORS,
            "hypergradient": ("exact", "finite_difference"),
            "validation_statistics": ("batch", "running"),
        }
        config_checks.check_choices(self, choices)
        if self.preset == "official":
            dada_official.check(self)
        if names := op_table.random_ops(self.space):
            raise ValueError(f"space: got the random ops {', '.join(names)}, which only DeepAA searches")
        config_checks.check_counts(self, "num_epochs", "steps_per_epoch")
        if min(self.temperature) <= 0:
            raise ValueError(f"temperature: got {self.temperature}, expected two numbers above 0")


def learning_rate(config: Config, step: jax.Array) -> jax.Array:
    """Network learning rate of a step: cosine, constant within an epoch.

    The official preset runs one epoch ahead: its scheduler is stepped before the first epoch, so that
    `config.learning_rate` is never used and the last epoch runs at the floor.
    """
    epoch = step // config.steps_per_epoch + (1 if config.preset == "official" else 0)
    return schedules.cosine(
        epoch,
        learning_rate=config.learning_rate,
        num_epochs=config.num_epochs,
        floor=config.learning_rate_floor,
    )


def temperature(config: Config, step: jax.Array) -> jax.Array:
    """Temperature of the relaxed samples: linear over the whole search."""
    start, end = config.temperature
    fraction = jnp.clip(step / (config.num_epochs * config.steps_per_epoch), 0.0, 1.0)
    return start + (end - start) * fraction


def distribution(config: Config, parameters: policy_space.Parameters) -> policy_space.Parameters:
    """The learned parameters as logits, whatever form the preset learns them in."""
    return dada_official.as_logits(parameters) if config.preset == "official" else parameters
