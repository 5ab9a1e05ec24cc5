"""Search spaces, level to value, and every op by name against Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from dada import ops

# Physical values at levels 0, 0.25, 0.5 and 1 for sign +1, then for sign -1.
_NONE = ((0, 0.25, 0.5, 1), (0, 0.25, 0.5, 1))


def _signed(*values):
    return values, tuple(-value for value in values)


def _unsigned(*values):
    return values, values


VALUES = {
    "dada": {
        "ShearX": _signed(-0.3, -0.15, 0, 0.3),
        "ShearY": _signed(-0.3, -0.15, 0, 0.3),
        "TranslateX": _signed(-0.45, -0.225, 0, 0.45),
        "TranslateY": _signed(-0.45, -0.225, 0, 0.45),
        "Rotate": _signed(-30, -15, 0, 30),
        "AutoContrast": _NONE,
        "Invert": _NONE,
        "Equalize": _NONE,
        "Solarize": _unsigned(0, 64, 128, 256),
        "Posterize": _unsigned(4, 5, 6, 8),
        "Contrast": _unsigned(0.1, 0.55, 1, 1.9),
        "Color": _unsigned(0.1, 0.55, 1, 1.9),
        "Brightness": _unsigned(0.1, 0.55, 1, 1.9),
        "Sharpness": _unsigned(0.1, 0.55, 1, 1.9),
        "Cutout": _unsigned(0, 0.05, 0.1, 0.2),
    },
    "strength": {
        "ShearX": _signed(0, 0.075, 0.15, 0.3),
        "ShearY": _signed(0, 0.075, 0.15, 0.3),
        "TranslateX": _signed(0, 0.1125, 0.225, 0.45),
        "TranslateY": _signed(0, 0.1125, 0.225, 0.45),
        "Rotate": _signed(0, 7.5, 15, 30),
        "AutoContrast": _NONE,
        "Invert": _NONE,
        "Equalize": _NONE,
        "Solarize": _unsigned(256, 192, 128, 0),
        "Posterize": _unsigned(8, 7, 6, 4),
        "Contrast": ((1, 1.225, 1.45, 1.9), (1, 0.775, 0.55, 0.1)),
        "Color": ((1, 1.225, 1.45, 1.9), (1, 0.775, 0.55, 0.1)),
        "Brightness": ((1, 1.225, 1.45, 1.9), (1, 0.775, 0.55, 0.1)),
        "Sharpness": ((1, 1.225, 1.45, 1.9), (1, 0.775, 0.55, 0.1)),
        "Cutout": _unsigned(0, 0.05, 0.1, 0.2),
    },
}
_TWO_SIDED = (*list(VALUES["dada"])[:5], "Contrast", "Color", "Brightness", "Sharpness")
IDENTITY_LEVEL = {
    "dada": dict.fromkeys(_TWO_SIDED, 0.5) | {"Solarize": 1.0, "Posterize": 1.0, "Cutout": 0.0},
    "strength": dict.fromkeys((*_TWO_SIDED, "Solarize", "Posterize", "Cutout"), 0.0),
}
OP_NAMES = (
    "Identity ShearX ShearY TranslateX TranslateY Rotate AutoContrast Invert Equalize Solarize "
    "Posterize Contrast Color Brightness Sharpness Cutout FlipLR FlipUD Rotate90 Blur Smooth "
    "TranslateXAbs TranslateYAbs CutoutAbs Posterize2"
)


def _value(space, row, level, sign):
    value = ops.level_to_value(
        space, jnp.array(row), jnp.array(level, jnp.float32), jnp.array(sign, jnp.float32)
    )
    return np.asarray(value)


def test_op_ids_are_fixed():
    assert list(ops.OPS) == OP_NAMES.split()


@pytest.mark.parametrize("name", ["dada", "strength"])
def test_the_fifteen_ops_keep_their_order(name):
    names = [row.name for row in ops.search_space(name).rows]
    assert names == list(ops.OPS[1:16]) == list(VALUES[name])


@pytest.mark.parametrize("name", ["dada", "strength"])
def test_values_of_every_row(name):
    space = ops.search_space(name)
    for index, row in enumerate(space.rows):
        for sign, expected in zip((1, -1), VALUES[name][row.name]):
            got = _value(space, [index] * 4, [0, 0.25, 0.5, 1], [sign] * 4)
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7, err_msg=row.name)


@pytest.mark.parametrize("name", ["dada", "strength"])
def test_identity_values_are_met_exactly(name):
    space = ops.search_space(name)
    for index, row in enumerate(space.rows):
        if row.identity is None:
            assert row.unit == ""
            continue
        level = IDENTITY_LEVEL[name][row.name]
        for sign in (1, -1):
            assert _value(space, index, level, sign) == row.identity, row.name


@pytest.mark.parametrize("name", ops.SPACE_NAMES)
def test_signs_mirror_about_the_identity_value(name):
    space = ops.search_space(name)
    levels = np.linspace(0, 1, 7)
    for index, row in enumerate(space.rows):
        plus = _value(space, [index] * 7, levels, [1] * 7)
        minus = _value(space, [index] * 7, levels, [-1] * 7)
        if row.random_sign:
            np.testing.assert_allclose(plus + minus, 2 * row.identity, atol=1e-5)
        else:
            np.testing.assert_array_equal(plus, minus)


@pytest.mark.parametrize("name", ops.SPACE_NAMES)
def test_gradient_of_the_value_is_the_signed_range(name):
    space = ops.search_space(name)
    count = len(space.rows)
    rows = jnp.arange(count)
    width = np.array([row.high - row.low for row in space.rows])
    mirrored = np.array([row.random_sign for row in space.rows])
    for sign in (1.0, -1.0):

        @jax.jit
        def total(level, sign=sign):
            return ops.level_to_value(space, rows, level, jnp.full(count, sign)).sum()

        expected = np.where(mirrored, sign * width, width)
        np.testing.assert_allclose(jax.grad(total)(jnp.full(count, 0.3)), expected, rtol=1e-6)


def test_deepaa_grid():
    space = ops.search_space("deepaa")
    names = [row.name for row in space.rows]
    assert names == list(ops.OPS[:15])
    grid = np.arange(13) / 12
    expected = {
        "ShearX": np.arange(-6, 7) * 0.05,
        "TranslateY": np.arange(-6, 7) * 0.075,
        "Rotate": np.arange(-6, 7) * 5.0,
        "Solarize": np.arange(13) * 256 / 12,
        "Contrast": 0.1 + np.arange(13) * 0.15,
    }
    for name, values in expected.items():
        got = _value(space, [names.index(name)] * 13, grid, [-1] * 13)
        np.testing.assert_allclose(got, values, rtol=1e-5, atol=1e-6)
    bits = _value(space, [names.index("Posterize")] * 13, grid, [1] * 13)
    np.testing.assert_array_equal(bits.astype(int), [4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8])


def test_autoaugment_adds_rows_to_dada():
    rows = ops.search_space("autoaugment").rows
    assert rows[:15] == ops.search_space("dada").rows
    assert [(row.name, row.low, row.high) for row in rows[15:]] == [
        ("TranslateXAbs", 0, 10),
        ("TranslateYAbs", 0, 10),
        ("CutoutAbs", 0, 20),
        ("Posterize2", 0, 4),
    ]


def test_extra_ops_are_appended_without_magnitude():
    space = ops.search_space("strength", ("Rotate90", "Identity"))
    assert space.rows[:15] == ops.search_space("strength").rows
    assert space.rows[15:] == (
        ops.OpRow("Rotate90", 0.0, 1.0, "", None, False),
        ops.OpRow("Identity", 0.0, 1.0, "", None, False),
    )
    np.testing.assert_array_equal(ops.row_op_ids(space), [*range(1, 16), 18, 0])
    assert ops.row_op_ids(space).dtype == np.int32


def test_excluded_ops_are_ops_in_both_directions_or_rows():
    space = ops.search_space("directed", ("Rotate90",), ("Rotate", "ShearX-", "Cutout"))
    left = {"Rotate+", "Rotate-", "ShearX-", "Cutout"}
    whole = ops.search_space("directed", ("Rotate90",))
    assert space.rows == tuple(row for row in whole.rows if row.name not in left)
    rows = ("ShearX-", "Rotate+", "Rotate-", "Cutout")
    assert ops.space_options(space) == {"extra_ops": ("Rotate90",), "excluded_ops": rows}
    assert ops.search_space("directed", ("Rotate90",), rows) == space
    with pytest.raises(ValueError, match="expected some of those of 'directed'"):
        ops.space_options(space._replace(rows=space.rows[::-1]))


def test_a_space_is_a_static_argument():
    function = jax.jit(ops.level_to_value, static_argnums=0)
    space = ops.search_space("strength", ("FlipLR",))
    one = jnp.ones(1)
    assert function(space, jnp.array([4]), one, -one) == -30


@pytest.mark.parametrize(
    "name, extra_ops, message",
    [
        ("dadaa", (), "got 'dadaa', expected one of dada, strength"),
        ("dada", ("Rotate45",), "got 'Rotate45', expected one of Identity"),
        ("dada", ("CutoutAbs",), "got 'CutoutAbs', expected one of"),
        ("dada", ("Invert",), "'Invert' is already in search space 'dada'"),
        ("dada", ("Blur", "Blur"), "'Blur' is already in"),
        ("deepaa", ("Identity",), "'Identity' is already in"),
    ],
)
def test_bad_spaces(name, extra_ops, message):
    with pytest.raises(ValueError, match=message):
        ops.search_space(name, extra_ops)


def test_random_ops_follow_the_others():
    assert ops.ALL_OPS[: len(ops.OPS)] == ops.OPS
    space = ops.search_space("deepaa", ("RandFlip", "RandCrop"))
    assert ops.random_ops(space) == ("RandFlip", "RandCrop")
    np.testing.assert_array_equal(ops.row_op_ids(space)[-2:], [len(ops.OPS), len(ops.OPS) + 3])
    assert ops.op_ids(space) == (*range(15), 25, 28)


def test_bad_levels():
    space = ops.search_space("dada")
    with pytest.raises(TypeError, match="row: got dtype float32, expected an integer"):
        ops.level_to_value(space, jnp.zeros(2), jnp.zeros(2), jnp.ones(2))
    with pytest.raises(ValueError, match=r"got \(2,\), \(3,\) and \(2,\)"):
        ops.level_to_value(space, jnp.zeros(2, int), jnp.zeros(3), jnp.ones(2))


# ---- apply_op --------------------------------------------------------------------------------


def _affine(image, *coefficients):
    return image.transform(image.size, Image.Transform.AFFINE, coefficients)


def _paint(image, side):
    """The cutout of the originals at (row, column) = CENTER: truncated corner, inclusive ends."""
    width, height = image.size
    left, top = (int(max(0, center - side / 2)) for center in CENTER[::-1])
    image = image.copy()
    box = (left, top, min(width, left + side), min(height, top + side))
    ImageDraw.Draw(image).rectangle([int(x) for x in box], fill=(125, 123, 114))
    return image


CENTER = (7.3, 16.8)
# Value and Pillow's result on an image of width 28 and height 20.
ORACLE = {
    "Identity": (0.7, lambda image: image),
    "ShearX": (0.21, lambda image: _affine(image, 1, 0.21, 0, 0, 1, 0)),
    "ShearY": (-0.17, lambda image: _affine(image, 1, 0, 0, -0.17, 1, 0)),
    "TranslateX": (0.3, lambda image: _affine(image, 1, 0, 0.3 * 28, 0, 1, 0)),
    "TranslateY": (0.3, lambda image: _affine(image, 1, 0, 0, 0, 1, 0.3 * 20)),
    "Rotate": (17.0, lambda image: image.rotate(17.0)),
    "AutoContrast": (0.7, ImageOps.autocontrast),
    "Invert": (0.7, ImageOps.invert),
    "Equalize": (0.7, ImageOps.equalize),
    "Solarize": (100.5, lambda image: ImageOps.solarize(image, 100.5)),
    "Posterize": (5.9, lambda image: ImageOps.posterize(image, 5)),
    "Contrast": (1.5, lambda image: ImageEnhance.Contrast(image).enhance(1.5)),
    "Color": (0.25, lambda image: ImageEnhance.Color(image).enhance(0.25)),
    "Brightness": (1.5, lambda image: ImageEnhance.Brightness(image).enhance(1.5)),
    "Sharpness": (1.75, lambda image: ImageEnhance.Sharpness(image).enhance(1.75)),
    "Cutout": (0.25, lambda image: _paint(image, 0.25 * 28)),
    "FlipLR": (0.7, ImageOps.mirror),
    "FlipUD": (0.7, ImageOps.flip),
    "Rotate90": (0.7, lambda image: image.transpose(Image.Transpose.ROTATE_90)),
    "Blur": (0.7, lambda image: image.filter(ImageFilter.BLUR)),
    "Smooth": (0.7, lambda image: image.filter(ImageFilter.SMOOTH)),
    "TranslateXAbs": (-5.0, lambda image: _affine(image, 1, 0, -5, 0, 1, 0)),
    "TranslateYAbs": (4.0, lambda image: _affine(image, 1, 0, 0, 0, 1, 4)),
    "CutoutAbs": (6.0, lambda image: _paint(image, 6.0)),
    "Posterize2": (2.5, lambda image: ImageOps.posterize(image, 2)),
}


@pytest.mark.parametrize("name", ops.OPS)
def test_every_op_is_pillows(name):
    shape = (28, 28, 3) if name == "Rotate90" else (20, 28, 3)
    pixels = np.random.default_rng(3).integers(20, 220, shape, np.uint8)
    value, oracle = ORACLE[name]
    expected = np.asarray(oracle(Image.fromarray(pixels)))
    apply = jax.jit(ops.apply_op, static_argnums=0)
    image = jnp.asarray(pixels, jnp.float32) / 255
    got = apply(name, image, jnp.float32(value), jnp.array(CENTER, jnp.float32))
    assert got.shape == shape and got.dtype == jnp.float32
    np.testing.assert_array_equal(np.rint(np.asarray(got) * 255), expected)


def test_the_identity_value_leaves_the_image():
    pixels = np.random.default_rng(4).integers(0, 256, (12, 18, 3), np.uint8)
    values = {
        row.name: np.float32(row.identity)
        for row in ops.search_space("autoaugment").rows
        if row.identity is not None
    }

    @jax.jit
    def every(image, values):
        return {name: ops.apply_op(name, image, v, jnp.array([5.0, 7.0])) for name, v in values.items()}

    for name, got in every(np.float32(pixels) / 255, values).items():
        np.testing.assert_array_equal(np.rint(np.asarray(got) * 255), pixels, err_msg=name)


def test_cutout_has_a_gradient_at_the_identity():
    image = jnp.full((12, 18, 3), 0.1)

    @jax.jit
    def cut(value):
        return ops.apply_op("Cutout", image, value, jnp.array([5.0, 7.0]))

    np.testing.assert_array_equal(cut(0.0), image)
    assert jax.jit(jax.grad(lambda value: cut(value).sum()))(0.0) > 0


def test_unknown_op():
    with pytest.raises(ValueError, match="got 'Twirl', expected one of Identity, ShearX"):
        ops.apply_op("Twirl", jnp.zeros((4, 4, 3)), 0.0, jnp.zeros(2))
