"""The gradients of a DADA step against the loss written out and the enumeration of every draw."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_squares import batch
from dada_problem import SPACE, apply, config, drawn, jitted_gradients, spread, start, unrolled_loss

from dada import augment, ops
from dada.gradients import bilevel
from dada.searches.dada import exact
from dada.searches.dada import space as policy_space
from dada.training import sgd


# A clip that does not act and one that does.
@pytest.mark.parametrize("clip_norm", [5.0, 0.05])
def test_unrolled_weights_are_the_next_iterate_and_levels_get_the_exact_gradient(clip_norm):
    settings = config(estimator="reinforce", clip_norm=clip_norm)
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    momentum = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), state.train.params)
    state = state._replace(train=state.train._replace(momentum=momentum))
    _, inputs = drawn(settings, state, train.images)

    def objective(level):
        images = inputs(state.policy._replace(level=level))
        return unrolled_loss(settings, state, train, valid, images, clip_norm)

    reference = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, params), expected = reference(state.policy.level)
    (found, _), after, metrics = jitted_gradients(settings, state, train, valid)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, params)
    np.testing.assert_allclose(metrics["valid_loss"], loss, rtol=1e-5)
    # The step's direction has unit length, so both agree up to one factor.
    scale = np.vdot(found.level, expected) / np.vdot(expected, expected)
    assert scale > 0
    np.testing.assert_allclose(found.level, scale * expected, atol=2e-4 * np.abs(found.level).max())


def test_mixtures_get_the_exact_gradient_in_everything():
    settings = config(estimator="gumbel", policy_space="slots", temperature=(0.7, 0.7))
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    _, inputs = drawn(settings, state, train.images)

    def loss(parameters):
        return unrolled_loss(settings, state, train, valid, inputs(parameters), settings.clip_norm)[0]

    expected = jax.jit(jax.grad(loss))(state.policy)
    (found, _), _, _ = jitted_gradients(settings, state, train, valid)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in tree])  # noqa: E731
    scale = np.vdot(flat(found), flat(expected)) / np.vdot(flat(expected), flat(expected))
    np.testing.assert_allclose(flat(found), scale * flat(expected), atol=5e-4 * np.abs(flat(found)).max())
    assert all(np.any(np.asarray(leaf) != 0) for leaf in found)


def test_hard_mixture_is_the_discrete_path_exactly():
    hard = config(estimator="straight_through", policy_space="slots")
    discrete = dataclasses.replace(hard, estimator="reinforce")
    state, images = spread(start(hard), hard), batch(0).images
    outputs = [jax.jit(drawn(c, state, images)[1])(state.policy) for c in (hard, discrete)]
    np.testing.assert_array_equal(*outputs)


def choices(estimator):
    """(settings, state) of a search in which a draw determines its image, and its cost that image alone.

    There are no random signs and centres, no batch statistics, and a direction that is independent of the
    draws, by a learning rate of almost zero and no clip.
    """
    still = {"learning_rate": 1e-6, "learning_rate_floor": 1e-6, "weight_decay": 0.0, "clip_norm": 1e6}
    rows = tuple(row._replace(random_sign=False) for row in SPACE.rows if row.name != "Cutout")
    space = SPACE._replace(rows=rows)
    settings = config(estimator=estimator, space=space, **still)
    return settings, spread(start(settings), settings)


@functools.cache
def exact_choice_gradient():
    """The gradient of the expected cost for choices and bits, by enumerating every draw."""
    settings, state = choices("reinforce")
    labels, valid = batch(0).labels, batch(1)
    valid_images = augment.normalize(valid.images, settings.mean, settings.std)

    def losses(params, images, labels):
        return sgd.cross_entropy(apply(params, {}, images, True)[0], labels)

    def image_under(pair, bits):
        images = batch(0).images.astype(jnp.float32) / 255.0
        for slot in np.flatnonzero(bits):
            row = settings.space.rows[policy_space.combinations(3, 2)[pair, slot]]
            value = row.low + jax.nn.sigmoid(state.policy.level[pair, slot]) * (row.high - row.low)
            apply_op = functools.partial(ops.apply_op, row.name, value=value, center=jnp.zeros(2))
            images = jax.vmap(apply_op)(images)
        return augment.normalize(images, settings.mean, settings.std)

    @jax.jit
    def gradient(parameters):
        direction = jax.grad(lambda p: jnp.mean(losses(p, valid_images, valid.labels)))(state.train.params)
        norm = -bilevel.global_norm(direction)  # u = -eta v, at unit length
        direction = jax.tree.map(lambda leaf: leaf / norm, direction)
        draws = [(pair, bits) for pair in range(3) for bits in np.ndindex(2, 2)]
        images = jnp.stack([image_under(pair, bits) for pair, bits in draws])

        def mean_cost(images):
            of_params = functools.partial(losses, images=images, labels=labels)
            return jnp.mean(bilevel.alignment(of_params, state.train.params, direction))

        costs = jax.vmap(mean_cost)(images)

        def expected_cost(parameters):
            total = 0.0
            for (pair, bits), cost in zip(draws, costs):
                applied = jnp.zeros((3, 2), bool).at[pair].set(jnp.array(bits, bool))
                draw = policy_space.Draw(0, jnp.array([pair]), pair, applied)
                total += jnp.exp(policy_space.log_probability(parameters, draw)) * cost
            return total

        return jax.grad(expected_cost)(parameters)

    return gradient(state.policy)


@pytest.mark.parametrize("estimator", ["relax", "reinforce"])
def test_choices_get_the_gradient_of_the_expected_cost(estimator):
    """Mean over many keys of the estimate against the exact gradient."""
    settings, state = choices(estimator)
    keys = jax.random.split(jax.random.key(9), 1000)

    def estimate(key):
        return exact.gradients(settings, state._replace(key=key), batch(0), batch(1))[0][0][:2]

    many = jax.jit(lambda keys: jax.lax.map(estimate, keys))(keys)
    for estimates, expected in zip(many, exact_choice_gradient()[:2]):
        estimates = np.asarray(estimates)
        error = estimates.std(0) / np.sqrt(len(keys))
        assert np.all(np.abs(estimates.mean(0) - expected) < 4.0 * error + 1e-6)
        assert np.abs(expected).max() > 20.0 * error.max()  # the test has the power to fail


def test_finite_difference_agrees_with_the_exact_hypergradient():
    settings = config(estimator="reinforce")
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    (exact, _), _, _ = jitted_gradients(settings, state, train, valid)
    coarse = dataclasses.replace(settings, hypergradient="finite_difference")
    (difference, _), _, _ = jitted_gradients(coarse, state, train, valid)
    for a, b in zip(exact, difference):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max() + 1e-6)
