"""Crop, flip, normalisation and cutout: against plain loops, and in the order that `base_augment` gives."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pillow_reference
import pytest

from dada import augment
from dada.augment.base import POSITIONS


def test_normalize():
    images = np.array([0, 51, 255], np.uint8).reshape(1, 1, 1, 3)
    mean, std = (0.5, 0.2, 0.0), (0.5, 2.0, 4.0)
    expected = np.array([-1.0, 0.0, 0.25]).reshape(1, 1, 1, 3)
    np.testing.assert_allclose(augment.normalize(images, mean, std), expected, atol=1e-7)
    fractions = (images / np.float32(255)).astype(jnp.bfloat16)
    low = augment.normalize(fractions, mean, std)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(np.float32), expected, atol=1e-2)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("padding", [0, 2])
def test_random_crop_is_one_of_the_crops_and_every_crop_occurs(dtype, padding):
    images = np.random.default_rng(9).integers(1, 256, (400, 6, 5, 3)).astype(dtype)
    cropped = augment.random_crop(jax.random.key(0), images, padding)
    assert cropped.dtype == dtype and cropped.shape == images.shape
    padded = np.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    seen = set()
    for before, after in zip(padded, np.asarray(cropped)):
        matches = [
            (top, left)
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
            if (before[top : top + 6, left : left + 5] == after).all()
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == (2 * padding + 1) ** 2


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_random_flip_mirrors_half_of_the_images(dtype):
    images = np.random.default_rng(10).integers(0, 256, (400, 4, 5, 3)).astype(dtype)
    flipped = np.asarray(augment.random_flip(jax.random.key(1), images))
    assert flipped.dtype == dtype
    mirrored = [(after == before[:, ::-1]).all() for before, after in zip(images, flipped)]
    kept = [(after == before).all() for before, after in zip(images, flipped)]
    assert all(np.array(mirrored) ^ np.array(kept))
    assert abs(np.mean(mirrored) - 0.5) < 4 * 0.5 / np.sqrt(400)


@pytest.mark.parametrize("length", [0, 1, 4, 5])
def test_random_cutout_is_one_of_the_squares_and_every_centre_occurs(length):
    height, width = 6, 7
    images = np.random.default_rng(11).uniform(1, 2, (1000, height, width, 3)).astype(np.float32)
    cut = np.asarray(augment.random_cutout(jax.random.key(2), images, length))
    assert cut.dtype == images.dtype
    masks = {}
    for y in range(height):
        for x in range(width):
            mask = np.zeros((height, width), bool)
            mask[max(0, y - length // 2) : y + length // 2, max(0, x - length // 2) : x + length // 2] = 1
            masks.setdefault(mask.tobytes(), (y, x))
    seen = set()
    for before, after in zip(images, cut):
        removed = (after == 0).all(-1)
        assert (after[~removed] == before[~removed]).all()
        seen.add(removed.tobytes())
    assert seen == set(masks)


def test_color_jitter_is_three_ops_of_pillow_in_any_order():
    """Every image is one of the six orders, at factors that are found again, and all orders occur."""
    strength, names = 0.4, ("Brightness", "Contrast", "Color")
    image = np.random.default_rng(15).integers(0, 256, (9, 7, 3)).astype(np.uint8)
    key, count = jax.random.key(5), 24
    jittered = augment.random_color_jitter(key, jnp.tile(jnp.asarray(image), (count, 1, 1, 1)), strength)
    assert jittered.dtype == np.uint8
    noise = np.asarray(jax.random.uniform(key, (count, 2, 3)))
    factors = np.float32(1) + np.float32(strength) * (2 * noise[:, 1] - 1)
    assert factors.min() >= 0.6 and factors.max() <= 1.4
    seen = set()
    for after, three in zip(np.asarray(jittered), factors):
        matches = []
        for order in itertools.permutations(names):
            expected = image
            for name, factor in zip(order, three):
                expected = pillow_reference.apply(name, expected, factor)
            if np.array_equal(after, expected):
                matches.append(order)
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 6


def test_lighting_adds_one_colour_along_the_components():
    images = np.random.default_rng(16).integers(0, 256, (2000, 2, 3, 3)).astype(np.uint8)
    lit = np.asarray(augment.random_lighting(jax.random.key(6), images, 0.1))
    assert lit.dtype == np.float32
    shift = lit - images / np.float32(255)
    assert np.ptp(shift, axis=(1, 2)).max() < 1e-6
    # As the codes of the papers have them: alpha times these, summed over the columns.
    eigenvectors = [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    alpha = np.linalg.solve(np.array(eigenvectors) * [0.2175, 0.0188, 0.0045], shift[:, 0, 0].T)
    np.testing.assert_allclose(alpha.mean(1), 0, atol=0.01)
    np.testing.assert_allclose(np.cov(alpha), 0.01 * np.eye(3), atol=1e-3)


def test_fixed_augmentations_divided_over_devices_equal_one_device():
    images = np.random.default_rng(12).integers(0, 256, (16, 8, 8, 3)).astype(np.uint8)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    divided = jax.device_put(images, jax.NamedSharding(mesh, jax.P("batch")))

    @jax.jit
    def run(images):
        crop, flip, jitter, lighting, cutout = jax.random.split(jax.random.key(3), 5)
        images = augment.random_flip(flip, augment.random_crop(crop, images))
        images = augment.random_lighting(lighting, augment.random_color_jitter(jitter, images, 0.4), 0.1)
        return augment.random_cutout(cutout, images, 4)

    np.testing.assert_array_equal(run(divided), run(images))


class Settings(NamedTuple):
    crop_padding: int = 2
    flip: bool = True
    cutout_length: int = 3
    mean: tuple[float, ...] = (0.1, 0.2, 0.3)
    std: tuple[float, ...] = (0.5, 0.25, 0.2)
    color_jitter: float = 0.0
    lighting: float = 0.0


class Keys(NamedTuple):
    crop: jax.Array
    flip: jax.Array
    cutout: jax.Array
    color_jitter: jax.Array
    lighting: jax.Array


def darker_rows(images):
    """A policy that does not commute with a crop, a flip or another policy."""
    return (
        images // 2
        + jnp.arange(images.shape[1] * images.shape[2], dtype=jnp.uint8).reshape(images.shape[1:3])[..., None]
    )


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("per_image", [False, True])
def test_order_of_the_papers(position, per_image):
    """Equal to the seven steps written one after another, of the batch or of every image with its key."""
    images = jnp.asarray(np.random.default_rng(13).integers(0, 256, (2, 8, 7, 3)), jnp.uint8)
    keys = Keys(*jax.random.split(jax.random.key(4), (5, 2) if per_image else 5))
    settings = Settings(color_jitter=0.4, lighting=0.1)

    def steps(keys, images):
        if position == "first":
            images = darker_rows(images)
        images = augment.random_flip(keys.flip, augment.random_crop(keys.crop, images, 2))
        if position == "after_crop":
            images = darker_rows(images)
        images = augment.random_color_jitter(keys.color_jitter, images, 0.4)
        if position == "after_jitter":
            images = darker_rows(images)
        images = augment.random_lighting(keys.lighting, images, 0.1)
        return augment.random_cutout(keys.cutout, augment.normalize(images, settings.mean, settings.std), 3)

    @jax.jit
    def found_and_expected(keys, images):
        found = augment.base_augment(keys, settings, images, darker_rows, policy_position=position)
        if not per_image:
            return found, steps(keys, images)
        singles = [steps(jax.tree.map(lambda k: k[i], keys), images[i : i + 1]) for i in range(2)]  # noqa: B023
        return found, jnp.concatenate(singles)

    found, expected = found_and_expected(keys, images)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_what_is_switched_off_is_not_done():
    images = jnp.asarray(np.random.default_rng(14).integers(0, 256, (3, 4, 4, 3)), jnp.uint8)
    keys = Keys(*jax.random.split(jax.random.key(4), 5))
    settings = Settings(crop_padding=0, flip=False, cutout_length=0)
    for position in POSITIONS:
        found = augment.base_augment(keys, settings, images, darker_rows, policy_position=position)
        expected = augment.normalize(darker_rows(images), settings.mean, settings.std)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(ValueError, match="policy_position: got 'last', expected one of first, after_crop"):
        augment.base_augment(keys, settings, images, darker_rows, policy_position="last")


def test_fixed_augmentations_name_what_is_wrong():
    images, key = np.zeros((2, 8, 8, 3), np.uint8), jax.random.key(0)
    with pytest.raises(TypeError, match="typed key"):
        augment.random_flip(jax.random.PRNGKey(0), images)
    with pytest.raises(ValueError, match="one key"):
        augment.random_flip(jax.random.split(key), images)
    with pytest.raises(ValueError, match=r"\[B, H, W, C\]"):
        augment.random_crop(key, images[0])
    with pytest.raises(ValueError, match="padding"):
        augment.random_crop(key, images, -1)
    with pytest.raises(ValueError, match="length"):
        augment.random_cutout(key, images, -1)
    with pytest.raises(ValueError, match=r"color_jitter: got 1\.5, expected 0 to 1"):
        augment.random_color_jitter(key, images, 1.5)
    with pytest.raises(ValueError, match="lighting: got -1, expected at least 0"):
        augment.random_lighting(key, images, -1)
    with pytest.raises(ValueError, match="mean"):
        augment.normalize(images, (0.5,), (1.0, 1.0, 1.0))
    with pytest.raises(TypeError, match="int32"):
        augment.normalize(images.astype(np.int32), (0.5,) * 3, (1.0,) * 3)
