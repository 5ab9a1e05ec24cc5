"""The run folder: everything that a run leaves on disk, and what a resumed run reads back.

    flags.txt          resolved flags, one --name=value a line, sorted; readable by --flagfile
    inputs.json        what the run is made of: versions, platform, arithmetic; data, policies and network by
                       content (`contents`)
    environment.json   the same versions, devices and commit of the first start; later starts under "resumed";
                       "end_time" once all is done
    metrics.jsonl      one JSON object a line, each with its "step"
    checkpoints/STEP/  Orbax checkpoints, the last two
    policy.json        written by the run, through the policy module
    figures/           written by `plot`
    summary.json       the result, written at the end

Contract: `create` opens a folder for a new or a resumed run, and `RunFolder` is the only writer in
it. `read_flags`, `read_metrics` and `read_summary` are for programs that look at finished runs.

A run goes on only with what it was started with: the same flags, but for FREE_FLAGS, and the same
inputs.json, wherever the inputs lie. A folder from before there was inputs.json is read as ever, but does not
go on. A finished run is not changed any more.

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
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
from absl import logging
from orbax.checkpoint import v1 as ocp

import dada
from experiments.runs import devices

# A resumed run may have other values of these than its first start: they say where and how it runs, to the
# same result but for rounding, or they name what is compared by content.
FREE_FLAGS = (
    *("resume", "run_dir", "max_steps", "measure_cost"),
    *("compilation_cache_dir", "num_devices", "eval_batch_size", "decode_threads"),
    *("dataset", "data_dir", "download", "image_size", "exif_orientation", "valid_dataset"),
    *("policy", "judge_also", "pretrained", "proxy"),
)
_CHECKPOINTS_KEPT = 2
_FIRST_FILES = {
    *("environment.json", "environment.json.part", "inputs.json", "inputs.json.part", "flags.txt.part")
}
_PACKAGES = ("jax", "jaxlib", "numpy", "optax")
_ARITHMETIC = (
    *("jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl"),
    "jax_threefry_partitionable",
)


def create(path, flags, contents=None, *, resume=False):
    """Opens the folder of a run, which is created if missing; that of a finished run is left as it is.

    Args:
      flags: mapping from flag name to resolved value (None, bool, int, float, str, or a list of them).
      contents: what the flags name, by content: mapping from what it is to a text, or None for nothing.
      resume: go on in a folder that an earlier start of the same run left, without the metrics of steps after
        its last checkpoint.

    Raises:
      ValueError: a new run in a folder with content; a resumed run with other flags, contents, versions or
        arithmetic than its first start; a file in the folder that is damaged.
      FileNotFoundError: a resumed run in a folder that no run has left.
    """
    path, contents = pathlib.Path(path), {**_foundation(), **(contents or {})}
    if resume:
        _check_same_run(path, flags, contents)
    # A start that was killed before flags.txt has left nothing to lose.
    elif path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - _FIRST_FILES):
        raise ValueError(f"{path} is not an empty folder: choose another, or add --resume")
    lines = _flag_lines(flags)
    devices.barrier(f"{path}: checked")  # by all processes, before the first one changes it
    folder = RunFolder(path)
    if resume and not folder.is_finished:
        folder.reopen()
    elif devices.is_primary() and not resume:
        path.mkdir(parents=True, exist_ok=True)
        _write_json(path / "environment.json", environment())
        _write_json(path / "inputs.json", contents)
        # Last, because a folder with flags.txt can be resumed.
        _replace(path / "flags.txt", "".join(f"{line}\n" for line in lines))
    devices.barrier(f"{path}: open")
    if not devices.is_primary():
        _check_same_run(path, flags, contents)  # the first process has the same
    return folder


class RunFolder:
    """Owns an open run folder; made by `create`."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.policy_path = self.path / "policy.json"
        self._checkpoints = (self.path / "checkpoints").absolute()

    @property
    def is_finished(self):
        """Whether the run has come to its end, figures and all."""
        is_written = all((self.path / name).is_file() for name in ("summary.json", "environment.json"))
        return is_written and "end_time" in read_environment(self.path)

    def finish(self):
        """Says that all is done."""
        if devices.is_primary():
            # A folder around those of several seeds has no environment of its own.
            before = read_environment(self.path) if (self.path / "environment.json").is_file() else {}
            _write_json(self.path / "environment.json", {**before, "end_time": _now()})

    def reopen(self):
        """Gets the folder of an earlier start ready to go on: cleans it, takes `finish` back."""
        if devices.is_primary():
            self.clean()
            before, now = read_environment(self.path), environment()
            commits = before.get("git_commit"), now["git_commit"]
            if None not in commits and commits[0] != commits[1]:
                print(
                    f"{self.path} was started with commit {commits[0]}, now it is {commits[1]}",
                    file=sys.stderr,
                )
            before.pop("end_time", None)
            resumed = [*before.pop("resumed", []), now]
            _write_json(self.path / "environment.json", {**before, "resumed": resumed})

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
        """Deletes half-written files, and metrics after step `last` (the newest checkpoint)."""
        if not devices.is_primary():
            return
        for half_written in self._checkpoints.glob("*.orbax-checkpoint-tmp"):
            shutil.rmtree(half_written)
        for pattern in ("*.part", "*.tmp", "figures/*.part"):
            for half_written in self.path.glob(pattern):
                half_written.unlink()
        last = (self.latest_step() or 0) if last is None else last
        metrics = read_metrics(self.path)
        kept = [line for line in metrics if line.get("step", 0) <= last]
        if metrics:
            _replace(self.path / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in kept))

    def _steps(self):
        """Sorted steps of the whole checkpoints; Orbax writes this file just before the rename."""
        checkpoints = self._checkpoints.glob("*/_CHECKPOINT_METADATA")
        return sorted(int(file.parent.name) for file in checkpoints if file.parent.name.isdecimal())


