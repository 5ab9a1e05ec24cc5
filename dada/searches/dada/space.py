"""The distributions over sub-policies that DADA learns, in its three policy spaces.

`pairs` is the paper's space (section 3.1): one categorical over all N unordered pairs of distinct ops; each
pair has K = 2 application probabilities and K levels. `triples` is the same with K = 3, for shifts that no
pair can make. `slots` is the space of 25 sub-policies with K = 2 slots: an image takes a sub-policy uniformly
and each slot has its own categorical over all ops.

One form holds all. `group` is what is taken uniformly (slots: the sub-policy; else the only one), J
categoricals of M options hang on it, and `row` says which application and level parameters count (slots: the
group; else the chosen pair or triple). Everything here is about one image; callers vmap over keys.
"""

import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...gradients import relaxation
from ...ops import SearchSpace, space_options
from ...policies import Policy, SubPolicies

# Ops of a sub-policy, K.
SIZES = {"pairs": 2, "triples": 3, "slots": 2}
NUM_SLOT_SUB_POLICIES = 25


class Parameters(NamedTuple):
    """What is learned; all unconstrained.

    Attributes:
      op: [G, J, M] logits (slots [25, 2, number of ops]; else [1, 1, N]).
      application: [R, K] logits of the probability that an op is applied (R = 25 or N).
      level: [R, K] logits of the level in [0, 1].
    """

    op: jax.Array
    application: jax.Array
    level: jax.Array


class Draw(NamedTuple):
    """A hard sample for one image.

    Attributes:
      group: [] int, index into the first axis of `Parameters.op`.
      choice: [J] int, the option of each categorical.
      row: [] int, index into the first axis of `application` and `level`.
      bits: [R, K] bool, the bits of all rows; row `row` says which ops of the sub-policy are applied.
    """

    group: jax.Array
    choice: jax.Array
    row: jax.Array
    bits: jax.Array


class Latents(NamedTuple):
    """Latents of one draw in the shapes of the parameters.

    Attributes:
      op: [G, J, M], zero outside the drawn group.
      application: [R, K].
    """

    op: jax.Array
    application: jax.Array


def combinations(num_ops: int, size: int) -> np.ndarray:
    """All sets of `size` distinct ops, [N, size], in lexicographic order: 105 pairs for 15 ops."""
    return np.array(list(itertools.combinations(range(num_ops), size)), np.int32)


def init(policy_space: str, num_ops: int) -> Parameters:
    """Uniform choices, application probability one half, level one half: all logits zero.

    Args:
      policy_space: "pairs", "triples" or "slots".
      num_ops: number of rows of the search space.

    Raises:
      ValueError: for another policy space, or fewer ops than a sub-policy has.
    """
    if policy_space not in SIZES:
        raise ValueError(f"policy_space must be one of {', '.join(SIZES)}, got {policy_space!r}")
    size = SIZES[policy_space]
    if num_ops < size:
        raise ValueError(f"policy space {policy_space} needs at least {size} ops, got {num_ops}")
    if policy_space == "slots":
        rows = NUM_SLOT_SUB_POLICIES
        op_shape = (rows, size, num_ops)
    else:
        rows = math.comb(num_ops, size)
        op_shape = (1, 1, rows)
    per_op = (rows, size)
    return Parameters(*(jnp.zeros(shape, jnp.float32) for shape in (op_shape, per_op, per_op)))


def _has_slots(parameters: Parameters) -> bool:
    return parameters.op.shape[1] > 1


def _combinations(parameters: Parameters, num_ops: int) -> jax.Array:
    return jnp.asarray(combinations(num_ops, parameters.application.shape[1]))


def _keys(key: jax.Array) -> jax.Array:
    """Streams: group, op, application, conditional op, conditional application."""
    return jax.random.split(key, 5)


