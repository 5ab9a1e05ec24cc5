"""Runs that are resumed with something else than they were started with: one line says what, nothing changes.

And the reverse: the same inputs from another place, in another file, or under another name go on.
"""

import contextlib
import json
import os
import pathlib
import shutil

import dataset_writers
import jax
import numpy as np
import pytest
import small_runs
from PIL import Image

from dada import policies
from dada.models import wide_resnet
from dada.training import sgd
from experiments import search, train
from experiments.data import datasets
from experiments.methods import search_run
from experiments.runs import command_line, run_folder, train_run

SMALL = {"model": "wrn_10_1", "epochs": 2, "batch_size": 16, "crop_padding": 1, "cutout_length": 2}
DEEPAA = {
    "method": "deepaa",
    "proxy_images": 16,
    "num_points": 4,
    "valid_batch_size": 3,
    "updates_per_layer": 1,
}


@pytest.fixture(autouse=True)
def only_started(monkeypatch):
    """Runs end after their folder was opened."""
    monkeypatch.setattr(train_run, "run", lambda *_: iter(()))
    monkeypatch.setattr(search_run, "run", lambda *_: iter(()))
    monkeypatch.setattr(search, "_judge", lambda *_: None)


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    """A folder with a data set, validation images and a policy, which is the user's home, too."""
    small_runs.write_data_set(tmp_path / "data.npz", 84, 12)
    generator = np.random.default_rng(1)
    images = generator.integers(0, 256, (24, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "valid.npz", valid_images=images, valid_labels=np.arange(24) % 4)
    policies.save(tmp_path / "policy.json", policies.random_policy(0))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def write_proxy(path, seed):
    shutil.rmtree(path, ignore_errors=True)
    given = ("model", "crop_padding", "cutout_length")
    folder = run_folder.create(path, {name: SMALL[name] for name in given})
    init = jax.jit(wide_resnet.init, static_argnums=1)
    folder.save(1, sgd.init(*init(jax.random.key(seed), wide_resnet.Config(10, 1, 4))))


def settings(inputs, kind):
    """(command, its flags) of a training or a search."""
    given = {**SMALL, "dataset": inputs / "data.npz"}
    if kind == "train":
        return train, {**given, "policy": inputs / "policy.json"}
    if kind == "deepaa":
        return search, {**given, **DEEPAA, "proxy": inputs / "proxy", "epochs": None}
    judged = {"judge": True, "judge_also": f"randaugment:2,9,{inputs / 'policy.json'}"}
    return search, {**given, "valid_dataset": inputs / "valid.npz", "valid_batch_size": 8, **judged}


def go(inputs, kind, **changes):
    command, flags = settings(inputs, kind)
    run_dir = changes.pop("run_dir", inputs / "run")
    return small_runs.run_here(command, flags, run_dir, **changes)


def begin(inputs, kind):
    if kind == "deepaa":
        write_proxy(inputs / "proxy", 0)
    go(inputs, kind)


def rewrite(path, **changes):
    """Writes an .npz again, compressed and in another order, with other arrays by name."""
    arrays = dict(np.load(path))
    for name, change in changes.items():
        change(arrays[name])
    np.savez_compressed(path, **dict(sorted(arrays.items(), reverse=True)))


def brighten(array):
    array[-1, 2, 2, 1] += 1


def relabel(array):
    array[:2] = array[:2][::-1].copy()


def edit(inputs, file, change):
    """Changes the text of a file in the run folder."""
    path = inputs / "run" / file
    path.write_bytes(change(path.read_bytes()))


OTHER_INPUTS = {
    "policy": (
        "train",
        lambda at: policies.save(at / "policy.json", policies.random_policy(1)),
        "policy: got",
    ),
    "policy_name": ("train", {"policy": "dada_cifar10"}, "policy: got"),
    "pixel": ("train", lambda at: rewrite(at / "data.npz", train_images=brighten), "training images: got"),
    "label": ("train", lambda at: rewrite(at / "data.npz", train_labels=relabel), "training labels: got"),
    "test_pixel": ("train", lambda at: rewrite(at / "data.npz", test_images=brighten), "test images: got"),
    "test_label": ("train", lambda at: rewrite(at / "data.npz", test_labels=relabel), "test labels: got"),
    "data_name": (
        "train",
        {"dataset": "embedded"},
        r"training images: got \[4000, 32, 32, 3\] \w{16}, expected",
    ),
    "valid_pixel": (
        "search",
        lambda at: rewrite(at / "valid.npz", valid_images=brighten),
        "validation images",
    ),
    "no_valid": ("search", {"valid_dataset": None}, "validation images: got none, expected"),
    "judged": (
        "search",
        lambda at: policies.save(at / "policy.json", policies.identity()),
        "judge_also: got",
    ),
    "fewer_judged": ("search", {"judge_also": "randaugment:2,9"}, "judge_also: got"),
    "no_judge": ("search", {"judge": None, "judge_also": None}, "was run with --judge=true, got false"),
    "proxy": ("deepaa", lambda at: write_proxy(at / "proxy", 1), "proxy: got"),
    "no_proxy": ("deepaa", {"proxy": None}, r"was run with --clip_norm=\(unset\), got 5"),
    "seeds": ("train", {"num_seeds": 2}, "run holds a run of one seed, got --num_seeds=2"),
}


@pytest.mark.parametrize(("kind", "change", "message"), OTHER_INPUTS.values(), ids=OTHER_INPUTS)
def test_other_inputs(inputs, kind, change, message):
    begin(inputs, kind)
    before = small_runs.snapshot(inputs / "run")
    flags = change if isinstance(change, dict) else change(inputs) or {}
    with pytest.raises(ValueError, match=message) as refused:
        go(inputs, kind, resume=True, **flags)
    assert str(refused.value).count("\n") == 0 and str(inputs / "run") in str(refused.value)
    assert small_runs.snapshot(inputs / "run") == before


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("jax_default_matmul_precision", "highest", "got highest, expected none"),
        ("jax_default_prng_impl", "rbg", "got rbg, expected threefry2x32"),
        ("jax_threefry_partitionable", False, "got False, expected True"),
        ("jax_enable_x64", True, "got True, expected False"),
    ],
)
def test_other_arithmetic(inputs, name, value, message):
    go(inputs, "train")
    before = small_runs.snapshot(inputs / "run")
    with contextlib.ExitStack() as stack:
        stack.callback(jax.config.update, name, getattr(jax.config, name))
        jax.config.update(name, value)
        with pytest.raises(ValueError, match=f"{name}: {message}, with which this run started"):
            go(inputs, "train", resume=True)
    assert small_runs.snapshot(inputs / "run") == before


