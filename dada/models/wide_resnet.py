"""Wide residual networks (WRN-depth-width) for small images, pre-activation, without dropout.

Contract: `init(key, config) -> (params, batch_stats)` and `apply(params, batch_stats, images,
is_training) -> (logits, new_batch_stats)`. Both trees are nested dicts and lists of plain arrays of
the same layout:

    stem                          3x3 convolution, 3 -> 16 channels
    stages[3][(depth - 4) / 6]    blocks of 16, 32, 64 times `width` channels, strides 1, 2, 2
      norm1 conv1 norm2 conv2     BN, ReLU, 3x3 convolution, BN, ReLU, 3x3 convolution
      shortcut                    1x1 convolution, only where channels or resolution change
    norm, dense                   BN, ReLU, global average, linear

`batch_stats` holds the norms only. WRN-40-2 has 2,246,474 parameters and WRN-28-10 36,489,290, with
10 classes.

The network of DADA's tables. It differs from that of the paper in four ways: every convolution has
a bias; the stride of a block sits in its SECOND convolution; the shortcut convolution reads the raw
block input, before norm and ReLU; initialisation is PyTorch's default, U(+-1/sqrt(fan_in)).
`batch_norm_momentum` is in PyTorch's sense: 0.9 keeps a tenth of the old statistics.

Reference: Zagoruyko and Komodakis 2016, arXiv:1605.07146.
"""

import dataclasses
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
    """Draws the parameters and sets the running statistics to mean 0 and variance 1.

    Args:
      key: typed PRNG key, consumed.
      config: Config.
    Returns:
      (params, batch_stats), nested dicts and lists of float32 arrays.
    Raises:
      TypeError: a field of the config is no integer.
      ValueError: depth is not 6 n + 4 with n >= 1, or width or num_classes is below 1.
    """
    _check_config(config)
    blocks = (config.depth - 4) // 6
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
    """Logits of a batch of images. Depth and width are read off the parameters.

    Args:
      params: parameters, as `init` returns them.
      batch_stats: running statistics, as `init` returns them.
      images: [B, H, W, 3], floating, normalised; cast to the dtype of the parameters.
      is_training: Python bool; whether batch norm uses and stores the statistics of this batch.
      key: ignored; stands for the networks that draw random numbers.
      batch_norm_momentum: weight of the new batch in the running statistics, in [0, 1].
      axis_name: mapped axis over which batch statistics are taken, or None.
    Returns:
      (logits [B, num_classes], new batch_stats).
    Gradient: all modes, to parameters and images; none to the new batch_stats.
    Raises:
      TypeError: images are not floating.
      ValueError: images of another shape.
    """
    del key
    layers.check_images("wide_resnet", images)

    def norm_relu(norm_params, norm_stats, inputs):
        outputs, new_stats = layers.batch_norm(
            norm_params, norm_stats, inputs, is_training, momentum=batch_norm_momentum, axis_name=axis_name
        )
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
    hidden, new_stages = stages.apply(params["stages"], batch_stats["stages"], hidden, STAGE_STRIDES, block)
    hidden, norm = norm_relu(params["norm"], batch_stats["norm"], hidden)
    logits = layers.dense(params["dense"], layers.global_average_pool(hidden))
    return logits, {"stages": new_stages, "norm": norm}


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


def _check_config(config):
    layers.check_sizes("wide_resnet", **dataclasses.asdict(config))
    if config.depth < 10 or (config.depth - 4) % 6:
        raise ValueError(
            f"wide_resnet: expected depth 6 n + 4 (10, 16, ..., 28, ..., 40), got {config.depth}"
        )
