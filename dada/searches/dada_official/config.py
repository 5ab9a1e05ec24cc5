"""Settings of the DADA search as the released code does it, and the schedules that follow from them."""

import dataclasses

import jax

from ...training import schedules
from ..dada.config import CommonConfig


@dataclasses.dataclass(frozen=True)
class Config(CommonConfig):
    """Static settings of a search; those of `CommonConfig`, as the released CIFAR-10 search has them."""

    hypergradient: str = "finite_difference"
    policy_learning_rate: float = 0.005  # of the Q network too


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
