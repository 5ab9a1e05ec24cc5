"""What a DeepAA search has of its own: its proxy network, its data points, its layers.

The proxy is a network trained by `train_run` in RUN/proxy, or in a folder that is given; the search reads its
last checkpoint. Or its weights are pretrained ones. A search that was killed goes on inside its proxy or its
layer, to the same bytes.

`start`, `proceed`, `Steps`, `plain_steps`, `total_steps`, `next_stop`, `report`, and `proxy_contents` as
`contents`: those of `method.Method`.
"""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada import augment, policies
from dada.augment import image_keys
from dada.searches import deepaa
from dada.searches.deepaa import config as deepaa_config
from dada.training import policy_training, sgd
from experiments.methods import search_loop, search_run
from experiments.runs import compiled_loop, contents, devices, run_folder, train_run

_CHECKPOINT_STEPS = 16
_TEST_BATCH = 500
# Weight of a batch in the running statistics of the proxy, whose inference mode the search looks at.
_BATCH_NORM_MOMENTUM = 0.1


class Proxy(NamedTuple):
    """How the proxy network comes about."""

    folder: pathlib.Path | None  # of a finished training; None trains one in RUN/proxy
    images: sgd.Batch  # to train it on, never searched on
    num_epochs: int
    batch_size: int
    settings: dict[str, Any]  # of policy_training.Config


class Plan(NamedTuple):
    """What the flags say of DeepAA besides the search's Config."""

    num_points: int  # D
    model_name: str
    proxy: Proxy


class ClassTable(NamedTuple):
    """Where the images of each class are."""

    index: jax.Array  # int32 [C, most images of a class]
    count: jax.Array  # int32 [C]


def class_table(labels: np.ndarray, num_classes: int) -> ClassTable:
    """Lists the images of each class; rows are filled up with 0."""
    members = [np.flatnonzero(labels == label) for label in range(num_classes)]
    index = np.zeros((num_classes, max(map(len, members))), np.int32)
    for row, places in zip(index, members):
        row[: len(places)] = places
    return ClassTable(jnp.asarray(index), jnp.asarray([len(places) for places in members], jnp.int32))


@functools.partial(jax.jit, static_argnames=("num_points", "num_valid", "layer_steps"))
def batches(
    key: jax.Array,
    data: search_loop.Data,
    tables: tuple[ClassTable, ClassTable],
    step: jax.Array,
    *,
    num_points: int,
    num_valid: int,
    kept: jax.Array | None = None,
    layer_steps: int = 1,
) -> search_loop.Data:
    """Data points of a step, a pure function of the step: uniform classes, distinct clean images.

    Args:
      key: typed key of the stream.
      data: images to augment, and clean images.
      tables: of both.
      step: int [].
      num_points: D.
      num_valid: V.
      kept: bool [N], the clean images that the last third of a layer chooses from, as any layer may turn out
        to be the last one; None for all.
      layer_steps: updates of a layer.

    Returns:
      Data with train of [D] images and valid of [D, V] images.
    """
    class_key, image_key, valid_key = jax.random.split(jax.random.fold_in(key, step), 3)
    label = jax.random.randint(class_key, (num_points,), 0, tables[0].count.shape[0])

    def choose(key, table, number, allowed=None):
        """`number` distinct images of each label, [D, number]."""
        size = table.index.shape[1]
        noise = jax.random.uniform(key, (num_points, size))
        can_be = jnp.arange(size) < table.count[label][:, None]
        if allowed is not None:
            can_be &= allowed[table.index[label]]
        noise = jnp.where(can_be, noise, -1.0)
        return jnp.take_along_axis(table.index[label], jax.lax.top_k(noise, number)[1], axis=1)

    allowed = None
    if kept is not None:
        allowed = kept | ~search_loop.in_last_third(step % layer_steps, layer_steps)
    shown = choose(image_key, tables[0], 1)[:, 0]
    clean = choose(valid_key, tables[1], num_valid, allowed)
    return search_loop.Data(
        *(sgd.Batch(half.images[at], half.labels[at]) for half, at in zip(data, (shown, clean)))
    )


