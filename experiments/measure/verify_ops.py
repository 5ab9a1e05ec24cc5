"""Evidence for every op: Pillow's pixels, and values that descent along the level gradient finds again.

`pillow_ops` says for each op by which Pillow calls it is meant; `op_lines` compares.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from dada import ops
from experiments.data import pillow_ops

_WITHOUT_MAGNITUDE = ("Identity", "FlipLR", "FlipUD", "Rotate90", "Blur", "Smooth")
# Every op of the library with the widest range that a search space gives it.
SPACE = ops.search_space("autoaugment", _WITHOUT_MAGNITUDE)

NUM_VALUES = 257  # evenly spaced over the range: all thresholds of Solarize
NUM_TARGETS = 10
ENOUGH = 8  # targets to be found; flat stretches of a real image's loss may hide one or two
TOLERANCE = 0.05  # of the range
_REAL_IMAGES = {True: 8, False: 500}  # for an op with a magnitude; without
_DESCENT_IMAGES = 32
_DESCENT_STEPS = 120


class OpLine(NamedTuple):
    """One line of the table; pixels count once, however many of their channels differ."""

    op: str
    pixels: int
    differ: int
    found: str  # targets found again, of all
    median_error: str  # of the found values, in % of the range
    passed: bool


def _unit(levels):
    return np.float32(levels) / np.float32(255)


def _value_range(row):
    """(lowest, highest) value of a row, mirrored ones included."""
    values = [row.low, row.high]
    if row.random_sign:
        values += [2 * row.identity - value for value in values]
    return min(values), max(values)


def _artificial_images(rng, size):
    """Noise, dull noise, three constants and an image of two levels, uint8 [6, *size, 3]."""
    shape = (*size, 3)
    images = [rng.integers(0, 256, shape), np.clip(rng.normal(110, 25, shape), 0, 255)]
    images += [np.full(shape, level) for level in (0, 77, 255)]
    images.append(np.where(rng.random(shape) < 0.5, 3, 250))
    return np.stack(images).astype(np.uint8)


def _colored(rng, images):
    """Grey images [N, H, W, 3], each between two colours of its own."""
    dark, light = rng.uniform(0, 255, (2, len(images), 1, 1, 3))
    return np.round(dark + (light - dark) * (images / 255.0)).astype(np.uint8)


def _compare(row, images, rng):
    """(pixels compared, pixels that differ from Pillow's) over the range of an op."""
    count = NUM_VALUES if row.unit else 1
    values = np.float32(np.linspace(*_value_range(row), count))
    centers = np.float32(rng.uniform(0, 1, (count, 2)) * images.shape[1:3])

    @jax.jit
    def all_values(image):
        return jax.vmap(lambda value, center: ops.apply_op(row.name, image, value, center))(values, centers)

    differ = 0
    for image in images:
        picture = Image.fromarray(image)
        expected = [np.asarray(pillow_ops.PILLOW[row.name](picture, v, c)) for v, c in zip(values, centers)]
        pixels = np.asarray(all_values(_unit(image)))
        differ += int((pixels != _unit(np.stack(expected))).any(-1).sum())
    return len(images) * count * image.shape[0] * image.shape[1], differ


def _descend(row, images, rng):
    """(targets, values found) by descent on mean |op(x, v) - op(x, target)|^2, in units of the value."""
    low, high = _value_range(row)
    centers = np.float32(rng.uniform(0, 1, (len(images), 2)) * images.shape[1:3])
    targets = rng.uniform(low, high, NUM_TARGETS)
    offsets = 0.25 * (high - low) * rng.choice([-1.0, 1.0], NUM_TARGETS)
    starts = targets + offsets
    starts = np.where((low <= starts) & (starts <= high), starts, targets - offsets)
    optimizer = optax.adam(optax.linear_schedule(0.02 * (high - low), 0.0, _DESCENT_STEPS), b2=0.99)

    def op(value):
        apply = lambda image, center: ops.apply_op(row.name, image, value, center)  # noqa: E731
        return jax.vmap(apply)(_unit(images), centers)

    @jax.jit
    @jax.vmap
    def descend(target, start):
        wanted = op(target)

        def step(carry, _):
            value, state = carry
            slope = jax.grad(lambda value: jnp.mean((op(value) - wanted) ** 2))(value)
            updates, state = optimizer.update(slope, state)
            return (value + updates, state), None

        return jax.lax.scan(step, (start, optimizer.init(start)), length=_DESCENT_STEPS)[0][0]

    targets = np.float32(targets)
    return targets, np.asarray(descend(targets, np.float32(starts)))


def _recovery(row, images, rng):
    """(number of targets found, median error as a part of the range)."""
    low, high = _value_range(row)
    targets, values = _descend(row, images, rng)
    errors = np.abs(values - targets)
    if row.unit == "bits":  # only whole bits can be told apart
        errors[np.trunc(values) == np.trunc(targets)] = 0.0
    return int(np.sum(errors <= TOLERANCE * (high - low))), float(np.median(errors)) / (high - low)


def op_lines(seed: int, images: np.ndarray, names: tuple[str, ...] = ops.OPS) -> Iterator[OpLine]:
    """Compares ops with Pillow, and tries their level gradients, on real images, uint8 [N, H, H, 3], 500 or
    more.

    Yields a line per op: it passes where no pixel differs and `ENOUGH` of the targets are found. `seed` is
    that of the artificial images, centres, colours and targets.
    """
    rows = {row.name: row for row in SPACE.rows}
    for name in names:
        row, rng = rows[name], np.random.default_rng(seed)
        real = images[rng.permutation(len(images))]
        colored = _colored(rng, real[:_DESCENT_IMAGES])
        half = _REAL_IMAGES[bool(row.unit)] // 2
        shown = np.concatenate(
            [real[:half], _colored(rng, real[half : 2 * half]), _artificial_images(rng, images.shape[1:3])]
        )
        pixels, differ = _compare(row, shown, rng)
        if not row.unit:
            yield OpLine(name, pixels, differ, "-", "-", differ == 0)
            continue
        # Colour changes nothing but colours; geometry is tried on grey garments on black.
        is_enhancer = row.unit == "factor"
        found, error = _recovery(row, colored if is_enhancer else real[:_DESCENT_IMAGES], rng)
        passed = differ == 0 and found >= ENOUGH
        yield OpLine(name, pixels, differ, f"{found} / {NUM_TARGETS}", f"{100 * error:.2f} %", passed)
