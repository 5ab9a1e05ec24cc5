"""One search from its first step to its policy file: steps, metrics, checkpoints, summary, figures."""

import functools
import pathlib
import statistics
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm

from dada import policies
from experiments import plot
from experiments.data import datasets
from experiments.methods import search_loop
from experiments.runs import command_line, compiled_loop, devices, run_folder, seeds

_SOURCE = "found by this project's search"


class Task(NamedTuple):
    """What to search, apart from the seed."""

    method: ModuleType  # dada_method or one like it
    config: Any
    model: tuple[ModuleType, Any]  # from models.by_name
    dataset: datasets.Dataset
    data: search_loop.Data  # on all devices
    sizes: tuple[int, int]  # training and validation images per step
    planted: tuple[str, float] | None  # op and value on every validation image
    max_steps: int | None
    mesh: jax.sharding.Mesh | None  # the devices that share every batch, from `devices.mesh`


def _start(task: Task, seed: int) -> tuple[Any, jax.Array]:
    """State and data key of a seed."""
    model_key, search_key, data_key = jax.random.split(jax.random.key(seed), 3)
    network, network_config = task.model
    params, batch_stats = network.init(model_key, network_config)
    return task.method.library.init(search_key, task.config, params, batch_stats), data_key


def run(task: Task, folders: dict[int, run_folder.RunFolder]) -> Iterator[tuple[int, policies.Policy]]:
    """Searches with all given seeds, as `seeds.groups` says, and fills their folders.

    Args:
      task: what to search.
      folders: by seed; with checkpoints, the runs go on from the last step that all of a group have.

    Yields:
      (seed, policy), of several processes in the first one only.

    Raises:
      command_line.Interrupted: the loss of a seed is not finite.
    """
    groups = seeds.groups(folders)
    search, plain = (
        compiled_loop.CompiledLoop(
            functools.partial(
                step, task.method, task.config, task.sizes, axis_name=devices.axis_name(task.mesh)
            ),
            vmap_seeds=len(groups[0]) > 1,
            mesh=task.mesh,
        )
        for step in (search_loop.search_step, search_loop.plain_step)
    )
    for group in groups:
        yield from _run_at_once(task, search, plain, group)


def _run_at_once(task, loop, plain, folders):
    config, count = task.config, len(folders)
    states, data_keys = zip(*(_start(task, seed) for seed in folders))
    first = min(folder.latest_step() or 0 for folder in folders.values())
    if first:
        states = [folder.restore(state, first) for folder, state in zip(folders.values(), states)]
    for folder in folders.values():
        folder.clean(first)
    is_vmapped = count > 1
    start = (seeds.stack(states), seeds.stack(data_keys)) if is_vmapped else (states[0], data_keys[0])
    state, key = devices.replicate(start, task.mesh)

    compiled_before = loop.seconds_compile
    total = min(config.num_epochs * config.steps_per_epoch, task.max_steps or np.inf)
    lines = [run_folder.read_metrics(folder.path) for folder in folders.values()]
    seconds_before = lines[0][-1]["seconds"] if lines[0] else 0.0
    done, seconds = first, 0.0
    quiet = not devices.is_primary()
    with tqdm.tqdm(total=int(total), initial=first, unit="step", dynamic_ncols=True, disable=quiet) as bar:
        while done < total:
            steps = int(min(config.steps_per_epoch - done % config.steps_per_epoch, total - done))
            compiled = loop.seconds_compile
            start = time.perf_counter()
            for after, metrics, taken in loop.run(state, key, task.data, steps):
                state = after
                elapsed = seconds_before + seconds + time.perf_counter() - start
                elapsed -= loop.seconds_compile - compiled
                metrics = seeds.rows(metrics, is_vmapped)
                _log(folders, metrics, done, elapsed)
                done += taken
                bar.update(taken)
                bar.set_postfix_str(_progress(config, metrics))
            seconds += time.perf_counter() - start - (loop.seconds_compile - compiled)
            for folder, one in zip(folders.values(), seeds.each(state, count) if is_vmapped else [state]):
                folder.save(done, one)

    ratio = search_loop.plain_step_ratio(loop, plain, config.steps_per_epoch, state, key, task.data)
    if not devices.is_primary():
        return
    state = devices.local(state, task.mesh)
    for (seed, folder), one in zip(folders.items(), seeds.each(state, count) if is_vmapped else [state]):
        found = task.method.library.extract_policy(
            config, one, seed=seed, data_set=pathlib.Path(task.dataset.name).stem, source=_SOURCE
        )
        policies.save(folder.policy_path, found)
        timing = {
            "seconds_compile": loop.seconds_compile - compiled_before,
            "seconds_run": seconds_before + seconds,
            "plain_step_ratio": ratio,
            "seeds_at_once": count,
        }
        folder.write_summary({**_summary(task, folder, one, found), **timing})
        plot.draw(folder.path, task.dataset, task.data.valid.images if task.planted else None)
        yield seed, found


def _log(folders, metrics, done, seconds):
    """Writes the metrics of some steps, [seeds, steps], and stops at a loss that is not finite."""
    for index, (seed, folder) in enumerate(folders.items()):
        for offset in range(metrics["train_loss"].shape[1]):
            step = done + offset + 1
            line = {name: values[index, offset] for name, values in metrics.items()}
            folder.log(step, {"seconds": round(seconds, 3), **line})
            if not np.isfinite(line["train_loss"] + line["valid_loss"]):
                raise command_line.Interrupted(
                    f"the loss of seed {seed} is not finite at step {step} (train {line['train_loss']}, "
                    f"valid {line['valid_loss']}); the run so far is in {folder.path}"
                )


def _progress(config, metrics):
    """Loss, entropy and leading ops of the last step, means over seeds."""
    last = {name: values[:, -1].mean(0) for name, values in metrics.items()}
    leading = np.argsort(-last["op_mass"], kind="stable")[:3]
    ops = " ".join(f"{config.space.rows[i].name} {last['op_mass'][i]:.2f}" for i in leading)
    p_tp = f"p_tp {last['p_tp']:.2f} " if "p_tp" in last else ""
    losses = f"{last['train_loss']:.3f}/{last['valid_loss']:.3f}"
    return f"loss {losses} {p_tp}entropy {last['entropy']:.2f} {ops}"


def _summary(task, folder, state, found):
    """What a finished search reports, besides its timing."""
    config = task.config
    names = [row.name for row in config.space.rows]
    lines = run_folder.read_metrics(folder.path)
    last_epoch = lines[-config.steps_per_epoch :]
    summary = {
        "steps": len(lines),
        **{
            f"final_{name}": statistics.fmean(line[name] for line in last_epoch)
            for name in ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy")
        },
        "entropy": lines[-1]["entropy"],
        "op_mass": dict(zip(names, lines[-1]["op_mass"])),
        "op_mass_policy_file": policies.op_mass(found),
        **task.method.report(config, state, found),
    }
    if task.planted:
        name, value = task.planted
        summary["planted"] = {"op": name, "value": value, **lead(lines, names.index(name))}
    return summary


def lead(lines: list[dict[str, Any]], row: int) -> dict[str, Any]:
    """Step and seconds from which the planted op has the largest mass until the end; None if never."""
    lead = None
    for line in lines:
        if int(np.argmax(line["op_mass"])) != row:
            lead = None
        elif lead is None:
            lead = line
    return {
        "steps_until_it_leads": lead and lead["step"],
        "seconds_until_it_leads": lead and lead["seconds"],
    }
