"""Evidence for the gradients: hypergradients, policy estimators, and what the official RELAX amounts to.

Everything is compared with something computed in another way: closed forms, enumeration of every outcome,
or differences of the very quantity that is differentiated. Symbols as in `hypergradient` and `estimators`.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dada import dada_official, estimators, hypergradient, policy_space, relaxation, train_state
from dada.models import wide_resnet

_RATE = 0.1  # eta, of the unrolled step
_NUM_OPS = 4
_TEMPERATURE = 0.5
NUM_DRAWS = 160_000  # for each estimator
GROUP = 16  # draws that one estimate is made of
STANDARD_ERRORS = 3.0  # a mean further away than this is biased


class HypergradientLine(NamedTuple):
    """|found - expected| / |expected|, in float64."""

    hypergradient: str
    relative_error: float
    limit: float
    passed: bool


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


def _relative_error(found, expected):
    found, expected = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (found, expected)
    )
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def _hypergradient_line(name, found, expected, limit):
    error = _relative_error(found, expected)
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

        def each(theta, phi):
            return 0.5 * (a @ theta - b @ phi) ** 2

        def train(theta, phi):
            return jnp.sum(each(theta, phi))

        def valid(theta):
            return 0.5 * jnp.sum((theta - target) ** 2)

        def clipped_step(params, gradient):
            settings = {"learning_rate": _RATE, "weight_decay": 0.01, "clip_norm": 0.5}
            return train_state.sgd_update(params, jnp.linspace(-1.0, 1.0, 4), gradient, **settings)[0]

        residual = a @ theta - b @ phi
        direction = theta - _RATE * a.T @ residual - target  # v, the gradient of V at theta'
        closed_form = _RATE * b.T @ a @ direction
        step_form = jax.grad(lambda phi: valid(clipped_step(theta, a.T @ (a @ theta - b @ phi))))(phi)
        exact, difference = (
            hypergradient.exact_hypergradient,
            hypergradient.finite_difference_hypergradient,
        )
        scores = hypergradient.alignment(lambda theta: each(theta, phi), theta, direction)
        return [
            _hypergradient_line(*line)
            for line in (
                ("quadratic: score of every example", scores, residual * (a @ direction), 1e-12),
                ("quadratic: exact", exact(train, valid, _descend, theta, phi), closed_form, 1e-12),
                (
                    "quadratic: finite difference",
                    difference(train, valid, _descend, theta, phi),
                    closed_form,
                    1e-9,
                ),
                (
                    "quadratic, momentum + decay + clip: exact",
                    exact(train, valid, clipped_step, theta, phi),
                    step_form,
                    1e-12,
                ),
            )
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
            return jnp.mean(train_state.cross_entropy(logits, labels))

        def train(theta, phi):
            return loss(theta, jnp.einsum("k,kbhwc->bhwc", jax.nn.softmax(phi), views))

        def valid(theta):
            return loss(theta, valid_images)

        @jax.jit
        def hypergradients(phi):
            problem = train, valid, _descend, params, phi
            return (
                hypergradient.exact_hypergradient(*problem),
                hypergradient.finite_difference_hypergradient(*problem, radius=1e-6),
            )

        # Neither formula: the validation loss itself, one unrolled step later.
        unrolled = jax.jit(lambda phi: valid(_descend(params, jax.grad(train)(params, phi))))
        exact, difference = hypergradients(phi)
        moves = 1e-5 * jnp.eye(3)
        direct = np.array([(unrolled(phi + move) - unrolled(phi - move)) / 2e-5 for move in moves])
        return [
            _hypergradient_line("WRN-10-1: exact, to V(theta') differenced", exact, direct, 1e-5),
            _hypergradient_line("WRN-10-1: exact, to finite difference", exact, difference, 1e-5),
        ]


def hypergradient_lines(seed: int) -> Iterator[HypergradientLine]:
    """The lines of the quadratic problem, then those of the network."""
    yield from quadratic_lines(seed)
    yield from network_lines(seed)


def _pair_problem(seed):
    """A policy away from uniform, and the cost of each outcome, [6 pairs, 2, 2 bits]: op 1 is planted."""
    op_cost = np.array([0.4, -2.0, 0.1, 0.5])
    cost = np.zeros((6, 2, 2), np.float32)
    for row, pair in enumerate(policy_space.pair_table(_NUM_OPS)):
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


def _relax(parameters, control, draws, keys, costs):
    def latents(parameters, key, draw):
        return tuple(
            policy_space.features(latent, draw, _TEMPERATURE)
            for latent in policy_space.drawn_latents(parameters, key, draw)
        )

    functions = policy_space.log_probability, latents, estimators.control_variate
    return estimators.relax(*functions, parameters, control, draws, keys, costs)


def _sample(key, parameters, cost, count):
    keys = jax.random.split(key, count)
    draws = jax.vmap(policy_space.draw, (0, None))(keys, parameters)
    bits = jnp.take_along_axis(draws.bits, draws.row[:, None, None], 1)[:, 0].astype(int)
    return keys, draws, cost[draws.row, bits[:, 0], bits[:, 1]]


def _gumbel_softmax(parameters, cost, keys):
    """The mean gradient of the cost of relaxed draws."""

    def relaxed_cost(parameters, key):
        op_key, bit_key = jax.random.split(key)
        weights = relaxation.gumbel_softmax(op_key, parameters.op[0, 0], _TEMPERATURE)
        bits = relaxation.relaxed_bernoulli(bit_key, parameters.application, _TEMPERATURE)
        return _expected_cost(cost, weights, bits)

    return jax.grad(lambda p: jnp.mean(jax.vmap(relaxed_cost, (None, 0))(p, keys)))(parameters)


def _estimate(name, key, parameters, control, cost):
    """(one estimate from `GROUP` draws, gradient for the control variate)."""
    keys, draws, costs = _sample(key, parameters, cost, GROUP)
    if name == "Gumbel-softmax":
        return _gumbel_softmax(parameters, cost, keys), None
    if "leave-one-out" in name:
        costs = estimators.leave_one_out(costs)
    if name.startswith("RELAX"):
        return _relax(parameters, control, draws, keys, costs)
    return estimators.reinforce(policy_space.log_probability, parameters, draws, costs), None


def _train_control(name, key, parameters, cost, steps=1200):
    """A control variate after training by RELAX's own variance gradient."""
    control_key, key = jax.random.split(key)
    features = parameters.op.size + parameters.application.size
    control = estimators.init_control_variate(control_key, features)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, steps))

    @jax.jit
    def train(control, keys):
        def step(carry, key):
            control, state = carry
            _, gradient = _estimate(name, key, parameters, control, cost)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(control, updates), state), None

        return jax.lax.scan(step, (control, optimizer.init(control)), keys)[0][0]

    return train(control, jax.random.split(key, steps))


