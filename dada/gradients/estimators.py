"""Score-function estimators of d/dphi E_{b ~ p(b; phi)}[ f(b) ], for any distribution and any cost.

Symbols: phi parameters of the distribution (any pytree), b a hard sample, f(b) its cost, z the latent of
b and z~ a latent drawn given b, c the control variate. `f` is never differentiated: only its values enter.
One call takes S samples at once and returns the mean of S single-sample estimates.

References: Williams 1992 (REINFORCE); Kool et al. 2019 (leave-one-out baseline); Grathwohl et al. 2018,
arXiv 1711.00123 (RELAX), equations 7-8; Li et al. 2020 (DADA), section 3.3.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def leave_one_out(costs: jax.Array, *, axis_name: str | None = None) -> jax.Array:
    """Each cost minus the mean of all others: f_i - (1/(S-1)) sum_{j != i} f_j.

    The baseline of sample i does not depend on sample i, so an estimator that uses it stays unbiased.

    Args:
      costs: [S] float, S >= 2, of independent samples.
      axis_name: mapped axis over which the samples are divided; the baseline then spans all devices.
    Returns:
      [S].
    Raises:
      ValueError: if there are fewer than two samples.
    """
    if costs.ndim != 1 or costs.shape[0] < 2:
        raise ValueError(f"leave_one_out needs costs of shape [S] with S >= 2, got {costs.shape}")
    count, mean = costs.shape[0], jnp.mean(costs)
    if axis_name is not None:
        count, mean = count * jax.lax.axis_size(axis_name), jax.lax.pmean(mean, axis_name)
    return (costs - mean) * (count / (count - 1))


def reinforce(
    log_probability: Callable[[PyTree, PyTree], jax.Array],
    parameters: PyTree,
    samples: PyTree,
    costs: jax.Array,
) -> PyTree:
    """REINFORCE: (1/S) sum_i f(b_i) d/dphi log p(b_i; phi).

    For the leave-one-out version pass `leave_one_out(costs)`.

    Args:
      log_probability: (parameters, one sample) -> [], log p(b; phi).
      parameters: phi.
      samples: pytree with leading axis S, hard samples of p(b; phi).
      costs: [S] float, f(b_i), with or without a baseline subtracted.
    Returns:
      A pytree like `parameters`: an unbiased estimate.
    """

    def surrogate(parameters):
        return jnp.mean(costs * jax.vmap(log_probability, (None, 0))(parameters, samples))

    return jax.grad(surrogate)(parameters)


def relax_per_sample(
    log_probability: Callable[[PyTree, PyTree], jax.Array],
    latents: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    control_variate: Callable[[PyTree, PyTree], jax.Array],
    parameters: PyTree,
    control_parameters: PyTree,
    samples: PyTree,
    noise: PyTree,
    costs: jax.Array,
) -> PyTree:
    """RELAX for every sample by itself (Grathwohl et al., eq. 7):

        g_i = (f(b_i) - c(z~_i)) d/dphi log p(b_i; phi) + d/dphi c(z_i) - d/dphi c(z~_i)

    Args: as in `relax`.
    Returns:
      A pytree like `parameters` with a leading axis S. Differentiable in `control_parameters`.
    """

    def single(sample, noise, cost):
        _, conditional = latents(parameters, noise, sample)
        # f - c(z~) is a coefficient: constant in phi, but not in the parameters of c.
        coefficient = cost - control_variate(control_parameters, conditional)

        def surrogate(parameters):
            latent, conditional = latents(parameters, noise, sample)
            return (
                coefficient * log_probability(parameters, sample)
                + control_variate(control_parameters, latent)
                - control_variate(control_parameters, conditional)
            )

        return jax.grad(surrogate)(parameters)

    return jax.vmap(single)(samples, noise, costs)


def relax(
    log_probability: Callable[[PyTree, PyTree], jax.Array],
    latents: Callable[[PyTree, PyTree, PyTree], tuple[PyTree, PyTree]],
    control_variate: Callable[[PyTree, PyTree], jax.Array],
    parameters: PyTree,
    control_parameters: PyTree,
    samples: PyTree,
    noise: PyTree,
    costs: jax.Array,
) -> tuple[PyTree, PyTree]:
    """RELAX, and the gradient that trains its control variate (Grathwohl et al., eq. 7 and 8).

    The estimate is the mean over samples of `relax_per_sample`. Its expectation does not depend on the
    control variate, so the gradient of the second moment, d/dc (1/S) sum_i |g_i|^2, is the gradient of
    the variance: follow it downhill and the estimates become less noisy.

    Args:
      log_probability: (parameters, one sample) -> [], log p(b; phi).
      latents: (parameters, one noise, one sample) -> (z, z~): z a function of phi and noise whose hard
        value is the sample, z~ the same given the sample; both differentiable in phi.
      control_variate: (control_parameters, z) -> [], any differentiable function.
      parameters: phi.
      control_parameters: parameters of c.
      samples: pytree with leading axis S, the hard values of z.
      noise: pytree with leading axis S, from which `latents` makes z and z~.
      costs: [S] float, f(b_i), with or without a baseline subtracted.
    Returns:
      (gradient like `parameters`, unbiased; gradient like `control_parameters`).
    """

    def second_moment(control_parameters):
        estimates = relax_per_sample(
            log_probability, latents, control_variate, parameters, control_parameters, samples, noise, costs
        )
        squares = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(estimates)]
        return sum(squares) / costs.shape[0], estimates

    control_gradient, estimates = jax.grad(second_moment, has_aux=True)(control_parameters)
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), estimates), control_gradient


def init_control_variate(key: jax.Array, num_features: int, hidden: int = 100) -> dict[str, jax.Array]:
    """Parameters of `control_variate`, U(+-1/sqrt(fan in)) throughout.

    Args:
      key: typed random key, consumed.
      num_features: F.
      hidden: width of the hidden layer; 100 in DADA.
    """
    keys = jax.random.split(key, 4)

    def uniform(key, shape, fan_in):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

    return {
        "hidden_weight": uniform(keys[0], (num_features, hidden), num_features),
        "hidden_bias": uniform(keys[1], (hidden,), num_features),
        "output_weight": uniform(keys[2], (hidden,), hidden),
        "output_bias": uniform(keys[3], (), hidden),
    }


def control_variate(control: dict[str, jax.Array], features: jax.Array) -> jax.Array:
    """A free-form control variate, c = w . tanh(W x + b) + b' (Grathwohl et al., section 3.2).

    Args:
      control: from `init_control_variate`.
      features: [F] float, a differentiable function of the latents.
    Returns:
      [].
    """
    hidden = jnp.tanh(features @ control["hidden_weight"] + control["hidden_bias"])
    return hidden @ control["output_weight"] + control["output_bias"]
