"""The DADA step on a network of one convolution: what it computes, and that it finds a planted op."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import (
    augment,
    dada_config,
    dada_official,
    dada_search,
    hypergradient,
    layers,
    op_table,
    policy_space,
    search_input,
    train_state,
)

SIZE, BATCH, CLASSES = 8, 16, 3
# Few ops, so that the step compiles quickly; "strength" by name, for extraction.
FULL = op_table.search_space("strength")
OPS = ("ShearX", "Invert", "Brightness", "Cutout")
SPACE = FULL._replace(rows=tuple(row for row in FULL.rows if row.name in OPS))


def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """3x3 convolution, softplus (smooth, so that finite differences can be fine), pooling, linear."""
    del is_training, key, axis_name
    features = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features = jax.nn.softplus(features)
    pooled = jnp.concatenate([features.mean((1, 2)), features[:, 1, 1]], -1)
    return pooled @ params["weight"] + params["bias"], batch_stats


def network(key=0):
    keys = jax.random.split(jax.random.key(key))
    return {
        "kernel": 0.4 * jax.random.normal(keys[0], (3, 3, 3, 6)),
        "weight": 0.3 * jax.random.normal(keys[1], (12, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }


def batch(seed, size=BATCH):
    """Bright squares on dark ground; the place of the square is the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, size)
    images = generator.integers(0, 60, (size, SIZE, SIZE, 3))
    for image, label in zip(images, labels):
        image[1:5, 2 * label : 2 * label + 3] += 150
    return dada_search.Batch(jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32))


def config(**changes):
    settings = {
        "apply": apply,
        "space": SPACE,
        "steps_per_epoch": 4,
        "num_epochs": 3,
        "crop_padding": 0,
        "flip": False,
        "cutout_length": 0,
        **(dada_official.SETTINGS if changes.get("preset") == "official" else {}),
        **changes,
    }
    return dada_config.Config(**settings)


def start(config, seed=0):
    return dada_search.init(jax.random.key(seed), config, network(), {})


def spread(state, config, seed=5):
    """The state with a policy away from its symmetric start."""
    keys = jax.random.split(jax.random.key(seed), 3)
    noise = [0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, state.policy)]
    if config.preset == "official":
        noise = [0.3 * leaf for leaf in noise]
    return state._replace(policy=policy_space.Parameters(*map(jnp.add, state.policy, noise)))


@functools.partial(jax.jit, static_argnums=0)
def jitted_step(config, state, train, valid):
    return dada_search.step(config, state, train, valid)


@functools.partial(jax.jit, static_argnums=0)
def jitted_gradients(config, state, train, valid):
    return dada_search.gradients(config, state, train, valid)


def drawn(config, state, images):
    """What `gradients` draws, and its network input as a function of the policy."""
    key = jax.random.fold_in(state.key, state.train.step)
    keys = search_input.image_keys(key, images.shape[0])
    draw_keys = keys.draw if config.draws == "image" else search_input.image_keys(key, 1).draw
    logits = dada_config.distribution(config, state.policy)
    draws = jax.vmap(policy_space.draw, (0, None))(draw_keys, logits)
    heat = dada_config.temperature(config, state.train.step)

    def inputs(parameters):
        return search_input.network_input(config, parameters, draws, draw_keys, keys, heat, images)

    return draws, inputs


def unrolled_loss(config, state, train, valid, inputs, clip_norm):
    """V(theta'(phi)) written out, as a function of the network input alone."""

    def mean_loss(params, images, labels):
        return jnp.mean(train_state.cross_entropy(apply(params, {}, images, True)[0], labels))

    gradient = jax.grad(mean_loss)(state.train.params, inputs, train.labels)
    params, _ = train_state.sgd_update(
        state.train.params,
        state.train.momentum,
        gradient,
        learning_rate=dada_config.learning_rate(config, state.train.step),
        weight_decay=config.weight_decay,
        clip_norm=clip_norm,
    )
    images = augment.normalize(valid.images, config.mean, config.std)
    return mean_loss(params, images, valid.labels), params


