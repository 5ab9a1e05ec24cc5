"""Wide residual networks: sizes of the originals, and a forward pass written out in numpy."""

import functools

import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from dada.models import wide_resnet

TINY = wide_resnet.Config(depth=10, width=1, num_classes=10)


@functools.cache
def _tiny():
    """Parameters and statistics of WRN-10-1, all moved off their initial values, and images."""
    params, stats = network_checks.off_initial(*network_checks.shapes(wide_resnet, TINY), 0.3)
    return params, stats, network_checks.images(3, 8)


def _cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


@pytest.mark.parametrize(
    ("depth", "width", "num_classes", "expected"),
    [(40, 2, 10, 2_246_474), (40, 2, 100, 2_258_084), (28, 10, 10, 36_489_290), (28, 10, 100, 36_546_980)],
)
def test_parameter_counts_of_the_originals(depth, width, num_classes, expected):
    config = wide_resnet.Config(depth, width, num_classes)
    params, stats = network_checks.shapes(wide_resnet, config)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    blocks = (depth - 4) // 6
    assert [len(stage) for stage in params["stages"]] == [blocks] * 3
    # One mean and one variance for every scale and bias.
    assert len(jax.tree.leaves(stats)) == 2 * (6 * blocks + 1)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, new_stats = jax.eval_shape(
        lambda *arguments: wide_resnet.apply(*arguments, True), params, stats, images
    )
    assert logits.shape == (2, num_classes) and logits.dtype == jnp.float32
    assert new_stats == stats


def test_layer_shapes():
    params, _ = network_checks.shapes(wide_resnet, wide_resnet.Config(16, 2, 10))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["stem"] == {"weight": (3, 3, 3, 16), "bias": (16,)}
    for stage, (inputs, outputs) in zip(shapes["stages"], [(16, 32), (32, 64), (64, 128)]):
        first, second = stage
        assert first["norm1"] == {"scale": (inputs,), "bias": (inputs,)}
        assert first["conv1"] == {"weight": (3, 3, inputs, outputs), "bias": (outputs,)}
        assert first["norm2"] == {"scale": (outputs,), "bias": (outputs,)}
        assert first["conv2"] == {"weight": (3, 3, outputs, outputs), "bias": (outputs,)}
        assert first["shortcut"] == {"weight": (1, 1, inputs, outputs), "bias": (outputs,)}
        assert "shortcut" not in second
        assert second["conv1"] == {"weight": (3, 3, outputs, outputs), "bias": (outputs,)}
    assert shapes["norm"] == {"scale": (128,), "bias": (128,)}
    assert shapes["dense"] == {"weight": (128, 10), "bias": (10,)}


def test_narrow_first_stage_has_an_identity_shortcut():
    params, _ = network_checks.shapes(wide_resnet, TINY)
    assert ["shortcut" in stage[0] for stage in params["stages"]] == [False, True, True]


# --- The network in PyTorch's layout (NCHW, OIHW), with loops --------------------------------------


def _numpy_conv(params, inputs, stride=1):
    weight = np.transpose(params["weight"], (3, 2, 0, 1))
    kernel = weight.shape[2]
    pad = kernel // 2
    padded = np.pad(inputs, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height = (inputs.shape[2] + 2 * pad - kernel) // stride + 1
    width = (inputs.shape[3] + 2 * pad - kernel) // stride + 1
    outputs = np.zeros((inputs.shape[0], weight.shape[0], height, width))
    for row in range(height):
        for column in range(width):
            top, left = row * stride, column * stride
            patch = padded[:, :, top : top + kernel, left : left + kernel]
            outputs[:, :, row, column] = np.tensordot(patch, weight, ((1, 2, 3), (1, 2, 3)))
    return outputs + params["bias"][:, None, None]


def _numpy_norm_relu(params, stats, inputs, is_training, momentum):
    if is_training:
        mean, variance = inputs.mean((0, 2, 3)), inputs.var((0, 2, 3))
        unbiased = inputs.var((0, 2, 3), ddof=1)
        stats = {
            "mean": (1 - momentum) * stats["mean"] + momentum * mean,
            "variance": (1 - momentum) * stats["variance"] + momentum * unbiased,
        }
    else:
        mean, variance = stats["mean"], stats["variance"]
    shape = (-1, 1, 1)
    outputs = (inputs - mean.reshape(shape)) / np.sqrt(variance.reshape(shape) + 1e-5)
    outputs = params["scale"].reshape(shape) * outputs + params["bias"].reshape(shape)
    return np.maximum(outputs, 0), stats


def _numpy_wide_resnet(params, stats, images, is_training, momentum):
    norm = functools.partial(_numpy_norm_relu, is_training=is_training, momentum=momentum)
    hidden = _numpy_conv(params["stem"], np.transpose(images, (0, 3, 1, 2)))
    new_stats = {"stages": []}
    for index in range(3):
        block, block_stats = params["stages"][index][0], stats["stages"][index][0]
        stride = 1 if index == 0 else 2
        residual, norm1 = norm(block["norm1"], block_stats["norm1"], hidden)
        residual = _numpy_conv(block["conv1"], residual)
        residual, norm2 = norm(block["norm2"], block_stats["norm2"], residual)
        residual = _numpy_conv(block["conv2"], residual, stride)
        if index > 0:
            hidden = _numpy_conv(block["shortcut"], hidden, stride)
        hidden = hidden + residual
        new_stats["stages"].append([{"norm1": norm1, "norm2": norm2}])
    hidden, new_stats["norm"] = norm(params["norm"], stats["norm"], hidden)
    features = hidden.mean((2, 3))
    return features @ params["dense"]["weight"] + params["dense"]["bias"], new_stats


@pytest.mark.parametrize("is_training", [True, False])
def test_forward_equals_numpy(is_training):
    params, stats, images = _tiny()
    expected = _numpy_wide_resnet(params, stats, images, is_training, momentum=0.9)
    with jax.enable_x64(True):
        actual = jax.jit(wide_resnet.apply, static_argnums=3)(
            *_cast((params, stats, images), np.float64), is_training
        )
        assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {np.dtype(np.float64)}
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), actual, expected)

    # The same in float32, given images of another floating type.
    actual = jax.jit(wide_resnet.apply, static_argnums=3)(
        *_cast((params, stats), np.float32), images, is_training
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {np.dtype(np.float32)}
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-3, atol=1e-3)


