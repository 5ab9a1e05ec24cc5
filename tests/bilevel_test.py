"""Steps, scores and hypergradients in float64: by hand, in closed form, and on a real network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.gradients import bilevel
from dada.models import layers
from dada.training import sgd
from experiments.measure.verify_hypergradient import (
    clipped_step,
    descend,
    differenced,
    quadratic,
    through_the_step,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("method", [bilevel.exact_hypergradient, bilevel.finite_difference_hypergradient])
def test_quadratic_closed_form(method):
    problem = quadratic(0)
    gradient = method(problem.train, problem.valid, descend, problem.theta, problem.phi)
    np.testing.assert_allclose(gradient, problem.hypergradient, rtol=1e-9)


def test_momentum_decay_and_clipping_are_part_of_the_unrolled_step():
    problem = quadratic(0)
    exact = bilevel.exact_hypergradient(
        problem.train, problem.valid, clipped_step, problem.theta, problem.phi
    )
    np.testing.assert_allclose(exact, through_the_step(problem), rtol=1e-9)
    assert np.linalg.norm(exact - problem.hypergradient) > 1e-2  # the clip at 0.5 really acts


def test_one_step_and_its_score_by_hand():
    """l_i = a_i theta^2 / 2 and V = |theta - t|^2 / 2 with two numbers each, every part written out."""
    theta, target = {"x": jnp.array([1.0, 2.0])}, jnp.array([0.0, 1.0])
    weights = jnp.array([[2.0, 0.0], [4.0, 2.0]])

    def losses(theta):
        return 0.5 * weights @ theta["x"] ** 2, "aux"

    def valid_losses(theta):
        return 0.5 * jnp.sum((theta["x"] - target) ** 2, keepdims=True), "valid"

    gradient, loss, aux = bilevel.loss_gradient(losses, theta)
    np.testing.assert_allclose(gradient["x"], [3.0, 2.0])  # mean of (2, 0) and (4, 4)
    assert (float(loss), aux) == (3.5, "aux")  # mean of 1 and 6

    # theta' = theta - (0.1, 0.5) (0.9 momentum + g), and the next momentum.
    rate, momentum = jnp.array([0.1, 0.5]), jnp.array([1.0, -1.0])

    def step(gradient):
        new = 0.9 * momentum + gradient["x"]
        return {"x": theta["x"] - rate * new}, new

    unrolled, rest, pull_back = bilevel.look_ahead(step, gradient)
    np.testing.assert_allclose(unrolled["x"], [0.61, 1.45])
    np.testing.assert_allclose(rest, [3.9, 1.1])
    np.testing.assert_allclose(pull_back({"x": jnp.array([1.0, 1.0])})["x"], -rate)

    valid, valid_loss, aux = bilevel.loss_gradient(valid_losses, unrolled)
    np.testing.assert_allclose(valid["x"], [0.61, 0.45])
    np.testing.assert_allclose(valid_loss, 0.5 * (0.61**2 + 0.45**2))
    assert aux == "valid"

    # u = -rate v at unit length, and s_i = < u, grad l_i >.
    direction = bilevel.direction(pull_back, valid)
    by_hand = -np.array([0.061, 0.225]) / np.hypot(0.061, 0.225)
    np.testing.assert_allclose(direction["x"], by_hand)
    scores = bilevel.alignment(lambda theta: losses(theta)[0], theta, direction)
    np.testing.assert_allclose(scores, np.array([[2.0, 0.0], [4.0, 4.0]]) @ by_hand)
    np.testing.assert_array_equal(bilevel.direction(pull_back, {"x": jnp.zeros(2)})["x"], 0.0)


def test_a_batch_divided_over_devices_has_one_gradient():
    theta, weights = jnp.array([1.0, 2.0]), jnp.arange(12.0).reshape(6, 2)

    def losses(theta, weights):
        return 0.5 * weights @ theta**2, weights.sum()

    def divided(function):
        parts = weights.reshape(3, 2, 2)
        return jax.pmap(lambda part: function(lambda theta: losses(theta, part), "parts"), "parts")(parts)

    whole = bilevel.loss_gradient(lambda theta: losses(theta, weights), theta)
    gradient, loss, aux = divided(lambda of, axis: bilevel.loss_gradient(of, theta, axis))
    for device in range(3):
        np.testing.assert_allclose(gradient[device], whole[0])
        np.testing.assert_allclose(loss[device], whole[1])
    np.testing.assert_array_equal(aux, [6.0, 22.0, 38.0])  # of the device's own part


def test_cosine_is_that_of_the_flat_vectors_and_zero_of_nothing():
    first, second = {"a": jnp.array([3.0]), "b": jnp.array([0.0, 4.0])}, {"a": jnp.zeros(1), "b": jnp.ones(2)}
    np.testing.assert_allclose(bilevel.cosine(first, second), 4 / (5 * np.sqrt(2)), rtol=1e-6)
    np.testing.assert_array_equal(bilevel.cosine(first, jax.tree.map(jnp.zeros_like, first)), 0.0)


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_tangent_is_the_derivative_of_the_cosine(scale):
    keys = jax.random.split(jax.random.key(3), 2)
    train, valid = (jax.random.normal(key, (5,)) for key in keys)
    train = scale * train

    def cosine(train):
        return train @ valid / (jnp.linalg.norm(train) * jnp.linalg.norm(valid))

    found, value = bilevel.tangent({"x": train[:2], "y": train[2:]}, {"x": valid[:2], "y": valid[2:]})
    found = np.concatenate([found["x"], found["y"]])
    if scale == 0.0:
        np.testing.assert_array_equal([*found, value], 0.0)
        return
    np.testing.assert_allclose(found, jax.grad(cosine)(train), rtol=1e-10)
    np.testing.assert_allclose(value, cosine(train), rtol=1e-12)


@functools.cache
def network_problem():
    """Two convolutions in float64; the policy mixes three fixed transforms of every image."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        norms, stats = zip(*(layers.init_batch_norm(channels) for channels in (4, 5)))
        convs = [layers.init_conv(keys[0], 3, 3, 4), layers.init_conv(keys[1], 3, 4, 5)]
        params, stats = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float64), ({"convs": convs, "norms": list(norms)}, list(stats))
        )
        keys = jax.random.split(jax.random.key(1), 2)
        train_images, valid_images = (jax.random.normal(key, (6, 8, 8, 3), jnp.float64) for key in keys)
        labels = jnp.arange(6) % 5

    def apply(theta, images):
        for conv, norm, old in zip(theta["convs"], theta["norms"], stats):
            images, _ = layers.batch_norm(norm, old, layers.conv(conv, images), True, momentum=0.1)
            images = jax.nn.relu(images)
        return layers.global_average_pool(images)  # five classes

    def per_example(theta, phi):
        views = jnp.stack([train_images, -train_images, train_images[:, ::-1]])
        images = jnp.einsum("k,kbhwc->bhwc", jax.nn.softmax(phi), views)
        return sgd.cross_entropy(apply(theta, images), labels)

    def valid(theta):
        return jnp.mean(sgd.cross_entropy(apply(theta, valid_images), labels))

    return params, per_example, valid