def _train_proxy(task, seed, folder):
    """Trains the proxy in its folder, or goes on with it; returns its path."""
    network, network_config = task.model
    proxy = task.plan.proxy
    flags = {"model": task.plan.model_name, "dataset": task.dataset.name, "seed": seed, "policy": "none"}
    flags |= {"epochs": proxy.num_epochs, "batch_size": proxy.batch_size, **proxy.settings}
    flags |= {"proxy_images": len(proxy.images.labels)}
    path = folder.path / "proxy"
    proxy_folder = run_folder.create(path, flags, resume=(path / "flags.txt").exists())
    steps_per_epoch = len(proxy.images.labels) // proxy.batch_size
    config = policy_training.Config(
        apply=functools.partial(network.apply, batch_norm_momentum=_BATCH_NORM_MOMENTUM),
        policy=policies.identity(),
        steps_per_epoch=steps_per_epoch,
        num_epochs=proxy.num_epochs,
        mean=task.config.mean,
        std=task.config.std,
        **proxy.settings,
    )
    if not proxy_folder.is_finished:
        images, labels = proxy.images
        data = train_run.Data(np.asarray(images), labels, task.dataset.test_images, task.dataset.test_labels)
        sizes = {"batch_size": proxy.batch_size, "eval_batch_size": _TEST_BATCH}
        data = devices.replicate(jax.tree.map(jnp.asarray, data), task.mesh)
        model = (network, network_config)
        proxy_task = train_run.Task(config, model, data, recipe=flags, mesh=task.mesh, **sizes)
        list(train_run.run(proxy_task, {seed: proxy_folder}))
        proxy_folder.finish()
    return path


def _trained(task, path):
    """Parameters and running statistics that a training has left."""
    network, network_config = task.model
    shapes = jax.eval_shape(lambda: sgd.init(*network.init(jax.random.key(0), network_config)))
    trained = run_folder.RunFolder(path).restore(shapes)
    return trained.params, trained.batch_stats


def proxy_contents(task: Any) -> dict[str, str | None]:
    """The weights of a proxy that was given."""
    path = task.plan.proxy.folder
    return {"proxy": path and contents.of_weights(_trained(task, path))}


