"""Colour and filter ops: Pillow's pixels, the declared gradients, and values that can be found."""

import itertools

import jax
import jax.numpy as jnp
import level_recovery
import numpy as np
import pillow_reference
import pytest
from pillow_reference import assert_same

from dada.ops import color

PLAIN = {
    "AutoContrast": color.auto_contrast,
    "Invert": color.invert,
    "Equalize": color.equalize,
    "Blur": color.blur,
    "Smooth": color.smooth,
}
ENHANCERS = {
    "Contrast": color.contrast,
    "Color": color.color,
    "Brightness": color.brightness,
    "Sharpness": color.sharpness,
}
VALUED = {"Solarize": color.solarize, "Posterize": color.posterize, **ENHANCERS}
FACTORS = np.r_[np.linspace(0.1, 1.9, 256), 0, 1, np.nextafter(np.float32(1), 0), 2.5, -0.5, 1 / 3]
VALUES = {
    "Solarize": np.r_[np.arange(257), 127.5, -1, 300],
    "Posterize": np.linspace(0, 8, 65),
    **dict.fromkeys(ENHANCERS, FACTORS),
}
VALUES = {name: np.float32(values) for name, values in VALUES.items()}
IMAGES = pillow_reference.images()
UNIT = [pillow_reference.unit(image) for image in IMAGES]


def test_ops_without_value_equal_pillow():
    @jax.jit
    def every(image):
        return {name: op(image) for name, op in PLAIN.items()}

    for levels, image in zip(IMAGES, UNIT):
        for name, got in every(image).items():
            assert_same(got, pillow_reference.apply(name, levels), (name, levels.shape))
    for name, op in PLAIN.items():
        assert_same(op(UNIT[2]), pillow_reference.apply(name, IMAGES[2]), (name, "eager"))


@pytest.mark.parametrize("name", VALUED)
def test_op_with_value_equals_pillow(name):
    pillow_reference.assert_values_give_its_pixels(name, VALUED[name], VALUES[name], IMAGES)


@pytest.mark.parametrize("name", VALUED)
def test_eager_and_jit_agree(name):
    op, jitted = VALUED[name], jax.jit(VALUED[name])
    for value in VALUES[name][::29]:
        wanted = pillow_reference.apply(name, IMAGES[2], value)
        for got in (op(UNIT[2], value), jitted(UNIT[2], value)):
            assert_same(got, wanted, (name, value))


def test_auto_contrast_equals_pillow_for_all_extremes():
    # 16 x 16 images with all levels from lo to hi; the channels take different pairs.
    pairs = list(itertools.combinations_with_replacement(range(256), 2))
    pairs = np.array(pairs + pairs[: -len(pairs) % 3]).reshape(-1, 3, 2)
    levels = np.arange(256).reshape(16, 16)[None, :, :, None]
    levels = np.clip(levels, pairs[:, None, None, :, 0], pairs[:, None, None, :, 1])
    levels = levels.astype(np.uint8)
    wanted = np.stack([pillow_reference.apply("AutoContrast", image) for image in levels])
    got = jax.jit(jax.vmap(color.auto_contrast))(pillow_reference.unit(levels))
    assert_same(got, wanted, "AutoContrast")


@pytest.mark.parametrize("name", ["Equalize", "Contrast", "AutoContrast", "Sharpness"])
def test_large_images_equal_pillow(name):
    rng = np.random.default_rng(1)
    noise = np.clip(rng.normal(180, 60, (512, 512, 3)), 0, 255)
    values = (0.37,) if name in VALUED else ()
    op = jax.jit({**PLAIN, **VALUED}[name])
    for levels in (noise.astype(np.uint8), np.full((512, 512, 3), 255, np.uint8)):
        wanted = pillow_reference.apply(name, levels, *values)
        assert_same(op(pillow_reference.unit(levels), *values), wanted, name)


@pytest.mark.parametrize("first, second", list(itertools.permutations(ENHANCERS, 2)))
def test_a_fused_pair_keeps_pillows_pixels(first, second):
    @jax.jit
    def pair(image, a, b):
        # The factors are products, so that a compiler could fuse their rounding away.
        return VALUED[second](VALUED[first](image, a * 1.1), b * 1.1)

    for a, b in ((0.31, 1.47), (1.63, 0.58), (0.92, 0.93)):
        factors = np.float32(a) * np.float32(1.1), np.float32(b) * np.float32(1.1)
        wanted = pillow_reference.apply(first, IMAGES[2], factors[0])
        wanted = pillow_reference.apply(second, wanted, factors[1])
        assert_same(pair(UNIT[2], np.float32(a), np.float32(b)), wanted, (first, second, a, b))


def test_zero_bits_are_black():
    assert not np.any(color.posterize(UNIT[2], 0))


@pytest.mark.parametrize("name, low, high", [("Solarize", 0, 256), ("Posterize", 4, 8)])
def test_descent_finds_the_value(name, low, high):
    op = jax.vmap(VALUED[name], (0, None))
    targets, results = level_recovery.recovered(op, level_recovery.natural_images(), low, high)
    found = np.abs(results - targets) < 0.05 * (high - low)
    if name == "Posterize":  # only whole bits can be told apart
        found |= np.trunc(results) == np.trunc(targets)
    assert found.sum() >= 8, (targets, results)


