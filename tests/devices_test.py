"""Several devices and processes are one device; a step is traced once; no convolution in a loop on CPU."""

import contextlib
import functools
import json
import re
import shutil
import socket

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from dada import policies
from dada.models import wide_resnet
from dada.searches.deepaa import scores as deepaa_scores
from dada.searches.deepaa import search as deepaa_search
from dada.training import sgd
from experiments import search, train
from experiments.data import datasets
from experiments.figures import finished_run
from experiments.methods import search_loop
from experiments.runs import compiled_loop, devices, run_folder, train_run

SMALL = {"model": "wrn_10_1", "batch_size": 16, "crop_padding": 1, "cutout_length": 2}
TRAIN = {**SMALL, "policy": "dada_cifar10", "epochs": 2, "eval_batch_size": 5, "learning_rate": 0.01}
SEARCH = {**SMALL, "epochs": 2, "max_steps": 2, "search_space": "strength"}
DADA = {**SEARCH, "batch_size": 64, "top_k": 105}  # all pairs: which are first, rounding decides
DDAS = {**SEARCH, "method": "ddas", "valid_batch_size": 16, "num_policies": 2, "magnitudes": ["0.5", "1"]}
DEEPAA = {
    **SMALL,
    "method": "deepaa",
    "epochs": 1,
    "max_steps": 1,
    "proxy_images": 16,
    "num_points": 8,
    "valid_batch_size": 4,
}
RUNS = {"train": (train, TRAIN), "dada": (search, DADA), "ddas": (search, DDAS), "deepaa": (search, DEEPAA)}
# Rounding was 4e-7 at most in every metric; an activation that rounds to the other side of 0 makes it 1e-3.
CLOSE = {"rtol": 2e-3, "atol": 2e-3}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("devices")
    small_runs.write_data_set(folder / "tiny.npz", 64, 13)
    small_runs.write_data_set(folder / "more.npz", 160, 13)
    return folder


@contextlib.contextmanager
def recorded_programs():
    """Runs without figures, which trace each step once; yields the texts of compiled steps."""
    texts = []

    def compiled(function, *arguments):
        program = jax.jit(function).lower(*arguments).compile()
        if len(arguments) == 3:  # the test of a training has no key
            texts.append(program.as_text())
        return program, 1.0

    chex.clear_trace_counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loop, "compiled", compiled)
        for module, step in ((search_loop, "search_step"), (train_run, "train_step")):
            patch.setattr(module, step, chex.assert_max_traces(getattr(module, step), n=1))
        patch.setattr(finished_run, "draw", lambda *_: [])
        yield texts


def settings(folder, name):
    binary, flags = RUNS[name]
    file = "more.npz" if name == "deepaa" else "tiny.npz"
    return binary, {**flags, "dataset": str(folder / file)}


@pytest.fixture(scope="module")
def one_device(files):
    """Run folder and step programs of a run on one device, by its name in RUNS; several seeds where cheap."""

    @functools.cache
    def run(name):
        binary, flags = settings(files, name)
        seeds = 2 if name in ("train", "dada") else 1
        with recorded_programs() as texts:
            path = small_runs.run_here(binary, flags, files / f"{name}_one", num_seeds=seeds)
        assert len(texts) == 1  # one program for all seeds
        return (path / "seed_0" if seeds > 1 else path), texts

    return run


def weights(path):
    """The last checkpoint of a training."""
    params, stats = wide_resnet.init(jax.random.key(0), wide_resnet.Config(10, 1, 4))
    return run_folder.RunFolder(path).restore(sgd.init(params, stats))


def assert_same_run(path, expected):
    lines, expected_lines = (run_folder.read_metrics(folder) for folder in (path, expected))
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines]
    for line, other in zip(lines, expected_lines):
        for metric in line.keys() - {"seconds", "seconds_train"}:
            np.testing.assert_allclose(line[metric], other[metric], err_msg=metric, **CLOSE)
    if "test_accuracy" in lines[-1]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), weights(path), weights(expected))
        assert float(round(13 * lines[-1]["test_accuracy"], 6)).is_integer()  # thirteen test images
    else:
        found, other = (_policy(folder / "policy.json") for folder in (path, expected))
        assert _names(found) == _names(other)
        np.testing.assert_allclose(_numbers(found), _numbers(other), **CLOSE)


