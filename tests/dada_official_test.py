"""DADA as released: its gradients against the released algorithm by hand, its schedule, its policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_squares import batch
from dada_problem import (
    FULL,
    apply,
    config,
    drawn,
    jitted_gradients,
    jitted_step,
    learning_rate,
    official,
    spread,
    start,
    unrolled_loss,
)

from dada import augment, ops
from dada.gradients import bilevel
from dada.searches import dada_official
from dada.training import sgd


def test_relax_is_reinforce_because_its_control_variate_cancels():
    settings = official()
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    draws, inputs = drawn(settings, state, train.images)
    draw = jax.tree.map(lambda leaf: leaf[0], draws)

    def mean_loss(params, images, labels):
        return jnp.mean(sgd.cross_entropy(apply(params, {}, images, True)[0], labels))

    @jax.jit
    def cost_by_hand(policy):
        """From the released algorithm: no clip in the unroll, h the validation gradient there."""
        images = inputs(policy)
        _, unrolled = unrolled_loss(settings, state, train, valid, images, clip_norm=None)
        valid_images = augment.normalize(valid.images, settings.mean, settings.std)
        direction = jax.grad(mean_loss)(unrolled, valid_images, valid.labels)
        losses = functools.partial(mean_loss, images=images, labels=train.labels)
        return -bilevel.alignment(losses, state.train.params, direction)

    cost = cost_by_hand(state.policy)
    probability = state.policy.application
    bit_score = (draw.bits - probability) / (probability * (1 - probability))
    entries = draw.bits.size
    weight_score = entries * (jax.nn.one_hot(draw.row, 6) - jax.nn.softmax(state.policy.op[0, 0]))

    (found, control), _, _ = jitted_gradients(settings, state, train, valid)
    np.testing.assert_allclose(found.application, cost * bit_score, rtol=2e-2, atol=2e-3 * abs(cost))
    np.testing.assert_allclose(found.op[0, 0], cost * weight_score, rtol=2e-2, atol=2e-2 * abs(cost))
    # All bits get a gradient, drawn or not; levels the same one for both ops, none for other pairs.
    assert np.all(found.application != 0)
    level = np.asarray(found.level)
    assert not np.any(np.delete(level, int(draw.row), 0))
    applied = np.asarray(draw.bits[draw.row])
    np.testing.assert_allclose(level[draw.row], level[draw.row].max() * applied, rtol=1e-5)
    assert any(np.any(np.asarray(leaf) != 0) for leaf in control.values())


def test_learning_rate_is_one_epoch_ahead():
    length = {"num_epochs": 20, "steps_per_epoch": 16, "learning_rate": 0.1}
    corrected, released = (
        [float(learning_rate(settings, 16 * epoch)) for epoch in range(20)]
        for settings in (config(**length), official(**length))
    )
    # The figures of the released code's scheduler.
    found = [released[epoch] for epoch in (0, 1, 18, 19)]
    np.testing.assert_allclose(found, [0.0994, 0.0976, 0.0016, 0.001], atol=5e-5)
    assert released[19] == np.float32(0.001)
    np.testing.assert_allclose(corrected[1:], released[:-1], rtol=1e-6)
    assert learning_rate(official(**length), 16) == learning_rate(official(**length), 31)


def test_policy_is_read_before_the_current_epoch():
    settings = official()
    state = start(settings)
    policies = [state.policy]
    for _ in range(6):  # into the second epoch of four steps
        state, _ = jitted_step(settings, state, batch(0), batch(1))
        policies.append(state.policy)
    jax.tree.map(np.testing.assert_array_equal, state.epoch_policy, policies[4])
    assert np.any(np.asarray(policies[4].level) != np.asarray(policies[6].level))

    settings = official(space=FULL)
    state = start(settings)
    before = spread(state, settings).policy
    found = dada_official.extract_policy(settings, state._replace(epoch_policy=before))
    best = np.argsort(-np.asarray(before.op[0, 0]), kind="stable")[:25]
    np.testing.assert_allclose(found.content.level, np.clip(before.level, 0, 1)[best], atol=1e-5)
    assert found.content.weight is None and found.preset == "official"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hypergradient": "none"}, "hypergradient: got 'none', expected one of exact"),
        ({"temperature": (0.5, 0.0)}, "expected two numbers above 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: got 0, expected 1 or more"),
        ({"space": ops.search_space("deepaa", ("RandFlip",))}, "random ops RandFlip, which only DeepAA"),
    ],
)
def test_bad_settings_say_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        official(**changes)


@pytest.mark.parametrize("changes", [{"policy_space": "slots"}, {"score": "exact"}, {"num_draws": 4}])
def test_what_the_released_code_does_not_have_is_no_setting(changes):
    config(**changes)
    with pytest.raises(TypeError, match=next(iter(changes))):
        official(**changes)


def test_wrong_batches_are_refused():
    good = batch(0)
    with pytest.raises(AssertionError):
        dada_official.step(official(), start(official()), good._replace(labels=good.labels[:3]), good)
