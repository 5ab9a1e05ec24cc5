"""Run folders: rules of new and resumed runs, files that survive a kill, checkpoint round trips."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_runs
from absl import flags as absl_flags

from experiments.runs import run_folder

FLAGS = {
    "seed": 3,
    "rate": 0.1,
    "name": "a b=c",
    "fast": True,
    "slow": False,
    "ops": ["Rotate", "Invert"],
    "schedule": None,
    "max_steps": 10,
    "run_dir": "x",
}


class State(NamedTuple):
    params: dict
    optimizer: tuple
    key: jax.Array
    keys: jax.Array
    step: jax.Array


def make_state(step=0):
    params = {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.zeros(3, jnp.bfloat16)}
    optimizer = optax.chain(optax.clip(1.0), optax.sgd(0.1, momentum=0.9)).init(params)
    key = jax.random.fold_in(jax.random.key(7), step)
    return State(params, optimizer, key, jax.random.split(key, 4), jnp.int32(step))


def assert_same_state(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected)):
        assert a.dtype == b.dtype
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


def test_new_folder(tmp_path):
    folder = run_folder.create(tmp_path / "a" / "b", FLAGS)
    assert folder.latest_step() is None and folder.policy_path == folder.path / "policy.json"
    assert folder.figures_path.is_dir()
    environment = json.loads((folder.path / "environment.json").read_text())
    assert environment["jax"] == jax.__version__ and environment["platform"] == "cpu"
    assert environment["device_count"] == jax.device_count()
    for name in ("python", "jaxlib", "numpy", "optax", "device_kind", "cpu_count", "git_commit"):
        assert name in environment
    assert environment["start_time"].endswith("+00:00")


def test_flag_file_is_read_again_by_absl(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    lines = (folder.path / "flags.txt").read_text().splitlines()
    assert lines == sorted(lines) and "--fast=true" in lines
    values = absl_flags.FlagValues()
    for name, value in FLAGS.items():
        if isinstance(value, bool):
            absl_flags.DEFINE_bool(name, not value, "", flag_values=values)
        elif isinstance(value, int):
            absl_flags.DEFINE_integer(name, 0, "", flag_values=values)
        elif isinstance(value, float):
            absl_flags.DEFINE_float(name, 0.0, "", flag_values=values)
        elif isinstance(value, list):
            absl_flags.DEFINE_list(name, [], "", flag_values=values)
        else:
            absl_flags.DEFINE_string(name, None, "", flag_values=values)
    absl_flags.DEFINE_string("flagfile", "", "", flag_values=values)
    values(["program", f"--flagfile={folder.path / 'flags.txt'}"])
    assert {name: values[name].value for name in FLAGS} == FLAGS


def test_flag_with_a_line_break(tmp_path):
    with pytest.raises(ValueError, match="name has a line break"):
        run_folder.create(tmp_path, {"name": "a\n--seed=4"})


def test_folder_with_content_is_refused(tmp_path):
    run_folder.create(tmp_path / "run", FLAGS)
    with pytest.raises(ValueError, match=r"not an empty folder.*--resume"):
        run_folder.create(tmp_path / "run", FLAGS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not an empty folder"):
        run_folder.create(tmp_path / "file", FLAGS)


def test_resume_needs_a_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match=r"flags\.txt.*not a run folder"):
            run_folder.create(path, FLAGS, resume=True)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "--seed=3, got 4"),
        ({"fast": False}, "--fast=true, got false"),
        ({"schedule": "step"}, r"--schedule=\(unset\), got step"),
        ({"name": None}, r"--name=a b=c, got \(unset\)"),
    ],
)
def test_resume_with_other_flags(tmp_path, change, message):
    run_folder.create(tmp_path, FLAGS)
    with pytest.raises(ValueError, match=message):
        run_folder.create(tmp_path, FLAGS | change, resume=True)


def test_resume_may_change_free_flags(tmp_path):
    run_folder.create(tmp_path, FLAGS)
    before = (tmp_path / "flags.txt").read_text()
    changed = FLAGS | {"max_steps": 99, "run_dir": "y", "resume": True, "download": True}
    run_folder.create(tmp_path, changed, resume=True)
    assert (tmp_path / "flags.txt").read_text() == before
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert len(environment["resumed"]) == 1 and environment["resumed"][0]["start_time"]
    assert run_folder.read_flags(tmp_path)["max_steps"] == "10"


def test_a_finished_folder_is_left_as_it_is_until_it_is_opened_again(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS, {"policy": "1"})
    folder.log(1, {"loss": 0.5})
    folder.write_summary({"error": 1})
    assert not folder.is_finished
    folder.finish()
    before = small_runs.snapshot(tmp_path)
    assert run_folder.create(tmp_path, FLAGS, {"policy": "1"}, resume=True).is_finished
    with pytest.raises(ValueError, match="policy: got none, expected 1, with which this run started"):
        run_folder.create(tmp_path, FLAGS, {"policy": None}, resume=True)
    assert small_runs.snapshot(tmp_path) == before
    folder.reopen()
    assert not folder.is_finished and run_folder.read_metrics(tmp_path) == []  # there is no checkpoint
    environment = run_folder.read_environment(tmp_path)
    assert "end_time" not in environment and len(environment["resumed"]) == 1


def test_metrics_and_summary(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    assert run_folder.read_metrics(tmp_path) == []
    folder.log(1, {"loss": jnp.float32(0.5), "parts": np.arange(2), "name": "train"})
    folder.log(2, {"loss": float("nan"), "bound": jnp.inf})
    assert run_folder.read_metrics(tmp_path) == [
        {"step": 1, "loss": 0.5, "parts": [0, 1], "name": "train"},
        {"step": 2, "loss": None, "bound": None},
    ]
    with pytest.raises(FileNotFoundError, match="not a finished run"):
        run_folder.read_summary(tmp_path)
    folder.write_summary({"error": np.float64(3.5), "runs": {"seed": (1, 2)}})
    assert run_folder.read_summary(tmp_path) == {"error": 3.5, "runs": {"seed": [1, 2]}}
    assert not list(tmp_path.glob("*.part"))


def test_failed_summary_keeps_the_old_one(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    folder.write_summary({"error": 1})
    with pytest.raises(TypeError):
        folder.write_summary({"error": object()})
    assert run_folder.read_summary(tmp_path) == {"error": 1}


def test_resume_drops_metrics_after_the_checkpoint(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    for step in range(1, 6):
        folder.log(step, {"loss": step / 2})
        if step == 3:
            folder.save(step, {"a": jnp.ones(2)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    folder = run_folder.create(tmp_path, FLAGS, resume=True)
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2, 3]
    folder.log(4, {"loss": 0})
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_resume_without_checkpoint_starts_metrics_again(tmp_path):
    run_folder.create(tmp_path, FLAGS).log(1, {"loss": 1})
    run_folder.create(tmp_path, FLAGS, resume=True)
    assert run_folder.read_metrics(tmp_path) == []


def test_damaged_metrics_name_the_line(tmp_path):
    run_folder.create(tmp_path, FLAGS).log(1, {})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write("{]\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2"):
        run_folder.read_metrics(tmp_path)


def test_checkpoints_round_trip_and_the_last_two_stay(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    for step in (1, 9, 10, 20):
        folder.save(step, make_state(step))
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["10", "20"]
    resumed = run_folder.create(tmp_path, FLAGS, resume=True)
    assert resumed.latest_step() == 20
    assert_same_state(resumed.restore(jax.eval_shape(make_state)), make_state(20))
    restored = resumed.restore(make_state())
    assert_same_state(restored, make_state(20))
    # The restored key draws what the saved one would have drawn.
    draws = jax.random.normal(restored.key, (3,)), jax.random.normal(make_state(20).key, (3,))
    np.testing.assert_array_equal(*draws)


def test_checkpoint_of_the_same_step_is_replaced(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    folder.save(1, {"a": jnp.zeros(2)})
    folder.save(1, {"a": jnp.ones(2)})
    np.testing.assert_array_equal(folder.restore({"a": jnp.zeros(2)})["a"], np.ones(2))


def test_sharded_state_returns_to_its_devices(tmp_path):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.NamedSharding(mesh, jax.P("d"))
    state = {"x": jax.device_put(jnp.arange(16.0), sharding)}
    folder = run_folder.create(tmp_path, FLAGS)
    folder.save(1, state)
    restored = folder.restore(state)["x"]
    assert restored.sharding == sharding
    np.testing.assert_array_equal(restored, np.arange(16.0))


def test_half_written_checkpoint_is_ignored(tmp_path):
    folder = run_folder.create(tmp_path, FLAGS)
    folder.save(5, make_state(5))
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "5", checkpoints / "6.orbax-checkpoint-tmp")
    shutil.copytree(checkpoints / "5", checkpoints / "7")
    (checkpoints / "7" / "_CHECKPOINT_METADATA").unlink()
    folder = run_folder.create(tmp_path, FLAGS, resume=True)
    assert folder.latest_step() == 5
    assert_same_state(folder.restore(make_state()), make_state(5))
    assert not (checkpoints / "6.orbax-checkpoint-tmp").exists()
    folder.save(7, make_state(7))
    assert folder.latest_step() == 7
    assert_same_state(folder.restore(make_state()), make_state(7))


def test_missing_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        run_folder.create(tmp_path, FLAGS).restore(make_state())


@pytest.mark.parametrize("damage", ["data", "folder", "shape", "structure"])
def test_checkpoint_that_cannot_be_restored(tmp_path, damage):
    folder = run_folder.create(tmp_path, FLAGS)
    folder.save(4, make_state(4))
    target = make_state()
    state = tmp_path / "checkpoints" / "4" / "state"
    if damage == "data":
        for file in [*state.glob("d/*"), *state.glob("ocdbt*/d/*")]:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif damage == "folder":
        shutil.rmtree(state)
    elif damage == "shape":
        target = target._replace(params={**target.params, "w": jnp.zeros((2, 4))})
    else:
        target = target._replace(params={"w": target.params["w"]})
    with pytest.raises(ValueError, match=r"checkpoints/4 does not fit this run or is damaged"):
        folder.restore(target)


_SAVE_WITHOUT_END = """
import itertools, sys
import jax, jax.numpy as jnp
from experiments.runs import run_folder
folder = run_folder.create(sys.argv[1], {"seed": 1})
for step in itertools.count(1):
    folder.log(step, {"loss": 0.5})
    folder.save(step, {"a": [jnp.full((256, 256), step)] * 20, "key": jax.random.key(step)})
    print(step, flush=True)
"""


def test_kill_while_saving(tmp_path):
    root = pathlib.Path(run_folder.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", _SAVE_WITHOUT_END, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    done = [int(process.stdout.readline()) for _ in range(4)][-1]
    # Killed as soon as the next checkpoint is under way.
    while not list((tmp_path / "checkpoints").glob("*.orbax-checkpoint-tmp")):
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    folder = run_folder.create(tmp_path, {"seed": 1}, resume=True)
    step = folder.latest_step()
    assert step >= done
    target = {"a": [jnp.zeros((256, 256), jnp.int32)] * 20, "key": jax.random.key(0)}
    expected = {"a": [jnp.full((256, 256), step)] * 20, "key": jax.random.key(step)}
    assert_same_state(folder.restore(target), expected)
    assert [line["step"] for line in run_folder.read_metrics(tmp_path)] == list(range(1, step + 1))
