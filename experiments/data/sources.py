"""Where the images of a set that is not held in memory come from: class folders, and shards packed from them.

Contract: a source gives the bytes of each image file, from any thread. What is an image, and in what order,
is as in `image_folder`. That every file is whole is checked once: of a folder when it is listed, by the first
and last bytes of a file; of shards when they are packed, by decoding all. The list of a large folder is kept
in the user's cache, and holds as long as no file comes to its folders or goes. A file that is damaged later
ends a run with its name when it is read.

    DEST/train-00000.bin, ...   files back to back
    DEST/train.npz              names, labels, classes; shard, offset and size of each file
"""

import collections
import contextlib
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from experiments.data import image_folder

_SHARD_BYTES = 2**32
_LARGE = 10_000  # files of a list that is kept


class Source(Protocol):
    """Image files and their labels; a set of one's own subclasses it and has the first four."""

    labels: np.ndarray  # int32 [N]
    classes: Sequence[str]  # by label

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """An image file, in any format that Pillow decodes; called by several threads."""

    def name(self, index: int) -> str:
        """What an error calls it."""
        return f"image {index} of {type(self).__name__}"

    @property
    def digest(self) -> str:
        """Tells this source from others, here by its labels alone."""
        return _digest(self.labels)


class Index(NamedTuple):
    """What a folder and the shards packed from it have in common."""

    names: list[str]  # of files, in the folder of their part
    sizes: np.ndarray  # int64 [N], bytes
    labels: np.ndarray  # int32 [N]
    classes: list[str]

    def digest(self) -> str:
        """Of names, sizes and labels; it tells accidents apart, not forgeries."""
        return _digest(*self.arrays().values())

    def arrays(self) -> dict[str, np.ndarray]:
        """As arrays, for a file without pickles; names need not be valid text."""
        texts = {name: "\0".join(getattr(self, name)) for name in ("names", "classes")}
        texts = {name: np.frombuffer(os.fsencode(text), np.uint8) for name, text in texts.items()}
        return {**texts, "sizes": self.sizes, "labels": self.labels}

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Index":
        """The index that `arrays` gave."""
        names, classes = (os.fsdecode(arrays[name].tobytes()).split("\0") for name in ("names", "classes"))
        return cls(names, arrays["sizes"], arrays["labels"], classes)


def _digest(*arrays):
    parts = (np.ascontiguousarray(array).tobytes() for array in arrays)
    return hashlib.sha256(b"\0\0".join(parts)).hexdigest()[:16]


class FolderSource:
    """Files of class folders, from `open_folder`."""

    def __init__(self, folder: pathlib.Path, index: Index):
        self._folder, self.index = folder, index
        self.labels, self.classes, self.digest = index.labels, index.classes, index.digest()

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        return pathlib.Path(self.name(index)).read_bytes()

    def name(self, index: int) -> str:
        return os.path.join(self._folder, self.index.names[index])


class PackedSource:
    """Files of shards, which `pack` wrote.

    Raises:
      FileNotFoundError: a shard is missing. ValueError: a file is damaged.
    """

    def __init__(self, folder: pathlib.Path, part: str):
        self._path = folder / f"{part}.npz"
        try:
            with np.load(self._path, allow_pickle=False) as arrays:
                self.index = Index.of(arrays)
                self._shards, self._offsets = arrays["shards"], arrays["offsets"]
        except Exception as error:  # a damaged archive makes its reader fail in many ways
            raise ValueError(f"{self._path}: no index of packed images: {error}") from error
        self.labels, self.classes, self.digest = self.index.labels, self.index.classes, self.index.digest()
        self._files = []  # open to the end of the process
        ends = self._offsets + self.index.sizes
        for shard in range(self._shards[-1] + 1):
            path = _shard(folder, part, shard)
            expected, got = ends[self._shards == shard].max(), path.stat().st_size
            if got != expected:
                raise ValueError(f"{path}: got {got} bytes, expected {expected}")
            self._files.append(os.open(path, os.O_RDONLY))

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, index: int) -> bytes:
        file, size = self._files[self._shards[index]], int(self.index.sizes[index])
        return os.pread(file, size, int(self._offsets[index]))

    def name(self, index: int) -> str:
        return f"{self._path}: {self.index.names[index]}"


