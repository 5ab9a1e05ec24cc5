"""Estimators against full enumeration: unbiased, and RELAX less noisy than REINFORCE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dada.gradients import estimators
from dada.searches.dada import space as policy_space

NUM_OPS = 4
TEMPERATURE = 0.5


def problem(space):
    """A policy away from uniform, and a cost of (ops, bits) with one planted op."""
    shapes = policy_space.init(space, NUM_OPS)
    keys = jax.random.split(jax.random.key(7), 3)
    parameters = policy_space.Parameters(
        *(0.7 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, shapes))
    )
    op_cost = jnp.array([0.4, -2.0, 0.1, 0.5])

    def cost(draw):
        ops = policy_space.ops(parameters, NUM_OPS, draw)
        applied = draw.bits[draw.row]
        return 1.0 + jnp.sum(jnp.where(applied, op_cost[ops], 0.0)) + 0.5 * applied[0] * applied[1]

    return parameters, cost


def all_draws(space, parameters):
    """Every possible outcome (the bits of other rows at zero) with its probability as a function."""
    groups, categoricals, options = parameters.op.shape
    outcomes = []
    for group in range(groups):
        for choice in np.ndindex(*(options,) * categoricals):
            row = choice[0] if categoricals == 1 else group
            for pair in np.ndindex(2, 2):
                bits = np.zeros(parameters.application.shape, bool)
                bits[row] = pair
                outcomes.append(policy_space.Draw(group, np.array(choice), row, bits))
    draws = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *outcomes)

    def probability(parameters):
        log = jax.vmap(policy_space.log_probability, (None, 0))(parameters, draws)
        return jnp.exp(log) / groups

    return draws, probability


def sample(parameters, cost, key, count):
    keys = jax.random.split(key, count)
    draws = jax.vmap(policy_space.draw, (0, None))(keys, parameters)
    return keys, draws, jax.vmap(cost)(draws)


SAMPLE_JIT = jax.jit(sample, static_argnums=(1, 3))


def latents(parameters, key, draw):
    return tuple(
        policy_space.features(latent, draw, TEMPERATURE)
        for latent in policy_space.drawn_latents(parameters, key, draw)
    )


RELAX = (policy_space.log_probability, latents, estimators.control_variate)
RELAX_JIT = jax.jit(functools.partial(estimators.relax, *RELAX))


def trained_control(parameters, cost):
    """A control variate after 300 steps of training by RELAX's own variance gradient."""
    features = parameters.op.size + parameters.application.size
    control = estimators.init_control_variate(jax.random.key(0), features)
    optimizer = optax.adam(0.02)

    def step(carry, key):
        control, state = carry
        keys, draws, costs = sample(parameters, cost, key, 64)
        _, gradient = estimators.relax(*RELAX, parameters, control, draws, keys, costs)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(control, updates), state), None

    keys = jax.random.split(jax.random.key(1), 300)
    train = jax.jit(lambda carry: jax.lax.scan(step, carry, keys)[0][0])
    return train((control, optimizer.init(control)))


@functools.cache
def exact_gradient(space):
    parameters, cost = problem(space)
    draws, probability = all_draws(space, parameters)

    @jax.jit
    def total_and_gradient(parameters):
        costs = jax.vmap(cost)(draws)
        gradient = jax.grad(lambda parameters: jnp.sum(probability(parameters) * costs))(parameters)
        return jnp.sum(probability(parameters)), gradient

    total, gradient = total_and_gradient(parameters)
    np.testing.assert_allclose(total, 1.0, rtol=1e-5)
    return gradient


