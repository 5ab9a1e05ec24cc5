"""Residual networks (ResNet-18, -50, -101, -200) for ImageNet, and with another stem for small images.

Contract: see `models`. Parameters and statistics:

    stem, norm          7x7 convolution of stride 2, BN, ReLU, 3x3 maximum of stride 2; for small
                        images a 3x3 convolution of stride 1, BN, ReLU
    stages[4][n]        blocks of 1, 2, 4, 8 times `width` channels, strides 1, 2, 2, 2
      depth 18          conv1 3x3 with the stride, norm1, ReLU, conv2 3x3, norm2
      deeper            conv1 1x1, norm1, ReLU, conv2 3x3 with the stride, norm2, ReLU,
                        conv3 1x1 to four times the channels, norm3
      shortcut          1x1 convolution with the stride, shortcut_norm; only where channels or
                        resolution change
    dense               global average, linear

A ReLU follows every sum. No convolution has a bias. With 1000 classes ResNet-18 has 11,689,512
parameters, ResNet-50 25,557,032, ResNet-101 44,549,160 and ResNet-200 64,673,832. A norm without running
statistics is a group norm.

Two ways it differs from the paper, as most implementations do: the stride of a bottleneck block sits in its
3x3 convolution, and every change of channels or resolution has a convolution as shortcut.

Reference: He et al. 2016, arXiv:1512.03385.
"""

import dataclasses
import functools
from typing import Any

import jax

from . import layers, stages

