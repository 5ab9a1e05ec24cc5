"""One training from its first step to its summary: epochs, tests, metrics, checkpoints."""

import contextlib
import functools
import math
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from dada import policies
from dada.augment import image_keys
from dada.detection import average_precision, suppression
from dada.training import policy_training, sgd
from experiments.data import datasets, host_images, native_policy
from experiments.runs import command_line, compiled_loop, devices, run_folder, seeds, streamed_loop, tasks

# Top-5 errors are reported from so many classes on.
TOP_5_CLASSES = 100


class Data(NamedTuple):
    """A data set on all devices, as of `datasets.Dataset`; what is streamed on the host."""

    train_images: Any
    train_labels: jax.Array | np.ndarray
    test_images: Any
    test_labels: jax.Array


class Task(NamedTuple):
    """What to train, apart from the seed."""

    config: policy_training.Config
    model: tuple[Any, Any]  # from `tasks.network`
    data: Data
    batch_size: int
    eval_batch_size: int
    recipe: dict[str, Any]  # the flags that say what was trained, for the summary
    mesh: jax.sharding.Mesh | None  # the devices that share every batch, from `devices.mesh`
    label: str | None = None  # before the progress bar
    pretrained: tuple[Any, Any] = ({}, {})  # what takes the place of drawn parameters and statistics
    decode_threads: int | None = None  # of streamed images, see `stream.batches`
    native_policy: policies.Policy | None = None  # of streamed images, before the crop (`native_policy`)
    annotations: Any = None  # of the test images (`detection_datasets`); None tests a classifier
    ends_at_nan: bool = True  # at a loss that is not finite

    @property
    def is_streamed(self) -> bool:
        """Whether training images come from the host."""
        return isinstance(self.data.train_images, host_images.Images)

    @property
    def policy(self) -> policies.Policy:
        """The policy that is judged, wherever it is applied."""
        return self.native_policy or self.config.policy


def to_device(dataset: datasets.Dataset, mesh: jax.sharding.Mesh | None) -> Data:
    """The images and labels of a data set, on all devices but for what is streamed."""
    data = Data(*(getattr(dataset, name) for name in Data._fields))
    train, test = data[:2], devices.replicate(jax.tree.map(jnp.asarray, data[2:]), mesh)
    if not dataset.is_streamed:
        train = devices.replicate(jax.tree.map(jnp.asarray, train), mesh)
    return Data(*train, *test)


def train_step(config, batch_size, state, key, data, axis_name=None):
    """`policy_training.step` on the batch of the state's own step count; a pass drops its last part."""
    order_key, step_key = jax.random.split(key)
    index = compiled_loop.shuffled_indices(
        order_key, state.step, data.train_labels.shape[0], batch_size, config.steps_per_epoch
    )
    index = image_keys.own_part(index, axis_name)
    batch = jax.tree.map(lambda leaf: leaf[index], (data.train_images, data.train_labels))
    return policy_training.step(step_key, config, state, *batch, axis_name)


def streamed_step(config, state, key, data, axis_name=None):
    """The same on a batch from the host, `data` = (nothing, (images, labels)), or this device's part."""
    _, batch = data
    _, step_key = jax.random.split(key)
    return policy_training.step(step_key, config, state, *batch, axis_name)


def _loop(task: Task, is_vmapped: bool) -> compiled_loop.CompiledLoop | streamed_loop.StreamedLoop:
    axis_name = devices.axis_name(task.mesh)
    if task.is_streamed:
        step = functools.partial(streamed_step, task.config, axis_name=axis_name)
        return streamed_loop.StreamedLoop(step, task.mesh)
    step = functools.partial(train_step, task.config, task.batch_size, axis_name=axis_name)
    return compiled_loop.CompiledLoop(step, vmap_seeds=is_vmapped, mesh=task.mesh)


@contextlib.contextmanager
def _data(task: Task, seed: int, key: jax.Array, steps: range) -> Iterator[Any]:
    """What the loop takes these steps on; `key` is that of `_start`."""
    if not task.is_streamed:
        yield task.data
        return
    order_key, _ = jax.random.split(key)
    changes = None
    if task.native_policy:
        policy_key = jax.random.fold_in(key, 2)
        changes = native_policy.of_batches(policy_key, task.native_policy, task.config.num_epochs)
    with streamed_loop.open_batches(
        task.data.train_images,
        task.data.train_labels,
        seed=seed,
        order_key=order_key,
        steps=steps,
        size=task.batch_size,
        steps_per_pass=task.config.steps_per_epoch,
        mesh=task.mesh,
        threads=task.decode_threads,
        changes=changes,
    ) as batches:
        yield (), batches


