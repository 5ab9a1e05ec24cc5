"""The published files of CIFAR-10 and CIFAR-100: binary records, pickles, and their archives.

Contract: archives are read in memory and never unpacked to disk. No file can run code: the unpickler knows
five names, and what stands for them are inert records, so that no function of NumPy is reachable from a file.

Format (www.cs.toronto.edu/~kriz/cifar.html): a binary record is 1 label byte (CIFAR-100: coarse, then fine)
and 3072 bytes of pixels, the red plane first; a pickle is a dictionary with 'data' uint8 [N, 3072] and a list
of labels.
"""

import io
import pathlib
import pickle
import tarfile
import zlib
from typing import NamedTuple

import numpy as np

from experiments.data.dataset_files import Arrays

_PIXELS = 3 * 32 * 32
_LARGEST_MEMBER = 2**28  # bytes; the largest official file inside an archive has 155 MB


class CifarForm(NamedTuple):
    """A form in which a CIFAR set is published: a folder, or the archive that holds it."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]


class Cifar(NamedTuple):
    """What differs between the two sets; of several label bytes the last one is the class."""

    binary: CifarForm
    pickled: CifarForm
    label_bytes: int
    label_key: str
    num_classes: int


def _batches(suffix):
    return tuple(f"data_batch_{number}{suffix}" for number in range(1, 6))


CIFAR = {
    "cifar10": Cifar(
        CifarForm("cifar-10-batches-bin", "cifar-10-binary.tar.gz", _batches(".bin"), ("test_batch.bin",)),
        CifarForm("cifar-10-batches-py", "cifar-10-python.tar.gz", _batches(""), ("test_batch",)),
        *(1, "labels", 10),
    ),
    "cifar100": Cifar(
        CifarForm("cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",)),
        CifarForm("cifar-100-python", "cifar-100-python.tar.gz", ("train",), ("test",)),
        *(2, "fine_labels", 100),
    ),
}


def find_cifar(name, data_dir):
    """Finds the first complete form of a set: binary before pickled, unpacked before archive.

    `data_dir` holds one of the forms, or is itself the unpacked folder of "cifar10" or "cifar100".

    Returns (CifarForm, path of the unpacked folder or of the archive).

    Raises:
      FileNotFoundError: no form is complete; lists what each lacks.
    """
    data_dir = pathlib.Path(data_dir)
    looked_for = []
    for form in (CIFAR[name].binary, CIFAR[name].pickled):
        for folder in (data_dir, data_dir / form.folder):
            missing = [f for f in form.train + form.test if not (folder / f).is_file()]
            if not missing:
                return form, folder
        looked_for.append(f"{folder} (without {', '.join(missing)})")
        if (data_dir / form.archive).is_file():
            return form, data_dir / form.archive
        looked_for.append(str(data_dir / form.archive))
    raise FileNotFoundError(f"{name}: no complete set; looked for {'; '.join(looked_for)}")


def read_cifar(name, data_dir):
    """Reads CIFAR-10 or CIFAR-100 in whichever published form lies in a folder, as `find_cifar`.

    Returns:
      Arrays with images uint8 [N, 32, 32, 3] in the order of the files.

    Raises:
      FileNotFoundError: no form is complete. ValueError: a file is damaged, hostile or another one.
    """
    cifar, (form, path) = CIFAR[name], find_cifar(name, data_dir)
    if path.is_dir():
        contents = {file: (path / file).read_bytes() for file in form.train + form.test}
    else:
        contents = _read_members(path, form)
    parts = []
    for files in (form.train, form.test):
        decoded = []
        for file in files:
            where = f"{path}/{file}"
            if form is cifar.binary:
                images, labels = _decode_binary(contents[file], cifar.label_bytes, where)
            else:
                images, labels = _decode_pickle(contents[file], cifar.label_key, where)
            outside = np.flatnonzero((labels < 0) | (labels >= cifar.num_classes))
            if outside.size:
                got = f"record {outside[0]} has label {labels[outside[0]]}"
                raise ValueError(f"{where}: {got}, expected 0 to {cifar.num_classes - 1}")
            images = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            decoded.append((images, labels.astype(np.int32)))
        parts += [np.concatenate(arrays) for arrays in zip(*decoded)]
    return Arrays(*(np.ascontiguousarray(part) for part in parts))


def _read_members(path, form):
    """The needed files of a .tar.gz as bytes; the archive is never unpacked to disk."""
    wanted = {f"{form.folder}/{file}": file for file in form.train + form.test}
    contents = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                file = wanted.get(member.name.removeprefix("./"))
                if file is None:
                    continue
                if not member.isfile() or member.size > _LARGEST_MEMBER:
                    got = f"type {member.type!r} and {member.size} bytes"
                    expected = f"a plain file of at most {_LARGEST_MEMBER}"
                    raise ValueError(f"{path}: member {member.name} has {got}, expected {expected}")
                contents[file] = archive.extractfile(member).read()
                if len(contents) == len(wanted):
                    break
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: truncated, or not a .tar.gz archive ({error})") from error
    if missing := sorted(name for name, file in wanted.items() if file not in contents):
        raise ValueError(f"{path}: holds no {', '.join(missing)}")
    return contents


def _decode_binary(content, label_bytes, where):
    """Records of label bytes and 3072 bytes of pixels -> pixels [N, 3072], labels [N]."""
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise ValueError(
            f"{where}: has {len(content)} bytes, expected a multiple of {record} "
            f"({label_bytes} of label and {_PIXELS} of pixels); truncated or another file"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


class _Pickled:
    """Stands for numpy.ndarray and numpy.dtype while unpickling: keeps what the file says, calls nothing."""

    state = None

    def __init__(self, *args):
        self.args = args  # of a dtype the first one is its name, such as "u1"

    def __setstate__(self, state):
        self.state = state


def _encode_latin1(text, encoding):
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r}, expected 'latin1'")
    return text.encode("latin1")


# Every name that a pickle of byte arrays needs; NumPy 2 renamed its core module.
_PICKLE_NAMES = {
    ("numpy.core.multiarray", "_reconstruct"): _Pickled,
    ("numpy._core.multiarray", "_reconstruct"): _Pickled,
    ("numpy", "ndarray"): _Pickled,
    ("numpy", "dtype"): _Pickled,
    ("_codecs", "encode"): _encode_latin1,
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _PICKLE_NAMES:
            raise pickle.UnpicklingError(
                f"asks for {module}.{name}, which no pickle of arrays needs; refused"
            )
        return _PICKLE_NAMES[module, name]


def _decode_pickle(content, label_key, where):
    """A pickled dictionary of pixels uint8 [N, 3072] and a list of labels -> the two as arrays."""
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    # A damaged pickle can raise nearly anything: opcodes act on whatever lies on the stack.
    except Exception as error:
        raise ValueError(f"{where}: not a readable pickle of CIFAR images: {error!r}") from error
    if not isinstance(batch, dict) or "data" not in batch or label_key not in batch:
        got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise ValueError(f"{where}: got {got}, expected a dictionary with 'data' and {label_key!r}")
    labels = batch[label_key]
    try:
        _, shape, dtype, fortran_order, pixels = batch["data"].state
        pixels = pixels.encode("latin1") if isinstance(pixels, str) else pixels
        valid = (
            dtype.args[0] in ("u1", "|u1")
            and isinstance(pixels, bytes)
            and not fortran_order
            and tuple(shape) == (len(labels), _PIXELS)
            and len(pixels) == len(labels) * _PIXELS > 0
            and all(type(label) is int for label in labels)
        )
        labels = np.asarray(labels, np.int64)
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError):
        valid = False
    if not valid:
        expected = f"'data' uint8 [N, {_PIXELS}] and {label_key!r}, a list of N integers"
        raise ValueError(f"{where}: expected {expected}")
    return np.frombuffer(pixels, np.uint8).reshape(shape), labels
