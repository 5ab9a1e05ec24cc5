"""Welch's test: is the difference of two means more than chance?"""

import statistics
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def p_value(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Two-sided p-value of Welch's test of equal means.

        t = (m1 - m2) / sqrt(sum of e),  e = s^2 / n,  df = (sum of e)^2 / (sum of e^2 / (n - 1))
        p = I_x(df / 2, 1 / 2),  x = df / (df + t^2),  I the regularised incomplete beta function

    The sums are over both sides. With zeros on one of them it is the t-test of a mean of zero.

    Args:
      first, second: n1 and n2 numbers.

    Returns:
      p, or None where it is not defined: fewer than two numbers on a side, or no spread at all.

    Reference: Welch, Biometrika 34, 1947.
    """
    if min(len(first), len(second)) < 2:
        return None
    samples = first, second
    errors = [statistics.variance(values) / len(values) for values in samples]
    if sum(errors) == 0.0:
        return None
    t_squared = (statistics.fmean(first) - statistics.fmean(second)) ** 2 / sum(errors)
    df = sum(errors) ** 2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, samples))
    with jax.enable_x64(True):
        x = jnp.float64(df / (df + t_squared))
        return float(jax.scipy.special.betainc(jnp.float64(0.5 * df), jnp.float64(0.5), x))
