"""The score "cosine" of DADA against its equations, written out, and the gradient that follows from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from bright_squares import batch
from dada_problem import DIRECTED, apply, config, jitted_gradients, jitted_step, spread, start
from jax.flatten_util import ravel_pytree

from dada import augment, ops
from dada.searches.dada import cosine
from dada.searches.dada import space as policy_space
from dada.training import sgd

SETTINGS = config(score="cosine", space=DIRECTED, num_draws=3, estimator="reinforce", clip_norm=0.05)


def mean_gradient(params, images, labels):
    """As a vector."""

    def loss(params):
        return jnp.mean(sgd.cross_entropy(apply(params, {}, images, True)[0], labels))

    return ravel_pytree(jax.grad(loss)(params))[0]


def problem():
    """A state away from the start, its batches and what its step draws."""
    state, train, valid = spread(start(SETTINGS), SETTINGS), batch(0), batch(1)
    size, unflatten = ravel_pytree(state.train.params)
    momentum, mixture = (unflatten(0.1 * jax.random.normal(jax.random.key(k), size.shape)) for k in (8, 9))
    state = state._replace(train=state.train._replace(momentum=momentum), mixture=mixture)
    draw = functools.partial(cosine.sample, config=SETTINGS, count=train.labels.shape[0])
    return state, train, valid, draw(jax.random.fold_in(state.key, state.train.step), policy=state.policy)


def images_of(state, drawn, draw, image, index):
    """One training image under one draw, op by op."""
    pair = int(drawn.draws.row[draw])
    rows = policy_space.combinations(len(DIRECTED.rows), 2)[pair]
    _, centers = cosine.search_input.signs_and_centers(drawn.image_keys, image.shape[:2], 2)
    for slot, row in enumerate(DIRECTED.rows[r] for r in rows):
        if drawn.draws.bits[draw, pair, slot]:
            level = jax.nn.sigmoid(drawn.levels[draw, slot])
            image = ops.apply_op(row.op, image, row.low + level * (row.high - row.low), centers[index, slot])
    return image


def test_all_images_meet_every_draw():
    state, train, _, drawn = problem()
    inputs = cosine.network_inputs(SETTINGS, state.policy, drawn, train.images)
    assert inputs.shape == (3, *train.images.shape)
    for draw in range(3):
        for index in (0, 5):
            expected = images_of(state, drawn, draw, train.images[index].astype(jnp.float32) / 255, index)
            found = inputs[draw, index] * np.array(SETTINGS.std) + np.array(SETTINGS.mean)
            np.testing.assert_allclose(found, expected, atol=1e-5)


def test_costs_are_cosines_to_what_the_mixture_leaves_of_the_validation_gradient():
    state, train, valid, drawn = problem()
    inputs = cosine.network_inputs(SETTINGS, state.policy, drawn, train.images)
    (found, _), after, _ = jitted_gradients(SETTINGS, state, train, valid)

    of_draws = np.array([mean_gradient(state.train.params, images, train.labels) for images in inputs])
    mean = of_draws.mean(0)
    theta, momentum = (np.array(ravel_pytree(tree)[0]) for tree in (state.train.params, state.train.momentum))
    clipped = mean * min(1.0, SETTINGS.clip_norm / np.linalg.norm(mean))
    following = theta - SETTINGS.learning_rate * (0.9 * momentum + clipped + SETTINGS.weight_decay * theta)
    np.testing.assert_allclose(ravel_pytree(after.params)[0], following, atol=1e-6)

    images = augment.normalize(valid.images, SETTINGS.mean, SETTINGS.std)
    v = np.array(mean_gradient(after.params, images, valid.labels))
    mixture = np.array(ravel_pytree(state.mixture)[0])
    w = v - (v @ mixture) / (mixture @ mixture) * mixture
    costs = -(of_draws @ w) / np.linalg.norm(w) / np.linalg.norm(of_draws, axis=1)
    following = cosine.MIXTURE_DECAY * mixture + (1 - cosine.MIXTURE_DECAY) * mean
    stepped, _ = jitted_step(SETTINGS, state, train, valid)
    np.testing.assert_allclose(ravel_pytree(stepped.mixture)[0], following, atol=1e-6)
    baseline = (costs.sum() - costs) / 2

    def surrogate(policy):
        log_probability = jax.vmap(cosine.log_probability, (None, 0))(policy, (drawn.draws, drawn.levels))
        return jnp.mean((costs - baseline) * log_probability)

    for leaf, expected in zip(found, jax.grad(surrogate)(state.policy)):
        assert np.any(np.asarray(expected) != 0)
        np.testing.assert_allclose(leaf, expected, atol=1e-4 * np.abs(expected).max())


def test_levels_are_drawn_about_the_learned_ones_and_follow_what_pays():
    """The gradient of E[f(level)] by the density of what was drawn, against the known one of a linear f."""
    settings = config(score="cosine", space=DIRECTED, num_draws=4000)
    policy = policy_space.init("pairs", len(DIRECTED.rows))
    policy = policy._replace(level=policy.level + 0.4, application=policy.application + 30.0)
    drawn = cosine.sample(jax.random.key(0), settings, policy, 2)
    np.testing.assert_allclose(drawn.levels.mean(), 0.4, atol=0.03)
    np.testing.assert_allclose(drawn.levels.std(), cosine.LEVEL_DEVIATION, atol=0.03)
    value = drawn.levels[:, 0] - 0.4

    @jax.jit
    @jax.grad
    def gradient(level):
        moved = policy._replace(level=jnp.broadcast_to(level, policy.level.shape))
        samples = (drawn.draws, drawn.levels)
        return jnp.mean(value * jax.vmap(cosine.log_probability, (None, 0))(moved, samples))

    np.testing.assert_allclose(gradient(jnp.array([0.4, 0.4])), [1.0, 0.0], atol=0.1)


def test_the_level_of_an_op_that_is_not_applied_has_no_say():
    state, _, _, drawn = problem()
    draw = jax.tree.map(lambda leaf: leaf[0], drawn.draws)
    draw = draw._replace(bits=draw.bits.at[draw.row].set(jnp.array([True, False])))
    gradient = jax.grad(cosine.log_probability)(state.policy, (draw, drawn.levels[0])).level
    assert gradient[draw.row, 0] != 0 and gradient[draw.row, 1] == 0
