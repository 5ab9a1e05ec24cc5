"""Runs steps over training images that stay on the host, in the order of `compiled_loop`, of one seed.

Every step is called from Python, also on an accelerator, and finds its batch on the device if the host is
quick enough. Devices and processes share the decoding: each gets its own part of a batch.
"""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from experiments.data import host_images, stream
from experiments.runs import compiled_loop, devices


class StreamedLoop:
    """Compiled steps, as of `compiled_loop.CompiledLoop`, and the seconds that they waited for batches.

    `step` is (state, key, (resident, batch)) -> (state, metrics); with a mesh, every device takes it on its
    part of the batch, and all else whole.
    """

    def __init__(self, step: Callable, mesh: jax.sharding.Mesh | None):
        def one_step(state, key, data):
            state, metrics = step(state, key, data)
            return state, jax.tree.map(lambda leaf: leaf[None], metrics)

        specs = devices.WHOLE, devices.WHOLE, (devices.WHOLE, devices.DIVIDED)
        self._program = compiled_loop.Program(devices.divided(one_step, mesh, specs))
        self.seconds_waited = 0.0

    @property
    def seconds_compile(self) -> float:
        """Seconds that compiling took."""
        return self._program.seconds_compile

    def run(self, state, key, data, count) -> Iterator[tuple[Any, Any, int]]:
        """Takes `count` steps on `data`, (resident, iterator over batches); yields as `CompiledLoop.run`."""
        resident, batches = data
        for _ in range(count):
            start = time.perf_counter()
            batch = next(batches)
            self.seconds_waited += time.perf_counter() - start
            state, metrics = self._program(state, key, (resident, batch))
            yield state, metrics, 1


@contextlib.contextmanager
def open_batches(
    images: host_images.Images,
    labels: np.ndarray,
    *,
    seed: int,
    order_key: jax.Array,
    steps: range,
    size: int,
    steps_per_pass: int,
    mesh: jax.sharding.Mesh | None,
    threads: int | None,
    changes: Callable[[int, np.ndarray], Sequence[host_images.Change]] | None = None,
) -> Iterator[Iterator[tuple[jax.Array, jax.Array]]]:
    """Gives an iterator over the batches of some steps, (images, labels) divided over the devices.

    They are those of `compiled_loop.shuffled_indices(order_key, step, len(labels), size, steps_per_pass)`;
    the rest is as of `stream.batches`.
    """

    @functools.lru_cache(maxsize=1)
    def order(number):
        return np.asarray(compiled_loop.shuffled(order_key, number, len(labels)))

    own = np.arange(size)[devices.own_rows(size, mesh)]

    def indices(step):
        number, position = divmod(step, steps_per_pass)
        return number, order(number)[(position * size + own) % len(labels)]

    to_device = functools.partial(devices.divide, mesh=mesh)
    batches = stream.batches(images, labels, seed, indices, steps, to_device, threads, changes)
    with contextlib.closing(batches):
        yield batches