def test_momentum_is_the_weight_of_the_new_batch():
    params, stats, images = _cast(_tiny(), np.float32)
    apply = jax.jit(wide_resnet.apply, static_argnames=("is_training",))
    new_stats = {
        momentum: apply(params, stats, images, is_training=True, batch_norm_momentum=momentum)[1]
        for momentum in (0.1, 0.9, 1.0)
    }
    default = apply(params, stats, images, is_training=True)[1]
    for momentum in (0.1, 0.9):
        jax.tree.map(
            lambda actual, old, batch, m=momentum: np.testing.assert_allclose(
                actual, (1 - m) * old + m * batch, rtol=1e-4, atol=1e-5
            ),
            new_stats[momentum],
            stats,
            new_stats[1.0],
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), default, new_stats[0.9])


def test_initial_values():
    init = jax.jit(wide_resnet.init, static_argnums=1)
    params, stats = init(jax.random.key(3), TINY)
    again, _ = init(jax.random.key(3), TINY)
    jax.tree.map(np.testing.assert_array_equal, params, again)
    block = params["stages"][2][0]
    bound = 1 / np.sqrt(9 * 32)
    for leaf in jax.tree.leaves(block["conv1"]):
        assert 0.9 * bound < np.abs(leaf).max() <= bound
    for leaf in jax.tree.leaves(block["shortcut"]):
        assert np.abs(leaf).max() <= 1 / np.sqrt(32)
    assert np.all(block["norm1"]["scale"] == 1) and not np.any(block["norm1"]["bias"])
    assert not np.any(stats["norm"]["mean"]) and np.all(stats["norm"]["variance"] == 1)
    # No two convolutions of one shape start from the same numbers.
    first = params["stages"][0][0]
    assert not np.allclose(first["conv1"]["weight"], first["conv2"]["weight"])


def test_reverse_over_forward_equals_forward_over_reverse_and_differences():
    with jax.enable_x64(True):
        params, stats, images = _cast(_tiny(), np.float64)
        random = np.random.RandomState(1)
        direction = jax.tree.map(lambda leaf: 0.1 * random.standard_normal(leaf.shape), params)
        shift = random.standard_normal(images.shape)

        def outputs(params, images):
            return jnp.tanh(wide_resnet.apply(params, stats, images, True)[0])[:, 0]

        def directional(images):
            return jax.jvp(lambda p: outputs(p, images), (params,), (direction,))[1].sum()

        def gradient(params):
            return jax.grad(lambda x: outputs(params, x).sum())(images)

        @jax.jit
        def both(images):
            reverse_over_forward = jax.grad(directional)(images)
            forward_over_reverse = jax.jvp(gradient, (params,), (direction,))[1]
            return reverse_over_forward, forward_over_reverse

        first, second = both(images)
        np.testing.assert_allclose(first, second, rtol=1e-8, atol=1e-10)
        evaluate = jax.jit(directional)
        step = 1e-6
        difference = evaluate(images + step * shift) - evaluate(images - step * shift)
        np.testing.assert_allclose(jnp.sum(first * shift), difference / (2 * step), rtol=1e-5)


def test_batch_statistics_of_eight_devices_equal_one():
    params, stats, _ = _tiny()
    network_checks.assert_eight_devices_equal_one(wide_resnet, params, stats)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (wide_resnet.Config(depth=41), ValueError, "expected depth 6 n .* got 41"),
        (wide_resnet.Config(depth=4), ValueError, "expected depth 6 n .* got 4"),
        (wide_resnet.Config(width=0), ValueError, "expected width >= 1, got 0"),
        (wide_resnet.Config(num_classes=0), ValueError, "expected num_classes >= 1, got 0"),
        (wide_resnet.Config(width=1.5), TypeError, "expected an integer width, got 1.5"),
        (wide_resnet.Config(depth="40"), TypeError, "expected an integer depth, got '40'"),
    ],
)
def test_bad_config_is_named(config, error, text):
    with pytest.raises(error, match=text):
        wide_resnet.init(jax.random.key(0), config)


@pytest.mark.parametrize(
    ("images", "error", "text"),
    [
        (np.zeros((2, 8, 8, 3), np.uint8), TypeError, "floating, normalised images, got .* uint8"),
        (np.zeros((8, 8, 3), np.float32), ValueError, r"\[B, H, W, 3\], got \(8, 8, 3\)"),
        (np.zeros((2, 3, 8, 8), np.float32), ValueError, r"\[B, H, W, 3\], got \(2, 3, 8, 8\)"),
    ],
)
def test_bad_images_are_named(images, error, text):
    params, stats, _ = _tiny()
    with pytest.raises(error, match=text):
        wide_resnet.apply(params, stats, images, True)