@pytest.mark.parametrize("name", ["jax", "jaxlib", "numpy", "optax", "dada", "platform"])
def test_another_version_or_platform(inputs, name):
    go(inputs, "train")
    now = json.loads((inputs / "run" / "inputs.json").read_text())
    (inputs / "run" / "inputs.json").write_text(json.dumps({**now, name: "other"}))
    with pytest.raises(ValueError, match=f"run: {name}: got {now[name]}, expected other, with which"):
        go(inputs, "train", resume=True)


def test_another_commit_is_told(inputs, monkeypatch, capsys):
    monkeypatch.setattr(run_folder, "_git_commit", lambda: "abc")
    go(inputs, "train")
    monkeypatch.setattr(run_folder, "_git_commit", lambda: "def")
    go(inputs, "train", resume=True)
    assert capsys.readouterr().err == f"{inputs / 'run'} was started with commit abc, now it is def\n"


def test_a_network_of_the_same_shapes_that_computes_something_else(inputs, monkeypatch):
    go(inputs, "train")

    def apply(params, stats, images, *more, plain=wide_resnet.apply, **others):
        return plain(params, stats, 2 * images, *more, **others)

    monkeypatch.setattr(wide_resnet, "apply", apply)
    with pytest.raises(ValueError, match=r"network: got Config\(depth=10, width=1, .* expected Config"):
        go(inputs, "train", resume=True)


