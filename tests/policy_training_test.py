"""The training step of the evaluations: order of augmentations, copies, devices, and the exact test."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import policies
from dada.models import layers
from dada.training import policy_training, sgd

BATCH, SIZE, CLASSES = 16, 8, 3
PLAIN = {"crop_padding": 0, "flip": False, "cutout_length": 0, "mean": (0.0,) * 3, "std": (1.0,) * 3}


def linear(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """The smallest network; its statistics count the training steps."""
    del key, axis_name
    logits = images.reshape(images.shape[0], -1) @ params["weight"] + params["bias"]
    return logits, {"steps": batch_stats["steps"] + (1.0 if is_training else 0.0)}


def normed(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """A convolution, batch norm, and the means of its three channels as logits."""
    del key
    hidden = layers.conv(params["stem"], images)
    hidden, stats = layers.batch_norm(
        params["norm"], batch_stats, hidden, is_training, momentum=0.1, axis_name=axis_name
    )
    return layers.global_average_pool(jax.nn.relu(hidden)), stats


def normed_state():
    norm, stats = layers.init_batch_norm(3)
    params = {"stem": layers.init_conv(jax.random.key(0), 3, 3, 3), "norm": norm}
    return sgd.init(params, stats)


def linear_state(seed=0):
    weight = 0.1 * jax.random.normal(jax.random.key(seed), (SIZE * SIZE * 3, CLASSES))
    params = {"weight": weight, "bias": jnp.zeros(CLASSES)}
    return sgd.init(params, {"steps": jnp.zeros(())})


def config(found=None, apply=linear, **changes):
    return policy_training.Config(apply, found or policies.identity(), steps_per_epoch=4, **changes)


def data(count=BATCH, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, SIZE, SIZE, 3)).astype(np.uint8)
    return jnp.asarray(images), jnp.asarray(generator.integers(0, CLASSES, count), jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def step(settings, state, key, images, labels):
    return policy_training.step(key, settings, state, images, labels)


def show(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """A network whose statistics are its input."""
    logits, _ = linear(params, {"steps": 0.0}, images, is_training)
    return logits, {"images": images}


def inputs(settings, images):
    """What the network sees of a batch."""
    settings = dataclasses.replace(settings, apply=show)
    labels = jnp.zeros(len(images), jnp.int32)
    state, _ = step(settings, linear_state(), jax.random.key(0), images, labels)
    return np.asarray(state.batch_stats["images"])


def always(*names):
    return policies.from_sequences("dada", [[(name, 1.0, 0.5) for name in names]])


def test_the_policy_comes_before_or_after_the_crop():
    images = jnp.full((BATCH, SIZE, SIZE, 3), 55, jnp.uint8)
    settings = {**PLAIN, "crop_padding": 4}
    # The crop brings in black; Invert after it makes that white, Invert before it leaves it black.
    after = inputs(config(always("Invert"), **settings), images)
    first = inputs(config(always("Invert"), policy_position="first", **settings), images)
    assert set(np.unique(np.round(255 * after))) == {200.0, 255.0}
    assert set(np.unique(np.round(255 * first))) == {0.0, 200.0}
    np.testing.assert_array_equal(after == 1.0, first == 0.0)


def test_colour_jitter_and_lighting_come_after_the_policy():
    images, _ = data()
    jitter = {**PLAIN, "color_jitter": 0.4}
    plain, inverted = config(**jitter), config(always("Invert"), **jitter)
    plain, after = inputs(plain, images), inputs(inverted, 255 - images)
    np.testing.assert_array_equal(after, plain)
    assert np.any(inputs(inverted, images) != 1 - plain)
    shift = inputs(config(lighting=0.1, **jitter), images) - plain
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-6 and np.all(np.abs(shift).max((1, 2, 3)) > 0)


def test_flip_normalise_and_cutout_follow():
    images, _ = data()
    settings = config(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2), crop_padding=0, cutout_length=4)
    got = inputs(settings, images)
    # Cut out is the mean colour, zero, and not black.
    covered = np.all(got == 0.0, axis=-1)
    assert covered.sum(axis=(1, 2)).min() >= 2 * 2 and covered.sum(axis=(1, 2)).max() <= 4 * 4
    expected = (np.asarray(images) / 255 - np.array(settings.mean)) / np.array(settings.std)
    kept = ~covered[..., None]
    is_same = [np.allclose(g[k[..., 0]], e[k[..., 0]], atol=1e-5) for g, e, k in zip(got, expected, kept)]
    mirrored = expected[:, :, ::-1]
    is_flipped = [np.allclose(g[k[..., 0]], m[k[..., 0]], atol=1e-5) for g, m, k in zip(got, mirrored, kept)]
    assert all(a != b for a, b in zip(is_same, is_flipped)) and 0 < sum(is_flipped) < BATCH


def test_a_schedule_policy_is_stretched_over_the_training():
    one = np.eye(2)
    content = policies.Schedule(
        row=np.array([6, 8], np.int32),  # Invert, and Solarize, which at level 1 changes nothing
        level=np.array([0.5, 1.0]),
        p_tp=np.ones(2),
        p_o=one,
        num_ops=1,
    )
    found = policies.Policy("schedule", "dada", (), content)
    images, labels = data()
    state, settings = linear_state(), config(found, num_epochs=8, **PLAIN)
    plain = config(num_epochs=8, **PLAIN)
    for updates, is_inverted in ((0, True), (15, True), (16, False), (31, False), (40, False)):
        now = state._replace(step=jnp.int32(updates))
        key = jax.random.key(1)
        _, metrics = step(settings, now, key, images, labels)
        _, inverted = step(plain, now, key, 255 - images, labels)
        assert (float(metrics["loss"]) == float(inverted["loss"])) == is_inverted, updates


def test_copies_of_an_image_have_augmentations_of_their_own():
    images, labels = data()
    state = linear_state()
    alike = step(config(**PLAIN), state, jax.random.key(0), images, labels)
    copies = step(config(batch_augmentation=3, **PLAIN), state, jax.random.key(0), images, labels)
    # Without randomness three copies are three times the same image.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), alike, copies)
    seen = inputs(config(batch_augmentation=3, cutout_length=4), images)
    groups = seen.reshape(BATCH, 3, SIZE, SIZE, 3)
    different = [np.any(group[0] != group[1]) and np.any(group[1] != group[2]) for group in groups]
    assert np.mean(different) > 0.8


def test_the_rate_of_each_update_is_that_of_its_real_valued_epoch():
    settings = config(
        num_epochs=200, learning_rate=0.1, warmup_epochs=5, warmup_multiplier=4.0, weight_decay=0.0, **PLAIN
    )
    for updates, expected in ((0, 0.1), (10, 0.25), (20, 0.4), (400, 0.2157)):
        np.testing.assert_allclose(policy_training.learning_rate(settings, updates), expected, rtol=1e-4)
    steps = dataclasses.replace(settings, schedule="step", decay_epochs=(90.0, 180.0))
    for updates, expected in ((379, 0.4), (380, 0.04), (740, 0.004)):  # epoch 95 is 90 of the inner clock
        np.testing.assert_allclose(policy_training.learning_rate(steps, updates), expected, rtol=1e-5)
    images, labels = data()
    state = linear_state()._replace(step=jnp.int32(10))
    _, metrics = step(settings, state, jax.random.key(0), images, labels)
    np.testing.assert_allclose(metrics["learning_rate"], 0.25)


def test_one_and_eight_devices_take_the_same_step():
    settings = config(policies.load("dada_cifar10"), normed, cutout_length=4)
    images, labels = data()
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.device_put((images, labels), jax.NamedSharding(mesh, jax.P("device")))
    expected = step(settings, normed_state(), jax.random.key(3), images, labels)
    actual = step(settings, normed_state(), jax.random.key(3), *divided)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)
    assert float(expected[1]["loss"]) > 0.0


def test_bfloat16_computes_coarsely_and_keeps_float32():
    settings = config(weight_decay=0.0, **PLAIN)
    images, labels = data()
    in_bfloat16 = dataclasses.replace(settings, dtype="bfloat16")
    exact, exact_metrics = step(settings, linear_state(), jax.random.key(0), images, labels)
    coarse, metrics = step(in_bfloat16, linear_state(), jax.random.key(0), images, labels)
    assert metrics["loss"] != exact_metrics["loss"]
    np.testing.assert_allclose(metrics["loss"], exact_metrics["loss"], rtol=0.02)
    flat = [jnp.concatenate([x.ravel() for x in jax.tree.leaves(s.momentum)]) for s in (exact, coarse)]
    cosine = jnp.dot(*flat) / jnp.linalg.norm(flat[0]) / jnp.linalg.norm(flat[1])
    assert 0.999 < cosine < 0.9999999
    in_bfloat16 = dataclasses.replace(in_bfloat16, apply=normed)
    normed_result, _ = step(in_bfloat16, normed_state(), jax.random.key(0), images, labels)
    for result in (coarse, normed_result):
        assert {leaf.dtype.name for leaf in jax.tree.leaves(result)} == {"float32", "int32"}


def test_weight_decay_can_spare_batch_norm():
    settings = config(apply=normed, weight_decay=0.5, **PLAIN)
    images, labels = data()
    momenta = [
        step(s, normed_state(), jax.random.key(0), images, labels)[0].momentum
        for s in (
            settings,
            dataclasses.replace(settings, decay_batch_norm=False),
            dataclasses.replace(settings, weight_decay=0.0),
        )
    ]
    everywhere, spared, none = momenta
    np.testing.assert_array_equal(spared["norm"]["scale"], none["norm"]["scale"])
    np.testing.assert_allclose(everywhere["norm"]["scale"], none["norm"]["scale"] + 0.5, rtol=1e-6)
    np.testing.assert_array_equal(spared["stem"]["bias"], everywhere["stem"]["bias"])
    assert np.any(spared["stem"]["weight"] != none["stem"]["weight"])


@pytest.mark.parametrize("batch_size", [1, 5, 7, 21, 100])
def test_the_test_counts_every_image_once(batch_size):
    settings, state = config(**PLAIN), linear_state()
    images, labels = data(21)
    result = policy_training.evaluate(settings, state, images, labels, batch_size)
    logits, _ = linear(state.params, state.batch_stats, images / 255.0, False)
    assert int(result["num_right"]) == int(np.sum(np.argmax(logits, -1) == labels))
    expected = np.asarray(sgd.cross_entropy(logits, labels), np.float64).mean()
    np.testing.assert_allclose(result["loss"], expected, rtol=1e-5)


def test_top_5_counts_the_five_largest_logits():
    images, _ = data(21)
    labels = jnp.asarray(np.random.default_rng(3).integers(0, 9, 21), jnp.int32)
    weight = jax.random.normal(jax.random.key(0), (SIZE * SIZE * 3, 9))
    state = sgd.init({"weight": weight, "bias": jnp.zeros(9)}, {"steps": jnp.zeros(())})
    result = policy_training.evaluate(config(**PLAIN), state, images, labels, 10)
    logits, _ = linear(state.params, state.batch_stats, images / 255.0, False)
    ranks = np.sum(np.asarray(logits) > np.asarray(logits)[np.arange(21), labels][:, None], axis=1)
    assert 0 < np.sum(ranks < 1) < np.sum(ranks < 5) < 21
    assert int(result["num_right_top_5"]) == np.sum(ranks < 5)
    assert int(result["num_right"]) == np.sum(ranks < 1)


def test_the_test_uses_the_running_statistics():
    settings = config(apply=normed, **PLAIN)
    images, labels = data(12)
    stats = {"mean": jnp.array([0.1, 0.2, 0.3]), "variance": jnp.array([2.0, 3.0, 4.0])}
    state = normed_state()._replace(batch_stats=stats)
    result = policy_training.evaluate(settings, state, images, labels, 5)
    logits, _ = normed(state.params, stats, images / 255.0, False)
    np.testing.assert_allclose(result["loss"], sgd.cross_entropy(logits, labels).mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy_position": "last"}, "policy_position: got 'last'"),
        ({"schedule": "linear"}, "schedule: got 'linear'"),
        ({"schedule": "step"}, "decay_epochs: got none"),
        ({"dtype": "float16"}, "dtype: got 'float16'"),
        ({"label_smoothing": 1.5}, "label_smoothing: got 1.5"),
        ({"batch_augmentation": 0}, "batch_augmentation: got 0"),
        ({"warmup_multiplier": 4.0}, "warm-up: got multiplier 4.0 over 0"),
    ],
)
def test_recipes_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
