"""Trains a network with a policy and tests it after every epoch: what a policy is worth.

    python -m experiments.train --flagfile=experiments/flags/train_quick.flags --run_dir=runs/train

Writes RUN_DIR/summary.json with the last and the best epoch, metrics.jsonl (one line per epoch), policy.json,
figures/curves.png and checkpoints (`run_folder`); with --num_seeds above 1 one such folder for each seed,
RUN_DIR/seed_N. A run that was killed and resumed ends with the same weights. --smoke takes two steps of a
recipe and writes nothing.
"""

import functools
import pathlib
import time
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags

from dada import models, ops, policies
from dada.policies import schedule
from dada.training import policy_training
from experiments.data import datasets, planting
from experiments.runs import (
    command_line,
    compilation_cache,
    devices,
    named_policy,
    run_flags,
    seeds,
    train_run,
)

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)

flags.DEFINE_bool("smoke", False, "Take two steps, print their losses, write nothing.")
flags.DEFINE_string("policy", "none", f"One of: {named_policy.FORMS}.")
flags.DEFINE_enum(
    "policy_position", "after_crop", policy_training.POSITIONS, "Policy after crop and flip, or before."
)
flags.DEFINE_enum(
    "freeze_schedule", None, ("p_tp", "p_o", "both"), "Hold this part of a DDAS policy at its last value."
)
flags.DEFINE_integer("eval_batch_size", 500, "Test images at once.", lower_bound=1)
flags.DEFINE_enum("schedule", "cosine", policy_training.SCHEDULES, "Of the learning rate.")
flags.DEFINE_float("cosine_epochs", None, "From the peak to 0. Default: --epochs.", lower_bound=1e-6)
flags.DEFINE_list("decay_epochs", [], "After the warm-up, of the step schedule; each divides by ten.")
flags.DEFINE_float("warmup_epochs", 0.0, "Epochs of linear warm-up.", lower_bound=0.0)
flags.DEFINE_float(
    "warmup_multiplier", 1.0, "Peak over --learning_rate; with 1 the warm-up starts at 0.", lower_bound=1.0
)
flags.DEFINE_bool("decay_batch_norm", True, "Weight decay on batch norm too.")
flags.DEFINE_float(
    "batch_norm_momentum", None, "Weight of the new batch in the running statistics. Default: the network's.",
    lower_bound=0.0,
    upper_bound=1.0,
)
flags.DEFINE_float("label_smoothing", 0.0, "Share of the target spread over all classes.", 0.0, 1.0)
flags.DEFINE_integer("batch_augmentation", 1, "Augmented copies of each image in a step.", lower_bound=1)
flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "In which the network computes.")

# Flags that say where and how long, not what was trained.
NOT_RECIPE = (
    *("run_dir", "resume", "seed", "num_seeds", "data_dir", "download", "smoke"),
    *("compilation_cache_dir", "num_devices"),
)


def resolve_flags() -> dict[str, Any]:
    """Fills in the defaults that depend on other flags; returns all flags of this binary by name."""
    name = f"train_{pathlib.Path(FLAGS.dataset).stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    defaults = {"run_dir": str(pathlib.Path("runs") / name), "epochs": 200}
    for flag, value in defaults.items():
        if getattr(FLAGS, flag) is None:
            setattr(FLAGS, flag, value)
    own = FLAGS.get_key_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own if flag.name not in devices.PROCESS_FLAGS}


def _plant(dataset: datasets.Dataset) -> datasets.Dataset:
    """The data set with --planted_op on every test image: what a policy is worth where the op is right."""
    found = planting.parse(FLAGS.planted_op)
    if found is None:
        return dataset
    name, value = found
    rows = [row for space in ops.SPACE_NAMES for row in ops.search_space(space).rows]
    if value is None and any(row.unit for row in rows if row.name == name):
        raise ValueError(f"--planted_op={name}: got no value, expected {name}:NUMBER in a training")
    images = planting.plant(name, value or 0.0, jnp.asarray(dataset.test_images))
    return dataset._replace(test_images=np.asarray(images))


def _numbers(flag: str) -> tuple[float, ...]:
    try:
        return tuple(float(value) for value in getattr(FLAGS, flag))
    except ValueError:
        raise ValueError(f"--{flag}: got {','.join(getattr(FLAGS, flag))}, expected numbers") from None


