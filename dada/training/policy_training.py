"""Training that judges a policy: the update that the papers' evaluations take, and the test after it.

Contract: pure functions of their arguments, jitted once, and scanned or called from a loop. Images
come in as bytes and are augmented on the device, inside the step. `step` knows which epoch it is from
the number of updates done; the random numbers of an update are a function of its key and that number.

    policy_position "after_crop"   crop, flip, policy, then the rest          (DADA)
                    "first"        policy, crop, flip, then the rest          (AutoAugment, TrivialAugment)

The rest is colour jitter and lighting, which the papers have on ImageNet only, normalisation, and cutout.

With `batch_augmentation` M every image enters M times, each copy with its own augmentation; batch norm
sees all copies as one batch, where the papers' M processes have statistics of their own. With `dtype`
bfloat16 the network computes in that type; weights, momentum, statistics of batch norm, loss and the test
stay float32. With `axis_name`, in `shard_map` without check_vma or in `pmap`, or under `jit` with a batch
divided over devices, the step is that of one device.

A schedule policy of E' epochs is stretched over the E epochs of the training: epoch e takes entry
floor(e E' / E) (DDAS).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import augment, checks, ops, policies
from ..augment import image_keys, sampling
from . import schedules, sgd

POSITIONS = ("after_crop", "first")
SCHEDULES = ("cosine", "step")


@dataclasses.dataclass(frozen=True)
class Config:
    """A recipe; hashable, so that it can be a static argument.

    Attributes:
      apply: the network (params, batch_stats, images, is_training, key, axis_name=) -> (logits,
        new_batch_stats).
      policy: the policy that is judged.
      steps_per_epoch: updates in an epoch.
      num_epochs: E.
      learning_rate: before the warm-up; its peak is `learning_rate * warmup_multiplier`.
      schedule: one of SCHEDULES, after the warm-up and with a clock that starts there.
      cosine_epochs: epochs from the peak to 0, see `schedules.cosine`; None for `num_epochs`.
      decay_epochs: of the step schedule, each a division by ten.
      warmup_epochs: see `schedules.with_warmup`, like warmup_multiplier.
      weight_decay: on every parameter.
      decay_batch_norm: False leaves scale and bias of batch norm without weight decay.
      clip_norm: largest norm of the gradient; None for no clipping.
      label_smoothing: share of the target that is spread over all classes.
      batch_augmentation: M, copies of each image.
      dtype: in which the network computes.
      policy_position: one of POSITIONS.
      crop_padding: random crop with this padding; 0 for none.
      flip: random horizontal flip.
      cutout_length: side of the cutout after normalisation; 0 for none.
      color_jitter: strength, see `augment.random_color_jitter`; 0 for none.
      lighting: deviation, see `augment.random_lighting`; 0 for none.
      scale_jitter: of images with boxes, see `augment.base_augment`; 0 for none.
      mean: of the pixels in [0, 1], per channel.
      std: the same.
      losses: of the examples of a batch, in the form of `sgd.classification_losses`.
    """

    apply: Callable
    policy: policies.Policy
    steps_per_epoch: int
    num_epochs: int = 200
    learning_rate: float = 0.1
    schedule: str = "cosine"
    cosine_epochs: float | None = None
    decay_epochs: tuple[float, ...] = ()
    warmup_epochs: float = 0.0
    warmup_multiplier: float = 1.0
    weight_decay: float = 2e-4
    decay_batch_norm: bool = True
    clip_norm: float | None = 5.0
    label_smoothing: float = 0.0
    batch_augmentation: int = 1
    dtype: str = "float32"
    policy_position: str = "after_crop"
    crop_padding: int = 4
    flip: bool = True
    cutout_length: int = 16
    color_jitter: float = 0.0
    lighting: float = 0.0
    scale_jitter: float = 0.0
    mean: tuple[float, float, float] = augment.CIFAR_MEAN
    std: tuple[float, float, float] = augment.CIFAR_STD
    losses: Callable = sgd.classification_losses

    def __post_init__(self):
        checks.check_choices(
            self, {"policy_position": POSITIONS, "schedule": SCHEDULES, "dtype": ("float32", "bfloat16")}
        )
        if self.schedule == "step" and not self.decay_epochs:
            raise ValueError("decay_epochs: got none, expected one or more for the step schedule")
        if not 0.0 <= self.label_smoothing <= 1.0:
            raise ValueError(f"label_smoothing: got {self.label_smoothing}, expected 0 to 1")
        checks.check_counts(self, "batch_augmentation")
        learning_rate(self, 0)  # refuses a warm-up that does not fit


class Keys(NamedTuple):
    """One stream per use."""

    policy: jax.Array
    crop: jax.Array
    flip: jax.Array
    cutout: jax.Array
    network: jax.Array
    color_jitter: jax.Array
    lighting: jax.Array


def learning_rate(config: Config, step: int | jax.Array) -> jax.Array:
    """Learning rate of an update: warm-up, then the schedule, by the real-valued epoch.

    Args:
      config: Config.
      step: updates done before it, int scalar, may be traced.
    Returns:
      floating scalar.
    """
    peak = config.learning_rate * config.warmup_multiplier
    if config.schedule == "cosine":
        num_epochs = config.cosine_epochs or config.num_epochs
        after = functools.partial(schedules.cosine, learning_rate=peak, num_epochs=num_epochs)
    else:
        after = functools.partial(schedules.step, learning_rate=peak, decay_epochs=config.decay_epochs)
    return schedules.with_warmup(
        step / config.steps_per_epoch,
        after,
        learning_rate=config.learning_rate,
        warmup_epochs=config.warmup_epochs,
        multiplier=config.warmup_multiplier,
    )


def network_input(
    keys: Keys, config: Config, images: Any, epoch: jax.Array | None, axis_name: str | None = None
) -> Any:
    """Augments and normalises a batch in the order of the recipe.

    Args:
      keys: Keys, consumed.
      config: Config.
      images: uint8 [B, H, W, 3], perhaps with boxes (`augment.ImagesWithBoxes`).
      epoch: integer scalar, epochs done; read by a schedule policy only.
      axis_name: mapped axis over which the batch is divided, or None.
    Returns:
      float32 [B, H, W, 3], with boxes if there are some.
    """

    def apply_policy(images):
        if config.policy.kind == "sub_policies" and (config.policy.content.row < 0).all():
            return images  # no op at all: the plain baselines pay for none
        count, *image_size = images.shape[:3]
        count = image_keys.whole_count(count, axis_name)
        draws = sampling.sample(keys.policy, config.policy, count, tuple(image_size), epoch)
        draws = image_keys.own_part(draws, axis_name)
        op_ids = ops.op_ids(policies.space(config.policy))
        return augment.apply_draws(images, draws, op_ids=op_ids)

    position = config.policy_position
    return augment.base_augment(
        keys, config, images, apply_policy, policy_position=position, axis_name=axis_name
    )


def step(
    key: jax.Array,
    config: Config,
    state: sgd.TrainState,
    images: Any,
    labels: jax.Array,
    axis_name: str | None = None,
) -> tuple[sgd.TrainState, dict[str, jax.Array]]:
    """One update on a batch of bytes.

    Args:
      key: typed key of the whole training; the update folds in the number of updates done.
      config: Config, static.
      state: sgd.TrainState.
      images: uint8 [B, H, W, 3], perhaps with boxes.
      labels: int [B], as `config.losses` wants them.
      axis_name: mapped axis over which the batch is divided, for pmap. Every random number belongs to
        one image of the whole batch, so the division changes nothing but rounding.
    Returns:
      (new TrainState, {"loss", "learning_rate"} and the scalars of `config.losses`): float32; of the
      augmented batch, before the update.
    Reference: DADA, section 4 of the paper and its released training code.
    """
    keys = Keys(*jax.random.split(jax.random.fold_in(key, state.step), len(Keys._fields)))
    if config.batch_augmentation > 1:
        repeat = functools.partial(jnp.repeat, repeats=config.batch_augmentation, axis=0)
        images, labels = jax.tree.map(repeat, (images, labels))
    losses = config.losses
    if config.label_smoothing:
        losses = functools.partial(losses, label_smoothing=config.label_smoothing)
    rate = learning_rate(config, state.step)
    new_state, metrics = sgd.train_step(
        in_dtype(config.apply, config.dtype),
        state,
        network_input(keys, config, images, _policy_epoch(config, state.step), axis_name),
        labels,
        rate,
        losses=losses,
        weight_decay=_weight_decays(config, state.params),
        clip_norm=config.clip_norm,
        nesterov=True,
        key=keys.network,
        axis_name=axis_name,
    )
    return new_state, {**metrics, "learning_rate": jnp.asarray(rate, jnp.float32)}


def evaluate(
    config: Config,
    state: sgd.TrainState,
    images: jax.Array,
    labels: jax.Array,
    batch_size: int,
    axis_name: str | None = None,
) -> dict[str, jax.Array]:
    """Loss and number of right answers on a whole set, under the running statistics, in float32.

    Args:
      config: Config, static.
      state: sgd.TrainState; read only.
      images: uint8 [N, H, W, 3], all of them on every device.
      labels: int [N].
      batch_size: static; the images that fill up the last batch do not count.
      axis_name: mapped axis whose devices share every batch, its size rounded up to equal parts.
    Returns:
      {"loss": float32 scalar, mean over the N images; "num_right" and "num_right_top_5": int32 scalars, the
      images whose class has the largest logit, or one of the five largest}.
    """
    count = labels.shape[0]

    def add_batch(totals, index):
        member = jnp.minimum(index, count - 1)
        inputs = augment.normalize(images[member], config.mean, config.std)
        logits, _ = config.apply(state.params, state.batch_stats, inputs, False)
        counts = index < count
        losses = sgd.cross_entropy(logits, labels[member])
        _, best = jax.lax.top_k(logits, min(5, logits.shape[-1]))
        is_right = best == labels[member][:, None]
        batch = {
            "loss": jnp.sum(jnp.where(counts, losses, 0.0)),
            "num_right": jnp.sum(counts & is_right[:, 0], dtype=jnp.int32),
            "num_right_top_5": jnp.sum(counts & jnp.any(is_right, axis=-1), dtype=jnp.int32),
        }
        return jax.tree.map(jnp.add, totals, batch), None

    none = jnp.zeros((), jnp.int32)
    start = {"loss": jnp.zeros((), jnp.float32), "num_right": none, "num_right_top_5": none}
    totals, _ = jax.lax.scan(add_batch, start, _in_batches(count, batch_size, axis_name))
    totals = totals if axis_name is None else jax.lax.psum(totals, axis_name)
    return {**totals, "loss": totals["loss"] / count}


def predict(
    config: Config,
    decode: Callable,
    state: sgd.TrainState,
    images: jax.Array,
    batch_size: int,
    axis_name: str | None = None,
) -> Any:
    """What a network says of a whole set, under the running statistics, in float32.

    Args:
      config: Config, static.
      decode: from the outputs of a batch to a pytree whose leaves have an axis of images first; static.
      state: sgd.TrainState; read only.
      images: uint8 [N, H, W, 3], all of them on every device.
      batch_size: as in `evaluate`.
      axis_name: as in `evaluate`.
    Returns:
      That pytree with N images, in their order, on every device.
    """
    count = images.shape[0]

    def of_batch(_, index):
        inputs = augment.normalize(images[jnp.minimum(index, count - 1)], config.mean, config.std)
        outputs, _ = config.apply(state.params, state.batch_stats, inputs, False)
        return None, decode(outputs)

    _, found = jax.lax.scan(of_batch, None, _in_batches(count, batch_size, axis_name))
    found = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
    if axis_name is not None:
        found = jax.lax.all_gather(found, axis_name, tiled=True)
    return jax.tree.map(lambda leaf: leaf[:count], found)


def _in_batches(count, batch_size, axis_name):
    """0, 1, ... in batches, up to `count` and what fills up the last one: int32 [batches, of this device]."""
    num_parts = image_keys.whole_count(1, axis_name)
    part_size = -(-min(batch_size, count) // num_parts)
    num_batches = -(-count // (num_parts * part_size))
    index = image_keys.own_part(jnp.arange(num_parts * num_batches * part_size), axis_name)
    return index.reshape(num_batches, part_size)


def _policy_epoch(config, step):
    """Entry of a schedule policy for the epoch of this step; None for the other kinds."""
    if config.policy.kind != "schedule":
        return None
    num_entries = len(config.policy.content.p_tp)
    epoch = jnp.minimum(step // config.steps_per_epoch, config.num_epochs - 1)
    return epoch * num_entries // config.num_epochs


def _weight_decays(config, params):
    """Weight decay of every parameter; batch norms are the dicts that have a "scale"."""
    if config.decay_batch_norm:
        return config.weight_decay

    def is_batch_norm(node):
        return isinstance(node, dict) and "scale" in node

    return jax.tree.map(
        lambda node: 0.0 if is_batch_norm(node) else config.weight_decay, params, is_leaf=is_batch_norm
    )


def in_dtype(apply: Callable, dtype: str) -> Callable:
    """A network with weights and activations in `dtype`; logits and statistics stay float32.

    Gradient: in the dtype of the parameters, and so are derivatives along a direction.
    """
    if dtype == "float32":
        return apply

    def cast_apply(params, batch_stats, images, *arguments, **more):
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        logits, new_stats = apply(params, batch_stats, images.astype(dtype), *arguments, **more)
        return logits.astype(jnp.float32), jax.tree.map(lambda new: new.astype(jnp.float32), new_stats)

    return cast_apply
