"""One search from its first step to its policy file: steps, metrics, checkpoints, summary."""

import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tqdm

from dada import policies
from experiments.data import planting
from experiments.methods import cost, search_loop
from experiments.methods.method import Task
from experiments.runs import command_line, devices, run_folder, seeds

_SOURCE = "found by this project's search"


def is_finished(task: Task, folder: run_folder.RunFolder) -> bool:
    """Whether a folder is finished, and its search not one that more --max_steps make longer.

    Raises:
      ValueError: it is, and the task is to measure what such a search has not measured.
    """
    if not folder.is_finished:
        return False
    summary = run_folder.read_summary(folder.path)
    if not summary.get("is_whole") and summary.get("steps", 0) < (task.max_steps or np.inf):
        return False
    if task.measure_cost and "plain_step_ratio" not in summary:
        raise ValueError(f"--measure_cost: expected a search that goes on, that in {folder.path} is finished")
    return True


def run(task: Task, folders: dict[int, run_folder.RunFolder]) -> Iterator[tuple[int, policies.Policy]]:
    """Searches with all given seeds and fills their folders, figures and `finish` aside.

    Args:
      task: what to search.
      folders: by seed; with checkpoints, the runs go on from the last step that all of a group have.

    Yields:
      (seed, policy), of several processes in the first one only.

    Raises:
      command_line.Interrupted: a metric that must be finite is not.
    """
    groups = seeds.groups(folders, task.method.maps_seeds and not task.data.is_streamed)
    is_vmapped = len(groups[0]) > 1
    search = task.method.steps(task, is_vmapped)
    for group in groups:
        yield from _run_at_once(task, search, group)


def _run_at_once(task, search, folders):
    method, config, count = task.method, task.config, len(folders)
    first = min(folder.latest_step() or 0 for folder in folders.values())
    states, data_keys = zip(*(method.start(task, seed, folder, first) for seed, folder in folders.items()))
    if first:
        states = [folder.restore(state, first) for folder, state in zip(folders.values(), states)]
    for folder in folders.values():
        folder.clean(first)
    state, key = devices.replicate((seeds.stack(states), seeds.stack(data_keys)), task.mesh)

    lines = run_folder.read_metrics(next(iter(folders.values())).path)
    seconds_before, seconds = lines[-1]["seconds"] if lines else 0.0, 0.0
    compiled_before = search.seconds_compile
    waited_before = search.seconds_waited if task.data.is_streamed else 0.0
    done, total = first, int(min(method.total_steps(config), task.max_steps or np.inf))
    quiet = not devices.is_primary()
    with (
        search_loop.open_data(task, next(iter(folders)), data_keys[0], range(first, total)) as data,
        tqdm.tqdm(total=total, initial=first, unit="step", dynamic_ncols=True, disable=quiet) as bar,
    ):
        while done < total:
            following = method.proceed(task, state, done)
            if following is None:
                break
            state, compiled, start = following, search.seconds_compile or 0.0, time.perf_counter()
            for after, metrics, taken in search.run(
                state, key, data, min(method.next_stop(config, done), total) - done
            ):
                state = after
                block = time.perf_counter() - start - ((search.seconds_compile or 0.0) - compiled)
                metrics = seeds.rows(metrics, count)
                _log(method.watched, folders, metrics, done, seconds_before + seconds + block)
                done += taken
                bar.update(taken)
                bar.set_postfix_str(_progress(config, metrics))
            seconds += time.perf_counter() - start - ((search.seconds_compile or 0.0) - compiled)
            for folder, one in zip(folders.values(), seeds.unstack(state, count)):
                folder.save(done, one)

    # Not where --max_steps ended it.
    is_whole = done < total or done >= method.total_steps(config)
    timing = {"seconds_run": seconds_before + seconds, "seeds_at_once": count}
    if task.data.is_streamed and seconds:
        timing["share_waited"] = (search.seconds_waited - waited_before) / seconds  # of this start
    if search.seconds_compile is not None:
        timing["seconds_compile"] = search.seconds_compile - compiled_before
    finished = {}
    if devices.is_primary():
        data_set = pathlib.Path(task.dataset.name).stem
        of_seeds = seeds.unstack(devices.local(state, task.mesh), count)
        for (seed, folder), one in zip(folders.items(), of_seeds):
            policy = method.library.extract_policy(config, one, seed=seed, data_set=data_set, source=_SOURCE)
            policies.save(folder.policy_path, policy)
            summary = {**_summary(task, folder, one, policy), "is_whole": is_whole, **timing}
            folder.write_summary(summary)
            finished[seed] = policy, summary
    if task.measure_cost:  # last, by all processes: it may take longer than the search
        plain = method.plain_steps(task, count > 1)
        ratio = cost.plain_step_ratio(task, search, plain, state, key)
        for seed, (_, summary) in finished.items():
            folders[seed].write_summary({**summary, "plain_step_ratio": ratio})
    yield from ((seed, policy) for seed, (policy, _) in finished.items())