@functools.cache
def single_estimates(space, name):
    """20,000 single-sample (leave-one-out: pairs of samples) estimates, flat, and the exact gradient."""
    parameters, cost = problem(space)
    exact = exact_gradient(space)
    control = trained_control(parameters, cost) if name == "relax" else None

    def estimate(key):
        keys, draws, costs = sample(parameters, cost, key, 2)
        if name == "leave_one_out":
            costs = estimators.leave_one_out(costs)
        if name == "relax":
            return estimators.relax(*RELAX, parameters, control, draws, keys, costs)[0]
        return estimators.reinforce(policy_space.log_probability, parameters, draws, costs)

    def flat(tree):
        return jnp.concatenate([leaf.ravel() for leaf in tree[:2]])

    many = jax.jit(jax.vmap(lambda key: flat(estimate(key))))
    return np.asarray(many(jax.random.split(jax.random.key(2), 20_000))), np.asarray(flat(exact))


@pytest.mark.parametrize("space", ["pairs", "slots"])
@pytest.mark.parametrize("name", ["reinforce", "leave_one_out", "relax"])
def test_unbiased_by_enumeration(space, name):
    estimates, exact = single_estimates(space, name)
    error = estimates.std(0) / np.sqrt(len(estimates))
    # 4 standard errors for each entry; one in 16,000 entries may pass that by chance.
    deviation = np.abs(estimates.mean(0) - exact) / np.maximum(error, 1e-8)
    assert np.sum(deviation > 4.0) <= (1 if exact.size > 100 else 0), deviation.max()
    assert np.linalg.norm(exact) > 10 * np.linalg.norm(error) / np.sqrt(exact.size)


def test_relax_has_less_variance_than_reinforce_with_as_many_draws():
    variance = {
        name: single_estimates("pairs", name)[0].var(0).sum()
        for name in ("reinforce", "leave_one_out", "relax")
    }
    assert variance["relax"] < 0.7 * variance["reinforce"], variance
    assert variance["relax"] < variance["leave_one_out"], variance


def test_bits_that_were_not_drawn_get_no_gradient():
    parameters, cost = problem("pairs")
    keys, draws, costs = SAMPLE_JIT(parameters, cost, jax.random.key(0), 1)
    control = estimators.init_control_variate(jax.random.key(0), 18)
    gradient, _ = RELAX_JIT(parameters, control, draws, keys, costs)
    others = np.arange(len(parameters.application)) != int(draws.row[0])
    assert not np.any(gradient.application[others])
    assert np.all(gradient.application[~others] != 0)
    assert not np.any(gradient.level)


def test_control_gradient_is_that_of_the_second_moment():
    parameters, cost = problem("pairs")
    keys, draws, costs = SAMPLE_JIT(parameters, cost, jax.random.key(3), 8)
    control = estimators.init_control_variate(jax.random.key(4), 18, hidden=5)

    @jax.jit
    def second_moment(control):
        each = estimators.relax_per_sample(*RELAX, parameters, control, draws, keys, costs)
        return sum(jnp.sum(leaf**2) for leaf in each) / 8

    _, gradient = RELAX_JIT(parameters, control, draws, keys, costs)
    direction = jax.tree.map(lambda leaf: jnp.ones_like(leaf) / 7, control)
    epsilon = 1e-2
    difference = (
        second_moment(jax.tree.map(lambda c, d: c + epsilon * d, control, direction))
        - second_moment(jax.tree.map(lambda c, d: c - epsilon * d, control, direction))
    ) / (2 * epsilon)
    inner = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(inner, difference, rtol=1e-2)


def test_leave_one_out_is_each_minus_the_mean_of_the_others():
    costs = jnp.array([1.0, 4.0, 10.0])
    np.testing.assert_allclose(estimators.leave_one_out(costs), [1 - 7, 4 - 5.5, 10 - 2.5], rtol=1e-6)
    divided = jax.pmap(lambda c: estimators.leave_one_out(c, axis_name="i"), "i")(
        jnp.arange(8.0).reshape(4, 2)
    )
    np.testing.assert_allclose(divided.ravel(), estimators.leave_one_out(jnp.arange(8.0)), rtol=1e-6)
    with pytest.raises(ValueError, match="S >= 2"):
        estimators.leave_one_out(jnp.ones(1))
