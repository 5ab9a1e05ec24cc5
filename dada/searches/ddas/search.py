"""DDAS: augmentation-policy search by the expected training loss of sampled policies (Liu et al., 2021).

With probability p_tp an image is augmented at all; then N_o ops are drawn from p_o over K candidates, each an
op at a level. One step: L-hat policies are proposed uniformly; the training batch is copied once as it is
and once under each policy; theta' = theta - eta grad E, with E the expected loss over the copies, is the
real next iterate; the validation gradient at theta' is compared with the gradient of every copy, and p_tp and
p_o descend. The equations, (3) to (17) of the paper, are in `gradient`. A copy without policy is still
cropped, flipped and cut out. Copies have their own batch statistics.

Deviations of the default from the released code, all undone by preset "official": candidates have their
own magnitudes, not all m = 28; every image has its own policies (draws "image"), where a batch had one set;
the copies of an image share crop, flip and cutout, so that they differ by policy and nothing else; the loss
is a mean, not a sum over the batch (learning rate 0.32, for 0.01 x 32); an epoch's policy is the one at its
end, as in the paper, not at its start; the policy's learning rates are ten times as large; the validation
batches come in another order in every epoch (the caller passes them).
In both: eta is left out of (16) and (17), as in the released code; policies are proposed uniformly
always, not with probability 0.9999; the running statistics are those of the copy without policy (a search
does not read them); an epoch's last batch is filled up.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ... import checks, ops
from ...augment.image_keys import image_keys
from ...gradients import bilevel
from ...policies import Policy, Schedule
from ...training import sgd
from ...training.sgd import Batch, mean_of_devices
from ..losses import clean_losses, inner_step, metrics, training_losses
from . import gradient as ddas_gradient
from . import input as ddas_input
from .config import Config, learning_rate
from .gradient import Parameters


class SearchState(NamedTuple):
    """All that a search carries from step to step.

    Attributes:
      key: base random key; step t uses fold_in(key, t).
      train: the network, its momentum, and the step count.
      policy: `Parameters`.
      optimizer: Adam's state.
      snapshots: `Parameters` of every epoch, [T] and [T, K]; those of epochs to come are the first ones.
    """

    key: jax.Array
    train: sgd.TrainState
    policy: Parameters
    optimizer: Any
    snapshots: Parameters


def _optimizer(config: Config) -> optax.GradientTransformation:
    def adam(learning_rate):
        return optax.adam(learning_rate, b1=0.5, b2=0.999)

    p_tp = adam(config.p_tp_learning_rate) if config.learn_p_tp else optax.set_to_zero()
    p_o = adam(config.policy_learning_rate)
    return optax.partition({"p_tp": p_tp, "p_o": p_o}, Parameters("p_tp", "p_o"))


def init(key: jax.Array, config: Config, params: Any, batch_stats: Any) -> SearchState:
    """The state before the first step: uniform p_o, p_tp as configured."""
    with np.errstate(divide="ignore"):  # a p_tp of 0 or 1 that is not learned
        alpha_tp = np.log(config.initial_p_tp) - np.log1p(-config.initial_p_tp)
    uniform = jnp.zeros(len(config.candidates.row), jnp.float32)
    parameters = Parameters(jnp.asarray(alpha_tp, jnp.float32), uniform)
    return SearchState(
        key=key,
        train=sgd.init(params, batch_stats),
        policy=parameters,
        optimizer=_optimizer(config).init(parameters),
        snapshots=jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (config.num_epochs, *leaf.shape)), parameters
        ),
    )


def gradients(
    config: Config,
    state: SearchState,
    train_batch: Batch,
    valid_batch: Batch,
    axis_name: str | None = None,
    policies: jax.Array | None = None,
) -> tuple[Parameters, sgd.TrainState, dict[str, jax.Array]]:
    """The gradient of the policy, and the network's next state.

    Args: as in `step`; `policies` int [G, L, N_o] takes the place of those that are proposed.

    Returns:
      (policy gradient, network after its update, metrics).
    """
    train, parameters = state.train, state.policy
    rate = learning_rate(config, train.step)
    proposal_key, copy_key, network_key = jax.random.split(jax.random.fold_in(state.key, train.step), 3)
    count = train_batch.images.shape[0]
    if policies is None:
        is_shared = config.draws == "batch"
        keys = image_keys(proposal_key, *((1, None) if is_shared else (count, axis_name)))
        shape = (config.num_policies, config.num_ops)
        propose = lambda key: jax.random.randint(key, shape, 0, parameters.p_o.size)  # noqa: E731
        policies = jax.vmap(propose)(keys.draw)
    inputs = ddas_input.copies(copy_key, config, policies, train_batch.images, axis_name)
    network_keys = jax.random.split(network_key, 1 + config.num_policies)  # for networks that draw noise

    losses = training_losses(config, train.batch_stats, train_batch.labels, axis_name)

    # Eq. (12): 1 - p_tp for the copy without policy, p_tp P(phi_l) / Z for the others.
    p_tp = jax.nn.sigmoid(parameters.p_tp)
    shares = ddas_gradient.policy_weights(parameters, policies, axis_name)
    weights = jnp.concatenate([jnp.full_like(shares[:, :1], 1.0 - p_tp), p_tp * shares], 1)
    gradient, score, (losses_of_copies, (stats, scalars)) = ddas_gradient.mixed_gradient(
        lambda params, copy: losses(params, *copy),
        train.params,
        (inputs, network_keys),
        weights,
        per_image=config.draws == "image",
        axis_name=axis_name,
    )
    if config.preset == "official":  # the sum over the batch, not its mean
        whole = count if axis_name is None else count * jax.lax.axis_size(axis_name)
        gradient = jax.tree.map(lambda leaf: whole * leaf, gradient)

    update = inner_step(config, train, rate, nesterov=config.nesterov)  # eq. (6)
    params, momentum, pull_back = bilevel.look_ahead(update, gradient)

    valid_gradient, *valid = bilevel.loss_gradient(
        clean_losses(network_keys[0], config, train.batch_stats, valid_batch, axis_name), params, axis_name
    )

    # g_val itself for plain SGD. Its length cancels in Z_g; at unit length c neither over- nor underflows.
    def pull_back_up(vector):
        return jax.tree.map(jnp.negative, pull_back(vector))

    scores = score(bilevel.direction(pull_back_up, valid_gradient))
    c = scores[:, :1] - scores[:, 1:]  # eq. (9)
    train_loss = mean_of_devices(jnp.sum(jnp.mean(weights.T * losses_of_copies, 1)), axis_name)
    stats, scalars = jax.tree.map(lambda leaf: leaf[0], (stats, scalars))  # of the copy without policy
    numbers = metrics((train_loss, scalars), valid, axis_name, learning_rate=rate)
    new_train = sgd.TrainState(train.step + 1, params, stats, momentum)
    return ddas_gradient.policy_gradient(parameters, policies, c, axis_name), new_train, numbers


def step(
    config: Config, state: SearchState, train_batch: Batch, valid_batch: Batch, axis_name: str | None = None
) -> tuple[SearchState, dict[str, jax.Array]]:
    """One update of the network and one of the policy, as `searches` says."""
    checks.check_batches(train_batch, valid_batch)
    gradient, train, numbers = gradients(config, state, train_batch, valid_batch, axis_name)
    updates, optimizer = _optimizer(config).update(gradient, state.optimizer)
    new_policy = optax.apply_updates(state.policy, updates)
    # The last write of an epoch stays; of the official preset, the first one.
    epoch = state.train.step // config.steps_per_epoch
    is_kept = config.preset == "corrected" or state.train.step % config.steps_per_epoch == 0
    shown = state.policy if config.preset == "official" else new_policy
    snapshots = jax.tree.map(
        lambda all_epochs, now: all_epochs.at[epoch].set(jnp.where(is_kept, now, all_epochs[epoch])),
        state.snapshots,
        shown,
    )
    p_tp, log_p_o = jax.nn.sigmoid(new_policy.p_tp), jax.nn.log_softmax(new_policy.p_o)
    p_o = jnp.exp(log_p_o)
    numbers["p_tp"] = p_tp
    numbers["entropy"] = -jnp.sum(p_o * log_p_o)
    rows = jnp.asarray(config.candidates.row)
    mass = jnp.zeros(len(config.space.rows), p_o.dtype).at[rows].add(p_o)
    numbers["op_mass"] = p_tp * config.num_ops * mass
    return SearchState(state.key, train, new_policy, optimizer, snapshots), numbers


def smooth(p_tp: np.ndarray, size: int) -> np.ndarray:
    """Mean filter: entry i becomes the mean of entries i .. i + size - 1.

    The last size - 1 entries repeat the last full mean. The window looks ahead, as in the released code
    (sizes 1 for CIFAR and 6 for ImageNet).

    Args:
      p_tp: [T].
      size: F_s, 1 or more; more than T counts as T.

    Returns:
      [T].

    Raises:
      ValueError: size below 1.
    """
    if size < 1:
        raise ValueError(f"size: got {size}, expected 1 or more")
    size = min(size, len(p_tp))
    means = np.convolve(p_tp, np.full(size, 1.0 / size), "valid")
    return np.concatenate([means, np.full(size - 1, means[-1])])


def extract_policy(config: Config, state: SearchState, **metadata) -> Policy:
    """The dynamic policy that the search found, as an artefact to save, sample and train with.

    One entry for every epoch that the search has begun, p_tp smoothed over `smoothing` epochs.
    """
    options = ops.space_options(config.space)
    count = max(1, -(-int(state.train.step) // config.steps_per_epoch))
    alpha_tp, alpha_o = (np.asarray(leaf, np.float64)[:count] for leaf in state.snapshots)
    p_o = np.exp(alpha_o - alpha_o.max(1, keepdims=True))
    content = Schedule(
        row=np.array(config.candidates.row, np.int32),
        level=np.array(config.candidates.level, np.float64),
        p_tp=smooth(1.0 / (1.0 + np.exp(-alpha_tp)), config.smoothing),
        p_o=p_o / p_o.sum(1, keepdims=True),
        num_ops=config.num_ops,
    )
    moment = "start" if config.preset == "official" else "end"
    return Policy(
        kind="schedule",
        search_space=config.space.name,
        content=content,
        method="ddas",
        preset=config.preset,
        selection_rule=f"p_tp (mean of {config.smoothing}) and p_o at the {moment} of every epoch",
        **options,
        **metadata,
    )
