"""Networks found by name."""

import re

import pytest

from dada import models
from dada.models import pyramidnet, resnet, retinanet, shake_shake, wide_resnet


@pytest.mark.parametrize(
    ("name", "module", "config"),
    [
        ("wrn_40_2", wide_resnet, wide_resnet.Config(40, 2, 7)),
        ("wrn_28_10", wide_resnet, wide_resnet.Config(28, 10, 7)),
        ("shake_shake_26_2x32d", shake_shake, shake_shake.Config(26, 32, 7)),
        ("shake_shake_26_2x64d", shake_shake, shake_shake.Config(26, 64, 7)),
        ("shake_shake_26_2x96d", shake_shake, shake_shake.Config(26, 96, 7)),
        ("shake_shake_26_2x112d", shake_shake, shake_shake.Config(26, 112, 7)),
        ("pyramidnet_272_200", pyramidnet, pyramidnet.Config(272, 200, 7)),
        ("resnet_18", resnet, resnet.Config(18, 7, small_images=True)),
        ("resnet_50", resnet, resnet.Config(50, 7, small_images=True)),
        ("resnet_101", resnet, resnet.Config(101, 7, small_images=True)),
        ("resnet_200", resnet, resnet.Config(200, 7, small_images=True)),
    ],
)
def test_by_name(name, module, config):
    assert models.by_name(name, 7, 32) == (module, config)
    hash(config)


@pytest.mark.parametrize(("image_size", "small"), [(32, True), (64, True), (65, False)])
def test_resnet_stem_follows_the_image_size(image_size, small):
    _, config = models.by_name("resnet_50", 1000, image_size)
    assert config.small_images is small


@pytest.mark.parametrize(
    "name", ["", "wrn", "wrn_40", "wrn_40_2x", "xwrn_40_2", "wrn_-4_2", "shake_shake_26_2x3d", "resnet_34"]
)
def test_unknown_names_are_answered_with_the_forms(name):
    text = f"expected a network of the form {models.FORMS}, got {name!r}"
    with pytest.raises(ValueError, match=re.escape(text)):
        models.by_name(name, 10, 32)


def test_detector_by_name():
    for depth in (18, 50, 101):
        config = retinanet.Config(depth, 7)
        assert models.detector_by_name(f"retinanet_resnet_{depth}", 7) == (retinanet, config)
    small = retinanet.Config(18, 7, 24, "group", levels=3, channels=64, head_layers=2, anchor_scale=2.0)
    assert models.detector_by_name("retinanet_resnet_18_24", 7) == (retinanet, small)
    for name in ("retinanet", "retinanet_resnet_34", "retinanet_resnet_50_16", "resnet_50"):
        text = f"expected a detector of the form {models.DETECTOR_FORMS}, got {name!r}"
        with pytest.raises(ValueError, match=re.escape(text)):
            models.detector_by_name(name, 7)
