"""RetinaNet: boxes and their classes in one pass, by a ResNet with a feature pyramid and two heads.

Contract: as of `models`, with `Outputs` in place of the logits. `anchors` are the boxes that the outputs
refer to, in the same order; how far an object is from its anchor is what the network says. Parameters:

    backbone          `resnet` without its linear layer, with the stem for large images
    lateral[3]        1x1 convolution of C3, C4, C5 to `channels`; to it the next level is added, doubled
    output[3]         3x3 convolution of that: P3, P4, P5 with strides 8, 16, 32
    down[levels - 3]  3x3 convolutions of stride 2: P6 of C5, P7 of ReLU(P6)
    class_head, box_head
      tower[n]        3x3 convolution, ReLU
      predict         3x3 convolution to 9 * num_classes logits, to 9 * 4 deltas

Both heads are shared by all levels, and all convolutions but those of the backbone have a bias. The
statistics are those of the backbone, which alone has norms. With 80 classes there are 37,968,692 parameters
on ResNet-50 and 56,960,820 on ResNet-101. Small images want fewer levels, channels and layers in the heads,
and smaller anchors.

Reference: Lin et al. 2017, arXiv:1708.02002; P6 of C5 and the place of the anchors as in MMDetection.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import layers, resnet

FIRST_STRIDE = 8
SCALES = tuple(2 ** (step / 3) for step in range(3))
RATIOS = (0.5, 1.0, 2.0)  # height to width
ANCHORS_PER_CELL = len(SCALES) * len(RATIOS)
HEAD_DEVIATION = 0.01
# Probability of every class at the start: else the many anchors without an object drown the others.
PRIOR = 0.01


class Outputs(NamedTuple):
    """Class logits [B, A, num_classes] (sigmoid, no class for the background) and box deltas [B, A, 4]."""

    class_logits: jax.Array
    box_deltas: jax.Array


@dataclasses.dataclass(frozen=True)
class Config:
    """Size of the network.

    Attributes:
      depth, width, norm: of the backbone, see `resnet.Config`.
      num_classes: number of classes, without the background.
      levels: number of levels of the pyramid from P3 on, 3 to 5.
      channels: channels of the pyramid and the heads.
      head_layers: convolutions in each head before the last one.
      anchor_scale: side of the smallest anchor of a level, in strides.
    """

    depth: int = 50
    num_classes: int = 80
    width: int = 64
    norm: str = "batch"
    levels: int = 5
    channels: int = 256
    head_layers: int = 4
    anchor_scale: float = 4.0


def init(key: jax.Array, config: Config) -> tuple[Any, Any]:
    """Draws parameters and running statistics (contract: `models`).

    The backbone is drawn as `resnet` does it; kernels of the pyramid are uniform with variance
    1 / (k * k * C_in), those of the heads normal with deviation 0.01; biases are 0, those of the classes give
    probability 0.01.

    Raises:
      TypeError: a size in the config is no integer.
      ValueError: a size that the Config does not allow.
    """
    sizes = {name: getattr(config, name) for name in ("num_classes", "levels", "channels", "head_layers")}
    layers.check_sizes("retinanet", **sizes)
    if not 3 <= config.levels <= 5:
        raise ValueError(f"retinanet: expected 3 to 5 levels, got {config.levels}")
    if not 0 < config.anchor_scale < math.inf:
        raise ValueError(f"retinanet: expected anchor_scale > 0, got {config.anchor_scale}")
    backbone_key, pyramid_key, *head_keys = jax.random.split(key, 4)
    backbone, stats = resnet.init(
        backbone_key, resnet.Config(config.depth, width=config.width, norm=config.norm)
    )
    params = {"backbone": backbone}

    last = backbone.pop("dense")["weight"].shape[0]  # channels of C5
    down_channels = [last, config.channels][: config.levels - 3]
    shapes = {
        "lateral": [(1, channels) for channels in (last // 4, last // 2, last)],
        "output": [(3, config.channels)] * 3,
        "down": [(3, channels) for channels in down_channels],
    }
    pyramid_keys = iter(jax.random.split(pyramid_key, 3 + 3 + len(down_channels)))
    for name, convs in shapes.items():
        params[name] = [_init_conv(next(pyramid_keys), *shape, config.channels) for shape in convs]
    params["class_head"] = _init_head(head_keys[0], config, config.num_classes)
    bias = params["class_head"]["predict"]["bias"]
    params["class_head"]["predict"]["bias"] = jnp.full_like(bias, -math.log((1 - PRIOR) / PRIOR))
    params["box_head"] = _init_head(head_keys[1], config, 4)
    return params, stats


def apply(
    params: Any,
    batch_stats: Any,
    images: jax.Array,
    is_training: bool,
    key: jax.Array | None = None,
    *,
    batch_norm_momentum: float = 0.1,
    frozen_batch_norm: bool = False,
    axis_name: str | None = None,
) -> tuple[Outputs, Any]:
    """Outputs and new statistics of a batch (contract: `models`); the key is ignored.

    Args:
      frozen_batch_norm: whether batch norm uses the running statistics in training too, as is usual with
        pretrained weights: each image by itself.
    """
    del key
    features, new_stats = resnet.features(
        params["backbone"],
        batch_stats,
        images,
        is_training and not frozen_batch_norm,
        batch_norm_momentum=batch_norm_momentum,
        axis_name=axis_name,
    )
    levels = [_head_outputs(params, level) for level in _pyramid(params, features[1:])]
    return Outputs(*(jnp.concatenate(parts, axis=1) for parts in zip(*levels))), new_stats


def anchors(config: Config, image_size: tuple[int, int]) -> np.ndarray:
    """The boxes that the outputs refer to, for images of (height, width) pixels.

    Level by level, row by row, and in a cell all scales of a ratio before the next ratio; cell i of a level
    is centred at i times the stride. Anchors may reach out of the image.

    Returns:
      float32 [A, 4], (x_min, y_min, x_max, y_max) in pixels.
    """
    boxes = []
    for stride in (FIRST_STRIDE * 2**level for level in range(config.levels)):
        rows, columns = (-(-side // stride) for side in image_size)
        areas = (config.anchor_scale * stride * np.tile(SCALES, len(RATIOS))) ** 2
        heights = np.sqrt(areas * np.repeat(RATIOS, len(SCALES)))
        halves = np.stack([areas / heights, heights], axis=-1) / 2
        y, x = np.meshgrid(np.arange(rows) * stride, np.arange(columns) * stride, indexing="ij")
        centers = np.stack([x, y], axis=-1)[:, :, None]
        boxes.append(np.concatenate([centers - halves, centers + halves], axis=-1).reshape(-1, 4))
    return np.concatenate(boxes).astype(np.float32)


def _pyramid(params, features):
    """[C3, C4, C5] -> [P3, P4, ...]."""
    merged = [layers.conv(lateral, feature) for lateral, feature in zip(params["lateral"], features)]
    for level in (1, 0):
        height, width = merged[level].shape[1:3]
        doubled = jnp.repeat(jnp.repeat(merged[level + 1], 2, axis=1), 2, axis=2)
        merged[level] += doubled[:, :height, :width]
    levels = [layers.conv(output, feature) for output, feature in zip(params["output"], merged)]
    hidden = features[-1]
    for down in params["down"]:
        levels.append(layers.conv(down, hidden, stride=2))
        hidden = jax.nn.relu(levels[-1])
    return levels


def _head_outputs(params, level):
    """Class logits [B, a, num_classes] and box deltas [B, a, 4] of the a anchors of one level."""
    outputs = []
    for name in ("class_head", "box_head"):
        hidden = level
        for conv in params[name]["tower"]:
            hidden = jax.nn.relu(layers.conv(conv, hidden))
        hidden = layers.conv(params[name]["predict"], hidden)
        numbers = hidden.shape[-1] // ANCHORS_PER_CELL
        outputs.append(hidden.reshape(hidden.shape[0], -1, numbers))
    return outputs


def _init_conv(key, kernel_size, in_channels, out_channels):
    fan_in = kernel_size * kernel_size * in_channels
    shape = (kernel_size, kernel_size, in_channels, out_channels)
    weight = math.sqrt(3) * layers.uniform_fan_in(key, shape, fan_in)
    return {"weight": weight, "bias": jnp.zeros(out_channels, jnp.float32)}


def _init_head(key, config, numbers):
    def init_conv(key, out_channels):
        weight = HEAD_DEVIATION * jax.random.normal(key, (3, 3, config.channels, out_channels), jnp.float32)
        return {"weight": weight, "bias": jnp.zeros(out_channels, jnp.float32)}

    predict_key, *tower_keys = jax.random.split(key, 1 + config.head_layers)
    tower = [init_conv(conv_key, config.channels) for conv_key in tower_keys]
    return {"tower": tower, "predict": init_conv(predict_key, ANCHORS_PER_CELL * numbers)}
