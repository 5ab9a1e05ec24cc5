"""Evidence for the policy estimators: bias and variance, and what the official RELAX amounts to.

Means are compared with the enumeration of every outcome, the official RELAX with REINFORCE in closed form.
Symbols as in `estimators`.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dada.gradients import estimators, relaxation
from dada.searches.dada import space as policy_space
from dada.searches.dada_official import gradient as official_gradient

_NUM_OPS = 4
_TEMPERATURE = 0.5
NUM_DRAWS = 160_000  # for each estimator
GROUP = 16  # draws that one estimate is made of
_STEPS = 1000  # groups in one call
STANDARD_ERRORS = 3.0  # a mean further away than this is biased
_ESTIMATORS = (
    *("REINFORCE", "RELAX", "REINFORCE, leave-one-out", "RELAX, leave-one-out"),
    "Gumbel-softmax",  # differentiates the cost, so no baseline matters
)


class EstimatorLine(NamedTuple):
    """Mean and spread of an estimator: bias is |mean - exact|, variance that of a single draw."""

    estimator: str
    bias: float
    standard_error: float
    bias_of_exact: str
    variance: float
    variance_below: str  # RELAX: the variance of REINFORCE with the same costs
    expected: str
    passed: bool


class OfficialLine(NamedTuple):
    """Largest difference between the official RELAX and REINFORCE, over the largest entry of the latter."""

    official_relax: str
    largest_difference: float
    expected: str
    passed: bool


def _pair_problem(seed):
    """A policy away from uniform, and the cost of each outcome, [6 pairs, 2, 2 bits]: op 1 is planted."""
    op_cost = np.array([0.4, -2.0, 0.1, 0.5])
    cost = np.zeros((6, 2, 2), np.float32)
    for row, pair in enumerate(policy_space.combinations(_NUM_OPS, 2)):
        for bits in itertools.product((0, 1), repeat=2):
            cost[row, *bits] = 1.0 + op_cost[pair] @ bits + 0.5 * bits[0] * bits[1]
    shapes = policy_space.init("pairs", _NUM_OPS)
    keys = jax.random.split(jax.random.key(seed), 3)
    noise = [0.7 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, shapes)]
    return policy_space.Parameters(*noise), jnp.asarray(cost)


def _expected_cost(cost, weights, bits):
    """sum_r w_r sum_ab cost[r, a, b] P(a) P(b): over every outcome, or its relaxation."""
    first, second = (jnp.stack([1.0 - bits[:, k], bits[:, k]], -1) for k in (0, 1))
    return jnp.einsum("r,rab,ra,rb->", weights, cost, first, second)


def _exact_gradient(parameters, cost):
    def mean_cost(parameters):
        weights = jax.nn.softmax(parameters.op[0, 0])
        return _expected_cost(cost, weights, jax.nn.sigmoid(parameters.application))

    return jax.grad(mean_cost)(parameters)


def _gumbel_softmax(parameters, cost, keys):
    """The mean gradient of the cost of relaxed draws."""

    def relaxed_cost(parameters, key):
        op_key, bit_key = jax.random.split(key)
        weights = relaxation.gumbel_softmax(op_key, parameters.op[0, 0], _TEMPERATURE)
        bits = relaxation.relaxed_bernoulli(bit_key, parameters.application, _TEMPERATURE)
        return _expected_cost(cost, weights, bits)

    return jax.grad(lambda p: jnp.mean(jax.vmap(relaxed_cost, (None, 0))(p, keys)))(parameters)


def _latents(parameters, key, draw):
    return tuple(
        policy_space.features(latent, draw, _TEMPERATURE)
        for latent in policy_space.drawn_latents(parameters, key, draw)
    )


def _estimates(key, parameters, control, cost, has_baseline):
    """(one estimate of each kind from the same `GROUP` keys, gradient for the control variate)."""
    keys = jax.random.split(key, GROUP)
    draws = jax.vmap(policy_space.draw, (0, None))(keys, parameters)
    bits = jnp.take_along_axis(draws.bits, draws.row[:, None, None], 1)[:, 0].astype(int)
    costs = cost[draws.row, bits[:, 0], bits[:, 1]]
    costs = jnp.where(has_baseline, estimators.leave_one_out(costs), costs)
    log_probability = policy_space.log_probability
    functions = log_probability, _latents, estimators.control_variate
    relax, control_gradient = estimators.relax(*functions, parameters, control, draws, keys, costs)
    estimates = {
        "REINFORCE": estimators.reinforce(log_probability, parameters, draws, costs),
        "RELAX": relax,
        "Gumbel-softmax": _gumbel_softmax(parameters, cost, keys),
    }
    return {name: _flat(gradient) for name, gradient in estimates.items()}, control_gradient


def _many_estimates(key, parameters, cost, count):
    """Estimates [count, entries] by name, with RELAX's control variate trained by its own gradient before."""
    control_key, train_key, sample_key = jax.random.split(key, 3)
    features = parameters.op.size + parameters.application.size
    optimizer = optax.scale_by_adam()

    # One program trains and measures: steps of rate zero leave the control variate as it is.
    @jax.jit
    def steps(parameters, cost, has_baseline, control, state, keys, rates):
        def step(carry, inputs):
            (control, state), (key, rate) = carry, inputs
            estimates, gradient = _estimates(key, parameters, control, cost, has_baseline)
            updates, state = optimizer.update(gradient, state)
            control = jax.tree.map(lambda c, u: c - rate * u, control, updates)
            return (control, state), estimates

        return jax.lax.scan(step, (control, state), (keys, rates))

    estimates = {}
    for has_baseline in (False, True):
        control = estimators.init_control_variate(control_key, features)
        carry = control, optimizer.init(control)
        training = jax.random.split(train_key, _STEPS), jnp.linspace(0.03, 0.0, _STEPS)
        carry, _ = steps(parameters, cost, has_baseline, *carry, *training)
        blocks = []
        for block in range(count // _STEPS):
            keys = jax.random.split(jax.random.fold_in(sample_key, block), _STEPS)
            blocks.append(steps(parameters, cost, has_baseline, *carry, keys, jnp.zeros(_STEPS))[1])
        for name in blocks[0]:
            named = name + ", leave-one-out" if has_baseline else name
            estimates[named] = np.concatenate([np.asarray(block[name], np.float64) for block in blocks])
    return estimates


def _flat(parameters):
    return jnp.concatenate([parameters.op.ravel(), parameters.application.ravel()])


def estimator_lines(seed: int, num_draws: int = NUM_DRAWS) -> Iterator[EstimatorLine]:
    """Estimators of the gradient of a pair policy (4 ops, one planted) against its enumeration.

    Args:
      seed: of the policy and the draws.
      num_draws: for each estimator, a multiple of 16,000.

    Yields:
      A line per estimator. It passes where the bias is within `STANDARD_ERRORS` (Gumbel-softmax: is
      not), and the variance of RELAX is below that of REINFORCE with the same costs.
    """
    parameters, cost = _pair_problem(seed)
    exact = np.asarray(_flat(_exact_gradient(parameters, cost)), np.float64)
    estimates = _many_estimates(jax.random.key(seed + 1), parameters, cost, num_draws // GROUP)
    group_variances = {name: of_groups.var(0, ddof=1).sum() for name, of_groups in estimates.items()}
    for name in _ESTIMATORS:
        of_groups = estimates[name]
        is_relax = name.startswith("RELAX")
        bias = np.linalg.norm(of_groups.mean(0) - exact)
        error = np.sqrt(group_variances[name] / len(of_groups))
        variance = GROUP * group_variances[name]
        limit = GROUP * group_variances[name.replace("RELAX", "REINFORCE")] if is_relax else np.inf
        expected = "biased" if name == "Gumbel-softmax" else "unbiased"
        is_biased = bias > STANDARD_ERRORS * error
        yield EstimatorLine(
            estimator=name,
            bias=float(bias),
            standard_error=float(error),
            bias_of_exact=f"{100 * bias / np.linalg.norm(exact):.2f} %",
            variance=float(variance),
            variance_below=f"{limit:#.2g}" if is_relax else "-",
            expected=expected,
            passed=bool(is_biased == (expected == "biased") and variance < limit),
        )


@jax.jit
@functools.partial(jax.vmap, in_axes=(0, None, None, None))
def _official_and_score(key, parameters, control, losses):
    """RELAX at some losses [losses, entries], and d log q [entries], for one draw."""
    draw = policy_space.draw(key, official_gradient.as_logits(parameters))

    def relax(loss):
        temperature = jnp.array(_TEMPERATURE)
        return _flat(official_gradient.relax_outputs(parameters, control, draw, key, temperature, loss)[0])

    p, chosen = parameters.application, jax.nn.one_hot(draw.row, parameters.op.size)
    score = parameters._replace(
        op=p.size * (chosen - jax.nn.softmax(parameters.op[0, 0])),
        application=(draw.bits - p) / (p * (1.0 - p)),
    )
    return jax.vmap(relax)(losses), _flat(score)


def _trained_control(key, num_features):
    """A Q network with weights of order 1."""
    init_key, noise_key = jax.random.split(key)
    leaves, tree = jax.tree.flatten(estimators.init_control_variate(init_key, num_features))
    keys = jax.random.split(noise_key, len(leaves))
    return tree.unflatten([leaf + 0.3 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves)])


def official_relax_lines(seed: int, num_draws: int = 64) -> Iterator[OfficialLine]:
    """RELAX on two losses, as the released code uses it, against REINFORCE.

    REINFORCE in closed form, (L+ - L-) d log q: bits (b - p) / (p (1 - p)), all N K of them; weights
    N K (one-hot - softmax). With 15 ops, raw parameters off their start, in float64.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), 4)
        start = official_gradient.init_policy(policy_space.init("pairs", 15))
        parameters = start._replace(
            op=start.op + 0.5 * jax.random.normal(keys[0], start.op.shape),
            application=jax.random.uniform(keys[1], start.application.shape, minval=0.2, maxval=0.8),
        )
        control = _trained_control(keys[2], start.op.size + start.application.size)
        losses = jnp.array([2.31, 2.29])
        draw_keys = jax.random.split(keys[3], num_draws)
        relax, score = map(np.asarray, _official_and_score(draw_keys, parameters, control, losses))
    above, below = np.asarray(losses)
    pairs = (relax[:, 0] - relax[:, 1], (above - below) * score), (relax[:, 0], above * score)
    subtracted, single = (
        float(np.abs(relax - reinforce).max() / np.abs(reinforce).max()) for relax, reinforce in pairs
    )
    yield OfficialLine("two losses, subtracted, as released", subtracted, "below 1e-9", subtracted < 1e-9)
    yield OfficialLine("one loss, not subtracted", single, "above 0.01", single > 0.01)
