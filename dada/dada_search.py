"""DADA: augmentation-policy search by one-step bi-level optimisation (Li et al., ECCV 2020).

    min_phi V(theta'(phi)),   theta'(phi) = theta - eta (mu B + clip(grad L(theta, phi)) + lambda theta)

One step: every image draws its own sub-policy; g = grad of the training loss; theta' is the real next
iterate; v = grad of the loss of a fresh validation batch at theta'; one JVP along v scores every image,
s_i = < v, grad l_i >. The cost of image i's draw is -s_i. Levels follow d(-s)/d(level); choices and
application bits follow RELAX, REINFORCE with a leave-one-out baseline, or a relaxed mixture.

With `orthogonal_to_clean` v loses its part along the gradient of the un-augmented training batch, and ops
are paid only for what they add to it, as DDAS pays the difference to the un-augmented copy and DeepAA the
angle. That finds an op that sets the validation images apart from the training images, which large gradients
of other ops hide. Where both come from one source it takes away what a policy should serve: there, the
default, eq. (9) of the paper to the letter, found the better policies (experiments/results/small_data).

Deviations from the released code (preset "corrected", the default; `dada_official` has the other):
its control variate cancels, its level gradient is blind to the op, its validation batch is always the
same, bits that were not drawn are updated, one draw serves a whole batch, the unrolled step is not
clipped, and the policy is read one epoch early. The papers' step size eta is left out of the policy
gradient in both: Adam divides it out, and late epochs weigh as much as early ones.

`validation_statistics` says what batch norm takes for the validation batch: its own statistics, as in the
released code, or the running ones, as a test does. What batch norm undoes, such as a change of brightness,
shows in a test but hardly under statistics of the batch's own (experiments/results/planted_training). On
images of one source the running ones gained nothing (experiments/results/small_data).

The training pass always has batch statistics: s_i is the derivative of l_i with the statistics of its
batch and carries what image i owes to the others' statistics, not what the others owe to image i's.

`step` is pure: jit it, scan it, vmap it over seeds, or pmap it with `axis_name`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dada import (
    dada_config,
    dada_official,
    estimators,
    hypergradient,
    op_table,
    policy,
    policy_space,
    search_input,
    train_state,
    validation,
)
from dada.dada_config import Config
from dada.train_state import Batch, mean_of_devices


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      train: the network, its momentum, and the step count.
      policy: `policy_space.Parameters`; raw probabilities and levels in the official preset.
      control: parameters of RELAX's control variate.
      optimizer: Adam's state for (policy, control).
      epoch_policy: the policy before the first step of the current epoch, which the official preset reads.
    """

    key: jax.Array
    train: train_state.TrainState
    policy: policy_space.Parameters
    control: Any
    optimizer: Any
    epoch_policy: policy_space.Parameters


