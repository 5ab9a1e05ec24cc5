"""Planted ops: ops at fixed values, one after another, on every image that a policy is judged by.

A search has to find them.
"""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp

from dada import ops


def parse(text: str | None) -> list[tuple[str, float | None]]:
    """Reads NAME or NAME:VALUE, or several with commas between, in order, as (op, value or None) each.

    Without a value the op may be a row with a direction, such as Rotate-. No text is no op.

    Raises:
      ValueError: no op has that name, it is drawn at random, or the value is no finite number.
    """
    return [_parse_one(entry) for entry in text.split(",")] if text else []


def _parse_one(text):
    name, _, value = text.partition(":")
    if (name if value else name.rstrip("+-")) not in ops.OPS:
        raise ValueError(f"--planted_op: got {name!r}, expected one of {', '.join(ops.OPS)}")
    try:
        number = float(value) if value else None
    except ValueError:
        raise ValueError(f"--planted_op: got {text!r}, expected NAME or NAME:NUMBER") from None
    if number is not None and not math.isfinite(number):
        raise ValueError(f"--planted_op: got {text!r}, expected a finite value that changes the images")
    return name, number


def row_of(space: ops.SearchSpace, name: str, value: float | None) -> int | None:
    """The row of an op, or of a row's own name, with the direction of the value; None if there is none."""

    def fits(row):
        if value is None or row.name == row.op:
            return name in (row.name, row.op)
        return name == row.op and (value - row.identity) * (row.high - row.identity) >= 0

    return next((index for index, row in enumerate(space.rows) if fits(row)), None)


def to_text(planted: Iterable[tuple[str, float]]) -> str:
    """What `parse` reads as these ops."""
    return ",".join(f"{name}:{value}" for name, value in planted)


def plant(planted: Iterable[tuple[str, float]], images: jax.Array) -> jax.Array:
    """Applies ops at physical values in order to all images, uint8 [N, H, W, 3]; a cutout at the centre."""
    for name, value in planted:
        images = _apply(name, value, images)
    return images


@functools.partial(jax.jit, static_argnums=0)
def _apply(name, value, images):
    center = jnp.asarray(images.shape[1:3], jnp.float32) / 2.0

    def one(image):
        planted = ops.apply_op(name, image.astype(jnp.float32) / 255.0, value, center)
        return jnp.round(planted * 255.0).astype(jnp.uint8)

    return jax.lax.map(one, images, batch_size=256)