def _test(task: Task, is_vmapped: bool) -> compiled_loop.Program:
    size, axis_name = task.eval_batch_size, devices.axis_name(task.mesh)

    def test(state, data):
        if task.annotations is None:
            return policy_training.evaluate(task.config, state, *data, size, axis_name)
        images = data[0].images
        decode = tasks.decoder(task.model, images.shape[1:3])
        return policy_training.predict(task.config, decode, state, images, size, axis_name)

    function = jax.vmap(test, in_axes=(0, None)) if is_vmapped else test
    return compiled_loop.Program(devices.divided(function, task.mesh))


def _start(task: Task, seed: int) -> tuple[sgd.TrainState, jax.Array]:
    """State and training key of a seed."""
    model_key, train_key = jax.random.split(jax.random.key(seed))
    module, model_config = task.model
    drawn = jax.jit(module.init, static_argnums=1)(model_key, model_config)
    return sgd.init(*(tree | given for tree, given in zip(drawn, task.pretrained))), train_key


def num_parameters(model: tuple[Any, Any]) -> int:
    """Number of parameters of a network, given as its module and Config."""
    module, model_config = model
    params, _ = jax.eval_shape(lambda key: module.init(key, model_config), jax.random.key(0))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def smoke(task: Task, seed: int) -> list[float]:
    """Takes two steps and returns their losses; writes nothing.

    Raises:
      command_line.Interrupted: a loss is not finite.
    """
    start = _start(task, seed)
    state, key = devices.replicate(start, task.mesh)
    loop = _loop(task, is_vmapped=False)
    losses = []
    with _data(task, seed, start[1], range(2)) as data:
        for number in (1, 2):
            for after, metrics, _ in loop.run(state, key, data, 1):
                state = after
                losses.append(float(metrics["loss"][0]))
            if not math.isfinite(losses[-1]):
                raise command_line.Interrupted(f"the loss is not finite at step {number}: {losses[-1]}")
    return losses