def _flat(parameters):
    return jnp.concatenate([parameters.op.ravel(), parameters.application.ravel()])


def estimator_lines(seed: int, num_draws: int = NUM_DRAWS) -> Iterator[EstimatorLine]:
    """Estimators of the gradient of a pair policy (4 ops, one planted) against its enumeration.

    Args:
      seed: of the policy and the draws.
      num_draws: for each estimator.

    Yields:
      A line per estimator. It passes where the bias is within `STANDARD_ERRORS` (Gumbel-softmax: is
      not), and the variance of RELAX is below that of REINFORCE with the same costs.
    """
    parameters, cost = _pair_problem(seed)
    exact = np.asarray(_flat(_exact_gradient(parameters, cost)), np.float64)
    train_key, sample_key = jax.random.split(jax.random.key(seed + 1))
    variances = {}
    for name in (
        "REINFORCE",
        "REINFORCE, leave-one-out",
        "RELAX",
        "RELAX, leave-one-out",
        "Gumbel-softmax",
    ):
        is_relax = name.startswith("RELAX")
        control = _train_control(name, train_key, parameters, cost) if is_relax else None

        def estimate(key, name=name, control=control):
            return _flat(_estimate(name, key, parameters, control, cost)[0])

        keys = jax.random.split(sample_key, num_draws // GROUP)
        estimates = jax.jit(lambda keys, f=estimate: jax.lax.map(f, keys, batch_size=500))(keys)
        estimates = np.asarray(estimates, np.float64)
        group_variance = estimates.var(0, ddof=1).sum()
        bias = float(np.linalg.norm(estimates.mean(0) - exact))
        error = float(np.sqrt(group_variance / len(estimates)))
        variances[name] = float(GROUP * group_variance)
        limit = variances[name.replace("RELAX", "REINFORCE")] if is_relax else np.inf
        expected = "biased" if name == "Gumbel-softmax" else "unbiased"
        is_biased = bias > STANDARD_ERRORS * error
        yield EstimatorLine(
            estimator=name,
            bias=bias,
            standard_error=error,
            bias_of_exact=f"{100 * bias / np.linalg.norm(exact):.2f} %",
            variance=variances[name],
            variance_below=f"{limit:#.2g}" if is_relax else "-",
            expected=expected,
            passed=is_biased == (expected == "biased") and variances[name] < limit,
        )


def official_relax_lines(seed: int, num_draws: int = 64) -> Iterator[OfficialLine]:
    """`dada_official.relax_outputs` on two losses, as the released code uses it, against REINFORCE.

    REINFORCE in closed form, (L+ - L-) d log q: bits (b - p) / (p (1 - p)), all N K of them; weights
    N K (one-hot - softmax). With 15 ops, raw parameters off their start, a Q network with weights of
    order 1, in float64.
    """
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(seed), 5)
        start = dada_official.init_policy(policy_space.init("pairs", 15))
        parameters = start._replace(
            op=start.op + 0.5 * jax.random.normal(keys[0], start.op.shape),
            application=jax.random.uniform(keys[1], start.application.shape, minval=0.2, maxval=0.8),
        )
        control = estimators.init_control_variate(keys[2], start.op.size + start.application.size)
        leaves, tree = jax.tree.flatten(control)
        noise = jax.random.split(keys[3], len(leaves))
        control = tree.unflatten(
            [leaf + 0.3 * jax.random.normal(key, leaf.shape) for key, leaf in zip(noise, leaves)]
        )
        above, below = 2.31, 2.29

        @jax.jit
        @jax.vmap
        def compare(key):
            """RELAX and REINFORCE on the difference of the losses, then on one of them."""
            draw = policy_space.draw(key, dada_official.as_logits(parameters))
            relax = [
                _flat(
                    dada_official.relax_outputs(
                        parameters, control, draw, key, jnp.float64(_TEMPERATURE), jnp.float64(loss)
                    )[0]
                )
                for loss in (above, below)
            ]
            p, chosen = parameters.application, jax.nn.one_hot(draw.row, start.op.size)
            score = _flat(
                start._replace(
                    op=p.size * (chosen - jax.nn.softmax(parameters.op[0, 0])),
                    application=(draw.bits - p) / (p * (1.0 - p)),
                )
            )
            return relax[0] - relax[1], (above - below) * score, relax[0], above * score

        results = [np.asarray(leaf) for leaf in compare(jax.random.split(keys[4], num_draws))]
    subtracted, single = (
        float(np.abs(relax - reinforce).max() / np.abs(reinforce).max())
        for relax, reinforce in zip(results[::2], results[1::2])
    )
    yield OfficialLine("two losses, subtracted, as released", subtracted, "below 1e-9", subtracted < 1e-9)
    yield OfficialLine("one loss, not subtracted", single, "above 0.01", single > 0.01)
