"""A planted op: one op at one value on every image that a policy is judged by, which a search has to find."""

import functools
import math

import jax
import jax.numpy as jnp

from dada import ops


def parse(text: str | None) -> tuple[str, float | None] | None:
    """Reads NAME or NAME:VALUE as (op, value or None); None for no text.

    Without a value the op may be a row with a direction, such as Rotate-.

    Raises:
      ValueError: no op has that name, it is drawn at random, or the value is no finite number.
    """
    if not text:
        return None
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
    found = [index for index, row in enumerate(space.rows) if name in (row.name, row.op)]

    def has_direction(index):
        row = space.rows[index]
        return (value - row.identity) * (row.high - row.identity) >= 0

    if len(found) > 1 and value is not None:
        found = [index for index in found if has_direction(index)]
    return found[0] if found else None


@functools.partial(jax.jit, static_argnums=0)
def plant(name: str, value: float, images: jax.Array) -> jax.Array:
    """Applies one op at one physical value to all images, uint8 [N, H, W, 3]; a cutout at the centre."""
    center = jnp.asarray(images.shape[1:3], jnp.float32) / 2.0

    def one(image):
        planted = ops.apply_op(name, image.astype(jnp.float32) / 255.0, value, center)
        return jnp.round(planted * 255.0).astype(jnp.uint8)

    return jax.lax.map(one, images, batch_size=256)
