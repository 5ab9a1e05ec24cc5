"""The one place where an op name becomes pixels and a level in [0, 1] becomes a physical value.

A search space is data: a tuple of rows (name, range, unit, identity value, sign rule). Everything
else in the library speaks of a *row* (index into the space) and a *level* in [0, 1]; only the
leaf files speak of degrees, bits and pixels.

    value = low + level * (high - low)
    value = identity + sign * (value - identity)      rows with a random sign, sign is -1 or +1

Spaces:
    dada              15 ops of the official DADA code. Level 0.5 is the identity of nine of them.
    strength          the same ops; level 0 is the identity, level 1 the strongest, directions are random.
    directed          strength with two rows for every op that has directions, such as Rotate+ and Rotate-,
                      whose values go up or down from the identity: a search learns which. DADA's default.
    autoaugment       dada plus the four rows that converted AutoAugment levels need.
    deepaa            Identity and 14 ops of DeepAA; the sign is part of the action, as searched.
    deepaa_mirrored   the same, geometric values mirrored at random, as the published policies
                      were evaluated.
    randaugment       14 ops of RandAugment and of TrivialAugment (RA): translations in pixels,
                      enhancers from 0.1 to 1.9 without a random sign, level 0.5 their identity.
    randaugment_imagenet  the same with translations up to 100 pixels, as RandAugment has them on ImageNet.
    trivialaugment_wide   the same ops with wider ranges.
    uniformaugment    16 ops: Invert and Cutout besides; translations up to 14.4 pixels.
    ddas              19 ops of DDAS on CIFAR; `searches.ddas` crosses them with magnitudes. A
                      magnitude m of the paper is level m / 32, so that float32 holds it exactly.
    ddas_imagenet     20 ops of DDAS on ImageNet: Cutout besides. ddas_68 has the same rows.
    ddas_sanity       the ops of ddas with Rotate90 in the place of Rotate.
    autoaugment_detection   the 25 ops of Zoph et al. for images with boxes. A magnitude m of theirs is level
                      m / 10; pixels of theirs are fractions of the side, of 640, and thresholds real numbers.
DeepAA's actions flip, cutout and crop differ between CIFAR and ImageNet; they are extra ops, the
`RANDOM_OPS`. What such an op does to an image is drawn by `sampling`, whatever the level:
    RandFlip          FlipLR with probability one half
    RandCutout        a box of 17 x 17 pixels about a uniform centre (RandCutout60: 61 x 61)
    RandCrop          four pixels more on every side, cropped back at a uniform place
    RandResizeCrop    a window of random area and form, enlarged to the image
The `BOX_OPS` (`boxes`) are for images with boxes; what they do not fill from the image is grey:
    SolarizeAdd       levels below 128 become lighter
    CutoutGrey        a square of the image, clipped at its border
    BBox_Cutout       a part of one box
    ..._BBox          the op of that name on the whole image
    ..._Only_BBoxes   the op of that name inside some boxes, which stay
    Rotate90_Image_Only   turns the image and leaves the boxes: wrong, which a search has to notice
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import boxes as box_ops
from . import color, crop, spatial
from .one_image import checked


def _cutout_side(fraction, width):
    """Side in pixels. A side of 0 would paint one pixel, but a fraction of 0 is the identity."""
    side = fraction * width
    return jnp.where(fraction > 0, side, side - 1)  # a negative side paints nothing


# One entry per op, in the order of the op ids. Every entry takes (image, value, center).
_APPLY = {
    "Identity": lambda image, value, center: image,
    "ShearX": lambda image, value, center: spatial.shear_x(image, value),
    "ShearY": lambda image, value, center: spatial.shear_y(image, value),
    "TranslateX": lambda image, value, center: spatial.translate_x(image, value * image.shape[1]),
    "TranslateY": lambda image, value, center: spatial.translate_y(image, value * image.shape[0]),
    "Rotate": lambda image, value, center: spatial.rotate(image, value),
    "AutoContrast": lambda image, value, center: color.auto_contrast(image),
    "Invert": lambda image, value, center: color.invert(image),
    "Equalize": lambda image, value, center: color.equalize(image),
    "Solarize": lambda image, value, center: color.solarize(image, value),
    "Posterize": lambda image, value, center: color.posterize(image, value),
    "Contrast": lambda image, value, center: color.contrast(image, value),
    "Color": lambda image, value, center: color.color(image, value),
    "Brightness": lambda image, value, center: color.brightness(image, value),
    "Sharpness": lambda image, value, center: color.sharpness(image, value),
    "Cutout": lambda image, value, center: spatial.cutout(image, _cutout_side(value, image.shape[1]), center),
    "FlipLR": lambda image, value, center: spatial.flip_lr(image),
    "FlipUD": lambda image, value, center: spatial.flip_ud(image),
    "Rotate90": lambda image, value, center: spatial.rotate90(image),
    "Blur": lambda image, value, center: color.blur(image),
    "Smooth": lambda image, value, center: color.smooth(image),
    "TranslateXAbs": lambda image, value, center: spatial.translate_x(image, value),
    "TranslateYAbs": lambda image, value, center: spatial.translate_y(image, value),
    "CutoutAbs": lambda image, value, center: spatial.cutout(image, value, center),
    "Posterize2": lambda image, value, center: color.posterize(image, value),
}

OPS: tuple[str, ...] = tuple(_APPLY)  # the op id is the index into this tuple; 0 does nothing


def _window_size(number, width):
    return 1 + jnp.stack(jnp.divmod(number.astype(jnp.int32), width))


# Once drawn: center holds the centre of a box, or the first pixel of a window; value the size of a
# window, as the number (height - 1) W + width - 1, which float32 holds exactly.
_APPLY_DRAWN = {
    "RandFlip": lambda image, value, center: spatial.flip_lr(image),
    "RandCutout": lambda image, value, center: crop.box(image, crop.HALF_SIDE, center),
    "RandCutout60": lambda image, value, center: crop.box(image, crop.HALF_SIDE_60, center),
    "RandCrop": lambda image, value, center: crop.crop(image, center),
    "RandResizeCrop": lambda image, value, center: crop.resized_crop(
        image, center.astype(jnp.int32), _window_size(value, image.shape[1])
    ),
}

RANDOM_OPS: tuple[str, ...] = tuple(_APPLY_DRAWN)


def _translate_x(image, target, value):
    return box_ops.translate_x(image, target, value * image.shape[1])


def _translate_y(image, target, value):
    return box_ops.translate_y(image, target, value * image.shape[0])


def _cutout_square(image, target, value):
    return box_ops.cutout(image, target, jnp.stack([value * image.shape[1]] * 2))


def _of_image(op):
    return lambda image, value, center, *_: op(image, box_ops.whole(image, center), value)


def _of_boxes(op):
    return lambda image, value, *drawn: op(image, box_ops.hit(image, *drawn), value)


_MOVES = {
    "Rotate": box_ops.rotate,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "ShearX": box_ops.shear_x,
    "ShearY": box_ops.shear_y,
}

# Every entry takes (image, value, center, boxes, valid).
_APPLY_WITH_BOXES = {
    "SolarizeAdd": lambda image, value, *_: color.solarize_add(image, value),
    "CutoutGrey": _of_image(_cutout_square),
    "BBox_Cutout": box_ops.cutout_one,
    **{f"{name}_BBox": _of_image(op) for name, op in _MOVES.items()},
    **{f"{name}_Only_BBoxes": _of_boxes(op) for name, op in _MOVES.items()},
    "Flip_Only_BBoxes": _of_boxes(box_ops.flip_lr),
    "Solarize_Only_BBoxes": _of_boxes(box_ops.solarize),
    "Equalize_Only_BBoxes": _of_boxes(box_ops.equalize),
    "Cutout_Only_BBoxes": _of_boxes(_cutout_square),
    "Rotate90_Image_Only": lambda image, *_: spatial.rotate90(image),
}
BOX_OPS: tuple[str, ...] = tuple(_APPLY_WITH_BOXES)
ALL_OPS: tuple[str, ...] = (*OPS, *RANDOM_OPS, *BOX_OPS)  # the ids of these follow those of OPS

# Where a point of an image goes. Every entry takes (value, center, H, W); other ops move nothing.
_POINT_MAPS = {
    "ShearX": lambda value, *_: ((1, -value, 0), (0, 1, 0)),
    "ShearY": lambda value, *_: ((1, 0, 0), (-value, 1, 0)),
    "TranslateX": lambda value, center, height, width: box_ops.shift(0, value * width),
    "TranslateY": lambda value, center, height, width: box_ops.shift(value * height, 0),
    "TranslateXAbs": lambda value, *_: box_ops.shift(0, value),
    "TranslateYAbs": lambda value, *_: box_ops.shift(value, 0),
    "Rotate": lambda value, center, height, width: box_ops.turn(value, height, width),
    "FlipLR": lambda value, center, height, width: ((-1, 0, width), (0, 1, 0)),
    "FlipUD": lambda value, center, height, width: ((1, 0, 0), (0, -1, height)),
    "Rotate90": lambda value, center, height, width: ((0, 1, 0), (-1, 0, width)),
    "RandCrop": lambda value, center, *_: box_ops.shift(*center),
    "RandResizeCrop": lambda value, center, height, width: box_ops.enlarge(
        center, _window_size(value, width), height, width
    ),
}
_POINT_MAPS |= {f"{name}_BBox": _POINT_MAPS[name] for name in _MOVES} | {"RandFlip": _POINT_MAPS["FlipLR"]}


class OpRow(NamedTuple):
    """One op of a search space: level 0 means `low`, level 1 means `high`."""

    name: str  # of the op, with + or - where the op has a row for values above and below its identity
    low: float
    high: float
    unit: str  # "" for an op without magnitude
    identity: float | None  # the value that leaves the image unchanged; None where there is none
    random_sign: bool  # mirror the value about `identity` with probability one half

    @property
    def op(self) -> str:
        """Name of the op alone, of `ALL_OPS`."""
        return self.name.rstrip("+-")


class SearchSpace(NamedTuple):
    """A named tuple of rows; hashable, so that it can be a static argument."""

    name: str
    rows: tuple[OpRow, ...]


class Draws(NamedTuple):
    """What is done to every image of a batch, in order of application."""

    op: jax.Array  # int32 [B, K], op id of ALL_OPS; 0 (Identity) = nothing applied
    value: jax.Array  # float32 [B, K], in the unit of the op; 0 where nothing is applied
    center: jax.Array  # float32 [B, K, 2], (row, column) in pixels, for cutouts, crops and `BOX_OPS`


def _without_magnitude(*names: str) -> tuple[OpRow, ...]:
    return tuple(OpRow(name, 0.0, 1.0, "", None, False) for name in names)


def _enhancers(low: float, high: float, *names: str) -> tuple[OpRow, ...]:
    return tuple(OpRow(name, low, high, "factor", 1.0, False) for name in names)


_GEOMETRIC = (
    OpRow("ShearX", -0.3, 0.3, "shear", 0.0, True),
    OpRow("ShearY", -0.3, 0.3, "shear", 0.0, True),
    OpRow("TranslateX", -0.45, 0.45, "fraction of width", 0.0, True),
    OpRow("TranslateY", -0.45, 0.45, "fraction of height", 0.0, True),
    OpRow("Rotate", -30.0, 30.0, "degrees", 0.0, True),
)
_POINT = _without_magnitude("AutoContrast", "Invert", "Equalize")
_SOLARIZE = OpRow("Solarize", 0.0, 256.0, "threshold", 256.0, False)
_POSTERIZE = OpRow("Posterize", 4.0, 8.0, "bits", 8.0, False)
_ENHANCERS = _enhancers(0.1, 1.9, "Contrast", "Color", "Brightness", "Sharpness")
_CUTOUT = OpRow("Cutout", 0.0, 0.2, "fraction of width", 0.0, False)
_COLOR = (*_POINT, _SOLARIZE, _POSTERIZE, *_ENHANCERS)
_DADA = (*_GEOMETRIC, *_COLOR, _CUTOUT)


def _trivial_ops(degrees, bits, factors, shear, pixels) -> tuple[OpRow, ...]:
    """The ops of the TrivialAugment code in its order; level 1 is the largest value."""
    return (
        *_without_magnitude("Identity", "AutoContrast", "Equalize"),
        OpRow("Rotate", 0.0, degrees, "degrees", 0.0, True),
        OpRow("Solarize", 256.0, 0.0, "threshold", 256.0, False),
        *_enhancers(*factors, "Color"),
        OpRow("Posterize", 8.0, bits, "bits", 8.0, False),
        *_enhancers(*factors, "Contrast", "Brightness", "Sharpness"),
        *(OpRow(name, 0.0, shear, "shear", 0.0, True) for name in ("ShearX", "ShearY")),
        *(OpRow(name, 0.0, pixels, "pixels", 0.0, True) for name in ("TranslateXAbs", "TranslateYAbs")),
    )


_DDAS_SINGLE = _without_magnitude(
    *("Identity", "FlipLR", "FlipUD", "AutoContrast", "Equalize", "Invert", "Blur", "Smooth")
)
_DDAS_ROTATE = OpRow("Rotate", 0.0, 96.0, "degrees", 0.0, True)
_DDAS_MOVES = (
    OpRow("Posterize", 4.0, 0.0, "bits", None, False),
    *(OpRow(name, 0.0, 0.96, "shear", 0.0, True) for name in ("ShearX", "ShearY")),
    *(OpRow(name, 0.0, 32.0, "pixels", 0.0, True) for name in ("TranslateXAbs", "TranslateYAbs")),
    OpRow("Solarize", 256.0, 0.0, "threshold", 256.0, False),
)
_DDAS_ENHANCERS = _enhancers(0.1, 5.86, "Color", "Contrast", "Brightness", "Sharpness")
_DDAS_IMAGENET = (
    *(*_DDAS_SINGLE, _DDAS_ROTATE, *_DDAS_MOVES),
    OpRow("CutoutAbs", 0.0, 64.0, "pixels", None, False),
    *_DDAS_ENHANCERS,
)


def _detection_moves(ending: str, pixels: float) -> tuple[OpRow, ...]:
    return (
        OpRow("Rotate" + ending, 0.0, 30.0, "degrees", 0.0, True),
        OpRow("TranslateX" + ending, 0.0, pixels / 640, "fraction of width", 0.0, True),
        OpRow("TranslateY" + ending, 0.0, pixels / 640, "fraction of height", 0.0, True),
        *(OpRow(name + ending, 0.0, 0.3, "shear", 0.0, True) for name in ("ShearX", "ShearY")),
    )


_DETECTION = (
    *_without_magnitude("AutoContrast", "Equalize"),
    OpRow("Posterize", 0.0, 4.0, "bits", None, False),
    _SOLARIZE,
    OpRow("SolarizeAdd", 0.0, 110.0, "addition", 0.0, False),
    *_enhancers(0.1, 1.9, "Color", "Contrast", "Brightness", "Sharpness"),
    OpRow("CutoutGrey", 0.0, 100 / 640, "fraction of width", 0.0, False),
    OpRow("BBox_Cutout", 0.0, 0.75, "fraction of box", 0.0, False),
    *_detection_moves("_BBox", 250),
    *_detection_moves("_Only_BBoxes", 120),
    *_without_magnitude("Flip_Only_BBoxes"),
    _SOLARIZE._replace(name="Solarize_Only_BBoxes"),
    *_without_magnitude("Equalize_Only_BBoxes"),
    OpRow("Cutout_Only_BBoxes", 0.0, 50 / 640, "fraction of width", 0.0, False),
)
_STRENGTH = (
    *(row._replace(low=0.0) for row in _GEOMETRIC),
    *_POINT,
    _SOLARIZE._replace(low=256.0, high=0.0),
    _POSTERIZE._replace(low=8.0, high=4.0),
    *(row._replace(low=1.0, random_sign=True) for row in _ENHANCERS),
    _CUTOUT,
)


def _directions(row: OpRow) -> tuple[OpRow, ...]:
    """A row with a random sign as two without; another one as it is."""
    if not row.random_sign:
        return (row,)
    ends = {"+": row.high, "-": round(2 * row.identity - row.high, 6)}
    return tuple(row._replace(name=row.name + s, high=end, random_sign=False) for s, end in ends.items())


_SPACES = {
    "dada": _DADA,
    "strength": _STRENGTH,
    "directed": tuple(directed for row in _STRENGTH for directed in _directions(row)),
    "autoaugment": (
        *_DADA,
        OpRow("TranslateXAbs", 0.0, 10.0, "pixels", 0.0, True),
        OpRow("TranslateYAbs", 0.0, 10.0, "pixels", 0.0, True),
        OpRow("CutoutAbs", 0.0, 20.0, "pixels", None, False),
        OpRow("Posterize2", 0.0, 4.0, "bits", None, False),
    ),
    "deepaa": (
        *_without_magnitude("Identity"),
        *(row._replace(random_sign=False) for row in _GEOMETRIC),
        *_COLOR,
    ),
    "deepaa_mirrored": (*_without_magnitude("Identity"), *_GEOMETRIC, *_COLOR),
    "randaugment": _trivial_ops(30.0, 4.0, (0.1, 1.9), 0.3, 10.0),
    "randaugment_imagenet": _trivial_ops(30.0, 4.0, (0.1, 1.9), 0.3, 100.0),
    "trivialaugment_wide": _trivial_ops(135.0, 2.0, (0.01, 2.0), 0.99, 32.0),
    "uniformaugment": (
        *_trivial_ops(30.0, 4.0, (0.1, 1.9), 0.3, 14.4),
        *_without_magnitude("Invert"),
        _CUTOUT,
    ),
    "ddas": (*_DDAS_SINGLE, _DDAS_ROTATE, *_DDAS_MOVES, *_DDAS_ENHANCERS),
    "ddas_imagenet": _DDAS_IMAGENET,
    "ddas_68": _DDAS_IMAGENET,
    "ddas_sanity": (*(*_DDAS_SINGLE, *_without_magnitude("Rotate90")), *(*_DDAS_MOVES, *_DDAS_ENHANCERS)),
    "autoaugment_detection": _DETECTION,
}

SPACE_NAMES: tuple[str, ...] = tuple(_SPACES)
_WITH_MAGNITUDE = {row.op for space in _SPACES.values() for row in space if row.unit}
# Ops that can be added to a search space.
EXTRA_OPS: tuple[str, ...] = tuple(op for op in ALL_OPS if op not in _WITH_MAGNITUDE)


def search_space(
    name: str, extra_ops: tuple[str, ...] = (), excluded_ops: tuple[str, ...] = ()
) -> SearchSpace:
    """Returns a search space by name, with extra ops without magnitude appended, and without excluded ones.

    Args:
      name: one of `SPACE_NAMES`.
      extra_ops: names of ops without magnitude (Rotate90, FlipLR, Identity, ...) to append in
        this order; their level is ignored.
      excluded_ops: names of rows to leave out, or of ops: Rotate means Rotate+ and Rotate-.
    Returns:
      The SearchSpace; its rows keep their order, so row indices do not depend on extra_ops.
    Raises:
      ValueError: unknown space or op, an op with a magnitude as extra, a repeated op, an excluded op that is
        extra or not in the space, or nothing left.
    """
    if name not in _SPACES:
        raise ValueError(f"search space: got {name!r}, expected one of {', '.join(SPACE_NAMES)}")
    rows = _SPACES[name]
    seen = {row.op for row in rows}
    for op in extra_ops:
        if op not in EXTRA_OPS:
            raise ValueError(f"extra op: got {op!r}, expected one of {', '.join(EXTRA_OPS)}")
        if op in seen:
            raise ValueError(f"extra op {op!r} is already in search space {name!r}")
        seen.add(op)
    left = rows
    for op in excluded_ops:
        if op in extra_ops:
            raise ValueError(f"excluded op {op!r} is one of the extra ops {', '.join(extra_ops)}")
        if not any(op in (row.name, row.op) for row in rows):
            names = ", ".join(row.name for row in rows)
            raise ValueError(f"excluded op: got {op!r}, expected one of search space {name!r}: {names}")
        before, left = left, tuple(row for row in left if op not in (row.name, row.op))
        if left == before:
            raise ValueError(f"excluded op {op!r} is already excluded")
    if not left and not extra_ops:
        raise ValueError(f"excluded ops: got all of search space {name!r}, expected some to be left")
    return SearchSpace(name, left + _without_magnitude(*extra_ops))


def space_options(space: SearchSpace) -> dict[str, tuple[str, ...]]:
    """Returns the extra_ops and excluded_ops with which `search_space(space.name, **options)` is the space.

    Raises:
      ValueError: no names do, because the rows are not those of the search space of that name.
    """
    whole, names = ([row.name for row in rows] for rows in (search_space(space.name).rows, space.rows))
    options = {
        "extra_ops": tuple(name for name in names if name not in whole),
        "excluded_ops": tuple(name for name in whole if name not in names),
    }
    if space != search_space(space.name, **options):
        raise ValueError(
            f"space: got rows {', '.join(names)}, expected some of those of {space.name!r}, which the policy "
            "will be read with, and extra ops behind them"
        )
    return options


def row_op_ids(space: SearchSpace) -> np.ndarray:
    """Returns the op id of every row, int32 [R]."""
    return np.array([ALL_OPS.index(row.op) for row in space.rows], np.int32)


def op_ids(space: SearchSpace) -> tuple[int, ...]:
    """Returns the distinct op ids of a space and 0 (Identity), sorted."""
    return tuple(sorted({0, *row_op_ids(space).tolist()}))


def random_ops(space: SearchSpace) -> tuple[str, ...]:
    """Returns the names of the space's random ops."""
    return tuple(row.name for row in space.rows if row.name in RANDOM_OPS)


