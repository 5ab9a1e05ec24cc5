"""The search step on the two halves of a data set that lies on the device, and its cost in plain steps."""

import functools
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada import augment, dada_config, dada_search, op_table, train_state
from experiments import compiled_loop


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
    indices = compiled_loop.shuffled_indices(key, step, count, size, steps_per_epoch(count, size))
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
        key=state.key,
    )
    return state._replace(train=train), metrics


def plain_step_ratio(config, sizes, search, state, key, data, rounds: int = 3) -> float:
    """Seconds of a search step over those of a plain training step, alternating, median of `rounds`.

    Args:
      search: the compiled_loop.CompiledLoop of the search itself.
      rounds: each round times one search step and two plain steps (on an accelerator, scans of them).
    """
    count = config.steps_per_epoch if compiled_loop.scans() else 1
    plain = compiled_loop.CompiledLoop(
        functools.partial(plain_step, config, sizes), vmap_seeds=search.vmap_seeds
    )
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
