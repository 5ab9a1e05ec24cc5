"""What Pillow makes of one 8-bit image: the oracle of the op tests, and images to ask it about."""

import math

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

_FILL = (125, 123, 114)


def images(seed=0):
    """Returns uint8 images `[H, W, 3]`: noise of 5 sizes, dull noise, 3 constants, two levels."""
    rng = np.random.default_rng(seed)
    sizes = ((1, 1), (5, 7), (32, 32), (3, 40), (40, 3))
    noise = [rng.integers(0, 256, (*size, 3)) for size in sizes]
    dull = np.clip(rng.normal(110, 25, (32, 32, 3)), 0, 255)
    flat = [np.full((32, 32, 3), level) for level in (0, 77, 255)]
    half = np.where(rng.random((32, 32, 3)) < 0.5, 3, 250)
    return [image.astype(np.uint8) for image in (*noise, dull, *flat, half)]


def unit(levels):
    """Levels as the ops take and return them: float32(k) / 255."""
    return np.float32(levels) / np.float32(255)


def apply(name, image, value=0.0, center=(0.0, 0.0)):
    """Applies the op `name` to a uint8 image `[H, W, 3]` at a physical value; returns another.

    TranslateX, TranslateY and Cutout take fractions of the width or height, their *Abs forms
    pixels; `center` is (row, column) in pixels, for the cutouts only. Fractions become pixels in
    float32, as in the ops.
    """
    height, width, _ = image.shape
    pixels = {"TranslateX": width, "TranslateY": height, "Cutout": width}.get(name)
    if pixels is not None:
        if name == "Cutout" and value <= 0:
            return image.copy()
        name, value = name + "Abs", np.float32(value) * np.float32(pixels)
    picture, value = Image.fromarray(image), float(np.float32(value))
    return np.asarray(_apply(name, picture, value, tuple(float(c) for c in center)))


def _apply(name, picture, value, center):
    affine = {
        "ShearX": (1, value, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, value, 1, 0),
        "TranslateXAbs": (1, 0, value, 0, 1, 0),
        "TranslateYAbs": (1, 0, 0, 0, 1, value),
    }
    transposed = {
        "FlipLR": Image.Transpose.FLIP_LEFT_RIGHT,
        "FlipUD": Image.Transpose.FLIP_TOP_BOTTOM,
        "Rotate90": Image.Transpose.ROTATE_90,
    }
    unary = {
        "Identity": lambda p: p,
        "AutoContrast": ImageOps.autocontrast,
        "Invert": ImageOps.invert,
        "Equalize": ImageOps.equalize,
        "Blur": lambda p: p.filter(ImageFilter.BLUR),
        "Smooth": lambda p: p.filter(ImageFilter.SMOOTH),
    }
    if name in affine:
        return picture.transform(picture.size, Image.Transform.AFFINE, affine[name])
    if name in transposed:
        return picture.transpose(transposed[name])
    if name in unary:
        return unary[name](picture)
    if name in ("Contrast", "Color", "Brightness", "Sharpness"):
        return getattr(ImageEnhance, name)(picture).enhance(value)
    if name == "Rotate":
        return picture.rotate(value)
    if name == "Solarize":
        return ImageOps.solarize(picture, value)
    if name in ("Posterize", "Posterize2"):
        bits = math.trunc(value)
        return ImageOps.posterize(picture, bits) if bits > 0 else Image.new("RGB", picture.size)
    if name == "CutoutAbs":
        return _cutout(picture, value, center)
    raise ValueError(f"no op {name!r}")


def _cutout(picture, side, center):
    if side < 0:
        return picture
    width, height = picture.size
    left = int(max(0, center[1] - side / 2))
    top = int(max(0, center[0] - side / 2))
    picture = picture.copy()
    box = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(picture).rectangle(box, _FILL)
    return picture


def assert_same(got, wanted, about):
    """Values in [0, 1] are these levels, every one."""
    wanted = unit(wanted)
    assert np.array_equal(got, wanted), f"{about}: {(np.asarray(got) != wanted).sum()} values differ"


def assert_values_give_its_pixels(name, op, values, images):
    """An op of (image, value), compiled, on every image with every value."""
    batched = jax.jit(jax.vmap(op, (None, 0)))
    for levels in images:
        wanted = np.stack([apply(name, levels, value) for value in values])
        assert_same(batched(unit(levels), values), wanted, (name, levels.shape))
