"""Shake-Shake networks (depth, 2x width d) for small images.

Contract: see `models`. Parameters and statistics:

    stem                          3x3 convolution with bias, 3 -> 16 channels, no norm
    stages[3][(depth - 2) / 6]    blocks of 1, 2, 4 times `width` channels, strides 1, 2, 2
      branches[2]                 ReLU, conv1 3x3, norm1, ReLU, conv2 3x3, norm2
      shortcut                    only where channels change: ReLU, conv1 1x1 and conv2 1x1 for half
                                  of the channels each, norm
    dense                         ReLU, global average, linear

With depth 26 and 10 classes there are 2,923,146 parameters for
width 32 and 26,192,906 for width 96.

Symbols: h1, h2 the outputs of the branches; alpha, beta ~ U(0, 1), drawn afresh and independently
for each image, block and forward pass. A block adds to its shortcut

    alpha h1 + (1 - alpha) h2      in training, and derivatives are those of beta h1 + (1 - beta) h2
    h1 / 2 + h2 / 2                in evaluation

The two convolutions of a shortcut see different pixels where the stride is 2: rows and columns 0, 2, 4, ...
and 1, 3, 5, ... (zero beyond the edge). The first shortcut, of stride 1, is shifted alike.

Reference: Gastaldi 2017, arXiv:1705.07485.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from . import layers, stages

STEM_CHANNELS = 16
STAGE_WIDTHS = (1, 2, 4)
STAGE_STRIDES = (1, 2, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the network.

    Attributes:
      depth: number of layers as the paper counts them, 6 n + 2 for n blocks in each stage.
      width: channels of the first stage, even.
      num_classes: number of logits.
    """

    depth: int = 26
    width: int = 32
    num_classes: int = 10


def init(key: jax.Array, config: Config) -> tuple[Any, Any]:
    """Draws parameters and running statistics (contract: `models`).

    Kernels are normal with variance 2 / (k * k * C_out), but the bias of the stem and the weight of
    the linear layer are uniform, PyTorch's default; the bias of the linear layer is 0.

    Raises:
      TypeError: a field of the config is no integer.
      ValueError: depth is not 6 n + 2 with n >= 1, width is odd, or a field is below 1.
    """
    blocks = stages.blocks_per_stage("shake_shake", config, 6, 2)
    if config.width % 2:
        raise ValueError(f"shake_shake: expected an even width, got {config.width}")
    stem_key, bias_key, dense_key, *stage_keys = jax.random.split(key, 3 + len(STAGE_WIDTHS))

    stem = layers.init_he_conv(stem_key, 3, 3, STEM_CHANNELS)
    stem["bias"] = layers.uniform_fan_in(bias_key, (STEM_CHANNELS,), 3 * 3 * 3)
    params, stats = {"stem": stem}, {}
    stage_channels = [width * config.width for width in STAGE_WIDTHS]
    params["stages"], stats["stages"] = stages.init(
        stage_keys, STEM_CHANNELS, stage_channels, [blocks] * len(stage_keys), STAGE_STRIDES, _init_block
    )
    channels = stage_channels[-1]
    params["dense"] = {
        "weight": layers.uniform_fan_in(dense_key, (channels, config.num_classes), channels),
        "bias": jnp.zeros(config.num_classes, jnp.float32),
    }
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
    """Logits and new statistics of a batch (contract: `models`); training draws alpha and beta.

    Gradient: with beta in place of alpha.
    """
    layers.check_images("shake_shake", images)
    if is_training and key is None:
        raise ValueError("shake_shake: training draws noise and needs a key, got None")
    if is_training:
        num_blocks = sum(len(stage) for stage in params["stages"])
        uniforms = layers.image_uniform(key, len(images), (num_blocks, 2), axis_name=axis_name)

    norm = functools.partial(
        layers.batch_norm, is_training=is_training, momentum=batch_norm_momentum, axis_name=axis_name
    )

    def branch(branch_params, branch_stats, inputs, stride):
        hidden = layers.conv(branch_params["conv1"], jax.nn.relu(inputs), stride=stride)
        hidden, norm1 = norm(branch_params["norm1"], branch_stats["norm1"], hidden)
        hidden = layers.conv(branch_params["conv2"], jax.nn.relu(hidden))
        hidden, norm2 = norm(branch_params["norm2"], branch_stats["norm2"], hidden)
        return hidden, {"norm1": norm1, "norm2": norm2}

    def shortcut(shortcut_params, shortcut_stats, inputs, stride):
        inputs = jax.nn.relu(inputs)
        shifted = jnp.pad(inputs[:, 1:, 1:], ((0, 0), (0, 1), (0, 1), (0, 0)))
        halves = [
            layers.conv(shortcut_params["conv1"], inputs, stride=stride),
            layers.conv(shortcut_params["conv2"], shifted, stride=stride),
        ]
        outputs, new_norm = norm(
            shortcut_params["norm"], shortcut_stats["norm"], jnp.concatenate(halves, axis=-1)
        )
        return outputs, {"norm": new_norm}

    def block(block_params, block_stats, inputs, stride, index):
        first, second = (
            branch(branch_params, branch_stats, inputs, stride)
            for branch_params, branch_stats in zip(block_params["branches"], block_stats["branches"])
        )
        new_stats = {"branches": [first[1], second[1]]}
        if is_training:
            alpha, beta = uniforms[:, index, 0], uniforms[:, index, 1]
            mixed = layers.shake(first[0], alpha, beta)
            mixed += layers.shake(second[0], 1.0 - alpha, 1.0 - beta)
        else:
            mixed = 0.5 * (first[0] + second[0])
        if "shortcut" in block_params:
            inputs, new_stats["shortcut"] = shortcut(
                block_params["shortcut"], block_stats["shortcut"], inputs, stride
            )
        return mixed + inputs, new_stats

    hidden = layers.conv(params["stem"], images.astype(params["stem"]["weight"].dtype))
    (*_, hidden), new_stages = stages.apply(
        params["stages"], batch_stats["stages"], hidden, STAGE_STRIDES, block
    )
    logits = layers.dense(params["dense"], layers.global_average_pool(jax.nn.relu(hidden)))
    return logits, {"stages": new_stages}


def _init_block(key, in_channels, out_channels, stride):
    del stride
    *branch_keys, shortcut_key = jax.random.split(key, 3)
    params, stats = {"branches": []}, {"branches": []}
    for branch_key in branch_keys:
        conv1_key, conv2_key = jax.random.split(branch_key)
        norm1, norm1_stats = layers.init_batch_norm(out_channels)
        norm2, norm2_stats = layers.init_batch_norm(out_channels)
        params["branches"].append(
            {
                "conv1": layers.init_he_conv(conv1_key, 3, in_channels, out_channels),
                "norm1": norm1,
                "conv2": layers.init_he_conv(conv2_key, 3, out_channels, out_channels),
                "norm2": norm2,
            }
        )
        stats["branches"].append({"norm1": norm1_stats, "norm2": norm2_stats})
    if in_channels != out_channels:
        conv1_key, conv2_key = jax.random.split(shortcut_key)
        norm, norm_stats = layers.init_batch_norm(out_channels)
        params["shortcut"] = {
            "conv1": layers.init_he_conv(conv1_key, 1, in_channels, out_channels // 2),
            "conv2": layers.init_he_conv(conv2_key, 1, in_channels, out_channels // 2),
            "norm": norm,
        }
        stats["shortcut"] = {"norm": norm_stats}
    return params, stats
