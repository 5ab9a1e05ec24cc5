"""The run folder: everything that a run leaves on disk, and what a resumed run reads back.

    flags.txt          resolved flags, one --name=value a line, sorted; readable by --flagfile
    environment.json   versions, devices and commit of the first start; later starts under "resumed"
    metrics.jsonl      one JSON object a line, each with its "step"
    checkpoints/STEP/  Orbax checkpoints, the last two
    policy.json        written by the run, through the policy module
    figures/           written by `plot`
    summary.json       the result, written at the end

Contract: `create` opens a folder for a new or a resumed run, and `RunFolder` is the only writer in
it. `read_flags`, `read_metrics` and `read_summary` are for programs that look at finished runs.

A run can be killed at any moment: a JSON file is replaced in one step, a checkpoint gets its name
by a rename after its last byte, and a resumed run drops the metric lines beyond its checkpoint and
a line that was cut off.

Of several processes (`devices`) the first one writes, and all of them open the folder and take part in
checkpoints.
"""

import contextlib
import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

from experiments.runs import devices

# A resumed run may have other values of these than its first start.
FREE_FLAGS = (
    *("resume", "run_dir", "max_steps", "measure_cost", "download"),
    *("compilation_cache_dir", "num_devices"),
)
_CHECKPOINTS_KEPT = 2
_FIRST_FILES = {"environment.json", "environment.json.part", "flags.txt.part"}
_PACKAGES = ("jax", "jaxlib", "numpy", "optax")


def create(path, flags, *, resume=False):
    """Opens the folder of a run, which is created if missing.

    Args:
      flags: mapping from flag name to resolved value (None, bool, int, float, str, or a list of them).
      resume: go on in a folder that an earlier start of the same run left, without the metrics of steps after
        its last checkpoint.

    Raises:
      ValueError: a new run in a folder with content, or a resumed run with other flags than flags.txt holds.
      FileNotFoundError: a resumed run in a folder that no run has left.
    """
    path = pathlib.Path(path)
    if resume:
        _check_same_flags(path, flags)
    # A start that was killed before flags.txt has left nothing to lose.
    elif path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - _FIRST_FILES):
        raise ValueError(f"{path} is not an empty folder: choose another, or add --resume")
    lines = _flag_lines(flags)
    devices.barrier(f"{path}: checked")  # by all processes, before the first one changes it
    folder = RunFolder(path)
    if devices.is_primary() and resume:
        folder.clean()
        first = json.loads((path / "environment.json").read_text())
        first.setdefault("resumed", []).append(environment())
        _write_json(path / "environment.json", first)
    elif devices.is_primary():
        path.mkdir(parents=True, exist_ok=True)
        _write_json(path / "environment.json", environment())
        # Last, because a folder with flags.txt can be resumed.
        _replace(path / "flags.txt", "".join(f"{line}\n" for line in lines))
    devices.barrier(f"{path}: open")
    return folder


