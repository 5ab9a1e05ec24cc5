"""Boxes of one image: how they move with it, and the ops that change it inside them.

Boxes are float32 `[N, 4]`, (x min, y min, x max, y max) in pixels, edges: (0, 0, W, H) is the whole image. A
pixel belongs to a box if its centre does. `valid` is bool `[N]`; what other slots hold changes nothing.

What an op draws about boxes comes from the bits of its `center`, two float32 that are taken as a key:
    ..._Only_BBoxes   every box is hit with probability 1/3, independently. Where some that are hit overlap,
                      a pixel belongs to the last of them in a random order. Cutout has its centre in a pixel
                      of the box, uniform.
    BBox_Cutout       one box and a pixel of it, uniform.
So a draw that is applied again hits the same boxes.

Fill is grey, 128. Inside a box an op gives the pixels that it would give on the box cut out; the box stays.

Gradient: as in `color` and `spatial`. Geometry takes the slopes of the image, across the border of a box too;
Equalize is the image itself; a cutout is x + m (grey - x), m the product over both axes of
sigmoid(2 (k - c + h)) sigmoid(2 (c + h - k)) at a pixel with the centre k, half a side h and the centre c.

Deviations from the released code: a box without area in the image is lost, it does not become a sliver of 5 %
at the border; where boxes overlap, an op inside them reads the image as it was before the op, not what other
boxes have left; the probability p of an entry is drawn once for an image and then 1/3 for each box, not p / 3
for each box; half the sides of cutouts are rounded, not truncated.

Reference: Zoph et al. 2020, arXiv:1906.11172, and autoaugment_utils.py of tensorflow/tpu.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import color, spatial
from .one_image import with_tangent_of

_GREY = np.float32(128) / np.float32(255)
_HIT = 1 / 3  # probability

# A point (x, y) goes to (a x + b y + c, d x + e y + f), in pixels: ((a, b, c), (d, e, f)), real scalars.
PointMap = tuple[tuple[jax.typing.ArrayLike, ...], tuple[jax.typing.ArrayLike, ...]]


def transform(
    boxes: jax.Array, valid: jax.Array, point_map: PointMap, image_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """What encloses the moved boxes, clipped at the image; one that has no area then is lost.

    Args:
      boxes: float32 [N, 4].
      valid: bool [N].
      point_map: of the image.
      image_size: (H, W) in pixels.
    Returns:
      Boxes and valid; the slots that are not valid hold 0.
    """
    lows, highs = [], []
    for (of_x, of_y, constant), extent in zip(point_map, image_size[::-1]):
        x, y = of_x * boxes[:, ::2], of_y * boxes[:, 1::2]
        for ends, end in ((lows, jnp.min), (highs, jnp.max)):
            ends.append(jnp.clip(end(x, axis=1) + end(y, axis=1) + constant, 0, extent))
    valid &= (lows[0] < highs[0]) & (lows[1] < highs[1])
    return jnp.where(valid[:, None], jnp.stack([*lows, *highs], axis=1), 0.0), valid


def shift(rows, columns):
    """The image moves up and to the left, by pixels rounded to whole ones."""
    rows, columns = (spatial.round_half_up(jnp.asarray(pixels, jnp.float32)) for pixels in (rows, columns))
    return (1, 0, -columns), (0, 1, -rows)


def turn(degrees, height, width):
    """Counter-clockwise about the centre of the image."""
    radians = degrees * np.float32(np.pi / 180)
    cosine, sine = jnp.cos(radians), jnp.sin(radians)
    x, y = 0.5 * width, 0.5 * height
    return (cosine, sine, x - cosine * x - sine * y), (-sine, cosine, y + sine * x - cosine * y)


def enlarge(corner, size, height, width):
    """A window, given by its first pixel and its (rows, columns), becomes the image."""
    y, x = height / size[0], width / size[1]
    return (x, 0, -x * corner[1]), (0, y, -y * corner[0])


class Target(NamedTuple):
    """The pixels that an op may change, and the rectangle that each belongs to: the image or a box."""

    covered: jax.Array  # bool, as all here broadcast to [H, W]
    frame: spatial.Frame
    number: jax.Array  # int32, of the rectangle, 0 for the image
    count: int  # static, numbers
    middle: jax.Array  # int32 [2] or [H, W, 2], (row, column) of the image: where a cutout has its centre


def whole(image, center):
    """The whole image."""
    zero = jnp.zeros((1, 1), jnp.int32)
    return Target(zero == 0, spatial.whole(image), zero, 1, jnp.floor(center).astype(jnp.int32))


def hit(image, center, boxes, valid):
    """The boxes that are hit."""
    noise = _noise(center, len(boxes))
    rectangles = (*_pixels(image, boxes), noise, valid & (noise[:, 0] < _HIT))
    order = jnp.argsort(noise[:, 0])  # random; number 0 is the image
    first, size, noise, is_hit = (
        jnp.pad(array[order], ((1, 0), *((0, 0),) * (array.ndim - 1))) for array in rectangles
    )
    middle = first + jnp.floor(noise[:, 1:] * size).astype(jnp.int32)
    rows, columns, *_ = spatial.whole(image)
    down, right = rows - first[:, 0, None, None], columns - first[:, 1, None, None]
    covers = (down >= 0) & (down < size[:, 0, None, None]) & (right >= 0) & (right < size[:, 1, None, None])
    numbers = jnp.arange(len(is_hit))[:, None, None]
    number = jnp.max(jnp.where(covers & is_hit[:, None, None], numbers, 0), axis=0)
    first, size, middle = (array[number] for array in (first, size, middle))
    frame = spatial.Frame(rows - first[..., 0], columns - first[..., 1], size[..., 0], size[..., 1])
    return Target(number > 0, frame, number, len(is_hit), middle)


def _noise(center, count):
    """Three numbers for every box, uniform on [0, 1): float32 [count, 3]."""
    key = jax.random.wrap_key_data(jax.lax.bitcast_convert_type(center, jnp.uint32), impl="threefry2x32")
    return jax.random.uniform(key, (count, 3))


def _pixels(image, boxes):
    """First pixel and number of pixels of every box, (rows, columns): int32 [N, 2] each."""
    edges = jnp.ceil(boxes.reshape(-1, 2, 2)[..., ::-1] - 0.5)
    ends = jnp.clip(edges, 0, np.float32(image.shape[:2])).astype(jnp.int32)
    return ends[:, 0], ends[:, 1] - ends[:, 0]


def _geometry(source):
    """The op (image, target, value) of a source as in `spatial`."""

    def moved(read, image, target, value):
        frame = target.frame
        rows, columns, motions = source(frame, value)
        inside = (rows >= 0) & (rows < frame.height) & (columns >= 0) & (columns < frame.width)
        y, x, *_ = spatial.whole(image)
        pixels = read(image, rows - frame.rows + y, columns - frame.columns + x, motions)
        pixels = jnp.where(inside[..., None], pixels, _GREY)
        return jnp.where(target.covered[..., None], pixels, image)

    def hard_read(image, rows, columns, motions):
        return spatial.gather(image, rows, columns)

    soft, hard = (functools.partial(moved, read) for read in (spatial.sample, hard_read))
    return with_tangent_of(soft, hard)


def _exchanged(source):
    """The source that moves rows as the given one moves columns."""

    def exchanged(frame, value):
        rows, columns, height, width = frame
        columns, rows, motions = source(spatial.Frame(columns, rows, width, height), value)
        return rows, columns, [(1 - axis, position) for axis, position in motions]

    return exchanged


# Ops (image, target, value); translations are in pixels.
rotate = _geometry(spatial.rotate_source)
shear_x = _geometry(spatial.shear_source)
shear_y = _geometry(_exchanged(spatial.shear_source))
translate_x = _geometry(spatial.translate_source)
translate_y = _geometry(_exchanged(spatial.translate_source))
flip_lr = _geometry(lambda frame, _: (frame.rows, frame.width - 1 - frame.columns, []))


def solarize(image, target, threshold):
    """`color.solarize` of the pixels covered."""
    return jnp.where(target.covered[..., None], color.solarize(image, threshold), image)


def equalize(image, target, _):
    """`color.equalize` of every rectangle covered by itself."""

    def hard(image, number):
        return color.equalize_parts(image, number, target.count)

    equalized = with_tangent_of(lambda image, number: image, hard)(image, target.number)
    return jnp.where(target.covered[..., None], equalized, image)


def _soft_cutout(image, target, half_sides):
    share = target.covered
    for offset, half in zip(_offsets(image, target), half_sides):
        near, far = jax.nn.sigmoid(2.0 * (offset + 0.5 + half)), jax.nn.sigmoid(2.0 * (half - offset - 0.5))
        share = share * near * far
    return image + share[..., None] * (_GREY - image)


def _cutout(image, target, half_sides):
    painted = target.covered
    for offset, half in zip(_offsets(image, target), spatial.round_half_up(half_sides)):
        painted &= (offset >= -half) & (offset < half)
    return jnp.where(painted[..., None], _GREY, image)


def _offsets(image, target):
    """How many rows and columns every pixel lies behind its middle."""
    rows, columns, *_ = spatial.whole(image)
    return rows - target.middle[..., 0], columns - target.middle[..., 1]


# (image, target, half_sides): paints from `middle` - half to before `middle` + half; half sides real, [2].
cutout = with_tangent_of(_soft_cutout, _cutout)


def cutout_one(image, fraction, center, boxes, valid):
    """Paints a fraction of the sides of one box, about a pixel of it; may reach beyond the box."""
    if not len(boxes):
        return image
    noise = _noise(center, len(boxes))
    chosen = jnp.argmax(jnp.where(valid, noise[:, 0], -1.0))
    first, size = (array[chosen] for array in _pixels(image, boxes))
    target = whole(image, first + jnp.floor(noise[chosen, 1:] * size))
    return cutout(image, target._replace(covered=valid[chosen, None, None]), 0.5 * fraction * size)
