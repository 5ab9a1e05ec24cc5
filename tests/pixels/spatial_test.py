"""Geometry and Cutout: Pillow's pixels, the declared gradients, and values that can be found."""

import math

import jax
import jax.numpy as jnp
import level_recovery
import numpy as np
import pillow_reference
import pytest
from pillow_reference import assert_same

from dada.ops import spatial

PLAIN = {"FlipLR": spatial.flip_lr, "FlipUD": spatial.flip_ud}
SHEARS = {"ShearX": spatial.shear_x, "ShearY": spatial.shear_y}
TRANSLATIONS = {"TranslateXAbs": spatial.translate_x, "TranslateYAbs": spatial.translate_y}
GEOMETRY = {**SHEARS, **TRANSLATIONS, "Rotate": spatial.rotate}
NEXT = [np.nextafter(np.float32(v), np.float32(0)) for v in (0.5, -0.5, 3.5, -3.5)]
# Ties of the fixed point lie at odd multiples of 2**-17.
_SHEAR = [0, 1e-9, -1e-9, 0.5, -1, 2, 2.0**-17, -(2.0**-17), 3 * 2.0**-17, 2.0**-16]
_PIXELS = [*NEXT, *np.arange(-20, 21) / 2, 1e-20, -1e-20, 50, -50, 1e9, -1e9]
_DEGREES = [1e-9, -1e-9, 1e-4, -1e-4, 359.99, 361, *np.arange(-720, 721, 15), *np.arange(-90, 91)]
_RNG = np.random.default_rng(5)
VALUES = {
    **dict.fromkeys(SHEARS, np.r_[np.linspace(-0.3, 0.3, 256), _SHEAR]),
    **dict.fromkeys(TRANSLATIONS, np.r_[np.linspace(-14.4, 14.4, 256), _PIXELS]),
    "Rotate": np.r_[np.linspace(-30, 30, 256), _DEGREES, _RNG.uniform(-360, 360, 512)],
}
VALUES = {name: np.float32(values) for name, values in VALUES.items()}
IMAGES = pillow_reference.images()[:5]  # only the size matters here
UNIT = [pillow_reference.unit(image) for image in IMAGES]
SQUARE, SQUARE_UNIT = IMAGES[2], UNIT[2]


@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_equals_pillow(name):
    pillow_reference.assert_values_give_its_pixels(name, GEOMETRY[name], VALUES[name], IMAGES)


@pytest.mark.parametrize("name", GEOMETRY)
def test_large_images_equal_pillow(name):
    levels = np.random.default_rng(6).integers(0, 256, (512, 300, 3)).astype(np.uint8)
    op = jax.jit(GEOMETRY[name])
    for value in VALUES[name][3:256:42]:
        wanted = pillow_reference.apply(name, levels, value)
        assert_same(op(pillow_reference.unit(levels), value), wanted, (name, value))


def test_flips_and_the_quarter_turn_equal_pillow():
    for levels, image in zip(IMAGES, UNIT):
        for name, op in PLAIN.items():
            assert_same(op(image), pillow_reference.apply(name, levels), name)
    assert_same(spatial.rotate90(SQUARE_UNIT), pillow_reference.apply("Rotate90", SQUARE), "Rotate90")


def test_cutout_equals_pillow():
    rng = np.random.default_rng(7)
    batched = jax.jit(jax.vmap(spatial.cutout, (None, 0, 0)))
    for levels, image in zip(IMAGES, UNIT):
        height, width, _ = levels.shape
        sides = np.r_[0, -1, -1e-9, 1e-9, 1, 2, width, rng.uniform(0, 0.3 * width, 249)]
        centers = rng.uniform(0, 1, (256, 2)) * (height, width)
        centers[64:128] = np.floor(centers[64:128])
        centers[128:160] = np.floor(centers[128:160]) + sides[128:160, None] / 2  # corner on a pixel
        centers[160:162] = height, width
        sides, centers = np.float32(sides), np.float32(centers)
        wanted = np.stack([pillow_reference.apply("CutoutAbs", levels, s, c) for s, c in zip(sides, centers)])
        assert_same(batched(image, sides, centers), wanted, levels.shape)


@pytest.mark.parametrize("name", GEOMETRY)
def test_eager_and_jit_agree(name):
    op, jitted = GEOMETRY[name], jax.jit(GEOMETRY[name])
    for value in VALUES[name][::41]:
        wanted = pillow_reference.apply(name, SQUARE, value)
        for got in (op(SQUARE_UNIT, value), jitted(SQUARE_UNIT, value)):
            assert_same(got, wanted, (name, value))


