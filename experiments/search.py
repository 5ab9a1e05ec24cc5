"""Searches an augmentation policy and writes it as a file, with metrics and figures.

    python -m experiments.search --flagfile=experiments/flags/dada_quick.flags --run_dir=runs/quick

Writes RUN_DIR/policy.json, metrics.jsonl, summary.json, figures/*.png and checkpoints (`run_folder`);
with --num_seeds above 1 one such folder for each seed, RUN_DIR/seed_N. The same flags give the same
bytes of policy.json, also when the run was killed and resumed.
"""

import math
import pathlib
import time
from types import ModuleType
from typing import Any

import jax
from absl import flags

from dada import models, ops, policies
from experiments.data import datasets, planting
from experiments.methods import dada_method, ddas_method, deepaa_method, search_loop, search_run
from experiments.runs import command_line, compilation_cache, devices, run_flags, seeds

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(run_flags)

METHODS = {"dada": dada_method, "ddas": ddas_method, "deepaa": deepaa_method}
for _module in METHODS.values():
    flags.adopt_module_key_flags(_module)

flags.DEFINE_enum("method", "dada", tuple(METHODS), "How to search.")

flags.DEFINE_integer("max_steps", None, "End after this many steps.", lower_bound=1)

flags.DEFINE_enum("preset", "corrected", ("corrected", "official"), "Official: as the released code does.")
flags.DEFINE_string(
    "search_space", None, "Default: strength; dada in the official preset; ddas and deepaa for these methods."
)
flags.DEFINE_list("extra_ops", [], "Ops without magnitude to add to the search space.")
flags.DEFINE_enum("draws", None, ("image", "batch"), "What shares one draw. Default: image; official: batch.")
flags.DEFINE_integer(
    "valid_batch_size",
    None,
    "Validation images per step. Default: --batch_size; ddas: 256; deepaa: 64 for each data point.",
    lower_bound=1,
)
flags.DEFINE_float(
    "policy_learning_rate", None, "Adam. Default: 0.05; official: 0.005; deepaa: 0.025.", lower_bound=0.0
)


def _method() -> ModuleType:
    return METHODS[FLAGS.method]


def resolve_flags() -> dict[str, Any]:
    """Fills in the defaults that depend on other flags; returns all flags of this binary by name."""
    others = {}
    for name, module in METHODS.items():
        if name != FLAGS.method:
            others |= dict.fromkeys((flag.name for flag in FLAGS.get_flags_for_module(module)), name)
    for flag, name in others.items():
        if not FLAGS[flag].using_default_value:
            raise ValueError(f"--{flag} belongs to --method={name}, got --method={FLAGS.method}")
    run_name = f"{FLAGS.method}_{pathlib.Path(FLAGS.dataset).stem}_{time.strftime('%Y%m%d_%H%M%S')}"
    defaults = {"run_dir": str(pathlib.Path("runs") / run_name), "epochs": 20, **_method().defaults()}
    for flag, value in defaults.items():
        # A flag that both methods have may have a default of its own and a method another one.
        if FLAGS[flag].value is None or FLAGS[flag].using_default_value:
            setattr(FLAGS, flag, value)
    own = FLAGS.get_key_flags_for_module(__name__)
    return {flag.name: flag.value for flag in own if flag.name not in {*others, *devices.PROCESS_FLAGS}}


def _planted_op(text: str | None, config: Any) -> tuple[str, float] | None:
    """The op of the flag and its value, which must change images."""
    found = planting.parse(text)
    if found is None:
        return None
    name, value = found
    rows = config.space.rows
    if name not in [row.name for row in rows]:
        raise ValueError(f"--planted_op: {name} is not in the search space; --extra_ops={name} adds it")
    index = [row.name for row in rows].index(name)
    row = rows[index]
    if value is None:
        # That of the first level which does not leave the images as they are.
        levels = _method().planted_levels(config, index)
        values = [(1.0 - level) * row.low + level * row.high for level in levels]
        value = next((value for value in values if _changes_images(row, value)), values[0])
    if not _changes_images(row, value):
        raise ValueError(f"--planted_op: got {text!r}, expected a finite value that changes the images")
    return name, value


def _changes_images(row: ops.OpRow, value: float) -> bool:
    return row.identity is None or not math.isclose(value, row.identity, rel_tol=1e-6, abs_tol=1e-6)


def _task(dataset: datasets.Dataset) -> search_run.Task:
    """Everything that the flags say, checked, before any folder is made."""
    space = ops.search_space(FLAGS.search_space, tuple(FLAGS.extra_ops))
    train_indices, valid_indices = _method().split(dataset)
    for flag, count in (("batch_size", len(train_indices)), ("valid_batch_size", len(valid_indices))):
        if getattr(FLAGS, flag) > count:
            raise ValueError(f"--{flag}={getattr(FLAGS, flag)}: the search has only {count} such images")
    for flag in _method().DIVIDED:
        devices.check_batch(flag)
    size = dataset.train_images.shape[1:3]
    if size[0] != size[1] and "Rotate90" in [row.name for row in space.rows]:
        raise ValueError(f"search space: Rotate90 needs square images, got {size[0]} x {size[1]}")
    network, network_config = models.by_name(FLAGS.model, dataset.num_classes, max(size))
    jax.eval_shape(lambda: network.init(jax.random.key(0), network_config))  # refuses a wrong depth
    steps_per_epoch = search_loop.steps_per_epoch(len(train_indices), FLAGS.batch_size)
    config = _method().config(network, space, dataset, steps_per_epoch)
    data = search_loop.to_device(dataset, train_indices, valid_indices)
    planted_op = _planted_op(FLAGS.planted_op, config)
    if planted_op:
        images = planting.plant(*planted_op, data.valid.images)
        data = data._replace(valid=data.valid._replace(images=images))
    mesh = devices.mesh()
    return search_run.Task(
        method=_method(),
        config=config,
        model=(network, network_config),
        dataset=dataset,
        data=devices.replicate(data, mesh),
        sizes=(FLAGS.batch_size, FLAGS.valid_batch_size),
        planted=planted_op,
        max_steps=FLAGS.max_steps,
        mesh=mesh,
    )


def main(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; options start with --")
    devices.start()
    compilation_cache.use(FLAGS.compilation_cache_dir)
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
    for seed, found in _method().run(task, folders):
        folder = folders[seed]
        print(f"\nseed {seed}\n{policies.format_table(found)}")
        print(f"policy   {folder.policy_path}\nfigures  {folder.figures_path}")


if __name__ == "__main__":
    command_line.run(main)
