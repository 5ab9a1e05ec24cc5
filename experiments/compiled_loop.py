"""Runs steps over a data set that lies on the device.

On an accelerator an epoch is one `lax.scan`. On a CPU the same step is called from a Python loop, because
XLA:CPU runs convolution gradients inside any loop 35 to 100 times slower than outside.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp


def scans() -> bool:
    """Whether steps are scanned on the device: not on CPU."""
    return jax.default_backend() != "cpu"


def shuffled_indices(
    key: jax.Array, step: jax.Array, count: int, size: int, steps_per_pass: int
) -> jax.Array:
    """Images of batch `step` of an endless stream in which every pass has a new random order.

    Args:
      key: typed key of the stream.
      step: int scalar, number of the batch.
      count: images in the data set.
      size: images in a batch.
      steps_per_pass: batches in a pass; what they need beyond `count` is taken from the pass's start.

    Returns:
      int32 [size].
    """
    order = jax.random.permutation(jax.random.fold_in(key, step // steps_per_pass), count)
    return order[((step % steps_per_pass) * size + jnp.arange(size)) % count]


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, float]:
    """Compiles a function for the given arguments; returns it and the seconds that this took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def _several(step: Callable, count: int) -> Callable:
    """`count` steps as one function, with metrics stacked along the first axis."""

    def run(state, key, data):
        return jax.lax.scan(lambda state, _: step(state, key, data), state, length=count)

    return run


class CompiledLoop:
    """Compiled steps of one run, and the seconds that compiling took.

    A class because it owns compiled programs, one for each number of steps that is scanned at once.
    `step` is (state, key, data) -> (state, metrics); `vmap_seeds` maps state and key over a leading axis
    of seeds.
    """

    def __init__(self, step: Callable, *, vmap_seeds: bool = False):
        self._step = step
        self.vmap_seeds = vmap_seeds
        self._programs = {}
        self.seconds_compile = 0.0

    def run(self, state, key, data, count) -> Iterator[tuple[Any, Any, int]]:
        """Takes `count` steps. Yields (state, metrics with a leading axis of steps, steps in it)."""
        if scans():
            yield *self._call(count, state, key, data), count
            return
        for _ in range(count):
            state, metrics = self._call(1, state, key, data)
            yield state, metrics, 1

    def _call(self, count, state, key, data):
        if count not in self._programs:
            if scans():
                function = _several(self._step, count)
            else:
                function = lambda *arguments: _with_axis(self._step(*arguments))  # noqa: E731
            if self.vmap_seeds:
                function = jax.vmap(function, in_axes=(0, 0, None))
            self._programs[count], seconds = compiled(function, state, key, data)
            self.seconds_compile += seconds
        return jax.block_until_ready(self._programs[count](state, key, data))


def _with_axis(result):
    state, metrics = result
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)
