"""Crops of ImageNet: those of torchvision, to the bit.

torchvision_crops.json holds what torchvision itself made of noise. Besides, boxes are worked out from its
formulas, in fractions and decimals that do not round as the code under test does, and pixels from Pillow's.
"""

import decimal
import hashlib
import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments.data import host_crops

TORCHVISION = json.loads((pathlib.Path(__file__).parent / "torchvision_crops.json").read_text())["cases"]
NOISE = np.random.default_rng(0).integers(0, 256, (120, 140, 3)).astype(np.uint8)


def uniform(*attempts, down=0.0, right=0.0):
    """Numbers of these attempts, (area, ratio) each, then of some that fit nowhere."""
    pairs = [*attempts, *[(1 - 1e-9, 1 - 1e-9)] * (10 - len(attempts)), (down, right)]
    return np.array(pairs).reshape(-1)


def digest(image):
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("case", TORCHVISION, ids=lambda case: f"{case['width']}x{case['height']}")
def test_crops_are_those_of_torchvision(case):
    width, height, size = case["width"], case["height"], case["size"]
    pixels = np.random.default_rng([case["seed"], 0]).integers(0, 256, (height, width, 3)).astype(np.uint8)
    numbers = np.random.default_rng([case["seed"], 1]).random(host_crops.NUM_UNIFORM)
    if not case["fits"]:
        numbers = uniform(down=numbers[20], right=numbers[21])
    image, least = Image.fromarray(pixels), case["least_area"]
    assert host_crops.random_resized_box(numbers, width, height, least) == tuple(case["box"])
    assert digest(host_crops.random_resized_crop(image, numbers, size, least)) == case["random"]
    assert digest(host_crops.center_crop(image, size * 8 // 7, size)) == case["center"]


# Numbers, size of the image, (left, top, width, height).
BOXES = [
    # Area .54 of 500 x 375 and ratio 1: a side of 318.19.
    (uniform((0.5, 0.5), down=0.5, right=0.5), (500, 375), (91, 29, 318, 318)),
    (uniform((0.5, 0.5), down=0.999999, right=0.999999), (500, 375), (182, 57, 318, 318)),
    # The smallest area, .08, at the narrowest ratio 3 / 4 and the widest 4 / 3: 106.07 x 141.42, turned.
    (uniform((0.0, 0.0)), (500, 375), (0, 0, 106, 141)),
    (uniform((0.0, 1 - 1e-12)), (500, 375), (0, 0, 141, 106)),
    # The whole area fits with the ratio of the image alone; the second attempt counts.
    (uniform((1 - 1e-9, 0.0), (0.0, 0.5), right=0.5), (300, 300), (108, 0, 85, 85)),
    (uniform((1 - 1e-9, 1 - 1e-9)), (400, 300), (0, 0, 400, 300)),
    # None of ten fits: the whole image, or the largest part of an allowed ratio, in the centre.
    (uniform(), (300, 300), (0, 0, 300, 300)),
    (uniform(), (100, 301), (0, 84, 100, 133)),
    (uniform(), (301, 100), (84, 0, 133, 100)),
    (uniform(), (1, 1), (0, 0, 1, 1)),
]


@pytest.mark.parametrize(("numbers", "size", "box"), BOXES)
def test_boxes_of_the_table(numbers, size, box):
    assert host_crops.random_resized_box(numbers, *size) == box


def expected_box(numbers, width, height, least):
    """The same formulas in decimals of 50 digits."""
    exact = decimal.Context(prec=50)
    area_of, ratio_of = numbers[:20:2], numbers[1:20:2]
    for area, ratio in zip(area_of, ratio_of):
        least, area, ratio = (decimal.Decimal(float(value)) for value in (least, area, ratio))
        area = exact.multiply(width * height, exact.add(least, exact.multiply(1 - least, area)))
        log = exact.ln(decimal.Decimal(4) / 3)
        ratio = exact.exp(exact.multiply(log, 2 * ratio - 1))
        w, h = (
            round(exact.sqrt(value)) for value in (exact.multiply(area, ratio), exact.divide(area, ratio))
        )
        if 0 < w <= width and 0 < h <= height:
            down, right = numbers[20:]
            return math.floor((width - w + 1) * right), math.floor((height - h + 1) * down), w, h
    return None


def test_random_boxes_are_those_of_the_formulas():
    generator, shares = np.random.default_rng(1), []
    for _ in range(300):
        numbers = generator.random(host_crops.NUM_UNIFORM)
        width, height = generator.integers(40, 700, 2).tolist()
        least = generator.choice([0.08, 0.25])
        box = host_crops.random_resized_box(numbers, width, height, least)
        if (expected := expected_box(numbers, width, height, least)) is not None:
            assert box == expected
        left, top, w, h = box
        assert 0 <= left <= width - w and 0 <= top <= height - h
        shares.append(w * h / (width * height))
    assert min(shares) < 0.2 and max(shares) > 0.8


def numpy_resize(pixels, width, height):
    """Pillow's bicubic, width before height, in integers of 22 bits, rounded to a byte after each pass."""

    def one_axis(pixels, out):
        size = pixels.shape[0]
        scale = size / out
        stretch = max(scale, 1.0)
        rows = []
        for place in range(out):
            center = (place + 0.5) * scale
            first = max(0, int(center - 2 * stretch + 0.5))
            last = min(size, int(center + 2 * stretch + 0.5))
            x = np.abs((np.arange(first, last) + 0.5 - center) / stretch)
            a = -0.5
            near = ((a + 2) * x - (a + 3)) * x * x + 1
            far = (((x - 5) * x + 8) * x - 4) * a
            weights = np.where(x < 1, near, np.where(x < 2, far, 0.0))
            weights /= weights.sum()
            fixed = np.trunc(weights * 2**22 + np.where(weights < 0, -0.5, 0.5)).astype(np.int64)
            total = 2**21 + np.tensordot(fixed, pixels[first:last].astype(np.int64), 1)
            rows.append(np.clip(total >> 22, 0, 255).astype(np.uint8))
        return np.stack(rows)

    across = pixels if width == pixels.shape[1] else one_axis(pixels.swapaxes(0, 1), width).swapaxes(0, 1)
    return across if height == across.shape[0] else one_axis(across, height)


# Those of a tall part are where Pillow 13 takes the passes in the other order.
@pytest.mark.parametrize("size", [(64, 64), (30, 64), (140, 50), (200, 37), (140, 120)])
@pytest.mark.parametrize("part", [(slice(0, 120), slice(0, 140)), (slice(5, 115), slice(20, 60))])
def test_pixels_are_those_of_two_passes(part, size):
    pixels = NOISE[part]
    resized = np.asarray(host_crops.resize(Image.fromarray(pixels), *size))
    np.testing.assert_array_equal(resized, numpy_resize(pixels, *size))


def test_a_random_crop_is_cut_out_before_it_is_resized():
    numbers = uniform((0.1, 0.1), down=0.3, right=0.6)
    left, top, width, height = host_crops.random_resized_box(numbers, 140, 120, 0.25)
    expected = numpy_resize(NOISE[top : top + height, left : left + width], 32, 32)
    crop = host_crops.random_resized_crop(Image.fromarray(NOISE), numbers, 32, 0.25)
    np.testing.assert_array_equal(crop, expected)


def test_the_crop_of_the_evaluation_has_the_sizes_of_torchvision():
    generator = np.random.default_rng(2)
    for width, height in [(50, 38), (38, 50), (60, 60), (60, 61), *generator.integers(30, 60, (20, 2))]:
        pixels = generator.integers(0, 256, (height, width, 3)).astype(np.uint8)
        short, long = min(width, height), max(width, height)
        new_long = int(64 * long / short)
        new = (64, new_long) if width <= height else (new_long, 64)
        left, top = (round((side - 56) / 2.0) for side in new)
        expected = numpy_resize(pixels, *new)[top : top + 56, left : left + 56]
        np.testing.assert_array_equal(host_crops.center_crop(Image.fromarray(pixels), 64, 56), expected)