def open_parts(root: pathlib.Path) -> dict[str, FolderSource] | dict[str, PackedSource]:
    """The parts of a data set by name, "train" the first: of a folder as of `image_folder.read`, or packed.

    Raises:
      FileNotFoundError: as `image_folder.read`; a shard is missing.
      ValueError: the same; a file is damaged.
    """
    notes = collections.Counter()
    if is_packed(root):
        names = [name for name in ("train", "val", "test", "valid") if (root / f"{name}.npz").is_file()]
        parts = {name: PackedSource(root, name) for name in names}
        classes = parts["train"].classes
    else:
        names, classes = image_folder.find_parts(root, notes)
        parts = {name: open_folder(root / name, classes, notes) for name in names}
    image_folder.report(root, classes, {name: part.labels for name, part in parts.items()}, notes)
    return parts


def is_packed(root: pathlib.Path) -> bool:
    """Whether a folder holds packed images."""
    return (root / "train.npz").is_file()


def open_folder(folder: pathlib.Path, classes: list[str], notes: collections.Counter) -> FolderSource:
    """Lists the files of class folders and checks that all are whole, or finds the list of an earlier time.

    Raises:
      FileNotFoundError: no image. ValueError: an image that is damaged.
    """
    folder = folder.absolute()
    kept = user_cache() / "lists" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]}.npz"
    found = _kept_list(kept, classes)
    if found is None:
        own, visited = collections.Counter(), {}
        files = image_folder.list_files(folder, classes, own, visited)
        checked = image_folder.in_threads(image_folder.check, [path for path, _ in files], folder.name)
        names, sizes, labels = [], [], []
        for (size, reasons), (path, label) in zip(checked, files):
            own.update(reasons)
            if size is not None:
                names.append(os.path.relpath(path, folder))
                sizes.append(size)
                labels.append(label)
        image_folder.require_images(folder, classes, (label for _, label in files), labels)
        found = Index(names, np.array(sizes, np.int64), np.array(labels, np.int32), classes), own
        if len(names) >= _LARGE:
            _keep_list(kept, *found, visited)
    index, own = found
    notes.update(own)
    return FolderSource(folder, index)


def user_cache() -> pathlib.Path:
    """Where this user's programs keep what can be made again: $XDG_CACHE_HOME/dada, or ~/.cache/dada."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "dada"


def _kept_list(path, classes):
    """(Index, notes) of a list that still holds; None if there is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            index, rest = Index.of(arrays), json.loads(arrays["rest"].tobytes())
        is_same = all(os.stat(folder).st_mtime_ns == time for folder, time in rest["visited"].items())
    except Exception:  # none, half of one, or a folder that is gone
        return None
    notes = collections.Counter({tuple(key): count for key, count in rest["notes"]})
    return (index, notes) if is_same and index.classes == classes else None


def _keep_list(path, index, notes, visited):
    rest = json.dumps({"visited": visited, "notes": list(notes.items())})
    with contextlib.suppress(OSError):  # a machine without a home that can be written to lists every time
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, {**index.arrays(), "rest": np.frombuffer(rest.encode(), np.uint8)})


def _write(path, arrays):
    """Writes an archive that is whole as soon as it has its name."""
    half_written = path.with_name(f"{path.name}.{os.getpid()}.part")
    with open(half_written, "wb") as file:
        np.savez(file, **arrays)
    os.replace(half_written, path)


def decode(source: Source, index: int, exif_orientation: bool = True) -> Image.Image:
    """An image of a source, in 8 bits of red, green and blue.

    Raises:
      ValueError: it is missing or damaged; with its name.
    """
    try:
        return image_folder.decode(io.BytesIO(source.read(index)), exif_orientation)[0]
    except Exception as error:  # a damaged file makes the decoders fail in many ways
        raise ValueError(f"{source.name(index)}: cannot be decoded as an image: {error}") from error


def pack(source: FolderSource, folder: pathlib.Path, part: str) -> None:
    """Writes a part of a data set as shards, the index last; decodes every image, to see that it is whole.

    Raises:
      ValueError: an image that is damaged.
    """

    def read(index):
        decode(source, index)
        return source.read(index)

    places = []  # (shard, offset)
    shard, offset = 0, 0
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(_shard(folder, part, shard), "wb"))
        for data in image_folder.in_threads(read, range(len(source)), part):
            if offset and offset + len(data) > _SHARD_BYTES:
                shard, offset = shard + 1, 0
                file = stack.enter_context(open(_shard(folder, part, shard), "wb"))
            places.append((shard, offset))
            offset += file.write(data)
    shards, offsets = np.array(places, np.int64).T
    _write(folder / f"{part}.npz", {**source.index.arrays(), "shards": shards, "offsets": offsets})


def _shard(folder, part, number):
    return folder / f"{part}-{number:05d}.bin"
