"""Searches an augmentation policy and writes it as a file, with metrics and figures.

    python -m experiments.search --flagfile=experiments/flags/dada_quick.flags --run_dir=runs/quick
    python -m experiments.search --method=ddas --help

Writes RUN_DIR/policy.json, metrics.jsonl, summary.json, figures/*.png and checkpoints (`run_folder`);
with --num_seeds above 1 one such folder for each seed, RUN_DIR/seed_N, and beside them, once all are done,
one policy.json of all seeds, and how far these agree, op by op: summary.json, figures/agreement.png
(`seed_agreement`). The same flags and inputs give the same bytes of policy.json, also when the run was killed
and resumed.

--judge ends in a verdict: is the policy worth using, by short trainings (`methods/judge.py`)? Of several
seeds, each policy is judged, then the one of all.
"""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from dada import ops, policies
from dada.training import policy_training, sgd
from experiments.data import datasets, planting, reduced_imagenet
from experiments.figures import finished_run, verdict_figure
from experiments.methods import dada_method, ddas_method, deepaa_method, judge, search_loop, search_run
from experiments.methods.method import Method, Task, config_fields
from experiments.runs import (
    command_line,
    contents,
    devices,
    named_policy,
    pretrained,
    run_flags,
    run_folder,
    seeds,
    tasks,
)
from experiments.summaries import seed_agreement

METHODS = {"dada": dada_method, "ddas": ddas_method, "deepaa": deepaa_method}
PRESETS = ("corrected", "official")


def define(values: flags.FlagValues) -> None:
    """Defines the flags of all methods."""
    run_flags.define(values)
    for module in METHODS.values():
        module.define(values)
    add = command_line.definers(values)
    add.enum("method", "dada", tuple(METHODS), "How to search.")
    add.enum("preset", "corrected", PRESETS, "Official: as the released code does.")
    add.integer("max_steps", None, "End after this many steps.", lower_bound=1)
    add.bool("measure_cost", False, "At the end, time a step against a plain training step.")
    add.string("search_space", None, f"Ops and their ranges: {', '.join(ops.SPACE_NAMES)}.")
    add.list("extra_ops", [], "Ops without magnitude to add to the search space.")
    about = "Ops to leave out of it, or rows: Rotate for both directions, Rotate- for one."
    add.list("exclude_ops", [], about)
    about = "Images to validate with: a folder <class>/, or an .npz. Default: a part of the training images."
    add.string("valid_dataset", None, about)
    about = "Keep only the 120 classes of ImageNet on which this method was searched (`reduced_imagenet`)."
    add.enum("reduced_imagenet", None, reduced_imagenet.NAMES, about)
    about = "Search with only so many %s images, for all seeds the same. Default: all."
    add.integer("num_train", None, about % "training", 1)
    add.integer("num_valid", None, about % "validation", 1)
    about = "Validation images per step; of deepaa, for each data point. Default: all, if there are few."
    add.integer("valid_batch_size", None, about, lower_bound=1)
    add.float("policy_learning_rate", None, "Adam, of the policy.", lower_bound=0.0)
    add.bool("judge", False, "At the end, tell by short trainings whether the policy is worth using.")
    about = "Passes over the training images in each of these."
    add.integer("judge_epochs", 6, about, 1, run_flags.MAX_EPOCHS)
    add.list("judge_also", [], f"More policies to judge, each one of: {named_policy.FORMS}.")


def _resolve(values: flags.FlagValues) -> dict[str, Any]:
    """All flags that the chosen method reads, with the defaults that depend on other flags.

    Raises:
      ValueError: a flag was given that the method or the preset does not read.
    """
    settings, given = run_flags.as_dict(values), run_flags.given(values)
    chosen = settings["method"]
    for name, module in METHODS.items():
        if name != chosen:
            others = flags.FlagValues()
            module.define(others)
            for flag in others:
                if flag in given:
                    raise ValueError(f"--{flag} belongs to --method={name}, got --method={chosen}")
                del settings[flag]
    module = METHODS[chosen]
    reasons = {**run_flags.unread(settings), **module.unread(settings)}
    if not settings["judge"]:
        reasons |= dict.fromkeys(("judge_epochs", "judge_also"), "--nojudge")
    for flag in run_flags.given_in_vain(values, reasons):
        raise ValueError(f"--{flag}={settings[flag]} has no effect with {reasons[flag]}")
    run_name = f"{chosen}_{pathlib.Path(settings['dataset']).stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    run_dir = str(pathlib.Path("runs") / run_name)
    defaults = {"run_dir": run_dir, "epochs": 20, **run_flags.defaults(settings), **module.defaults(settings)}
    for name, value in defaults.items():
        if settings[name] is None or name not in given:
            settings[name] = value
    return {name: value for name, value in settings.items() if name not in reasons}


# The resolved flags of a command line.
resolve = functools.partial(command_line.resolve, define, _resolve)