@pytest.mark.parametrize("name", ENHANCERS)
def test_descent_finds_the_factor(name):
    images = level_recovery.natural_images(colored=True)
    op = jax.vmap(ENHANCERS[name], (0, None))
    targets, results = level_recovery.recovered(op, images, 0.1, 1.9)
    assert (np.abs(results - targets) < 0.05 * 1.8).sum() >= 8, (targets, results)


def directional(op, image, value, image_dot, value_dot):
    return np.asarray(jax.jvp(op, (image, np.float32(value)), (image_dot, np.float32(value_dot)))[1])


def test_gradients_of_the_enhancers_are_those_of_the_blend():
    rng = np.random.default_rng(2)
    image, image_dot = UNIT[2], np.float32(rng.normal(size=UNIT[2].shape))
    luma = np.array([19595, 38470, 7471]) / 65536

    def smoothed(x):
        x = np.array(x, np.float64)
        shifts = itertools.product(range(3), range(3))
        window = sum(x[i : i + 30, j : j + 30] for i, j in shifts)
        x[1:-1, 1:-1] = (window + 4 * x[1:-1, 1:-1]) / 13
        return x

    degenerate = {
        "Contrast": lambda x: np.full_like(x, (x @ luma).mean()),
        "Color": lambda x: np.repeat((x @ luma)[..., None], 3, axis=-1),
        "Brightness": np.zeros_like,
        "Sharpness": smoothed,
    }
    for name, op in ENHANCERS.items():
        d, d_dot = degenerate[name](image), degenerate[name](image_dot)
        wanted = d_dot + 1.7 * (image_dot - d_dot) + 0.3 * (image - d)
        np.testing.assert_allclose(
            directional(op, image, 1.7, image_dot, 0.3), wanted, atol=1e-5, err_msg=name
        )


def test_gradients_of_solarize_and_posterize_are_as_declared():
    rng = np.random.default_rng(3)
    image, image_dot = UNIT[2], np.float32(rng.normal(size=UNIT[2].shape))
    soft = 1 / (1 + np.exp(-(255.0 * image - 100) / 24))
    wanted = (1 - 2 * soft) * image_dot - 3 * (1 - 2 * image) * soft * (1 - soft) / 24
    got = directional(color.solarize, image, 100, image_dot, 3)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    for bits, lower in ((5.3, 5), (4.0, 4), (8.0, 7)):
        more, fewer = ((IMAGES[2] >> (8 - n)) << (8 - n) for n in (lower + 1, lower))
        wanted = image_dot + 2 * (np.float64(more) - fewer) / 255
        got = directional(color.posterize, image, bits, image_dot, 2)
        np.testing.assert_allclose(got, wanted, atol=1e-5)


def test_image_gradients_of_the_plain_ops_are_as_declared():
    image = UNIT[5]
    image_dot = np.float32(np.random.default_rng(4).normal(size=image.shape))
    slope = 1 / (image.max((0, 1)) - image.min((0, 1)))
    rim = [(i, j) for i in range(5) for j in range(5) if {i, j} & {0, 4}]
    blurred = image_dot.copy()
    blurred[2:-2, 2:-2] = sum(image_dot[i : i + 28, j : j + 28] for i, j in rim) / 16
    wanted = {
        "AutoContrast": slope * image_dot,
        "Equalize": slope * image_dot,
        "Invert": -image_dot,
        "Blur": blurred,
    }
    for name, tangent in wanted.items():
        got = jax.jvp(PLAIN[name], (image,), (image_dot,))[1]
        np.testing.assert_allclose(got, tangent, atol=1e-5, err_msg=name)
    for name in ("AutoContrast", "Equalize"):
        got = jax.jvp(PLAIN[name], (UNIT[7],), (image_dot,))[1]
        np.testing.assert_array_equal(got, image_dot, err_msg=name)


@pytest.mark.parametrize("name", [*PLAIN, *VALUED])
def test_derivatives_are_finite_on_flat_images_too(name):
    op = {**PLAIN, **VALUED}[name]
    values = (jnp.float32(0.7),) if name in VALUED else ()

    def loss(image, *values):
        return jnp.sum(jnp.sin(op(image, *values)))

    grads = jax.grad(loss, tuple(range(1 + len(values))))

    @jax.jit
    @jax.vmap
    def derivatives(image):
        ones = (jnp.ones_like(image), *(jnp.ones(()) for _ in values))
        return jax.jvp(grads, (image, *values), ones)  # first order, and forward over reverse

    # One pixel, and all images of 32 x 32 in one program.
    for images in (np.stack(UNIT[:1]), np.stack([u for u in UNIT if u.shape == (32, 32, 3)])):
        for leaf in jax.tree.leaves(derivatives(images)):
            assert np.all(np.isfinite(leaf)), (name, images.shape)


@pytest.mark.parametrize("name", [*PLAIN, *VALUED])
def test_bad_arguments_are_refused(name):
    op = {**PLAIN, **VALUED}[name]
    values = (1.0,) if name in VALUED else ()
    with pytest.raises(TypeError, match="float32"):
        op(IMAGES[2], *values)
    for shape in ((32, 32), (2, 32, 32, 3), (32, 32, 1), (0, 4, 3)):
        with pytest.raises(ValueError, match="shape"):
            op(np.zeros(shape, np.float32), *values)
    if values:
        with pytest.raises(ValueError, match="scalar"):
            op(UNIT[2], np.ones(2, np.float32))
        with pytest.raises(TypeError, match="real"):
            op(UNIT[2], True)