class RunFolder:
    """Owns an open run folder; made by `create`."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.policy_path = self.path / "policy.json"
        self._checkpoints = (self.path / "checkpoints").absolute()

    @property
    def figures_path(self):
        """The folder for figures, created on first use."""
        (self.path / "figures").mkdir(exist_ok=True)
        return self.path / "figures"

    def log(self, step, metrics):
        """Appends one line to metrics.jsonl and hands it to the operating system at once.

        `metrics` maps names to numbers, strings or arrays; a number that is not finite becomes null.
        """
        if not devices.is_primary():
            return
        line = json.dumps(_to_json({"step": step, **metrics}), allow_nan=False)
        with open(self.path / "metrics.jsonl", "a") as file:
            file.write(line + "\n")

    def write_summary(self, summary):
        """Writes summary.json: a mapping of numbers, strings, arrays, lists and mappings."""
        _write_json(self.path / "summary.json", summary)

    def save(self, step, tree):
        """Saves a pytree of arrays, typed keys included, and deletes all checkpoints but the last two.

        Called by all processes; a checkpoint of the same step is replaced.
        """
        with _quiet():
            ocp.save(self._checkpoints / str(step), tree, overwrite=True)
        if devices.is_primary():
            for old in self._steps()[:-_CHECKPOINTS_KEPT]:
                shutil.rmtree(self._checkpoints / str(old))

    def latest_step(self):
        """The step of the newest whole checkpoint, or None."""
        return max(self._steps(), default=None)

    def restore(self, abstract_tree, step=None):
        """Reads a whole checkpoint, one of the last two; the newest without `step`.

        `abstract_tree` has arrays or jax.ShapeDtypeStruct with the structure, shapes and types of the saved
        pytree; a leaf without a sharding goes to this process's first device.

        Raises:
          FileNotFoundError: there is no checkpoint. ValueError: it is damaged, or its structure or a shape
            differs.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise FileNotFoundError(f"{self._checkpoints}: no checkpoint")
        path = self._checkpoints / str(step)
        try:
            with _quiet():
                return ocp.load(path, jax.tree.map(_with_sharding, abstract_tree))
        # Orbax and TensorStore raise many types for files that are damaged.
        except Exception as error:
            raise ValueError(
                f"checkpoint {path} does not fit this run or is damaged ({str(error)[:300]}); "
                "without that folder, --resume goes on from the one before"
            ) from error

    def clean(self, last=None):
        """Deletes half-written checkpoints, and metrics after step `last` (the newest checkpoint)."""
        if not devices.is_primary():
            return
        for half_written in self._checkpoints.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half_written)
        last = (self.latest_step() or 0) if last is None else last
        kept = [line for line in read_metrics(self.path) if line["step"] <= last]
        _replace(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _steps(self):
        """Sorted steps of the whole checkpoints; Orbax writes this file just before the rename."""
        checkpoints = self._checkpoints.glob("*/_CHECKPOINT_METADATA")
        return sorted(int(file.parent.name) for file in checkpoints if file.parent.name.isdecimal())


def environment():
    """What a run depends on besides its flags: versions, devices, commit, time."""
    all_devices = jax.devices()
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": all_devices[0].platform,
        "device_kind": all_devices[0].device_kind,
        "device_count": len(all_devices),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "git_commit": _git_commit(),
        "start_time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def read_flags(path):
    """The flags of a run folder: mapping from name to value, both as text."""
    file = pathlib.Path(path) / "flags.txt"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, so {path} is not a run folder")
    return _parse_flags(file.read_text().splitlines())


def flag_texts(flags):
    """Resolved flags as `read_flags` gives them back: mapping from name to text, without None."""
    return _parse_flags(_flag_lines(flags))


def read_metrics(path):
    """The lines of metrics.jsonl of a run folder as mappings, without a line that was cut off."""
    file = pathlib.Path(path) / "metrics.jsonl"
    lines = file.read_text().split("\n") if file.exists() else [""]
    metrics = []
    # Only what ends in a line break was written whole; the last piece is empty or cut off.
    for number, line in enumerate(lines[:-1], start=1):
        try:
            metrics.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not JSON: {line[:80]!r}") from error
    return metrics


def read_summary(path):
    """summary.json of a run folder as a mapping."""
    file = pathlib.Path(path) / "summary.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; not a run folder, or not a finished run")
    return json.loads(file.read_text())


def _flag_lines(flags):
    """--name=value lines, sorted; without the flags that are None, which no flag file can say."""
    lines = []
    for name, value in sorted(flags.items()):
        if value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif isinstance(value, list | tuple):
            value = ",".join(map(str, value))
        line = f"--{name}={value}"
        if len(line.splitlines()) > 1:
            raise ValueError(f"flag {name} has a line break: {value!r}; expected one line")
        lines.append(line)
    return lines


def _parse_flags(lines):
    return dict(line.removeprefix("--").split("=", 1) for line in lines)


def _check_same_flags(path, flags):
    before = read_flags(path)
    now = flag_texts(flags)
    for name in sorted(before.keys() | now.keys()):
        if name not in FREE_FLAGS and before.get(name) != now.get(name):
            raise ValueError(
                f"{path} was run with --{name}={before.get(name, '(unset)')}, got "
                f"{now.get(name, '(unset)')}: a resumed run needs the same flags"
            )


def _git_commit():
    """Commit of the source tree, with "-dirty" if files differ from it; None without one."""
    root = pathlib.Path(__file__).resolve().parents[2]
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=10)
        return output.decode().strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _to_json(value):
    """Arrays to lists, numbers that are not finite to null."""
    if isinstance(value, dict):
        return {str(key): _to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _to_json(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_json(path, content):
    _replace(path, json.dumps(_to_json(content), indent=2, allow_nan=False) + "\n")


def _replace(path, text):
    """Writes a file so that a reader, or a run that is killed, finds the old or the new content."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)


def _with_sharding(leaf):
    if not isinstance(leaf, jax.ShapeDtypeStruct | jax.Array):
        return leaf
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


@contextlib.contextmanager
def _quiet():
    """Keeps what Orbax logs out of a run's output: forty lines for each checkpoint, and errors that it raises."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.FATAL))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
