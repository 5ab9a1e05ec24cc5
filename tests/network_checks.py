"""What the tests of all networks need: networks off their initial values, batch norm written out, noise."""

import jax
import jax.numpy as jnp
import numpy as np

from dada.models import layers


def shapes(module, config):
    """(params, batch_stats) of a network as shapes."""
    return jax.eval_shape(lambda key: module.init(key, config), jax.random.key(0))


def off_initial(params, stats, scale):
    """Arrays in float64 for shapes: normal parameters of deviation `scale`, statistics about 1."""
    random = np.random.RandomState(0)
    params = jax.tree.map(lambda leaf: scale * random.standard_normal(leaf.shape), params)
    stats = jax.tree.map(lambda leaf: random.uniform(0.5, 1.5, leaf.shape), stats)
    return params, stats


def images(count, size, seed=0):
    return np.random.RandomState(seed).standard_normal((count, size, size, 3))


def norm(params, stats, inputs, is_training):
    """Batch norm by its definition."""
    mean, variance = stats["mean"], stats["variance"]
    if is_training:
        mean, variance = inputs.mean((0, 1, 2)), inputs.var((0, 1, 2))
    return params["scale"] * (inputs - mean) / jnp.sqrt(variance + 1e-5) + params["bias"]


def record_shake(monkeypatch):
    """Keeps the factors of every call of layers.shake in the list that is returned."""
    factors, shake = [], layers.shake

    def recorded(inputs, forward, backward):
        factors.append((forward, backward))
        return shake(inputs, forward, backward)

    monkeypatch.setattr(layers, "shake", recorded)
    return factors


def assert_uniform_and_independent(variables, low, *, mean_atol, covariance_atol):
    """Each of the variables [V, N] is U(low, 1), with `low` [V], and no two of them are correlated.

    `mean_atol` is in units of the range.
    """
    for values, start in zip(variables, low):
        margin = 0.005 * (1 - start)
        assert start <= values.min() < start + margin and 1 - margin < values.max() < 1
        np.testing.assert_allclose(values.mean(), (1 + start) / 2, atol=mean_atol * (1 - start))
    expected = np.diag((1 - np.asarray(low)) ** 2 / 12)
    np.testing.assert_allclose(np.cov(variables), expected, atol=covariance_atol)


def assert_eight_devices_equal_one(module, params, stats, *key):
    """Logits and new statistics of a batch divided over devices, in float64; returns the logits of one."""
    # Parts of different means, so that statistics of the parts would be far off.
    batch = images(16, 4, seed=2) + np.arange(16)[:, None, None, None] / 4
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))

    def part(params, stats, images, *key):
        return module.apply(params, stats, images, True, *key, axis_name="device")

    with jax.enable_x64(True):
        expected = jax.jit(module.apply, static_argnums=3)(params, stats, batch, True, *key)
        specs = (jax.P(), jax.P(), jax.P("device"), *(jax.P() for _ in key))
        divided = jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=(jax.P("device"), jax.P()))
        actual = jax.jit(divided)(params, stats, batch, *key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), actual, expected)
    return expected[0]


def assert_evaluation_is_that_of(definition, module, params, stats, batch):
    """Logits of evaluation, in float64, and none of it changed by a key."""
    with jax.enable_x64(True):
        apply = jax.jit(module.apply, static_argnums=3)
        logits, same_stats = apply(params, stats, batch, False)
        expected = jax.jit(lambda *arguments: definition(*arguments, False, None))(params, stats, batch)
        np.testing.assert_allclose(logits, expected, rtol=1e-9)
        jax.tree.map(np.testing.assert_array_equal, same_stats, stats)
        keyed, _ = apply(params, stats, batch, False, jax.random.key(1))
        np.testing.assert_array_equal(keyed, logits)
