"""Latents, relaxed samples, straight-through values and weighted mixtures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.gradients import relaxation

LOGITS = jnp.array([0.3, -1.2, 2.0, 0.0])
PROBABILITIES = np.asarray(jax.nn.softmax(LOGITS))
SAMPLES = 20_000


def standard_error(values):
    return np.std(values, axis=0) / np.sqrt(len(values))


def test_categorical_latent_samples_the_softmax():
    latents = relaxation.categorical_latent(jax.random.key(0), jnp.tile(LOGITS, (SAMPLES, 1)))
    one_hot = np.eye(4)[np.argmax(latents, -1)]
    assert np.all(np.abs(one_hot.mean(0) - PROBABILITIES) < 4 * standard_error(one_hot))


def test_conditional_categorical_latent_has_the_law_of_the_latent_given_the_index():
    logits = jnp.tile(LOGITS, (SAMPLES, 1))
    latents = np.asarray(relaxation.categorical_latent(jax.random.key(1), logits))
    index = jnp.argmax(latents, -1)
    conditional = np.asarray(relaxation.conditional_categorical_latent(jax.random.key(2), logits, index))
    np.testing.assert_array_equal(np.argmax(conditional, -1), index)
    for choice in range(4):
        direct, redrawn = latents[index == choice], conditional[index == choice]
        error = np.hypot(standard_error(direct), standard_error(redrawn))
        assert np.all(np.abs(direct.mean(0) - redrawn.mean(0)) < 4 * error)
        # The law, not only its mean: the quartiles agree as well.
        spread = np.quantile(direct, [0.25, 0.75], axis=0) - np.quantile(redrawn, [0.25, 0.75], axis=0)
        assert np.all(np.abs(spread) < 8 * error)


def test_bernoulli_latents():
    logits = jnp.tile(jnp.array([-2.0, 0.0, 1.5]), (SAMPLES, 1))
    latents = np.asarray(relaxation.bernoulli_latent(jax.random.key(3), logits))
    bits = latents > 0
    assert np.all(np.abs(bits.mean(0) - jax.nn.sigmoid(logits[0])) < 4 * standard_error(bits))
    conditional = np.asarray(relaxation.conditional_bernoulli_latent(jax.random.key(4), logits, bits))
    np.testing.assert_array_equal(conditional > 0, bits)
    for column in range(3):
        for bit in (False, True):
            chosen = bits[:, column] == bit
            direct, redrawn = latents[chosen, column], conditional[chosen, column]
            error = np.hypot(standard_error(direct), standard_error(redrawn))
            assert abs(direct.mean() - redrawn.mean()) < 4 * error


@pytest.mark.parametrize("logit", [-60.0, -20.0, 20.0, 60.0])
def test_extreme_logits_stay_finite_with_their_gradients(logit):
    def total(logit):
        logits = jnp.full((1000,), logit)
        latents = relaxation.bernoulli_latent(jax.random.key(0), logits)
        conditional = relaxation.conditional_bernoulli_latent(jax.random.key(1), logits, latents > 0)
        pair = jnp.stack([logits, -logits], -1)
        categorical = relaxation.categorical_latent(jax.random.key(2), pair)
        redrawn = relaxation.conditional_categorical_latent(
            jax.random.key(3), pair, jnp.argmax(categorical, -1)
        )
        return sum(jnp.sum(jax.nn.sigmoid(z)) for z in (latents, conditional, categorical, redrawn))

    value, gradient = jax.value_and_grad(total)(logit)
    assert np.isfinite(value) and np.isfinite(gradient)


@pytest.mark.parametrize("bit", [0, 1])
def test_conditional_bernoulli_equals_the_inversion_formula_of_the_paper(bit):
    logit, key = jnp.array(0.7), jax.random.key(5)
    theta = jax.nn.sigmoid(logit)
    uniform = jax.random.uniform(key, ())
    uniform = uniform if bit else 1.0 - uniform  # our form mirrors the noise for a zero bit
    inverted = uniform * (bit - 1) * (theta - 1) + bit * (uniform * theta + 1 - theta)
    expected = logit + jnp.log(inverted) - jnp.log1p(-inverted)
    actual = relaxation.conditional_bernoulli_latent(key, logit, jnp.array(bit, bool))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_gumbel_softmax_limits():
    logits = jnp.tile(LOGITS, (SAMPLES, 1))
    cold = relaxation.gumbel_softmax(jax.random.key(0), logits, 1e-3)
    np.testing.assert_allclose(cold.sum(-1), 1.0, rtol=1e-5)
    assert np.mean(np.max(cold, -1) > 0.999) > 0.99
    assert np.all(np.abs(cold.mean(0) - PROBABILITIES) < 4 * standard_error(np.asarray(cold)) + 1e-3)
    hot = relaxation.gumbel_softmax(jax.random.key(0), logits, 1e4)
    np.testing.assert_allclose(hot, 0.25, atol=1e-3)


def test_relaxed_bernoulli_limits():
    logits = jnp.full((SAMPLES,), 0.8)
    cold = np.asarray(relaxation.relaxed_bernoulli(jax.random.key(0), logits, 1e-3))
    assert np.mean((cold < 0.001) | (cold > 0.999)) > 0.99
    assert abs(cold.mean() - jax.nn.sigmoid(0.8)) < 4 * standard_error(cold) + 1e-3
    np.testing.assert_allclose(relaxation.relaxed_bernoulli(jax.random.key(0), logits, 1e4), 0.5, atol=1e-3)


def test_straight_through_has_the_value_of_one_and_the_gradient_of_the_other():
    soft = jax.random.uniform(jax.random.key(0), (50,))
    np.testing.assert_array_equal(relaxation.straight_through_bits(soft), (soft > 0.5).astype(jnp.float32))
    gradient = jax.grad(lambda soft: jnp.sum(relaxation.straight_through_bits(soft) * jnp.arange(50.0)))
    np.testing.assert_array_equal(gradient(soft), jnp.arange(50.0))
    weights = jax.nn.softmax(jax.random.normal(jax.random.key(1), (7, 5)))
    hard = relaxation.straight_through_one_hot(weights)
    np.testing.assert_array_equal(hard, np.eye(5)[np.argmax(weights, -1)])


def test_weighted_parallel_static_learned_and_per_image_weights():
    images = jax.random.uniform(jax.random.key(0), (3, 4, 5, 3))
    ops = [lambda x: x, lambda x: 1.0 - x, lambda x: x**2]
    outputs = np.stack([op(np.asarray(images)) for op in ops])
    shared = jnp.array([0.2, 0.3, 0.5])
    expected = np.tensordot(np.asarray(shared), outputs, 1)
    for given in (ops, jnp.asarray(outputs)):
        np.testing.assert_allclose(relaxation.weighted_parallel(images, given, shared), expected, rtol=1e-5)
    per_image = jax.nn.softmax(jax.random.normal(jax.random.key(1), (3, 3)))
    mixed = relaxation.weighted_parallel(images, ops, per_image)
    for i in range(3):
        np.testing.assert_allclose(mixed[i], np.tensordot(per_image[i], outputs[:, i], 1), rtol=1e-5)
    gradient = jax.grad(lambda w: jnp.sum(relaxation.weighted_parallel(images, ops, w)))(shared)
    np.testing.assert_allclose(gradient, outputs.sum((1, 2, 3, 4)), rtol=1e-4)


def test_weighted_parallel_with_one_hot_weights_is_exactly_one_op():
    images = jax.random.uniform(jax.random.key(0), (3, 4, 5, 3))
    mixed = relaxation.weighted_parallel(images, [lambda x: 1.0 - x, lambda x: x], jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(mixed, images)


@pytest.mark.parametrize("weights", [(2,), (3, 4), (4, 3, 1)])
def test_weighted_parallel_names_the_wrong_shape(weights):
    images = jnp.zeros((4, 2, 2, 3))
    with pytest.raises(ValueError, match="weights must have shape"):
        relaxation.weighted_parallel(images, [lambda x: x] * 3, jnp.zeros(weights))
    with pytest.raises(ValueError, match="op outputs must have shape"):
        relaxation.weighted_parallel(images, jnp.zeros((3, 4, 2, 2, 1)), jnp.zeros(3))
