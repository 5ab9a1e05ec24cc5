"""DADA steps in a row, on devices and seeds: what they find, and the policy that is read from them."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bright_squares import batch
from dada_problem import (
    DIRECTED,
    FULL,
    apply,
    config,
    gradients,
    jitted_gradients,
    jitted_step,
    network,
    spread,
    start,
)

from dada import ops
from dada.models import layers
from dada.searches.dada import config as dada_config
from dada.searches.dada import search as dada_search
from dada.training import policy_training


def test_learning_rate_is_constant_within_an_epoch():
    settings = config(num_epochs=20, steps_per_epoch=16, learning_rate=0.1)
    rate = functools.partial(dada_config.learning_rate, settings)
    np.testing.assert_allclose([rate(0), rate(160)], [0.1, 0.0505], rtol=1e-5)
    assert rate(16) == rate(31) != rate(32)
    assert rate(320) == rate(5000) == np.float32(0.001)  # the floor for ever after the last


@pytest.mark.parametrize(
    ("planted", "dtype"), [("Invert", "float32"), ("Brightness-", "float32"), ("Invert", "bfloat16")]
)
def test_a_planted_op_comes_out_on_top(planted, dtype):
    settings = config(
        **{"apply": policy_training.in_dtype(apply, dtype), "score": "cosine", "space": DIRECTED},
        **{"num_epochs": 50, "learning_rate": 0.02, "policy_learning_rate": 0.1},
    )
    images = batch(1, 64)
    row = next(row for row in DIRECTED.rows if row.name == planted)
    value = 0.15 if planted == "Brightness-" else 0.0
    planted_images = jax.vmap(
        lambda image: ops.apply_op(row.op, image.astype(jnp.float32) / 255, value, jnp.zeros(2))
    )(images.images)
    valid = images._replace(images=jnp.round(planted_images * 255).astype(jnp.uint8))
    state = start(settings)
    for _ in range(150):
        state, metrics = jitted_step(settings, state, batch(0, 64), valid)
    mass = dict(zip([row.name for row in DIRECTED.rows], metrics["op_mass"].tolist()))
    assert max(mass, key=mass.get) == planted, mass
    assert mass[planted] > 1.5 * 2 * 0.5 / len(mass), mass
    assert float(metrics["entropy"]) < np.log(15)


def normalized_apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """`apply` with its images batch-normalised, so that images and devices depend on each other."""
    images, batch_stats = layers.batch_norm(
        params["norm"], batch_stats, images, is_training, momentum=0.1, axis_name=axis_name
    )
    return apply(params, {}, images, is_training)[0], batch_stats


@pytest.mark.parametrize("score", ["exact", "cosine"])
def test_one_device_and_eight_agree(score):
    # Clipping would hide a gradient that is eight times too large.
    settings = config(clip_norm=1e6, apply=normalized_apply, score=score)
    norm, stats = layers.init_batch_norm(3)
    state = dada_search.init(jax.random.key(0), settings, {**network(), "norm": norm}, stats)
    state, batches = spread(state, settings), (batch(0), batch(1))

    expected = jitted_gradients(settings, state, *batches)
    divided = jax.jit(
        jax.pmap(lambda *batches: gradients(settings, state, *batches, axis_name="devices"), "devices")
    )(*jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), batches))
    for leaf, reference in zip(jax.tree.leaves(divided), jax.tree.leaves(expected)):
        for device in range(8):
            np.testing.assert_allclose(leaf[device], reference, atol=2e-6, rtol=2e-5)
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    batches = jax.device_put(batches, jax.NamedSharding(mesh, jax.P("devices")))
    sharded = jitted_gradients(settings, state, *batches)
    for leaf, reference in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected)):
        np.testing.assert_allclose(leaf, reference, atol=2e-6, rtol=2e-5)


def test_seeds_can_be_mapped_and_steps_scanned():
    settings = config()
    train, valid = batch(0), batch(1)
    states = [start(settings, seed) for seed in (0, 1)]
    expected = []
    for state in states:
        for _ in range(3):
            state, _ = jitted_step(settings, state, train, valid)
        expected.append(state)

    def three(state):
        return jax.lax.scan(
            lambda state, _: dada_search.step(settings, state, train, valid), state, length=3
        )[0]

    found = jax.jit(jax.vmap(three))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    for index, state in enumerate(expected):
        for mapped, single in zip(jax.tree.leaves(found.policy), jax.tree.leaves(state.policy)):
            np.testing.assert_allclose(mapped[index], single, atol=1e-4)
    assert np.any(np.asarray(expected[0].policy.op) != np.asarray(expected[1].policy.op))


def test_slots_extract_their_most_probable_ops():
    settings = config(policy_space="slots", space=FULL)
    state = spread(start(settings), settings)
    found = dada_search.extract_policy(settings, state, seed=3)
    assert found.content.row.shape == (25, 2) and found.seed == 3
    np.testing.assert_array_equal(found.content.row, np.argmax(state.policy.op, -1))


def test_extraction_refuses_rows_that_the_policy_could_not_be_read_with():
    turned = config(space=config().space._replace(rows=config().space.rows[::-1]))
    with pytest.raises(ValueError, match=r"space: got rows .*, ShearX, expected some of those of 'strength'"):
        dada_search.extract_policy(turned, start(turned))


@pytest.mark.parametrize(
    ("kind", "moved"), [("pairs", [True, True, True, True, True, False]), ("triples", [True] * 4)]
)
def test_combinations_that_have_an_op_in_common_share_gradients(kind, moved):
    settings = config(policy_space=kind)
    state = start(settings)
    always_first = 1e3 * jnp.eye(len(moved))[:1, None]  # only the first one, of ops 0, 1 (and 2), is drawn
    state = state._replace(policy=state.policy._replace(op=always_first))
    after = jitted_step(settings, state, batch(0), batch(1))[0].policy
    changed = np.asarray(after.application != state.policy.application)
    np.testing.assert_array_equal(changed.any(-1), moved)  # the last pair is of ops 2 and 3
    if kind == "triples":  # 0 1 2, 0 1 3, 0 2 3, 1 2 3: op 3 was not drawn
        np.testing.assert_array_equal(changed, np.array([[1, 1, 1], [1, 1, 0], [1, 1, 0], [1, 1, 0]], bool))


def test_triples_extract_their_heaviest_with_three_ops():
    settings = config(policy_space="triples", space=FULL, top_k=4)
    state = spread(start(settings), settings)
    content = dada_search.extract_policy(settings, state).content
    assert content.row.shape == content.level.shape == (4, 3)
    best = np.argsort(-np.asarray(state.policy.op[0, 0]), kind="stable")[:4]
    combinations = list(itertools.combinations(range(len(FULL.rows)), 3))
    np.testing.assert_array_equal(content.row, [combinations[one] for one in best])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "rebar"}, "estimator: got 'rebar', expected one of relax"),
        ({"estimator": "gumbel"}, "policy_space: got 'pairs', expected slots with estimator 'gumbel'"),
        ({"policy_space": "quadruples"}, "policy_space: got 'quadruples'"),
        ({"score": "inner"}, "score: got 'inner', expected one of cosine, exact"),
        ({"num_draws": 1}, "num_draws: got 1, expected 2 or more"),
        ({"hypergradient": "none"}, "hypergradient: got 'none', expected one of exact"),
        ({"temperature": (0.5, 0.0)}, "expected two numbers above 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch: got 0, expected 1 or more"),
    ],
)
def test_bad_settings_say_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_wrong_batches_are_refused():
    settings = config()
    good = batch(0)
    for bad in (
        good._replace(images=good.images.astype(jnp.float32)),
        good._replace(images=good.images[0]),
        good._replace(labels=good.labels[:3]),
    ):
        with pytest.raises(AssertionError):
            dada_search.step(settings, start(settings), bad, good)
