"""The WRN that the benchmark trains in PyTorch, which nothing needs: it is ours, and so is its update."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada import models
from dada.training import policy_training, sgd

torch = pytest.importorskip("torch")

from experiments.measure import benchmark_torch  # noqa: E402

NAMES = {"scale": "weight", "mean": "running_mean", "variance": "running_var"}
AXES = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}  # of our arrays in PyTorch's
SIZE = 8


def as_state_dict(trees):
    """(params, batch_stats) under the names and in the layout of PyTorch."""
    state = {}
    for place, leaf in jax.tree.leaves_with_path(trees):
        *parts, last = jax.tree_util.keystr(place[1:], simple=True, separator="/").split("/")
        array = np.array(leaf).transpose(AXES[leaf.ndim])
        state[".".join([*parts, NAMES.get(last, last)])] = torch.from_numpy(array)
    return state


def both(name, seed=0):
    """Our network and its weights, and PyTorch's with the same ones."""
    network, config = models.by_name(name, 10, SIZE)
    trees = network.init(jax.random.key(seed), config)
    other = benchmark_torch.WideResNet(config)
    state = as_state_dict(trees)
    assert set(state) == {key for key in other.state_dict() if "num_batches_tracked" not in key}
    other.load_state_dict(state, strict=False)
    return network, trees, other


def batch(seed, size=8):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(size, SIZE, SIZE, 3)).astype(np.float32)
    return images, generator.integers(0, 10, size).astype(np.int32)


def test_the_number_of_parameters():
    _, config = models.by_name("wrn_40_2", 10, SIZE)
    network = benchmark_torch.WideResNet(config)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_246_474


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.01)])
def test_both_networks_learn_the_same(dtype, tolerance, monkeypatch):
    monkeypatch.setattr(policy_training.Config, "clip_norm", 0.5)  # so small that it clips here
    network, trees, other = both("wrn_10_1")
    dtypes = set()
    other.stem.register_forward_hook(lambda _, inputs, outputs: dtypes.add(outputs.dtype))
    images, labels = batch(0)
    optimizer = benchmark_torch.sgd(other)
    state = sgd.init(*trees)
    recipe = policy_training.Config
    settings = {"weight_decay": recipe.weight_decay, "clip_norm": recipe.clip_norm, "nesterov": True}
    apply = policy_training.in_dtype(network.apply, dtype)
    theirs = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels).long()
    step = jax.jit(
        lambda state: sgd.train_step(apply, state, images, labels, recipe.learning_rate, **settings)
    )
    losses = []
    for _ in range(4):
        state, metrics = step(state)
        loss = benchmark_torch.train_step(other, optimizer, *theirs, dtype)
        losses.append((float(metrics["loss"]), float(loss)))
    ours, pytorch = np.array(losses).T
    np.testing.assert_allclose(pytorch, ours, rtol=tolerance)
    assert ours[-1] < 0.8 * ours[0]
    assert dtypes == {getattr(torch, dtype)} and other.stem.weight.dtype == torch.float32
    if dtype == "float32":
        found = other.state_dict()
        for name, expected in as_state_dict((state.params, state.batch_stats)).items():
            np.testing.assert_allclose(found[name], expected, rtol=1e-3, atol=1e-4, err_msg=name)
        other.eval()
        logits, _ = network.apply(state.params, state.batch_stats, jnp.asarray(images), False)
        np.testing.assert_allclose(other(theirs[0]).detach(), logits, rtol=1e-3, atol=1e-3)


def test_steps_to_be_timed():
    steps = benchmark_torch.training_steps("wrn_10_1", "float32", 10, SIZE, 4, 0)
    assert steps() is None
    text = benchmark_torch.training_steps("resnet_18", "float32", 10, SIZE, 4, 0)
    assert text == "not run: another network than WRN"
