"""What all ops of one image share: their contract, the check of arguments, the straight-through rule.

Contract. An image is float32 `[H, W, 3]` in [0, 1] that holds k/255 for whole levels k; so does the result,
which is the 8-bit image that Pillow writes. Ops are pure, take traced values, and work under `jit`, `vmap`,
`jvp`, `vjp` and their compositions. Where the argument is bad they raise TypeError (a wrong dtype) or
ValueError (a wrong shape).

Gradient. The value is that of the hard op, the tangent that of the soft surrogate S that the op declares:
S + stop_gradient(hard - S) without its rounding error. Second derivatives are those of S. An op that moves
pixels and has no magnitude has its own derivative.
"""

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp

Image = jax.Array  # float32 [H, W, 3], levels / 255
Scalar = jax.typing.ArrayLike  # real, []
Pair = jax.typing.ArrayLike  # real [2], along rows and columns, in pixels


def with_tangent_of(soft: Callable[..., Image], hard: Callable[..., Image]) -> Callable[..., Image]:
    """`hard` with the tangent of `soft`, which takes the same arguments, arrays or trees of them."""
    core = jax.custom_jvp(hard)
    core.defjvp(lambda primals, tangents: (core(*primals), jax.jvp(soft, primals, tangents)[1]))
    return core


def straight_through(soft: Callable[..., Image]) -> Callable[[Callable[..., Image]], Callable[..., Image]]:
    """Gives an op the tangent of `soft`, which takes the same arguments, and checks these (`checked`)."""

    def decorate(hard):
        core = with_tangent_of(soft, hard)
        signature = inspect.signature(hard)

        @functools.wraps(hard)
        def op(*args, **kwargs):
            arguments = signature.bind(*args, **kwargs).arguments
            return core(*(checked(name, value) for name, value in arguments.items()))

        return op

    return decorate


def checked(name: str, value: jax.typing.ArrayLike) -> jax.Array:
    """The float32 array of an argument: an "image", a "center" [2], or a scalar by any other name.

    Raises:
      TypeError: the image is not float32, or another argument not real.
      ValueError: another shape.
    """
    # A copy, as jax 0.10 fails under jit on numpy arrays that vmap hands to a custom_jvp.
    value = jnp.array(value)
    if name == "image":
        if value.dtype != jnp.float32:
            raise TypeError(f"image: expected float32, got {value.dtype}")
        if value.ndim != 3 or value.shape[-1] != 3 or value.size == 0:
            raise ValueError(f"image: expected shape [H, W, 3], got {value.shape}")
        return value
    if not any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)):
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    if value.shape != ((2,) if name == "center" else ()):
        expected = "shape (2,)" if name == "center" else "a scalar"
        raise ValueError(f"{name}: expected {expected}, got shape {value.shape}")
    return value.astype(jnp.float32)
