"""The training batch that a DADA step sees: from uint8 images and one draw per image to network input.

Every random number belongs to one image of the whole batch (`image_keys`). B images, K ops; D draws,
D = B, or 1 for one draw shared by the batch.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ... import augment, ops
from ...augment import sampling
from ...augment.image_keys import ImageKeys, image_keys
from . import mixture
from . import space as policy_space
from .config import MIXTURES, Config


class Sample(NamedTuple):
    """The randomness of one step."""

    draws: policy_space.Draw  # [D]
    draw_keys: jax.Array  # [D] typed keys that they were made with
    image_keys: ImageKeys  # [B]
    network_key: jax.Array  # of networks that draw noise


def sample(
    key: jax.Array,
    parameters: policy_space.Parameters,
    count: int,
    *,
    is_shared: bool,
    axis_name: str | None = None,
) -> Sample:
    """Draws sub-policies and bits for a batch.

    Args:
      key: typed key of the step, consumed.
      parameters: the policy, as logits.
      count: B, images on this device.
      is_shared: one draw for the whole batch, instead of one for each image.
      axis_name: mapped axis over which the batch is divided.
    """
    keys = image_keys(key, count, axis_name)
    draw_keys = image_keys(key, 1).draw if is_shared else keys.draw
    draws = jax.vmap(policy_space.draw, (0, None))(draw_keys, parameters)
    return Sample(draws, draw_keys, keys, jax.random.fold_in(key, 2**32 - 1))  # no image has this index


def signs_and_centers(
    keys: ImageKeys, image_size: tuple[int, int], num_ops: int
) -> tuple[jax.Array, jax.Array]:
    """Signs [B, K] and cutout centres [B, K, 2] in pixels; `num_ops` is K, the ops of a sub-policy."""
    signs = jax.vmap(lambda key: sampling.random_signs(key, (num_ops,)))(keys.sign)
    return signs, jax.vmap(lambda key: sampling.random_centers(key, (num_ops,), image_size))(keys.center)


def apply_draws(
    space: ops.SearchSpace,
    parameters: policy_space.Parameters,
    draws: policy_space.Draw,
    levels: jax.Array,
    signs: jax.Array,
    centers: jax.Array,
    images: Any,
) -> Any:
    """Applies the drawn ops.

    Args:
      space: the search space.
      parameters: of which the draws are; only their shapes are read.
      draws: [D].
      levels: [R, K] in [0, 1], of all rows of `parameters`.
      signs, centers: of `signs_and_centers`.
      images: uint8 [B, H, W, 3], perhaps with boxes.

    Returns:
      float32 [B, H, W, 3] in [0, 1], with boxes if there are some. Gradient: in the levels.
    """
    rows = jax.vmap(lambda draw: policy_space.ops(parameters, len(space.rows), draw))(draws)
    applied = jax.vmap(lambda draw: draw.bits[draw.row])(draws)
    of_images = (jnp.broadcast_to(leaf, signs.shape) for leaf in (rows, applied, levels[draws.row]))
    concrete = sampling.assemble_draws(space, *of_images, signs, centers)
    images = augment.map_images(lambda images: images.astype(jnp.float32) / 255.0, images)
    return augment.apply_draws_differentiable(images, concrete, ops.op_ids(space))


def network_input(
    config: Config, parameters: policy_space.Parameters, sample: Sample, temperature: jax.Array, images: Any
) -> Any:
    """Crop, flip, colour jitter, policy, lighting, normalise, cutout, in the order of the released code.

    Args:
      config: settings of the search.
      parameters: the policy, as logits.
      sample: of `sample`.
      temperature: [] of the relaxed samples.
      images: uint8 [B, H, W, 3]; with boxes only where nothing is relaxed.

    Returns:
      float32 [B, H, W, 3], normalised, with boxes if there are some. Gradient: in the levels, and for relaxed
      estimators in all of `parameters`.
    """
    signs, centers = signs_and_centers(sample.image_keys, images.shape[1:3], parameters.level.shape[1])

    def apply_policy(images):
        if config.estimator not in MIXTURES:
            levels = jax.nn.sigmoid(parameters.level)
            return apply_draws(config.space, parameters, sample.draws, levels, signs, centers, images)
        return mixture.apply(
            config.space,
            parameters,
            sample.draws,
            sample.draw_keys,
            temperature,
            images.astype(jnp.float32) / 255.0,
            signs,
            centers,
            hard=config.estimator == "straight_through",
        )

    keys = sample.image_keys
    return augment.base_augment(keys, config, images, apply_policy, policy_position="after_jitter")
