"""Runs search steps over a data set that lies on the device.

On an accelerator an epoch is one `lax.scan`. On a CPU the same step is called from a Python loop, because
XLA:CPU runs convolution gradients inside any loop 35 to 100 times slower than outside.
"""

import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada import augment, dada_config, dada_search, op_table, train_state


class Data(NamedTuple):
    """Both halves of the search data, images uint8 [N, H, W, 3] and labels int32 [N], on the device."""

    train: dada_search.Batch
    valid: dada_search.Batch


def to_device(dataset: Any, train_indices: np.ndarray, valid_indices: np.ndarray) -> Data:
    """The two halves of a data set's training images, on the device."""

    def half(indices):
        return dada_search.Batch(
            jnp.asarray(dataset.train_images[indices]), jnp.asarray(dataset.train_labels[indices])
        )

    return Data(half(train_indices), half(valid_indices))


@functools.partial(jax.jit, static_argnums=0)
def plant(name: str, value: float, images: jax.Array) -> jax.Array:
    """Applies one op at one physical value to all images, uint8 [N, H, W, 3]; a cutout at the centre."""
    center = jnp.asarray(images.shape[1:3], jnp.float32) / 2.0

    def one(image):
        planted = op_table.apply_op(name, image.astype(jnp.float32) / 255.0, value, center)
        return jnp.round(planted * 255.0).astype(jnp.uint8)

    return jax.lax.map(one, images, batch_size=256)


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Batches in an epoch; the last one is filled up with the first images of the epoch's order."""
    return -(-num_images // batch_size)


def _batch(key: jax.Array, data: dada_search.Batch, step: jax.Array, size: int) -> dada_search.Batch:
    """Batch `step` of an endless stream in which every pass has a new random order."""
    count = data.labels.shape[0]
    per_pass = steps_per_epoch(count, size)
    order = jax.random.permutation(jax.random.fold_in(key, step // per_pass), count)
    indices = order[((step % per_pass) * size + jnp.arange(size)) % count]
    return dada_search.Batch(data.images[indices], data.labels[indices])


def batches(
    config: dada_config.Config, key: jax.Array, data: Data, step: jax.Array, sizes: tuple[int, int]
) -> Data:
    """Training and validation batch of a step, a pure function of the step.

    The official preset validates on the first images of the validation half in every step.
    """
    train_key, valid_key = jax.random.split(key)
    train = _batch(train_key, data.train, step, sizes[0])
    if config.preset == "official":
        return Data(train, jax.tree.map(lambda leaf: leaf[: sizes[1]], data.valid))
    return Data(train, _batch(valid_key, data.valid, step, sizes[1]))


def search_step(config, sizes, state, key, data):
    """`dada_search.step` on the batches of the state's own step count."""
    return dada_search.step(config, state, *batches(config, key, data, state.train.step, sizes))


def plain_step(config, sizes, state, key, data):
    """The yardstick: one plain training step of the same network on the same batch."""
    batch = batches(config, key, data, state.train.step, sizes).train
    train, metrics = train_state.train_step(
        config.apply,
        state.train,
        augment.normalize(batch.images, config.mean, config.std),
        batch.labels,
        dada_config.learning_rate(config, state.train.step),
        weight_decay=config.weight_decay,
        momentum_decay=config.momentum_decay,
        clip_norm=config.clip_norm,
    )
    return state._replace(train=train), metrics


def scans() -> bool:
    """Whether steps are scanned on the device: not on CPU."""
    return jax.default_backend() != "cpu"


def _several(step: Callable, count: int) -> Callable:
    """`count` steps as one function, with metrics stacked along the first axis."""

    def run(state, key, data):
        return jax.lax.scan(lambda state, _: step(state, key, data), state, length=count)

    return run


class CompiledLoop:
    """Compiled steps of one search, and the seconds that compiling took.

    A class because it owns compiled programs, one for each number of steps that is scanned at once.
    `vmap_seeds` maps state and key over a leading axis of seeds.
    """

    def __init__(self, step, config, sizes, vmap_seeds=False):
        self._step = functools.partial(step, config, sizes)
        self._vmap_seeds = vmap_seeds
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
            if self._vmap_seeds:
                function = jax.vmap(function, in_axes=(0, 0, None))
            start = time.perf_counter()
            self._programs[count] = jax.jit(function).lower(state, key, data).compile()
            self.seconds_compile += time.perf_counter() - start
        return jax.block_until_ready(self._programs[count](state, key, data))


def _with_axis(result):
    state, metrics = result
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)


def plain_step_ratio(config, sizes, search, state, key, data, rounds: int = 3) -> float:
    """Seconds of a search step over those of a plain training step, alternating, median of `rounds`.

    Args:
      search: the CompiledLoop of the search itself.
      rounds: each round times one search step and two plain steps (on an accelerator, scans of them).
    """
    count = config.steps_per_epoch if scans() else 1
    plain = CompiledLoop(plain_step, config, sizes, vmap_seeds=search._vmap_seeds)
    seconds = {search: [], plain: []}
    for program, repeats in ((search, 0), (plain, 0), *((search, 1), (plain, 2)) * rounds):
        if not repeats:  # compile, and touch all memory once
            list(program.run(state, key, data, count))
            continue
        start = time.perf_counter()
        for _ in range(repeats):
            list(program.run(state, key, data, count))
        seconds[program].append((time.perf_counter() - start) / repeats)
    return statistics.median(seconds[search]) / statistics.median(seconds[plain])
