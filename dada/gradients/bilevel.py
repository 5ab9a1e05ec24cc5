"""One step of bi-level optimisation, and the score that every search here stands on.

Symbols: theta network parameters, phi policy, L(theta, phi) training loss, V(theta) validation loss.

    g      = grad_theta L(theta, phi)                       `loss_gradient`
    theta' = step(theta, g)                                 `look_ahead`
    v      = grad V(theta')                                 `loss_gradient`
    u      = (d step / d g)^T v                             `direction`, at unit length
    s_i    = < u, grad_theta l_i(theta, phi) >              `alignment`, one score for each example      (1)

    dV(theta')/dphi = d/dphi < u, grad_theta L(theta, phi) >                                             (2)

For plain SGD, theta' = theta - eta g, u is -eta v: DADA, Li et al. 2020, eq. 9-10; DARTS, Liu et al. 2019,
eq. 6-7. An inner product with a gradient is a directional derivative, so it costs one JVP (exact) or two
losses at theta +- R u (the finite difference of the papers), and never a Hessian.

All functions take any pytree and any dtype. Needs jax only.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any
# params -> ([B] losses, one for each example, and anything else that is wanted of the same pass)
Losses = Callable[[PyTree], tuple[jax.Array, Any]]


def loss_gradient(
    losses: Losses, params: PyTree, axis_name: str | None = None
) -> tuple[PyTree, jax.Array, Any]:
    """Gradient of the mean loss of a batch.

    Args:
      losses: params -> ([B] losses, aux); of this device's examples with `axis_name`.
      params: theta.
      axis_name: mapped axis over which the batch is divided.

    Returns:
      (gradient like `params`, mean loss [], aux): the first two of the whole batch, aux of this device.
    """

    def mean_loss(params):
        values, aux = losses(params)
        return _mean_of_devices(jnp.mean(values), axis_name), aux

    (loss, aux), gradient = jax.value_and_grad(mean_loss, has_aux=True)(params)
    return _mean_of_devices(gradient, axis_name), loss, aux


def look_ahead(
    inner_step: Callable[[PyTree], tuple[PyTree, Any]], gradient: PyTree
) -> tuple[PyTree, Any, Callable[[PyTree], PyTree]]:
    """The weights after one step, and how a change of its gradient moves them.

    Args:
      inner_step: g -> (theta', whatever else the step updates, such as a momentum).
      gradient: g.

    Returns:
      (theta', the rest of the step, pull_back: v -> (d step / d g)^T v).
    """
    (unrolled, rest), pull_back = jax.vjp(inner_step, gradient)

    def pull_back_weights(vector):
        return pull_back((vector, jax.tree.map(jnp.zeros_like, rest)))[0]

    return unrolled, rest, pull_back_weights


def direction(
    pull_back: Callable[[PyTree], PyTree], valid_gradient: PyTree, *, least_norm: float = 0.0
) -> PyTree:
    """u at unit length, so that early and late steps are on one scale; zero where u is zero.

    Args:
      pull_back: of `look_ahead`.
      valid_gradient: v.
      least_norm: a shorter u is divided by this, so that what is hardly more than rounding stays short.
    """
    pulled = pull_back(valid_gradient)
    norm = global_norm(pulled)
    if least_norm:
        norm = jnp.maximum(norm, least_norm)
        return jax.tree.map(lambda leaf: leaf / norm, pulled)
    return jax.tree.map(lambda leaf: leaf / jnp.where(norm > 0, norm, 1.0), pulled)


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


def cosine(first: PyTree, second: PyTree) -> jax.Array:
    """< a, b > / (|a| |b|), []; 0 where a or b is zero.

    Args:
      first, second: a and b, pytrees of one structure.
    """
    product = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, first, second)))
    return _over_norms(first, second) * product


def _over_norms(first, second):
    """1 / (|a| |b|), 0 where a or b is zero."""
    norms = global_norm(first) * global_norm(second)
    return jnp.where(norms > 0, 1.0 / jnp.where(norms > 0, norms, 1.0), 0.0)


def tangent(train_gradient: PyTree, valid_gradient: PyTree) -> tuple[PyTree, jax.Array]:
    """The derivative of cos(g_T, g_V) with respect to g_T: DeepAA's direction.

    u / (|g_T| |g_V|),   u = g_V - (< g_T, g_V > / |g_T|^2) g_T

    Args:
      train_gradient: g_T, any pytree.
      valid_gradient: g_V, the same tree.

    Returns:
      (the tree, cos(g_T, g_V) []); zeros where a gradient is zero.

    Reference: Zheng et al. 2022, section 3.
    """
    scale = _over_norms(train_gradient, valid_gradient)
    orthogonal = orthogonal_part(valid_gradient, train_gradient)
    return jax.tree.map(lambda leaf: scale * leaf, orthogonal), cosine(train_gradient, valid_gradient)


def alignment(per_example_loss: Callable[[PyTree], PyTree], params: PyTree, direction: PyTree) -> PyTree:
    """Inner products of a direction with the gradient of every example's loss, by one JVP: eq. (1).

    Args:
      per_example_loss: params -> [B] losses (or any pytree of arrays: each element gets its derivative).
      params: theta, where the losses are differentiated.
      direction: v, a pytree like `params`.

    Returns:
      [B]: s_i = d/dh l_i(theta + h v) at h = 0. Gradient: exact, in everything that the losses depend on.
    """
    return jax.jvp(per_example_loss, (params,), (direction,))[1]


def alignment_finite_difference(
    per_example_loss: Callable[[PyTree], PyTree], params: PyTree, direction: PyTree, radius: float = 0.01
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
    """d/dphi V(step(theta, grad_theta L(theta, phi))), eq. (2), reverse mode over one JVP.

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
    unrolled, _, pull_back = look_ahead(lambda gradient: (inner_step(params, gradient), None), gradient)
    valid_gradient = jax.grad(valid_loss)(unrolled)
    pulled = pull_back(valid_gradient)  # at its own length: this is a gradient, not a score
    return jax.grad(lambda phi: score(lambda theta: train_loss(theta, phi), params, pulled))(policy)


def _mean_of_devices(tree, axis_name):
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)