def _policy(image_size: tuple[int, int]) -> policies.Policy:
    """The policy of the flags, with ops that can be applied to the images."""
    found = named_policy.load(FLAGS.policy)
    if FLAGS.freeze_schedule:
        both = FLAGS.freeze_schedule == "both"
        p_tp, p_o = (both or FLAGS.freeze_schedule == part for part in ("p_tp", "p_o"))
        found = schedule.freeze(found, p_tp=p_tp, p_o=p_o)
    space = policies.space(found)
    if image_size[0] != image_size[1] and "Rotate90" in [row.name for row in space.rows]:
        raise ValueError(
            f"--policy={FLAGS.policy}: Rotate90 needs square images, got {image_size[0]} x {image_size[1]}"
        )
    return found


def _task(dataset: datasets.Dataset, resolved: dict[str, Any]) -> train_run.Task:
    """Everything that the flags say, checked, before any folder is made."""
    count, *image_size = dataset.train_images.shape[:3]
    if FLAGS.batch_size > count:
        raise ValueError(f"--batch_size={FLAGS.batch_size}: {dataset.name} has only {count} training images")
    devices.check_batch("batch_size")
    try:
        module, model_config = models.by_name(FLAGS.model, dataset.num_classes, max(image_size))
        train_run.num_parameters((module, model_config))
    except ValueError as error:
        raise ValueError(f"--model: {error}") from error
    apply = module.apply
    if FLAGS.batch_norm_momentum is not None:
        apply = functools.partial(apply, batch_norm_momentum=FLAGS.batch_norm_momentum)
    config = policy_training.Config(
        apply=apply,
        policy=_policy(tuple(image_size)),
        steps_per_epoch=count // FLAGS.batch_size,
        num_epochs=FLAGS.epochs,
        decay_epochs=_numbers("decay_epochs"),
        clip_norm=FLAGS.clip_norm or None,
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
        **{
            name: getattr(FLAGS, name)
            for name in (
                "learning_rate",
                "schedule",
                "cosine_epochs",
                "warmup_epochs",
                "warmup_multiplier",
                "weight_decay",
                "decay_batch_norm",
                "label_smoothing",
                "batch_augmentation",
                "dtype",
                "policy_position",
                "crop_padding",
                "flip",
                "cutout_length",
            )
        },
    )
    mesh = devices.mesh()
    return train_run.Task(
        config=config,
        model=(module, model_config),
        data=devices.replicate(train_run.to_device(dataset), mesh),
        batch_size=FLAGS.batch_size,
        eval_batch_size=FLAGS.eval_batch_size,
        recipe={name: value for name, value in resolved.items() if name not in NOT_RECIPE},
        mesh=mesh,
    )


def _report(seed: int, summary: dict[str, Any], folder) -> str:
    last, best = summary["last"], summary["best"]
    return (
        f"\nseed {seed}\n"
        f"last epoch {last['epoch']:4d}   test error {100 * last['test_error']:.2f} %\n"
        f"best epoch {best['epoch']:4d}   test error {100 * best['test_error']:.2f} %   "
        "(chosen by the test error itself, so optimistic)\n"
        f"summary  {folder.path / 'summary.json'}\nfigures  {folder.figures_path}"
    )


def main(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; options start with --")
    devices.start()
    compilation_cache.use(FLAGS.compilation_cache_dir)
    resolved = resolve_flags()
    dataset = datasets.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.download, FLAGS.image_size)
    task = _task(_plant(dataset), resolved)
    if FLAGS.smoke:
        first, second = train_run.smoke(task, FLAGS.seed)
        print(
            f"{FLAGS.model}, {train_run.num_parameters(task.model):,} parameters, "
            f"loss {first:.4f} and {second:.4f} in two steps"
        )
        return
    folders = seeds.open_folders(
        pathlib.Path(FLAGS.run_dir),
        range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds),
        resolved,
        resume=FLAGS.resume,
    )
    for seed, summary in train_run.run(task, folders):
        print(_report(seed, summary, folders[seed]))


if __name__ == "__main__":
    command_line.run(main)
