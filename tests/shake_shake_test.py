"""Shake-Shake: sizes of the originals, the law of the noise, and the network written out."""

import functools

import jax
import jax.numpy as jnp
import network_checks
import numpy as np
import pytest

from dada.models import layers, shake_shake

TINY = shake_shake.Config(depth=8, width=4, num_classes=5)


def _shapes(config):
    return network_checks.shapes(shake_shake, config)


@functools.cache
def _tiny():
    """Parameters and statistics of one block a stage, all off their initial values."""
    return network_checks.off_initial(*_shapes(TINY), 0.4)


IMAGES = network_checks.images(4, 7)


@pytest.mark.parametrize(
    ("width", "num_classes", "expected"),
    [
        (32, 10, 2_923_146),
        (32, 100, 2_934_756),
        (96, 10, 26_192_906),
        (96, 100, 26_227_556),
        (112, 10, 35_640_426),
        (112, 100, 35_680_836),
    ],
)
def test_parameter_counts_of_the_originals(width, num_classes, expected):
    params, stats = _shapes(shake_shake.Config(26, width, num_classes))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    assert [len(stage) for stage in params["stages"]] == [4, 4, 4]
    # One mean and one variance for each of four norms a block and one in three shortcuts.
    assert len(jax.tree.leaves(stats)) == 2 * (4 * 12 + 3)


def test_layer_shapes():
    params, stats = _shapes(shake_shake.Config())
    shapes = jax.tree.map(lambda leaf: leaf.shape, params)
    assert shapes["stem"] == {"weight": (3, 3, 3, 16), "bias": (16,)}
    for stage, (inputs, outputs) in zip(shapes["stages"], [(16, 32), (32, 64), (64, 128)]):
        norm = {"scale": (outputs,), "bias": (outputs,)}
        for index, block in enumerate(stage):
            block_inputs = inputs if index == 0 else outputs
            assert (
                block["branches"]
                == [
                    {
                        "conv1": {"weight": (3, 3, block_inputs, outputs)},
                        "norm1": norm,
                        "conv2": {"weight": (3, 3, outputs, outputs)},
                        "norm2": norm,
                    }
                ]
                * 2
            )
            assert ("shortcut" in block) == (index == 0)
        half = {"weight": (1, 1, inputs, outputs // 2)}
        assert stage[0]["shortcut"] == {"conv1": half, "conv2": half, "norm": norm}
    assert shapes["dense"] == {"weight": (128, 10), "bias": (10,)}

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    logits, new_stats = jax.eval_shape(
        lambda *arguments: shake_shake.apply(*arguments, True, jax.random.key(0)), params, stats, images
    )
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert new_stats == stats


def test_noise_is_uniform_and_of_its_own_for_each_image_block_and_direction(monkeypatch):
    factors = network_checks.record_shake(monkeypatch)
    shapes = _shapes(shake_shake.Config(depth=26, width=2))

    @jax.jit
    def draw(key):
        factors.clear()
        params, stats = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes)
        shake_shake.apply(params, stats, jnp.zeros((4096, 4, 4, 3)), True, key)
        return jnp.array(factors)

    noise = np.asarray(draw(jax.random.key(1)))
    assert noise.shape == (24, 2, 4096)
    first, second = noise[0::2], noise[1::2]
    np.testing.assert_allclose(first + second, 1.0, atol=1e-6)
    # Alphas and betas of all blocks.
    variables = first.reshape(24, 4096)
    network_checks.assert_uniform_and_independent(variables, 24 * [0], mean_atol=0.02, covariance_atol=0.008)
    assert not np.any(np.asarray(draw(jax.random.key(2))) == noise)


# --- The network, block by block ------------------------------------------------------------------


def _definition(params, stats, images, is_training, noise):
    """Logits, with the noise [3, 2, B] given."""
    hidden = layers.conv(params["stem"], images)
    for index, stride in enumerate((1, 2, 2)):
        block, block_stats = params["stages"][index][0], stats["stages"][index][0]
        active, outputs = jnp.maximum(hidden, 0), []
        for branch, branch_stats in zip(block["branches"], block_stats["branches"]):
            residual = layers.conv(branch["conv1"], active, stride=stride)
            residual = network_checks.norm(branch["norm1"], branch_stats["norm1"], residual, is_training)
            residual = layers.conv(branch["conv2"], jnp.maximum(residual, 0))
            outputs.append(network_checks.norm(branch["norm2"], branch_stats["norm2"], residual, is_training))
        if is_training:
            alpha, beta = noise[index][:, :, None, None, None]
            mixed = alpha * outputs[0] + (1 - alpha) * outputs[1]
            derived = beta * outputs[0] + (1 - beta) * outputs[1]
            mixed = derived + jax.lax.stop_gradient(mixed - derived)
        else:
            mixed = (outputs[0] + outputs[1]) / 2
        shortcut = block["shortcut"]
        shifted = jnp.zeros_like(active).at[:, :-1, :-1].set(active[:, 1:, 1:])
        halves = (
            active[:, ::stride, ::stride] @ shortcut["conv1"]["weight"][0, 0],
            shifted[:, ::stride, ::stride] @ shortcut["conv2"]["weight"][0, 0],
        )
        halves = jnp.concatenate(halves, axis=-1)
        hidden = mixed + network_checks.norm(
            shortcut["norm"], block_stats["shortcut"]["norm"], halves, is_training
        )
    features = jnp.maximum(hidden, 0).mean((1, 2))
    return features @ params["dense"]["weight"] + params["dense"]["bias"]


def test_training_and_its_derivatives_are_those_of_the_definition(monkeypatch):
    factors = network_checks.record_shake(monkeypatch)
    with jax.enable_x64(True):
        params, stats, images = jax.tree.map(jnp.asarray, (*_tiny(), IMAGES))
        random = np.random.RandomState(1)
        direction = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape), params)

        def function(params):
            return shake_shake.apply(params, stats, images, True, jax.random.key(3))

        @jax.jit
        def both(params):
            factors.clear()
            logits, tangent, new_stats = jax.jvp(function, (params,), (direction,), has_aux=True)
            noise = jnp.array(factors[::2], float)
            expected, expected_tangent = jax.jvp(
                lambda p: _definition(p, stats, images, True, noise), (params,), (direction,)
            )
            gradient = jax.grad(lambda p: jnp.vdot(tangent, function(p)[0]))(params)
            return logits, tangent, expected, expected_tangent, gradient, new_stats

        logits, tangent, expected, expected_tangent, gradient, new_stats = both(params)
        assert logits.dtype == float
        np.testing.assert_allclose(logits, expected, rtol=1e-9)
        np.testing.assert_allclose(tangent, expected_tangent, rtol=1e-8)
        # Reverse mode is the transpose of forward mode.
        products = jax.tree.map(lambda a, b: np.vdot(a, b), gradient, direction)
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), np.vdot(tangent, tangent), rtol=1e-8)
        assert jax.tree.structure(new_stats) == jax.tree.structure(stats)
        assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (new_stats, stats))))


