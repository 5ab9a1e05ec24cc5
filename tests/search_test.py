"""The search binary: same bytes from the same seed, also after a kill; files; one line on bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from dada import policy
from experiments import compiled_loop, run_folder, search

ROOT = pathlib.Path(__file__).resolve().parent.parent
FLAGS = flags.FLAGS
SMALL = {
    "model": "wrn_10_1",
    "epochs": 3,
    "batch_size": 16,
    "crop_padding": 1,
    "cutout_length": 2,
    "extra_ops": ["Rotate90"],
    "planted_op": "Rotate90",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A data set of 80 images of 8 x 8 in 4 classes."""
    folder = tmp_path_factory.mktemp("search")
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 4
    images = generator.integers(0, 80, (80, 8, 8, 3)) + 40 * labels[:, None, None, None]
    np.savez(
        folder / "tiny.npz",
        train_images=images.astype(np.uint8),
        train_labels=labels,
        test_images=images[:8].astype(np.uint8),
        test_labels=labels[:8],
    )
    return folder


def run_here(folder, name, **changes):
    """Runs the search in this process; returns its run folder."""
    settings = {**SMALL, "dataset": str(folder / "tiny.npz"), "run_dir": str(folder / name), **changes}
    with flagsaver.flagsaver(**settings):
        search.main([])
    return folder / name


def start(folder, name, *more):
    """Starts the search as a process of its own; its programs are kept for the other processes."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
    }
    small = [f"--{k}={','.join(v) if isinstance(v, list) else v}" for k, v in SMALL.items()]
    command = [
        *(sys.executable, "-m", "experiments.search", f"--dataset={folder / 'tiny.npz'}"),
        *(f"--run_dir={folder / name}", *small, *more),
    ]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def run(folder, name, *more):
    """Runs the search to its end; returns its run folder."""
    process = start(folder, name, *more)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    return folder / name


@pytest.fixture(scope="module")
def finished(files):
    return run(files, "first")


def test_a_run_leaves_its_folder(finished):
    summary = run_folder.read_summary(finished)
    lines = run_folder.read_metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, 10)) == list(range(1, summary["steps"] + 1))
    assert summary["seconds_compile"] > 0 and summary["seconds_run"] > 0
    assert summary["plain_step_ratio"] > 1
    space = policy.space(policy.load(finished / "policy.json"))
    assert set(summary["op_mass"]) == {row.name for row in space.rows}
    assert abs(sum(summary["op_mass_initial"].values()) - 1.0) < 1e-5  # two ops with probability one half
    assert summary["planted"]["op"] == "Rotate90"
    figures = {path.name for path in (finished / "figures").glob("*.png")}
    assert {"policy.png", "curves.png", "ops.png", "sample_images.png", "augmented_images.png"} <= figures
    written = run_folder.read_flags(finished)
    assert written["search_space"] == "strength" and written["policy_learning_rate"] == "0.05"
    assert json.loads((finished / "environment.json").read_text())["platform"] == "cpu"


def test_same_seed_same_bytes_and_another_seed_another_policy(files, finished):
    both = run(files, "both", "--num_seeds=2")
    expected = (finished / "policy.json").read_bytes()
    assert (both / "seed_0" / "policy.json").read_bytes() == expected
    other = json.loads((both / "seed_1" / "policy.json").read_text())
    assert other["seed"] == 1 and other["sub_policies"] != json.loads(expected)["sub_policies"]


def test_killed_and_resumed_is_the_straight_run(files, finished):
    process = start(files, "killed")
    deadline = time.monotonic() + 240
    while len(run_folder.read_metrics(files / "killed")) < 5:  # in the middle of the second epoch
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (files / "killed" / "policy.json").exists()
    assert run_folder.RunFolder(files / "killed").latest_step() == 3
    run(files, "killed", "--resume")
    assert (files / "killed" / "policy.json").read_bytes() == (finished / "policy.json").read_bytes()
    for straight, resumed in zip(*map(run_folder.read_metrics, (finished, files / "killed"))):
        assert {**straight, "seconds": 0} == {**resumed, "seconds": 0}


def test_seeds_at_once_on_an_accelerator_are_the_seeds_one_by_one(files, finished, monkeypatch):
    monkeypatch.setattr(compiled_loop, "scans", lambda: True)
    # Scans of convolutions are slow on a CPU, so nothing is timed here.
    monkeypatch.setattr(search.search_run.search_loop, "plain_step_ratio", lambda *arguments: 1.0)
    both = run_here(files, "at_once", num_seeds=2, max_steps=3)
    for seed in (0, 1):
        assert run_folder.read_summary(both / f"seed_{seed}")["seeds_at_once"] == 2
    scanned, single = (run_folder.read_metrics(path)[:3] for path in (both / "seed_0", finished))
    assert [line["step"] for line in scanned] == [line["step"] for line in single]
    for name in ("train_loss", "valid_loss", "op_mass"):
        np.testing.assert_allclose(
            [line[name] for line in scanned], [line[name] for line in single], rtol=0.02, atol=0.002
        )


def test_official_preset_and_max_steps(files):
    more = ("--preset=official", "--max_steps=2", "--extra_ops=", "--planted_op=Invert")
    official = run(files, "official", *more)
    found = policy.load(official / "policy.json")
    assert (found.search_space, found.preset, found.content.weight) == ("dada", "official", None)
    assert len(found.content.row) == 25 and run_folder.read_summary(official)["steps"] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet"}, "expected a network of the form wrn_"),
        ({"dataset": "mnist"}, "data set 'mnist': expected one of embedded"),
        ({"dataset": "missing.npz"}, "missing.npz"),
        ({"dataset": "cifar10"}, "needs --data_dir"),
        ({"search_space": "adda"}, "search space: got 'adda', expected one of dada, strength"),
        ({"extra_ops": ["Rotate91"]}, "Rotate91"),
        ({"planted_op": "Inverse"}, "--planted_op: got 'Inverse'"),
        ({"planted_op": "Brightness:dark"}, "expected NAME or NAME:NUMBER"),
        ({"planted_op": "Brightness:nan"}, "expected a finite value that changes the images"),
        ({"planted_op": "Rotate:0"}, "expected a finite value that changes the images"),
        ({"planted_op": "FlipUD"}, "--extra_ops=FlipUD adds it"),
        ({"batch_size": 4000}, "has only 40"),
        ({"preset": "official", "policy_space": "slots"}, "the official preset has only pairs"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_here(files, "refused", **changes)
    assert not (files / "refused").exists()


def test_a_run_folder_with_content_is_not_overwritten(files, finished):
    before = (finished / "policy.json").read_bytes()
    with pytest.raises(ValueError, match="not an empty folder"):
        run_here(files, "first")
    with pytest.raises(ValueError, match=r"was run with --epochs=3, got 4"):
        run_here(files, "first", resume=True, epochs=4)
    assert (finished / "policy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epoch=3"], "unknown flag --epoch; did you mean --epochs?"),
        (["--draws=all"], "draws"),
        (["--epochs=many"], "epochs"),
        (["--flagfile=missing.flags"], "missing.flags"),
        (["--planted_op=Inverse"], "--planted_op: got 'Inverse'"),
        (["policy.json"], "unexpected argument 'policy.json'"),
    ],
)
def test_the_command_line_fails_with_one_line_and_exit_code_2(files, arguments, message):
    process = start(files, "refused", *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    lines = [line for line in errors.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0], errors
    assert not (files / "refused").exists()
