"""Searches an augmentation policy and writes it as a file, with metrics and figures.

    python -m experiments.search --flagfile=experiments/flags/dada_quick.flags --run_dir=runs/quick

Writes RUN_DIR/policy.json, metrics.jsonl, summary.json, figures/*.png and checkpoints (`run_folder`);
with --num_seeds above 1 one such folder for each seed, RUN_DIR/seed_N. The same flags give the same
bytes of policy.json, also when the run was killed and resumed.
"""

import dataclasses
import math
import pathlib
import time
from typing import Any

import jax
from absl import flags

from dada import dada_config, dada_official, models, op_table, policy_table
from experiments import command_line, datasets, run_flags, search_loop, search_run, seeds

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)

flags.DEFINE_integer("max_steps", None, "End after this many steps.", lower_bound=1)
flags.DEFINE_string("planted_op", None, "NAME or NAME:VALUE, applied to every validation image.")

flags.DEFINE_enum("preset", "corrected", ("corrected", "official"), "Official: as the released code does.")
flags.DEFINE_string("search_space", None, "Default: strength; dada in the official preset.")
flags.DEFINE_list("extra_ops", [], "Ops without magnitude to add to the search space.")
flags.DEFINE_enum("policy_space", "pairs", ("pairs", "slots"), "What the policy is made of.")
flags.DEFINE_enum("draws", None, ("image", "batch"), "What shares one draw. Default: image; official: batch.")
flags.DEFINE_enum("estimator", "relax", dada_config.ESTIMATORS, "Estimator of the policy gradient.")
flags.DEFINE_enum(
    "hypergradient",
    None,
    ("exact", "finite_difference"),
    "Directional derivatives by JVP or by differences. Default: exact; official: finite_difference.",
)
flags.DEFINE_integer("top_k", 25, "Sub-policies that the policy keeps.", lower_bound=1)

flags.DEFINE_integer("valid_batch_size", None, "Validation images per step; --batch_size.", lower_bound=1)
flags.DEFINE_float("policy_learning_rate", None, "Adam. Default: 0.05; official: 0.005.", lower_bound=0.0)
flags.DEFINE_float(
    "control_learning_rate", None, "Adam, of RELAX's control variate. Default: 0.01; official: 0.005.",
    lower_bound=0.0,
)
flags.DEFINE_bool("share_between_pairs", True, "Pairs that have an op in common share gradients.")
flags.DEFINE_float("temperature", None, "Of relaxed samples: 0.5; 1.0 for mixtures.", lower_bound=1e-3)
flags.DEFINE_float(
    "final_temperature", None, "At the end. Default: --temperature; 0.1 for mixtures.", lower_bound=1e-3
)


def resolve_flags() -> dict[str, Any]:
    """Fills in the defaults that depend on other flags; returns all flags of this binary by name."""
    is_official = FLAGS.preset == "official"
    is_mixture = FLAGS.estimator in ("gumbel", "straight_through") and not is_official
    settings = {field.name: field.default for field in dataclasses.fields(dada_config.Config)}
    settings.update(dada_official.SETTINGS if is_official else {})
    temperature = 1.0 if is_mixture else settings["temperature"][0]
    name = f"dada_{pathlib.Path(FLAGS.dataset).stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    defaults = {
        "run_dir": str(pathlib.Path("runs") / name),
        "epochs": 20,
        "search_space": "dada" if is_official else "strength",
        "valid_batch_size": FLAGS.batch_size,
        "draws": settings["draws"],
        "hypergradient": settings["hypergradient"],
        "policy_learning_rate": settings["policy_learning_rate"],
        "control_learning_rate": settings["control_learning_rate"],
        "temperature": temperature,
        "final_temperature": 0.1 if is_mixture else FLAGS.temperature or temperature,
    }
    for flag, value in defaults.items():
        if getattr(FLAGS, flag) is None:
            setattr(FLAGS, flag, value)
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(__name__)}


