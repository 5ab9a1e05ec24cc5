"""Evidence for the hypergradients: closed forms, and differences of the loss that is differentiated.

Symbols as in `bilevel`; everything in float64.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dada.gradients import bilevel
from dada.models import wide_resnet
from dada.training import sgd

RATE = 0.1  # eta, of the unrolled step


class HypergradientLine(NamedTuple):
    """|gradient - expected| / |expected|, in float64."""

    hypergradient: str
    relative_error: float
    limit: float
    passed: bool


class Quadratic(NamedTuple):
    """L = |A theta - B phi|^2 / 2 and V = |theta - t|^2 / 2 in float64, and what follows by hand."""

    losses: Callable[[jax.Array, jax.Array], jax.Array]  # (theta, phi) -> [6], whose sum is L
    train: Callable[[jax.Array, jax.Array], jax.Array]  # L
    valid: Callable[[jax.Array], jax.Array]  # V
    theta: jax.Array
    phi: jax.Array
    valid_gradient: jax.Array  # v = theta' - t, with theta' = theta - eta A^T (A theta - B phi)
    scores: jax.Array  # [6], of v
    hypergradient: jax.Array  # dV(theta')/dphi = eta B^T A v


def quadratic(seed: int) -> Quadratic:
    """The problem of a seed; 64-bit mode must be on."""
    keys = jax.random.split(jax.random.key(seed), 5)
    a, b = jax.random.normal(keys[0], (6, 4)), jax.random.normal(keys[1], (6, 3))
    target, theta, phi = (jax.random.normal(key, (n,)) for key, n in zip(keys[2:], (4, 4, 3)))

    def losses(theta, phi):
        return 0.5 * (a @ theta - b @ phi) ** 2

    def train(theta, phi):
        return jnp.sum(losses(theta, phi))

    def valid(theta):
        return 0.5 * jnp.sum((theta - target) ** 2)

    residual = a @ theta - b @ phi
    v = theta - RATE * a.T @ residual - target
    return Quadratic(losses, train, valid, theta, phi, v, residual * (a @ v), RATE * b.T @ a @ v)


def descend(params: Any, gradient: Any) -> Any:
    """A plain step of SGD."""
    return jax.tree.map(lambda p, g: p - RATE * g, params, gradient)


def clipped_step(params: jax.Array, gradient: jax.Array) -> jax.Array:
    """A step of the quadratic problem with momentum, decay and clipping."""
    settings = {"learning_rate": RATE, "weight_decay": 0.01, "clip_norm": 0.5}
    return sgd.sgd_update(params, jnp.linspace(-1.0, 1.0, 4), gradient, **settings)[0]


def through_the_step(problem: Quadratic) -> jax.Array:
    """dV(theta')/dphi after `clipped_step`, with no formula: reverse mode over reverse mode."""
    gradient = jax.grad(problem.train)
    return jax.grad(lambda phi: problem.valid(clipped_step(problem.theta, gradient(problem.theta, phi))))(
        problem.phi
    )


def differenced(
    train: Callable, valid: Callable, params: Any, phi: jax.Array, jit: Callable = jax.jit
) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Hypergradients of a plain step: exact, by fine differences, and with neither formula.

    The last is the difference of the validation loss itself, one unrolled step later.
    """

    @jit
    def hypergradients(phi):
        problem = train, valid, descend, params, phi
        exact = bilevel.exact_hypergradient(*problem)
        return exact, bilevel.finite_difference_hypergradient(*problem, radius=1e-6)

    unrolled = jit(lambda phi: valid(descend(params, jax.grad(train)(params, phi))))
    moves = 1e-5 * jnp.eye(phi.size)
    direct = np.array([(unrolled(phi + move) - unrolled(phi - move)) / 2e-5 for move in moves])
    return *hypergradients(phi), direct


def _line(name, gradient, expected, limit):
    error = float(np.linalg.norm(gradient - expected) / np.linalg.norm(expected))
    return HypergradientLine(name, error, limit, error < limit)


def quadratic_lines(seed: int) -> list[HypergradientLine]:
    """The quadratic problem, whose scores and hypergradient are known."""
    with jax.enable_x64(True):
        problem = quadratic(seed)
        theta, phi = problem.theta, problem.phi
        exact, difference = bilevel.exact_hypergradient, bilevel.finite_difference_hypergradient
        plain, clipped = (
            (problem.train, problem.valid, step, theta, phi) for step in (descend, clipped_step)
        )
        scores = bilevel.alignment(lambda theta: problem.losses(theta, phi), theta, problem.valid_gradient)
        return [
            _line("quadratic: score of every example", scores, problem.scores, 1e-12),
            _line("quadratic: exact", exact(*plain), problem.hypergradient, 1e-12),
            _line("quadratic: finite difference", difference(*plain), problem.hypergradient, 1e-9),
            _line(
                "quadratic, momentum + decay + clip: exact", exact(*clipped), through_the_step(problem), 1e-12
            ),
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

        exact, difference, direct = differenced(train, valid, params, phi)
        return [
            _line("WRN-10-1: exact, to V(theta') differenced", exact, direct, 1e-5),
            _line("WRN-10-1: exact, to finite difference", exact, difference, 1e-5),
        ]


def hypergradient_lines(seed: int) -> Iterator[HypergradientLine]:
    """The lines of the quadratic problem, then those of the network."""
    yield from quadratic_lines(seed)
    yield from network_lines(seed)