def draw(key: jax.Array, parameters: Parameters) -> Draw:
    """A hard sample for one image.

    Args:
      key: typed random key of this image; `latents` with the same key returns the latents of this draw.
      parameters: the distribution.

    Returns:
      A `Draw`. Gradient: none.
    """
    group_key, op_key, application_key, _, _ = _keys(key)
    group = jax.random.randint(group_key, (), 0, parameters.op.shape[0])
    choice = jnp.argmax(relaxation.categorical_latent(op_key, parameters.op[group]), -1)
    row = group if _has_slots(parameters) else choice[0]
    bits = relaxation.bernoulli_latent(application_key, parameters.application) > 0
    return Draw(group, choice, row, bits)


def ops(parameters: Parameters, num_ops: int, draw: Draw) -> jax.Array:
    """Rows of the search space that a draw applies in this order, [K] int."""
    if _has_slots(parameters):
        return draw.choice
    return _combinations(parameters, num_ops)[draw.row]


def log_probability(parameters: Parameters, draw: Draw) -> jax.Array:
    """log p(draw), []: the choice and the application bits of the drawn row; no other row enters.

    The bits that were not drawn have an expected score of zero, so leaving them out changes no expectation
    and removes their noise.
    """
    choices = jnp.take_along_axis(jax.nn.log_softmax(parameters.op[draw.group]), draw.choice[:, None], -1)
    application = parameters.application[draw.row]
    bits = jax.nn.log_sigmoid(jnp.where(draw.bits[draw.row], application, -application))
    return jnp.sum(choices) + jnp.sum(bits)


def latents(parameters: Parameters, key: jax.Array, draw: Draw) -> tuple[Latents, Latents]:
    """The latents z of a draw and fresh latents z~ given the draw, for relaxations and RELAX.

    Args:
      parameters: the distribution.
      key: the key that the draw was made with.
      draw: its hard value.

    Returns:
      (z, z~). Gradient: reparametrised, in `op` and `application`.
    """
    _, op_key, application_key, conditional_op_key, conditional_application_key = _keys(key)
    op_logits = parameters.op[draw.group]

    def scatter(op):
        return jnp.zeros_like(parameters.op).at[draw.group].set(op)

    latent = Latents(
        scatter(relaxation.categorical_latent(op_key, op_logits)),
        relaxation.bernoulli_latent(application_key, parameters.application),
    )
    conditional = Latents(
        scatter(relaxation.conditional_categorical_latent(conditional_op_key, op_logits, draw.choice)),
        relaxation.conditional_bernoulli_latent(
            conditional_application_key, parameters.application, draw.bits
        ),
    )
    return latent, conditional


def drawn_latents(parameters: Parameters, key: jax.Array, draw: Draw) -> tuple[Latents, Latents]:
    """`latents` with a gradient for the drawn row's bits only, to go with `log_probability`.

    The terms of the other rows have mean zero given the draw, so RELAX stays unbiased without them.
    """
    is_drawn = (jnp.arange(parameters.application.shape[0]) == draw.row)[:, None]
    application = jnp.where(is_drawn, parameters.application, jax.lax.stop_gradient(parameters.application))
    return latents(parameters._replace(application=application), key, draw)


def features(latents: Latents, draw: Draw, temperature: jax.Array) -> jax.Array:
    """What a control variate reads of relaxed latents, [G*J*M + R*K].

    The relaxed one-hot weights softmax(z / T) of the drawn group, and the relaxed bits 2 sigmoid(z / T) - 1,
    each scaled by how much its row is chosen: one or zero for a slot, else by the relaxed weight.
    """
    group = jax.nn.one_hot(draw.group, latents.op.shape[0])
    weights = jax.nn.softmax(latents.op / temperature) * group[:, None, None]
    row_weight = weights[0, 0] if latents.op.shape[1] == 1 else group
    bits = 2.0 * jax.nn.sigmoid(latents.application / temperature) - 1.0
    return jnp.concatenate([weights.ravel(), (row_weight[:, None] * bits).ravel()])


