"""Continuous relaxations of categorical and Bernoulli choices, and mixtures of op outputs.

Symbols: a *latent* z is a real-valued random variable whose hard value is the choice, index = argmax z
or bit = (z > 0). A relaxed sample is softmax(z / T) or sigmoid(z / T) at temperature T. The
*conditional latent* z~ is distributed as z given the choice; RELAX needs both.
All samplers are differentiable in their logits (reparametrised) and take any leading shape. Their `key` is a
typed random key, consumed. `logits` are float: [..., M], unnormalised log-probabilities of a categorical, or
[...], log(p / (1 - p)) of independent bits.

References: Jang et al. 2017, arXiv 1611.01144 (Gumbel-softmax); Maddison et al. 2017, arXiv 1611.00712;
Tucker et al. 2017, arXiv 1703.07370, appendix C, and Grathwohl et al. 2018, arXiv 1711.00123, appendix B
(conditional latents); Li et al. 2020 (DADA), section 3.2.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp


def _uniform(key: jax.Array, shape: tuple[int, ...], dtype) -> jax.Array:
    """Uniform numbers inside the open interval (0, 1), so that both logarithms are finite."""
    tiny = jnp.finfo(dtype).tiny
    below_one = 1.0 - jnp.finfo(dtype).epsneg
    return jax.random.uniform(key, shape, dtype, minval=tiny, maxval=1.0).clip(tiny, below_one)


def categorical_latent(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Gumbel latents of a categorical: z_i = log pi_i - log(-log u_i), pi = softmax(logits).

    Returns:
      [..., M]; argmax over the last axis is an exact sample of the categorical.
    """
    uniform = _uniform(key, logits.shape, logits.dtype)
    return jax.nn.log_softmax(logits) - jnp.log(-jnp.log(uniform))


def conditional_categorical_latent(key: jax.Array, logits: jax.Array, index: jax.Array) -> jax.Array:
    """Gumbel latents given that the argmax is `index` (Grathwohl et al., appendix B).

    z~_k = -log(-log v_k) and z~_i = -log(-log v_i / pi_i - log v_k) for i != k = index.

    Args:
      index: [...] int, the choice that is conditioned on.
    Returns:
      [..., M] with argmax equal to `index`; differentiable in `logits`.
    """
    # With E = -log v the second case is -log(E_i / pi_i + E_k), kept in logarithms.
    log_exponential = jnp.log(-jnp.log(_uniform(key, logits.shape, logits.dtype)))
    top = jnp.take_along_axis(log_exponential, index[..., None], axis=-1)
    others = jnp.logaddexp(log_exponential - jax.nn.log_softmax(logits), top)
    chosen = jnp.arange(logits.shape[-1]) == index[..., None]
    return -jnp.where(chosen, top, others)


