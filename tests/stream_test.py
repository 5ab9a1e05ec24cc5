"""Streamed training images: the run is that of images held on the device, whoever decodes them, and when."""

import json
import pathlib
import shutil
import threading

import jax
import numpy as np
import pytest
import small_runs
from devices_test import run_two_processes
from PIL import Image

from dada import augment, policies
from dada.augment import sampling
from dada.models import wide_resnet
from dada.training import sgd
from experiments import plot, search, train
from experiments.data import datasets, host_images, native_policy, sources, stream
from experiments.figures import finished_run
from experiments.runs import (
    command_line,
    compiled_loop,
    contents,
    devices,
    run_flags,
    run_folder,
    streamed_loop,
)

SMALL = {
    "model": "wrn_10_1",
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.05,
    "cutout_length": 0,
    "image_size": 8,
    "resize": 9,
}
RANDOM = {"crop": "random_resized", "crop_area": 0.5}
TIMES = ("seconds", "seconds_train", "seconds_waited")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Class folders, 28 training images of several sizes in 4 classes that brightness tells apart."""
    folder = tmp_path_factory.mktemp("stream")
    small_runs.write_folder(folder / "set", np.random.default_rng(0), 7, 3)
    return folder


@pytest.fixture(scope="module", autouse=True)
def fused_steps():
    """Two programs are compared bit by bit: steps are fused as for users, unlike other tests (conftest)."""

    def compiled(function, *arguments):
        return jax.jit(function).lower(*arguments).compile({"xla_cpu_use_fusion_emitters": True}), 1.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_loop, "compiled", compiled)
        yield


def settings(files, **changes):
    return {**SMALL, "dataset": str(files / "set"), **changes}


def run(files, name, **changes):
    return small_runs.run_here(train, settings(files, **changes), files / name)


def weights(path):
    """The last checkpoint of a run."""
    params, stats = wide_resnet.init(jax.random.key(0), wide_resnet.Config(10, 1, 4))
    return run_folder.RunFolder(path).restore(sgd.init(params, stats))


def assert_same_run(path, expected):
    jax.tree.map(np.testing.assert_array_equal, weights(path), weights(expected))
    lines, others = (run_folder.read_metrics(folder) for folder in (path, expected))
    for line in (*lines, *others):
        for name in TIMES:
            line.pop(name, None)
    assert lines == others and len(lines) == 3
    assert (path / "policy.json").read_bytes() == (expected / "policy.json").read_bytes()


@pytest.fixture(scope="module")
def held(files):
    return run(files, "held", input="device")


@pytest.fixture(scope="module")
def cropped(files):
    return run(files, "cropped", **RANDOM)


def test_streamed_images_give_the_run_of_images_on_the_device(files, held):
    streamed = run(files, "streamed", input="host")
    assert_same_run(streamed, held)
    assert not (set(run_folder.read_summary(held)) - set(run_folder.read_summary(streamed)))
    assert 0 < run_folder.read_summary(streamed)["share_waited"] < 1
    inputs = [json.loads((path / "inputs.json").read_text()) for path in (streamed, held)]
    for name, count in (("training images", 28), ("test images", 12)):
        assert inputs[0].pop(name).startswith(f"[{count}, 8, 8, 3] from files ")
        assert " from files " not in inputs[1].pop(name)
    assert inputs[0] == inputs[1]


def test_a_final_crop_after_nothing_but_flips_is_a_crop_before_them(files):
    changes = {"policy": "none", "crop_padding": 0}
    small, large = (
        run(files, f"of_{size}", **changes, image_size=size, resize=12, final_crop=final_crop)
        for size, final_crop in ((8, None), (12, 8))
    )
    assert_same_run(large, small)


def test_a_packed_set_and_other_threads_give_the_same_run(files, cropped, held):
    for name in ("train", "val"):
        (files / "packed").mkdir(exist_ok=True)
        sources.pack(sources.open_parts(files / "set")[name], files / "packed", name)
    packed = {"dataset": str(files / "packed"), "decode_threads": 7}
    assert_same_run(run(files, "other", **RANDOM, **packed), cropped)
    assert (files / "other" / "inputs.json").read_bytes() == (cropped / "inputs.json").read_bytes()
    assert_same_run(run(files, "unpacked", input="device", dataset=packed["dataset"]), held)
    with pytest.raises(AssertionError):
        assert_same_run(cropped, held)
    with pytest.raises(ValueError, match=r"JPEG is \d+ x \d+, expected \d+ x \d+: --image_size brings"):
        datasets.load(packed["dataset"])


def test_killed_within_an_epoch_and_resumed_is_the_straight_run(files, cropped):
    path = files / "killed"
    fused = "--xla_cpu_use_fusion_emitters=true"
    process = small_runs.start(train, settings(files, **RANDOM, decode_threads=2), path, xla_flags=fused)
    small_runs.kill_when(process, lambda: (path / "checkpoints" / "3" / "_CHECKPOINT_METADATA").exists())
    assert not (path / "summary.json").exists()
    small_runs.run_here(train, settings(files, **RANDOM, decode_threads=1), path, resume=True)
    assert_same_run(path, cropped)


def test_two_processes_are_one(files, cropped):
    path = files / "two"
    for errors, code in run_two_processes(train, settings(files, **RANDOM), path):
        assert code == 0, errors
    close = {"rtol": 2e-3, "atol": 2e-3}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), weights(path), weights(cropped))
    for line, other in zip(run_folder.read_metrics(path), run_folder.read_metrics(cropped), strict=True):
        np.testing.assert_allclose(line["train_loss"], other["train_loss"], **close)


SEARCH = {
    **{name: SMALL[name] for name in ("model", "image_size")},
    "epochs": 2,
    "batch_size": 8,
    "valid_batch_size": 4,
    "num_train": 12,
    "search_space": "strength",
    "exclude_ops": [
        "Cutout",
        "Equalize",
        "Posterize",
        "Rotate",
        "ShearX",
        "ShearY",
        "TranslateX",
        "TranslateY",
    ],
    "planted_op": "Invert",
}
METHODS = {
    "dada": {"num_draws": 2, "crop_padding": 1},
    "ddas": {"method": "ddas", "num_policies": 2, "magnitudes": ["0.5", "1"], "crop_padding": 0},
}


@pytest.mark.parametrize("name", ["dada", pytest.param("ddas", marks=pytest.mark.slow)])
def test_a_search_on_streamed_images_is_that_on_images_on_the_device(files, name, monkeypatch):
    flags = {**SEARCH, **METHODS[name], "dataset": str(files / "set")}
    with monkeypatch.context() as patch:
        patch.setattr(finished_run, "draw", lambda *_: [])
        held, streamed = (
            small_runs.run_here(search, flags, files / f"{name}_{where}", input=where)
            for where in ("device", "host")
        )
    lines, others = (run_folder.read_metrics(path) for path in (streamed, held))
    assert [{**line, "seconds": 0} for line in lines] == [{**line, "seconds": 0} for line in others]
    assert len(lines) > 2
    assert (streamed / "policy.json").read_bytes() == (held / "policy.json").read_bytes()
    assert 0 < run_folder.read_summary(streamed)["share_waited"] < 1
    again = run_flags.load_again(run_folder.read_flags(streamed))
    run_folder.check_contents(streamed, contents.of_dataset(again))
    if name == "ddas":
        plot.main(*command_line.parse(plot.define, [str(streamed)]))
        assert (streamed / "figures" / "sample_images.png").stat().st_size > 10_000


def test_deepaa_decodes_the_images_of_its_search_and_no_others(files):
    flags = {name: SEARCH[name] for name in ("model", "image_size", "num_train")}
    flags |= {"method": "deepaa", "valid_batch_size": 1, "batch_size": 2, "proxy_images": 2}

    def task(where):
        settings = search.resolve(small_runs.command({**flags, "dataset": files / "set"}, input=where))
        return search.task_of(settings, run_flags.load_dataset(settings))

    held, decoded = task("device"), task("host")
    assert decoded.dataset.is_streamed and not held.dataset.is_streamed
    assert len(decoded.data.train.labels) == 12
    jax.tree.map(np.testing.assert_array_equal, decoded.data, held.data)
    assert isinstance(decoded.plan.proxy.images.images, host_images.Images)
    np.testing.assert_array_equal(decoded.plan.proxy.images.images, held.plan.proxy.images.images)


def images(files, **changes):
    source = sources.open_parts(files / "set")["train"]
    return host_images.Images(source, host_images.Preparation(8, crop="random_resized", **changes))


def batches(files, steps, threads=2, seed=0):
    some = images(files)
    return stream.batches(
        some,
        np.arange(len(some)),
        seed,
        lambda step: (step // 3, (8 * step + np.arange(8)) % 28),
        steps,
        lambda batch: batch,
        threads,
    )


def test_batches_depend_on_seed_epoch_and_image_alone(files):
    first, *others = (list(batches(files, range(6), threads)) for threads in (1, 2, 7))
    for other in others:
        for pair in zip(first, other, strict=True):
            for one, same in zip(*pair):
                np.testing.assert_array_equal(one, same)
    later = next(batches(files, range(4, 6)))
    np.testing.assert_array_equal(later[0], first[4][0])
    np.testing.assert_array_equal(later[1], (32 + np.arange(8)) % 28)
    seen = {(step // 3, index): image for step in range(6) for image, index in zip(*first[step])}
    assert (seen[0, 5] != seen[1, 5]).any() and (
        next(batches(files, range(1), seed=1))[0] != first[0][0]
    ).any()
    np.testing.assert_array_equal(images(files)[5:].sample(0, 1, 0), seen[1, 5])


def test_a_source_of_ones_own_needs_labels_classes_length_and_read(files):
    folder = sources.open_parts(files / "set")["train"]

    class Mine(sources.Source):
        labels, classes = folder.labels, folder.classes

        def __len__(self):
            return len(self.labels)

        def read(self, index):
            return folder.read(index) if index < 20 else b"lost"

    own = host_images.Images(Mine(), host_images.Preparation(8, crop="random_resized"))
    indices = {0: (0, np.arange(20))}  # by step: epoch, and images of its batch
    ((pixels, labels),) = stream.batches(own, folder.labels, 0, indices.get, indices, tuple)
    np.testing.assert_array_equal(labels, folder.labels[:20])
    np.testing.assert_array_equal(pixels, [images(files).sample(0, 0, index) for index in range(20)])
    assert own.digest != images(files).digest
    with pytest.raises(ValueError, match="image 20 of Mine: cannot be decoded"):
        np.asarray(own)


def test_the_order_is_that_of_the_loop_on_the_device(files):
    mesh, key = devices.mesh(4), jax.random.key(3)
    some, labels = images(files), np.arange(28)
    options = {"seed": 0, "order_key": key, "size": 8, "steps_per_pass": 4, "mesh": mesh, "threads": 2}
    with streamed_loop.open_batches(some, labels, steps=range(2, 7), **options) as opened:
        for step, (pixels, index) in zip(range(2, 7), opened, strict=True):
            expected = compiled_loop.shuffled_indices(key, step, 28, 8, 4)
            np.testing.assert_array_equal(index, expected)
            np.testing.assert_array_equal(pixels[3], some.sample(0, step // 4, int(expected[3])))
            assert pixels.sharding.shard_shape(pixels.shape) == (2, 8, 8, 3)


def test_threads_end_with_their_reader(files):
    before = threading.active_count()
    reader = batches(files, range(100))
    next(reader)
    assert threading.active_count() > before
    reader.close()
    assert threading.active_count() == before


def test_an_image_that_is_damaged_while_training_is_named(files, tmp_path):
    shutil.copytree(files / "set", tmp_path / "set")
    some = images(tmp_path)
    pathlib.Path(tmp_path / "set/train/class_2/3.JPEG").write_bytes(b"lost")
    order = stream.batches(some, np.zeros(28), 0, lambda step: (0, np.arange(28)), range(3), tuple, 2)
    with pytest.raises(ValueError, match=r"class_2/3\.JPEG: cannot be decoded as an image"):
        list(order)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "to_device"))]


def test_a_policy_on_whole_images_is_that_of_the_device():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 30, 20, 3)).astype(np.uint8)
    policy, key = policies.load("autoaugment_imagenet"), jax.random.key(5)
    changes = native_policy.of_batches(key, policy, 10)
    found = [
        np.asarray(change(Image.fromarray(one))) for change, one in zip(changes(3, np.arange(12)), pixels)
    ]
    one_by_one = [changes(3, np.array([index]))[0](Image.fromarray(pixels[index])) for index in range(12)]
    np.testing.assert_array_equal(found, one_by_one)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, 3), np.arange(12))
    draws = jax.vmap(lambda key: sampling.sample(key, policy, 1, (30, 20)))(keys)
    draws = jax.tree.map(lambda leaf: leaf[:, 0], draws)
    np.testing.assert_array_equal(found, augment.apply_draws(pixels, draws))
    assert (found != pixels).any(axis=(1, 2, 3)).mean() > 0.3
    other = changes(4, np.arange(12))
    assert any(
        (np.asarray(change(Image.fromarray(one))) != at_3).any()
        for change, one, at_3 in zip(other, pixels, found)
    )


def test_a_policy_on_whole_images_is_trained_with(files, cropped):
    native = {**RANDOM, "policy": "dada_imagenet", "policy_position": "native", "epochs": 1}
    path = run(files, "native", **native)
    assert policies.load(path / "policy.json").content.row.shape == (25, 2)
    summary, line = run_folder.read_summary(path), run_folder.read_metrics(path)[0]
    assert summary["recipe"]["policy_position"] == "native" and sum(summary["op_mass"].values()) > 0.5
    assert line["train_loss"] != run_folder.read_metrics(cropped)[0]["train_loss"]


def test_where_images_are_held_by_default(files, monkeypatch):
    name = str(files / "set")
    assert not datasets.load(name, image_size=8).is_streamed
    assert datasets.load(name, image_size=8, crop="random_resized").is_streamed
    monkeypatch.setattr(datasets, "_MOST_BYTES", 28 * 8 * 8 * 3)
    assert not datasets.load(name, image_size=8).is_streamed
    assert datasets.load(name, image_size=9).is_streamed
    assert not datasets.load(name, image_size=9, input="device").is_streamed


def test_smoke_takes_two_steps_of_random_crops(files, capsys):
    given = small_runs.command(settings(files, **RANDOM), smoke=True)
    train.main(*command_line.parse(train.define, given))
    assert "parameters, loss" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": "host", "measure_cost": True}, "--measure_cost: expected --input=device"),
        ({"method": "deepaa", "crop": "random_resized"}, "--crop=random_resized has no effect with --method"),
        ({"judge": True, "crop": "random_resized"}, "--judge: got --crop=random_resized, expected center"),
    ],
)
def test_searches_that_cannot_be_streamed_are_refused(files, changes, message):
    flags = {name: value for name, value in SEARCH.items() if name not in ("search_space", "exclude_ops")}
    with pytest.raises(ValueError, match=message):
        small_runs.run_here(search, flags, files / "refused", dataset=files / "set", **changes)
    assert not (files / "refused").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "random_resized", "input": "device"}, "--crop=random_resized for .*--input=host"),
        (
            {"crop": "random_resized", "image_size": None, "resize": None},
            "--crop=random_resized for .*--image_size",
        ),
        (
            {"dataset": "embedded", "image_size": None, "resize": None, "input": "host"},
            "--input=host for 'embedded': expected a",
        ),
        ({"policy_position": "native"}, "--policy_position=native: expected --input=host"),
        (
            {"policy_position": "native", "policy": "deepaa_imagenet_1", "input": "host"},
            "--policy_position=native: got Rand.*, expected ops that Pillow has",
        ),
        ({"crop_area": 0.5}, "--crop_area has no effect with --crop=center"),
        ({"decode_threads": 3}, "--decode_threads=3 has no effect with --input=device"),
        ({"resize": 7}, "--resize=7 for .*expected --image_size or more, which is 8"),
        ({"resize": 9, "image_size": None}, "--resize=9 for "),
        ({"input": "host", "image_size": None, "resize": None}, "--input=host for .*, and --image_size"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises(ValueError, match=message):
        run(files, "refused", **changes)
    assert not (files / "refused").exists()
