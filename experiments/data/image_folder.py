"""Reads folders of images per class, as ImageNet is laid out, into NumPy arrays.

An image is what Pillow decodes, whatever its name ends in. A file that Pillow does not know is left out; with
the ending of an image it is a damaged one, an error. Links are followed, but no folder is read twice for one
class, so not in circles. What is hidden is no data: names with a dot in front, and what systems leave behind.

Pixels are those of Pillow's `convert("RGB")`, of several frames those of the first, with these exceptions:
  16 bits of grey become their upper 8, as Pillow itself does with 16 bits of colour.
  Float and 32-bit pixels, whose range nobody knows, are refused.
  Transparent pixels are laid over black, with which crops and geometric ops fill, too.
  Photos are turned upright by their EXIF entry, unless asked not to. Pillow itself turns TIFF files, always.

Reading ends with one line that counts what was read, left out and changed.
"""

import collections
import concurrent.futures
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import jax
import numpy as np
import tqdm
from PIL import ExifTags, Image, UnidentifiedImageError

from experiments.data import host_crops
from experiments.data.dataset_files import Arrays

_SYSTEM_NAMES = {"__macosx", "@eadir", "thumbs.db", "desktop.ini"}
# Pillow knows these without a decoder of its own; for EPS it starts a program, Ghostscript, on the file.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# With what files of the common formats start and end: JPEG and PNG.
_WHOLE = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"))
_THREADS = min(8, os.cpu_count() or 1)
_GROUP = 16  # images that a thread decodes at once
# Seconds for an image from which on threads pay; with quicker ones they wait for the interpreter's lock.
_SLOW = 5e-4


def read(
    root: str | os.PathLike,
    image_size: int | None = None,
    exif_orientation: bool = True,
    resize: int | None = None,
) -> tuple[Arrays, list[str]]:
    """Reads a data set.

    Args:
      root: folder with train/<class>/<image> and val/<class>/<image> (or test/), which are for testing; and
        perhaps valid/<class>/<image>, to validate with. Classes are in sorted order, and images may lie in
        folders in their class folder.
      image_size: side in pixels to which every image is brought, see `fit`; None keeps the images, which then
        must all have one size.
      exif_orientation: turn photos upright.
      resize: as of `fit`.

    Returns:
      (Arrays with images uint8 [N, H, W, 3] and labels int32 [N], names of the classes by label).

    Raises:
      FileNotFoundError: a folder is missing or without an image. ValueError: an image that is damaged, has
        pixels of no known range or another size, or a class that training images do not have.
    """
    root, notes = pathlib.Path(root), collections.Counter()
    names, classes = find_parts(root, notes)
    files = {name: list_files(root / name, classes, notes) for name in names}
    decode = functools.partial(
        _decode, image_size=image_size, exif_orientation=exif_orientation, resize=resize
    )
    parts, shape = {}, None
    for name in names:
        parts[name] = _load(root / name, files[name], classes, shape, decode, notes)
        shape = parts[name][0].shape[1:]
    report(root, classes, {name: labels for name, (_, labels) in parts.items()}, notes)
    return Arrays(*(array for part in parts.values() for array in part)), classes