def level_to_value(space: SearchSpace, row: jax.Array, level: jax.Array, sign: jax.Array) -> jax.Array:
    """Maps levels to physical values, value = low + level (high - low), mirrored by sign.

    Args:
      space: the search space.
      row: int [...], index into space.rows.
      level: float [...] in [0, 1]; not clipped.
      sign: float [...], -1 or +1; ignored by rows without a random sign.
    Returns:
      float32 [...], in the unit of the row.
    Gradient: exact in level, +-(high - low).
    Raises:
      TypeError: row is not of an integer type.
      ValueError: the three shapes differ.
    """
    row, level, sign = jnp.asarray(row), jnp.asarray(level), jnp.asarray(sign)
    if not jnp.issubdtype(row.dtype, jnp.integer):
        raise TypeError(f"row: got dtype {row.dtype}, expected an integer type")
    if not row.shape == level.shape == sign.shape:
        raise ValueError(
            "row, level and sign: expected one shape for all three, got "
            f"{row.shape}, {level.shape} and {sign.shape}"
        )
    # high - low is rounded once, so that level 0.5 of a symmetric range gives exactly 0.
    low = np.array([r.low for r in space.rows], np.float32)
    width = np.array([r.high - r.low for r in space.rows], np.float32)
    pivot = np.array([r.identity if r.random_sign else 0.0 for r in space.rows], np.float32)
    mirrored = np.array([r.random_sign for r in space.rows])
    value = jnp.asarray(low)[row] + level.astype(jnp.float32) * jnp.asarray(width)[row]
    identity = jnp.asarray(pivot)[row]
    reflected = identity + sign.astype(jnp.float32) * (value - identity)
    return jnp.where(jnp.asarray(mirrored)[row], reflected, value)


