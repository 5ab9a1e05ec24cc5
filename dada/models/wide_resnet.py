"""Wide residual networks (WRN-depth-width) for small images, pre-activation, without dropout.

Contract: see `models`. Parameters and statistics:

    stem                          3x3 convolution, 3 -> 16 channels
    stages[3][(depth - 4) / 6]    blocks of 16, 32, 64 times `width` channels, strides 1, 2, 2
      norm1 conv1 norm2 conv2     BN, ReLU, 3x3 convolution, BN, ReLU, 3x3 convolution
      shortcut                    1x1 convolution, only where channels or resolution change
    norm, dense                   BN, ReLU, global average, linear

WRN-40-2 has 2,246,474 parameters and WRN-28-10 36,489,290, with
10 classes.

The network of DADA's tables. It differs from that of the paper in four ways: every convolution has
a bias; the stride of a block sits in its SECOND convolution; the shortcut convolution reads the raw
block input, before norm and ReLU; initialisation is PyTorch's default, U(+-1/sqrt(fan_in)).
`batch_norm_momentum` is in PyTorch's sense: 0.9 keeps a tenth of the old statistics.

Reference: Zagoruyko and Komodakis 2016, arXiv:1605.07146.
"""

import dataclasses
import functools
from typing import Any

import jax

from . import layers, stages

STAGE_CHANNELS = (16, 32, 64)
STAGE_STRIDES = (1, 2, 2)


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the network.

    Attributes:
      depth: number of layers as the paper counts them, 6 n + 4 for n blocks in each stage.
      width: multiple of 16, 32 and 64 channels.
      num_classes: number of logits.
    """

    depth: int = 40
    width: int = 2
    num_classes: int = 10


def init(key: jax.Array, config: Config) -> tuple[Any, Any]:
    """Draws parameters and running statistics (contract: `models`), by PyTorch's default.

    Raises:
      TypeError: a field of the config is no integer.
      ValueError: depth is not 6 n + 4 with n >= 1, or width or num_classes is below 1.
    """
    blocks = stages.blocks_per_stage("wide_resnet", config, 6, 4)
    stem_key, dense_key, *stage_keys = jax.random.split(key, 2 + len(STAGE_CHANNELS))

    stage_channels = [channels * config.width for channels in STAGE_CHANNELS]
    params, stats = {"stem": layers.init_conv(stem_key, 3, 3, STAGE_CHANNELS[0])}, {}
    params["stages"], stats["stages"] = stages.init(
        stage_keys, STAGE_CHANNELS[0], stage_channels, [blocks] * len(stage_keys), STAGE_STRIDES, _init_block
    )
    channels = stage_channels[-1]
    params["norm"], stats["norm"] = layers.init_batch_norm(channels)
    params["dense"] = layers.init_dense(dense_key, channels, config.num_classes)
    return params, stats


def apply(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    is_training: bool,
    key: jax.Array | None = None,
    *,
    batch_norm_momentum: float = 0.9,
    axis_name: str | None = None,
) -> tuple[jax.Array, Any]:
    """Logits and new statistics of a batch (contract: `models`); the key is ignored."""
    del key
    layers.check_images("wide_resnet", images)

    norm = functools.partial(
        layers.batch_norm, is_training=is_training, momentum=batch_norm_momentum, axis_name=axis_name
    )

    def norm_relu(*arguments):
        outputs, new_stats = norm(*arguments)
        return jax.nn.relu(outputs), new_stats

    def block(block_params, block_stats, inputs, stride, index):
        del index
        hidden, norm1 = norm_relu(block_params["norm1"], block_stats["norm1"], inputs)
        hidden = layers.conv(block_params["conv1"], hidden)
        hidden, norm2 = norm_relu(block_params["norm2"], block_stats["norm2"], hidden)
        hidden = layers.conv(block_params["conv2"], hidden, stride=stride)
        if "shortcut" in block_params:
            inputs = layers.conv(block_params["shortcut"], inputs, stride=stride)
        return hidden + inputs, {"norm1": norm1, "norm2": norm2}

    hidden = layers.conv(params["stem"], images.astype(params["stem"]["weight"].dtype))
    (*_, hidden), new_stages = stages.apply(
        params["stages"], batch_stats["stages"], hidden, STAGE_STRIDES, block
    )
    hidden, new_norm = norm_relu(params["norm"], batch_stats["norm"], hidden)
    logits = layers.dense(params["dense"], layers.global_average_pool(hidden))
    return logits, {"stages": new_stages, "norm": new_norm}


def _init_block(key, in_channels, out_channels, stride):
    conv1_key, conv2_key, shortcut_key = jax.random.split(key, 3)
    params, stats = {}, {}
    params["norm1"], stats["norm1"] = layers.init_batch_norm(in_channels)
    params["conv1"] = layers.init_conv(conv1_key, 3, in_channels, out_channels)
    params["norm2"], stats["norm2"] = layers.init_batch_norm(out_channels)
    params["conv2"] = layers.init_conv(conv2_key, 3, out_channels, out_channels)
    if stride != 1 or in_channels != out_channels:
        params["shortcut"] = layers.init_conv(shortcut_key, 1, in_channels, out_channels)
    return params, stats