def environment():
    """What a run depends on besides its flags and inputs: versions, devices, commit, time."""
    all_devices = jax.devices()
    return {
        "python": platform.python_version(),
        **_foundation(),
        "pillow": importlib.metadata.version("pillow"),
        "device_kind": all_devices[0].device_kind,
        "device_count": len(all_devices),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
        "git_commit": _git_commit(),
        "start_time": _now(),
    }


def _foundation():
    """Of the environment, what decides the bytes of a result; the kind and number of devices only round."""
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "dada": dada.__version__,
        "platform": jax.default_backend(),
        **{name: getattr(jax.config, name) for name in _ARITHMETIC},
    }


def read_flags(path):
    """The flags of a run folder: mapping from name to value, both as text."""
    file = pathlib.Path(path) / "flags.txt"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, so {path} is not a run folder")
    lines = _read_text(file).splitlines()
    for number, line in enumerate(lines, start=1):
        if not re.fullmatch("--[^=]+=.*", line):
            raise ValueError(f"{file}, line {number}: got {line[:80]!r}, expected --NAME=VALUE")
    return _parse_flags(lines)


def flag_texts(flags):
    """Resolved flags as `read_flags` gives them back: mapping from name to text, without None."""
    return _parse_flags(_flag_lines(flags))


def read_contents(path):
    """inputs.json of a run folder as a mapping; None of a run from before there was one."""
    file = pathlib.Path(path) / "inputs.json"
    return _read_json(file) if file.is_file() else None


def check_contents(path, contents):
    """Raises ValueError if the run in a folder was not made of these contents, as in `create`."""
    before = read_contents(path)
    if before is None:
        what = "what this older run was made of cannot be told"
        raise ValueError(f"{path} has no inputs.json: {what}, start it anew in another folder")
    for name, value in contents.items():
        if before.get(name) != value:
            got, expected = ("none" if one is None else one for one in (value, before.get(name)))
            raise ValueError(f"{path}: {name}: got {got}, expected {expected}, with which this run started")


def read_environment(path):
    """environment.json of a run folder as a mapping."""
    return _read_json(pathlib.Path(path) / "environment.json")


def read_metrics(path):
    """The lines of metrics.jsonl of a run folder as mappings, without a line that was cut off."""
    file = pathlib.Path(path) / "metrics.jsonl"
    lines = _read_text(file).split("\n") if file.exists() else [""]
    # Only what ends in a line break was written whole; the last piece is empty or cut off.
    return [_parse_json(line, f"{file}, line {number}") for number, line in enumerate(lines[:-1], start=1)]


def read_summary(path):
    """summary.json of a run folder as a mapping."""
    file = pathlib.Path(path) / "summary.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; not a run folder, or not a finished run")
    return _read_json(file)


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


def _check_same_run(path, flags, contents):
    _check_same_flags(path, flags)
    check_contents(path, contents)


def _check_same_flags(path, flags):
    before = read_flags(path)
    now = flag_texts(flags)
    for name in sorted(before.keys() | now.keys()):
        if name not in FREE_FLAGS and before.get(name) != now.get(name):
            raise ValueError(
                f"{path} was run with --{name}={before.get(name, '(unset)')}, got "
                f"{now.get(name, '(unset)')}: a resumed run needs the same flags"
            )


def _now():
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


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


def _read_text(file):
    try:
        return file.read_text()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not text in UTF-8") from error


def _read_json(file):
    return _parse_json(_read_text(file), file)


def _parse_json(text, where):
    """A JSON object; ValueError says where it was expected."""
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON: {text[:80]!r}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{where}: got {text[:80]!r}, expected a JSON object")
    return content


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
    """Keeps what Orbax logs out of a run's output: forty lines for a checkpoint, and the errors it raises."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.FATAL))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