@pytest.mark.parametrize("clip_norm", [5.0, 0.05])
def test_unrolled_weights_are_the_next_iterate_and_levels_get_the_exact_gradient(clip_norm):
    settings = config(estimator="reinforce", clip_norm=clip_norm)
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    momentum = jax.tree.map(lambda leaf: 0.1 * jnp.ones_like(leaf), state.train.params)
    state = state._replace(train=state.train._replace(momentum=momentum))
    _, inputs = drawn(settings, state, train.images)

    def loss(level):
        images = inputs(state.policy._replace(level=level))
        return unrolled_loss(settings, state, train, valid, images, clip_norm)

    (value, params), expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.policy.level)
    (found, _), after, metrics = jitted_gradients(settings, state, train, valid)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), after.params, params)
    np.testing.assert_allclose(metrics["valid_loss"], value, rtol=1e-5)
    # The step's direction has unit length, so both agree up to one factor.
    scale = np.vdot(found.level, expected) / np.vdot(expected, expected)
    assert scale > 0
    np.testing.assert_allclose(found.level, scale * expected, atol=2e-4 * np.abs(found.level).max())


@pytest.mark.parametrize("policy_kind", ["pairs", "slots"])
def test_mixtures_get_the_exact_gradient_in_everything(policy_kind):
    settings = config(estimator="gumbel", policy_space=policy_kind, temperature=(0.7, 0.7))
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


@pytest.mark.parametrize("policy_kind", ["pairs", "slots"])
def test_hard_mixture_is_the_discrete_path_exactly(policy_kind):
    hard = config(estimator="straight_through", policy_space=policy_kind)
    discrete = dataclasses.replace(hard, estimator="reinforce")
    state, images = spread(start(hard), hard), batch(0).images
    outputs = [jax.jit(drawn(c, state, images)[1])(state.policy) for c in (hard, discrete)]
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("estimator", ["relax", "reinforce"])
def test_choices_get_the_gradient_of_the_expected_cost(estimator):
    """Mean over many keys of the estimate against the exact gradient, by enumerating every draw.

    Without batch statistics the cost of an image depends on its own draw alone once the direction is
    fixed; the direction is made independent of the draws by a learning rate of almost zero and no clip.
    """
    still = {"learning_rate": 1e-6, "learning_rate_floor": 1e-6, "weight_decay": 0.0, "clip_norm": 1e6}
    settings = config(estimator=estimator, **still)
    # No random signs or centres: then a draw determines its image.
    rows = tuple(row._replace(random_sign=False) for row in SPACE.rows if row.name != "Cutout")
    settings = dataclasses.replace(settings, space=SPACE._replace(rows=rows))
    state = spread(start(settings), settings)
    train, valid = batch(0), batch(1)
    valid_images = augment.normalize(valid.images, settings.mean, settings.std)
    direction = jax.grad(
        lambda p: jnp.mean(train_state.cross_entropy(apply(p, {}, valid_images, True)[0], valid.labels))
    )(state.train.params)
    norm = -hypergradient.global_norm(direction)  # u = -eta v, at unit length
    direction = jax.tree.map(lambda leaf: leaf / norm, direction)

    def expected_cost(parameters):
        """Sum over pairs and bits of probability times mean cost of the batch under that draw."""
        total = 0.0
        for pair, rows in enumerate(policy_space.pair_table(3)):
            for bits in np.ndindex(2, 2):
                applied = np.zeros((3, 2), bool)
                applied[pair] = bits
                draw = policy_space.Draw(0, jnp.array([pair]), pair, jnp.asarray(applied))
                images = train.images.astype(jnp.float32) / 255.0
                for slot, row in enumerate(rows):
                    if bits[slot]:
                        op_row = settings.space.rows[row]
                        level = jax.lax.stop_gradient(jax.nn.sigmoid(parameters.level[pair, slot]))
                        value = op_row.low + level * (op_row.high - op_row.low)
                        images = jax.vmap(
                            lambda image: op_table.apply_op(op_row.name, image, value, jnp.zeros(2))  # noqa: B023
                        )(images)
                images = augment.normalize(images, settings.mean, settings.std)
                losses = lambda p: train_state.cross_entropy(apply(p, {}, images, True)[0], train.labels)  # noqa: B023, E731
                cost = jnp.mean(hypergradient.alignment(losses, state.train.params, direction))
                total += jnp.exp(policy_space.log_probability(parameters, draw)) * cost
        return total

    exact = jax.jit(jax.grad(expected_cost))(state.policy)
    keys = jax.random.split(jax.random.key(9), 3000)
    many = jax.jit(
        lambda keys: jax.lax.map(
            lambda key: dada_search.gradients(settings, state._replace(key=key), train, valid)[0][0][:2],
            keys,
            batch_size=100,
        )
    )(keys)
    for estimates, expected in zip(many, exact[:2]):
        estimates = np.asarray(estimates)
        error = estimates.std(0) / np.sqrt(len(keys))
        assert np.all(np.abs(estimates.mean(0) - expected) < 4.0 * error + 1e-6)
        assert np.abs(expected).max() > 8.0 * error.max()  # the test has the power to fail