def run(task: Task, folders: dict[int, run_folder.RunFolder]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Trains with all given seeds, as `seeds.groups` says, and fills their folders, which are given by seed.

    With checkpoints, the runs go on after the last epoch that all of a group have. Yields (seed, summary), of
    several processes in the first one only; `finish` is left to the caller.

    Raises:
      command_line.Interrupted: the loss of a seed is not finite, and the task ends at it.
    """
    groups = seeds.groups(folders, maps_seeds=not task.is_streamed)
    loop, test = (make(task, is_vmapped=len(groups[0]) > 1) for make in (_loop, _test))
    for group in groups:
        yield from _run_at_once(task, loop, test, group)


def _run_at_once(task, loop, test, folders):
    config, count = task.config, len(folders)
    states, keys = zip(*(_start(task, seed) for seed in folders))
    done = min(folder.latest_step() or 0 for folder in folders.values())
    if done:
        states = [folder.restore(state, done) for folder, state in zip(folders.values(), states)]
    for folder in folders.values():
        folder.clean(done)
        if devices.is_primary() and not folder.policy_path.exists():
            policies.save(folder.policy_path, task.policy)
    state, key = devices.replicate((seeds.stack(states), seeds.stack(keys)), task.mesh)

    def seconds_compile():
        return loop.seconds_compile + test.seconds_compile

    compiled_before = seconds_compile()
    lines = run_folder.read_metrics(next(iter(folders.values())).path)
    seconds = lines[-1]["seconds"] if lines else 0.0
    total = config.num_epochs * config.steps_per_epoch
    quiet = not devices.is_primary()
    shown = {"desc": task.label, "unit": "step", "dynamic_ncols": True, "disable": quiet}
    with (
        _data(task, next(iter(folders)), keys[0], range(done, total)) as data,
        tqdm.tqdm(total=total, initial=done, **shown) as bar,
    ):
        for epoch in range(done // config.steps_per_epoch + 1, config.num_epochs + 1):
            start, compiled = time.perf_counter(), seconds_compile()
            waited = loop.seconds_waited if task.is_streamed else 0.0
            parts = []
            for after, metrics, taken in loop.run(state, key, data, config.steps_per_epoch):
                state = after
                parts.append(seeds.rows(metrics, count))
                if task.ends_at_nan:
                    _require_finite(folders, parts[-1]["loss"], done)
                done += taken
                bar.update(taken)
            seconds_train = time.perf_counter() - start - (seconds_compile() - compiled)
            result = seeds.rows(test(state, task.data[2:]), count)
            seconds += time.perf_counter() - start - (seconds_compile() - compiled)
            timing = {"seconds": round(seconds, 3), "seconds_train": round(seconds_train, 3)}
            if task.is_streamed:
                timing["seconds_waited"] = round(loop.seconds_waited - waited, 3)
            of_steps = jax.tree.map(lambda *leaves: np.concatenate(leaves, axis=1), *parts)
            for index, folder in enumerate(folders.values()):
                line = _line(task, index, of_steps, result)
                folder.log(done, {"epoch": epoch, **timing, **line})
            for folder, one in zip(folders.values(), seeds.unstack(state, count)):
                folder.save(done, one)
            bar.set_postfix_str(f"loss {of_steps['loss'].mean():.3f} test {line[_score(task)]:.4f}")

    timing = {"seconds_compile": seconds_compile() - compiled_before, "seeds_at_once": count}
    if devices.is_primary():
        for seed, folder in folders.items():
            yield seed, _finish(task, folder, timing)


def _require_finite(folders, losses, done):
    """Stops at a loss that is not finite; `losses` are those of the steps after `done`, [seeds, steps]."""
    for (seed, folder), row in zip(folders.items(), losses):
        bad = np.flatnonzero(~np.isfinite(row))
        if bad.size:
            raise command_line.Interrupted(
                f"the loss of seed {seed} is not finite at step {done + bad[0] + 1} ({row[bad[0]]}); "
                f"the run so far is in {folder.path}"
            )


def _score(task):
    """The name of the metric by which the best epoch is chosen."""
    return "test_accuracy" if task.annotations is None else "test_AP"


def _line(task, index, of_steps, result):
    """Metrics of an epoch of one seed: training means over its steps, the test at its end."""
    parts = [name for name in of_steps if name not in ("loss", "learning_rate")]
    line = {f"train_{name}": np.mean(of_steps[name][index], dtype=np.float64) for name in ("loss", *parts)}
    result = jax.tree.map(lambda leaf: leaf[index], result)
    if task.annotations is not None:
        line |= _precisions(task, result)
    else:
        count = len(task.data.test_labels)
        line |= {"test_loss": result["loss"], "test_accuracy": int(result["num_right"]) / count}
    line["learning_rate"] = of_steps["learning_rate"][index, -1]
    if task.annotations is None and task.model[1].num_classes >= TOP_5_CLASSES:
        line["test_top_5_accuracy"] = int(result["num_right_top_5"]) / count
    return line


def _precisions(task, candidates):
    """The numbers of COCO, and AP50 of every class."""
    truths, scale = task.annotations
    found = suppression.detections(candidates, scale)
    evaluation = average_precision.evaluate(truths, found, task.model[1].num_classes)
    numbers = {f"test_{name}": value for name, value in evaluation.numbers.items()}
    return numbers | {"test_class_AP50": evaluation.class_ap50.tolist()}


def _finish(task, folder, timing):
    """Writes the summary of a finished training and returns it."""
    lines = run_folder.read_metrics(folder.path)
    scores = [line[_score(task)] for line in lines]
    best = scores.index(max(scores))
    images = task.config.steps_per_epoch * task.batch_size * task.config.batch_augmentation * len(lines)
    summary = {
        "recipe": task.recipe,
        "num_parameters": num_parameters(task.model),
        "op_mass": policies.op_mass(task.policy),
        "train_loss": lines[-1]["train_loss"],
        "last": _result(lines[-1]),
        "best": {**_result(lines[best]), "chosen_by": _score(task).replace("_", " ")},
        "seconds_run": lines[-1]["seconds"],
        "images_per_second": images * timing["seeds_at_once"] / sum(line["seconds_train"] for line in lines),
        **timing,
    }
    if task.is_streamed:
        waited, trained = (sum(line[f"seconds_{name}"] for line in lines) for name in ("waited", "train"))
        summary["share_waited"] = waited / trained
    folder.write_summary(summary)
    return summary


def _result(line):
    if "test_AP" in line:
        return {name: value for name, value in line.items() if name == "epoch" or name.startswith("test_")}
    accuracy, loss = line["test_accuracy"], line["test_loss"]
    result = {
        "epoch": line["epoch"],
        "test_accuracy": accuracy,
        "test_error": 1.0 - accuracy,
        "test_loss": loss,
    }
    if "test_top_5_accuracy" in line:
        result["test_top_5_error"] = 1.0 - line["test_top_5_accuracy"]
    return result
