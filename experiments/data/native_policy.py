"""A policy on images as large as their files have them, before any crop: on the host, by Pillow.

The policy of an image is drawn from its place in the source, the seed and the epoch, as its crop.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from dada import ops, policies
from dada.augment import sampling
from experiments.data import host_images, pillow_ops


def check(policy: policies.Policy) -> None:
    """Raises ValueError for a policy with an op that only the device has."""
    space = policies.space(policy)
    missing = [row.name for row in space.rows if row.op not in pillow_ops.PILLOW]
    if missing:
        raise ValueError(f"--policy_position=native: got {missing[0]}, expected ops that Pillow has")


def of_batches(
    key: jax.Array, policy: policies.Policy, num_epochs: int
) -> Callable[[int, np.ndarray], Sequence[host_images.Change]]:
    """What the policy does to each image of a batch: a function of the epoch and of the images, int [B]."""

    @jax.jit
    def draw(epoch, places):
        entry = epoch * len(policy.content.p_tp) // num_epochs if policy.kind == "schedule" else None
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, epoch), places)
        draws = jax.vmap(lambda key: sampling.sample(key, policy, 1, (1, 1), entry))(keys)
        return jax.tree.map(lambda leaf: leaf[:, 0], draws)

    def changes(epoch, places):
        draws = jax.tree.map(np.asarray, draw(epoch, places))
        return [functools.partial(_apply, ops.Draws(*one)) for one in zip(*draws)]

    return changes


def _apply(draws, image):
    """Ops one after another; centres are fractions of the height and width."""
    for op, value, center in zip(*draws):
        scaled = center * np.float32([image.height, image.width])
        image = pillow_ops.PILLOW[ops.ALL_OPS[op]](image, value, scaled)
    return image
