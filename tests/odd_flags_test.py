"""Bad and odd flags, flag files, excluded ops and environments: one line and exit code 2, or right."""

import json
import os
import signal
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs
from absl import flags

from dada import ops, policies
from dada.models import wide_resnet
from dada.searches import dada, dada_official, ddas, deepaa
from dada.training import policy_training, sgd
from experiments import (
    benchmark,
    noise_table,
    pack_images,
    plot,
    search,
    success_table,
    table_run,
    tables,
    train,
    verify,
)
from experiments.data import datasets
from experiments.runs import command_line

COMMANDS = (
    *(benchmark, noise_table, pack_images, plot, search, success_table, table_run, tables),
    *(train, verify),
)
SMALL = {"model": "wrn_10_1", "epochs": 2, "batch_size": 16, "crop_padding": 1, "cutout_length": 2}
FLAG_FILES = {
    "utf16": "--epochs=3\n".encode("utf-16"),
    "utf16_unmarked": "--epochs=3\n".encode("utf-16-le"),
    "binary": bytes(range(256)),
    "self": b"--epochs=3\n--flagfile=self.flags\n",
    "one": b"--flagfile=other.flags\n",
    "other": b"--flagfile=one.flags\n",
    "no_flag": b"epochs=3\n",
    "windows": b"\xef\xbb\xbf# a comment\r\n\r\n--epochs=3\r\n  // another\r\n--flagfile=more.flags\r\n",
    "more": b"--seed=7",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    small_runs.write_data_set(folder / "tiny.npz", 160, 8)
    for name, content in FLAG_FILES.items():
        (folder / f"{name}.flags").write_bytes(content)
    (folder / "folder.flags").mkdir()
    return folder


def ends(monkeypatch, capsys, command, arguments, code):
    """The lines on stderr of a command that ends in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command_line.run(command.define, command.main, getattr(command, "_resolve", None))
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == code, lines
    return lines


def all_ops(space, but=()):
    return ",".join(dict.fromkeys(row.op for row in ops.search_space(space).rows if row.op not in but))


# ---- flags and flag files, excluded ops ------------------------------------------------------


def test_every_integer_flag_has_both_bounds():
    names = {path.stem for path in (small_runs.ROOT / "experiments").glob("*.py")} - {"__init__"}
    assert {f"experiments.{name}" for name in names} == {command.__name__ for command in COMMANDS}
    count = 0
    for command in COMMANDS:
        values = flags.FlagValues()
        command.define(values)
        for name in values:
            parser = values[name].parser
            if isinstance(parser, flags.IntegerParser):
                assert None not in (parser.lower_bound, parser.upper_bound), (command.__name__, name)
                count += 1
    assert count > 40


BAD = {  # by name: command, flags, words
    "seed of 33 bits": (train, "--seed=4294967296", "--seed=4294967296: 4294967296 is not"),
    "seed of 64 bits": (search, "--seed=9223372036854775808", "in the range [0, 4294967295]"),
    "seed of verify": (verify, "--seed=4294967296", "in the range [0, 4294967295]"),
    "seed below 0": (table_run, "--seed=-1", "--seed=-1"),
    "last seed": (train, "--seed=4294967290 --num_seeds=6", "--num_seeds=6: expected seeds below 4294967295"),
    "too many folders": (search, "--num_seeds=1000000000", "in the range [1, 10000]"),
    "cutout": (train, "--cutout_length=99999999999", "in the range [0, 4096]"),
    "crop": (search, "--crop_padding=1000000000", "in the range [0, 4096]"),
    "more than an int32": (search, "--max_steps=2147483648", "in the range [1, 2147483647]"),
    "no epoch": (train, "--epochs=0", "in the range [1, 1000000]"),
    "no integer": (train, "--batch_size=1e2", "--batch_size=1e2"),
    "nan": (train, "--learning_rate=nan", "--learning_rate=nan: expected a finite number"),
    "inf": (search, "--clip_norm=inf", "--clip_norm=inf: expected a finite number"),
    "negative": (search, "--weight_decay=-0.1", "--weight_decay=-0.1"),
    "nan in a list": (train, "--schedule=step --decay_epochs=1,nan", "--decay_epochs: got 1,nan, expected"),
    "RandAugment": (train, "--policy=randaugment:1000000000,5", "expected 100 ops or fewer"),
    "seed of a policy": (train, "--policy=random:4294967296", "Seed must be between 0 and"),
    "timeout of nobody": (train, "--coordinator_timeout=5", "has no effect without --process_id"),
    "port": (
        train,
        "--coordinator_address=a:99999 --num_processes=2 --process_id=1",
        "--coordinator_address: got 'a:99999', expected HOST:PORT",
    ),
    "UTF-16": (train, "--flagfile=utf16.flags", "--flagfile=utf16.flags: expected UTF-8 text"),
    "UTF-16, no mark": (train, "--flagfile=utf16_unmarked.flags", "expected UTF-8 text"),
    "binary": (train, "--flagfile=binary.flags", "expected UTF-8 text"),
    "no such file": (train, "--flagfile no.flags", "--flagfile=no.flags: No such file"),
    "no file": (train, "--flagfile=", "--flagfile=: Is a directory"),
    "folder": (train, "--flagfile=folder.flags", "--flagfile=folder.flags: Is a directory"),
    "in itself": (train, "--flagfile=self.flags", "--flagfile=self.flags: the file includes itself"),
    "in a circle": (train, "--flagfile=one.flags", "--flagfile=one.flags: the file includes itself"),
    "no flag in it": (train, "--flagfile=no_flag.flags", "unexpected argument 'epochs=3'"),
    "unknown op": (search, "--exclude_ops=Invret", "excluded op: got 'Invret', expected one of search"),
    "no such op here": (search, "--exclude_ops=Rotate90", "'Rotate90', expected one of search space"),
    "no such row": (search, "--exclude_ops=Rotate- --search_space=strength", "got 'Rotate-', expected"),
    "twice": (search, "--exclude_ops=Rotate,Rotate-", "excluded op 'Rotate-' is already excluded"),
    "extra and excluded": (
        search,
        "--extra_ops=Rotate90 --exclude_ops=Rotate90",
        "excluded op 'Rotate90' is one of the extra ops Rotate90",
    ),
    "extra by default": (
        search,
        "--method=deepaa --exclude_ops=RandFlip",
        "excluded op 'RandFlip' is one of the extra ops RandFlip, RandCutout, RandCrop",
    ),
    "all": (search, f"--exclude_ops={all_ops('directed')}", "got all of search space 'directed'"),
    "all but one": (search, f"--exclude_ops={all_ops('directed', 'Invert')}", "at least 2 ops, got 1"),
    "all but a pair": (
        search,
        f"--policy_space=triples --exclude_ops={all_ops('directed', ('Invert', 'Equalize'))}",
        "at least 3 ops, got 2",
    ),
    "all but one to judge": (
        search,
        f"--method=ddas --judge --exclude_ops={all_ops('ddas', 'Invert')}",
        "--judge trains with random pairs of ops, got a search space of one op",
    ),
    "boxes": (
        search,
        "--search_space=autoaugment_detection",
        "search space 'autoaugment_detection': SolarizeAdd needs images with boxes, got images with labels",
    ),
    "boxes of one op": (search, "--extra_ops=Flip_Only_BBoxes", "Flip_Only_BBoxes needs images with boxes"),
    "boxes of a policy": (
        train,
        "--policy=autoaugment_detection_v0",
        "--policy=autoaugment_detection_v0: SolarizeAdd needs images with boxes",
    ),
    "Identity": (search, "--method=deepaa --exclude_ops=Identity", "without Identity, which every layer"),
    "planted": (
        search,
        "--exclude_ops=Invert --planted_op=Invert",
        "--planted_op: Invert is excluded: no search can find it",
    ),
    "planted the other way": (
        search,
        "--exclude_ops=Rotate- --planted_op=Rotate:-20",
        "--planted_op: Rotate- is excluded: no search can find it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_nothing_written(files, name, monkeypatch, capsys):
    command, line, words = BAD[name]
    monkeypatch.chdir(files)
    before = sorted(files.iterdir())
    arguments = line.split()
    if command in (search, train):
        small = {**SMALL, "epochs": None, "dataset": "tiny.npz", "run_dir": "run"}
        if "deepaa" in line:
            small |= {"valid_batch_size": 4, "proxy_images": 40}
        arguments = [*small_runs.command(small), *arguments]
    (error,) = ends(monkeypatch, capsys, command, arguments, code=2)
    assert error.startswith("error: ") and words in error, error
    assert sorted(files.iterdir()) == before


def test_a_flag_file_of_another_editor_is_read(files, monkeypatch):
    monkeypatch.chdir(files)
    resolved = train.resolve(["--flagfile=windows.flags"])
    assert (resolved["epochs"], resolved["seed"]) == (3, 7)
    assert train.resolve(["--seed=4294967295"])["seed"] == 2**32 - 1


METHODS = {  # by name: flags, excluded ops, rows that they are
    "dada": ({}, ["Invert", "Rotate", "ShearX-"], ["ShearX-", "Rotate+", "Rotate-", "Invert"]),
    "dada_official": ({"preset": "official"}, ["Cutout", "Rotate"], ["Rotate", "Cutout"]),
    "ddas": ({"method": "ddas", "valid_batch_size": 16}, ["Identity", "FlipUD"], ["Identity", "FlipUD"]),
    "deepaa": (
        {"method": "deepaa", "valid_batch_size": 4, "proxy_images": 40, "extra_ops": ["RandFlip"]},
        ["Rotate", "Invert"],
        ["Rotate", "Invert"],
    ),
    "deepaa_official": (
        {"method": "deepaa", "preset": "official", "valid_batch_size": 4, "proxy_images": 40},
        ["ShearX"],
        ["ShearX"],
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_a_policy_without_excluded_ops_is_written_loaded_and_trained_with(files, name):
    changes, excluded, rows = METHODS[name]
    path = str(files / "tiny.npz")
    dataset = datasets.load(path)
    settings = {**SMALL, "dataset": path, **changes, "exclude_ops": excluded}
    task, _ = small_runs.task(search, settings, dataset)
    names = [row.name for row in task.config.space.rows]
    whole = ops.search_space(task.config.space.name, tuple(changes.get("extra_ops", ())))
    if "extra_ops" in changes:
        assert names == [row.name for row in whole.rows if row.name not in rows]
    assert not set(rows) & set(names)
    network, network_config = task.model
    params, stats = jax.jit(network.init, static_argnums=1)(jax.random.key(0), network_config)
    state = task.method.library.init(jax.random.key(1), task.config, params, stats)
    found = task.method.library.extract_policy(task.config, state, seed=0)
    assert found.excluded_ops == tuple(rows)
    file = files / f"{name}.json"
    policies.save(file, found)
    text = file.read_text()
    again = policies.load(file)
    assert policies.to_json(again) == text and json.loads(text)["excluded_ops"] == rows
    assert [row.name for row in policies.space(again).rows] == names
    assert policies.format_table(again).splitlines()[0].endswith(f" without {', '.join(rows)}")
    assert policies.merge([again, again]).excluded_ops == found.excluded_ops
    trained, _ = small_runs.task(train, SMALL | {"dataset": path, "policy": str(file)}, dataset)
    assert policies.to_json(trained.config.policy) == text
    options = {"extra_ops": found.extra_ops, "excluded_ops": found.excluded_ops}
    random = policies.random_policy(3, found.search_space, **options)
    assert policies.space(random) == policies.space(again)


def test_a_space_of_three_ops_has_three_random_pairs():
    excluded = tuple(all_ops("dada", ("Invert", "Color", "Cutout")).split(","))
    assert len(policies.random_policy(0, "dada", excluded_ops=excluded).content.row) == 3


# ---- environments ----------------------------------------------------------------------------


def process(command, settings, **environment):
    line = [sys.executable, "-m", command.__name__, *small_runs.command(settings)]
    environment = {**os.environ, **environment}
    return subprocess.Popen(line, cwd=small_runs.ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("platform", ["cuda", "no_such_thing"])
def test_a_platform_that_is_not_here(files, platform):
    settings = {**SMALL, "dataset": files / "tiny.npz", "run_dir": files / "run"}
    started = process(train, settings, JAX_PLATFORMS=platform)
    small_runs.assert_fails_with_one_line(started, f"JAX finds no device (JAX_PLATFORMS={platform})")
    assert not (files / "run").exists()


def test_processes_that_nobody_joins(files):
    settings, started = {"num_processes": 3, "coordinator_timeout": 1, "run_dir": files / "run"}, []
    for number in (0, 1):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        more = {"coordinator_address": address, "process_id": number}
        started.append((address, process(train, settings | more)))
    for whom, (address, one) in zip(("process 0 waits for 2 more", "process 1 waits for process 0"), started):
        errors = one.communicate(timeout=300)[1]
        assert errors.splitlines() == [
            f"{whom} at {address}",
            f"error: --coordinator_timeout: expected all 3 processes at {address} within 1 s",
        ]
        assert one.returncode == 2 and not (files / "run").exists()


def pipe_without_reader():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize(
    ("output", "words"),
    [(pipe_without_reader, "broken pipe"), (lambda: "/dev/full", "No space left on device")],
)
def test_an_output_that_nobody_takes(output, words, monkeypatch, capsys):
    with open(output(), "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        (line,) = ends(monkeypatch, capsys, train, ["--help"], code=2)
    assert line.startswith("error: ") and words in line


def test_an_output_without_all_signs(tmp_path, monkeypatch, capsys):
    command = types.SimpleNamespace(define=search.define, main=lambda values, arguments: print("1.0 ± 0.5"))
    with open(tmp_path / "output", "w", encoding="ascii") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "argv", ["command"])
        command_line.run(command.define, command.main)
    assert (tmp_path / "output").read_text() == "1.0 ? 0.5\n"


def fails_with(error, run_dir=None):
    """A command with the flags of a search that raises an error, in a run folder."""

    def main(values, arguments):
        if run_dir:
            values.run_dir = str(run_dir)
        raise error if isinstance(error, BaseException) else AssertionError(error())

    return types.SimpleNamespace(define=search.define, main=main)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (lambda: jnp.zeros((2**22, 2**22)), "RESOURCE_EXHAUSTED"),
        (lambda: np.empty(2**62, np.uint8), "Unable to allocate"),
        (lambda: jnp.arange(3) + 2**40, "value 1099511627776"),
        (PermissionError(13, "Permission denied", "runs"), "Permission denied: 'runs'"),
    ],
    ids=["device memory", "memory", "overflow", "permission"],
)
def test_errors_that_a_user_can_mend_are_one_line(error, words, monkeypatch, capsys):
    (line,) = ends(monkeypatch, capsys, fails_with(error), [], code=2)
    assert line.startswith("error: ") and words in line
    hint = "out of memory; a smaller --batch_size or --chunk_size or --valid_batch_size needs less"
    assert (hint in line) == ("memory" in line)


def test_an_interrupted_run_says_where_it_is(tmp_path, monkeypatch, capsys):
    command = fails_with(KeyboardInterrupt(), tmp_path)
    (line,) = ends(monkeypatch, capsys, command, [], code=128 + signal.SIGINT)
    assert line == f"interrupted; the run so far is in {tmp_path}, --resume goes on"


def test_what_is_not_known_shows_its_traceback_and_the_run_folder(tmp_path, monkeypatch, capsys):
    *lines, last = ends(monkeypatch, capsys, fails_with(KeyError("a bug"), tmp_path), [], code=1)
    assert lines[0].startswith("Traceback") and lines[-1] == "KeyError: 'a bug'"
    assert f"the run so far is in {tmp_path}" in last


def few_ops(space):
    return ops.search_space(space, (), tuple(all_ops(space, ("Identity", "ShearX", "Invert")).split(",")))


# In the mode of 64 bits, JAX_ENABLE_X64.
RELAXED = {"score": "exact", "estimator": "straight_through", "policy_space": "slots"}
RELEASED = {"candidates": ddas.as_released(few_ops("ddas")), **ddas.config.OFFICIAL_SETTINGS}
STEPS = {
    "dada": (dada, dada.Config, "directed", {"num_draws": 2}),
    "dada exact": (dada, dada.Config, "directed", {"score": "exact"}),
    "dada relaxed": (dada, dada.Config, "strength", RELAXED),
    "dada official": (dada_official, dada_official.Config, "dada", {}),
    "ddas": (ddas, ddas.Config, "ddas", {"candidates": ddas.candidates(few_ops("ddas"))}),
    "ddas official": (ddas, ddas.Config, "ddas", RELEASED),
    "deepaa": (deepaa, deepaa.Config, "deepaa", {"num_chains": 4}),
}


def shapes_of(count):
    shape = (*count, 8, 8, 3) if isinstance(count, tuple) else (count, 8, 8, 3)
    images = jax.ShapeDtypeStruct(shape, jnp.uint8)
    return sgd.Batch(images, jax.ShapeDtypeStruct(shape[:-3], jnp.int32))


def assert_same_types(before, after):
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), before) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), after
    )


def network(key):
    return wide_resnet.init(key, wide_resnet.Config(10, 1, 4))


@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_the_types_of_its_state_in_64_bits(name):
    library, config_class, space, settings = STEPS[name]
    config = config_class(wide_resnet.apply, few_ops(space), **settings)
    valid = shapes_of((4, 3)) if name == "deepaa" else shapes_of(4)
    with jax.enable_x64(True):
        state = jax.eval_shape(lambda key: library.init(key, config, *network(key)), jax.random.key(0))
        after, metrics = jax.eval_shape(
            lambda *arguments: library.step(config, *arguments), state, shapes_of(4), valid
        )
    assert_same_types(state, after)
    assert jnp.float64 not in [leaf.dtype for leaf in jax.tree.leaves((state, metrics))]


def test_a_training_step_keeps_the_types_of_its_state_in_64_bits():
    config = policy_training.Config(wide_resnet.apply, policies.load("dada_cifar10"), 4)
    with jax.enable_x64(True):
        key = jax.random.key(0)
        state = jax.eval_shape(lambda key: sgd.init(*network(key)), key)
        after, _ = jax.eval_shape(
            lambda *arguments: policy_training.step(key, config, *arguments), state, *shapes_of(4)
        )
    assert_same_types(state, after)
