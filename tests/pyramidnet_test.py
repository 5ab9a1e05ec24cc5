"""PyramidNet: sizes of the originals, the law of ShakeDrop, and the network written out."""

import functools
import itertools

import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from dada.models import layers, pyramidnet

TINY = pyramidnet.Config(depth=11, alpha=6, num_classes=5)


def _shapes(config):
    return network_checks.shapes(pyramidnet, config)


@functools.cache
def _tiny():
    """Parameters and statistics of one block a stage, all off their initial values."""
    return network_checks.off_initial(*_shapes(TINY), 0.3)


IMAGES = network_checks.images(4, 7)


@pytest.mark.parametrize(("num_classes", "expected"), [(10, 26_210_842), (100, 26_288_692)])
def test_parameter_counts_of_the_originals(num_classes, expected):
    params, stats = _shapes(pyramidnet.Config(272, 200, num_classes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert [len(stage) for stage in params["stages"]] == [30, 30, 30]
    assert len(jax.tree.leaves(stats)) == 2 * (4 * 90 + 2)


def test_layer_shapes():
    params, _ = _shapes(pyramidnet.Config())
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["stem"] == {"weight": (3, 3, 3, 16)}
    assert shapes["stem_norm"] == {"scale": (16,), "bias": (16,)}
    planes = [[block["conv1"]["weight"][3] for block in stage] for stage in shapes["stages"]]
    assert planes[0][:5] == [18, 20, 23, 25, 27] and planes[0][-2:] == [80, 83]
    assert planes[1][:3] == [85, 87, 89] and planes[1][-2:] == [147, 149]
    assert planes[2][:2] == [152, 154] and planes[2][-3:] == [212, 214, 216]
    channels = 16
    for block, size in zip(itertools.chain(*shapes["stages"]), itertools.chain(*planes)):
        assert block == {
            "norm1": {"scale": (channels,), "bias": (channels,)},
            "conv1": {"weight": (1, 1, channels, size)},
            "norm2": {"scale": (size,), "bias": (size,)},
            "conv2": {"weight": (3, 3, size, size)},
            "norm3": {"scale": (size,), "bias": (size,)},
            "conv3": {"weight": (1, 1, size, 4 * size)},
            "norm4": {"scale": (4 * size,), "bias": (4 * size,)},
        }
        channels = 4 * size
    assert shapes["norm"] == {"scale": (864,), "bias": (864,)}
    assert shapes["dense"] == {"weight": (864, 10), "bias": (10,)}

    params, stats = _shapes(pyramidnet.Config(depth=29, alpha=20, num_classes=7))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, new_stats = jax.eval_shape(
        lambda *arguments: pyramidnet.apply(*arguments, True, jax.random.key(0)), params, stats, images
    )
    assert logits.shape == (2, 7) and logits.dtype == jnp.float32
    assert new_stats == stats


def test_law_of_shake_drop(monkeypatch):
    factors = network_checks.record_shake(monkeypatch)
    shapes = _shapes(pyramidnet.Config(depth=29, alpha=1))
    num_blocks, num_keys = 9, 2048

    def draw(key):
        factors.clear()
        params, stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        pyramidnet.apply(params, stats, jnp.zeros((6, 4, 4, 3)), True, key)
        return jnp.array(factors)

    drawn = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), num_keys))
    forward, backward = np.moveaxis(drawn, 2, 0)
    assert forward.shape == (num_keys, num_blocks, 6)
    # One gate for the whole batch: an image is never dropped alone.
    dropped = np.all(forward != 1.0, axis=2)
    assert np.all(forward[~dropped] == 1.0) and np.all(backward[~dropped] == 1.0)
    rates = 0.5 * np.arange(1, num_blocks + 1) / num_blocks
    np.testing.assert_allclose(dropped.mean(0), rates, atol=0.045)
    np.testing.assert_allclose(dropped.mean(), rates.mean(), atol=0.015)
    np.testing.assert_allclose(np.corrcoef(dropped.T), np.eye(num_blocks), atol=0.1)

    # Six images and two directions: U(-1, 1) for values and U(0, 1) for derivatives.
    variables = np.concatenate([forward[dropped], backward[dropped]], axis=1).T
    low = 6 * [-1] + 6 * [0]
    network_checks.assert_uniform_and_independent(variables, low, mean_atol=0.01, covariance_atol=0.015)


# --- The network, block by block ------------------------------------------------------------------


