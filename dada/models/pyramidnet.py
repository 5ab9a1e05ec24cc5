"""PyramidNet with bottleneck blocks and ShakeDrop (depth, alpha) for small images.

Contract: see `models`. Parameters and statistics:

    stem, stem_norm               3x3 convolution, 3 -> 16 channels, BN, no ReLU
    stages[3][(depth - 2) / 9]    blocks of ever more channels, strides 1, 2, 2
      norm1 conv1 norm2 conv2     BN, 1x1 convolution, BN, ReLU, 3x3 convolution with the stride,
      norm3 conv3 norm4           BN, ReLU, 1x1 convolution, BN
    norm, dense                   BN, ReLU, global average, linear

Block l of L has round(16 + alpha l / L) channels inside and
four times as many at its end. Shortcuts have no parameters: a 2x2 average where the stride is 2,
and zeros for the channels that the input lacks. No convolution has a bias. PyramidNet-272 with
alpha 200 has 26,210,842 parameters for 10 classes and 26,288,692 for 100.

ShakeDrop, on the residual of block l, with p = 0.5 l / L the probability of a drop:

    training     one gate for block and forward pass, 1 with probability 1 - p. Gate 1: unchanged.
                 Gate 0: values times U(-1, 1), derivatives times U(0, 1), both drawn for each image
    evaluation   times 1 - p

The gate holds for the whole batch on all devices (in the originals, for the part of one GPU).

Reference: Han et al. 2017, arXiv:1610.02915; Yamada et al. 2018, arXiv:1802.02375.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from . import layers, stages

STEM_CHANNELS = 16
STAGE_STRIDES = (1, 2, 2)
EXPANSION = 4
FINAL_DROP_RATE = 0.5


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the network.

    Attributes:
      depth: number of layers as the paper counts them, 9 n + 2 for n blocks in each stage.
      alpha: number of channels that are added from the first block to the last.
      num_classes: number of logits.
    """

    depth: int = 272
    alpha: int = 200
    num_classes: int = 10


def init(key: jax.Array, config: Config) -> tuple[Any, Any]:
    """Draws parameters and running statistics (contract: `models`).

    Kernels are normal with variance 2 / (k * k * C_out); the linear layer has PyTorch's default.

    Raises:
      TypeError: a field of the config is no integer.
      ValueError: depth is not 9 n + 2 with n >= 1, or a field is below 1.
    """
    blocks = stages.blocks_per_stage("pyramidnet", config, 9, 2)
    num_blocks = blocks * len(STAGE_STRIDES)
    stem_key, dense_key, *block_keys = jax.random.split(key, 2 + num_blocks)

    params, stats = {"stem": layers.init_he_conv(stem_key, 3, 3, STEM_CHANNELS)}, {}
    params["stem_norm"], stats["stem_norm"] = layers.init_batch_norm(STEM_CHANNELS)
    planes = [round(STEM_CHANNELS + config.alpha * (i + 1) / num_blocks) for i in range(num_blocks)]
    channels = [STEM_CHANNELS, *(EXPANSION * inner for inner in planes)]
    all_blocks = [_init_block(*arguments) for arguments in zip(block_keys, channels, planes)]
    for tree, flat in zip((params, stats), zip(*all_blocks)):
        tree["stages"] = [list(flat[start : start + blocks]) for start in range(0, num_blocks, blocks)]
    params["norm"], stats["norm"] = layers.init_batch_norm(channels[-1])
    params["dense"] = layers.init_dense(dense_key, channels[-1], config.num_classes)
    return params, stats


def apply(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    is_training: bool,
    key: jax.Array | None = None,
    *,
    batch_norm_momentum: float = 0.1,
    axis_name: str | None = None,
) -> tuple[jax.Array, Any]:
    """Logits and new statistics of a batch (contract: `models`); training draws gates and factors.

    Gradient: with the factors that ShakeDrop has for derivatives.
    """
    layers.check_images("pyramidnet", images)
    if is_training and key is None:
        raise ValueError("pyramidnet: training draws noise and needs a key, got None")
    num_blocks = sum(len(stage) for stage in params["stages"])
    drop_rates = jnp.array([FINAL_DROP_RATE * (i + 1) / num_blocks for i in range(num_blocks)])
    if is_training:
        factors = _draw_factors(key, len(images), drop_rates, axis_name)

    norm = functools.partial(
        layers.batch_norm, is_training=is_training, momentum=batch_norm_momentum, axis_name=axis_name
    )

    def block(block_params, block_stats, inputs, stride, index):
        new = {}
        hidden, new["norm1"] = norm(block_params["norm1"], block_stats["norm1"], inputs)
        hidden = layers.conv(block_params["conv1"], hidden)
        hidden, new["norm2"] = norm(block_params["norm2"], block_stats["norm2"], hidden)
        hidden = layers.conv(block_params["conv2"], jax.nn.relu(hidden), stride=stride)
        hidden, new["norm3"] = norm(block_params["norm3"], block_stats["norm3"], hidden)
        hidden = layers.conv(block_params["conv3"], jax.nn.relu(hidden))
        hidden, new["norm4"] = norm(block_params["norm4"], block_stats["norm4"], hidden)
        if is_training:
            hidden = layers.shake(hidden, factors[0][:, index], factors[1][:, index])
        else:
            hidden *= (1.0 - drop_rates[index]).astype(hidden.dtype)
        shortcut = inputs if stride == 1 else layers.average_pool_2x2(inputs)
        missing = hidden.shape[-1] - shortcut.shape[-1]
        return hidden + jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, missing))), new

    new_stats = {}
    hidden = layers.conv(params["stem"], images.astype(params["stem"]["weight"].dtype))
    hidden, new_stats["stem_norm"] = norm(params["stem_norm"], batch_stats["stem_norm"], hidden)
    (*_, hidden), new_stats["stages"] = stages.apply(
        params["stages"], batch_stats["stages"], hidden, STAGE_STRIDES, block
    )
    hidden, new_stats["norm"] = norm(params["norm"], batch_stats["norm"], hidden)
    logits = layers.dense(params["dense"], layers.global_average_pool(jax.nn.relu(hidden)))
    return logits, new_stats


def _draw_factors(key, count, drop_rates, axis_name):
    """Factors of values and of derivatives, [B, L] each, for drop rates [L]."""
    gate_key, image_key = jax.random.split(key)
    dropped = jax.random.uniform(gate_key, drop_rates.shape) < drop_rates
    shape = (len(drop_rates), 2)
    uniforms = layers.image_uniform(image_key, count, shape, axis_name=axis_name)
    forward = jnp.where(dropped, 2.0 * uniforms[..., 0] - 1.0, 1.0)
    return forward, jnp.where(dropped, uniforms[..., 1], 1.0)


def _init_block(key, in_channels, planes):
    conv1_key, conv2_key, conv3_key = jax.random.split(key, 3)
    params, stats = {}, {}
    params["norm1"], stats["norm1"] = layers.init_batch_norm(in_channels)
    params["conv1"] = layers.init_he_conv(conv1_key, 1, in_channels, planes)
    params["norm2"], stats["norm2"] = layers.init_batch_norm(planes)
    params["conv2"] = layers.init_he_conv(conv2_key, 3, planes, planes)
    params["norm3"], stats["norm3"] = layers.init_batch_norm(planes)
    params["conv3"] = layers.init_he_conv(conv3_key, 1, planes, planes * EXPANSION)
    params["norm4"], stats["norm4"] = layers.init_batch_norm(planes * EXPANSION)
    return params, stats
