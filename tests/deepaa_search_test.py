"""The DeepAA step on a network of one convolution: its scores are exact, and it finds a planted op."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import augment, ops, policies
from dada.searches.deepaa import config as deepaa_config
from dada.searches.deepaa import scores as deepaa_scores
from dada.searches.deepaa import search as deepaa_search
from dada.training import sgd

SIZE, CLASSES = 8, 3
FULL = ops.search_space("deepaa", deepaa_config.CIFAR_OPS)
# Few ops, so that a step compiles quickly; "deepaa" by name, for extraction.
OPS = ("Identity", "ShearX", "Invert", "Brightness", "RandFlip", "RandCrop")
SPACE = FULL._replace(rows=tuple(row for row in FULL.rows if row.name in OPS))
ACTIONS = 12  # on a grid of five points
INVERT = 5


def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """3x3 convolution, a frozen norm, softplus, pooling, linear; in the dtype of the parameters."""
    del key, axis_name
    assert not is_training
    features = jax.lax.conv_general_dilated(
        images.astype(params["kernel"].dtype),
        params["kernel"],
        (2, 2),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    features = jax.nn.softplus(features * params["norm"]["scale"] + params["norm"]["bias"])
    pooled = jnp.concatenate([features.mean((1, 2)), features[:, 1, 1]], -1)
    return pooled @ params["weight"], batch_stats


def network(dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0))
    params = {
        "kernel": 0.4 * jax.random.normal(keys[0], (3, 3, 3, 6)),
        "norm": {"scale": jnp.full(6, 1.3), "bias": jnp.full(6, 0.2)},
        "weight": 0.3 * jax.random.normal(keys[1], (12, CLASSES)),
    }
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def images_of(label, count, seed=0):
    """Bright squares on dark ground; the place of the square is the class."""
    images = np.random.default_rng(seed).integers(0, 60, (count, SIZE, SIZE, 3))
    images[:, 1:5, 2 * label : 2 * label + 3] += 150
    return jnp.asarray(images, jnp.uint8)


def batches(seed, points=4, valid=6, change=lambda images: images):
    labels = np.random.default_rng(seed).integers(0, CLASSES, points)
    train = jnp.concatenate([images_of(label, 1, seed + i) for i, label in enumerate(labels)])
    clean = jnp.stack([change(images_of(label, valid, 99 + seed + i)) for i, label in enumerate(labels)])
    labels = jnp.asarray(labels, jnp.int32)
    return sgd.Batch(train, labels), sgd.Batch(clean, jnp.repeat(labels[:, None], valid, 1))


def config(**changes):
    settings = {"apply": apply, "space": SPACE, "grid_size": 5, "num_chains": 20, "num_prefixes": 2}
    return deepaa_config.Config(**{**settings, **changes})


PLANTED = config(policy_learning_rate=0.3)


def start(settings, layers=1, seed=0):
    state = deepaa_search.init(jax.random.key(seed), settings, network(), {})
    for _ in range(layers - 1):
        state = deepaa_search.next_layer(settings, state)
    noise = jax.random.normal(jax.random.key(seed + 1), state.logits.shape)
    return state._replace(logits=state.logits + noise)


_jitted_step = jax.jit(deepaa_search.step, static_argnums=(0, 4))
_jitted_scores = jax.jit(deepaa_scores.scores, static_argnums=1)


def flat(tree):
    """What takes part in the scores, as one vector: batch norm does not."""
    return jnp.concatenate([tree["kernel"].ravel(), tree["weight"].ravel()])


def test_score_and_logit_gradient_are_those_of_the_cosine():
    with jax.enable_x64(True):
        settings = config()
        params, label = network(jnp.float64), jnp.int32(1)
        image, valid = images_of(1, 1)[0], images_of(1, 7, seed=3)
        logits = jax.random.normal(jax.random.key(2), (1, ACTIONS), jnp.float64)
        key = jax.random.key(4)
        found, cosine = _jitted_scores(key, settings, (params, {}), logits, image, label, valid)

        @jax.jit
        def augmented_images(image):
            action_key, _ = jax.random.split(key)
            inputs = deepaa_scores._draw_every_action(action_key, settings, logits[:-1], image)
            op_ids = ops.op_ids(settings.space)
            return augment.apply_draws(image[None][inputs.source], inputs.draws, op_ids=op_ids)

        @jax.jit
        def every_gradient(params, augmented, valid):
            losses = functools.partial(_plain_losses, settings, label)
            each = jax.vmap(flat)(jax.jacrev(lambda p: losses(p, augmented))(params))
            return each, flat(jax.grad(lambda p: losses(p, valid).mean())(params))

        each_gradient, g_v = every_gradient(
            params, augmented_images(image), valid
        )  # [A, parameters], [parameters]

        def cosine_of(probability):
            g_t = probability @ each_gradient
            return g_t @ g_v / (jnp.linalg.norm(g_t) * jnp.linalg.norm(g_v))

        probability = jax.nn.softmax(logits[0])
        expected = jax.grad(cosine_of)(probability)
        assert expected.dtype == jnp.float64 and np.abs(expected).max() > 1e-2
        np.testing.assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())
        np.testing.assert_allclose(cosine, cosine_of(probability), rtol=1e-10)
        assert abs(probability @ found) < 1e-10  # <g_T, u> = 0

        state = deepaa_search.init(jax.random.key(0), settings, params, {})._replace(logits=logits)
        gradient = deepaa_search.policy_gradient(settings, state, found[None])
        expected = jax.grad(lambda logits: cosine_of(jax.nn.softmax(logits)))(logits[0])
        np.testing.assert_allclose(gradient, expected, atol=1e-8 * np.abs(expected).max())


def _plain_losses(settings, label, params, images):
    inputs = augment.normalize(images, settings.mean, settings.std)
    labels = jnp.broadcast_to(label, images.shape[:1])
    return sgd.cross_entropy(apply(params, {}, inputs, False)[0], labels)


def test_sampled_layers_are_exact_where_nothing_is_left_to_chance():
    """Chains and prefixes of one possible action each: layer 2 on T_a x is layer 1 on the image T_a x."""
    fixed = SPACE._replace(rows=SPACE.rows[:4])
    settings = config(space=fixed, chunk_loop="python")
    row, level = deepaa_config.actions(settings)
    below, top = 2, 7
    image, label, valid = images_of(2, 1)[0], jnp.int32(2), images_of(2, 5, seed=8)
    shear = jax.jit(ops.apply_op, static_argnums=0)
    changed = shear("ShearX", image / jnp.float32(255), -0.15, jnp.zeros(2))
    assert fixed.rows[row[below]].name == "ShearX" and level[below] == 0.25
    certain = 1e3 * jax.nn.one_hot(jnp.array([below, top]), len(row))
    arguments = (settings, (network(), {}))
    rounded = jnp.round(255 * changed).astype(jnp.uint8)
    first = deepaa_scores.scores(jax.random.key(0), *arguments, certain[1:], rounded, label, valid)
    second = deepaa_scores.scores(jax.random.key(1), *arguments, certain, image, label, valid)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), first, second)


def test_prefixes_are_shared_by_all_actions_and_chains_follow_the_layers():
    settings = config(space=FULL, grid_size=13, num_prefixes=5, num_chains=4000)
    state = start(settings, layers=3)
    image = images_of(0, 1)[0]
    every = deepaa_scores._draw_every_action(jax.random.key(3), settings, state.logits[:-1], image).draws
    assert every.op.shape == (5 * 139, 3)
    by_prefix = jax.tree.map(lambda leaf: np.asarray(leaf).reshape(5, 139, 3, *leaf.shape[2:]), every)
    for leaf in by_prefix:
        assert (leaf[:, :1, :2] == leaf[:, :, :2]).all()
    ids = ops.row_op_ids(settings.space)
    row, _ = deepaa_config.actions(settings)
    last = by_prefix.op[:, :, 2]
    assert ((last == ids[row]) | ((ids[row] == 25) & (last == 0))).all()  # 25: RandFlip, heads or tails

    chains = np.asarray(deepaa_scores._draw_chains(jax.random.key(4), settings, state.logits, image).draws.op)
    for layer, logits in enumerate(state.logits):
        probability = np.asarray(jax.nn.softmax(logits)) @ (ids[row][:, None] == np.arange(25))
        share = (chains[:, layer, None] == np.arange(25)).mean(0)
        deviation = np.sqrt(probability * (1 - probability) / 4000)
        assert (np.abs(share - probability)[1:] < 5 * deviation[1:] + 1e-3).all()


def assert_same_step(found, expected, rtol=1e-3):
    """Adam turns rounding of a gradient that is almost zero into a step, so its mean is compared."""
    (state, metrics), (other, other_metrics) = found, expected
    np.testing.assert_allclose(state.optimizer[0].mu, other.optimizer[0].mu, rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(metrics["cosine"], other_metrics["cosine"], rtol=1e-5)
    np.testing.assert_array_equal(state.logits[:-1], other.logits[:-1])
    assert int(state.step) == int(other.step) == 1


def test_chunks_and_their_loop_change_rounding_only():
    state, (train, valid) = start(config(), 2), batches(2)
    expected = _jitted_step(config(), state, train, valid)
    small = config(chunk_size=5, chunk_loop="python")
    assert_same_step(deepaa_search.step(small, state, train, valid), expected)


def test_memory_does_not_grow_with_the_number_of_actions():
    train, valid = batches(2)
    sizes, steps = [], []
    for grid_size in (5, 401):
        settings = config(grid_size=grid_size, chunk_size=10)
        compiled = _jitted_step.lower(settings, start(settings), train, valid).compile()
        temporary = compiled.memory_analysis().temp_size_in_bytes
        sizes.append((len(deepaa_config.actions(settings)[0]), temporary))
        steps.append(compiled(start(settings), train, valid))
    assert [count for count, _ in sizes] == [ACTIONS, 804]
    # The draw and the score of an action; its image alone has 768 bytes, before the network.
    assert (sizes[1][1] - sizes[0][1]) / (804 - ACTIONS) < 300, sizes
    whole = _jitted_step(PLANTED, start(PLANTED), train, valid)  # its rate plays no part in what is compared
    assert_same_step(steps[0], whole)


def test_penalty_and_official_factors():
    found = jax.random.normal(jax.random.key(0), (5, ACTIONS))
    mean, deviation = np.mean(found, 0), np.std(found, 0)
    official = {"preset": "official"}
    for changes, layers, penalty, factor in (
        ({}, 1, 0.0, 1.0),
        ({"penalty": 0.5}, 2, 0.5, 1.0),
        (official, 1, 0.0, 0.25),
        (official, 2, 1.0, 5.0),
    ):
        settings = config(**changes)
        state = start(settings, layers)

        def loss(logits, penalty=penalty, factor=factor):
            return -factor * jnp.sum((mean - penalty * deviation) * jax.nn.softmax(logits))

        expected = -jax.grad(loss)(state.logits[-1])
        gradient = deepaa_search.policy_gradient(settings, state, found)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-7)


def test_points_divided_over_devices_give_the_same_step():
    settings = config()
    state, (train, valid) = start(settings, 2), batches(2)
    expected, metrics = _jitted_step(settings, state, train, valid)
    divided = jax.tree.map(lambda leaf: leaf.reshape(4, 1, *leaf.shape[1:]), (train, valid))
    step = functools.partial(deepaa_search.step, settings, axis_name="points")
    found, others = jax.jit(jax.pmap(step, "points", in_axes=(None, 0, 0)))(state, *divided)
    np.testing.assert_allclose(found.optimizer[0].mu[3], expected.optimizer[0].mu, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(others["cosine"][3], metrics["cosine"], rtol=1e-5)


def test_a_planted_op_comes_out_on_top():
    state = deepaa_search.init(jax.random.key(0), PLANTED, _trained(), {})
    for step in range(35):
        state, metrics = _jitted_step(PLANTED, state, *batches(step, change=lambda images: 255 - images))
    assert OPS[int(np.argmax(metrics["op_mass"]))] == "Invert"
    assert metrics["op_mass"][2] > 0.5 > metrics["identity"]
    np.testing.assert_allclose(metrics["op_mass"].sum(), 1.0, rtol=1e-5)


def test_the_policy_is_the_softmax_of_the_layers():
    settings = config(space=FULL, grid_size=13)
    state = start(settings, 2)
    found = deepaa_search.extract_policy(settings, state, seed=3)
    assert found.seed == 3 and found.method == "deepaa" and found.search_space == "deepaa"
    assert found.extra_ops == deepaa_config.CIFAR_OPS
    np.testing.assert_allclose(found.content.probability, jax.nn.softmax(state.logits), rtol=1e-4)
    np.testing.assert_allclose(found.content.probability.sum(1), 1.0, rtol=1e-12)
    official = deepaa_search.extract_policy(config(space=FULL, grid_size=13, preset="official"), state)
    assert official.search_space == "deepaa_mirrored"
    assert policies.to_json(found).splitlines()[-4:] == policies.to_json(official).splitlines()[-4:]


@functools.cache
def _trained():
    """The network after a short training on clean images; without it no gradient means anything."""
    images = jnp.concatenate([images_of(label, 30, 5 + label) for label in range(CLASSES)])
    labels = jnp.repeat(jnp.arange(CLASSES), 30)
    settings = config()

    def loss(params):
        return jax.vmap(lambda image, label: _plain_losses(settings, label, params, image[None])[0])(
            images, labels
        ).mean()

    @jax.jit
    def descend(params):
        return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))

    params = network()
    for _ in range(12):
        params = descend(params)
    return params


def test_layers_grow_and_the_search_ends():
    settings = config(space=FULL, grid_size=13, num_layers=3)
    state = deepaa_search.init(jax.random.key(0), settings, network(), {})
    np.testing.assert_allclose(jax.nn.softmax(state.logits[0])[:2], [0.9558, 3.206e-4], rtol=1e-3)
    assert deepaa_search.is_done(settings, state)  # nothing was learned: Identity
    assert not deepaa_search.is_done(dataclasses.replace(settings, stop_probability=None), state)
    learned = state._replace(logits=state.logits.at[0, 5].set(9.0))
    assert not deepaa_search.is_done(settings, learned)
    second = deepaa_search.next_layer(settings, learned)
    assert second.logits.shape == (2, 139)
    np.testing.assert_array_equal(second.logits[0], learned.logits[0])
    np.testing.assert_array_equal(second.logits[1], state.logits[0])
    assert int(second.optimizer[0].count) == 0
    third = deepaa_search.next_layer(settings, second)
    third = third._replace(logits=third.logits.at[2, 5].set(9.0))
    assert deepaa_search.is_done(settings, third)


def test_the_same_key_gives_the_same_bytes():
    settings = config()
    train, valid = batches(2)
    runs = [_jitted_step(settings, start(settings, 2), train, valid)[0].logits for _ in range(2)]
    np.testing.assert_array_equal(*runs)
    other = start(settings, 2)._replace(key=jax.random.key(9))
    assert (_jitted_step(settings, other, train, valid)[0].logits != runs[0]).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "paper"}, "preset: got 'paper', expected one of corrected, official"),
        ({"chunk_loop": "while"}, "chunk_loop: got 'while', expected one of scan, python"),
        ({"chunk_size": 0}, "chunk_size: got 0, expected 1 or more"),
        ({"num_layers": 0}, "num_layers: got 0"),
        ({"grid_size": 1}, "grid_size: got 1, expected 2 or more"),
        ({"stop_probability": 1.5}, r"stop_probability: got 1.5, expected a number in \(0, 1\]"),
        ({"space": ops.search_space("strength")}, "space: got 'strength' without Identity"),
    ],
)
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_bad_batches():
    settings = config()
    state, (train, valid) = start(settings), batches(0)
    for bad in (
        (valid, valid),
        (train, train),
        (train._replace(labels=train.labels[:2]), valid),
        (train._replace(images=train.images.astype(jnp.float32)), valid),
        (train, valid._replace(labels=valid.labels.astype(jnp.float32))),
        (train, jax.tree.map(lambda leaf: leaf[:2], valid)),
    ):
        with pytest.raises(AssertionError):
            deepaa_search.step(settings, state, *bad)
    turned = FULL._replace(rows=FULL.rows[2::-1])
    with pytest.raises(
        ValueError, match="space: got rows ShearY, ShearX, Identity, expected some of those of 'deepaa'"
    ):
        deepaa_search.extract_policy(config(space=turned), state)
