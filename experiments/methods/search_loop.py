"""Steps of DADA and DDAS on the two halves of a data set, and plain training steps.

Both halves lie on the device, or the training half is streamed from the host (`streamed_loop`).
`start`, `steps`, `plain_steps`, `total_steps`, `next_stop` and `proceed` are those of `method.Method`.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dada import augment
from dada.augment import image_keys
from dada.training import sgd
from experiments.data import datasets, host_images
from experiments.runs import compiled_loop, devices, streamed_loop


class Data(NamedTuple):
    """Both halves of the search data, on the device.

    A training half that is streamed has `host_images.Images` and labels on the host.
    """

    train: sgd.Batch
    valid: sgd.Batch

    @property
    def is_streamed(self) -> bool:
        """Whether training images come from the host."""
        return isinstance(self.train.images, host_images.Images)


def to_device(train: sgd.Batch, valid: sgd.Batch) -> Data:
    """Both halves, from the host; what is streamed stays there."""
    valid = jax.tree.map(jnp.asarray, valid)
    if isinstance(train.images, host_images.Images):
        return Data(train, valid)
    return Data(jax.tree.map(jnp.asarray, train), valid)


def replicate(data: Data, mesh: jax.sharding.Mesh | None) -> Data:
    """The same on all devices."""
    if data.is_streamed:
        return data._replace(valid=devices.replicate(data.valid, mesh))
    return devices.replicate(data, mesh)


def largest_batches(train: sgd.Batch, valid: sgd.Batch) -> dict[str, tuple[int, str]]:
    """`Method.largest_batches`: a step has no image twice."""
    counts = {"batch_size": len(train.labels), "valid_batch_size": len(valid.labels)}
    return {flag: (count, f"the search has only {count} such images") for flag, count in counts.items()}


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Batches in an epoch; the last one is filled up with the first images of the epoch's order."""
    return -(-num_images // batch_size)


def random_indices(key: jax.Array, step: jax.Array, count: int, size: int) -> jax.Array:
    """Batch `step` of an endless stream in which every pass has a new random order, int32 [size]."""
    return compiled_loop.shuffled_indices(key, step, count, size, steps_per_epoch(count, size))


def in_last_third(step: jax.Array, total: int) -> jax.Array:
    """Whether a step is one of the last third of all steps, rounded up."""
    return 3 * (step + 1) > 2 * total


def _kept_indices(valid_indices, kept, config, key, step, count, size):
    """`Method.valid_indices`, in the last third of the search among the places `kept` only."""
    among_kept = jnp.asarray(kept)[valid_indices(config, key, step, len(kept), size)]
    among_all = valid_indices(config, key, step, count, size)
    return jnp.where(in_last_third(step, total_steps(config)), among_kept, among_all)


def batches(
    method: Any,
    config: Any,
    key: jax.Array,
    data: Data,
    step: jax.Array,
    sizes: tuple[int, int],
    axis_name: str | None = None,
) -> Data:
    """Training and validation batch of a step, or this device's part of them: a pure function of the step."""
    train_key, _ = jax.random.split(key)
    index = random_indices(train_key, step, data.train.labels.shape[0], sizes[0])
    train = datasets.part_of(data.train, image_keys.own_part(index, axis_name))
    return Data(train, _valid_batch(method, config, key, data.valid, step, sizes[1], axis_name))


def _valid_batch(method, config, key, valid, step, size, axis_name):
    """The validation batch of a step, or this device's part of it."""
    _, valid_key = jax.random.split(key)
    index = method.valid_indices(config, valid_key, step, valid.labels.shape[0], size)
    return datasets.part_of(valid, image_keys.own_part(index, axis_name))


def search_step(method, config, sizes, state, key, data, axis_name=None):
    """The step of a method on the batches of the state's own step count."""
    both = batches(method, config, key, data, state.train.step, sizes, axis_name)
    return method.library.step(config, state, *both, axis_name=axis_name)


def streamed_search_step(method, config, sizes, state, key, data, axis_name=None):
    """The same where `data` are the validation half and the training batch, or this device's part of it."""
    valid, train = data
    valid = _valid_batch(method, config, key, valid, state.train.step, sizes[1], axis_name)
    return method.library.step(config, state, sgd.Batch(*train), valid, axis_name=axis_name)


def plain_step(method, config, sizes, state, key, data, axis_name=None):
    """The yardstick: one plain training step of the same network on the same batch."""
    batch = batches(method, config, key, data, state.train.step, sizes, axis_name).train
    train, metrics = sgd.train_step(
        config.apply,
        state.train,
        augment.map_images(lambda images: augment.normalize(images, config.mean, config.std), batch.images),
        batch.labels,
        method.learning_rate(config, state.train.step),
        losses=config.losses,
        weight_decay=config.weight_decay,
        momentum_decay=config.momentum_decay,
        clip_norm=config.clip_norm,
        key=state.key,
        axis_name=axis_name,
    )
    return state._replace(train=train), metrics


def start(task: Any, seed: int, folder: Any, done: int) -> tuple[Any, jax.Array]:
    """State and data key of a seed."""
    del folder, done
    model_key, search_key, data_key = jax.random.split(jax.random.key(seed), 3)
    network, network_config = task.model
    drawn = network.init(model_key, network_config)
    params, batch_stats = (tree | given for tree, given in zip(drawn, task.pretrained))
    return task.method.library.init(search_key, task.config, params, batch_stats), data_key


def _programs(step, task, sizes, is_vmapped):
    method = task.method
    if task.judge:
        indices = functools.partial(_kept_indices, method.valid_indices, task.judge.kept)
        method = method._replace(valid_indices=indices)
    step = functools.partial(step, method, task.config, sizes, axis_name=devices.axis_name(task.mesh))
    if task.data.is_streamed:
        return streamed_loop.StreamedLoop(step, task.mesh)
    return compiled_loop.CompiledLoop(step, vmap_seeds=is_vmapped, mesh=task.mesh)


def steps(task: Any, is_vmapped: bool) -> compiled_loop.CompiledLoop | streamed_loop.StreamedLoop:
    """Programs of the search."""
    sizes = task.sizes[0] // task.copies, task.sizes[1]
    step = streamed_search_step if task.data.is_streamed else search_step
    return _programs(step, task, sizes, is_vmapped)


@contextlib.contextmanager
def open_data(task: Any, seed: int, key: jax.Array, steps: range) -> Iterator[Any]:
    """What `steps` takes these steps on; `key` is that of `start`."""
    if not task.data.is_streamed:
        yield task.data
        return
    train_key, _ = jax.random.split(key)
    size, (images, labels) = task.sizes[0] // task.copies, task.data.train
    with streamed_loop.open_batches(
        images,
        labels,
        seed=seed,
        order_key=train_key,
        steps=steps,
        size=size,
        steps_per_pass=steps_per_epoch(len(labels), size),
        mesh=task.mesh,
        threads=task.decode_threads,
    ) as batches:
        yield task.data.valid, batches


def plain_steps(task: Any, is_vmapped: bool) -> compiled_loop.CompiledLoop:
    """Programs of the yardstick."""
    return _programs(plain_step, task, task.sizes, is_vmapped)


def total_steps(config: Any) -> int:
    """Steps of a whole search."""
    return config.num_epochs * config.steps_per_epoch


def next_stop(config: Any, done: int) -> int:
    """The end of the epoch."""
    return done - done % config.steps_per_epoch + config.steps_per_epoch


def proceed(task: Any, state: Any, done: int) -> Any:
    """The state as it is."""
    del task, done
    return state