def _policy(file):
    """The text of a policy file, its sub-policies by name."""
    policy = json.loads(policies.to_json(policies.load(file)))
    if policy["kind"] == "sub_policies":
        pairs = zip(policy["sub_policies"], policy["weights"])
        ordered = sorted(pairs, key=lambda pair: [op for op, *_ in pair[0]])
        policy["sub_policies"], policy["weights"] = zip(*ordered)
    return json.dumps(policy)


def _names(text):
    return re.findall(r'"[A-Za-z_]+"', text)


def _numbers(text):
    return [float(number) for number in re.findall(r"(?<=[ \[,:])-?\d+\.\d+(?:e-?\d+)?", text)]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_eight_devices_are_one(files, one_device, name, monkeypatch):
    binary, flags = settings(files, name)
    saved = set()

    def save(folder, step, tree, save=run_folder.RunFolder.save):
        saved.update(len(leaf.sharding.device_set) for leaf in jax.tree.leaves(tree))
        save(folder, step, tree)

    monkeypatch.setattr(run_folder.RunFolder, "save", save)
    with recorded_programs():
        path = small_runs.run_here(binary, flags, files / f"{name}_eight", num_devices=8)
    assert saved == {8}
    assert_same_run(path, one_device(name)[0])


def run_two_processes(binary, flags, run_dir, *more):
    """A run on two processes of two devices each; returns exit codes and errors."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = {**flags, "num_devices": 4, "coordinator_address": address, "num_processes": 2}
    processes = [
        small_runs.start(
            binary,
            {**flags, "process_id": number},
            run_dir,
            *more,
            xla_flags="--xla_force_host_platform_device_count=2",
        )
        for number in (1, 0)
    ]
    try:
        return [(process.communicate(timeout=300)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


def assert_success(ends):
    for errors, code in ends:
        assert code == 0, errors
    assert "step" not in ends[0][0]  # only the first process has a progress bar


def test_a_training_on_two_processes_is_that_of_one_and_is_resumed_by_two_and_by_one(files, one_device):
    binary, flags = settings(files, "train")
    path = files / "train_two"
    assert_success(run_two_processes(binary, flags, path))
    expected, _ = one_device("train")
    assert_same_run(path, expected)
    environment = json.loads((path / "environment.json").read_text())
    assert (environment["process_count"], environment["device_count"]) == (2, 4)
    assert not {"process_id", "coordinator_address"} & set(run_folder.read_flags(path))
    assert (path / "summary.json").exists() and (path / "figures" / "curves.png").exists()
    straight = run_folder.read_metrics(path)
    shutil.copytree(path, files / "train_two_one")
    for folder in (path, files / "train_two_one"):  # without the second epoch
        shutil.rmtree(folder / "checkpoints" / "8")
        (folder / "summary.json").unlink()
    assert_success(run_two_processes(binary, flags, path, "--resume"))
    with recorded_programs():
        small_runs.run_here(binary, flags, files / "train_two_one", resume=True)
    for folder in (path, files / "train_two_one"):
        assert run_folder.read_metrics(folder)[0] == straight[0]
        assert run_folder.read_metrics(folder)[1] != straight[1]  # in its seconds
        assert_same_run(folder, expected)


def test_a_search_on_two_processes_is_that_of_one(files, one_device):
    binary, flags = settings(files, "dada")
    path = files / "dada_two"
    assert_success(run_two_processes(binary, flags, path))
    assert (path / "figures" / "policy.png").exists()
    assert_same_run(path, one_device("dada")[0])


@pytest.mark.slow
def test_two_processes_measure_the_cost_of_a_search(files):
    path = files / "measured_two"
    assert_success(run_two_processes(*settings(files, "dada"), path, "--measure_cost"))
    assert run_folder.read_summary(path)["plain_step_ratio"] > 0


def test_all_processes_end_on_bad_input(files):
    binary, flags = settings(files, "train")
    for errors, code in run_two_processes(binary, {**flags, "batch_size": 18}, files / "refused"):
        assert code == 2 and "error: --batch_size=18: expected a multiple of the 4 devices" in errors, errors
    assert not (files / "refused").exists()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("train", {"batch_size": 12, "num_devices": None}, "--batch_size=12: expected a multiple of the 8"),
        ("dada", {"valid_batch_size": 20, "num_devices": 8}, "--valid_batch_size=20: .*--num_devices takes"),
        ("deepaa", {"num_points": 6, "num_devices": 4}, "--num_points=6: expected a multiple of the 4"),
        ("train", {"num_devices": 9}, "--num_devices=9: there are 8 devices"),
        ("train", {"process_id": 0}, "together or not at all; missing: --coordinator_address, --num_proc"),
        ("dada", {"coordinator_address": "a:1", "num_processes": 2}, "missing: --process_id$"),
        (
            "dada",
            {"coordinator_address": "here", "num_processes": 2, "process_id": 0},
            "--coordinator_address: got 'here', expected HOST:PORT",
        ),
        (
            "train",
            {"coordinator_address": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2: expected less than 2",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, name, changes, message):
    binary, flags = settings(files, name)
    with pytest.raises(ValueError, match=message):
        small_runs.run_here(binary, flags, files / "refused", **changes)
    assert not (files / "refused").exists()


def convolutions_in_loops(text):
    """Convolutions that a loop of a compiled program runs, in its body or in what the body calls."""
    blocks = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S))
    assert blocks, "no computation found"
    reached, waiting = set(), set(re.findall(r" while\(.* body=%([\w.\-]+)", text))
    while waiting:
        name = waiting.pop()
        reached.add(name)
        waiting |= (blocks.keys() & set(re.findall(r"%([\w.\-]+)", blocks[name]))) - reached
    return [line for name in reached for line in blocks[name].splitlines() if " convolution(" in line]


@pytest.mark.parametrize("name", ["train", "dada", "ddas"])
def test_no_convolution_runs_in_a_loop_on_cpu(one_device, name):
    for text in one_device(name)[1]:
        assert " convolution(" in text and convolutions_in_loops(text) == []


def test_no_convolution_of_deepaa_runs_in_a_loop_on_cpu(files, monkeypatch):
    texts = []

    def record(function):
        def call(config, *arguments):
            program = jax.jit(function, static_argnums=0).lower(config, *arguments).compile()
            texts.append(program.as_text())
            return program(*arguments)

        return call

    for name in ("_add_gradient", "_alignments"):
        monkeypatch.setattr(deepaa_scores, name, record(getattr(deepaa_scores, name).__wrapped__))
    binary, flags = settings(files, "deepaa")
    config = small_runs.task(binary, flags, datasets.load(flags["dataset"]))[0].config
    network = wide_resnet.init(jax.random.key(0), wide_resnet.Config(10, 1, 4))
    state = deepaa_search.init(jax.random.key(0), config, *network)
    images = jnp.zeros((1, 8, 8, 3), jnp.uint8)
    point = sgd.Batch(images, jnp.zeros(1, jnp.int32))
    deepaa_search.step(config, state, point, jax.tree.map(lambda leaf: leaf[:, None], point))
    assert len(texts) >= 3
    for text in texts:
        assert " convolution(" in text and convolutions_in_loops(text) == []


def test_a_scanned_step_is_seen_to_have_convolutions_in_its_loop(files, monkeypatch):
    monkeypatch.setattr(compiled_loop, "scans", lambda: True)
    binary, flags = settings(files, "train")
    with recorded_programs() as texts:
        task, _ = small_runs.task(binary, flags, datasets.load(flags["dataset"]))
        list(train_run._loop(task, is_vmapped=False).run(*train_run._start(task, 0), task.data, 2))
    assert len(convolutions_in_loops(texts[0])) > 10


def test_trees_come_back_whole_from_all_devices():
    tree = {"key": jax.random.split(jax.random.key(3)), "bytes": np.arange(5, dtype=np.uint8)}
    mesh = devices.mesh()
    everywhere = devices.replicate(tree, mesh)
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(everywhere))
    chex.assert_trees_all_equal(devices.local(everywhere, mesh), jax.tree.map(jnp.asarray, tree))
    assert devices.mesh(1) is None and devices.replicate(tree, None) is tree