def test_evaluation_is_that_of_the_definition_whatever_the_key():
    network_checks.assert_evaluation_is_that_of(_definition, shake_shake, *_tiny(), IMAGES)


def test_noise_and_statistics_of_eight_devices_equal_one():
    keys = jax.random.key(0), jax.random.key(1)
    first, other = (network_checks.assert_eight_devices_equal_one(shake_shake, *_tiny(), key) for key in keys)
    assert np.all(np.abs(other - first) > 1e-6)


def test_initial_values():
    init = jax.jit(shake_shake.init, static_argnums=1)
    params, stats = init(jax.random.key(3), shake_shake.Config(8, 16, 10))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, stats))} == {np.dtype(np.float32)}
    assert 0.8 / np.sqrt(27) < np.abs(params["stem"]["bias"]).max() <= 1 / np.sqrt(27)
    np.testing.assert_allclose(np.std(params["stem"]["weight"]), np.sqrt(2 / 144), rtol=0.15)
    block = params["stages"][2][0]
    for branch in block["branches"]:
        deviation = np.std(branch["conv2"]["weight"])
        np.testing.assert_allclose(deviation, np.sqrt(2 / (9 * 64)), rtol=0.03)
    deviation = np.std(block["shortcut"]["conv1"]["weight"])
    np.testing.assert_allclose(deviation, np.sqrt(2 / 32), rtol=0.1)
    assert not np.any(params["dense"]["bias"])
    assert 0.9 / 8 < np.abs(params["dense"]["weight"]).max() <= 1 / 8
    assert np.all(stats["stages"][2][0]["shortcut"]["norm"]["variance"] == 1)
    # No two convolutions of one shape start from the same numbers.
    first, second = (branch["conv2"]["weight"] for branch in block["branches"])
    assert not np.allclose(first, second)
    assert not np.allclose(*(block["shortcut"][name]["weight"] for name in ("conv1", "conv2")))


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        (shake_shake.Config(depth=27), ValueError, "expected depth 6 n .* got 27"),
        (shake_shake.Config(depth=2), ValueError, "expected depth 6 n .* got 2"),
        (shake_shake.Config(width=33), ValueError, "expected an even width, got 33"),
        (shake_shake.Config(num_classes=0), ValueError, "expected num_classes >= 1, got 0"),
        (shake_shake.Config(width=1.5), TypeError, "expected an integer width, got 1.5"),
    ],
)
def test_bad_config_is_named(config, error, text):
    with pytest.raises(error, match=f"shake_shake: {text}"):
        shake_shake.init(jax.random.key(0), config)


def test_bad_input_is_named():
    (params, stats), images = _tiny(), IMAGES
    with pytest.raises(ValueError, match="shake_shake: training draws noise and needs a key"):
        shake_shake.apply(params, stats, images, True)
    with pytest.raises(TypeError, match=r"shake_shake: expected floating, .* uint8"):
        shake_shake.apply(params, stats, images.astype(np.uint8), False)
    with pytest.raises(ValueError, match=r"shake_shake: expected images \[B, H, W, 3\]"):
        shake_shake.apply(params, stats, images[0], False)