@pytest.mark.parametrize("first, second", [("Rotate", "ShearX"), ("TranslateYAbs", "Rotate")])
def test_a_fused_pair_keeps_pillows_pixels(first, second):
    @jax.jit
    @jax.vmap
    def pair(image, a, b):
        # The values are products, so that a compiler could fuse their rounding away.
        return GEOMETRY[second](GEOMETRY[first](image, a * 0.7), b * 0.7)

    rng = np.random.default_rng(8)
    a, b = (np.float32(rng.choice(VALUES[name][:256], 100)) for name in (first, second))
    factor = np.float32(0.7)
    wanted = [pillow_reference.apply(first, SQUARE, value * factor) for value in a]
    wanted = [pillow_reference.apply(second, w, value * factor) for w, value in zip(wanted, b)]
    images = np.repeat(SQUARE_UNIT[None], 100, axis=0)
    assert_same(pair(images, a, b), np.stack(wanted), (first, second))


def test_rotation_coefficients_are_those_of_double_precision():
    degrees = np.float32(np.random.default_rng(9).uniform(-180, 180, 200_000))
    height, width = 32, 48
    angle = -np.radians(np.float64(degrees) % 360)
    cosine, sine = np.round(np.cos(angle), 15), np.round(np.sin(angle), 15)
    column = width / 2 - cosine * (width - 1) / 2 - sine * (height - 1) / 2
    row = height / 2 + sine * (width - 1) / 2 - cosine * (height - 1) / 2
    wanted = [np.floor(65536 * v + 0.5) for v in (cosine, -sine, sine, row, column)]
    got = jax.jit(jax.vmap(lambda d: spatial.rotation_coefficients(d, height, width)))(degrees)
    for one, other in zip(got, wanted):
        # One unit off where the exact number is within about 1e-6 of a tie.
        assert np.abs(one - other).max() <= 1
        assert (one != other).mean() < 3e-5


@pytest.mark.parametrize(
    "name, limit",
    [("ShearX", 0.3), ("ShearY", 0.3), ("TranslateXAbs", 14.4), ("TranslateYAbs", 14.4), ("Rotate", 30)],
)
def test_descent_finds_the_value(name, limit):
    op = jax.vmap(GEOMETRY[name], (0, None))
    images = level_recovery.natural_images()
    targets, results = level_recovery.recovered(op, images, -limit, limit)
    # 5 % of the one-sided range, though the descents start a quarter of the two-sided one away.
    assert (np.abs(results - targets) < 0.05 * limit).sum() >= 8, (targets, results)


def test_descent_finds_the_side_of_cutout():
    images = level_recovery.natural_images()
    centers = np.float32(np.random.default_rng(10).uniform(0, 32, (24, 2)))

    def op(images, side):
        return jax.vmap(spatial.cutout, (0, None, 0))(images, side, centers)

    targets, results = level_recovery.recovered(op, images, 0, 6.4)
    assert (np.abs(results - targets) < 0.05 * 6.4).sum() >= 8, (targets, results)


def source(name, value, height, width):
    """Unrounded source rows and columns (pixel centres at whole numbers), in double precision."""
    y, x = np.mgrid[0:height, 0:width] + 0.5
    if name == "ShearX":
        x = x + value * y
    elif name == "ShearY":
        y = y + value * x
    elif name == "TranslateXAbs":
        x = x + value
    elif name == "TranslateYAbs":
        y = y + value
    else:
        angle = math.radians(value)
        y, x = y - height / 2, x - width / 2
        y, x = (
            math.sin(angle) * x + math.cos(angle) * y + height / 2,
            math.cos(angle) * x - math.sin(angle) * y + width / 2,
        )
    return y - 0.5, x - 0.5


@pytest.mark.parametrize(
    "name, value",
    [("ShearX", 0.21), ("ShearY", -0.13), ("TranslateXAbs", 2.2), ("TranslateYAbs", -3.8), ("Rotate", 17.3)],
)
def test_gradient_of_geometry_is_bilinear_about_the_pixels_read(name, value):
    image, image_dot = UNIT[2], np.float32(np.random.default_rng(11).normal(size=UNIT[2].shape))
    height, width, _ = image.shape
    rows, columns = source(name, value, height, width)
    step = 1e-4
    (up, left), (down, right) = (source(name, value + s, height, width) for s in (-step, step))
    row_motion, column_motion = (down - up) / (2 * step), (right - left) / (2 * step)
    row, column = np.round(rows).astype(int), np.round(columns).astype(int)

    def at(values, row, column):
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        return np.where(inside[..., None], values[row % height, column % width], 0)

    row_slope = (at(image, row + 1, column) - at(image, row - 1, column)) / 2
    column_slope = (at(image, row, column + 1) - at(image, row, column - 1)) / 2
    motion = row_slope * row_motion[..., None] + column_slope * column_motion[..., None]
    tangents = (image_dot, np.float32(2))
    got = jax.jvp(GEOMETRY[name], (image, np.float32(value)), tangents)[1]
    np.testing.assert_allclose(got, at(image_dot, row, column) + 2 * motion, atol=1e-4)


