"""Finds the value that an op was applied with by descent: what gradients to values are for."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pillow_reference

_DATA = Path(__file__).parents[1] / "experiments" / "data" / "fashion_mnist_5k.npz"


def natural_images(*, colored=False, count=24, seed=0):
    """Returns float32 `[count, 32, 32, 3]`: garments, each between two own colours if `colored`."""
    rng = np.random.default_rng(seed)
    with np.load(_DATA) as data:
        garments = data["train_images"][rng.permutation(4000)[:count]]
    images = np.pad(garments, ((0, 0), (2, 2), (2, 2)))[..., None].repeat(3, axis=-1)
    if colored:
        dark, light = rng.uniform(0, 255, (2, count, 1, 1, 3))
        images = np.round(dark + (light - dark) * (images / 255.0))
    return pillow_reference.unit(images)


def recovered(op, images, low, high, *, steps=120, seed=0):
    """Runs 10 descents from a quarter of the range away.

    Args:
        op: (images, value) -> images, on batches.
        images: float32 `[B, H, W, 3]`.
        low, high: range of the values.

    Returns:
        (targets `[10]`, results `[10]`) in the unit of the value.
    """
    rng = np.random.default_rng(seed)
    targets = rng.uniform(low, high, 10)
    offset = 0.25 * (high - low)
    starts = targets + np.where(rng.random(10) < 0.5, offset, -offset)
    starts = np.where((starts < low) | (starts > high), 2 * targets - starts, starts)
    rate = 0.02 * (high - low)

    def loss(value, wanted):
        return jnp.mean((op(images, value) - wanted) ** 2)

    @jax.jit
    def descend(target, start):
        wanted = op(images, target)

        def step(carry, i):
            value, mean, square = carry
            slope = jax.grad(loss)(value, wanted)
            mean = 0.9 * mean + 0.1 * slope
            square = 0.99 * square + 0.01 * slope**2
            scale = jnp.sqrt(square / (1 - 0.99 ** (i + 1))) + 1e-12
            move = mean / (1 - 0.9 ** (i + 1)) / scale
            return (value - rate * (1 - i / steps) * move, mean, square), None

        start = (start, jnp.zeros(()), jnp.zeros(()))
        return jax.lax.scan(step, start, jnp.arange(steps, dtype=jnp.float32))[0][0]

    targets, starts = np.float32(targets), np.float32(starts)
    results = np.array([descend(target, start) for target, start in zip(targets, starts)])
    return targets, results
