"""SGD against PyTorch's formulas in numpy, and losses by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.training import sgd


def _tree(random):
    return {"weight": random.standard_normal((3, 2)), "bias": [random.standard_normal(2)]}


def _float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def test_init_has_zero_momentum_and_an_integer_step():
    params = _float32(_tree(np.random.RandomState(0)))
    state = sgd.init(params, {"mean": jnp.ones(2)})
    assert state.step.dtype == jnp.int32 and state.step == 0
    assert jax.tree.structure(state.momentum) == jax.tree.structure(params)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.momentum))
    assert state.params is params and np.all(state.batch_stats["mean"] == 1)


@pytest.mark.parametrize(
    ("nesterov", "clip_norm", "theta", "momentum"),
    [
        # h = 4 + 0.5 * 2 = 5; B' = 0.9 * 10 + 5 = 14; theta' = 2 - 0.1 * 14.
        (False, None, 0.6, 14.0),
        # The direction is 5 + 0.9 * 14 = 17.6.
        (True, None, 0.24, 14.0),
        # The gradient is clipped from 4 to 2, the decay is added after: h = 3, B' = 12.
        (False, 2.0, 0.8, 12.0),
    ],
)
def test_one_update_by_hand(nesterov, clip_norm, theta, momentum):
    actual = sgd.sgd_update(
        jnp.array(2.0),
        jnp.array(10.0),
        jnp.array(4.0),
        learning_rate=0.1,
        weight_decay=0.5,
        clip_norm=clip_norm,
        nesterov=nesterov,
    )
    np.testing.assert_allclose(actual, (theta, momentum), rtol=2e-6)


def _torch_sgd(params, buffers, gradients, rate, decay, mu, clip_norm, nesterov):
    """torch.nn.utils.clip_grad_norm_ and torch.optim.SGD on lists of arrays; buffers None at first."""
    if clip_norm is not None:
        norm = np.sqrt(sum(np.sum(g**2) for g in gradients))
        coefficient = clip_norm / (norm + 1e-6)
        if coefficient < 1:
            gradients = [g * coefficient for g in gradients]
    new_params, new_buffers = [], []
    for index, (p, g) in enumerate(zip(params, gradients)):
        d = g + decay * p
        b = d.copy() if buffers is None else mu * buffers[index] + d
        new_buffers.append(b)
        new_params.append(p - rate * (d + mu * b if nesterov else b))
    return new_params, new_buffers


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("clip_norm", [None, 0.7, 100.0])
@pytest.mark.parametrize("momentum_decay", [0.9, 0.0])
def test_three_steps_equal_torch(nesterov, clip_norm, momentum_decay):
    random = np.random.RandomState(0)
    tree = _tree(random)
    leaves, structure = jax.tree.flatten(tree)
    buffers = None
    with jax.enable_x64(True):
        params = jax.tree.map(jnp.asarray, tree)
        momentum = sgd.init(params, {}).momentum
        for rate in (0.1, 0.05, 0.2):
            gradient = _tree(random)
            leaves, buffers = _torch_sgd(
                leaves, buffers, jax.tree.leaves(gradient), rate, 5e-2, momentum_decay, clip_norm, nesterov
            )
            params, momentum = sgd.sgd_update(
                params,
                momentum,
                gradient,
                learning_rate=rate,
                weight_decay=5e-2,
                momentum_decay=momentum_decay,
                clip_norm=clip_norm,
                nesterov=nesterov,
            )
        assert jax.tree.structure(params) == structure
        for actual, expected in zip(jax.tree.leaves((params, momentum)), leaves + buffers):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, expected, rtol=1e-12)


def test_clip_scales_the_whole_gradient_to_the_norm_and_no_further():
    zeros = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    gradient = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([4.0])}
    update = functools.partial(sgd.sgd_update, zeros, zeros, learning_rate=1.0, weight_decay=0.0)
    for clip_norm, factor in [(1.0, 1 / 5.000001), (5.0, 5 / 5.000001), (5.1, 1.0)]:
        _, clipped = update(gradient, clip_norm=clip_norm)
        np.testing.assert_allclose(clipped["a"], [3 * factor, 0], rtol=1e-7)
        np.testing.assert_allclose(clipped["b"], [4 * factor], rtol=1e-7)
    for clip_norm in (0.0, -1.0):
        with pytest.raises(ValueError, match="expected clip_norm above 0 or None, got"):
            update(gradient, clip_norm=clip_norm)


def test_clip_is_differentiable_also_at_a_zero_gradient():
    def stepped(scale, gradient):
        params, _ = sgd.sgd_update(
            jnp.zeros(2), jnp.zeros(2), scale * gradient, learning_rate=1.0, weight_decay=0.0, clip_norm=1.0
        )
        return params

    # Not clipped: d(-s g)/ds = -g. Clipped: the direction is fixed, the length too.
    gradient = jnp.array([0.3, 0.4])
    of_scale = jax.jit(jax.jacrev(stepped))
    np.testing.assert_allclose(of_scale(1.0, gradient), -gradient, rtol=1e-6)
    np.testing.assert_allclose(of_scale(9.0, gradient), [0, 0], atol=1e-5)
    of_gradient = jax.jit(jax.jacrev(stepped, argnums=1))
    np.testing.assert_allclose(of_gradient(1.0, jnp.zeros(2)), -np.eye(2), rtol=1e-6)


def test_dtype_of_the_parameters_is_kept():
    with jax.enable_x64(True):
        params = jnp.ones(3, jnp.float32)
        new_params, momentum = sgd.sgd_update(
            params,
            params,
            params,
            learning_rate=jnp.asarray(0.1, jnp.float64),
            weight_decay=jnp.asarray(0.1, jnp.float64),
            clip_norm=1.0,
            nesterov=True,
        )
        assert new_params.dtype == momentum.dtype == np.float32


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[1.0, 2.0, 5.0], [4.0, 4.0, 2.0]]))
    actual = sgd.cross_entropy(logits, jnp.array([2, 0]))
    np.testing.assert_allclose(actual, -np.log([0.625, 0.4]), rtol=1e-6)
    # Large logits neither overflow nor lose the difference.
    large = jnp.array([[1e4, 1e4 - 2.0], [-1e4, 1e4]])
    actual = sgd.cross_entropy(large, jnp.array([1, 0]))
    np.testing.assert_allclose(actual, [2 + np.log1p(np.exp(-2.0)), 2e4], rtol=1e-6)


def test_cross_entropy_derivatives():
    random = np.random.RandomState(0)
    with jax.enable_x64(True):
        logits, labels = random.standard_normal((4, 5)), np.array([0, 4, 2, 2])

        def loss(logits):
            return sgd.cross_entropy(logits, labels).sum()

        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        expected = probabilities - np.eye(5)[labels]
        np.testing.assert_allclose(jax.jit(jax.grad(loss))(logits), expected, rtol=1e-10)
        # Hessian of one example: diag(p) - p p^T, by either nesting.
        p = probabilities[0]
        for outer, inner in [(jax.jacrev, jax.jacfwd), (jax.jacfwd, jax.jacrev)]:
            hessian = jax.jit(outer(inner(loss)))(logits)[0, :, 0]
            np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-12)


@pytest.mark.parametrize("label", [-1, 3])
def test_label_out_of_range_gives_nan_for_its_example_only(label):
    losses = sgd.cross_entropy(jnp.zeros((2, 3)), jnp.array([label, 0]))
    assert np.isnan(losses[0]) and np.isfinite(losses[1])


def test_accuracy():
    logits = jnp.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
    assert sgd.accuracy(logits, jnp.array([1, 0, 0, 0])) == 0.75


def test_bad_labels_are_named():
    logits = jnp.zeros((2, 3))
    for function in (sgd.cross_entropy, sgd.accuracy):
        with pytest.raises(TypeError, match="expected integer labels, got dtype float32"):
            function(logits, jnp.zeros(2))
        with pytest.raises(ValueError, match=r"got \(2, 3\) and \(3,\)"):
            function(logits, jnp.zeros(3, jnp.int32))
        with pytest.raises(ValueError, match=r"got \(3,\) and \(2,\)"):
            function(logits[0], jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_is_cross_entropy_with_a_softened_target(smoothing):
    random = np.random.RandomState(0)
    logits, labels = random.standard_normal((6, 4)), random.randint(0, 4, 6)
    target = (1 - smoothing) * np.eye(4)[labels] + smoothing / 4
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    actual = sgd.cross_entropy(
        jnp.asarray(logits, jnp.float32), jnp.asarray(labels), label_smoothing=smoothing
    )
    np.testing.assert_allclose(actual, -(target * log_probability).sum(-1), rtol=1e-5)


def test_weight_decay_may_differ_between_parameters():
    params = _float32(_tree(np.random.RandomState(0)))
    zeros = jax.tree.map(jnp.zeros_like, params)
    _, momentum = sgd.sgd_update(
        params, zeros, zeros, learning_rate=1.0, weight_decay={"weight": 0.5, "bias": 0.0}
    )
    np.testing.assert_allclose(momentum["weight"], 0.5 * params["weight"])
    np.testing.assert_array_equal(momentum["bias"][0], 0.0)
