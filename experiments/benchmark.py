"""Measures what the library costs, side by side with the alternatives, in one run.

    python -m experiments.benchmark --run_dir=runs/benchmark
    python -m experiments.benchmark --only=planted --planted_ops=Invert,Rotate90

Writes RUN_DIR/benchmark.json, benchmark.md and benchmark.png after every part, and prints the tables:

    augment   images per second of a policy, against Pillow and vmap(lax.switch)
    steps     a step of DADA, DDAS and DeepAA in plain training steps; memory and compilation
    train     training with a policy against training without
    limits    the share of the device's limits that training reaches; on GPUs whose peaks are known
    planted   seconds until a planted op leads, corrected against official; only when asked for: minutes

On a CPU the default leaves out WRN-28-10, takes WRN-40-2 with batches of 32, and shows ratios only; most of
its minutes go into compiling (--models=wrn_10_1 takes a third of them). Programs are compiled into a folder
of this run's own, so that what compiling takes can be told.
"""

import contextlib
import json
import pathlib
import tempfile
import time
from typing import Any

import jax
import PIL
from absl import flags
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from dada import models
from experiments.data import datasets
from experiments.figures import benchmark_figure
from experiments.measure import (
    benchmark_augment,
    benchmark_planted,
    benchmark_report,
    benchmark_steps,
    benchmark_train,
)
from experiments.measure.benchmark_report import MODELS
from experiments.methods import dada_method, ddas_method
from experiments.runs import command_line, compilation_cache, compiled_loop, run_flags, run_folder, train_run

FLAGS = flags.FLAGS
flags.declare_key_flag("run_dir")
flags.declare_key_flag("seed")
flags.declare_key_flag("batch_size")

PARTS = ("planted", "augment", "steps", "train", "limits")
_DEFAULT_PARTS = PARTS[1:]
_CPU_MODELS = ("wrn_10_1", "wrn_40_2")
_CPU_BATCH_SIZES = {"wrn_10_1": 128}  # of other networks 32: a step of 128 images takes half a minute

flags.DEFINE_list("only", list(_DEFAULT_PARTS), f"Parts that are run, some of {', '.join(PARTS)}.")
flags.DEFINE_list("models", [], f"Networks. Default: {', '.join(MODELS)}; on a CPU {', '.join(_CPU_MODELS)}.")
flags.DEFINE_integer(
    "augment_batch_size", 512, "Images of 32 x 32 that are augmented at once.", lower_bound=1
)
flags.DEFINE_list("planted_ops", ["Invert"], "Ops that are planted, one after the other.")


def _check_flags() -> None:
    own = {flag.name for flag in FLAGS.get_key_flags_for_module(__name__)}
    for module in (run_flags, dada_method, ddas_method):
        for flag in FLAGS.get_key_flags_for_module(module.__name__):
            if flag.present and flag.name not in own:
                raise ValueError(f"--{flag.name}: the benchmark has its own settings")
    if not FLAGS.only or not set(FLAGS.only) <= set(PARTS):
        raise ValueError(f"--only: got {','.join(FLAGS.only)!r}, expected some of {', '.join(PARTS)}")
    for name in FLAGS.models:
        try:
            train_run.num_parameters(models.by_name(name, 10, 32))
        except ValueError as error:
            raise ValueError(f"--models: {error}") from error
    benchmark_planted.check(FLAGS.planted_ops)


def _batch_sizes() -> dict[str, int]:
    """The networks, and the batch size of the searches and trainings of each."""
    names = FLAGS.models or (MODELS if compiled_loop.scans() else _CPU_MODELS)
    if FLAGS["batch_size"].using_default_value and not compiled_loop.scans():
        return {name: _CPU_BATCH_SIZES.get(name, 32) for name in names}
    return dict.fromkeys(names, FLAGS.batch_size)


def _run(part: str, results: dict[str, Any], dataset: datasets.Dataset) -> dict[str, Any] | str:
    """Runs a part on the device of this process, which `planted` must not have started yet."""
    images = dataset.train_images
    if part == "augment":
        return benchmark_augment.run(images, FLAGS.augment_batch_size, FLAGS.seed)
    if part == "steps":
        return benchmark_steps.run(_batch_sizes(), dataset, FLAGS.seed)
    if part == "train":
        return benchmark_train.run(_batch_sizes(), images, FLAGS.seed)
    device = jax.devices()[0]
    if device.platform != "gpu":
        return f"{benchmark_report.NOT_RUN}: no GPU"
    sizes = {name: size for name, size in _batch_sizes().items() if name in benchmark_train.WORK}
    trained = results.get("train") or benchmark_train.run(sizes, images, FLAGS.seed)
    return benchmark_train.limits(trained, device.device_kind)


def _write(folder: pathlib.Path, results: dict[str, Any]) -> str:
    """Writes the three files; returns the Markdown."""
    text = benchmark_report.markdown(results)
    (folder / "benchmark.json").write_text(json.dumps(results, indent=2) + "\n")
    (folder / "benchmark.md").write_text(text)
    benchmark_figure.draw(results, folder / "benchmark.png")
    return text


@contextlib.contextmanager
def _compiled_programs():
    """A folder of compiled programs that is empty, so that the first compilation of each is a cold one."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        jax_cache.reset_cache()  # JAX stays with the folder that it compiled something into
        compilation_cache.use(folder)
        try:
            yield
        finally:
            jax_cache.reset_cache()
            for name, value in before.items():
                jax.config.update(name, value)


def _open_folder() -> pathlib.Path:
    path = pathlib.Path(FLAGS.run_dir or f"runs/benchmark_{time.strftime('%Y%m%d_%H%M%S')}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder: choose another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def main(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; options start with --")
    _check_flags()
    folder = _open_folder()
    planted = {}
    if "planted" in FLAGS.only:  # before this process takes the device
        planted["planted"] = benchmark_planted.run(FLAGS.planted_ops, folder / "planted", FLAGS.seed)
    results = {
        "environment": {**run_folder.environment(), "pillow": PIL.__version__},
        "settings": {
            "only": [part for part in PARTS if part in FLAGS.only],
            "batch_size": _batch_sizes(),
            "augment_batch_size": FLAGS.augment_batch_size,
            "seed": FLAGS.seed,
        },
        **planted,
    }
    text = _write(folder, results)
    dataset = datasets.load("embedded")
    with _compiled_programs():
        for part in _DEFAULT_PARTS:
            if part in FLAGS.only:
                results[part] = _run(part, results, dataset)
                text = _write(folder, results)
    print(text)
    print(f"results  {folder / 'benchmark.json'}, benchmark.md, benchmark.png")


if __name__ == "__main__":
    command_line.run(main)