def _log(watched, folders, metrics, done, seconds):
    """Writes the metrics of some steps, [seeds, steps], and stops at one that is not finite."""
    for index, (seed, folder) in enumerate(folders.items()):
        for offset in range(metrics[watched[0]].shape[1]):
            step = done + offset + 1
            line = {name: values[index, offset] for name, values in metrics.items()}
            folder.log(step, {"seconds": round(seconds, 3), **line})
            if not all(np.isfinite(line[name]) for name in watched):
                values = ", ".join(f"{name} {line[name]}" for name in watched)
                raise command_line.Interrupted(
                    f"seed {seed} is not finite at step {step} ({values}); the run so far is in {folder.path}"
                )


def _progress(config, metrics):
    """Numbers of the last step and leading ops, means over seeds."""
    last = {name: values[:, -1].mean(0) for name, values in metrics.items()}
    leading = np.argsort(-last["op_mass"], kind="stable")[:3]
    ops = " ".join(f"{config.space.rows[i].name} {last['op_mass'][i]:.2f}" for i in leading)
    shown = ("layer", "cosine", "train_loss", "valid_loss", "p_tp", "entropy")
    return " ".join(f"{name} {last[name]:.3g}" for name in shown if name in last) + f" {ops}"


def _summary(task, folder, state, policy):
    """What a finished search reports, besides its timing."""
    names = [row.name for row in task.config.space.rows]
    lines = run_folder.read_metrics(folder.path)
    losses = [f"{part}_{kind}" for part in ("train", "valid") for kind in ("loss", "accuracy")]
    last_epoch = lines[-getattr(task.config, "steps_per_epoch", 1) :]
    summary = {
        "steps": len(lines),
        **{
            f"final_{name}": statistics.fmean(line[name] for line in last_epoch)
            for name in losses
            if name in lines[-1]
        },
        "entropy": lines[-1]["entropy"],
        "op_mass": dict(zip(names, lines[-1]["op_mass"])),
        "op_mass_policy_file": policies.op_mass(policy),
    }
    if task.planted:
        summary["planted"] = found_again(task, lines, policy)
    return {**summary, **task.method.report(task, folder, lines, state, policy)}


def found_again(task: Task, lines: list[dict[str, Any]], policy: policies.Policy) -> list[dict[str, Any]]:
    """What became of each planted op: its rank by mass at the end, its level, and when it led for good.

    `level` is that of the planted value, `level_found` the mean of the policy file; None without magnitude.
    """
    return [_found_again(task.config.space, *planted, lines, policy) for planted in task.planted]


def _found_again(space, name, value, lines, policy):
    index = planting.row_of(space, name, value)
    row, mass = space.rows[index], np.array(lines[-1]["op_mass"])
    return {
        **{"op": name, "value": value, "row": row.name, "rank": int(np.sum(mass > mass[index])) + 1},
        "level": (value - row.low) / (row.high - row.low) if row.unit else None,
        "level_found": policies.op_levels(policy)[row.name] if row.unit else None,
        **lead(lines, index),
    }


def lead(lines: list[dict[str, Any]], row: int) -> dict[str, Any]:
    """Step and seconds from which an op has the largest mass until the end; None if never."""
    lead = None
    for line in lines:
        if int(np.argmax(line["op_mass"])) != row:
            lead = None
        elif lead is None:
            lead = line
    return {"steps_until_it_leads": lead and lead["step"], "seconds_until_it_leads": lead and lead["seconds"]}
