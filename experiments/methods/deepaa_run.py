"""One DeepAA search: its proxy network, its layers, and what they leave in the run folder.

The proxy is a network trained by `train_run` in RUN/proxy, or in a folder that is given; the search reads its
last checkpoint. A search that was killed goes on inside its proxy or its layer, to the same bytes.
"""

import functools
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dada import augment, policies
from dada.augment import image_keys
from dada.searches.deepaa import config as deepaa_config
from dada.searches.deepaa import search as deepaa_search
from dada.training import policy_training, sgd
from experiments.figures import deepaa_figures
from experiments.methods import search_loop, search_run
from experiments.runs import command_line, devices, run_folder, train_run

_CHECKPOINT_STEPS = 16
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
    for row, own in zip(index, members):
        row[: len(own)] = own
    return ClassTable(jnp.asarray(index), jnp.asarray([len(own) for own in members], jnp.int32))


@functools.partial(jax.jit, static_argnames=("num_points", "num_valid"))
def batches(
    key: jax.Array,
    data: search_loop.Data,
    tables: tuple[ClassTable, ClassTable],
    step: jax.Array,
    *,
    num_points: int,
    num_valid: int,
) -> search_loop.Data:
    """Data points of a step, a pure function of the step: uniform classes, distinct clean images.

    Args:
      key: typed key of the stream.
      data: images to augment, and clean images.
      tables: of both.
      step: int [].
      num_points: D.
      num_valid: V.

    Returns:
      Data with train of [D] images and valid of [D, V] images.
    """
    class_key, image_key, valid_key = jax.random.split(jax.random.fold_in(key, step), 3)
    label = jax.random.randint(class_key, (num_points,), 0, tables[0].count.shape[0])

    def choose(key, table, number):
        """`number` distinct images of each label, [D, number]."""
        size = table.index.shape[1]
        noise = jax.random.uniform(key, (num_points, size))
        noise = jnp.where(jnp.arange(size) < table.count[label][:, None], noise, -1.0)
        return jnp.take_along_axis(table.index[label], jax.lax.top_k(noise, number)[1], axis=1)

    shown = choose(image_key, tables[0], 1)[:, 0]
    clean = choose(valid_key, tables[1], num_valid)
    return search_loop.Data(
        *(sgd.Batch(half.images[at], half.labels[at]) for half, at in zip(data, (shown, clean)))
    )


def run(
    plan: Plan, task: Any, folders: dict[int, run_folder.RunFolder]
) -> Iterator[tuple[int, policies.Policy]]:
    """Searches with all given seeds, one after the other, and fills their folders.

    Args:
      plan: what only DeepAA needs.
      task: search_run.Task.
      folders: by seed; with checkpoints, the runs go on from the last one.

    Yields:
      (seed, policy), of several processes in the first one only.

    Raises:
      command_line.Interrupted: the cosine of a step is not finite.
    """
    for seed, folder in folders.items():
        found = _run_one(plan, task, seed, folder)
        if devices.is_primary():
            yield seed, found


def _train_proxy(plan, task, seed, folder):
    """Trains the proxy in its folder, or goes on with it; returns nothing if it is finished."""
    network, network_config = task.model
    proxy = plan.proxy
    flags = {"model": plan.model_name, "dataset": task.dataset.name, "seed": seed, "policy": "none"}
    flags |= {"epochs": proxy.num_epochs, "batch_size": proxy.batch_size, **proxy.settings}
    flags |= {"proxy_images": len(proxy.images.labels)}
    path = folder.path / "proxy"
    own = run_folder.create(path, flags, resume=(path / "flags.txt").exists())
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
    if (own.latest_step() or 0) < steps_per_epoch * proxy.num_epochs:
        data = train_run.Data(*proxy.images, task.dataset.test_images, task.dataset.test_labels)
        sizes = {"batch_size": proxy.batch_size, "eval_batch_size": 500}
        data = devices.replicate(jax.tree.map(jnp.asarray, data), task.mesh)
        model = (network, network_config)
        proxy_task = train_run.Task(config, model, data, recipe=flags, mesh=task.mesh, **sizes)
        list(train_run.run(proxy_task, {seed: own}))
    return path


def _network(plan, task, seed, folder):
    """Params and running statistics of the proxy, and its folder."""
    path = plan.proxy.folder or _train_proxy(plan, task, seed, folder)
    network, network_config = task.model
    start = jax.eval_shape(lambda: sgd.init(*network.init(jax.random.key(0), network_config)))
    trained = run_folder.RunFolder(path).restore(start)
    return trained.params, trained.batch_stats, path


def _start(config, key, params, batch_stats, num_layers):
    state = deepaa_search.init(key, config, params, batch_stats)
    for _ in range(num_layers - 1):
        state = deepaa_search.next_layer(config, state)
    return state


