"""DDAS on small networks: its gradients are those of autodiff, and it finds a planted op."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_jit

from dada import (
    ddas_candidates,
    ddas_config,
    ddas_gradient,
    ddas_input,
    ddas_schedule,
    ddas_search,
    layers,
    op_table,
    policy,
    sampling,
    train_state,
)
from dada.ddas_gradient import Parameters

SIZE, BATCH, CLASSES = 8, 16, 3
FULL = op_table.search_space("ddas_sanity")
# Few ops, so that the step compiles quickly and a planted op is tried often.
OPS = ("Identity", "FlipUD", "Invert", "Brightness")
SPACE = FULL._replace(rows=tuple(row for row in FULL.rows if row.name in OPS))
CANDIDATES = ddas_candidates.Candidates((0, 1, 2, 3), (0.0, 0.0, 0.0, 0.02))


def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """3x3 convolution, batch norm, softplus, pooling, linear: images of a batch depend on each other."""
    del key
    features = jax.lax.conv_general_dilated(
        images, params["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    features, batch_stats = layers.batch_norm(
        params["norm"], batch_stats, features, is_training, momentum=0.1, axis_name=axis_name
    )
    features = jax.nn.softplus(features)
    pooled = jnp.concatenate([features.mean((1, 2)), features[:, 1, 1]], -1)
    return pooled @ params["weight"] + params["bias"], batch_stats


def network(key=0):
    keys = jax.random.split(jax.random.key(key))
    norm, stats = layers.init_batch_norm(6)
    params = {
        "kernel": 0.4 * jax.random.normal(keys[0], (3, 3, 3, 6)),
        "norm": norm,
        "weight": 0.3 * jax.random.normal(keys[1], (12, CLASSES)),
        "bias": jnp.zeros(CLASSES),
    }
    return params, stats


def batch(seed, size=BATCH):
    """Bright squares on dark ground; the place of the square is the class."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, size)
    images = generator.integers(0, 60, (size, SIZE, SIZE, 3))
    for image, label in zip(images, labels):
        image[1:5, 2 * label : 2 * label + 3] += 150
    return train_state.Batch(jnp.asarray(images, jnp.uint8), jnp.asarray(labels, jnp.int32))


def full(settings):
    """The same candidates as rows of a space that has a name, for extraction."""
    names = [row.name for row in FULL.rows]
    rows = tuple(names.index(name) for name in OPS)
    candidates = settings.candidates._replace(row=rows)
    return dataclasses.replace(settings, space=FULL, candidates=candidates)


def config(**changes):
    settings = {
        **{"apply": apply, "space": SPACE, "candidates": CANDIDATES, "steps_per_epoch": 4, "num_epochs": 3},
        **{"crop_padding": 1, "flip": True, "cutout_length": 2, "learning_rate": 0.1},
        **(ddas_config.OFFICIAL_SETTINGS if changes.get("preset") == "official" else {}),
        **changes,
    }
    return ddas_config.Config(**settings)


def start(settings, seed=0, spread=0.5):
    """A state with a policy away from its symmetric start."""
    state = ddas_search.init(jax.random.key(seed), settings, *network())
    alpha = spread * jax.random.normal(jax.random.key(9), state.policy.p_o.shape)
    return state._replace(policy=state.policy._replace(p_o=alpha))


@functools.partial(quick_jit.jit, static_argnums=0)
def jitted_step(settings, state, train, valid):
    return ddas_search.step(settings, state, train, valid)


@functools.partial(quick_jit.jit, static_argnums=0)
def jitted_gradients(settings, state, train, valid, policies=None):
    return ddas_search.gradients(settings, state, train, valid, policies=policies)


