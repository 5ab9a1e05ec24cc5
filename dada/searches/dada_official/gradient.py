"""The policy gradient of the released DADA code, defects included; `search` lists them.

Symbols: w pair weights, p application probabilities, m levels, h = direction of grad V(theta').
"""

from typing import Any

import jax
import jax.numpy as jnp

from ...gradients import estimators
from ..dada import space as policy_space

EPSILON = 1e-6
INITIAL_WEIGHT = 0.001


def init_policy(parameters: policy_space.Parameters) -> policy_space.Parameters:
    """w = 0.001, p = 0.5 and m = 0.5 everywhere, in the shapes of `parameters`."""
    return policy_space.Parameters(
        op=jnp.full_like(parameters.op, INITIAL_WEIGHT),
        application=jnp.full_like(parameters.application, 0.5),
        level=jnp.full_like(parameters.level, 0.5),
    )


def as_logits(parameters: policy_space.Parameters) -> policy_space.Parameters:
    """Raw w, p and m as the logits of `policy_space`. Gradient: zero where p is clipped."""
    probability = jnp.clip(parameters.application, EPSILON, 1.0 - EPSILON)
    clipped_level = jnp.clip(parameters.level, EPSILON, 1.0 - EPSILON)
    return policy_space.Parameters(
        op=parameters.op,
        application=jnp.log(probability) - jnp.log1p(-probability),
        level=jnp.log(clipped_level) - jnp.log1p(-clipped_level),
    )


def level(raw: jax.Array) -> jax.Array:
    """The level that is applied: the raw number clipped to [0, 1]. Gradient: none, by design."""
    return jax.lax.stop_gradient(jnp.clip(raw, 0.0, 1.0))


def shift_centers(centers: jax.Array, image_size: tuple[int, int]) -> jax.Array:
    """Cutout centres uniform on [0, size) moved to (1, size], where the released code draws them."""
    size = jnp.asarray(image_size, centers.dtype)
    return size - centers * (size - 1.0) / size


def _log_q(parameters, draw):
    """Bernoulli log-probabilities of all bits, plus the categorical one added to each of them; the sum."""
    logits = as_logits(parameters)
    bits = jax.nn.log_sigmoid(jnp.where(draw.bits, logits.application, -logits.application))
    categorical = jax.nn.log_softmax(logits.op[0, 0])[draw.row]
    return jnp.sum(bits + categorical)


def _features(latents, temperature):
    """Input of the Q network: rows (relaxed p_1, relaxed p_2, relaxed weight), mapped to [-1, 1]."""
    weights = jax.nn.softmax(latents.op[0, 0] / temperature)
    bits = jax.nn.sigmoid(latents.application / temperature)
    return 2.0 * jnp.concatenate([bits, weights[:, None]], -1).ravel() - 1.0


def relax_outputs(
    parameters: policy_space.Parameters,
    control: Any,
    draw: policy_space.Draw,
    key: jax.Array,
    temperature: jax.Array,
    loss: jax.Array,
) -> tuple[policy_space.Parameters, Any]:
    """RELAX for one loss value, as the released code evaluates it at each perturbed network.

    Args:
      parameters: raw w, p, m.
      control: the Q network.
      draw, key: the draw that produced the loss, and its key.
      temperature: of the relaxed values that the Q network reads.
      loss: [] f.

    Returns:
      (gradient like `parameters`, zero for levels; gradient for `control` of the mean square of the
      N (K + 1) entries of that gradient).
    """

    def latents(parameters, key, draw):
        return tuple(
            _features(latent, temperature)
            for latent in policy_space.latents(as_logits(parameters), key, draw)
        )

    gradient, control_gradient = estimators.relax(
        _log_q,
        latents,
        estimators.control_variate,
        parameters,
        control,
        jax.tree.map(lambda leaf: leaf[None], draw),
        key[None],
        loss[None],
    )
    entries = parameters.op.size + parameters.application.size
    return gradient, jax.tree.map(lambda leaf: leaf / entries, control_gradient)


def policy_gradient(
    mean_loss, score, parameters, control, draw, key, temperature, inputs
) -> tuple[policy_space.Parameters, Any]:
    """The gradient that the released code hands to Adam: -(G+ - G-) / (2 R), no step size eta.

    Args:
      mean_loss: (network parameters, network input) -> [], L.
      score: takes a function of the network parameters, returns its derivative along h.
      parameters: raw w, p, m.
      control: the Q network.
      draw, key: the one draw of the batch, and its key.
      temperature: [].
      inputs: [B, H, W, 3], the augmented, normalised batch; constant.

    Returns:
      (gradient for w, p, m; gradient for the Q network).
    """
    applied = draw.bits[draw.row].astype(inputs.dtype)

    def outputs(params):
        """G, the gradient of one evaluation of the training loss."""

        def loss_of(parameters):
            raw = parameters.level[draw.row]
            image_plus_level = inputs + jnp.sum(applied * (raw - jax.lax.stop_gradient(raw)))
            return mean_loss(params, image_plus_level)

        loss, pathwise = jax.value_and_grad(loss_of)(parameters)
        scores, control_gradient = relax_outputs(parameters, control, draw, key, temperature, loss)
        return jax.tree.map(jnp.add, pathwise, scores), control_gradient

    return jax.tree.map(jnp.negative, score(outputs))