DAMAGED = {
    "older": (
        lambda at: (at / "run" / "inputs.json").unlink(),
        "no inputs.json: what this older run was made",
    ),
    "cut_off": (lambda at: edit(at, "inputs.json", lambda text: text[:20]), r"inputs\.json: not JSON"),
    "no_object": (lambda at: edit(at, "inputs.json", lambda _: b"[]"), "expected a JSON object"),
    "environment": (
        lambda at: edit(at, "environment.json", lambda _: b"\xff"),
        r"environment\.json: not text",
    ),
    "no_environment": (lambda at: (at / "run" / "environment.json").unlink(), r"environment\.json"),
    "flags_line": (lambda at: edit(at, "flags.txt", lambda text: text + b"fast\n"), r"line \d+: got 'fast'"),
    "flags_utf_16": (
        lambda at: edit(at, "flags.txt", lambda text: b"\xff\xfe" + text),
        r"flags\.txt: not text",
    ),
    "no_flags": (lambda at: (at / "run" / "flags.txt").unlink(), "so .*run is not a run folder"),
    "metrics": (lambda at: (at / "run" / "metrics.jsonl").write_text("3\n"), r"line 1: got '3', expected"),
    "a_file": (lambda at: as_file(at / "run"), "is not a run folder"),
}


def as_file(path):
    shutil.rmtree(path)
    path.write_text("")


@pytest.mark.parametrize(("damage", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_folder(inputs, damage, message):
    go(inputs, "train")
    damage(inputs)
    before = small_runs.snapshot(inputs)
    with pytest.raises((ValueError, OSError), match=message):
        go(inputs, "train", resume=True)
    assert small_runs.snapshot(inputs) == before


def test_one_seed_of_a_run_of_two(inputs):
    go(inputs, "train", num_seeds=2)
    with pytest.raises(FileNotFoundError, match=r"flags\.txt: no such file, so .* is not a run folder"):
        go(inputs, "train", resume=True)
    # A start that was killed while it made its folders.
    (inputs / "run" / "seed_1" / "flags.txt").unlink()
    go(inputs, "train", resume=True, num_seeds=2)
    assert not (inputs / "run" / "flags.txt").exists() and (inputs / "run" / "seed_1" / "flags.txt").exists()


def moved(inputs, *names):
    """Moves inputs to another folder; returns it."""
    (inputs / "elsewhere").mkdir()
    for name in names:
        (inputs / name).rename(inputs / "elsewhere" / name)
    return inputs / "elsewhere"


def written_again(path):
    """The same policy: another layout of the file, another source."""
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "source": "a friend", "seed": 7}, indent=4))
    return {}


def relative(path):
    return os.path.relpath(path, pathlib.Path.cwd())


SAME_INPUTS = {
    "nothing": ("train", lambda at: {}),
    "moved": ("train", lambda at: {"dataset": moved(at, "data.npz") / "data.npz"}),
    "renamed": ("train", lambda at: {"dataset": (at / "data.npz").rename(at / "images.npz")}),
    "relative": (
        "train",
        lambda at: {"dataset": relative(at / "data.npz"), "policy": relative(at / "policy.json")},
    ),
    "home": ("train", lambda at: {"dataset": "~/data.npz", "policy": "~/policy.json", "run_dir": "~/run"}),
    "slashes": ("train", lambda at: {"dataset": f"{at}//./data.npz", "run_dir": f"{at}/run/"}),
    "compressed": ("train", lambda at: rewrite(at / "data.npz")),
    "policy_moved": ("train", lambda at: {"policy": moved(at, "policy.json") / "policy.json"}),
    "policy_again": ("train", lambda at: written_again(at / "policy.json")),
    "policy_by_name": ("train", lambda at: {"policy": "random:0"}),
    "eval_batch_size": ("train", lambda at: {"eval_batch_size": 7}),
    "valid_moved": ("search", lambda at: {"valid_dataset": moved(at, "valid.npz") / "valid.npz"}),
    "judged": ("search", lambda at: {"judge_also": f"randaugment:2,9,{relative(at / 'policy.json')}"}),
    "judged_home": ("search", lambda at: {"judge_also": "randaugment:2,9,~/policy.json"}),
    "proxy_moved": ("deepaa", lambda at: {"proxy": f"{moved(at, 'proxy') / 'proxy'}/"}),
}