def find_parts(root: pathlib.Path, notes: collections.Counter) -> tuple[list[str], list[str]]:
    """(names of the parts of a data set as of `read`, in their order; names of its classes).

    `notes`, here and below, count what was left out or changed, and why: by ("left out", reason) and so on.
    """
    tests = [name for name in ("val", "test") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise FileNotFoundError(
            f"{root}: expected folders train/<class>/ and val/<class>/ (or test/<class>/) in it"
        )
    if len(tests) > 1:
        raise ValueError(f"{root}: got val/ and test/, expected one, for testing; valid/ is to validate with")
    classes = [entry.name for entry in _visible(root / "train", collections.Counter()) if entry.is_dir()]
    present = {entry.name for entry in _visible(root, notes)}
    names = [name for name in ("train", *tests, "valid") if name in present]
    notes["left out", "beside train/"] += len(present) - len(names)
    return names, classes


def read_valid(
    folder: pathlib.Path,
    classes: Sequence[str],
    shape: tuple[int, int, int],
    image_size: int | None,
    exif_orientation: bool,
    resize: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Reads images to validate with, folder/<class>/<image>; some classes may have no folder.

    `classes` and `shape`, (H, W, 3), are of the training images; all else is as of `read`. Returns (images,
    labels).
    """
    notes = collections.Counter()
    decode = functools.partial(
        _decode, image_size=image_size, exif_orientation=exif_orientation, resize=resize
    )
    part = _load(folder, list_files(folder, classes, notes), classes, shape, decode, notes)
    report(folder, classes, {"valid": part[1]}, notes)
    return part


def list_files(
    folder: pathlib.Path,
    classes: Sequence[str],
    notes: collections.Counter,
    visited: dict[str, int] | None = None,
) -> list[tuple[str, int]]:
    """(path, label) of every file in the class folders of a folder.

    `visited` gets the time of the last change, in ns, of every folder gone through.
    """
    if visited is not None:
        visited[str(folder)] = os.stat(folder).st_mtime_ns
    entries = list(_visible(folder, notes))
    folders = {entry.name: entry.path for entry in entries if entry.is_dir()}
    notes["left out", "in no class folder"] += len(entries) - len(folders)
    if unknown := sorted(set(folders) - set(classes)):
        expected = f"only the {len(classes)} of the training images, {classes[0]} to {classes[-1]}"
        raise ValueError(f"{folder}: got class {', '.join(unknown)}, expected {expected}")
    if not folders:
        raise FileNotFoundError(f"{folder}: no class folder in it")
    files = []
    for label, name in enumerate(classes):
        if name in folders:
            found = [(path, label) for path in _files(folders[name], notes, visited=visited)]
            if not found:
                raise FileNotFoundError(f"{folders[name]}: no image in this class folder")
            files += found
    return files


def _load(folder, files, classes, shape, decode, notes):
    """(images, labels) of listed files; `shape` is None for that of the first image."""
    images, labels, example = None, [], "a training image"
    _formats()  # what it takes is not the time of an image
    decoded = in_threads(decode, [path for path, _ in files], folder.name)
    for (pixels, reasons), (path, label) in zip(decoded, files):
        notes.update(reasons)
        if pixels is None:
            continue
        if shape is None:
            shape, example = pixels.shape, path
        if pixels.shape != shape:
            raise ValueError(
                f"{path} is {pixels.shape[1]} x {pixels.shape[0]} and {example} is {shape[1]} x {shape[0]}: "
                "give --image_size to bring all to one size"
            )
        if images is None:
            images = _empty(folder, (len(files), *shape))
        images[len(labels)] = pixels
        labels.append(label)
    require_images(folder, classes, (label for _, label in files), labels)
    return images[: len(labels)], np.array(labels, np.int32)


def require_images(
    folder: pathlib.Path, classes: Sequence[str], listed: Iterable[int], found: Iterable[int]
) -> None:
    """Raises FileNotFoundError for a class with files, `listed` by label, none of which are images."""
    if without := set(listed).difference(found):
        raise FileNotFoundError(f"{folder / classes[min(without)]}: no image in this class folder")


def _visible(folder: os.PathLike | str, notes: collections.Counter) -> Iterator[os.DirEntry]:
    """What lies in a folder and is not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith(".") or entry.name.lower() in _SYSTEM_NAMES:
            notes["left out", "hidden"] += 1
        elif entry.is_dir() or entry.is_file():
            yield entry
        else:
            raise ValueError(f"{entry.path}: a link to nothing, or neither a file nor a folder")


def _files(folder, notes, seen=None, visited=None):
    """Paths of the files in a folder and in those below it, sorted."""
    real = pathlib.Path(folder).resolve()
    seen = set(real.parents) if seen is None else seen
    if real in seen:
        notes["left out", "linked again"] += 1
        return
    seen.add(real)
    if visited is not None:
        visited[str(folder)] = os.stat(folder).st_mtime_ns
    for entry in _visible(folder, notes):
        if entry.is_dir():
            yield from _files(entry.path, notes, seen, visited)
        else:
            yield entry.path


def _empty(folder, shape):
    try:
        return np.empty(shape, np.uint8)
    except MemoryError as error:
        raise ValueError(f"{folder}: {error}; --image_size brings images to a smaller size") from error


def in_threads(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
    """Results in the order of the items, with a bar; threads are a few groups ahead of the reader."""
    # It waits, so that the bars of small folders do not stand between the lines of a command.
    quiet = jax.process_index() != 0
    return tqdm.tqdm(_in_threads(function, items), label, len(items), unit="image", delay=1.0, disable=quiet)


def _in_threads(function, items):
    """Slow functions run in threads."""

    def of_group(start):
        return [function(item) for item in items[start : start + _GROUP]]

    begin = time.perf_counter()
    first = of_group(0)
    is_slow = time.perf_counter() - begin > _SLOW * len(first)
    yield from first
    if not is_slow:
        yield from map(function, items[_GROUP:])
        return
    ahead = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        for start in range(_GROUP, len(items), _GROUP):
            ahead.append(pool.submit(of_group, start))
            if len(ahead) > 2 * _THREADS:
                yield from ahead.popleft().result()
        for group in ahead:
            yield from group.result()


@functools.cache
def _formats():
    """(formats that Pillow decodes, endings of their files)."""
    format_of = Image.registered_extensions()  # makes Pillow load all that it has
    names = tuple(name for name in Image.ID if name not in _NOT_DECODED)
    return names, {ending for ending, name in format_of.items() if name in names}


def open_image(file: str | os.PathLike | BinaryIO) -> Image.Image:
    """Opens an image of a format that Pillow decodes by itself; raises as Pillow does."""
    return Image.open(file, formats=_formats()[0])


def _decode(path, image_size=None, exif_orientation=False, resize=None):
    """(pixels uint8 [H, W, 3], notes on what was changed); (None, why) for a file that is no image."""
    try:
        image, changes = decode(path, exif_orientation)
    except Exception as error:  # a damaged file makes the decoders fail in many ways
        ending = os.path.splitext(path)[1].lower()
        if isinstance(error, UnidentifiedImageError) and ending not in _formats()[1]:
            return None, [("left out", f"not known to Pillow ({ending or 'no ending'})")]
        raise ValueError(f"{path}: cannot be decoded as an image: {error}") from error
    return np.asarray(image if image_size is None else fit(image, image_size, resize)), changes


def check(path: str) -> tuple[int | None, list[tuple[str, str]]]:
    """(bytes of an image file, none); (None, why) for a file that is no image.

    The first and the last bytes tell of most files that they are whole; the others are decoded.

    Raises:
      ValueError: the image is damaged.
    """
    with open(path, "rb") as file:
        first, size = file.read(8), file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        last = file.read()
    if any(first.startswith(start) and last.endswith(end) for start, end in _WHOLE):
        return size, []
    pixels, reasons = _decode(path)
    return (None, reasons) if pixels is None else (size, [])


def decode(file: str | os.PathLike | BinaryIO, exif_orientation: bool) -> tuple[Image.Image, list]:
    """(the image of a file in RGB, notes on what was changed); raises as Pillow does, and as `to_rgb`."""
    with open_image(file) as opened:
        image, changes = to_rgb(opened)
        if getattr(opened, "is_animated", False):
            changes.append(("changed", "to the first of several frames"))
        turn = _TURNS.get(opened.getexif().get(ExifTags.Base.Orientation)) if exif_orientation else None
    if turn is not None:
        image = image.transpose(turn)
        changes.append(("changed", "turned upright"))
    return image, changes


def fit(image: Image.Image, size: int, resize: int | None = None) -> Image.Image:
    """The image with its shorter side brought to `size`, bicubic, and its centre cropped to size x size.

    With `resize` the shorter side is brought to that, all as the papers' evaluation on ImageNet does it
    (`host_crops.center_crop`); without, the sides and the place of the crop are rounded in another way.
    """
    if resize is not None:
        return host_crops.center_crop(image, resize, size)
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_rgb(image):
    """(an image of `open_image` in 8 bits of red, green and blue, notes on what was changed).

    Raises:
      ValueError: pixels of no known range; and as Pillow does, for what it cannot decode.
    """
    image.load()
    changes = []
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_upper_bits(image))
        changes.append(("changed", "from 16 bits to 8"))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema()[0] < 255:
            changes.append(("changed", "transparent, over black"))
            black = Image.new("RGB", image.size)
            black.paste(image, mask=alpha)
            return black, changes
    return image if image.mode == "RGB" else image.convert("RGB"), changes


def _upper_bits(image):
    """The upper 8 of 16 bits of grey, uint8 [H, W]; ValueError where the pixels have another range."""
    known = image.mode != "F" and image.format in ("JPEG2000", "PNG", "PPM")
    if image.format == "TIFF":  # in which 12 bits and white as 0 have the mode of 16 bits, too
        bits, white = image.tag_v2.get(258), image.tag_v2.get(262)
        known = image.mode.startswith("I;16") and (bits, white) == ((16,), 1)
    if not known:
        expected = "8 bits, or 16 bits of grey from black to white"
        raise ValueError(f"pixels of mode {image.mode}, expected {expected}")
    return (np.asarray(image) >> 8).astype(np.uint8)


def report(
    path: pathlib.Path, classes: Sequence[str], parts: dict[str, np.ndarray], notes: collections.Counter
) -> None:
    """Prints the line that reading ends with; `parts` are labels by name of the part."""
    if jax.process_index() != 0:
        return
    texts = [f"{len(classes)} classes"]
    for name, labels in parts.items():
        counts = np.bincount(labels, minlength=len(classes))
        ends = [f"{counts[label]} ({classes[label]})" for label in (counts.argmin(), counts.argmax())]
        texts.append(f"{name} {' to '.join(ends) if np.ptp(counts) else counts[0]} images a class")
    for kind in ("left out", "changed"):
        reasons = [f"{notes[key]} {key[1]}" for key in sorted(notes) if key[0] == kind and notes[key]]
        texts += [f"{kind}: {', '.join(reasons)}"] if reasons else []
    line = f"{path}: {'; '.join(texts)}"
    print(line.encode(errors="backslashreplace").decode(), flush=True)  # names need not be valid text
