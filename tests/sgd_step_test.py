"""The training step: loss, gradient and update, what it learns, and the same on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.models import layers, wide_resnet
from dada.training import sgd


def _linear_apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """The smallest network: logits linear in the pixels."""
    del is_training, key, axis_name
    return images.reshape(images.shape[0], -1) @ params["weight"] + params["bias"], batch_stats


def _float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def test_train_step_is_loss_gradient_and_update():
    random = np.random.RandomState(0)
    params = _float32({"weight": random.standard_normal((12, 3)), "bias": np.zeros(3)})
    images = jnp.asarray(random.standard_normal((6, 2, 2, 3)), jnp.float32)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    state = sgd.init(params, {})
    step = jax.jit(functools.partial(sgd.train_step, _linear_apply, weight_decay=0.01))
    for _ in range(2):
        logits = _linear_apply(state.params, {}, images, True)[0]
        error = (jax.nn.softmax(logits) - jnp.eye(3)[labels]) / 6
        gradient = {"weight": images.reshape(6, -1).T @ error, "bias": error.sum(0)}
        expected = sgd.sgd_update(
            state.params, state.momentum, gradient, learning_rate=0.5, weight_decay=0.01
        )
        new_state, metrics = step(state, images, labels, 0.5)
        np.testing.assert_allclose(
            metrics["loss"], -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(6), labels]), rtol=1e-5
        )
        assert metrics["accuracy"] == jnp.mean(logits.argmax(1) == labels)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            (new_state.params, new_state.momentum),
            expected,
        )
        assert new_state.step == state.step + 1
        state = new_state


def test_key_reaches_the_network():
    def apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
        noise = jax.random.normal(key, (images.shape[0], 1))
        return noise * params["weight"] + jnp.zeros((1, 3)), batch_stats

    step = functools.partial(
        sgd.train_step,
        apply,
        sgd.init({"weight": jnp.arange(3.0)}, {}),
        jnp.zeros((4, 2, 2, 3)),
        jnp.zeros(4, jnp.int32),
        0.1,
        weight_decay=0.0,
    )
    loss = jax.jit(lambda key: step(key=key)[1]["loss"])
    losses = [float(loss(jax.random.key(seed))) for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def _separable_problem():
    """32 images of two classes, told apart by which half is brighter."""
    random = np.random.RandomState(0)
    labels = np.arange(32) % 2
    images = 0.5 * random.standard_normal((32, 8, 8, 3))
    images[labels == 0, :4] += 1.0
    images[labels == 1, 4:] += 1.0
    return jnp.asarray(images, jnp.float32), jnp.asarray(labels, jnp.int32)


def test_training_goes_down_and_evaluation_sees_it():
    images, labels = _separable_problem()
    step = jax.jit(
        functools.partial(sgd.train_step, wide_resnet.apply, weight_decay=5e-4, clip_norm=5.0, nesterov=True)
    )
    evaluate = jax.jit(wide_resnet.apply, static_argnums=3)
    config = wide_resnet.Config(depth=10, width=1, num_classes=2)
    init = jax.jit(wide_resnet.init, static_argnums=1)
    state = sgd.init(*init(jax.random.key(0), config))
    before, _ = evaluate(state.params, state.batch_stats, images, False)
    losses = []
    for _ in range(15):
        state, metrics = step(state, images, labels, 0.1)
        losses.append(float(metrics["loss"]))
    after, _ = evaluate(state.params, state.batch_stats, images, False)
    assert state.step == 15
    assert losses[-1] < 0.1 * losses[0]
    assert sgd.cross_entropy(after, labels).mean() < 0.2 * sgd.cross_entropy(before, labels).mean()
    assert sgd.accuracy(after, labels) == 1.0


def _normed_apply(params, batch_stats, images, is_training, key=None, *, axis_name=None):
    """Convolution, batch norm, linear: the least that shows all that devices must exchange."""
    del key
    hidden, batch_stats = layers.batch_norm(
        params["norm"],
        batch_stats,
        layers.conv(params["conv"], images, stride=2),
        is_training,
        momentum=0.9,
        axis_name=axis_name,
    )
    hidden = layers.global_average_pool(jax.nn.relu(hidden))
    return layers.dense(params["dense"], hidden), batch_stats


@pytest.mark.parametrize("mapping", ["pmap", "shard_map", "shard_map_unchecked", "jit"])
def test_step_of_eight_devices_equals_one(mapping):
    images, labels = _separable_problem()
    # Four examples a device, sorted by class, so that no two devices have like batch statistics.
    order = jnp.argsort(labels)
    images, labels = images[order], labels[order]
    # No clipping here: it would hide a gradient that is eight times too large.
    step = functools.partial(sgd.train_step, _normed_apply, weight_decay=5e-4)
    norm, stats = layers.init_batch_norm(4)
    params = {
        "conv": layers.init_conv(jax.random.key(0), 3, 3, 4),
        "norm": norm,
        "dense": layers.init_dense(jax.random.key(1), 4, 2),
    }
    state = sgd.init(params, stats)

    expected = jax.jit(step)(state, images, labels, 0.1)
    part = functools.partial(step, axis_name="device")
    mesh = jax.make_mesh((8,), ("device",), axis_types=(jax.sharding.AxisType.Auto,))
    if mapping == "pmap":
        divided = jax.tree.map(lambda a: a.reshape(8, 4, *a.shape[1:]), (images, labels))
        all_devices = jax.pmap(part, axis_name="device", in_axes=(None, 0, 0, None))(state, *divided, 0.1)
        actual = jax.tree.map(lambda leaf: leaf[3], all_devices)
    elif mapping == "jit":
        sharding = jax.NamedSharding(mesh, jax.P("device"))
        actual = jax.jit(step)(state, *jax.device_put((images, labels), sharding), 0.1)
    else:
        actual = jax.jit(
            jax.shard_map(
                part,
                mesh=mesh,
                in_specs=(jax.P(), jax.P("device"), jax.P("device"), jax.P()),
                out_specs=jax.P(),
                check_vma=mapping == "shard_map",
            )
        )(state, images, labels, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), actual, expected)