jitted_copies = quick_jit.jit(ddas_input.copies, static_argnums=1)


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

        @quick_jit.jit
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
        return train_state.cross_entropy(apply(params, stats, images, True)[0], labels), ()

    shares = jnp.array([[0.5, 0.2, 0.3]])
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    @functools.partial(quick_jit.jit, static_argnums=1)
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
        weights = quick_jit.jit(ddas_gradient.policy_weights)(parameters, policies)
        np.testing.assert_allclose(weights, p, rtol=1e-12)
        c = jax.random.normal(jax.random.key(1), p.shape, jnp.float64)

        def expectation(parameters):
            p = jnp.prod(jax.nn.softmax(parameters.p_o)[policies], -1)
            return jax.nn.sigmoid(parameters.p_tp) * jnp.sum(c * p) / jnp.sum(jnp.abs(c))

        expected = quick_jit.jit(jax.grad(expectation))(parameters)
        found = quick_jit.jit(ddas_gradient.policy_gradient)(parameters, policies, c)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), found, expected)


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
        return jnp.mean(train_state.cross_entropy(logits, labels))

    def unrolled(parameters):
        p_tp, p_o = jax.nn.sigmoid(parameters.p_tp), jax.nn.softmax(parameters.p_o)
        p = jnp.prod(p_o[policies[0]], -1)
        total = lambda params: (1 - p_tp) * mean_loss(params, copies[0], labels) + p_tp * sum(  # noqa: E731
            p[index] * mean_loss(params, copies[1 + index], labels) for index in range(4)
        )
        return train_state.sgd_update(
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
    (value, params), expected = quick_jit.jit(jax.value_and_grad(loss, has_aux=True))(state.policy)
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
    settings = config(candidates=ddas_candidates.Candidates((0, 0), (0.0, 0.0)), draws="batch")
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
    divided = jax.pmap(
        functools.partial(ddas_search.gradients, settings, axis_name="devices"),
        "devices",
        in_axes=(None, 0, 0),
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
    texts = [policy.to_json(ddas_search.extract_policy(full(settings), state)) for state in last]
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
    with pytest.raises(ValueError, match="space: got rows Identity, FlipUD"):
        ddas_search.extract_policy(settings, states[-1])
    held = ddas_schedule.freeze(found, p_o=True)
    np.testing.assert_array_equal(held.content.p_o, found.content.p_o[[-1, -1]])
    np.testing.assert_array_equal(held.content.p_tp, found.content.p_tp)


def test_p_tp_can_be_fixed():
    settings = config(initial_p_tp=1.0, learn_p_tp=False)  # its logit is infinite
    states, metrics = run(settings, 2, batch(1), batch(0))
    assert metrics["p_tp"] == 1.0
    assert np.all(np.isfinite(states[-1].policy.p_o)) and np.any(states[-1].policy.p_o != 0)


def test_mean_filter_looks_ahead():
    np.testing.assert_allclose(ddas_schedule.smooth(np.array([1.0, 2.0, 6.0, 7.0]), 2), [1.5, 4, 6.5, 6.5])
    np.testing.assert_allclose(ddas_schedule.smooth(np.array([1.0, 2.0]), 1), [1, 2])
    np.testing.assert_allclose(ddas_schedule.smooth(np.array([1.0, 2.0]), 6), [1.5, 1.5])


@pytest.mark.parametrize(
    ("name", "count"), [("ddas", 52), ("ddas_imagenet", 32), ("ddas_68", 68), ("ddas_sanity", 19)]
)
def test_candidates_have_the_values_of_the_formulas(name, count):
    space = op_table.search_space(name)
    found = ddas_candidates.candidates(space)
    assert len(found.row) == len(found.level) == count
    ones = np.ones(count, np.float32)
    value = np.asarray(op_table.level_to_value(space, np.array(found.row), np.float32(found.level), ones))
    position = 0
    for row in space.rows:
        for m in ddas_candidates.MAGNITUDES[name] if row.unit else (0.0,):
            assert space.rows[found.row[position]] == row
            expected = {
                "degrees": int(3.0 * m),
                "bits": max(0, 4 - int(0.4 * m)),
                "shear": np.float32(0.03 * m),
                "pixels": int(2 * m) if row.name == "CutoutAbs" else int(m),
                "threshold": max(0, 256 - int(25.6 * m)),
                "factor": np.float32(0.18 * m + 0.1),
                "": 0.0,
            }[row.unit]
            if row.unit in ("shear", "factor"):
                np.testing.assert_allclose(value[position], expected, rtol=3e-7)
            else:
                assert value[position] == expected, (row.name, m)
            position += 1
    if name != "ddas_sanity":
        released = ddas_candidates.as_released(space)
        values = op_table.level_to_value(space, np.array(released.row), np.float32(released.level), ones)
        kinds = {(row, round(float(x), 4)) for row, x in zip(released.row, values) if space.rows[row].unit}
        assert len(kinds) == len([row for row in space.rows if row.unit])
        units = {(space.rows[row].unit, value) for row, value in kinds}
        assert units >= {("degrees", 84), ("bits", 0), ("factor", 5.14), ("pixels", 28)}


def test_at_magnitude_5_enhancers_do_nothing():
    image = jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3)) / 255, jnp.float32)
    for row, level in list(zip(*ddas_candidates.candidates(FULL)))[-4:]:
        assert FULL.rows[row].unit == "factor"
        value = op_table.level_to_value(FULL, np.array(row), np.float32(level), np.float32(1))
        after = op_table.apply_op(FULL.rows[row].name, image, value, jnp.zeros(2))
        np.testing.assert_array_equal(after, image)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "released"}, "preset: got 'released', expected one of corrected, official"),
        ({"draws": "copy"}, "draws: got 'copy'"),
        ({"preset": "official", "draws": "image"}, "the official preset has only batch"),
        ({"num_ops": 0}, "num_ops: got 0, expected 1 or more"),
        ({"initial_p_tp": 1.0}, r"initial_p_tp: got 1.0, expected a number in \(0, 1\)"),
        ({"initial_p_tp": 1.5, "learn_p_tp": False}, r"initial_p_tp: got 1.5, expected a number in \[0, 1\]"),
        ({"candidates": ddas_candidates.Candidates((99,), (0.0,))}, r"candidates: got rows \(99,\)"),
    ],
)
def test_bad_settings_say_what_is_allowed(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_other_bad_input():
    strength = op_table.search_space("strength")
    for magnitudes in ((), (0.5, 0.5), (1.5,)):
        with pytest.raises(ValueError, match="magnitudes: got"):
            ddas_candidates.candidates(strength, magnitudes)
    with pytest.raises(ValueError, match="the released code has only ddas"):
        ddas_candidates.as_released(strength)
    with pytest.raises(ValueError, match="expected 'schedule' to freeze"):
        ddas_schedule.freeze(policy.identity())
    settings = config()
    good = batch(0)
    for bad in (
        good._replace(images=good.images.astype(jnp.float32)),
        good._replace(images=good.images[0]),
        good._replace(labels=good.labels[:3]),
    ):
        with pytest.raises(AssertionError):
            ddas_search.step(settings, start(settings), bad, good)
