"""Residual networks: sizes of the originals, and the network written out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from dada.models import layers, resnet


def _shapes(config):
    return network_checks.shapes(resnet, config)


@functools.cache
def _tiny(depth, small_images):
    """A thin network cut to blocks (2, 1, 1, 1), off its initial values, and images."""
    params, stats = _shapes(resnet.Config(depth, 5, width=3, small_images=small_images))
    for tree in (params, stats):
        tree["stages"] = [stage[:count] for stage, count in zip(tree["stages"], (2, 1, 1, 1))]
    images = network_checks.images(4, 7 if small_images else 26)
    return *network_checks.off_initial(params, stats, 0.4), images


@pytest.mark.parametrize(
    ("depth", "num_classes", "small_images", "expected"),
    [
        (18, 1000, False, 11_689_512),
        (18, 10, True, 11_173_962),
        (50, 1000, False, 25_557_032),
        (50, 120, False, 23_753_912),
        (101, 1000, False, 44_549_160),
        (200, 1000, False, 64_673_832),
    ],
)
def test_parameter_counts_of_the_originals(depth, num_classes, small_images, expected):
    params, stats = _shapes(resnet.Config(depth, num_classes, small_images=small_images))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    # One norm for each layer but the linear one, and for each projection of a shortcut.
    projections = 3 if depth == 18 else 4
    assert len(jax.tree.leaves(stats)) == 2 * (depth - 1 + projections)


def test_layer_shapes():
    params, stats = _shapes(resnet.Config(50))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["stem"] == {"weight": (7, 7, 3, 64)}
    assert shapes["norm"] == {"scale": (64,), "bias": (64,)}
    assert [len(stage) for stage in shapes["stages"]] == [3, 4, 6, 3]
    channels = 64
    for stage, planes in zip(shapes["stages"], (64, 128, 256, 512)):
        for index, block in enumerate(stage):
            assert block["conv1"] == {"weight": (1, 1, channels, planes)}
            assert block["conv2"] == {"weight": (3, 3, planes, planes)}
            assert block["conv3"] == {"weight": (1, 1, planes, 4 * planes)}
            assert block["norm3"] == {"scale": (4 * planes,), "bias": (4 * planes,)}
            assert ("shortcut" in block) == ("shortcut_norm" in block) == (index == 0)
            channels = 4 * planes
    assert shapes["dense"] == {"weight": (2048, 1000), "bias": (1000,)}
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits, new_stats = jax.eval_shape(
        lambda *arguments: resnet.apply(*arguments, True), params, stats, images
    )
    assert logits.shape == (2, 1000) and logits.dtype == jnp.float32
    assert new_stats == stats

    params, _ = _shapes(resnet.Config(18, small_images=True))
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["stem"] == {"weight": (3, 3, 3, 64)}
    assert ["shortcut" in stage[0] for stage in shapes["stages"]] == [False, True, True, True]
    assert shapes["stages"][3][0]["conv1"] == {"weight": (3, 3, 256, 512)}
    assert shapes["dense"] == {"weight": (512, 1000), "bias": (1000,)}


# --- The network, block by block ------------------------------------------------------------------


def _definition(params, stats, images, is_training, depth, small_images):
    if small_images:
        hidden = layers.conv(params["stem"], images)
    else:
        hidden = layers.conv(params["stem"], images, stride=2)
    hidden = jnp.maximum(network_checks.norm(params["norm"], stats["norm"], hidden, is_training), 0)
    if not small_images:
        hidden = layers.max_pool_3x3(hidden)
    for stage, stage_stats, stride in zip(params["stages"], stats["stages"], (1, 2, 2, 2)):
        for block, block_stats in zip(stage, stage_stats):
            shortcut = hidden
            if "shortcut" in block:
                shortcut = hidden[:, ::stride, ::stride] @ block["shortcut"]["weight"][0, 0]
                shortcut = network_checks.norm(
                    block["shortcut_norm"], block_stats["shortcut_norm"], shortcut, is_training
                )
            if depth == 18:
                hidden = layers.conv(block["conv1"], hidden, stride=stride)
                hidden = network_checks.norm(block["norm1"], block_stats["norm1"], hidden, is_training)
                hidden = layers.conv(block["conv2"], jnp.maximum(hidden, 0))
                hidden = network_checks.norm(block["norm2"], block_stats["norm2"], hidden, is_training)
            else:
                hidden = hidden @ block["conv1"]["weight"][0, 0]
                hidden = network_checks.norm(block["norm1"], block_stats["norm1"], hidden, is_training)
                hidden = layers.conv(block["conv2"], jnp.maximum(hidden, 0), stride=stride)
                hidden = network_checks.norm(block["norm2"], block_stats["norm2"], hidden, is_training)
                hidden = jnp.maximum(hidden, 0) @ block["conv3"]["weight"][0, 0]
                hidden = network_checks.norm(block["norm3"], block_stats["norm3"], hidden, is_training)
            hidden = jnp.maximum(hidden + shortcut, 0)
            stride = 1
    return hidden.mean((1, 2)) @ params["dense"]["weight"] + params["dense"]["bias"]


@pytest.mark.parametrize(("depth", "small_images"), [(18, False), (50, True)])
def test_network_is_that_of_the_definition(depth, small_images):
    params, stats, images = _tiny(depth, small_images)
    with jax.enable_x64(True):
        apply = jax.jit(resnet.apply, static_argnums=3)
        definition = jax.jit(_definition, static_argnums=(3, 4, 5))
        for is_training in (True, False):
            logits, new_stats = apply(params, stats, images, is_training)
            expected = definition(params, stats, images, is_training, depth, small_images)
            assert logits.dtype == float
            np.testing.assert_allclose(logits, expected, rtol=1e-9)
            assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
            changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), new_stats, stats)
            assert set(jax.tree.leaves(changed)) == {is_training}


def test_features_are_the_outputs_of_the_stages():
    params, stats, images = _tiny(18, False)
    with jax.enable_x64(True):
        features, new_stats = jax.jit(resnet.features, static_argnums=3)(params, stats, images, True)
        expected = jax.jit(resnet.apply, static_argnums=3)(params, stats, images, True)
        logits = layers.dense(params["dense"], layers.global_average_pool(features[-1]))
    shapes = [feature.shape for feature in features]
    assert shapes == [(4, 7, 7, 3), (4, 4, 4, 6), (4, 2, 2, 12), (4, 1, 1, 24)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), (logits, new_stats), expected)


def test_with_group_norm_an_image_is_by_itself():
    config = resnet.Config(18, 5, width=8, small_images=True, norm="group")
    params, stats = _shapes(config)
    of_batch_norm, _ = _shapes(dataclasses.replace(config, norm="batch"))
    assert jax.tree.structure(params) == jax.tree.structure(of_batch_norm)
    assert not jax.tree.leaves(stats)
    params, stats = network_checks.off_initial(params, stats, 0.3)
    images = network_checks.images(2, 8)
    apply = jax.jit(resnet.apply, static_argnums=3)
    logits, new_stats = apply(params, stats, images, True)
    assert new_stats == stats
    other, _ = apply(params, stats, np.stack([images[0], images[1] ** 2]), True)
    np.testing.assert_array_equal(logits[0], other[0])
    assert not np.allclose(logits[1], other[1])
    np.testing.assert_array_equal(apply(params, stats, images, False)[0], logits)
    with pytest.raises(ValueError, match="group_norm: expected a multiple of 8 channels, got 12"):
        _shapes(dataclasses.replace(config, width=12))


def test_forward_and_reverse_mode_and_differences_agree():
    with jax.enable_x64(True):
        params, stats, images = jax.tree.map(jnp.asarray, _tiny(18, False))
        random = np.random.RandomState(1)
        direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), params)

        def loss(params):
            return jnp.sum(jnp.tanh(resnet.apply(params, stats, images, True)[0][:, 0]))

        @jax.jit
        def derivatives(params):
            value, slope = jax.jvp(loss, (params,), (direction,))
            return value, slope, jax.grad(loss)(params)

        _, slope, gradient = derivatives(params)
        products = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, direction)
        # Forward mode of the maximum packs value and tangent in one word.
        np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-5)
        step = 1e-7
        after, before = (
            derivatives(jax.tree.map(lambda a, b, s=s: a + s * b, params, direction))[0]
            for s in (step, -step)
        )
        np.testing.assert_allclose(slope, (after - before) / (2 * step), rtol=1e-4)


def test_batch_statistics_of_eight_devices_equal_one():
    params, stats, _ = _tiny(50, True)
    network_checks.assert_eight_devices_equal_one(resnet, params, stats)


def test_initial_values():
    config = resnet.Config(18, 10, width=8, small_images=True)
    init = jax.jit(resnet.init, static_argnums=1)
    params, stats = init(jax.random.key(3), config)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype(np.float32)}
    first, second = params["stages"][3]
    for weight, fan_out in (
        (first["conv1"]["weight"], 9 * 64),
        (first["shortcut"]["weight"], 64),
        (second["conv2"]["weight"], 9 * 64),
    ):
        np.testing.assert_allclose(np.std(weight), np.sqrt(2 / fan_out), rtol=0.05)
    for leaf in jax.tree.leaves(params["dense"]):
        assert np.abs(leaf).max() <= 1 / 8
    # The last norm of a block starts like the others.
    assert np.all(second["norm2"]["scale"] == 1) and not np.any(second["norm2"]["bias"])
    assert not np.any(stats["norm"]["mean"]) and np.all(stats["norm"]["variance"] == 1)
    assert not np.allclose(second["conv1"]["weight"], second["conv2"]["weight"])


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (resnet.Config(depth=34), ValueError, "expected depth 18, 50, 101 or 200, got 34"),
        (resnet.Config(num_classes=0), ValueError, "expected num_classes >= 1, got 0"),
        (resnet.Config(width=1.5), TypeError, "expected an integer width, got 1.5"),
        (resnet.Config(small_images=1), TypeError, "expected a bool small_images, got 1"),
        (resnet.Config(norm="layer"), ValueError, "expected norm batch or group, got 'layer'"),
    ],
)
def test_bad_config_is_named(config, error, text):
    with pytest.raises(error, match=f"resnet: {text}"):
        resnet.init(jax.random.key(0), config)


def test_bad_images_are_named():
    params, stats, images = _tiny(18, False)
    with pytest.raises(TypeError, match=r"resnet: expected floating, .* uint8"):
        resnet.apply(params, stats, images.astype(np.uint8), True)
    with pytest.raises(ValueError, match=r"resnet: expected images \[B, H, W, 3\]"):
        resnet.apply(params, stats, images[0], True)