@pytest.mark.parametrize("estimator", ["relax", "reinforce"])
def test_official_relax_is_reinforce_because_its_control_variate_cancels(estimator):
    settings = config(preset="official", estimator=estimator)
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    draws, inputs = drawn(settings, state, train.images)
    draw = jax.tree.map(lambda leaf: leaf[0], draws)

    def mean_loss(params):
        logits, _ = apply(params, {}, inputs(state.policy), True)
        return jnp.mean(train_state.cross_entropy(logits, train.labels))

    # By hand, from the released algorithm: no clip in the unroll, h the validation gradient there.
    _, unrolled = unrolled_loss(settings, state, train, valid, inputs(state.policy), clip_norm=None)
    images = augment.normalize(valid.images, settings.mean, settings.std)
    direction = jax.grad(
        lambda p: jnp.mean(train_state.cross_entropy(apply(p, {}, images, True)[0], valid.labels))
    )(unrolled)
    cost = -hypergradient.alignment(mean_loss, state.train.params, direction)
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
    assert any(np.any(np.asarray(leaf) != 0) for leaf in control.values()) == (estimator == "relax")


def test_official_gumbel_models_what_was_not_drawn_as_ones():
    settings = config(preset="official", estimator="gumbel")
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    (found, _), _, _ = jitted_gradients(settings, state, train, valid)
    draw = jax.tree.map(lambda leaf: leaf[0], drawn(settings, state, train.images)[0])
    others = np.delete(np.asarray(found.application), int(draw.row), 0)
    assert not np.any(others) and np.all(np.asarray(found.application)[draw.row] != 0)


def test_official_policy_is_read_before_the_current_epoch():
    settings = config(preset="official")
    state = start(settings)
    policies = [state.policy]
    for _ in range(6):  # into the second epoch of four steps
        state, _ = jitted_step(settings, state, batch(0), batch(1))
        policies.append(state.policy)
    jax.tree.map(np.testing.assert_array_equal, state.epoch_policy, policies[4])
    assert np.any(np.asarray(policies[4].level) != np.asarray(policies[6].level))

    settings = config(preset="official", space=FULL)
    state = start(settings)
    before = spread(state, settings).policy
    found = dada_search.extract_policy(settings, state._replace(epoch_policy=before))
    best = np.argsort(-np.asarray(before.op[0, 0]), kind="stable")[:25]
    np.testing.assert_allclose(found.content.level, np.clip(before.level, 0, 1)[best], atol=1e-5)
    assert found.content.weight is None and found.preset == "official"


def test_finite_difference_agrees_with_the_exact_hypergradient():
    settings = config(estimator="reinforce")
    state, train, valid = spread(start(settings), settings), batch(0), batch(1)
    (exact, _), _, _ = jitted_gradients(settings, state, train, valid)
    coarse = dataclasses.replace(settings, hypergradient="finite_difference")
    (difference, _), _, _ = jitted_gradients(coarse, state, train, valid)
    for a, b in zip(exact, difference):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(a).max() + 1e-6)