def _planted_op(text: str | None, space: op_table.SearchSpace) -> tuple[str, float] | None:
    """The flag NAME or NAME:VALUE as name and value."""
    if text is None:
        return None
    name, _, value = text.partition(":")
    if name not in op_table.OPS:
        raise ValueError(f"--planted_op: got {name!r}, expected one of {', '.join(op_table.OPS)}")
    rows = [row for row in space.rows if row.name == name]
    if not rows:
        raise ValueError(f"--planted_op: {name} is not in the search space; --extra_ops={name} adds it")
    row = rows[0]
    # Without a value, that of level 0.5, or of level 1 where 0.5 leaves the images as they are.
    middle = 0.5 * (row.low + row.high)
    default = row.high if middle == row.identity else middle
    try:
        number = float(value) if value else default
    except ValueError:
        raise ValueError(f"--planted_op: got {text!r}, expected NAME or NAME:NUMBER") from None
    if not math.isfinite(number) or number == row.identity:
        raise ValueError(f"--planted_op: got {text!r}, expected a finite value that changes the images")
    return name, number


def _task(dataset: datasets.Dataset) -> search_run.Task:
    """Everything that the flags say, checked, before any folder is made."""
    space = op_table.search_space(FLAGS.search_space, tuple(FLAGS.extra_ops))
    op_table.row_op_ids(space)
    train_indices, valid_indices = datasets.search_split(dataset)
    for flag, count in (("batch_size", len(train_indices)), ("valid_batch_size", len(valid_indices))):
        if getattr(FLAGS, flag) > count:
            raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: the search has only {count} such images")
    size = dataset.train_images.shape[1:3]
    if size[0] != size[1] and "Rotate90" in FLAGS.extra_ops:
        raise ValueError(f"--extra_ops: Rotate90 needs square images, got {size[0]} x {size[1]}")
    network, network_config = models.by_name(FLAGS.model, dataset.num_classes, max(size))
    jax.eval_shape(lambda: network.init(jax.random.key(0), network_config))  # refuses a wrong depth
    if FLAGS.hypergradient == "exact" and not network.FORWARD_MODE:
        raise ValueError(f"--model={FLAGS.model} has no forward mode: --hypergradient=finite_difference")
    config = dada_config.Config(
        apply=network.apply,
        space=space,
        num_epochs=FLAGS.epochs,
        steps_per_epoch=search_loop.steps_per_epoch(len(train_indices), FLAGS.batch_size),
        temperature=(FLAGS.temperature, FLAGS.final_temperature),
        mean=tuple(dataset.mean.tolist()),
        std=tuple(dataset.std.tolist()),
        clip_norm=FLAGS.clip_norm or None,
        **{
            name: getattr(FLAGS, name)
            for name in (
                "preset",
                "policy_space",
                "draws",
                "estimator",
                "hypergradient",
                "learning_rate",
                "weight_decay",
                "policy_learning_rate",
                "control_learning_rate",
                "share_between_pairs",
                "crop_padding",
                "flip",
                "cutout_length",
                "top_k",
            )
        },
    )
    data = search_loop.to_device(dataset, train_indices, valid_indices)
    planted = _planted_op(FLAGS.planted_op, space)
    if planted:
        images = search_loop.plant(*planted, data.valid.images)
        data = data._replace(valid=data.valid._replace(images=images))
    return search_run.Task(
        config=config,
        model=(network, network_config),
        dataset=dataset,
        data=data,
        sizes=(FLAGS.batch_size, FLAGS.valid_batch_size),
        planted=planted,
        max_steps=FLAGS.max_steps,
    )


def main(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; options start with --")
    resolved = resolve_flags()
    task = _task(datasets.load(FLAGS.dataset, FLAGS.data_dir, FLAGS.download, FLAGS.image_size))
    if task.planted:
        resolved["planted_op"] = "{}:{}".format(*task.planted)
    folders = seeds.open_folders(
        pathlib.Path(FLAGS.run_dir),
        range(FLAGS.seed, FLAGS.seed + FLAGS.num_seeds),
        resolved,
        resume=FLAGS.resume,
    )
    for group in seeds.groups(folders):
        results = search_run.run(task, group)
        for seed, found in results.items():
            folder = folders[seed]
            print(f"\nseed {seed}\n{policy_table.format_table(found)}")
            print(f"policy   {folder.policy_path}\nfigures  {folder.figures_path}")


if __name__ == "__main__":
    command_line.run(main)
