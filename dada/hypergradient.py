"""Gradients through one step of training, and the alignment score that every search here stands on.

Symbols: theta network parameters, phi policy, L(theta, phi) training loss, V(theta) validation loss,
theta' = step(theta, grad_theta L) the unrolled weights, v = grad V(theta').

    dV(theta')/dphi = d/dphi < u, grad_theta L(theta, phi) >,   u = (d step / d gradient)^T v        (1)

For plain SGD, theta' = theta - eta grad L, this is u = -eta v: DADA, Li et al. 2020, eq. 9-10; DARTS, Liu et
al. 2019, eq. 6-7. The inner product is a directional derivative, so it costs one JVP (exact) or two
losses at theta +- R u (the finite difference of the papers), and never a Hessian.
Applied to the vector of per-example losses the same JVP gives one score for each image:

    s_i = < v, grad_theta l_i(theta) >                                                               (2)

All functions take any pytree and any dtype. Copy alone: needs jax only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def global_norm(tree: PyTree) -> jax.Array:
    """The 2-norm of all leaves together, []."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def orthogonal_part(vector: PyTree, direction: PyTree) -> PyTree:
    """The part of a vector that is orthogonal to a direction: v - (< v, d > / |d|^2) d.

    Args:
      vector: v, any pytree.
      direction: d, a pytree like `vector`; zero removes nothing.

    Returns:
      A pytree like `vector`.
    """
    products = [
        (jnp.vdot(v, d), jnp.vdot(d, d))
        for v, d in zip(jax.tree.leaves(vector), jax.tree.leaves(direction), strict=True)
    ]
    along, squared_norm = (sum(terms) for terms in zip(*products))
    scale = along / jnp.where(squared_norm > 0, squared_norm, 1.0)
    return jax.tree.map(lambda v, d: v - scale * d, vector, direction)


def alignment(
    per_example_loss: Callable[[PyTree], PyTree], params: PyTree, direction: PyTree
) -> PyTree:
    """Inner products of a direction with the gradient of every example's loss, by one JVP: eq. (2).

    Args:
      per_example_loss: params -> [B] losses (or any pytree of arrays: each element gets its derivative).
      params: theta, where the losses are differentiated.
      direction: v, a pytree like `params`.

    Returns:
      [B]: s_i = d/dh l_i(theta + h v) at h = 0. Gradient: exact, in everything that the losses depend on.
    """
    return jax.jvp(per_example_loss, (params,), (direction,))[1]


def alignment_finite_difference(
    per_example_loss: Callable[[PyTree], PyTree],
    params: PyTree,
    direction: PyTree,
    radius: float = 0.01,
) -> PyTree:
    """`alignment` by central differences, as the papers have it (DADA eq. 10, DARTS eq. 7).

    s_i = (l_i(theta + R v) - l_i(theta - R v)) / (2 R),  R = radius / |v|.

    Args:
      per_example_loss, params, direction: as in `alignment`.
      radius: length of the displacement R v; 0.01 in the papers.

    Returns:
      Like `alignment`, up to O(R^2), ReLU kinks and rounding; 0 for a zero direction. Gradient: the
        difference of the two.
    """
    norm = global_norm(direction)
    step = radius / jnp.where(norm > 0, norm, 1.0)  # along a zero direction nothing changes
    above, below = (
        per_example_loss(jax.tree.map(lambda p, d: p + sign * step * d, params, direction))  # noqa: B023
        for sign in (1.0, -1.0)
    )
    return jax.tree.map(lambda high, low: (high - low) / (2.0 * step), above, below)


def exact_hypergradient(
    train_loss: Callable[[PyTree, PyTree], jax.Array],
    valid_loss: Callable[[PyTree], jax.Array],
    inner_step: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    policy: PyTree,
) -> PyTree:
    """d/dphi V(step(theta, grad_theta L(theta, phi))), eq. (1), reverse mode over one JVP.

    Args:
      train_loss: (params, policy) -> [], L.
      valid_loss: params -> [], V.
      inner_step: (params, gradient) -> theta'.
      params: theta.
      policy: phi.

    Returns:
      A pytree like `policy`: the exact gradient, no Hessian formed.
    """
    return _hypergradient(alignment, train_loss, valid_loss, inner_step, params, policy)


def finite_difference_hypergradient(
    train_loss: Callable[[PyTree, PyTree], jax.Array],
    valid_loss: Callable[[PyTree], jax.Array],
    inner_step: Callable[[PyTree, PyTree], PyTree],
    params: PyTree,
    policy: PyTree,
    radius: float = 0.01,
) -> PyTree:
    """`exact_hypergradient` with the mixed derivative by central differences (DADA eq. 10).

    (grad_phi L(theta + R u) - grad_phi L(theta - R u)) / (2 R),  R = radius / |u|.

    Args and Returns: as in `exact_hypergradient`; `radius` as in `alignment_finite_difference`.
    """

    def score(loss, params, direction):
        return alignment_finite_difference(loss, params, direction, radius)

    return _hypergradient(score, train_loss, valid_loss, inner_step, params, policy)


def _hypergradient(score, train_loss, valid_loss, inner_step, params, policy):
    gradient = jax.grad(train_loss)(params, policy)
    unrolled, pull_back = jax.vjp(lambda g: inner_step(params, g), gradient)
    (direction,) = pull_back(jax.grad(valid_loss)(unrolled))
    return jax.grad(lambda phi: score(lambda theta: train_loss(theta, phi), params, direction))(policy)
