"""A data set of tiny images, and runs of the binaries on it, in this process or in processes of their own."""

import os
import pathlib
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
from PIL import Image

from experiments import table_run
from experiments.runs import command_line, run_folder

ROOT = pathlib.Path(__file__).resolve().parent.parent


def write_data_set(path, count, num_test):
    """Images of 8 x 8 in 4 classes that brightness tells apart; the first of them are the test images."""
    generator = np.random.default_rng(0)
    labels = np.arange(count) % 4
    images = generator.integers(0, 80, (count, 8, 8, 3)) + 40 * labels[:, None, None, None]
    np.savez(
        path,
        train_images=images.astype(np.uint8),
        train_labels=labels,
        test_images=images[:num_test].astype(np.uint8),
        test_labels=labels[:num_test],
    )


def write_folder(path, generator, count, num_test):
    """The same as JPEG files of several sizes in class folders, with so many images of each class."""
    for part, number in (("train", count), ("val", num_test)):
        for label in range(4):
            (path / part / f"class_{label}").mkdir(parents=True)
            for place in range(number):
                size = (*generator.integers(9, 20, 2), 3)
                pixels = (generator.integers(0, 80, size) + 40 * label).astype(np.uint8)
                file = path / part / f"class_{label}" / f"{place}.JPEG"
                Image.fromarray(pixels).save(file, quality=95)


def data_of_recipe(path, folder):
    """Flags of a small data set for a flag file; `folder` has tiny.npz, and class folders in `folder`."""
    if "--task=detection" in path.read_text():
        return ["--dataset=embedded", "--image_size=64"]
    return [f"--dataset={folder / ('folder' if 'imagenet' in path.stem else 'tiny.npz')}"]


def command(settings, **changes):
    """Flags as a command line, on one device unless they say otherwise; None leaves a flag out."""
    given = {"num_devices": 1, **settings, **changes}
    texts = {name: ",".join(value) if isinstance(value, list) else value for name, value in given.items()}
    return [f"--{name}={text}" for name, text in texts.items() if text is not None]


def run_here(binary, settings, run_dir, **changes):
    """Runs a binary, given as its module, in this process; returns its run folder."""
    binary.main(*command_line.parse(binary.define, command(settings, run_dir=run_dir, **changes)))
    return run_dir


def task(binary, settings, dataset, **changes):
    """(what a binary would run, its resolved flags)."""
    resolved = binary.resolve(command(settings, **changes))
    return binary.task_of(resolved, dataset), resolved


def start(binary, settings, run_dir, *more, xla_flags=""):
    """Starts a binary as a process of its own on one device, with the compiled programs of all tests."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] += f" {xla_flags}"
    folder = environment.pop("JAX_COMPILATION_CACHE_DIR")  # so that the flag has to work
    given = command(settings, run_dir=run_dir, compilation_cache_dir=folder)
    line = [sys.executable, "-m", binary.__name__, *given, *more]
    return subprocess.Popen(line, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(binary, settings, run_dir, *more):
    """Runs a binary as a process to its end; returns its run folder."""
    process = start(binary, settings, run_dir, *more)
    code, errors = _end(process, timeout=600)
    assert code == 0, errors
    return run_dir


def stand_in(monkeypatch, run):
    """Lets a function start the processes of tables, in place of subprocess.run."""
    names = types.SimpleNamespace(run=run, DEVNULL=None, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(table_run, "subprocess", names)


def compiled_programs():
    """Names of the programs that tests and processes have compiled so far."""
    return {path.name for path in pathlib.Path(jax.config.jax_compilation_cache_dir).iterdir()}


def kill_when(process, condition, delay=0.0):
    """Kills a process, without a chance to end in order, as soon as a condition holds, or seconds after."""
    deadline = time.monotonic() + 240
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(process.communicate()[1])
        time.sleep(0.002)
    time.sleep(delay)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()


def is_open(path, number_of_resumes):
    """Whether a run has been resumed so often, so that what lies in its folder is of the last start."""
    try:
        return len(run_folder.read_environment(path).get("resumed", [])) == number_of_resumes
    except FileNotFoundError:
        return False


def kill_at_random(process, path, number_of_resumes, num_lines, generator):
    """Kills a process a random moment after that many lines of metrics, which its own start has reached."""

    def condition():
        return is_open(path, number_of_resumes) and len(run_folder.read_metrics(path)) >= num_lines

    kill_when(process, condition, delay=generator.uniform(0.0, 0.1))


def snapshot(path):
    """Time of change and bytes of every file below a folder."""
    files = (file for file in pathlib.Path(path).rglob("*") if file.is_file())
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def assert_fails_with_one_line(process, message):
    """Exit code 2 and one line on stderr that has the message."""
    code, errors = _end(process, timeout=300)
    assert code == 2, errors
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], errors


def _end(process, timeout):
    """Exit code and stderr of a process, which does not outlive its time."""
    try:
        _, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    return process.returncode, errors