def _run_one(plan, task, seed, folder):
    config = task.config
    start_time = time.perf_counter()
    params, batch_stats, proxy_path = _network(plan, task, seed, folder)
    seconds_proxy = time.perf_counter() - start_time
    search_key, data_key = jax.random.split(jax.random.key(seed))
    done = folder.latest_step() or 0
    num_layers = max(1, -(-done // config.updates_per_layer))
    state = _start(config, search_key, params, batch_stats, num_layers)
    if done:
        state = folder.restore(state, done)
    state, data_key = devices.replicate((state, data_key), task.mesh)
    folder.clean(done)
    lines = run_folder.read_metrics(folder.path)
    seconds = lines[-1]["seconds"] if lines else 0.0

    num_classes = task.dataset.num_classes
    tables = tuple(class_table(np.asarray(half.labels), num_classes) for half in task.data)
    tables = devices.replicate(tables, task.mesh)
    sizes = {"num_points": plan.num_points, "num_valid": task.sizes[1]}
    step = devices.divided(functools.partial(_step, config, devices.axis_name(task.mesh)), task.mesh)
    if config.chunk_loop == "scan":
        step = jax.jit(step)

    def search_step(state):
        return jax.block_until_ready(step(state, batches(data_key, task.data, tables, state.step, **sizes)))

    total = min(config.num_layers * config.updates_per_layer, task.max_steps or np.inf)
    quiet = not devices.is_primary()
    with tqdm.tqdm(total=int(total), initial=done, unit="step", dynamic_ncols=True, disable=quiet) as bar:
        while done < total:
            if done and done % config.updates_per_layer == 0:
                finished = devices.local(state, task.mesh)
                if deepaa_search.is_done(config, finished):
                    break
                state = devices.replicate(deepaa_search.next_layer(config, finished), task.mesh)
            start_time = time.perf_counter()
            state, metrics = search_step(state)
            seconds += time.perf_counter() - start_time
            done += 1
            metrics = jax.tree.map(np.asarray, metrics)
            folder.log(done, {"seconds": round(seconds, 3), **metrics})
            if not np.isfinite(metrics["cosine"]):
                raise command_line.Interrupted(
                    f"the cosine of seed {seed} is not finite at step {done}; the run so far is in "
                    f"{folder.path}"
                )
            bar.update()
            bar.set_postfix_str(_progress(config, metrics))
            if done % _CHECKPOINT_STEPS == 0 or done % config.updates_per_layer == 0 or done == total:
                folder.save(done, state)

    ratio = _plain_step_ratio(plan, task, state, search_step)
    if not devices.is_primary():
        return None
    state = devices.local(state, task.mesh)
    found = deepaa_search.extract_policy(
        config,
        state,
        seed=seed,
        data_set=pathlib.Path(task.dataset.name).stem,
        source="found by this project's search",
    )
    policies.save(folder.policy_path, found)
    timing = {
        "seconds_run": seconds,
        "seconds_proxy": seconds_proxy,
        "plain_step_ratio": ratio,
        "seeds_at_once": 1,
    }
    accuracy = run_folder.read_metrics(proxy_path)[-1]["test_accuracy"]
    folder.write_summary({**_summary(task, folder, state, found), "proxy_accuracy": accuracy, **timing})
    deepaa_figures.draw_run(folder.path)
    return found


def _step(config, axis_name, state, points):
    """The step on the data points, or on this device's part of them."""
    return deepaa_search.step(config, state, *image_keys.own_part(points, axis_name), axis_name=axis_name)


def _plain_step_ratio(plan, task, state, search_step, rounds=3):
    """Seconds of an update of the last layer over those of a training step of the same network, medians."""
    batch = jax.tree.map(lambda leaf: leaf[: plan.proxy.batch_size], plan.proxy.images)
    inputs = augment.normalize(jnp.asarray(batch.images), task.config.mean, task.config.std)
    batch = devices.replicate((inputs, jnp.asarray(batch.labels)), task.mesh)
    axis_name = devices.axis_name(task.mesh)

    def plain_step(train, batch):
        return sgd.train_step(
            task.config.apply,
            train,
            *image_keys.own_part(batch, axis_name),
            0.1,
            weight_decay=5e-4,
            axis_name=axis_name,
        )

    plain = jax.jit(devices.divided(plain_step, task.mesh))
    train = sgd.init(state.params, state.batch_stats)
    programs = (
        lambda: search_step(state),
        lambda: jax.block_until_ready(plain(train, batch)),
    )
    seconds = ([], [])
    for count in range(rounds + 1):
        for program, times in zip(programs, seconds):
            start_time = time.perf_counter()
            program()
            if count:  # the first round compiles
                times.append(time.perf_counter() - start_time)
    return statistics.median(seconds[0]) / statistics.median(seconds[1])


def _progress(config, metrics):
    leading = np.argsort(-metrics["op_mass"], kind="stable")[:3]
    ops = " ".join(f"{config.space.rows[i].name} {metrics['op_mass'][i]:.2f}" for i in leading)
    return f"layer {metrics['layer']} cosine {metrics['cosine']:.3f} entropy {metrics['entropy']:.2f} {ops}"


def _summary(task, folder, state, found):
    """What a finished search reports, besides its timing."""
    config = task.config
    names = [row.name for row in config.space.rows]
    lines = run_folder.read_metrics(folder.path)
    layers = deepaa_figures.shares(found)
    probability = np.maximum(found.content.probability, 1e-30)
    row, _ = deepaa_config.actions(config)
    start = jax.ops.segment_sum(jax.nn.softmax(deepaa_config.initial_logits(config)), row, len(names))
    mass = policies.op_mass(found)
    summary = {
        "steps": len(lines),
        "layers": [dict(zip(names, layer.tolist())) for layer in layers],
        "perplexity": np.exp(-np.sum(probability * np.log(probability), axis=1)),
        "op_mass": mass,
        "op_mass_policy_file": mass,
        "op_mass_initial": dict(zip(names, (len(layers) * np.asarray(start)).tolist())),
    }
    if task.planted:
        name, value = task.planted
        first = lines[: config.updates_per_layer]  # the first layer
        summary["planted"] = {"op": name, "value": value, **search_run.lead(first, names.index(name))}
    return summary