STAGE_WIDTHS = (1, 2, 4, 8)
STAGE_STRIDES = (1, 2, 2, 2)
STAGE_BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 200: (3, 24, 36, 3)}
BOTTLENECK_DEPTHS = (50, 101, 200)
EXPANSION = 4
NORMS = {"batch": layers.init_batch_norm, "group": layers.init_group_norm}
LARGE_STEM_KERNEL = 7
SMALL_STEM_KERNEL = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the network.

    Attributes:
      depth: number of layers as the paper counts them, 18, 50, 101 or 200.
      num_classes: number of logits.
      width: channels of the stem and, before the expansion of a bottleneck, of the first stage.
      small_images: whether the stem keeps the resolution, for images of some 32 pixels.
      norm: "batch", or "group" for group norm, which needs a width that is a multiple of 8.
    """

    depth: int = 50
    num_classes: int = 1000
    width: int = 64
    small_images: bool = False
    norm: str = "batch"


def init(key: jax.Array, config: Config) -> tuple[Any, Any]:
    """Draws parameters and running statistics (contract: `models`).

    Kernels are normal with variance 2 / (k * k * C_out); the linear layer has PyTorch's default.

    Raises:
      TypeError: a size in the config is no integer, or small_images is no bool.
      ValueError: depth is not one of the four, another size is below 1, or a norm that there is not.
    """
    layers.check_sizes("resnet", depth=config.depth, num_classes=config.num_classes, width=config.width)
    if not isinstance(config.small_images, bool):
        raise TypeError(f"resnet: expected a bool small_images, got {config.small_images!r}")
    if config.depth not in STAGE_BLOCKS:
        raise ValueError(f"resnet: expected depth 18, 50, 101 or 200, got {config.depth}")
    if config.norm not in NORMS:
        raise ValueError(f"resnet: expected norm batch or group, got {config.norm!r}")
    init_norm = NORMS[config.norm]
    stem_key, dense_key, *stage_keys = jax.random.split(key, 2 + len(STAGE_WIDTHS))
    bottleneck = config.depth in BOTTLENECK_DEPTHS

    kernel = SMALL_STEM_KERNEL if config.small_images else LARGE_STEM_KERNEL
    expansion = EXPANSION if bottleneck else 1
    stage_channels = [width * config.width * expansion for width in STAGE_WIDTHS]
    params, stats = {"stem": layers.init_he_conv(stem_key, kernel, 3, config.width)}, {}
    params["norm"], stats["norm"] = init_norm(config.width)
    params["stages"], stats["stages"] = stages.init(
        stage_keys,
        config.width,
        stage_channels,
        STAGE_BLOCKS[config.depth],
        STAGE_STRIDES,
        functools.partial(_init_block, bottleneck=bottleneck, init_norm=init_norm),
    )
    params["dense"] = layers.init_dense(dense_key, stage_channels[-1], config.num_classes)
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
    """Logits and new statistics of a batch (contract: `models`); the key is ignored."""
    del key
    (*_, hidden), new_stats = features(
        params, batch_stats, images, is_training, batch_norm_momentum=batch_norm_momentum, axis_name=axis_name
    )
    return layers.dense(params["dense"], layers.global_average_pool(hidden)), new_stats


def features(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    is_training: bool,
    *,
    batch_norm_momentum: float = 0.1,
    axis_name: str | None = None,
) -> tuple[list[jax.Array], Any]:
    """Outputs of the four stages, C2 to C5, each half as high and wide as the one before, and new statistics.

    Args and errors: as of `apply` (contract: `models`); params["dense"] is not read.
    """
    layers.check_images("resnet", images)

    def norm(params, stats, inputs):
        if not stats:
            return layers.group_norm(params, inputs), stats
        return layers.batch_norm(
            params, stats, inputs, is_training, momentum=batch_norm_momentum, axis_name=axis_name
        )

    def conv_norm(tree, stats, conv_name, norm_name, inputs, stride):
        return norm(tree[norm_name], stats[norm_name], layers.conv(tree[conv_name], inputs, stride=stride))

    def block(block_params, block_stats, inputs, stride, index):
        del index
        hidden, new_stats = inputs, {}
        strides = (1, stride, 1) if "conv3" in block_params else (stride, 1)
        for number, conv_stride in enumerate(strides, start=1):
            name = f"norm{number}"
            hidden, new_stats[name] = conv_norm(
                block_params, block_stats, f"conv{number}", name, hidden, conv_stride
            )
            if number < len(strides):
                hidden = jax.nn.relu(hidden)
        if "shortcut" in block_params:
            inputs, new_stats["shortcut_norm"] = conv_norm(
                block_params, block_stats, "shortcut", "shortcut_norm", inputs, stride
            )
        return jax.nn.relu(hidden + inputs), new_stats

    is_large = params["stem"]["weight"].shape[0] == LARGE_STEM_KERNEL
    images = images.astype(params["stem"]["weight"].dtype)
    hidden, new_norm = conv_norm(params, batch_stats, "stem", "norm", images, 2 if is_large else 1)
    hidden = jax.nn.relu(hidden)
    if is_large:
        hidden = layers.max_pool_3x3(hidden)
    outputs, new_stages = stages.apply(params["stages"], batch_stats["stages"], hidden, STAGE_STRIDES, block)
    return outputs, {"stages": new_stages, "norm": new_norm}


def _init_block(key, in_channels, out_channels, stride, *, bottleneck, init_norm):
    if bottleneck:
        planes = out_channels // EXPANSION
        sizes = ((1, in_channels, planes), (3, planes, planes), (1, planes, out_channels))
    else:
        sizes = ((3, in_channels, out_channels), (3, out_channels, out_channels))
    shortcut_key, *conv_keys = jax.random.split(key, 1 + len(sizes))
    params, stats = {}, {}
    for number, (conv_key, size) in enumerate(zip(conv_keys, sizes), start=1):
        params[f"conv{number}"] = layers.init_he_conv(conv_key, *size)
        params[f"norm{number}"], stats[f"norm{number}"] = init_norm(size[-1])
    if stride != 1 or in_channels != out_channels:
        params["shortcut"] = layers.init_he_conv(shortcut_key, 1, in_channels, out_channels)
        params["shortcut_norm"], stats["shortcut_norm"] = init_norm(out_channels)
    return params, stats