@pytest.mark.parametrize("side, center", [(3.3, (10.2, 20.7)), (5.0, (1.0, 30.5)), (4.4, (0, 0))])
def test_gradient_of_cutout_is_that_of_the_soft_box(side, center):
    image = np.float64(SQUARE_UNIT)
    image_dot = np.float32(np.random.default_rng(12).normal(size=image.shape))
    color = np.array([125, 123, 114]) / 255

    def window(center, growth):
        corner = center - side / 2
        start = max(0.0, corner)
        end = start + math.floor(side)
        start, end = (start - growth, end) if corner > 0 else (start, end + growth)
        pixel = np.arange(32)
        return 1 / (1 + np.exp(-2 * (pixel - start + 1))) / (1 + np.exp(-2 * (end + 0.5 - pixel)))

    def mask(growth):
        return (window(center[0], growth)[:, None] * window(center[1], growth))[..., None]

    slope = (mask(1e-4) - mask(-1e-4)) / 2e-4
    wanted = (1 - mask(0)) * image_dot + 1.5 * slope * (color - image)
    primals = SQUARE_UNIT, np.float32(side), np.float32(center)
    tangents = image_dot, np.float32(1.5), np.float32((7, 7))  # the centre has no gradient
    got = jax.jvp(spatial.cutout, primals, tangents)[1]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("name", [*GEOMETRY, "Cutout"])
def test_derivatives_are_finite_and_second_ones_symmetric(name):
    center = np.float32((9.5, 30.0))
    op = GEOMETRY.get(name, lambda image, side: spatial.cutout(image, side, center))
    weights = np.float32(np.random.default_rng(13).normal(size=SQUARE.shape))

    def loss(image, value):
        return jnp.sum(weights * op(image, value) ** 2)

    grads = jax.grad(loss, (0, 1))

    @jax.jit
    def second(image, value, direction):
        of_image = jax.jvp(lambda v: grads(image, v)[0], (value,), (jnp.ones(()),))
        of_value = jax.jvp(lambda i: grads(i, value)[1], (image,), (direction,))
        return of_image, of_value

    for image in (SQUARE_UNIT, np.zeros_like(SQUARE_UNIT), np.ones_like(SQUARE_UNIT)):
        (first, mixed), (slope, other) = second(image, jnp.float32(2.3), weights)
        for leaf in (first, mixed, slope, other):
            assert np.all(np.isfinite(leaf)), name
        np.testing.assert_allclose(np.sum(mixed * weights), other, rtol=1e-3, atol=1e-2)


def test_flips_pass_gradients_back():
    weights = jnp.arange(32.0 * 32 * 3).reshape(32, 32, 3)
    for op in (*PLAIN.values(), spatial.rotate90):
        grad = jax.grad(lambda image, op=op: jnp.sum(op(image) * weights))(SQUARE_UNIT)
        np.testing.assert_array_equal(op(grad), weights)


@pytest.mark.parametrize("name", [*GEOMETRY, *PLAIN, "Rotate90", "Cutout"])
def test_bad_arguments_are_refused(name):
    ops = {**GEOMETRY, **PLAIN, "Rotate90": spatial.rotate90, "Cutout": spatial.cutout}
    op = ops[name]
    values = {"Cutout": (2.0, (1.0, 1.0))}.get(name, (1.0,) if name in GEOMETRY else ())
    with pytest.raises(TypeError, match="float32"):
        op(SQUARE, *values)
    for shape in ((32, 32), (2, 32, 32, 3), (32, 32, 1), (3,)):
        with pytest.raises(ValueError, match="shape"):
            op(np.zeros(shape, np.float32), *values)
    if values:
        with pytest.raises(ValueError, match="shape"):
            op(SQUARE_UNIT, np.ones(2, np.float32), *values[1:])
        with pytest.raises(TypeError, match="real"):
            op(SQUARE_UNIT, True, *values[1:])


def test_bad_geometry_of_arguments_is_refused():
    with pytest.raises(ValueError, match="square"):
        spatial.rotate90(UNIT[1])
    with pytest.raises(ValueError, match="center"):
        spatial.cutout(SQUARE_UNIT, 2.0, 3.0)