def share(gradient: Parameters, num_ops: int) -> Parameters:
    """Lets pairs, or triples, that have an op in common learn from each other's draws.

    With A [N, M] the membership of ops in pairs, g_w + A A^T g_w is the change of the pair logits under a
    gradient step on (w', q) when they are written as w = w' + A q, with one number q for each op; levels and
    application logits likewise. It preconditions the gradient: the same stationary points and the same
    distributions, reached in fewer draws, since an op is in M - 1 pairs. `slots` stays as it is.

    Args:
      gradient: in the shapes of the parameters.
      num_ops: M.

    Returns:
      The same shapes.
    """
    if _has_slots(gradient):
        return gradient
    table = _combinations(gradient, num_ops)

    def shared(per_entry):
        return jnp.zeros(num_ops, per_entry.dtype).at[table].add(per_entry)[table]

    logits = gradient.op[0, 0]
    of_ops = jnp.broadcast_to(logits[:, None], table.shape)
    return Parameters(
        op=(logits + shared(of_ops).sum(-1))[None, None],
        application=gradient.application + shared(gradient.application),
        level=gradient.level + shared(gradient.level),
    )


def op_mass(parameters: Parameters, num_ops: int) -> jax.Array:
    """Expected number of applications of each op to one image, [number of ops]."""
    probabilities = jax.nn.softmax(parameters.op)
    application = jax.nn.sigmoid(parameters.application)
    if _has_slots(parameters):
        return jnp.einsum("gkm,gk->m", probabilities, application) / probabilities.shape[0]
    applied = probabilities[0, 0][:, None] * application
    return jnp.zeros(num_ops, applied.dtype).at[_combinations(parameters, num_ops)].add(applied)


def entropy(parameters: Parameters) -> jax.Array:
    """Mean entropy of the categoricals in nats, []; log M at the start."""
    log_probabilities = jax.nn.log_softmax(parameters.op)
    return -jnp.mean(jnp.sum(jnp.exp(log_probabilities) * log_probabilities, -1))


def as_policy(
    space: SearchSpace,
    parameters: Parameters,
    top_k: int,
    *,
    is_weighted: bool = True,
    moment: str = "",
    **metadata,
) -> Policy:
    """What was learned as an artefact: the `top_k` pairs or triples by weight, or the most probable op of
    each of the 25 slots.

    Args:
      space: the search space.
      parameters: concrete logits, not traced.
      top_k: pairs or triples that are kept.
      is_weighted: they keep their weights; else, and in `slots`, all are drawn uniformly.
      moment: of which step of the search the parameters are, as an end of the selection rule.
      **metadata: further fields of the artefact.

    Returns:
      A Policy of kind "sub_policies".

    Raises:
      ValueError: the rows of `space` are not those of the search space of its name.
    """
    options = space_options(space)
    op, probability, level = (
        np.asarray(leaf, np.float64)
        for leaf in (
            jax.nn.softmax(parameters.op),
            jax.nn.sigmoid(parameters.application),
            jax.nn.sigmoid(parameters.level),
        )
    )
    if _has_slots(parameters):
        rows, weight = op.argmax(-1).astype(np.int32), None
        rule = "the most probable op of each slot"
    else:
        # Stable, so that equal weights keep the order of the table.
        best = np.argsort(-op[0, 0], kind="stable")[:top_k]
        rows = combinations(len(space.rows), level.shape[1])[best]
        probability, level = probability[best], level[best]
        weight = op[0, 0][best] / op[0, 0][best].sum() if is_weighted else None
        kinds = next(name for name, size in SIZES.items() if size == level.shape[1])
        kept = f"the {len(best)} of {op.size} {kinds} with the largest weight"
        rule = f"{kept}, drawn {'by weight' if is_weighted else 'uniformly'}"
    return Policy(
        kind="sub_policies",
        search_space=space.name,
        content=SubPolicies(rows, probability, level, weight),
        method="dada",
        selection_rule=rule + moment,
        **options,
        **metadata,
    )
