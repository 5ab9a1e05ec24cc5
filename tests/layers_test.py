"""Layers against formulas worked out in numpy, and their derivatives against finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from dada import augment, models
from dada.models import layers
from experiments.data import datasets


def _random(seed, shape, dtype=np.float32):
    return np.random.RandomState(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(params=[False, True], ids=["two_passes", "one_pass"])
def both_forms(request, monkeypatch):
    """Batch norm as on a CPU, and as on an accelerator."""
    monkeypatch.setattr(layers, "_saves_reads", lambda: request.param)


def _norm(channels, seed=0, dtype=np.float32):
    random = np.random.RandomState(seed)
    params = {
        "scale": random.uniform(0.5, 1.5, channels).astype(dtype),
        "bias": random.standard_normal(channels).astype(dtype),
    }
    stats = {
        "mean": random.standard_normal(channels).astype(dtype),
        "variance": random.uniform(0.5, 2.0, channels).astype(dtype),
    }
    return jax.tree.map(jnp.asarray, (params, stats))


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [8, 7])
def test_conv_is_correlation_with_symmetric_padding(kernel, stride, size):
    inputs = _random(0, (2, size, size, 3))
    weight, bias = _random(1, (kernel, kernel, 3, 4)), _random(2, (4,))
    pad = kernel // 2
    padded = np.pad(inputs, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out_size = (size + 2 * pad - kernel) // stride + 1
    expected = np.zeros((2, out_size, out_size, 4))
    for row in range(out_size):
        for column in range(out_size):
            top, left = row * stride, column * stride
            patch = padded[:, top : top + kernel, left : left + kernel]
            expected[:, row, column] = np.einsum("bhwi,hwio->bo", patch, weight) + bias
    actual = layers.conv({"weight": weight, "bias": bias}, inputs, stride=stride)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-5)
    without_bias = layers.conv({"weight": weight}, inputs, stride=stride)
    np.testing.assert_allclose(without_bias, expected - bias, rtol=1e-5, atol=2e-5)


def test_dense_and_pool():
    inputs, weight, bias = _random(0, (5, 7)), _random(1, (7, 3)), _random(2, (3,))
    actual = layers.dense({"weight": weight, "bias": bias}, inputs)
    np.testing.assert_allclose(actual, inputs @ weight + bias, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        layers.dense({"weight": weight}, inputs), inputs @ weight, rtol=1e-5, atol=1e-6
    )
    maps = _random(3, (2, 4, 6, 3))
    pooled = layers.global_average_pool(maps)
    np.testing.assert_allclose(pooled, maps.sum((1, 2)) / 24, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (7, 5)])
def test_pools_are_loops_over_windows(height, width):
    inputs = _random(0, (2, height, width, 3))
    shape = (2, (height + 1) // 2, (width + 1) // 2, 3)
    mean, maximum = np.zeros(shape), np.zeros(shape)
    for row in range(shape[1]):
        for column in range(shape[2]):
            top, left = 2 * row, 2 * column
            mean[:, row, column] = inputs[:, top : top + 2, left : left + 2].mean((1, 2))
            window = inputs[:, max(top - 1, 0) : top + 2, max(left - 1, 0) : left + 2]
            maximum[:, row, column] = window.max((1, 2))
    np.testing.assert_allclose(layers.average_pool_2x2(inputs), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(layers.max_pool_3x3(inputs), maximum.astype(np.float32))
    # The padding is not a zero that beats negative values.
    assert np.all(layers.max_pool_3x3(jnp.full((1, height, width, 1), -2.0)) == -2.0)


@pytest.mark.parametrize("pool", [layers.average_pool_2x2, layers.max_pool_3x3])
def test_pools_have_derivatives_of_both_orders_in_every_mode(pool):
    with jax.enable_x64(True):
        inputs, projection = _random(0, (2, 5, 4, 2), float), _random(1, (2, 3, 2, 2), float)

        def scalar(inputs):
            return jnp.sum(projection * jnp.sin(pool(inputs**2)))

        # Forward over reverse packs value and gradient of a maximum in one word: the tolerance.
        check_grads(jax.jit(scalar), (inputs,), order=2, atol=1e-4, rtol=1e-4)


def test_group_norm_is_that_of_the_definition():
    with jax.enable_x64(True):
        params, _ = _norm(16, dtype=float)
        inputs = 3.0 + _random(1, (2, 3, 4, 16), float)
        expected = np.empty_like(inputs)
        for image in range(2):
            for group in (slice(0, 8), slice(8, 16)):
                values = inputs[image, ..., group]
                normal = (values - values.mean()) / np.sqrt(values.var() + 1e-5)
                expected[image, ..., group] = normal * params["scale"][group] + params["bias"][group]
        np.testing.assert_allclose(layers.group_norm(params, inputs), expected, rtol=1e-9)
        check_grads(jax.jit(layers.group_norm), (params, inputs), order=1, atol=1e-4, rtol=1e-4)
    for dtype in (jnp.float32, jnp.bfloat16):
        params, stats = layers.init_group_norm(16)
        assert stats == {}
        outputs = layers.group_norm(params, inputs.astype(dtype))
        assert outputs.dtype == dtype
    with pytest.raises(ValueError, match=r"group_norm: expected inputs \[B, H, W, 16\], got \(2, 8\)"):
        layers.group_norm(params, jnp.ones((2, 8)))


def test_max_pool_gives_the_gradient_to_the_first_maximum():
    gradient = jax.grad(lambda x: layers.max_pool_3x3(x).sum())(jnp.ones((1, 2, 2, 1)))
    np.testing.assert_array_equal(gradient[0, :, :, 0], [[1, 0], [0, 0]])
    # In float32 forward mode loses nothing, and agrees on the choice.
    tangent = _random(0, (1, 2, 2, 1))
    _, actual = jax.jvp(layers.max_pool_3x3, (jnp.ones((1, 2, 2, 1)),), (tangent,))
    assert actual.item() == tangent[0, 0, 0, 0]


def test_shake_has_one_factor_for_values_and_one_for_derivatives():
    inputs, tangent = _random(0, (3, 2, 2, 4)), _random(1, (3, 2, 2, 4))
    forward, backward = jnp.array([-0.5, 1.0, 0.25]), jnp.array([0.75, 1.0, 0.0])
    of_values = np.asarray(forward)[:, None, None, None]
    of_derivatives = np.asarray(backward)[:, None, None, None]
    outputs, out_tangent = jax.jvp(lambda x: layers.shake(x, forward, backward), (inputs,), (tangent,))
    np.testing.assert_array_equal(outputs, inputs * of_values)
    np.testing.assert_array_equal(out_tangent, tangent * of_derivatives)
    _, pullback = jax.vjp(layers.shake, inputs, forward, backward)
    to_inputs, to_forward, to_backward = pullback(tangent)
    np.testing.assert_array_equal(to_inputs, tangent * of_derivatives)
    assert not np.any(to_forward) and not np.any(to_backward)


def test_second_derivative_of_shake_is_that_of_its_gradient_in_every_nesting():
    with jax.enable_x64(True):
        inputs, direction = _random(0, (3, 2, 2, 4), float), _random(1, (3, 2, 2, 4), float)
        forward, backward = jnp.array([-0.5, 1.0, 0.25]), jnp.array([0.75, 0.9, 0.1])

        @jax.jit
        def scalar(images, power):
            return jnp.sum(jnp.sin(layers.shake(jnp.exp(power * images), forward, backward)))

        # How the slope along a direction in one argument depends on the other argument.
        def slope(power):
            return jax.jvp(lambda x: scalar(x, power), (inputs,), (direction,))[1]

        def projected(power):
            return jnp.sum(direction * jax.grad(scalar)(inputs, power))

        step = 1e-5
        difference = (projected(0.7 + step) - projected(0.7 - step)) / (2 * step)
        reverse_over_forward = jax.grad(slope)(0.7)
        forward_over_reverse = jax.jvp(projected, (0.7,), (1.0,))[1]
        reverse_over_reverse = jax.grad(projected)(0.7)
        for actual in (reverse_over_forward, forward_over_reverse, reverse_over_reverse):
            np.testing.assert_allclose(actual, difference, rtol=1e-8)


def test_image_uniform_gives_an_image_its_numbers_on_any_device():
    key = jax.random.key(0)
    whole = layers.image_uniform(key, 16, (3, 2))
    assert whole.shape == (16, 3, 2) and whole.dtype == np.float32
    np.testing.assert_array_equal(layers.image_uniform(key, 4, (3, 2)), whole[:4])
    parts = jax.pmap(lambda _: layers.image_uniform(key, 2, (3, 2), axis_name="device"), axis_name="device")(
        jnp.arange(8)
    )
    np.testing.assert_array_equal(np.asarray(parts).reshape(whole.shape), whole)
    many = np.asarray(layers.image_uniform(key, 4096, (4,)))
    assert many.min() >= 0 and many.max() < 1
    np.testing.assert_allclose(many.mean(0), 0.5, atol=0.02)
    np.testing.assert_allclose(np.cov(many.T), np.eye(4) / 12, atol=0.006)
    assert len(np.unique(many)) > 0.99 * many.size


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize(("momentum", "mean", "variance"), [(0.9, 2.7, 4.3), (0.1, 0.3, 41 / 30)])
def test_batch_norm_numbers_by_hand(momentum, mean, variance):
    # Mean 3; squared deviations 4 + 1 + 0 + 9 = 14: biased variance 3.5, unbiased 14 / 3.
    inputs = jnp.array([[1.0], [2.0], [3.0], [6.0]])
    params, stats = layers.init_batch_norm(1)
    outputs, new_stats = layers.batch_norm(params, stats, inputs, True, momentum=momentum)
    deviation = 3.50001**0.5
    expected = np.array([[-2.0], [-1.0], [0.0], [3.0]]) / deviation
    np.testing.assert_allclose(outputs, expected, rtol=1e-6)
    np.testing.assert_allclose(new_stats["mean"], [mean], rtol=1e-6)
    np.testing.assert_allclose(new_stats["variance"], [variance], rtol=1e-6)


@pytest.mark.usefixtures("both_forms")
def test_batch_norm_training_and_evaluation_formulas():
    params, stats = _norm(5)
    inputs = 3.0 + 2.0 * _random(7, (4, 3, 2, 5))
    outputs, new_stats = layers.batch_norm(params, stats, inputs, True, momentum=0.3)
    mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
    expected = params["scale"] * (inputs - mean) / np.sqrt(variance + 1e-5) + params["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(new_stats["mean"], 0.7 * stats["mean"] + 0.3 * mean, rtol=1e-5)
    np.testing.assert_allclose(
        new_stats["variance"], 0.7 * stats["variance"] + 0.3 * variance * 24 / 23, rtol=1e-5
    )

    outputs, same_stats = layers.batch_norm(params, stats, inputs, False, momentum=0.3)
    expected = (inputs - stats["mean"]) / np.sqrt(stats["variance"] + 1e-5)
    expected = params["scale"] * expected + params["bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)
    assert same_stats is stats


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize(
    ("mean", "deviation"), [(1e3, 1.0), (1e4, 1.0), (-1e4, 0.03), (1e-4, 1e-5), (0.0, 1e4)]
)
@pytest.mark.parametrize("outlier", [0.0, 10.0])
def test_batch_norm_survives_a_large_mean_and_an_outlier(mean, deviation, outlier):
    noise = _random(0, (16, 16, 16, 1))
    noise[8, 8, 8] = outlier  # in the middle, of which the form in one pass makes use
    inputs = (mean + deviation * noise).astype(np.float32)
    params, stats = layers.init_batch_norm(1)
    outputs, new_stats = layers.batch_norm(params, stats, inputs, True, momentum=1.0)
    exact = inputs.astype(np.float64)
    np.testing.assert_allclose(new_stats["mean"], [exact.mean()], rtol=1e-6, atol=1e-5 * deviation)
    np.testing.assert_allclose(new_stats["variance"], [exact.var(ddof=1)], rtol=1e-4)
    # To half a unit in the last place of the mean, which two passes subtract.
    expected = (exact - exact.mean()) / np.sqrt(exact.var() + 1e-5)
    rounding = 2.0**-24 * abs(mean) / np.sqrt(exact.var() + 1e-5)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5 + 2 * rounding)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 3e30])
def test_batch_norm_of_equal_values_gives_the_bias_and_finite_gradients(value):
    params, stats = _norm(3)
    inputs = jnp.full((2, 3, 3, 3), value, jnp.float32)

    def outputs(params, inputs):
        return layers.batch_norm(params, stats, inputs, True, momentum=0.9)[0]

    expected = np.broadcast_to(params["bias"], inputs.shape)
    np.testing.assert_allclose(outputs(params, inputs), expected, rtol=1e-5)
    gradients = jax.grad(lambda *of: jnp.sum(jnp.sin(outputs(*of))), argnums=(0, 1))(params, inputs)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradients))


def test_both_forms_of_batch_norm_agree_on_the_activations_of_a_network(monkeypatch):
    images = augment.normalize(datasets.load("embedded").train_images[:32], *(3 * (0.5,),) * 2)
    network, config = models.by_name("wrn_10_1", 10, 32)
    seen = []

    def recorded(params, stats, inputs, *args, **kwargs):
        seen.append(inputs)
        return batch_norm(params, stats, inputs, *args, **kwargs)

    batch_norm = layers.batch_norm
    monkeypatch.setattr(layers, "batch_norm", recorded)
    network.apply(*network.init(jax.random.key(0), config), images, True)
    assert len(seen) == 7
    for inputs in seen:
        centered, mean, variance = layers._moments(inputs, None)
        one_pass = layers._moments_in_one_pass(inputs, None)
        scale = np.sqrt(variance)
        np.testing.assert_allclose(one_pass[0] / scale, centered / scale, atol=1e-5)
        np.testing.assert_allclose(one_pass[1] / scale, mean / scale, atol=1e-5)
        np.testing.assert_allclose(one_pass[2], variance, rtol=1e-5)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("is_training", [True, False])
def test_batch_norm_of_bfloat16_has_the_statistics_of_float32(is_training):
    # Eight bits hold neither the mean of these numbers nor a difference from it.
    inputs = (100.0 + 2.0 * _random(0, (4096, 3))).astype(jnp.bfloat16)
    params, stats = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), _norm(3)[0]), _norm(3)[1]
    stats["mean"] += 100.0
    outputs, new_stats = layers.batch_norm(params, stats, inputs, is_training, momentum=1.0)
    exact = np.asarray(inputs, np.float64)
    mean, variance = stats["mean"], stats["variance"]
    if is_training:
        mean, variance = exact.mean(0), exact.var(0)
        np.testing.assert_allclose(new_stats["mean"], mean, rtol=1e-6)
        np.testing.assert_allclose(new_stats["variance"], exact.var(0, ddof=1), rtol=1e-4)
    scale, bias = (np.asarray(params[name], np.float64) for name in ("scale", "bias"))
    expected = scale * (exact - mean) / np.sqrt(variance + 1e-5) + bias
    assert outputs.dtype == jnp.bfloat16 and {s.dtype.name for s in new_stats.values()} == {"float32"}
    np.testing.assert_allclose(np.asarray(outputs, np.float64), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.usefixtures("both_forms")
def test_no_gradient_through_stored_statistics():
    params, stats = _norm(3)
    inputs = _random(1, (6, 2, 2, 3))

    def stored(params, inputs):
        _, new_stats = layers.batch_norm(params, stats, inputs, True, momentum=0.9)
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(new_stats))

    for leaf in jax.tree.leaves(jax.jit(jax.grad(stored, argnums=(0, 1)))(params, inputs)):
        assert not np.any(leaf)

    # The batch statistics themselves are differentiated: the outputs do not see a common shift.
    def output(shift):
        weights = _random(2, inputs.shape)
        outputs, _ = layers.batch_norm(params, stats, inputs + shift, True, momentum=0.9)
        return jnp.sum(weights * outputs)

    assert abs(jax.jit(jax.grad(output))(0.0)) < 1e-4


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("mapping", ["pmap", "shard_map", "shard_map_unchecked", "vmap"])
def test_batch_norm_of_eight_devices_equals_one(mapping):
    params, stats = _norm(3)
    # Parts of very different mean, so that a mean of eight separate variances would be far off.
    inputs = (np.arange(8.0)[:, None, None, None, None] + _random(1, (8, 2, 4, 4, 3))).astype(np.float32)
    run = functools.partial(layers.batch_norm, is_training=True, momentum=0.9)
    whole = inputs.reshape(16, 4, 4, 3)
    expected, expected_stats = jax.jit(run)(params, stats, whole)

    part = functools.partial(run, axis_name="device")
    if mapping in ("pmap", "vmap"):
        mapped = jax.pmap if mapping == "pmap" else jax.vmap
        actual, all_stats = mapped(part, axis_name="device", in_axes=(None, None, 0))(params, stats, inputs)
        for leaf in jax.tree.leaves(all_stats):
            np.testing.assert_array_equal(np.asarray(leaf), np.asarray(leaf)[:1].repeat(8, 0))
        actual_stats = jax.tree.map(lambda leaf: leaf[0], all_stats)
    else:
        mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
        divided = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(jax.P(), jax.P(), jax.P("device")),
            out_specs=(jax.P("device"), jax.P()),
            check_vma=mapping == "shard_map",
        )
        actual, actual_stats = jax.jit(divided)(params, stats, whole)
    np.testing.assert_allclose(np.asarray(actual).reshape(whole.shape), expected, rtol=1e-4, atol=1e-5)
    for name in ("mean", "variance"):
        np.testing.assert_allclose(actual_stats[name], expected_stats[name], rtol=1e-5)


@pytest.mark.usefixtures("both_forms")
@pytest.mark.parametrize("is_training", [True, False])
def test_derivatives_of_first_and_second_order_in_every_mode(is_training):
    with jax.enable_x64(True):
        norm, stats = _norm(2, dtype=np.float64)
        params = {
            "conv": {"weight": _random(1, (3, 3, 2, 2), float), "bias": _random(2, (2,), float)},
            "norm": norm,
            "dense": {"weight": _random(3, (2, 3), float), "bias": _random(4, (3,), float)},
        }
        inputs, projection = _random(5, (3, 5, 5, 2), float), _random(6, (3, 3), float)

        def scalar(params, inputs):
            hidden = layers.conv(params["conv"], inputs, stride=2)
            hidden, _ = layers.batch_norm(params["norm"], stats, hidden, is_training, momentum=0.9)
            logits = layers.dense(params["dense"], layers.global_average_pool(jnp.tanh(hidden)))
            return jnp.sum(projection * jnp.sin(logits))

        # Order 2 covers forward over reverse, reverse over forward, and each over itself.
        check_grads(jax.jit(scalar), (params, inputs), order=2, atol=1e-5, rtol=1e-5)


def test_float64_is_kept():
    with jax.enable_x64(True):
        params, stats = _norm(3, dtype=np.float64)
        inputs = _random(0, (4, 6, 6, 3), np.float64)
        outputs, new_stats = layers.batch_norm(params, stats, inputs, True, momentum=0.9)
        outputs = layers.conv({"weight": _random(1, (3, 3, 3, 2), np.float64)}, outputs)
        outputs = layers.global_average_pool(outputs)
        assert {leaf.dtype for leaf in jax.tree.leaves((outputs, new_stats))} == {np.dtype(float)}
        # Initialisers stay in float32 whatever the default.
        initial = (layers.init_conv(jax.random.key(0), 3, 3, 4), layers.init_batch_norm(4))
        assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {np.dtype(np.float32)}


def test_uniform_initialisation_bounds():
    params = layers.init_conv(jax.random.key(0), 3, 32, 64)
    bound = 1 / np.sqrt(9 * 32)
    assert params["weight"].shape == (3, 3, 32, 64) and params["bias"].shape == (64,)
    for leaf in jax.tree.leaves(params):
        assert np.abs(leaf).max() <= bound
    assert np.abs(params["weight"]).max() > 0.999 * bound
    np.testing.assert_allclose(np.std(params["weight"]), bound / np.sqrt(3), rtol=0.02)
    assert abs(np.mean(params["weight"])) < 0.02 * bound

    params = layers.init_dense(jax.random.key(1), 100, 200)
    assert params["weight"].shape == (100, 200) and params["bias"].shape == (200,)
    assert 0.099 < np.abs(params["weight"]).max() <= 0.1
    assert 0.09 < np.abs(params["bias"]).max() <= 0.1
    # No row of the weight repeats the bias.
    assert not np.any(np.all(params["weight"] == params["bias"], axis=1))


def test_he_normal_uses_the_fan_out():
    params = layers.init_he_conv(jax.random.key(0), 3, 16, 128)
    weight = params["weight"]
    assert weight.shape == (3, 3, 16, 128)
    np.testing.assert_allclose(np.std(weight), np.sqrt(2 / (9 * 128)), rtol=0.03)
    assert abs(np.mean(weight)) < 1e-3
    assert set(params) == {"weight"}


def test_bad_input_is_named():
    conv = layers.init_conv(jax.random.key(0), 3, 3, 4)
    dense = layers.init_dense(jax.random.key(0), 4, 2)
    norm, stats = layers.init_batch_norm(4)
    with pytest.raises(ValueError, match=r"conv: expected inputs \[B, H, W, 3\], got \(8, 8, 3\)"):
        layers.conv(conv, jnp.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="conv: expected inputs"):
        layers.conv(conv, jnp.zeros((1, 8, 8, 4)))
    with pytest.raises(ValueError, match="odd kernel"):
        layers.conv({"weight": jnp.zeros((2, 2, 3, 4))}, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match="dense: expected inputs"):
        layers.dense(dense, jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="batch_norm: expected inputs"):
        layers.batch_norm(norm, stats, jnp.zeros((2, 3)), True, momentum=0.9)
    with pytest.raises(ValueError, match="two values per channel"):
        layers.batch_norm(norm, stats, jnp.zeros((1, 4)), True, momentum=0.9)
    with pytest.raises(ValueError, match="global_average_pool"):
        layers.global_average_pool(jnp.zeros((2, 3)))
    for pool in (layers.average_pool_2x2, layers.max_pool_3x3):
        with pytest.raises(ValueError, match=rf"{pool.__name__}: expected inputs \[B, H, W, C\]"):
            pool(jnp.zeros((4, 4, 3)))