def _planted_op(name: str, value: float | None, method: Method, config: Any) -> tuple[str, float]:
    """A planted op and its value, which must change images."""
    index = planting.row_of(config.space, name, value)
    if index is None:
        whole = ops.search_space(config.space.name)
        excluded = planting.row_of(whole, name, value)
        if excluded is not None:
            raise ValueError(f"--planted_op: {whole.rows[excluded].name} is excluded: no search can find it")
        hint = f"whose ops are {', '.join(row.name for row in config.space.rows)}"
        if name in ops.EXTRA_OPS:
            hint = f"--extra_ops={name} adds it"
        raise ValueError(f"--planted_op: {name} is not in the search space, {hint}")
    row = config.space.rows[index]
    if value is None:
        # That of the first level which does not leave the images as they are.
        levels = method.planted_levels(config, index)
        values = [(1.0 - level) * row.low + level * row.high for level in levels]
        value = next((value for value in values if _changes_images(row, value)), values[0])
    if not _changes_images(row, value):
        got = f"{name}:{value:g}"
        raise ValueError(f"--planted_op: got {got!r}, expected a finite value that changes the images")
    return row.op, value


def _changes_images(row: ops.OpRow, value: float) -> bool:
    return row.identity is None or not math.isclose(value, row.identity, rel_tol=1e-6, abs_tol=1e-6)


def _largest_batches(
    method: Method, train: sgd.Batch, valid: sgd.Batch, judged: judge.Plan | None
) -> dict[str, tuple[int, str]]:
    """As `Method.largest_batches`, of the validation images that all of the search sees."""
    if judged is None:
        return method.largest_batches(train, valid)
    limits = method.largest_batches(train, jax.tree.map(lambda part: part[judged.kept], valid))
    most, got = limits["valid_batch_size"]
    return limits | {"valid_batch_size": (most, f"{got} without the half that --judge holds back")}