def test_network_exact_equals_fine_finite_differences():
    params, per_example, valid = network_problem()
    phi = jnp.array([0.3, -0.2, 0.1], jnp.float64)
    train = lambda theta, phi: jnp.mean(per_example(theta, phi))  # noqa: E731

    exact, fine, direct = differenced(train, valid, params, phi, jax.jit)
    np.testing.assert_allclose(fine, exact, rtol=1e-5, atol=1e-5 * np.abs(exact).max())
    np.testing.assert_allclose(exact, direct, rtol=1e-5, atol=1e-5 * np.abs(exact).max())


def test_alignment_is_the_inner_product_with_every_example_gradient():
    params, per_example, valid = network_problem()
    phi = jnp.zeros(3, jnp.float64)
    direction = jax.jit(jax.grad(valid))(params)
    losses = lambda theta: per_example(theta, phi)  # noqa: E731

    @jax.jit
    def all_scores(direction):
        fine = bilevel.alignment_finite_difference(losses, params, direction, radius=1e-6)
        return bilevel.alignment(losses, params, direction), fine

    scores, fine = all_scores(direction)
    assert scores.shape == (6,)
    jacobian = jax.jit(jax.jacrev(losses))(params)
    expected = sum(
        j.reshape(6, -1) @ d.ravel() for j, d in zip(jax.tree.leaves(jacobian), jax.tree.leaves(direction))
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fine, scores, rtol=1e-5, atol=1e-6 * np.abs(scores).max())


def test_alignment_differentiates_in_what_the_losses_depend_on():
    weights = jnp.array([1.0, 2.0, 3.0], jnp.float64)
    theta, direction = jnp.array([0.5, -1.0]), jnp.array([2.0, 1.0])
    scores = lambda w: bilevel.alignment(lambda t: w * jnp.sum(t**2), theta, direction)  # noqa: E731
    np.testing.assert_allclose(scores(weights), weights * 2 * (theta @ direction), rtol=1e-12)
    np.testing.assert_allclose(jax.jacobian(scores)(weights), jnp.eye(3) * 2 * (theta @ direction))


def test_orthogonal_part_has_nothing_along_the_direction():
    keys = jax.random.split(jax.random.key(1), 4)
    vector, direction = (
        {"a": jax.random.normal(i, (3, 2)), "b": jax.random.normal(j, (4,))} for i, j in (keys[:2], keys[2:])
    )
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    part = bilevel.orthogonal_part(vector, direction)
    np.testing.assert_allclose(flat(part) @ flat(direction), 0.0, atol=1e-14)
    removed = flat(vector) - flat(part)
    np.testing.assert_allclose(removed, flat(direction) * (removed[0] / flat(direction)[0]), rtol=1e-12)
    zero = jax.tree.map(jnp.zeros_like, direction)
    np.testing.assert_array_equal(flat(bilevel.orthogonal_part(vector, zero)), flat(vector))
