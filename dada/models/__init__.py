"""Networks: one file each, with the same `init` and `apply`.

    init(key, config) -> (params, batch_stats)

`key` is a typed PRNG key, consumed, `config` the file's Config. Both trees are nested dicts and lists of
float32 arrays, laid out as the head of the file says. The running statistics start at mean 0 and variance 1;
`batch_stats` holds those of the norms only.

    apply(params, batch_stats, images, is_training, key=None, *, batch_norm_momentum, axis_name=None)
        -> (logits [B, num_classes], new batch_stats)

Args:
  params, batch_stats: as `init` returns them; sizes are read off them.
  images: [B, H, W, 3], floating, normalised; cast to the dtype of the parameters.
  is_training: Python bool; whether the network draws its random numbers, and whether batch norm uses and
    stores the statistics of this batch.
  key: typed PRNG key, consumed, the same on all devices; read in the training of networks that draw.
  batch_norm_momentum: weight of the new batch in the running statistics, in [0, 1].
  axis_name: mapped axis over which batch statistics are taken and images counted, or None.
Gradient: all modes, to parameters and images; none to the new batch_stats.
Raises:
  TypeError: of `init`, a size in the config is no integer; of `apply`, images are not floating.
  ValueError: of `init`, a size that the Config does not allow; of `apply`, images of another shape, or
    training without the key that the network needs.
"""

import re
from types import ModuleType
from typing import Any

from . import pyramidnet, resnet, retinanet, shake_shake, wide_resnet

# Up to this side, a ResNet keeps the resolution of the image in its stem.
SMALL_IMAGE_SIZE = 64

FORMS = (
    "wrn_<depth>_<width>, shake_shake_26_2x<32, 64, 96 or 112>d, pyramidnet_272_200, "
    "resnet_<18, 50, 101 or 200>"
)
DETECTOR_FORMS = "retinanet_resnet_<18, 50 or 101>, retinanet_resnet_18_<width>"


def by_name(name: str, num_classes: int, image_size: int) -> tuple[ModuleType, Any]:
    """Finds a network by the name that papers give it.

    Args:
      name: "wrn_40_2", "shake_shake_26_2x96d", "pyramidnet_272_200", "resnet_50", ...
      num_classes: number of logits.
      image_size: side of the images in pixels; up to 64, a ResNet gets the stem for small images.
    Returns:
      (module, config): the network is module.init(key, config) and module.apply.
    Raises:
      ValueError: no network has that name; the message lists the forms.
    """
    if match := re.fullmatch(r"wrn_(\d+)_(\d+)", name):
        depth, width = map(int, match.groups())
        return wide_resnet, wide_resnet.Config(depth, width, num_classes)
    if match := re.fullmatch(r"shake_shake_26_2x(32|64|96|112)d", name):
        return shake_shake, shake_shake.Config(26, int(match[1]), num_classes)
    if name == "pyramidnet_272_200":
        return pyramidnet, pyramidnet.Config(272, 200, num_classes)
    if match := re.fullmatch(r"resnet_(18|50|101|200)", name):
        small_images = image_size <= SMALL_IMAGE_SIZE
        return resnet, resnet.Config(int(match[1]), num_classes, small_images=small_images)
    raise ValueError(f"models: expected a network of the form {FORMS}, got {name!r}")


def detector_by_name(name: str, num_classes: int) -> tuple[ModuleType, Any]:
    """Finds a detector by its name.

    Args:
      name: "retinanet_resnet_50" is that of the papers, with batch norm; "retinanet_resnet_18_16" one with a
        backbone of width 16 for images of some 200 pixels, three levels, narrow and short heads, anchors half
        as large, and group norm, so that it can be trained from scratch.
      num_classes: number of classes, without the background.
    Returns:
      (module, config), as of `by_name`; `retinanet` says what the network gives in place of logits.
    Raises:
      ValueError: no detector has that name; the message lists the forms.
    """
    if match := re.fullmatch(r"retinanet_resnet_(18|50|101)", name):
        return retinanet, retinanet.Config(int(match[1]), num_classes)
    if match := re.fullmatch(r"retinanet_resnet_18_(\d+)", name):
        return retinanet, retinanet.Config(
            18,
            num_classes,
            width=int(match[1]),
            norm="group",
            levels=3,
            channels=64,
            head_layers=2,
            anchor_scale=2.0,
        )
    raise ValueError(f"models: expected a detector of the form {DETECTOR_FORMS}, got {name!r}")