def _optimizer(config: Config) -> optax.GradientTransformation:
    def adam(learning_rate):
        return optax.adam(learning_rate, b1=0.5, b2=0.999)

    if config.preset == "official":
        return adam(config.policy_learning_rate)
    return optax.partition(
        {"policy": adam(config.policy_learning_rate), "control": adam(config.control_learning_rate)},
        ("policy", "control"),
    )


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step.

    Args:
      key: typed random key, consumed.
      config: settings.
      params, batch_stats: a freshly initialised network.

    Returns:
      A SearchState: uniform choices, application probabilities one half, levels one half.
    """
    key, control_key = jax.random.split(key)
    parameters = policy_space.init(config.policy_space, len(config.space.rows))
    control = estimators.init_control_variate(control_key, parameters.op.size + parameters.application.size)
    if config.preset == "official":
        parameters = dada_official.init_policy(parameters)
    return SearchState(
        key=key,
        train=train_state.init(params, batch_stats),
        policy=parameters,
        control=control,
        optimizer=_optimizer(config).init((parameters, control)),
        epoch_policy=parameters,
    )


def gradients(
    config: Config,
    state: SearchState,
    train_batch: Batch,
    valid_batch: Batch,
    axis_name: str | None = None,
) -> tuple[tuple[policy_space.Parameters, Any], train_state.TrainState, dict[str, jax.Array]]:
    """The network's next state, and the gradient of the policy at it.

    Args: as in `step`.

    Returns:
      ((gradient for the policy, gradient for the control variate), network after its update, metrics).
      In the corrected preset the gradient is that of < v, theta'(phi) > over the length of u, eq. (1) of
      `hypergradient`, and so without `orthogonal_to_clean` that of V(theta'(phi)), running statistics held
      fixed: exact in the levels (relaxed mixtures: in everything), an estimate in the rest.
    """
    train, parameters = state.train, state.policy
    rate = dada_config.learning_rate(config, train.step)
    heat = dada_config.temperature(config, train.step)
    step_key = jax.random.fold_in(state.key, train.step)
    keys = search_input.image_keys(step_key, train_batch.images.shape[0], axis_name)
    # For networks that draw noise; no image has this index.
    network_key = jax.random.fold_in(step_key, 2**32 - 1)
    draw_keys = keys.draw if config.draws == "image" else search_input.image_keys(step_key, 1).draw
    draws = jax.vmap(policy_space.draw, (0, None))(draw_keys, dada_config.distribution(config, parameters))

    def network_input(parameters):
        return search_input.network_input(
            config, parameters, draws, draw_keys, keys, heat, train_batch.images
        )

    inputs, pull_back_inputs = jax.vjp(network_input, parameters)

    def losses(params, inputs):
        logits, stats = config.apply(
            params, train.batch_stats, inputs, True, network_key, axis_name=axis_name
        )
        return train_state.cross_entropy(logits, train_batch.labels), (logits, stats)

    def mean_loss(params, inputs):
        each, aux = losses(params, inputs)
        return mean_of_devices(jnp.mean(each), axis_name), aux

    def update(gradient, clip_norm=config.clip_norm):
        return train_state.sgd_update(
            train.params,
            train.momentum,
            gradient,
            learning_rate=rate,
            weight_decay=config.weight_decay,
            momentum_decay=config.momentum_decay,
            clip_norm=clip_norm,
        )

    loss_and_gradient = jax.value_and_grad(mean_loss, has_aux=True)
    (train_loss, (logits, stats)), gradient = loss_and_gradient(train.params, inputs)
    gradient = mean_of_devices(gradient, axis_name)
    # The unrolled weights theta' are the next iterate: one computation.
    (params, momentum), pull_back_update = jax.vjp(update, gradient)
    # The official unroll is not clipped, and so is not the next iterate when the clip acts.
    unrolled = update(gradient, clip_norm=None)[0] if config.preset == "official" else params

    def valid_logits(params, images):
        own = config.validation_statistics == "batch"
        return config.apply(params, stats, images, own, network_key, axis_name=axis_name)[0]

    def unaugmented(batch):
        return validation.gradient(valid_logits, unrolled, batch, config.mean, config.std, axis_name)

    valid_gradient, valid_metrics = unaugmented(valid_batch)
    if config.orthogonal_to_clean and config.preset == "corrected":
        clean_gradient, _ = unaugmented(train_batch)
        valid_gradient = hypergradient.orthogonal_part(valid_gradient, clean_gradient)

    if config.hypergradient == "exact":
        score = hypergradient.alignment
    else:
        score = hypergradient.alignment_finite_difference
    if config.preset == "official":
        found = dada_official.policy_gradient(
            config.estimator,
            lambda params, inputs: mean_loss(params, inputs)[0],
            lambda function: score(function, train.params, valid_gradient),
            parameters,
            state.control,
            jax.tree.map(lambda leaf: leaf[0], draws),
            draw_keys[0],
            heat,
            inputs,
        )
    else:
        # u of `hypergradient`, eq. (1), at unit length, which keeps late and early steps on one scale.
        (direction,) = pull_back_update((valid_gradient, jax.tree.map(jnp.zeros_like, momentum)))
        norm = jnp.maximum(hypergradient.global_norm(direction), 1e-12)
        direction = jax.tree.map(lambda leaf: leaf / norm, direction)
        costs, pull_back_costs = jax.vjp(
            lambda inputs: score(lambda params: losses(params, inputs)[0], train.params, direction), inputs
        )
        (pathwise,) = pull_back_inputs(*pull_back_costs(jnp.full_like(costs, 1.0 / costs.size)))
        scores, control_gradient = _score_gradient(config, state, draws, draw_keys, heat, costs, axis_name)
        found = mean_of_devices((jax.tree.map(jnp.add, pathwise, scores), control_gradient), axis_name)

    metrics = {
        "train_loss": train_loss,
        "train_accuracy": mean_of_devices(train_state.accuracy(logits, train_batch.labels), axis_name),
        **valid_metrics,
        "learning_rate": rate,
        "temperature": heat,
    }
    return found, train_state.TrainState(train.step + 1, params, stats, momentum), metrics


def step(
    config: Config,
    state: SearchState,
    train_batch: Batch,
    valid_batch: Batch,
    axis_name: str | None = None,
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the network and one of the policy.

    Args:
      config: static.
      state: from `init` or the last `step`.
      train_batch: images uint8 [B, H, W, 3], labels int32 [B]; not augmented.
      valid_batch: the same form, any size; stays un-augmented.
      axis_name: mapped axis over which both batches are divided, for pmap. Every random number belongs
        to one image of the whole batch, so the division changes nothing but rounding.

    Returns:
      (next state, metrics: scalars, and `op_mass` [number of ops]).

    Raises:
      AssertionError: wrong shapes or dtypes.
    """
    validation.check_batches(train_batch, valid_batch)
    found, train, metrics = gradients(config, state, train_batch, valid_batch, axis_name)
    if config.share_between_pairs and config.preset == "corrected":
        found = policy_space.share_between_pairs(found[0], len(config.space.rows)), found[1]
    updates, optimizer = _optimizer(config).update(found, state.optimizer)
    new_policy, control = optax.apply_updates((state.policy, state.control), updates)
    starts_epoch = state.train.step % config.steps_per_epoch == 0
    epoch_policy = jax.tree.map(
        lambda new, old: jnp.where(starts_epoch, new, old), state.policy, state.epoch_policy
    )
    learned = dada_config.distribution(config, new_policy)
    metrics["entropy"] = policy_space.entropy(learned)
    metrics["op_mass"] = policy_space.op_mass(learned, len(config.space.rows))
    return SearchState(state.key, train, new_policy, control, optimizer, epoch_policy), metrics


def _score_gradient(config, state, draws, draw_keys, heat, costs, axis_name):
    """The score-function part of the gradient, for (policy, control); zero for relaxed mixtures."""
    parameters = state.policy
    no_control = jax.tree.map(jnp.zeros_like, state.control)
    if config.estimator in ("gumbel", "straight_through"):
        return jax.tree.map(jnp.zeros_like, parameters), no_control
    if config.draws == "image":
        costs = estimators.leave_one_out(costs, axis_name=axis_name)
    else:
        costs = mean_of_devices(jnp.mean(costs, keepdims=True), axis_name)
    if config.estimator == "reinforce":
        return (
            estimators.reinforce(policy_space.log_probability, parameters, draws, costs),
            no_control,
        )

    def latents(parameters, key, draw):
        return tuple(
            policy_space.features(latent, draw, heat)
            for latent in policy_space.drawn_latents(parameters, key, draw)
        )

    return estimators.relax(
        policy_space.log_probability,
        latents,
        estimators.control_variate,
        parameters,
        state.control,
        draws,
        draw_keys,
        costs,
    )


def extract_policy(config: Config, state: SearchState, **metadata) -> policy.Policy:
    """The policy that the search found, as an artefact to save, sample and train with.

    Corrected: the `top_k` pairs by weight, with their weights (slots: all 25, each slot's most probable
    op, uniform). Official: the `top_k` pairs, uniform, as they stood before the current epoch.

    Args:
      config: settings.
      state: after the last step; concrete, not traced.
      **metadata: further fields of the artefact, for example `seed`, `data_set` and `source`.

    Returns:
      A Policy of kind "sub_policies".

    Raises:
      ValueError: the rows of `config.space` are not those of the search space of its name.
    """
    extra_ops = op_table.extra_ops(config.space)
    is_official = config.preset == "official"
    parameters = dada_config.distribution(config, state.epoch_policy if is_official else state.policy)
    op, probability, level = (
        np.asarray(leaf, np.float64)
        for leaf in (
            jax.nn.softmax(parameters.op),
            jax.nn.sigmoid(parameters.application),
            jax.nn.sigmoid(parameters.level),
        )
    )
    if config.policy_space == "pairs":
        # Stable, so that equal weights keep the order of the pair table.
        best = np.argsort(-op[0, 0], kind="stable")[: config.top_k]
        rows = policy_space.pair_table(len(config.space.rows))[best]
        probability, level = probability[best], level[best]
        weight = None if is_official else op[0, 0][best] / op[0, 0][best].sum()
        kept = f"the {len(best)} of {op.size} pairs with the largest weight"
        rule = f"{kept}, {'drawn uniformly' if is_official else 'drawn by weight'}"
    else:
        rows, weight = op.argmax(-1).astype(np.int32), None
        rule = "the most probable op of each slot"
    if is_official:
        rule += ", as of the start of the last epoch"
    return policy.Policy(
        kind="sub_policies",
        search_space=config.space.name,
        extra_ops=extra_ops,
        content=policy.SubPolicies(rows, probability, level, weight),
        method="dada",
        preset=config.preset,
        selection_rule=rule,
        **metadata,
    )
