"""Runs steps over a data set that lies on the device.

On an accelerator an epoch is one `lax.scan`. On a CPU the same step is called from a Python loop, because
XLA:CPU runs convolution gradients inside any loop 35 to 100 times slower than outside.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from experiments.runs import compiled_parts, devices


def scans() -> bool:
    """Whether steps are scanned on the device: not on CPU."""
    return jax.default_backend() != "cpu"


def shuffled_indices(
    key: jax.Array, step: jax.Array, count: int, size: int, steps_per_pass: int
) -> jax.Array:
    """Images, int32 [size], of batch `step` of an endless stream in which every pass has a new random order.

    A pass has `steps_per_pass` batches; what they need beyond `count` images is taken from the pass's start.
    """
    order = shuffled(key, step // steps_per_pass, count)
    return order[((step % steps_per_pass) * size + jnp.arange(size)) % count]


def shuffled(key: jax.Array, number: int | jax.Array, count: int) -> jax.Array:
    """The order of all images, int32 [count], in pass `number` of such a stream."""
    return jax.random.permutation(jax.random.fold_in(key, number), count)


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, float]:
    """Compiles a function for the given arguments; returns it and the seconds that this took."""
    start = time.perf_counter()
    program = compiled_parts.compiled(function, *arguments)
    return program, time.perf_counter() - start


class Program:
    """A function that is compiled at its first call, for arguments of the same shapes at all calls.

    A class because it owns a compiled program, and the seconds that compiling took, 0 before.
    """

    def __init__(self, function: Callable):
        self._function = function
        self._program = None
        self.seconds_compile = 0.0

    def __call__(self, *arguments: Any) -> Any:
        if self._program is None:
            self._program, self.seconds_compile = compiled(self._function, *arguments)
        return jax.block_until_ready(self._program(*arguments))


class CompiledLoop:
    """Compiled steps of all runs of one task, and the seconds that compiling took.

    A class because it owns compiled programs, one for each number of steps that is scanned at once. `step` is
    (state, key, data) -> (state, metrics); `vmap_seeds` maps state and key over a leading axis of seeds. With
    a mesh every device takes the step, on its own part of the batch, from replicated arguments (`devices`).
    """

    def __init__(self, step: Callable, *, vmap_seeds: bool = False, mesh: jax.sharding.Mesh | None = None):
        self._step = step
        self.vmap_seeds = vmap_seeds
        self._mesh = mesh
        self._programs = {}

    @property
    def seconds_compile(self) -> float:
        """Seconds that compiling took so far."""
        return sum(program.seconds_compile for program in self._programs.values())

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

            def steps(state, key, data):
                if scans():
                    return jax.lax.scan(lambda state, _: self._step(state, key, data), state, length=count)
                state, metrics = self._step(state, key, data)
                return state, jax.tree.map(lambda leaf: leaf[None], metrics)

            function = jax.vmap(steps, in_axes=(0, 0, None)) if self.vmap_seeds else steps
            self._programs[count] = Program(devices.divided(function, self._mesh))
        return self._programs[count](state, key, data)