def bernoulli_latent(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Logistic latents of independent bits: z = logit + log u - log(1 - u).

    Returns:
      [...]; z > 0 with probability sigmoid(logits).
    """
    uniform = _uniform(key, logits.shape, logits.dtype)
    return logits + jnp.log(uniform) - jnp.log1p(-uniform)


def conditional_bernoulli_latent(key: jax.Array, logits: jax.Array, bit: jax.Array) -> jax.Array:
    """Logistic latents given their bits (Tucker et al., appendix C).

    With logit l and fresh uniform v: z~ = log(1 + v e^l) - log(1 - v) where the bit is 1, and by symmetry
    z~ = -(log(1 + v e^-l) - log(1 - v)) where it is 0. This is the textbook inversion of the truncated
    logistic, written so that no p close to 0 or 1 loses digits.

    Args:
      bit: [...] bool, the bits that are conditioned on.
    Returns:
      [...], positive where `bit`, negative elsewhere; differentiable in `logits`.
    """
    uniform = _uniform(key, logits.shape, logits.dtype)
    sign = jnp.where(bit, 1.0, -1.0).astype(logits.dtype)
    return sign * (jax.nn.softplus(sign * logits + jnp.log(uniform)) - jnp.log1p(-uniform))


def gumbel_softmax(key: jax.Array, logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """A relaxed one-hot sample: softmax((log pi + Gumbel noise) / T) (Jang et al., eq. 2).

    Args:
      temperature: > 0; towards 0 the sample becomes one-hot, towards infinity uniform.
    Returns:
      [..., M], non-negative, summing to 1 over the last axis; differentiable in `logits`.
    """
    return jax.nn.softmax(categorical_latent(key, logits) / temperature)


def relaxed_bernoulli(key: jax.Array, logits: jax.Array, temperature: float | jax.Array) -> jax.Array:
    """Relaxed bits: sigmoid((logit + logistic noise) / T) (Maddison et al., section 3).

    Args:
      temperature: > 0.
    Returns:
      [...] in (0, 1); above one half with probability sigmoid(logits).
    """
    return jax.nn.sigmoid(bernoulli_latent(key, logits) / temperature)


def straight_through(hard: jax.Array, soft: jax.Array) -> jax.Array:
    """The value of `hard` with the gradient of `soft` (Bengio et al. 2013, arXiv 1308.3432).

    Args:
      hard: [...] the forward value, for example a one-hot sample.
      soft: [...] the same shape, differentiable.
    Returns:
      [...] `hard`, bit for bit. Gradient: that of `soft`; `hard` gets none.
    """
    # soft - soft is exactly zero, whereas soft + (hard - soft) would round.
    return jax.lax.stop_gradient(hard) + (soft - jax.lax.stop_gradient(soft))


def straight_through_one_hot(soft: jax.Array) -> jax.Array:
    """The one-hot argmax of relaxed samples [..., M], with their gradient."""
    hard = jax.nn.one_hot(jnp.argmax(soft, -1), soft.shape[-1], dtype=soft.dtype)
    return straight_through(hard, soft)


def straight_through_bits(soft: jax.Array) -> jax.Array:
    """The bits (soft > 1/2) of relaxed samples [...] as 0.0 or 1.0, with their gradient."""
    return straight_through((soft > 0.5).astype(soft.dtype), soft)


def weighted_parallel(
    images: jax.Array,
    op_outputs_or_ops: jax.Array | Sequence[Callable[[jax.Array], jax.Array]],
    weights: jax.Array,
) -> jax.Array:
    """Ops applied side by side and mixed: sum_k weights_k op_k(images).

    Static weights, learned weights and weights that change from call to call are all just arrays.

    Args:
      images: [B, H, W, C] float.
      op_outputs_or_ops: the K outputs, [K, B, H, W, C] float, or K functions from `images` to
        [B, H, W, C] float.
      weights: [K] float, one mixture for the batch, or [B, K], one per image; of any sign and sum.
    Returns:
      [B, H, W, C] float.
    Gradient: exact in `weights` and in given outputs, and in `images` as far as the ops have one.
    Raises:
      ValueError: outputs that are not [K, B, H, W, C] for these images, or weights that are neither
        [K] nor [B, K].
    """
    if isinstance(op_outputs_or_ops, Sequence):
        outputs = jnp.stack([op(images) for op in op_outputs_or_ops])
    else:
        outputs = op_outputs_or_ops
    if outputs.ndim != images.ndim + 1 or outputs.shape[1:] != images.shape:
        raise ValueError(
            f"op outputs must have shape [K, *{images.shape}] to fit the images, got {outputs.shape}"
        )
    count, batch = outputs.shape[:2]
    if weights.shape not in ((count,), (batch, count)):
        raise ValueError(
            f"weights must have shape [K] = ({count},) or [B, K] = ({batch}, {count}), got {weights.shape}"
        )
    per_image = jnp.broadcast_to(weights, (batch, count))
    return jnp.einsum("bk,kb...->b...", per_image, outputs)