def _definition(params, stats, images, is_training, noise):
    """Logits, with the factors [3, 2, B] of values and derivatives given."""
    hidden = layers.conv(params["stem"], images)
    hidden = network_checks.norm(params["stem_norm"], stats["stem_norm"], hidden, is_training)
    for index, stride in enumerate((1, 2, 2)):
        block, block_stats = params["stages"][index][0], stats["stages"][index][0]
        residual = network_checks.norm(block["norm1"], block_stats["norm1"], hidden, is_training)
        residual = residual @ block["conv1"]["weight"][0, 0]
        residual = network_checks.norm(block["norm2"], block_stats["norm2"], residual, is_training)
        residual = layers.conv(block["conv2"], jnp.maximum(residual, 0), stride=stride)
        residual = network_checks.norm(block["norm3"], block_stats["norm3"], residual, is_training)
        residual = jnp.maximum(residual, 0) @ block["conv3"]["weight"][0, 0]
        residual = network_checks.norm(block["norm4"], block_stats["norm4"], residual, is_training)
        if is_training:
            forward, backward = noise[index][:, :, None, None, None]
            derived = backward * residual
            residual = derived + jax.lax.stop_gradient(forward * residual - derived)
        else:
            residual = residual * (1 - 0.5 * (index + 1) / 3)
        if stride == 2:
            hidden = layers.average_pool_2x2(hidden)
        channels = hidden.shape[-1]
        hidden = residual.at[..., :channels].add(hidden)
    hidden = network_checks.norm(params["norm"], stats["norm"], hidden, is_training)
    features = jnp.maximum(hidden, 0).mean((1, 2))
    return features @ params["dense"]["weight"] + params["dense"]["bias"]


def test_training_and_its_derivatives_are_those_of_the_definition(monkeypatch):
    factors = network_checks.record_shake(monkeypatch)
    with jax.enable_x64(True):
        params, stats, images = jax.tree.map(jnp.asarray, (*_tiny(), IMAGES))
        random = np.random.RandomState(1)
        direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), params)

        def function(params):
            return pyramidnet.apply(params, stats, images, True, jax.random.key(3))

        @jax.jit
        def both(params):
            factors.clear()
            logits, tangent, new_stats = jax.jvp(function, (params,), (direction,), has_aux=True)
            noise = jnp.array(factors, float)
            expected, expected_tangent = jax.jvp(
                lambda p: _definition(p, stats, images, True, noise), (params,), (direction,)
            )
            gradient = jax.grad(lambda p: jnp.vdot(tangent, function(p)[0]))(params)
            return logits, tangent, expected, expected_tangent, gradient, new_stats, noise

        logits, tangent, expected, expected_tangent, gradient, new_stats, noise = both(params)
        # This key opens some gates and closes others.
        assert 0 < np.sum(noise[:, 0, 0] == 1) < 3
        assert logits.dtype == float
        np.testing.assert_allclose(logits, expected, rtol=1e-9)
        np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-8)
        # Reverse mode is the transpose of forward mode.
        products = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), np.vdot(tangent, tangent), rtol=1e-8)
        assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
        assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new_stats, stats))))


def test_evaluation_is_that_of_the_definition_whatever_the_key():
    network_checks.assert_evaluation_is_that_of(_definition, pyramidnet, *_tiny(), IMAGES)


def test_noise_and_statistics_of_eight_devices_equal_one():
    keys = jax.random.key(0), jax.random.key(1)
    first, other = (network_checks.assert_eight_devices_equal_one(pyramidnet, *_tiny(), key) for key in keys)
    assert np.all(np.abs(other - first) > 1e-6)


def test_initial_values():
    config = pyramidnet.Config(11, 24, 10)
    init = jax.jit(pyramidnet.init, static_argnums=1)
    params, stats = init(jax.random.key(3), config)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype(np.float32)}
    block = params["stages"][2][0]
    for name, fan_out in (("conv1", 40), ("conv2", 9 * 40), ("conv3", 160)):
        deviation = np.std(block[name]["weight"])
        np.testing.assert_allclose(deviation, np.sqrt(2 / fan_out), rtol=0.05)
    for leaf in jax.tree.leaves(params["dense"]):
        assert np.abs(leaf).max() <= 1 / np.sqrt(160)
    assert np.all(block["norm4"]["scale"] == 1) and not np.any(block["norm4"]["bias"])
    assert not np.any(stats["norm"]["mean"]) and np.all(stats["norm"]["variance"] == 1)


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (pyramidnet.Config(depth=270), ValueError, "expected depth 9 n .* got 270"),
        (pyramidnet.Config(depth=2), ValueError, "expected depth 9 n .* got 2"),
        (pyramidnet.Config(alpha=0), ValueError, "expected alpha >= 1, got 0"),
        (pyramidnet.Config(num_classes=0), ValueError, "expected num_classes >= 1, got 0"),
        (pyramidnet.Config(depth="272"), TypeError, "expected an integer depth, got '272'"),
    ],
)
def test_bad_config_is_named(config, error, text):
    with pytest.raises(error, match=f"pyramidnet: {text}"):
        pyramidnet.init(jax.random.key(0), config)


def test_bad_input_is_named():
    (params, stats), images = _tiny(), IMAGES
    with pytest.raises(ValueError, match="pyramidnet: training draws noise and needs a key"):
        pyramidnet.apply(params, stats, images, True)
    with pytest.raises(TypeError, match=r"pyramidnet: expected floating, .* uint8"):
        pyramidnet.apply(params, stats, images.astype(np.uint8), False)
    with pytest.raises(ValueError, match=r"pyramidnet: expected images \[B, H, W, 3\]"):
        pyramidnet.apply(params, stats, images[0], False)
