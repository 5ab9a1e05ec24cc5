"""Equal blocks that are scanned, as on accelerators, give what they give written out."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dada.models import pyramidnet, resnet, shake_shake, stages, wide_resnet
from dada.training import sgd

NETWORKS = {
    "wide_resnet": (wide_resnet, wide_resnet.Config(22, 1, 4)),  # three blocks in a stage
    "resnet": (resnet, resnet.Config(50, 4, 4, small_images=True)),
    "shake_shake": (shake_shake, shake_shake.Config(20, 4, 4)),
    "pyramidnet": (pyramidnet, pyramidnet.Config(29, 1, 4)),  # some of its blocks do not grow
}


def derivatives(module, params, stats, images, labels):
    """Logits and new statistics in training and evaluation, gradient, and its derivative along itself.

    The last of one network only: it takes most of the time to compile.
    """

    def loss(params):
        logits, new_stats = module.apply(params, stats, images, True, jax.random.key(1))
        return jnp.mean(sgd.cross_entropy(logits, labels)), (logits, new_stats)

    gradient, outputs = jax.grad(loss, has_aux=True)(params)
    tangent = ()
    if module is wide_resnet:
        tangent = jax.jvp(lambda params: jax.grad(loss, has_aux=True)(params)[0], (params,), (gradient,))[1]
    return outputs, module.apply(params, stats, images, False)[0], gradient, tangent


# ResNet's blocks go through the code of the others, and take longest to compile.
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "resnet" else ()) for name in NETWORKS]
)
def test_scanned_blocks_give_what_written_ones_give(name, monkeypatch):
    module, config = NETWORKS[name]
    params, stats = module.init(jax.random.key(0), config)
    images = jax.random.normal(jax.random.key(2), (4, 8, 8, 3))
    labels = jnp.arange(4)
    results = []
    for scans in (False, True):
        monkeypatch.setattr(stages, "_scans", lambda scans=scans: scans)
        traced = jax.jit(functools.partial(derivatives, module)).trace(params, stats, images, labels)
        assert (" scan[" in str(traced.jaxpr)) == scans
        results.append(traced.lower().compile()(params, stats, images, labels))
    for trees in zip(*results, strict=True):
        scale = max(
            (np.abs(leaf).max() for leaf in jax.tree.leaves(trees[0])), default=0.0
        )  # of a tangent, up to 1e10
        chex.assert_trees_all_close(*trees, rtol=0, atol=1e-4 * float(scale))
