"""The copies of a training batch that a DDAS step sees: one without policy, one for each sampled policy.

Every random number belongs to one image of the whole batch (`image_keys`), and to one copy unless the
copies share it. G groups of images that share their policies: 1, or one for each image. L policies, N_o ops.
"""

import functools

import jax
import jax.numpy as jnp

from dada import augment, op_table, sampling
from dada.ddas_config import Config
from dada.image_keys import each_image, image_keys


def copies(
    key: jax.Array,
    config: Config,
    policies: jax.Array,
    images: jax.Array,
    axis_name: str | None = None,
) -> jax.Array:
    """Policy, crop, flip, normalise, cutout, in the order of the released CIFAR code.

    Args:
      key: typed key of the step, consumed.
      config: settings of the search.
      policies: int [G, L, N_o], candidates.
      images: uint8 [B, H, W, 3].
      axis_name: mapped axis over which the batch is divided.

    Returns:
      float32 [1 + L, B, H, W, 3], normalised: the images without policy, then those of each policy.
    """
    batch, image_size = images.shape[0], images.shape[1:3]
    num_policies, num_ops = policies.shape[1:]
    # [1 + L, B] keys of every image in every copy, then one axis of (1 + L) B images.
    copy_keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(1 + num_policies))
    keys = jax.vmap(lambda key: image_keys(key, batch, axis_name))(copy_keys)
    keys = jax.tree.map(jnp.ravel, keys)
    base = jax.tree.map(lambda k: jnp.tile(k[:batch], 1 + num_policies), keys)
    base = base if config.share_randomness else keys

    signs = jax.vmap(lambda key: sampling.random_signs(key, (num_ops,)))(keys.sign[batch:])
    centers = jax.vmap(lambda key: sampling.random_centers(key, (num_ops,), image_size))(keys.center[batch:])
    each = jnp.broadcast_to(policies, (batch, num_policies, num_ops)).swapaxes(0, 1).reshape(-1, num_ops)
    draws = sampling.assemble_draws(
        config.space,
        jnp.asarray(config.candidates.row)[each],
        jnp.ones(each.shape, bool),
        jnp.asarray(config.candidates.level, jnp.float32)[each],
        signs,
        centers,
    )
    tiled = jnp.tile(images, (num_policies, 1, 1, 1))
    augmented = augment.apply_draws(tiled, draws, op_ids=op_table.op_ids(config.space))
    images = jnp.concatenate([images, augmented])
    if config.crop_padding:
        crop = functools.partial(augment.random_crop, padding=config.crop_padding)
        images = each_image(crop)(base.crop, images)
    if config.flip:
        images = each_image(augment.random_flip)(base.flip, images)
    images = augment.normalize(images, config.mean, config.std)
    if config.cutout_length:
        cutout = functools.partial(augment.random_cutout, length=config.cutout_length)
        images = each_image(cutout)(base.cutout, images)
    return images.reshape(1 + num_policies, batch, *images.shape[1:])
