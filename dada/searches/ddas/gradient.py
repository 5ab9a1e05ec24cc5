"""The mathematics of DDAS: the expected loss over sampled policies, and its gradient for the policy.

With probability p_tp = sigmoid(alpha_tp) a policy phi = (o_1 .. o_No) is applied, its ops drawn independently
from p_o = softmax(alpha_o) over K candidates. For policies phi_1 .. phi_L-hat that were proposed uniformly:

    P(phi_l) = prod_i p_o[o_l^i]                                                             (3)
    E        = (1 - p_tp) L_0 + p_tp sum_l P(phi_l) / Z L_l,   Z = sum_l P(phi_l)             (12)
    g^t      = grad E = (1 - p_tp) g_0 + p_tp sum_l P(phi_l) / Z g_l                          (5)
    theta'   = theta - eta g^t                                                              (6)
    c_l      = < g_val(theta'), g_0 - g_l >                                                  (9)
    Z_g      = sum_l |c_l|                                                                  (15)
    dV/dp_k  = p_tp / (Z Z_g) sum_l c_l dP(phi_l)/dp_k                                       (16)
    dV/dp_tp =    1 / (Z Z_g) sum_l c_l P(phi_l)                                             (17)

L_0 is the training loss without policy, L_l with phi_l, g_l = grad L_l at theta. Z, Z_g and c_l are
constants of the policy gradient; eta, which (16) and (17) carry in the paper, is left out as in its code.

Groups g share policies: one group, the batch, in the paper. With policies of their own for every image i the
sums over l become sums over l and means over i, and c_il = < g_val, grad l_i0 - grad l_il > comes for all
images from one JVP: the expectation is over B L-hat policies where it was over L-hat. With batch statistics
c_il carries what image i owes to the others' statistics; the sum over images is exact.

Reference: Liu et al. 2021, "Direct Differentiable Augmentation Search", sections 3.2 to 3.4.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...gradients import bilevel
from ...training.sgd import mean_of_devices


class Parameters(NamedTuple):
    """What is learned: alpha_tp [] and alpha_o [K], logits."""

    p_tp: jax.Array
    p_o: jax.Array


def policy_weights(parameters: Parameters, policies: jax.Array, axis_name: str | None = None) -> jax.Array:
    """P(phi_l) / Z of sampled policies, [G, L]: eq. (3) and the normaliser of eq. (12).

    Args:
      parameters: logits.
      policies: int [G, L, N_o], candidates; G = 1, or B with policies for every image.
      axis_name: mapped axis over which the groups are divided.

    Returns:
      float [G, L]; the sum over l, averaged over groups, is 1.
    """
    log_p = jnp.sum(jax.nn.log_softmax(parameters.p_o)[policies], -1)
    # A common factor cancels in the quotient; without it Z could be 0.
    largest = jnp.max(log_p)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    p = jnp.exp(log_p - largest)
    return p / mean_of_devices(jnp.mean(jnp.sum(p, 1)), axis_name)


def policy_gradient(
    parameters: Parameters, policies: jax.Array, c: jax.Array, axis_name: str | None = None
) -> Parameters:
    """Eq. (16) and (17) at the logits; n_lk counts candidate k in policy l, w_l = P(phi_l) / Z.

      d/dalpha_k  = p_tp / Z_g sum_l c_l w_l (n_lk - N_o p_k)
      d/dalpha_tp = p_tp (1 - p_tp) / Z_g sum_l c_l w_l

    Args:
      parameters: logits.
      policies: int [G, L, N_o].
      c: [G, L], eq. (9).
      axis_name: as in `policy_weights`.

    Returns:
      `Parameters`; 0 where every c is 0. With all K^N_o policies it is that of eq. (10) and (11) over Z_g.
    """
    p_tp, p_o = jax.nn.sigmoid(parameters.p_tp), jax.nn.softmax(parameters.p_o)
    z_g = mean_of_devices(jnp.mean(jnp.sum(jnp.abs(c), 1)), axis_name)
    weighted = c * policy_weights(parameters, policies, axis_name) / jnp.where(z_g > 0, z_g, 1.0)
    count = jnp.sum(jax.nn.one_hot(policies, p_o.size, dtype=p_o.dtype), 2)
    score = count - policies.shape[2] * p_o
    return Parameters(
        p_tp=p_tp * (1.0 - p_tp) * mean_of_devices(jnp.mean(jnp.sum(weighted, 1)), axis_name),
        p_o=p_tp * mean_of_devices(jnp.mean(jnp.einsum("gl,glk->gk", weighted, score), 0), axis_name),
    )


def mixed_gradient(
    losses: Callable,
    params: Any,
    inputs: Any,
    weights: jax.Array,
    *,
    per_image: bool,
    axis_name: str | None = None,
) -> tuple[Any, Callable, Any]:
    """The gradient g^t of the expected loss (eq. 5, 12), and what aligns a direction with each loss in it.

    For whole copies: a gradient of each, which the mixture needs in any case; work of 3 M forward passes of
    a batch. Per image: one gradient of the mixture and one JVP, 5 M. (Measured with M = 4 copies of 32
    images, WRN-40-2 and 256 validation images: 13.2 and 16.7 seconds of processor time for a step.)

    Args:
      losses: (params, copy) -> ([B] losses, auxiliary output).
      params: theta.
      inputs: pytree with a leading axis of M copies.
      weights: [G, M], G = 1, or B if per_image; constants.
      per_image: whether alignments are wanted for every image, or for whole copies.
      axis_name: mapped axis over which B is divided.

    Returns:
      (gradient of sum_m mean_i weights_im l_im, a function v -> [G, M] of < v, grad l_im > or
      < v, grad mean_i l_im >, the outputs of `losses` with a leading axis of copies).
    """
    if per_image:

        def every_loss(params):
            return jax.vmap(losses, (None, 0))(params, inputs)

        def expected_loss(params):
            values, aux = every_loss(params)
            return mean_of_devices(jnp.sum(jnp.mean(weights.T * values, 1)), axis_name), (values, aux)

        gradient, outputs = jax.grad(expected_loss, has_aux=True)(params)

        def score(direction):
            return bilevel.alignment(lambda params: every_loss(params)[0], params, direction).T

        return mean_of_devices(gradient, axis_name), score, outputs

    # No loop of XLA and no vmap: both make the gradients of convolutions slow on a CPU.
    gradients, outputs = [], []
    for index in range(weights.shape[1]):
        copy = jax.tree.map(lambda leaf: leaf[index], inputs)  # noqa: B023

        def with_losses(params, copy=copy):
            values, aux = losses(params, copy)
            return values, (values, aux)

        gradient, _, output = bilevel.loss_gradient(with_losses, params, axis_name)
        gradients.append(gradient)
        outputs.append(output)
    mixture = jax.tree.map(lambda *leaves: sum(w * g for w, g in zip(weights[0], leaves)), *gradients)

    def score(direction):
        products = [jax.tree.map(lambda v, g: jnp.sum(v * g), direction, gradient) for gradient in gradients]
        return jnp.stack([sum(jax.tree.leaves(product)) for product in products])[None]

    return mixture, score, jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
