"""Trains a network with a policy and tests it after every epoch: what a policy is worth.

    python -m experiments.train --flagfile=experiments/flags/train_quick.flags --run_dir=runs/train

Writes RUN_DIR/summary.json with the last and the best epoch, metrics.jsonl (one line per epoch), policy.json,
figures/curves.png and checkpoints (`run_folder`); with --num_seeds above 1 one such folder for each seed,
RUN_DIR/seed_N. A run that was killed and resumed ends with the same weights. --smoke takes two steps of a
recipe and writes nothing.
"""

import functools
import math
import pathlib
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dada import ops, policies
from dada.policies import schedule
from dada.training import policy_training
from experiments.data import datasets, detection_datasets, native_policy, planting
from experiments.figures import finished_run
from experiments.methods.method import config_fields
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
    train_run,
)

_SMOKE_IMAGES = 32


def define(values: flags.FlagValues) -> None:
    """Defines the flags."""
    run_flags.define(values)
    add = command_line.definers(values)
    about = f"Take two steps, print their losses, write nothing; on a CPU of {_SMOKE_IMAGES} images at most."
    add.bool("smoke", False, about)
    add.string("policy", "none", f"One of: {named_policy.FORMS}.")
    about = (
        "Policy after crop and flip, before them, or on whole images on the host, before they are resized."
    )
    add.enum("policy_position", "after_crop", (*policy_training.POSITIONS, "native"), about)
    add.enum(
        "freeze_schedule", None, ("p_tp", "p_o", "both"), "Hold this part of a DDAS policy at its last value."
    )
    add.integer("eval_batch_size", 500, "Test images at once.", lower_bound=1)
    add.enum("schedule", "cosine", policy_training.SCHEDULES, "Of the learning rate.")
    add.float("cosine_epochs", None, "From the peak to 0. Default: --epochs.", lower_bound=1e-6)
    add.list("decay_epochs", [], "After the warm-up, of the step schedule; each divides by ten.")
    add.float("warmup_epochs", 0.0, "Epochs of linear warm-up.", lower_bound=0.0)
    add.float(
        "warmup_multiplier",
        1.0,
        "Peak over --learning_rate; with 1 the warm-up starts at 0.",
        lower_bound=1.0,
    )
    add.bool("decay_batch_norm", True, "Weight decay on batch norm too.")
    add.float(
        "batch_norm_momentum",
        None,
        "Weight of the new batch in the running statistics. Default: the network's.",
        lower_bound=0.0,
        upper_bound=1.0,
    )
    add.float("label_smoothing", 0.0, "Share of the target spread over all classes.", 0.0, 1.0)
    add.integer("batch_augmentation", 1, "Augmented copies of each image in a step.", 1, 10_000)
    add.enum("dtype", "float32", ("float32", "bfloat16"), "In which the network computes.")


def _resolve(values: flags.FlagValues) -> dict[str, Any]:
    """All flags, with the defaults that depend on other flags.

    Raises:
      ValueError: a flag was given that the others leave without effect.
    """
    settings = run_flags.as_dict(values)
    schedule_name = settings["schedule"]
    unread = {"cosine": "decay_epochs", "step": "cosine_epochs"}[schedule_name]
    unread = {unread: f"--schedule={schedule_name}", **run_flags.unread(settings)}
    for flag in run_flags.given_in_vain(values, unread):
        raise ValueError(f"--{flag} has no effect with {unread[flag]}")
    name = f"train_{pathlib.Path(settings['dataset']).stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    defaults = {"run_dir": str(pathlib.Path("runs") / name), "epochs": 200, **run_flags.defaults(settings)}
    return settings | {flag: value for flag, value in defaults.items() if settings[flag] is None}


# The resolved flags of a command line.
resolve = functools.partial(command_line.resolve, define, _resolve)


