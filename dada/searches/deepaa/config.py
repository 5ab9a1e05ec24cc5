"""Settings of a DeepAA search, and the actions that follow from its search space."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ... import augment, checks, ops

# Extra ops of the space "deepaa", in the order of the policies published for CIFAR.
CIFAR_OPS = ("RandFlip", "RandCutout", "RandCrop")

# What the released code does where the default differs.
OFFICIAL_SETTINGS = {"preset": "official", "stop_probability": None}


@dataclasses.dataclass(frozen=True)
class Config:
    """Static settings of a search; hashable. Defaults: the released CIFAR search, corrected.

    Attributes:
      apply: network, (params, batch_stats, images, is_training, key, axis_name=) -> (logits, batch_stats).
      space: the ops, Identity among them; an action is an op at one point of its grid.
      preset: "corrected", or "official": what the released code does, in Config(..., **OFFICIAL_SETTINGS).
      num_layers: K, layers searched one after another.
      updates_per_layer: policy updates of each layer.
      num_chains: images that estimate the training gradient of a data point from layer 2 on.
      num_prefixes: draws of the frozen layers below, on each of which every action is scored.
      grid_size: levels 0 .. 1 of an op with a magnitude; those that change nothing are left out.
      identity_logit: head start of Identity in a new layer.
      policy_learning_rate: Adam of the logits, betas 0.9 and 0.999.
      penalty: standard deviations over data points that are taken off a score, from layer 2 on.
      stop_probability: a layer that gives Identity more than this when it is done is the last; None: never.
      chunk_size: largest number of images that go through the network at once.
      chunk_loop: "scan": chunks follow one another inside the program, which is then jitted as a whole;
        "python": each is a program of its own, called from Python by a `step` that is not jitted, because
        XLA:CPU runs convolution gradients inside any loop many times slower than outside.
      mean, std: per channel, of images in [0, 1].
    """

    apply: Callable
    space: ops.SearchSpace
    preset: str = "corrected"
    num_layers: int = 6
    updates_per_layer: int = 1024
    num_chains: int = 556
    num_prefixes: int = 16
    grid_size: int = 13
    identity_logit: float = 8.0
    policy_learning_rate: float = 0.025
    penalty: float = 1.0
    stop_probability: float | None = 0.95
    chunk_size: int = 256
    chunk_loop: str = "scan"
    mean: tuple[float, float, float] = augment.CIFAR_MEAN
    std: tuple[float, float, float] = augment.CIFAR_STD

    def __post_init__(self):
        checks.check_choices(self, {"preset": ("corrected", "official"), "chunk_loop": ("scan", "python")})
        counts = ("num_layers", "updates_per_layer", "num_chains", "num_prefixes", "chunk_size")
        checks.check_counts(self, *counts)
        if self.grid_size < 2:
            raise ValueError(f"grid_size: got {self.grid_size}, expected 2 or more")
        if self.stop_probability is not None and not 0.0 < self.stop_probability <= 1.0:
            raise ValueError(f"stop_probability: got {self.stop_probability}, expected a number in (0, 1]")
        if "Identity" not in [row.name for row in self.space.rows]:
            raise ValueError(f"space: got {self.space.name!r} without Identity, which every layer needs")


def actions(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Row of the search space, int32 [A], and level, float64 [A], of every action.

    Levels are m / (grid_size - 1), without those at which the op leaves the image unchanged: 139 actions
    for the 18 ops of DeepAA and 13 points.
    """
    grid = np.arange(config.grid_size) / (config.grid_size - 1)
    row, level = [], []
    for index, op in enumerate(config.space.rows):
        levels = grid if op.unit else grid[:1]
        value = op.low + levels * (op.high - op.low)
        changes = np.ones(len(levels), bool) if op.identity is None else ~np.isclose(value, op.identity)
        row += [index] * int(changes.sum())
        level += levels[changes].tolist()
    return np.array(row, np.int32), np.array(level, np.float64)


def identity_action(config: Config) -> int:
    """Index of the action that does nothing."""
    row, _ = actions(config)
    return int(np.argmax(row == [op.name for op in config.space.rows].index("Identity")))


def initial_logits(config: Config) -> jax.Array:
    """Logits of a new layer, [A]: a head start for Identity, with mean 0."""
    count = len(actions(config)[0])
    is_identity = jnp.arange(count) == identity_action(config)
    logits = config.identity_logit * is_identity.astype(jnp.float32)
    return logits - jnp.mean(logits)