@pytest.mark.parametrize(("kind", "change"), SAME_INPUTS.values(), ids=SAME_INPUTS)
def test_the_same_inputs(inputs, kind, change):
    begin(inputs, kind)
    before = run_folder.read_flags(inputs / "run")
    go(inputs, kind, resume=True, **(change(inputs) or {}))
    assert len(run_folder.read_environment(inputs / "run")["resumed"]) == 1
    assert run_folder.read_flags(inputs / "run") == before


def test_the_same_images_in_a_folder_in_an_npz_and_beside_other_official_files(inputs):
    generator = np.random.default_rng(2)
    for part, count in (("train", 8), ("val", 2)):
        for label in range(2):
            path = inputs / "images" / part / str(label)
            path.mkdir(parents=True)
            for number, image in enumerate(generator.integers(0, 256, (count, 8, 8, 3), np.uint8)):
                Image.fromarray(image).save(path / f"{number}.png")
    go(inputs, "train", dataset=f"{inputs / 'images'}/", image_size=8)
    arrays = datasets.load(str(inputs / "images"))._asdict()
    parts = [f"{part}_{kind}" for part in ("train", "test") for kind in ("images", "labels")]
    np.savez(inputs / "images.npz", **{name: arrays[name] for name in parts})
    go(inputs, "train", dataset=inputs / "images.npz", resume=True)
    shutil.rmtree(inputs / "run")
    for place, form in (("one", "binary"), ("other", "pickled")):
        dataset_writers.write_cifar(inputs / place, "cifar10", form, dataset_writers.cifar_parts("cifar10"))
    go(inputs, "train", dataset="cifar10", data_dir=inputs / "one")
    go(inputs, "train", dataset="cifar10", data_dir=inputs / "other", resume=True)
    assert len(run_folder.read_environment(inputs / "run")["resumed"]) == 1


def test_a_resumed_run_keeps_the_names_of_its_first_start(inputs, monkeypatch):
    tasks = []
    monkeypatch.setattr(train_run, "run", lambda task, _: tasks.append(task) or iter(()))
    monkeypatch.setattr(search_run, "run", lambda task, _: tasks.append(task) or iter(()))
    go(inputs, "train")
    go(inputs, "train", resume=True, policy="random:0", dataset="~/data.npz")
    assert tasks[0].recipe == tasks[1].recipe
    shutil.rmtree(inputs / "run")
    go(inputs, "search")
    go(inputs, "search", resume=True, judge_also="randaugment:2,9,~/policy.json", dataset="~/data.npz")
    assert tasks[2].dataset.name == tasks[3].dataset.name == str(inputs / "data.npz")
    judged = ["randaugment:2,9", str(inputs / "policy.json")]
    assert list(tasks[2].judge.also) == list(tasks[3].judge.also) == judged


def test_another_process_has_other_inputs(tmp_path, monkeypatch):
    path = tmp_path / "run"

    def barrier(name):
        if name.endswith("open"):  # what the first process has done in the meantime
            with monkeypatch.context() as first:
                first.setattr(run_folder.devices, "is_primary", lambda: True)
                first.setattr(run_folder.devices, "barrier", lambda name: None)
                run_folder.create(path, {"seed": 0}, {"policy": "1"})

    monkeypatch.setattr(run_folder.devices, "is_primary", lambda: False)
    monkeypatch.setattr(run_folder.devices, "barrier", barrier)
    with pytest.raises(ValueError, match="policy: got 2, expected 1"):
        run_folder.create(path, {"seed": 0}, {"policy": "2"})


def test_the_command_ends_with_one_line_and_exit_code_2(inputs, monkeypatch, capsys):
    go(inputs, "train")
    policies.save(inputs / "policy.json", policies.identity())
    line = small_runs.command(settings(inputs, "train")[1], run_dir=inputs / "run", resume=True)
    monkeypatch.setattr("sys.argv", ["train", *line])
    with pytest.raises(SystemExit) as stopped:
        command_line.run(train.define, train.main)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and "policy: got" in errors
