"""The copies of a training batch that a DDAS step sees: one without policy, one for each sampled policy.

Every random number belongs to one image of the whole batch (`image_keys`), and to one copy unless the
copies share it. G groups of images that share their policies: 1, or one for each image. L policies, N_o ops.
"""

from typing import Any

import jax
import jax.numpy as jnp

from ... import augment, ops
from ...augment import sampling
from ...augment.image_keys import image_keys
from .config import Config


def copies(
    key: jax.Array, config: Config, policies: jax.Array, images: Any, axis_name: str | None = None
) -> Any:
    """Policy, then the base augmentation, in the order of the released CIFAR code.

    Args:
      key: typed key of the step, consumed.
      config: settings of the search.
      policies: int [G, L, N_o], candidates.
      images: uint8 [B, H, W, 3], perhaps with boxes.
      axis_name: mapped axis over which the batch is divided.

    Returns:
      float32 [1 + L, B, H, W, 3], normalised: the images without policy, then those of each policy; boxes
      and valid with the same first axes.
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
    drawn = jnp.broadcast_to(policies, (batch, num_policies, num_ops)).swapaxes(0, 1).reshape(-1, num_ops)
    draws = sampling.assemble_draws(
        config.space,
        jnp.asarray(config.candidates.row)[drawn],
        jnp.ones(drawn.shape, bool),
        jnp.asarray(config.candidates.level, jnp.float32)[drawn],
        signs,
        centers,
    )

    def apply_policies(images):
        tiled = jax.tree.map(lambda leaf: jnp.tile(leaf, (num_policies, *[1] * (leaf.ndim - 1))), images)
        augmented = augment.apply_draws(tiled, draws, op_ids=ops.op_ids(config.space))
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), images, augmented)

    inputs = augment.base_augment(base, config, images, apply_policies, policy_position="first")
    return jax.tree.map(lambda leaf: leaf.reshape(1 + num_policies, batch, *leaf.shape[1:]), inputs)