def start(
    task: Any, seed: int, folder: run_folder.RunFolder, done: int
) -> tuple[deepaa.SearchState, jax.Array]:
    """A state with the layers that a run has after some steps, and the data key; trains the proxy first."""
    weights = task.pretrained
    if not weights[0]:
        weights = _trained(task, task.plan.proxy.folder or _train_proxy(task, seed, folder))
    search_key, data_key = jax.random.split(jax.random.key(seed))
    state = deepaa.init(search_key, task.config, *weights)
    for _ in range(-(-done // task.config.updates_per_layer) - 1):
        state = deepaa.next_layer(task.config, state)
    return state, data_key


def total_steps(config: deepaa.Config) -> int:
    """Updates of all layers."""
    return config.num_layers * config.updates_per_layer


def next_stop(config: deepaa.Config, done: int) -> int:
    """The next checkpoint: every few updates, and at the end of a layer."""
    return min(done - done % size + size for size in (_CHECKPOINT_STEPS, config.updates_per_layer))


def proceed(task: Any, state: deepaa.SearchState, done: int) -> deepaa.SearchState | None:
    """A new layer after the last update of one, None if that one was the last."""
    if done == 0 or done % task.config.updates_per_layer:
        return state
    finished = devices.local(state, task.mesh)
    if deepaa.is_done(task.config, finished):
        return None
    return devices.replicate(deepaa.next_layer(task.config, finished), task.mesh)


class Steps:
    """Updates one by one: their programs change with every layer, and on a CPU are called from Python.

    A class because it owns the compiled step.
    """

    seconds_compile = None  # every layer compiles in its first update

    def __init__(self, task: Any, is_vmapped: bool):
        del is_vmapped
        labels, num_classes = [np.asarray(part.labels) for part in task.data], task.dataset.num_classes
        # Data points are of the classes that have clean images.
        tables = [class_table(of_part, num_classes) for of_part in labels]
        tables = jax.tree.map(lambda leaf: leaf[np.unique(labels[1])], tables)
        self._batches = functools.partial(
            batches,
            tables=devices.replicate(tables, task.mesh),
            num_points=task.plan.num_points,
            num_valid=task.sizes[1],
            kept=task.judge and np.isin(np.arange(len(task.data.valid.labels)), task.judge.kept),
            layer_steps=task.config.updates_per_layer,
        )
        step = functools.partial(_step, task.config, devices.axis_name(task.mesh))
        step = devices.divided(step, task.mesh)
        self._step = jax.jit(step) if task.config.chunk_loop == "scan" else step

    def run(self, state, key, data, count) -> Iterator[tuple[Any, Any, int]]:
        """Takes `count` updates. Yields (state, metrics with a leading axis of one step, 1)."""
        for _ in range(count):
            points = self._batches(key, data, step=state.step)
            state, metrics = jax.block_until_ready(self._step(state, points))
            yield state, jax.tree.map(lambda leaf: leaf[None], metrics), 1


def _step(config, axis_name, state, points):
    """The step on the data points, or on this device's part of them."""
    return deepaa.step(config, state, *image_keys.own_part(points, axis_name), axis_name=axis_name)


def plain_steps(task: Any, is_vmapped: bool) -> compiled_loop.CompiledLoop:
    """Training steps of the proxy's network, on its first batch."""
    axis_name, proxy = devices.axis_name(task.mesh), task.plan.proxy
    batch = jax.tree.map(lambda leaf: jnp.asarray(leaf[: proxy.batch_size]), proxy.images)

    def step(state, key, data):
        del key, data
        images, labels = image_keys.own_part(batch, axis_name)
        images = augment.normalize(images, task.config.mean, task.config.std)
        train, metrics = sgd.train_step(
            task.config.apply,
            sgd.init(state.params, state.batch_stats),
            images,
            labels,
            proxy.settings["learning_rate"],
            weight_decay=proxy.settings["weight_decay"],
            axis_name=axis_name,
        )
        return state._replace(params=train.params, batch_stats=train.batch_stats), metrics

    return compiled_loop.CompiledLoop(step, vmap_seeds=is_vmapped, mesh=task.mesh)


def _test_accuracy(task, state):
    """Of the proxy: of pretrained weights it says whether their classes are those of the data set."""
    labels = task.dataset.test_labels
    test = jax.jit(policy_training.evaluate, static_argnums=(0, 4))
    images = np.asarray(task.dataset.test_images)
    result = test(task.config, state, images, labels, _TEST_BATCH)
    return int(result["num_right"]) / len(labels)


def report(
    task: Any,
    folder: run_folder.RunFolder,
    lines: list[dict[str, Any]],
    state: deepaa.SearchState,
    policy: policies.Policy,
) -> dict[str, Any]:
    """The layers, the proxy, and in place of the whole run's the lead of planted ops in the first layer."""
    config = task.config
    names = [row.name for row in config.space.rows]
    layers = policies.layer_shares(policy)
    probability = np.maximum(policy.content.probability, 1e-30)
    row, _ = deepaa_config.actions(config)
    start = jax.ops.segment_sum(jax.nn.softmax(deepaa_config.initial_logits(config)), row, len(names))
    if task.pretrained[0]:
        proxy = {"test_accuracy": _test_accuracy(task, state), "seconds": 0.0}
    else:
        proxy = run_folder.read_metrics(task.plan.proxy.folder or folder.path / "proxy")[-1]
    summary = {
        "layers": [dict(zip(names, layer.tolist())) for layer in layers],
        "perplexity": np.exp(-np.sum(probability * np.log(probability), axis=1)),
        "op_mass": policies.op_mass(policy),
        "op_mass_initial": dict(zip(names, (len(layers) * np.asarray(start)).tolist())),
        "proxy_accuracy": proxy["test_accuracy"],
        "seconds_proxy": proxy["seconds"],
    }
    if task.planted:
        summary["planted"] = search_run.found_again(task, lines[: config.updates_per_layer], policy)
    return summary
