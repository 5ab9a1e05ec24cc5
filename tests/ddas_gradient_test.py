"""The mathematics of DDAS: its gradient is that of autodiff, all policies give the expectation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_squares import BATCH, SIZE, batch
from ddas_problem import apply, network

from dada.searches.ddas import gradient as ddas_gradient
from dada.searches.ddas.gradient import Parameters
from dada.training import sgd


@pytest.mark.parametrize(("num_ops", "per_image"), [(1, False), (2, False), (3, False), (2, True)])
def test_policy_gradient_is_autodiff_through_the_unrolled_step(num_ops, per_image):
    """In float64, against reverse mode over the whole of eq. (12) and (6) with Z constant."""
    with jax.enable_x64(True):
        keys = iter(jax.random.split(jax.random.key(num_ops), 9))
        normal = lambda *shape: jax.random.normal(next(keys), shape, jnp.float64)  # noqa: E731
        num_policies, num_candidates, eta = 3, 5, 0.3
        params = {"a": normal(4, 6), "b": normal(6)}
        copies, targets = normal(1 + num_policies, BATCH, 4), normal(BATCH)
        valid_inputs, valid_targets = normal(BATCH, 4), normal(BATCH)
        parameters = Parameters(normal()[()], normal(num_candidates))
        groups = BATCH if per_image else 1
        shape = (groups, num_policies, num_ops)
        policies = jax.random.randint(next(keys), shape, 0, num_candidates)

        def losses(params, inputs, targets=targets):
            hidden = jnp.tanh(inputs @ params["a"])
            hidden = (hidden - hidden.mean(0)) / hidden.std(0)  # couples the images of a copy
            return (hidden @ params["b"] - targets) ** 2, ()

        def expected_loss(params, parameters):
            p_tp, p_o = jax.nn.sigmoid(parameters.p_tp), jax.nn.softmax(parameters.p_o)
            p = jnp.prod(p_o[policies], -1)  # [G, L]
            z = jax.lax.stop_gradient(p.sum() / groups)
            clean_share = 1.0 - p_tp * p.sum(1) / z
            each = jnp.stack([losses(params, copy)[0] for copy in copies])
            total = 0.0
            for index in range(num_policies):
                weights = p_tp * p[:, index] / z
                total += jnp.mean(weights * each[1 + index])
            # The share of each group without policy, so that the shares of all its copies add up to 1.
            return total + jnp.mean(clean_share * each[0])

        def weights_of(parameters):
            p_tp = jax.nn.sigmoid(parameters.p_tp)
            shares = ddas_gradient.policy_weights(parameters, policies)
            return jnp.concatenate([1.0 - p_tp * shares.sum(1, keepdims=True), p_tp * shares], 1)

        def valid_loss(parameters):
            gradient = jax.grad(expected_loss)(params, parameters)
            unrolled = jax.tree.map(lambda leaf, g: leaf - eta * g, params, gradient)
            return jnp.mean(losses(unrolled, valid_inputs, valid_targets)[0]), gradient

        @jax.jit
        def both(params, parameters):
            (_, expected_step), expected = jax.value_and_grad(valid_loss, has_aux=True)(parameters)
            gradient, score, _ = ddas_gradient.mixed_gradient(
                losses, params, copies, weights_of(parameters), per_image=per_image
            )
            unrolled = jax.tree.map(lambda leaf, g: leaf - eta * g, params, gradient)
            mean_loss = lambda params: jnp.mean(losses(params, valid_inputs, valid_targets)[0])  # noqa: E731
            scores = score(jax.grad(mean_loss)(unrolled))
            c = scores[:, :1] - scores[:, 1:]
            found = ddas_gradient.policy_gradient(parameters, policies, c)
            z_g = jnp.mean(jnp.sum(jnp.abs(c), 1))
            return (gradient, expected_step), (jax.tree.map(lambda leaf: eta * z_g * leaf, found), expected)

        (gradient, expected_step), (found, expected) = both(params, parameters)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), gradient, expected_step)
        for a, b in zip(found, expected):
            assert a.dtype == jnp.float64 and np.abs(b).max() > 1e-4
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8 * np.abs(b).max())


def test_both_ways_to_the_coefficients_agree():
    """Gradients of whole copies, and the means of per-image alignments."""
    params, stats = network()
    copies = jax.random.normal(jax.random.key(1), (3, BATCH, SIZE, SIZE, 3))
    labels = batch(0).labels

    def losses(params, images):
        return sgd.cross_entropy(apply(params, stats, images, True)[0], labels), ()

    shares = jnp.array([[0.5, 0.2, 0.3]])
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    @functools.partial(jax.jit, static_argnums=1)
    def mixed(weights, per_image):
        gradient, score, (each, _) = ddas_gradient.mixed_gradient(
            losses, params, copies, weights, per_image=per_image
        )
        return gradient, score(direction).mean(0), each

    whole, each = mixed(shares, False), mixed(jnp.tile(shares, (BATCH, 1)), True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, each)


@pytest.mark.parametrize("num_ops", [1, 2, 3])
def test_with_all_policies_the_sample_is_the_expectation(num_ops):
    """Eq. (10) and (11): with every policy once, Z is 1 and the weights are the probabilities."""
    with jax.enable_x64(True):
        alpha = jax.random.normal(jax.random.key(0), (4,), jnp.float64)
        parameters = Parameters(jnp.float64(-0.6), alpha)
        policies = jnp.array([list(itertools.product(range(4), repeat=num_ops))])
        p = jnp.prod(jax.nn.softmax(alpha)[policies], -1)
        weights = jax.jit(ddas_gradient.policy_weights)(parameters, policies)
        np.testing.assert_allclose(weights, p, rtol=1e-12)
        c = jax.random.normal(jax.random.key(1), p.shape, jnp.float64)

        def expectation(parameters):
            p = jnp.prod(jax.nn.softmax(parameters.p_o)[policies], -1)
            return jax.nn.sigmoid(parameters.p_tp) * jnp.sum(c * p) / jnp.sum(jnp.abs(c))

        expected = jax.jit(jax.grad(expectation))(parameters)
        found = jax.jit(ddas_gradient.policy_gradient)(parameters, policies, c)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)
