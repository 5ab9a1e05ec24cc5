"""Measures what the library costs, side by side with the alternatives, in one run.

    python -m experiments.benchmark --run_dir=runs/benchmark
    python -m experiments.benchmark --only=steps --models=wrn_10_1
    python -m experiments.benchmark --quick

Writes RUN_DIR/benchmark.json, benchmark.md and, of the first two, benchmark.png after every part, and prints
the tables:

    augment   images per second of a policy, against Pillow and vmap(lax.switch)
    steps     a step of DADA, DDAS and DeepAA in plain training steps; memory and compilation
    train     training with a policy against training without, and that against PyTorch where it is installed
    input     images per second that threads of the host decode and crop, against Pillow; how long steps wait
    limits    the share of the device's limits that training reaches; on GPUs whose peaks are known

On a CPU the default leaves out WRN-28-10, takes WRN-40-2 with batches of 32, and shows ratios only; most of
its minutes go into compiling (--models=wrn_10_1 takes a third of them). Programs are compiled into a folder
of this run's own, so that what compiling takes can be told. --quick is one network and the cheap lines of
every part, in a few minutes.
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
from dada.searches import dada
from experiments.data import datasets
from experiments.figures import benchmark_figure
from experiments.measure import (
    benchmark_augment,
    benchmark_input,
    benchmark_report,
    benchmark_steps,
    benchmark_train,
)
from experiments.measure.benchmark_report import MODELS
from experiments.runs import command_line, compilation_cache, compiled_loop, run_folder, train_run

PARTS = ("augment", "steps", "train", "input", "limits")
_CPU_MODELS = ("wrn_10_1", "wrn_40_2")
_CPU_BATCH_SIZES = {"wrn_10_1": 128}  # of other networks 32: a step of 128 images takes half a minute


def define(values: flags.FlagValues) -> None:
    add = command_line.definers(values)
    add.string("run_dir", None, "Folder for everything that is written; new or empty.")
    add.integer("seed", 0, "Seed of everything random.", 0, command_line.MAX_SEED)
    about = "Of every part the cheap lines; --models is wrn_40_2, on a CPU wrn_10_1, unless it is given."
    add.bool("quick", False, about)
    add.list("only", list(PARTS), f"Parts that are run, some of {', '.join(PARTS)}.")
    add.list("models", [], f"Networks. Default: {', '.join(MODELS)}; on a CPU {', '.join(_CPU_MODELS)}.")
    about = "Images in a step. Default: 128; on a CPU 32 for all networks but wrn_10_1."
    add.integer("batch_size", None, about, lower_bound=2)
    add.integer("augment_batch_size", 512, "Images of 32 x 32 that are augmented at once.", lower_bound=1)


def _check(values: flags.FlagValues) -> None:
    if not values.only or not set(values.only) <= set(PARTS):
        raise ValueError(f"--only: got {','.join(values.only)!r}, expected some of {', '.join(PARTS)}")
    for name in values.models:
        try:
            train_run.num_parameters(models.by_name(name, 10, 32))
        except ValueError as error:
            raise ValueError(f"--models: {error}") from error
    draws, size = dada.Config.num_draws, values.batch_size
    if "steps" in values.only and size is not None and (size % draws or size < 2 * draws):
        expected = f"a multiple of {draws}, the draws of a step of DADA, twice at least"
        raise ValueError(f"--batch_size: got {size}, expected {expected}")


def _default_models(quick: bool) -> tuple[str, ...]:
    if compiled_loop.scans():
        return ("wrn_40_2",) if quick else MODELS
    return ("wrn_10_1",) if quick else _CPU_MODELS


def _batch_sizes(values: flags.FlagValues) -> dict[str, int]:
    """The networks, and the batch size of the searches and trainings of each."""
    names = values.models or _default_models(values.quick)
    default = {name: 128 if compiled_loop.scans() else _CPU_BATCH_SIZES.get(name, 32) for name in names}
    return {name: values.batch_size or default[name] for name in names}


def _run(
    part: str, values: flags.FlagValues, results: dict[str, Any], dataset: datasets.Dataset
) -> dict[str, Any] | str:
    """Runs a part."""
    images, sizes = dataset.train_images, _batch_sizes(values)
    if part == "augment":
        return benchmark_augment.run(images, values.augment_batch_size, values.seed, quick=values.quick)
    if part == "steps":
        return benchmark_steps.run(sizes, dataset, values.seed, quick=values.quick)
    if part == "train":
        return benchmark_train.run(sizes, images, values.seed)
    if part == "input":
        return benchmark_input.run(values.seed)
    device = jax.devices()[0]
    if device.platform != "gpu":
        return f"{benchmark_report.NOT_RUN}: no GPU"
    sizes = {name: size for name, size in sizes.items() if name in benchmark_train.WORK}
    trained = results.get("train") or benchmark_train.run(sizes, images, values.seed)
    return benchmark_train.limits(trained, device.device_kind)


def _write(folder: pathlib.Path, results: dict[str, Any]) -> str:
    """Writes the files; returns the Markdown."""
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


def _open_folder(run_dir: str | None) -> pathlib.Path:
    path = pathlib.Path(run_dir or f"runs/benchmark_{time.strftime('%Y%m%d_%H%M%S')}")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is not an empty folder: choose another")
    path.mkdir(parents=True, exist_ok=True)
    return path


def main(values: flags.FlagValues, arguments: list[str]) -> None:
    command_line.require_no_arguments(arguments)
    _check(values)
    folder = _open_folder(values.run_dir)
    values.run_dir = str(folder)
    environment = {**run_folder.environment(), "pillow": PIL.__version__}
    if version := benchmark_train.pytorch_version():
        environment["pytorch"] = version
    results = {
        "environment": environment,
        "settings": {
            "quick": values.quick,
            "only": [part for part in PARTS if part in values.only],
            "batch_size": _batch_sizes(values),
            "augment_batch_size": values.augment_batch_size,
            "seed": values.seed,
        },
    }
    text = _write(folder, results)
    dataset = datasets.load("embedded")
    with _compiled_programs():
        for part in PARTS:
            if part in values.only:
                results[part] = _run(part, values, results, dataset)
                text = _write(folder, results)
    print(text)
    print(f"results  {', '.join(str(file) for file in sorted(folder.glob('benchmark.*')))}")


if __name__ == "__main__":
    command_line.run(define, main)
