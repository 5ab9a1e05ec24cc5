"""Planted ops: ops at fixed values, one after another, on every image that a policy is judged by.

A search has to find them.
"""

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dada import augment, ops


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


def plant(planted: Iterable[tuple[str, float]], images: Any) -> Any:
    """Applies ops at physical values in order to all images, uint8 [N, H, W, 3]; a cutout at the centre.

    Boxes of `augment.ImagesWithBoxes` move with them.
    """
    count, *size = images.shape[:3]
    for name, value in planted:
        drawn = (ops.OPS.index(name), value, [side / 2 for side in size])
        draws = ops.Draws(*(jnp.tile(jnp.asarray(one), (count, 1, *[1] * np.ndim(one))) for one in drawn))
        images = _apply(images, draws, op_ids=(0, drawn[0]))
    return images


_apply = jax.jit(augment.apply_draws, static_argnames="op_ids")
