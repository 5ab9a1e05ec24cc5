"""The training batch that a DADA step sees: from uint8 images and one draw per image to network input.

Every random number belongs to one image of the whole batch (`image_keys`).
"""

import functools

import jax
import jax.numpy as jnp

from dada import augment, dada_official, op_table, policy_space, relaxed_augment, sampling
from dada.dada_config import Config
from dada.image_keys import ImageKeys, each_image, image_keys

__all__ = ["ImageKeys", "image_keys", "network_input"]


def network_input(
    config: Config,
    parameters: policy_space.Parameters,
    draws: policy_space.Draw,
    draw_keys: jax.Array,
    keys: ImageKeys,
    temperature: jax.Array,
    images: jax.Array,
) -> jax.Array:
    """Crop, flip, policy, normalise, cutout, in the order of the papers.

    Args:
      config: settings of the search.
      parameters: the policy, in the form that the preset learns.
      draws: [D] draws, D = B, or 1 for one draw shared by the batch.
      draw_keys: [D] the keys of the draws.
      keys: [B] keys of each image.
      temperature: [] of the relaxed samples.
      images: uint8 [B, H, W, 3].

    Returns:
      float32 [B, H, W, 3], normalised. Gradient: in the levels, and for relaxed estimators in all of
      `parameters`; none in the official preset, whose levels are read by another rule.
    """
    count, image_size = images.shape[0], images.shape[1:3]
    if config.crop_padding:
        crop = functools.partial(augment.random_crop, padding=config.crop_padding)
        images = each_image(crop)(keys.crop, images)
    if config.flip:
        images = each_image(augment.random_flip)(keys.flip, images)
    images = images.astype(jnp.float32) / 255.0
    slots = (policy_space.OPS_PER_SUB_POLICY,)
    signs = jax.vmap(lambda key: sampling.random_signs(key, slots))(keys.sign)
    centers = jax.vmap(lambda key: sampling.random_centers(key, slots, image_size))(keys.center)
    if config.preset == "official":
        centers = dada_official.shift_centers(centers, image_size)
    if config.preset == "corrected" and config.estimator in ("gumbel", "straight_through"):
        images = relaxed_augment.apply(
            config.space,
            parameters,
            draws,
            draw_keys,
            temperature,
            images,
            signs,
            centers,
            hard=config.estimator == "straight_through",
        )
    else:
        rows = jax.vmap(lambda draw: policy_space.ops(parameters, len(config.space.rows), draw))(draws)
        applied = jax.vmap(lambda draw: draw.bits[draw.row])(draws)
        # The official levels get their gradient elsewhere, from a trick that does not see the op.
        level = dada_official.level if config.preset == "official" else jax.nn.sigmoid
        levels = level(parameters.level)[draws.row]
        shape = (count, *slots)
        concrete = sampling.assemble_draws(
            config.space,
            *(jnp.broadcast_to(leaf, shape) for leaf in (rows, applied, levels)),
            signs,
            centers,
        )
        op_ids = tuple(sorted({0, *op_table.row_op_ids(config.space).tolist()}))
        images = augment.apply_draws_differentiable(images, concrete, op_ids)
    images = augment.normalize(images, config.mean, config.std)
    if config.cutout_length:
        cutout = functools.partial(augment.random_cutout, length=config.cutout_length)
        images = each_image(cutout)(keys.cutout, images)
    return images
