"""Networks: one file each, with the same `init` and `apply`."""

import re
from types import ModuleType
from typing import Any

from . import pyramidnet, resnet, shake_shake, wide_resnet

# Up to this side, a ResNet keeps the resolution of the image in its stem.
SMALL_IMAGE_SIZE = 64

FORMS = (
    "wrn_<depth>_<width>, shake_shake_26_2x<32, 64, 96 or 112>d, pyramidnet_272_200, resnet_<18, 50 or 200>"
)


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
    if match := re.fullmatch(r"resnet_(18|50|200)", name):
        small_images = image_size <= SMALL_IMAGE_SIZE
        return resnet, resnet.Config(int(match[1]), num_classes, small_images=small_images)
    raise ValueError(f"models: expected a network of the form {FORMS}, got {name!r}")
