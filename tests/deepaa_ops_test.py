"""The random ops of DeepAA: pixels against Pillow, what is drawn against its distribution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw

from dada import augment, ops, policies
from dada.augment import fast_path, sampling
from dada.ops import crop
from dada.searches.dada import config as dada_config

COUNT = 20_000
SIZE = (24, 40)
PUBLISHED = ("deepaa_cifar_1", "deepaa_cifar_2", "deepaa_imagenet_1", "deepaa_imagenet_2")


def _images(count, size=SIZE, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _draw(key, name, count, size):
    """`count` draws of one random op that is always applied."""
    space = ops.search_space("deepaa", (name,))
    shape = (count, 1)
    return sampling.assemble_draws(
        space,
        jnp.full(shape, len(space.rows) - 1),
        jnp.ones(shape, bool),
        jnp.zeros(shape),
        jnp.ones(shape),
        jnp.full((*shape, 2), -7.0),
        noise=jax.random.uniform(key, (*shape, sampling.NOISE_SIZE)),
        image_size=size,
    )


def _drawn(name, count=COUNT, size=SIZE, seed=0):
    draws = _draw(jax.random.key(seed), name, count, size)
    return [np.asarray(leaf)[:, 0] for leaf in draws]


def _assert_distribution(counts, probability):
    """Chi-squared test at the 0.1 % level; events of probability zero must not happen at all."""
    counts, probability = np.ravel(counts).astype(float), np.ravel(probability).astype(float)
    assert counts[probability == 0].sum() == 0
    counts, probability = counts[probability > 0], probability[probability > 0]
    expected = counts.sum() * probability
    assert probability.sum() == pytest.approx(1) and expected.min() > 5
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert jax.scipy.special.gammaincc((len(counts) - 1) / 2, statistic / 2) > 1e-3, (counts, expected)


def _pillow(name, image, value, center):
    picture = Image.fromarray(image)
    height, width, _ = image.shape
    row, column = (float(c) for c in center)
    if name == "RandFlip":
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    elif name == "RandCrop":
        padded = Image.new("RGB", (width + 8, height + 8), crop.FILL)
        padded.paste(picture, (4, 4))
        left, top = int(column) + 4, int(row) + 4
        picture = padded.crop((left, top, left + width, top + height))
    elif name == "RandResizeCrop":
        rows, columns = divmod(int(value), width)
        box = (int(column), int(row), int(column) + columns + 1, int(row) + rows + 1)
        picture = picture.crop(box).resize((width, height), Image.Resampling.BICUBIC)
    else:
        half = 30 if name == "RandCutout60" else 8
        low = [int(np.clip(c - half, 0, end)) for c, end in ((column, width), (row, height))]
        high = [int(np.clip(c + half, 0, end)) for c, end in ((column, width), (row, height))]
        ImageDraw.Draw(picture).rectangle([*low, *high], crop.FILL)
    return np.asarray(picture)


@pytest.mark.parametrize("size", [SIZE, (200, 70)])
def test_pixels_are_pillows_on_every_path(size):
    count = 24 if size[0] < 100 else 2
    op, value, center = (
        np.concatenate(parts) for parts in zip(*(_drawn(n, count, size) for n in ops.RANDOM_OPS))
    )
    images = _images(len(op), size)
    expected = images.copy()
    for index in np.flatnonzero(op):
        name = ops.ALL_OPS[op[index]]
        expected[index] = _pillow(name, images[index], value[index], center[index])
    draws = ops.Draws(op[:, None], value[:, None], center[:, None])
    np.testing.assert_array_equal(jax.jit(augment.apply_draws)(images, draws), expected)

    @jax.jit
    def dense(images):
        pixels = fast_path._dense(fast_path._FAMILIES, size, fast_path._pack(images), op, value, center)
        return fast_path._unpack(pixels, size)

    np.testing.assert_array_equal(dense(images), expected)
    assert np.mean(expected != images) > 0.1


@pytest.mark.parametrize("window", [(1, 1), (3, 20), (23, 7), (24, 1), (24, 40)])
def test_resized_crop_is_pillows(window):
    image = _images(1)[0]
    corner = (SIZE[0] - window[0], (SIZE[1] - window[1]) // 2)
    found = crop.resized_crop(jnp.asarray(image, jnp.float32) / 255, np.array(corner), np.array(window))
    expected = _pillow("RandResizeCrop", image, (window[0] - 1) * SIZE[1] + window[1] - 1, corner)
    np.testing.assert_array_equal(np.round(np.asarray(found) * 255), expected)


def test_families_that_a_policy_does_not_need_are_left_out():
    images = jnp.asarray(_images(4))
    draws = sampling.sample(jax.random.key(0), policies.load("deepaa_cifar_1"), 4, SIZE)

    def size_of_program(op_ids):
        run = functools.partial(augment.apply_draws, op_ids=op_ids)
        return len(jax.jit(run).lower(images, draws).as_text())

    flip = (0, ops.ALL_OPS.index("RandFlip"))
    assert size_of_program(flip) < 0.5 * size_of_program(None)
    nothing = jax.jit(functools.partial(augment.apply_draws, op_ids=(0,)))
    np.testing.assert_array_equal(nothing(images, draws), images)


def test_half_of_the_images_are_mirrored():
    op, value, _ = _drawn("RandFlip")
    mirrored = op == ops.ALL_OPS.index("RandFlip")
    assert not op[~mirrored].any() and not value[~mirrored].any()
    _assert_distribution([mirrored.sum(), (~mirrored).sum()], [0.5, 0.5])


def test_crop_offsets_are_uniform():
    _, _, center = _drawn("RandCrop")
    assert np.array_equal(center, np.round(center)) and np.abs(center).max() == 4
    place = (center + 4).astype(int)
    _assert_distribution(np.bincount(place[:, 0] * 9 + place[:, 1], minlength=81), np.full(81, 1 / 81))


def test_boxes_have_the_published_sides():
    """17 pixels with probability one half, 9 to 16 with a sixteenth each; 217 of 1,024 pixels on average."""
    _, _, center = _drawn("RandCutout", size=(32, 32))
    middle = np.floor(center).astype(int)
    sides = np.minimum(middle + 8, 31) - np.maximum(middle - 8, 0) + 1
    for side in sides.T:
        _assert_distribution(np.bincount(side, minlength=18)[9:], [*[1 / 16] * 8, 0.5])
    area = sides.prod(1)
    assert abs(area.mean() - 217) < 5 * area.std() / np.sqrt(COUNT)


def test_large_boxes_have_their_centre_in_the_middle():
    _, _, center = _drawn("RandCutout60", size=(100, 400))
    cell = (center - (0, 72)) // (25, 64)
    assert cell.min() >= 0 and (cell <= 3).all()
    _assert_distribution(np.bincount((cell[:, 0] * 4 + cell[:, 1]).astype(int)), np.full(16, 1 / 16))


def _window(generator, height, width):
    """torchvision's RandomResizedCrop with one attempt, by a loop."""
    area = height * width * generator.uniform(0.08, 1.0)
    ratio = np.exp(generator.uniform(np.log(3 / 4), np.log(4 / 3)))
    w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
        return generator.integers(0, height - h + 1), generator.integers(0, width - w + 1), h, w
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize("size", [(32, 32), (24, 40), (40, 24)])
def test_windows_are_those_of_the_released_code(size):
    _, value, center = _drawn("RandResizeCrop", size=size)
    windows = np.stack([*center.T, value // size[1] + 1, value % size[1] + 1], 1)
    assert (windows[:, :2] >= 0).all() and (windows[:, :2] + windows[:, 2:] <= size).all()
    generator = np.random.default_rng(0)
    expected = np.array([_window(generator, *size) for _ in range(COUNT)])
    largest = np.unique(expected[:, 2:], axis=0)[-1]
    whole = [np.mean((part[:, 2:] == largest).all(1)) for part in (windows, expected)]
    assert abs(whole[0] - whole[1]) < 5 * np.sqrt(0.5 / COUNT)
    for got, want in zip(windows.T, expected.T):  # two samples of one distribution
        counts = np.stack([np.bincount(part.astype(int), minlength=41) for part in (got, want)])
        counts = counts[:, counts.sum(0) > 20]
        statistic = ((counts[0] - counts[1]) ** 2 / counts.sum(0)).sum()
        assert jax.scipy.special.gammaincc((counts.shape[1] - 1) / 2, statistic / 2) > 1e-3
    correlations = np.corrcoef(windows[:, 2:].T)[0, 1], np.corrcoef(expected[:, 2:].T)[0, 1]
    assert abs(correlations[0] - correlations[1]) < 0.05


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_policies_are_drawn_as_they_say(name):
    found = policies.load(name)
    draws = jax.jit(sampling.sample, static_argnums=(1, 2, 3))(jax.random.key(1), found, COUNT, (32, 32))
    ids = ops.row_op_ids(policies.space(found))
    share = found.content.probability @ np.eye(len(ids))[found.content.row]
    flip = np.flatnonzero(ids == ops.ALL_OPS.index("RandFlip"))
    share[:, 0] += 0.5 * share[:, flip].sum(1)  # tails
    share[:, flip] *= 0.5
    for layer, probability in enumerate(share):
        counts = (np.asarray(draws.op)[:, layer, None] == ids).sum(0)
        common = probability * COUNT > 10
        _assert_distribution(
            [*counts[common], counts[~common].sum() + 10],  # ten more on both sides, against empty cells
            np.array([*(probability[common] * COUNT), probability[~common].sum() * COUNT + 10])
            / (COUNT * probability.sum() + 10),
        )
    if name != PUBLISHED[0]:  # one program is enough to see that the draws do something
        return
    small = jax.tree.map(lambda leaf: leaf[:8], draws)
    images = _images(8, (32, 32))
    assert (np.asarray(jax.jit(augment.apply_draws)(images, small)) != images).mean() > 0.2


def test_random_ops_without_their_numbers_are_refused():
    space = ops.search_space("deepaa", ("RandFlip", "RandCrop"))
    zeros = jnp.zeros((2, 3))
    arguments = (space, zeros.astype(int), zeros == 0, zeros, zeros, jnp.zeros((2, 3, 2)))
    with pytest.raises(ValueError, match="random ops RandFlip, RandCrop: expected an image size and noise"):
        sampling.assemble_draws(*arguments)
    with pytest.raises(ValueError, match=r"noise of shape \(2, 3, 4\), got \(8, 8\) and \(2, 3\)"):
        sampling.assemble_draws(*arguments, noise=zeros, image_size=(8, 8))
    with pytest.raises(ValueError, match="random ops RandFlip, RandCrop, which only DeepAA searches"):
        dada_config.Config(apply=lambda *_: None, space=space)
    with pytest.raises(TypeError, match="expected float32, got uint8"):
        crop.crop(jnp.zeros((4, 4, 3), jnp.uint8), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"expected shape \[H, W, 3\], got \(4, 4\)"):
        crop.box(jnp.zeros((4, 4)), 8, jnp.zeros(2))
