"""Evidence for the hypergradients: closed forms, and differences of the loss that is differentiated.

Symbols as in `hypergradient`; everything in float64.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada.gradients import bilevel
from dada.models import wide_resnet
from dada.training import sgd

_RATE = 0.1  # eta, of the unrolled step


class HypergradientLine(NamedTuple):
    """|gradient - expected| / |expected|, in float64."""

    hypergradient: str
    relative_error: float
    limit: float
    passed: bool


def _line(name, gradient, expected, limit):
    error = float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
    return HypergradientLine(name, error, limit, error < limit)


def _descend(params, gradient):
    return jax.tree.map(lambda p, g: p - _RATE * g, params, gradient)


def quadratic_lines(seed: int) -> list[HypergradientLine]:
    """L = |A theta - B phi|^2 / 2 and V = |theta - t|^2 / 2, whose hypergradient is known.

    theta' = theta - eta A^T (A theta - B phi), so dV(theta')/dphi = eta B^T A (theta' - t).
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), 5)
        a, b = jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (6, 3))
        target, theta, phi = (jax.random.normal(key, (n,)) for key, n in zip(keys[2:], (4, 4, 3)))

        def losses(theta, phi):
            return 0.5 * (a @ theta - b @ phi) ** 2

        def train(theta, phi):
            return jnp.sum(losses(theta, phi))

        def valid(theta):
            return 0.5 * jnp.sum((theta - target) ** 2)

        def clipped_step(params, gradient):
            settings = {"learning_rate": _RATE, "weight_decay": 0.01, "clip_norm": 0.5}
            return sgd.sgd_update(params, jnp.linspace(-1.0, 1.0, 4), gradient, **settings)[0]

        residual = a @ theta - b @ phi
        direction = theta - _RATE * a.T @ residual - target  # v, the gradient of V at theta'
        closed_form = _RATE * b.T @ a @ direction
        step_form = jax.grad(lambda phi: valid(clipped_step(theta, a.T @ (a @ theta - b @ phi))))(phi)
        exact, difference = bilevel.exact_hypergradient, bilevel.finite_difference_hypergradient
        plain, clipped = ((train, valid, step, theta, phi) for step in (_descend, clipped_step))
        scores = bilevel.alignment(lambda theta: losses(theta, phi), theta, direction)
        return [
            _line("quadratic: score of every example", scores, residual * (a @ direction), 1e-12),
            _line("quadratic: exact", exact(*plain), closed_form, 1e-12),
            _line("quadratic: finite difference", difference(*plain), closed_form, 1e-9),
            _line("quadratic, momentum + decay + clip: exact", exact(*clipped), step_form, 1e-12),
        ]


def network_lines(seed: int) -> list[HypergradientLine]:
    """WRN-10-1 on 6 images of 8 x 8; the policy mixes three fixed transforms of every image."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), 4)
        network = wide_resnet.init(keys[0], wide_resnet.Config(10, 1, 5))
        params, stats = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), network)
        images, valid_images = (jax.random.normal(key, (6, 8, 8, 3)) for key in keys[1:3])
        labels, phi = jnp.arange(6) % 5, 0.3 * jax.random.normal(keys[3], (3,))
        views = jnp.stack([images, -images, images[:, ::-1]])

        def loss(theta, images):
            logits, _ = wide_resnet.apply(theta, stats, images, True)
            return jnp.mean(sgd.cross_entropy(logits, labels))

        def train(theta, phi):
            return loss(theta, jnp.einsum("k,kbhwc->bhwc", jax.nn.softmax(phi), views))

        def valid(theta):
            return loss(theta, valid_images)

        @jax.jit
        def hypergradients(phi):
            problem = train, valid, _descend, params, phi
            return (
                bilevel.exact_hypergradient(*problem),
                bilevel.finite_difference_hypergradient(*problem, radius=1e-6),
            )

        # Neither formula: the validation loss itself, one unrolled step later.
        unrolled = jax.jit(lambda phi: valid(_descend(params, jax.grad(train)(params, phi))))
        exact, difference = hypergradients(phi)
        moves = 1e-5 * jnp.eye(3)
        direct = np.array([(unrolled(phi + move) - unrolled(phi - move)) / 2e-5 for move in moves])
        return [
            _line("WRN-10-1: exact, to V(theta') differenced", exact, direct, 1e-5),
            _line("WRN-10-1: exact, to finite difference", exact, difference, 1e-5),
        ]


def hypergradient_lines(seed: int) -> Iterator[HypergradientLine]:
    """The lines of the quadratic problem, then those of the network."""
    yield from quadratic_lines(seed)
    yield from network_lines(seed)