def _fitting(size: int, most: int, got: str, share: int) -> int:
    """A size of at most `most` that `share` devices can divide; says so if that is less than `size`."""
    fitting = max(min(size, most) // share, 1) * share
    if fitting < size and devices.is_primary():
        of_devices = f", and {share} devices share them" if share > 1 else ""
        print(f"--valid_batch_size={fitting} in place of {size}: {got}{of_devices}", flush=True)
    return fitting


def task_of(settings: dict[str, Any], dataset: datasets.Dataset, *, fits_valid_batch: bool = False) -> Task:
    """What resolved flags say, checked, before any folder is made.

    With `fits_valid_batch`, a step has no more validation images than there are, or than --judge leaves, and
    as many for each device.

    Raises:
      ValueError: settings that do not go together, or not with the data set.
    """
    method = METHODS[settings["method"]].METHODS[settings["preset"]]
    if dataset.is_streamed and settings["measure_cost"]:
        raise ValueError("--measure_cost: expected --input=device, images that are held")
    if settings["judge"] and settings.get("crop", "center") != "center":
        expected = "expected center, as it trains without crops, too"
        raise ValueError(f"--judge: got --crop={settings['crop']}, {expected}")
    options = (tuple(settings[name]) for name in ("extra_ops", "exclude_ops"))
    space = ops.search_space(settings["search_space"], *options)
    train, valid = method.split(dataset, settings)
    train = datasets.stratified_part(train, settings["num_train"], "num_train")
    if not method.streams:
        train = train._replace(images=np.asarray(train.images))
    valid = datasets.stratified_part(valid, settings["num_valid"], "num_valid")
    mesh = devices.mesh(settings["num_devices"])
    judged = judge.plan(settings, mesh, train, valid) if settings["judge"] else None
    limits = _largest_batches(method, train, valid, judged)
    if fits_valid_batch:
        share = mesh.size if mesh and "valid_batch_size" in method.divided else 1
        size = _fitting(settings["valid_batch_size"], *limits["valid_batch_size"], share)
        settings = {**settings, "valid_batch_size": size}
    copies = settings.get("num_draws", 1)
    if settings["batch_size"] % copies or settings["batch_size"] < 2 * copies:
        got, expected = f"--batch_size={settings['batch_size']}", f"a multiple of --num_draws={copies}"
        raise ValueError(f"{got}: expected {expected}, twice at least")
    sizes = {"batch_size": settings["batch_size"] // copies, "valid_batch_size": settings["valid_batch_size"]}
    for flag, (most, got) in limits.items():
        if sizes[flag] > most:
            raise ValueError(f"--{flag}={settings[flag]}: {got}, expected {sizes[flag]} or more")
    for flag in method.divided:
        devices.check_batch(flag, sizes.get(flag, settings[flag]), mesh)
    size = dataset.train_images.shape[1:3]
    has_boxes = settings["task"] == "detection"
    named_policy.check_ops(space, size, has_boxes, f"search space {space.name!r}")
    model = tasks.network(settings, dataset)
    weights = pretrained.load(
        settings["pretrained"],
        model,
        needs_head=settings["method"] == "deepaa",  # which trains none
    )
    plan = method.plan(settings, dataset)
    of_task = tasks.fields(settings, model)
    of_task["apply"] = policy_training.in_dtype(of_task["apply"], settings.get("dtype", "float32"))
    fields = config_fields(
        method.library.Config,
        settings,
        dataset,
        **of_task,
        space=space,
        steps_per_epoch=search_loop.steps_per_epoch(len(train.labels), settings["batch_size"]),
    )
    config = method.config(settings, fields, mesh)
    data = search_loop.to_device(train, valid)
    planted = tuple(_planted_op(*op, method, config) for op in planting.parse(settings["planted_op"]))
    images = planting.plant(planted, data.valid.images)
    data = data._replace(valid=data.valid._replace(images=images))
    total, max_steps = method.total_steps(config), settings["max_steps"]
    if judged and len(space.rows) < 2:
        raise ValueError("--judge trains with random pairs of ops, got a search space of one op")
    if judged and max_steps is not None and max_steps < total:
        raise ValueError(f"--max_steps={max_steps}: expected all {total} steps with --judge")
    return Task(
        method=method,
        config=config,
        model=model,
        dataset=dataset,
        data=search_loop.replicate(data, mesh),
        sizes=(settings["batch_size"], settings["valid_batch_size"]),
        copies=copies,
        plan=plan,
        planted=planted,
        max_steps=max_steps,
        measure_cost=settings["measure_cost"],
        judge=judged,
        mesh=mesh,
        pretrained=weights,
        decode_threads=settings.get("decode_threads"),
    )


def contents_of(settings: dict[str, Any], dataset: datasets.Dataset) -> dict[str, str | None]:
    """What resolved flags of all methods name, by content."""
    image_size = dataset.train_images.shape[1:3]
    also = [named_policy.load(name, image_size, "judge_also") for name in settings.get("judge_also", [])]
    return {**contents.of_dataset(dataset), "judge_also": contents.of_policies(also)}


def _named(task: Task, names: dict[str, str]) -> Task:
    """The task with the names that its data and its policies had in the flags of the first start."""
    judged = task.judge
    if judged:
        judged = judged._replace(
            also=dict(zip(named_policy.split(names["judge_also"]), judged.also.values()))
        )
    return task._replace(dataset=task.dataset._replace(name=names["dataset"]), judge=judged)


def _search(task: Task, folders: dict[int, run_folder.RunFolder]) -> None:
    for seed, policy in search_run.run(task, folders):
        folder = folders[seed]
        finished_run.draw(folder.path, task.dataset, task.data.valid.images if task.planted else None)
        print(f"\nseed {seed}\n{policies.format_table(policy)}")
        print(f"policy   {folder.policy_path}\nfigures  {folder.figures_path}", flush=True)
        if not task.judge:
            folder.finish()


def _agree(title: str, whole: run_folder.RunFolder, folders: dict[int, run_folder.RunFolder]) -> None:
    summary = seed_agreement.write(whole.path, folders)
    finished_run.draw(whole.path)
    print(f"\n{title}\n{seed_agreement.format_table(summary)}")
    print(f"policy   {whole.policy_path}\nfigures  {whole.figures_path}", flush=True)


def _judge(task: Task, title: str, folder: run_folder.RunFolder, seed: int) -> None:
    verdict = judge.run(task, folder, seed, policies.load(folder.policy_path))
    if verdict:
        verdict_figure.draw(folder.path)
        print(f"\n{title}\n{judge.report(task, folder.path, verdict)}", flush=True)
        folder.finish()


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    command_line.require_no_arguments(arguments)
    run_flags.start(values)
    settings = _resolve(values)
    values.run_dir = settings["run_dir"]
    dataset = run_flags.load_dataset(settings)
    is_given = "valid_batch_size" in run_flags.given(values)
    task = task_of(settings, dataset, fits_valid_batch=not is_given)
    settings["valid_batch_size"] = task.sizes[1]
    if task.planted:
        settings["planted_op"] = planting.to_text(task.planted)
    made_of = {**contents_of(settings, dataset), **task.method.contents(task)}
    made_of["network"] = contents.of_network(task.config.apply, task.model, dataset.train_images.shape[1:3])
    made_of["pretrained"] = contents.of_weights(task.pretrained) if settings["pretrained"] else None
    folders = seeds.open_folders(settings, made_of)
    task = _named(task, run_folder.read_flags(folders[settings["seed"]].path))
    left = {seed: folder for seed, folder in folders.items() if not search_run.is_finished(task, folder)}
    whole, is_many = run_folder.RunFolder(settings["run_dir"]), len(folders) > 1
    if not left and (not is_many or seed_agreement.is_finished(whole.path, folders)):
        seeds.say_finished(settings)
        return
    for folder in (*left.values(), whole):
        if folder.is_finished:
            folder.reopen()
    if left:
        _search(task, left)
    of_all = f"all {len(folders)} seeds"
    if is_many and devices.is_primary():
        _agree(of_all, whole, folders)
    if task.judge:
        devices.barrier("searched")
        for seed, folder in left.items():
            _judge(task, f"seed {seed}", folder, seed)
        if is_many:
            _judge(task, of_all, whole, settings["seed"] + len(folders))  # trains with seeds of its own
    elif is_many:
        whole.finish()


if __name__ == "__main__":
    command_line.run(define, main, _resolve)