def apply_op(name: str, image: jax.Array, value: jax.typing.ArrayLike, center: jax.Array) -> jax.Array:
    """Applies one op to one image.

    Args:
      name: one of `ALL_OPS`; of a random op, what has been drawn.
      image: float [H, W, 3] in [0, 1].
      value: scalar in the unit of the op: shear; fraction of width or height (TranslateX,
        TranslateY, Cutout) or pixels (the forms ending in Abs); degrees; threshold in 0..256;
        bits; factor; number of a window's size (RandResizeCrop). Ignored by ops without magnitude.
      center: float [2], (row, column) in pixels: the centre of a cutout, the first pixel of a crop.
    Returns:
      float [H, W, 3].
    Gradient: that of the op in `color`, `spatial` or `crop`.
    Raises:
      ValueError: unknown op, or one of `BOX_OPS`.
    """
    apply = _APPLY.get(name) or _APPLY_DRAWN.get(name)
    if apply is None:
        raise ValueError(f"op: got {name!r}, expected one of {', '.join((*OPS, *RANDOM_OPS))}")
    return apply(image, value, center)


def apply_op_with_boxes(
    name: str,
    image: jax.Array,
    boxes: jax.Array,
    valid: jax.Array,
    value: jax.typing.ArrayLike,
    center: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies one op to one image and its boxes.

    Args:
      name: one of `ALL_OPS`.
      image: float32 [H, W, 3] in [0, 1].
      boxes: float32 [N, 4], (x min, y min, x max, y max) in pixels, edges: (0, 0, W, H) is the image.
      valid: bool [N]; False is padding, which may hold anything.
      value: as in `apply_op`; addition to levels (SolarizeAdd), half a square's side as a fraction of the
        width (CutoutGrey, Cutout_Only_BBoxes), fraction of a box's sides (BBox_Cutout), else as the op in
        the name.
      center: float32 [2], as in `apply_op`; ops inside boxes draw from its bits (`boxes`).
    Returns:
      image, boxes and valid. A box that leaves the image is not valid any more; such slots hold 0.
    Gradient: to image and value that of the op; none through boxes.
    Raises:
      ValueError: unknown op.
    """
    if name in _APPLY_WITH_BOXES:
        arguments = (checked(key, x) for key, x in (("image", image), ("value", value), ("center", center)))
        changed = _APPLY_WITH_BOXES[name](*arguments, boxes, valid)
    else:
        changed = apply_op(name, image, value, center)
    return changed, *move_boxes(name, boxes, valid, value, center, image.shape[:2])


def move_boxes(
    name: str,
    boxes: jax.Array,
    valid: jax.Array,
    value: jax.typing.ArrayLike,
    center: jax.Array,
    image_size: tuple[int, int],
) -> tuple[jax.Array, jax.Array]:
    """What `apply_op_with_boxes` does to the boxes; `image_size` is (H, W) in pixels."""
    value = jax.lax.stop_gradient(value)
    unmoved = ((1, 0, 0), (0, 1, 0))
    point_map = _POINT_MAPS[name](value, center, *image_size) if name in _POINT_MAPS else unmoved
    return box_ops.transform(boxes, valid, point_map, image_size)