def _plant(text: str | None, dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set with ops on every test image: what a policy is worth where they are right."""
    if not text:
        return dataset
    rows = [row for space in ops.SPACE_NAMES for row in ops.search_space(space).rows]
    planted = planting.parse(text)
    for name, value in planted:
        if value is None and any(row.unit for row in rows if row.name == name):
            raise ValueError(f"--planted_op={name}: got no value, expected {name}:NUMBER in a training")
    planted = [(name, value or 0.0) for name, value in planted]
    images = jax.tree.map(np.asarray, planting.plant(planted, jax.tree.map(jnp.asarray, dataset.test_images)))
    if dataset.annotations is not None:
        dataset = dataset._replace(annotations=detection_datasets.annotations(images, dataset.test_labels))
    return dataset._replace(test_images=images)


def _numbers(flag: str, texts: list[str]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(text) for text in texts)
    except ValueError:
        numbers = (math.nan,)
    if not all(0.0 <= number < math.inf for number in numbers):
        raise ValueError(f"--{flag}: got {','.join(texts)}, expected numbers of 0 or more")
    return numbers


def _policy(settings: dict[str, Any], dataset: datasets.Dataset) -> policies.Policy:
    """The policy of the flags, but for --freeze_schedule."""
    size, has_boxes = dataset.train_images.shape[1:3], settings["task"] == "detection"
    return named_policy.load(settings["policy"], size, has_boxes=has_boxes)


def task_of(settings: dict[str, Any], dataset: datasets.Dataset) -> train_run.Task:
    """What resolved flags say, checked, before any folder is made.

    Raises:
      ValueError: settings that do not go together, or not with the data set.
    """
    dataset = _plant(settings["planted_op"], dataset)
    count = len(dataset.train_labels)
    policy, frozen = _policy(settings, dataset), settings["freeze_schedule"]
    if frozen:
        p_tp, p_o = (frozen in ("both", part) for part in ("p_tp", "p_o"))
        policy = schedule.freeze(policy, p_tp=p_tp, p_o=p_o)
    batch_size, mesh = settings["batch_size"], devices.mesh(settings["num_devices"])
    devices.check_batch("batch_size", batch_size, mesh)
    if settings["smoke"] and jax.default_backend() == "cpu":  # a batch for 8 GPUs would fill the memory
        batch_size = min(batch_size, _SMOKE_IMAGES * (mesh.size if mesh else 1))
    if batch_size > count:
        raise ValueError(f"--batch_size={batch_size}: {dataset.name} has only {count} training images")
    model = tasks.network(settings, dataset)
    of_task = tasks.fields(settings, model)
    if settings["batch_norm_momentum"] is not None:
        momentum = {"batch_norm_momentum": settings["batch_norm_momentum"]}
        of_task["apply"] = functools.partial(of_task["apply"], **momentum)
    of_policy = {"policy": policy}
    is_native = settings["policy_position"] == "native"
    if is_native:
        if not dataset.is_streamed:
            raise ValueError("--policy_position=native: expected --input=host")
        native_policy.check(policy)
        of_policy = {"policy": policies.identity(), "policy_position": "after_crop"}
    fields = config_fields(
        policy_training.Config,
        settings,
        dataset,
        **of_task,
        **of_policy,
        steps_per_epoch=count // batch_size,
        decay_epochs=_numbers("decay_epochs", settings["decay_epochs"]),
    )
    return train_run.Task(
        config=policy_training.Config(**fields),
        model=model,
        data=train_run.to_device(dataset, mesh),
        batch_size=batch_size,
        eval_batch_size=settings["eval_batch_size"],
        recipe={name: value for name, value in settings.items() if name not in run_flags.NOT_RECIPE},
        mesh=mesh,
        pretrained=pretrained.load(settings["pretrained"], model),
        decode_threads=settings["decode_threads"],
        native_policy=policy if is_native else None,
        annotations=dataset.annotations,
    )


def contents_of(settings: dict[str, Any], dataset: datasets.Dataset) -> dict[str, str | None]:
    """What resolved flags name, by content."""
    policy = _policy(settings, dataset)
    return {**contents.of_dataset(dataset, ("train", "test")), "policy": contents.of_policies([policy])}


def _report(seed: int, summary: dict[str, Any], folder: run_folder.RunFolder) -> str:
    last, best = (_result(summary[name]) for name in ("last", "best"))
    return (
        f"\nseed {seed}\n"
        f"last {last}\n"
        f"best {best}   (chosen by {summary['best']['chosen_by']} itself, so optimistic)\n"
        f"summary  {folder.path / 'summary.json'}\nfigures  {folder.figures_path}"
    )


def _result(result):
    """The errors of an epoch, or its average precisions, %."""
    shown = {
        **{"test_error": "test error", "test_top_5_error": "top-5 error"},
        **{"test_AP": "test AP", "test_AP50": "AP50"},
    }
    texts = [f"{text} {100 * result[name]:.2f} %" for name, text in shown.items() if name in result]
    return "   ".join([f"epoch {result['epoch']:4d}", *texts])


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    command_line.require_no_arguments(arguments)
    run_flags.start(values)
    settings = _resolve(values)
    values.run_dir = settings["run_dir"]
    dataset = run_flags.load_dataset(settings)
    task = task_of(settings, dataset)
    if settings["smoke"]:
        first, second = train_run.smoke(task, settings["seed"])
        print(
            f"{settings['model']}, {train_run.num_parameters(task.model):,} parameters, "
            f"loss {first:.4f} and {second:.4f} in two steps of {task.batch_size} images"
        )
        return
    made_of = contents_of(settings, dataset)
    made_of["network"] = contents.of_network(task.config.apply, task.model, dataset.train_images.shape[1:3])
    made_of["pretrained"] = contents.of_weights(task.pretrained) if settings["pretrained"] else None
    folders = seeds.open_folders(settings, made_of)
    names = run_folder.read_flags(folders[settings["seed"]].path)  # of the first start
    task = task._replace(recipe=task.recipe | {name: names[name] for name in ("dataset", "policy")})
    left = {seed: folder for seed, folder in folders.items() if not folder.is_finished}
    if not left:
        seeds.say_finished(settings)
        return
    for seed, summary in train_run.run(task, left):
        finished_run.draw(folders[seed].path)
        print(_report(seed, summary, folders[seed]))
        folders[seed].finish()


if __name__ == "__main__":
    command_line.run(define, main, _resolve)