@pytest.mark.parametrize("planted", ["Invert", "Brightness"])
def test_a_planted_op_comes_out_on_top(planted):
    settings = config(num_epochs=50, learning_rate=0.1)
    images = batch(1, 64)
    row = next(row for row in SPACE.rows if row.name == planted)
    value = 0.15 if planted == "Brightness" else 0.0
    planted_images = jax.vmap(
        lambda image: op_table.apply_op(row.name, image.astype(jnp.float32) / 255, value, jnp.zeros(2))
    )(images.images)
    valid = images._replace(images=jnp.round(planted_images * 255).astype(jnp.uint8))
    state = start(settings)
    for _ in range(150):
        state, metrics = jitted_step(settings, state, batch(0, 64), valid)
    mass = dict(zip([row.name for row in SPACE.rows], metrics["op_mass"].tolist()))
    assert max(mass, key=mass.get) == planted, mass
    assert mass[planted] > 1.5 * 2 * 0.5 / len(mass), mass
    assert float(metrics["entropy"]) < np.log(6)


def normalized_apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """`apply` with its images batch-normalised, so that images and devices depend on each other."""
    images, batch_stats = layers.batch_norm(
        params["norm"], batch_stats, images, is_training, momentum=0.1, axis_name=axis_name
    )
    return apply(params, {}, images, is_training)[0], batch_stats


def test_one_device_and_eight_agree():
    # Clipping would hide a gradient that is eight times too large.
    settings = config(clip_norm=1e6, apply=normalized_apply)
    norm, stats = layers.init_batch_norm(3)
    state = dada_search.init(jax.random.key(0), settings, {**network(), "norm": norm}, stats)
    state, train, valid = spread(state, settings), batch(0), batch(1)
    expected = jitted_gradients(settings, state, train, valid)
    after, _ = jitted_step(settings, state, train, valid)
    divided = jax.pmap(
        functools.partial(dada_search.gradients, settings, axis_name="devices"),
        "devices",
        in_axes=(None, 0, 0),
    )(state, *jax.tree.map(lambda leaf: leaf.reshape(8, 2, *leaf.shape[1:]), (train, valid)))
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.P("devices"))
    sharded = jitted_gradients(settings, state, *jax.device_put((train, valid), sharding))
    for leaf, reference in zip(jax.tree.leaves(divided), jax.tree.leaves(expected)):
        for device in range(8):
            np.testing.assert_allclose(leaf[device], reference, atol=2e-6, rtol=2e-5)
    for leaf, reference in zip(jax.tree.leaves(sharded), jax.tree.leaves(expected)):
        np.testing.assert_allclose(leaf, reference, atol=2e-6, rtol=2e-5)
    stepped, _ = jitted_step(settings, state, *jax.device_put((train, valid), sharding))
    for leaf, reference in zip(jax.tree.leaves(stepped.train.params), jax.tree.leaves(after.train.params)):
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
    with pytest.raises(ValueError, match=r"space: got rows ShearX, Invert.*expected those of 'strength'"):
        dada_search.extract_policy(config(), start(config()))


def test_pairs_share_gradients_unless_told_not_to():
    alone, shared = config(share_between_pairs=False), config()
    state, train, valid = spread(start(alone), alone), batch(0, 2), batch(1)
    drawn_pairs = set(np.asarray(drawn(alone, state, train.images)[0].row).tolist())
    untouched = np.array([pair not in drawn_pairs for pair in range(6)])
    after = [jitted_step(c, state, train, valid)[0].policy for c in (alone, shared)]
    moved = [np.any(np.asarray(p.application != state.policy.application), -1) for p in after]
    assert untouched.any() and not moved[0][untouched].any() and moved[1][untouched].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "rebar"}, "estimator: got 'rebar', expected one of relax"),
        ({"policy_space": "triples"}, "policy_space: got 'triples'"),
        ({"preset": "official", "draws": "image"}, "draws: got 'image', but the official preset"),
        ({"preset": "official", "policy_space": "slots"}, "policy_space: got 'slots', but the official"),
        ({"temperature": (0.5, 0.0)}, "expected two numbers above 0"),
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
