"""Weights under torchvision's names: logits of PyTorch, every name once, and files that do not fit."""

import functools
import json

import jax
import numpy as np
import pytest
import small_runs

from dada import augment, models
from dada.models import resnet
from dada.searches import deepaa
from experiments import search, train
from experiments.methods import deepaa_run, search_loop
from experiments.runs import pretrained, run_flags, train_run

# Logits that torchvision 0.29.1 gives with `weights` on `image`, by depth.
LOGITS = {
    18: [0.801491, -0.208016, -0.293487, -0.717631, -1.30551],
    50: [1.14322, -1.30546, -0.485322, 2.199911, 1.06433],
}
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def names_and_shapes(depth, num_classes, width, kernel):
    """What a state_dict of torchvision holds, written out from its network."""

    def norm(name, channels):
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias")})
        shapes.update({f"{name}.{part}": (channels,) for part in ("running_mean", "running_var")})

    shapes = {"conv1.weight": (width, 3, kernel, kernel)}
    norm("bn1", width)
    channels = width
    for stage, count in enumerate(BLOCKS[depth]):
        planes = width * 2**stage
        sizes = ((planes, 3), (planes, 3)) if depth == 18 else ((planes, 1), (planes, 3), (4 * planes, 1))
        for block in range(count):
            name, inputs = f"layer{stage + 1}.{block}", channels
            for number, (outputs, side) in enumerate(sizes, start=1):
                shapes[f"{name}.conv{number}.weight"] = (outputs, inputs, side, side)
                norm(f"{name}.bn{number}", outputs)
                inputs = outputs
            if block == 0 and (stage or depth == 50):
                shapes[f"{name}.downsample.0.weight"] = (inputs, channels, 1, 1)
                norm(f"{name}.downsample.1", inputs)
            channels = inputs
    return {**shapes, "fc.weight": (num_classes, channels), "fc.bias": (num_classes,)}


@functools.cache
def weights(depth, num_classes=5, width=64, kernel=7):
    """Arrays by name, the same with every NumPy."""
    random, arrays = np.random.RandomState(0), {}
    for name, shape in sorted(names_and_shapes(depth, num_classes, width, kernel).items()):
        normal = random.standard_normal(shape)
        if name.endswith("running_var"):
            normal = 1 + 0.5 * np.tanh(normal)
        elif len(shape) > 1:
            normal *= np.sqrt(2 / np.prod(shape[1:]))
        else:
            normal = 0.2 * normal + (0.5 if name.endswith("weight") else 0)
        arrays[name] = normal.astype(np.float32)
    return arrays


def image():
    return np.random.RandomState(1).standard_normal((1, 70, 90, 3)).astype(np.float32)


# --- the file's arrays in the network --------------------------------------------------------------


def small():
    """A narrow ResNet-18, and arrays for it."""
    return (resnet, resnet.Config(18, 5, width=2)), weights(18, width=2)


def write_safetensors(path, arrays, kinds):
    """The format, written out: length of the header, header, numbers."""
    header, numbers = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        kind = kinds.get(array.dtype.name, array.dtype.name)
        raw = array.tobytes()
        offsets = [len(numbers), len(numbers) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        numbers += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + numbers)
    return path


@pytest.mark.parametrize("depth", [18, 50])
def test_logits_are_those_of_torchvision(depth, tmp_path):
    # As in a state_dict of PyTorch, with the counts of batch norm.
    count = {"bn1.num_batches_tracked": np.int64(3)}
    np.savez(tmp_path / "resnet.npz", **weights(depth), **count)
    model = models.by_name(f"resnet_{depth}", 5, 224)
    params, stats = pretrained.load(str(tmp_path / "resnet.npz"), model)
    drawn = jax.eval_shape(lambda: resnet.init(jax.random.key(0), model[1]))
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (params, stats))
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), drawn)
    logits, _ = jax.jit(resnet.apply, static_argnums=3)(params, stats, image(), False)
    np.testing.assert_allclose(logits[0], LOGITS[depth], atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_safetensors_hold_the_same(dtype, tmp_path):
    model, arrays = small()
    rounded = {name: array.astype(dtype) for name, array in arrays.items()}
    counts = {"bn1.num_batches_tracked": np.array(3)}
    kinds = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    path = write_safetensors(tmp_path / "a.safetensors", {**rounded, **counts}, kinds)
    np.savez(tmp_path / "a.npz", **{name: array.astype(np.float32) for name, array in rounded.items()})
    found, expected = (pretrained.load(str(p), model) for p in (path, tmp_path / "a.npz"))
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"float32"}


def test_no_file_is_no_weights():
    assert pretrained.load(None, small()[0]) == ({}, {})


def test_a_file_without_a_head_leaves_the_drawn_one(tmp_path):
    (_, config), arrays = small()
    path = str(tmp_path / "a.npz")
    np.savez(path, **{name: array for name, array in arrays.items() if not name.startswith("fc.")})
    model = resnet, resnet.Config(18, 7, width=2)
    params, _ = pretrained.load(path, model)
    assert set(params) == {"stem", "norm", "stages"}
    with pytest.raises(ValueError, match=r"misses 2 arrays, fc\.bias, fc\.weight"):
        pretrained.load(path, model, needs_head=True)
    with pytest.raises(ValueError, match=r"misses 1 arrays, fc\.weight"):
        np.savez(path, **{name: array for name, array in arrays.items() if name != "fc.weight"})
        pretrained.load(path, (resnet, config))


