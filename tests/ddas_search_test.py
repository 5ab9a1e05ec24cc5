"""DDAS on small networks: its step is the paper's, it finds a planted op, and a seed gives the same bytes."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_squares import BATCH, batch
from ddas_problem import (
    OPS,
    apply,
    config,
    full,
    jitted_copies,
    jitted_gradients,
    jitted_step,
    network,
    start,
)

from dada import policies
from dada.augment import sampling
from dada.policies import schedule
from dada.searches.ddas import config as ddas_config
from dada.searches.ddas import search as ddas_search
from dada.training import sgd


def test_the_step_follows_the_full_expected_loss():
    """With all policies, against eq. (4) and (6) written out on the images that the step sees."""
    settings = config(preset="official", num_ops=1, momentum_decay=0.9, weight_decay=1e-3)
    state, train, valid = start(settings), batch(0), batch(1)
    policies = jnp.arange(4)[None, :, None]
    keys = jax.random.split(jax.random.fold_in(state.key, 0), 3)
    copies = jitted_copies(keys[1], settings, policies, train.images)
    labels = train.labels

    def mean_loss(params, images, labels):
        logits = apply(params, state.train.batch_stats, images, True)[0]
        return jnp.mean(sgd.cross_entropy(logits, labels))

    def unrolled(parameters):
        p_tp, p_o = jax.nn.sigmoid(parameters.p_tp), jax.nn.softmax(parameters.p_o)
        p = jnp.prod(p_o[policies[0]], -1)

        def total(params):
            without, *each = (mean_loss(params, copy, labels) for copy in copies)
            return (1 - p_tp) * without + p_tp * sum(weight * loss for weight, loss in zip(p, each))

        return sgd.sgd_update(
            state.train.params,
            state.train.momentum,
            jax.grad(total)(state.train.params),
            learning_rate=0.01 * BATCH,  # the loss is a sum
            weight_decay=1e-3 / BATCH,
        )[0]

    def loss(parameters):
        images = (valid.images / 255.0 - jnp.array(settings.mean)) / jnp.array(settings.std)
        params = unrolled(parameters)
        return mean_loss(params, images, valid.labels), params

    found, after, metrics = jitted_gradients(settings, state, train, valid, policies)
    (value, params), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.policy)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), after.params, params)
    np.testing.assert_allclose(metrics["valid_loss"], value, rtol=1e-5)
    # Z_g makes one factor of the difference, for p_tp and p_o the same.
    scale = float(found.p_tp / expected.p_tp)
    assert scale > 0
    np.testing.assert_allclose(found.p_o, scale * expected.p_o, atol=2e-3 * np.abs(found.p_o).max())


def test_copies_share_their_base_randomness_or_not():
    images = batch(0).images
    nothing = jnp.zeros((1, 2, 2), jnp.int32)  # Identity twice
    shared = jitted_copies(jax.random.key(0), config(), nothing, images)
    np.testing.assert_array_equal(shared[1:], shared[:1].repeat(2, 0))
    own = jitted_copies(jax.random.key(0), config(share_randomness=False), nothing, images)
    assert np.mean(np.any(np.asarray(own[0] != own[1]), (1, 2, 3))) > 0.8
    # Identical copies have nothing to tell apart: no gradient, and no division by Z_g = 0.
    settings = config(candidates=ddas_config.Candidates((0, 0), (0.0, 0.0)), draws="batch")
    found, _, _ = jitted_gradients(settings, start(settings), batch(0), batch(1))
    np.testing.assert_array_equal(found.p_tp, 0.0)
    np.testing.assert_array_equal(found.p_o, 0.0)


def test_policies_are_applied_in_order_to_their_images():
    settings = config(crop_padding=0, flip=False, cutout_length=0, mean=(0.0,) * 3, std=(1.0,) * 3)
    images = batch(0, 2).images
    flip, invert, darken = 1, 2, 3
    policies = jnp.array([[[flip, invert], [0, 0]], [[darken, invert], [invert, darken]]])
    copies = jnp.round(jitted_copies(jax.random.key(0), settings, policies, images) * 255)
    np.testing.assert_array_equal(copies[0], images)
    np.testing.assert_array_equal(copies[1, 0], 255 - images[0, ::-1])
    np.testing.assert_array_equal(copies[2, 0], images[0])
    factor = 0.1 + 0.02 * 5.76
    np.testing.assert_allclose(copies[1, 1], 255 - np.floor(images[1] * factor), atol=1)
    np.testing.assert_allclose(copies[2, 1], np.floor((255 - images[1].astype(int)) * factor), atol=1)


@pytest.mark.parametrize("draws", ["image", "batch"])
def test_one_device_and_eight_agree(draws):
    # The base augmentation of both is the same, and takes long to compile.
    plain = {"crop_padding": 0, "flip": False, "cutout_length": 0} if draws == "batch" else {}
    settings = config(draws=draws, clip_norm=1e6, **plain)
    state, train, valid = start(settings), batch(0), batch(1)
    expected = jitted_gradients(settings, state, train, valid)
    divided = jax.jit(
        jax.pmap(
            functools.partial(ddas_search.gradients, settings, axis_name="devices"),
            "devices",
            in_axes=(None, 0, 0),
        )
    )(state, *jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), (train, valid)))
    for leaf, reference in zip(jax.tree.leaves(divided), jax.tree.leaves(expected)):
        for device in range(8):
            np.testing.assert_allclose(leaf[device], reference, atol=1e-5, rtol=1e-4)
    if draws == "batch":
        return
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("devices"))
    sharded = jitted_gradients(settings, state, *jax.device_put((train, valid), sharding))
    for leaf, reference in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected)):
        np.testing.assert_allclose(leaf, reference, atol=1e-5, rtol=1e-4)


def run(settings, steps, valid, train=None, seed=0):
    state = ddas_search.init(jax.random.key(seed), settings, *network())
    states = [state]
    for _ in range(steps):
        state, metrics = jitted_step(settings, state, batch(0, 32) if train is None else train, valid)
        states.append(state)
    return states, metrics


def test_a_planted_op_comes_out_on_top_and_p_tp_rises():
    plain = {"crop_padding": 0, "flip": False, "cutout_length": 0, "num_epochs": 30, "num_ops": 1}
    settings = config(**plain, p_tp_learning_rate=0.03)
    invert = OPS.index("Invert")
    valid = batch(1, 64)
    states, metrics = run(settings, 30, valid._replace(images=255 - valid.images))
    p_o = jax.nn.softmax(states[-1].policy.p_o)
    assert p_o[invert] > 0.7, p_o
    assert metrics["p_tp"] > 0.5 and metrics["entropy"] < 1.0
    np.testing.assert_allclose(metrics["op_mass"].sum(), metrics["p_tp"], rtol=1e-5)
    np.testing.assert_allclose(metrics["op_mass"][invert], metrics["p_tp"] * p_o[invert], rtol=1e-5)
    states, metrics = run(settings, 30, valid)
    assert metrics["p_tp"] < 0.35 and jax.nn.softmax(states[-1].policy.p_o)[invert] < 0.2


def test_same_seed_same_bytes_and_another_seed_another_policy():
    settings = config()
    last = [run(settings, 5, batch(1), batch(0), seed)[0][-1] for seed in (0, 0, 1)]
    texts = [policies.to_json(ddas_search.extract_policy(full(settings), state)) for state in last]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("preset", ["corrected", "official"])
def test_the_policy_holds_every_epoch(preset):
    settings = config(preset=preset)
    states, _ = run(settings, 6, batch(1), batch(0))  # into the second epoch of four steps
    smoothed = dataclasses.replace(full(settings), smoothing=2)
    found = ddas_search.extract_policy(smoothed, states[-1], seed=3)
    shown = [states[i].policy for i in ((0, 4) if preset == "official" else (4, 6))]
    p_tp = [float(jax.nn.sigmoid(parameters.p_tp)) for parameters in shown]
    np.testing.assert_allclose(found.content.p_tp, [np.mean(p_tp)] * 2, rtol=1e-6)
    np.testing.assert_allclose(found.content.p_o, [jax.nn.softmax(p.p_o) for p in shown], rtol=1e-5)
    assert (found.kind, found.seed, found.content.num_ops) == ("schedule", 3, 2)
    draws = sampling.sample(jax.random.key(0), found, 400, (8, 8), epoch=1)
    assert 0.25 < np.mean(np.any(np.asarray(draws.op) > 0, -1)) < 0.45
    turned = settings.space._replace(rows=settings.space.rows[::-1])
    with pytest.raises(ValueError, match=r"space: got rows .*, FlipUD, Identity, expected some of"):
        ddas_search.extract_policy(dataclasses.replace(settings, space=turned), states[-1])
    held = schedule.freeze(found, p_o=True)
    np.testing.assert_array_equal(held.content.p_o, found.content.p_o[[-1, -1]])
    np.testing.assert_array_equal(held.content.p_tp, found.content.p_tp)


def test_mean_filter_looks_ahead():
    smooth = ddas_search.smooth
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0, 6.0, 7.0]), 2), [1.5, 4, 6.5, 6.5])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0]), 1), [1, 2])
    np.testing.assert_allclose(smooth(np.array([1.0, 2.0]), 6), [1.5, 1.5])
    with pytest.raises(ValueError, match="size: got 0, expected 1 or more"):
        smooth(np.ones(3), 0)


def test_p_tp_can_be_fixed():
    settings = config(initial_p_tp=1.0, learn_p_tp=False)  # its logit is infinite
    states, metrics = run(settings, 2, batch(1), batch(0))
    assert metrics["p_tp"] == 1.0
    assert np.all(np.isfinite(states[-1].policy.p_o)) and np.any(states[-1].policy.p_o != 0)


def test_wrong_batches_are_refused():
    settings = config()
    good = batch(0)
    for bad in (
        good._replace(images=good.images.astype(jnp.float32)),
        good._replace(images=good.images[0]),
        good._replace(labels=good.labels[:3]),
    ):
        with pytest.raises(AssertionError):
            ddas_search.step(settings, start(settings), bad, good)