# --- files that do not fit -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer1.0.bn1.bias": None}, r"misses 1 arrays, layer1\.0\.bn1\.bias; is it for another --model"),
        ({"layer5.0.conv1.weight": np.ones(3)}, r"also has 1 arrays, layer5\.0\.conv1\.weight"),
        ({"conv1.weight": np.ones((2, 3, 3, 3))}, r"got float64 \[2, 3, 3, 3\], .* \[2, 3, 7, 7\]; is it"),
        ({"bn1.bias": np.ones(2, int)}, r"bn1\.bias: got int64 \[2\], expected real numbers \[2\]"),
        ({"fc.weight": np.ones((9, 16))}, r"got float64 \[9, 16\], .* \[5, 16\]; for other classes leave fc"),
    ],
)  # fmt: skip
def test_arrays_that_do_not_fit_are_named(changes, message, tmp_path):
    model, arrays = small()
    arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        pretrained.load(str(tmp_path / "a.npz"), model)


def test_other_files_and_networks_are_refused(tmp_path):
    model, arrays = small()
    with pytest.raises(ValueError, match=r"expected --model=resnet_"):
        pretrained.load("a.npz", models.by_name("wrn_10_1", 5, 32))
    with pytest.raises(ValueError, match=r"expected a \.safetensors or \.npz file\. .*weights_only=True"):
        pretrained.load("resnet18.pth", model)
    with pytest.raises(FileNotFoundError, match="no such file"):
        pretrained.load("a.npz", model)
    np.savez(tmp_path / "objects.npz", **{"conv1.weight": np.array([{}], object)})
    whole = write_safetensors(tmp_path / "whole.safetensors", arrays, {"float32": "F32"}).read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    (tmp_path / "noise.safetensors").write_bytes(b"\xff" * 100)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "noise.npz").write_bytes(b"\xff" * 100)
    write_safetensors(tmp_path / "int.safetensors", {"fc.bias": np.ones(2, np.int32)}, {"int32": "I32"})
    for name in (
        "objects.npz",
        "cut.safetensors",
        "noise.safetensors",
        "empty.safetensors",
        "noise.npz",
        "int.safetensors",
    ):
        with pytest.raises(ValueError, match=rf"{name}: not a readable"):
            pretrained.load(str(tmp_path / name), model)


# --- runs that start from a file -------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained")
    small_runs.write_data_set(folder / "tiny.npz", 160, 40)
    small_runs.write_folder(folder / "set", np.random.default_rng(0), 20, 5)
    arrays = weights(18, num_classes=4, kernel=3)  # the stem of small images
    np.savez(folder / "whole.npz", **arrays)
    np.savez(folder / "body.npz", **{name: array for name, array in arrays.items() if name[:3] != "fc."})
    return folder


def task(binary, files, name, **changes):
    """What a command would run, and the weights of its file."""
    settings = {"model": "resnet_18", "batch_size": 16, "dataset": str(files / "tiny.npz"), **changes}
    settings["pretrained"] = str(files / name)
    dataset = run_flags.load_dataset(binary.resolve(small_runs.command(settings)))
    found, _ = small_runs.task(binary, settings, dataset)
    return found, pretrained.load(settings["pretrained"], found.model)


def assert_starts_from(params, stats, given):
    jax.tree.map(np.testing.assert_array_equal, {name: params[name] for name in given[0]}, given[0])
    jax.tree.map(np.testing.assert_array_equal, stats, given[1])


def test_a_training_starts_from_it_with_a_drawn_head_for_other_classes(files):
    found, given = task(train, files, "body.npz")
    assert found.config.mean == pytest.approx(augment.IMAGENET_MEAN)
    assert found.config.std == pytest.approx(augment.IMAGENET_STD)
    state, _ = train_run._start(found, 3)
    assert_starts_from(state.params, state.batch_stats, given)
    drawn, _ = train_run._start(found._replace(pretrained=({}, {})), 3)
    jax.tree.map(np.testing.assert_array_equal, state.params["dense"], drawn.params["dense"])
    assert np.any(state.params["stem"]["weight"] != drawn.params["stem"]["weight"])


def test_a_search_starts_from_it(files):
    found, given = task(search, files, "whole.npz")
    state, _ = search_loop.start(found, 0, None, 0)
    assert_starts_from(state.train.params, state.train.batch_stats, given)
    assert found.config.mean == pytest.approx(augment.IMAGENET_MEAN)


def test_deepaa_takes_it_for_its_network_and_reports_its_accuracy(files):
    settings = {"method": "deepaa", "proxy_images": 1, "num_points": 2, "valid_batch_size": 2}
    settings |= {"dataset": str(files / "set"), "input": "host", "image_size": 8, "final_crop": 6}
    with pytest.raises(ValueError, match=r"misses 2 arrays, fc\.bias"):
        task(search, files, "body.npz", **settings)
    with pytest.raises(ValueError, match="--proxy=runs/x has no effect with --pretrained"):
        task(search, files, "whole.npz", proxy="runs/x", **settings)
    with pytest.raises(ValueError, match="--epochs=3 has no effect with --pretrained"):
        task(search, files, "whole.npz", epochs=3, **settings)
    found, given = task(search, files, "whole.npz", **settings)
    state, _ = deepaa_run.start(found, 0, None, 0)
    assert_starts_from(state.params, state.batch_stats, given)
    policy = deepaa.extract_policy(found.config, state)
    summary = deepaa_run.report(found, None, [], state, policy)
    center = np.asarray(found.dataset.test_images)[:, 1:7, 1:7]
    images = augment.normalize(center, augment.IMAGENET_MEAN, augment.IMAGENET_STD)
    logits, _ = jax.jit(resnet.apply, static_argnums=3)(*given, images, False)
    expected = np.mean(np.argmax(logits, -1) == found.dataset.test_labels)
    assert summary["proxy_accuracy"] == expected and summary["seconds_proxy"] == 0
