"""Bad and odd data: what is taken, and how; what is refused, and how its folder, file or array is named."""

import io
import zipfile

import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageOps

from experiments import train
from experiments.data import datasets
from experiments.runs import run_flags
from tests import dataset_writers


def rgb(image):
    return np.asarray(image.convert("RGB"))


def with_opacity(opacity):
    return Image.fromarray(np.dstack([COLOURS, np.broadcast_to(np.uint8(opacity), SIZE)]))


def orientation(number):
    tags = Image.Exif()
    tags[0x112] = number
    return tags


def encoded(image, name="PNG", **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def write(root, files):
    """Writes files, and links from and to places in the folder, by name."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / name).write_bytes(content)
        else:
            (root / name).symlink_to(root / content)
    return root


SIZE = (32, 32)
COLOURS = dataset_writers.random_images(1, 5)[0]
PICTURE = Image.fromarray(COLOURS)
GREY = np.full_like(COLOURS, 60)
PLAIN, ADDED = (encoded(image) for image in (Image.fromarray(GREY), PICTURE))
RAMP = np.arange(0, 65536, 64, dtype=np.uint16).reshape(SIZE)  # up to 65472
LEVELS = np.repeat((RAMP // 256).astype(np.uint8)[..., None], 3, -1)
PALETTE = PICTURE.quantize(16)
OPACITY = np.arange(1024, dtype=np.uint8).reshape(SIZE)
FRAMES = [Image.new("RGB", SIZE, (80 * number, 9, 0)) for number in (1, 2, 3)]
THREE = {"save_all": True, "append_images": FRAMES[1:], "lossless": True}
FLOATS, INTEGERS = (Image.fromarray(RAMP.astype(kind)) for kind in (np.float32, np.int32))
# Tag 262 of the file, one short number, from 1 to 0.
WHITE_IS_0 = encoded(Image.fromarray(RAMP), "TIFF").replace(b"\6\1\3\0\1\0\0\0\1", b"\6\1\3\0\1\0\0\0\0")
CORRUPT_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01"
SET = {
    f"{part}/{name}/{n}.png": PLAIN for part in ("train", "val") for name in ("cat", "dog") for n in (1, 2)
}
MORE = "train 2 (dog) to 3 (cat) images a class"


# The image that comes first in a set: its name and content, what becomes of it, and what is said.
@pytest.mark.parametrize(
    ("name", "content", "expected", "words"),
    [
        ("0.png", encoded(Image.fromarray(RAMP)), LEVELS, "1 from 16 bits to 8"),
        ("0.tif", encoded(Image.fromarray(RAMP), "TIFF"), LEVELS, "1 from 16 bits to 8"),
        ("0.tiff", encoded(Image.fromarray(RAMP.astype(">u2")), "TIFF"), LEVELS, "1 from 16 bits to 8"),
        ("0.pgm", encoded(Image.fromarray(RAMP), "PPM"), LEVELS, "1 from 16 bits to 8"),
        ("0.jp2", encoded(Image.fromarray(RAMP), "JPEG2000"), LEVELS, "1 from 16 bits to 8"),
        ("0.TIF", encoded(PICTURE, "TIFF"), COLOURS, MORE),
        ("0.ppm", encoded(PICTURE, "PPM"), COLOURS, MORE),
        ("0.webp", encoded(PICTURE, "WEBP", lossless=True), COLOURS, MORE),
        ("0", encoded(PICTURE), COLOURS, MORE),
        ("0.txt", encoded(PICTURE), COLOURS, MORE),
        ("0.jpg", encoded(PICTURE), COLOURS, MORE),
        ("0.png", encoded(PALETTE), rgb(PALETTE), MORE),
        ("0.png", encoded(PICTURE.convert("1")), rgb(PICTURE.convert("1")), MORE),
        ("0.tif", encoded(PICTURE.convert("CMYK"), "TIFF"), rgb(PICTURE.convert("CMYK")), MORE),
        ("0.png", encoded(with_opacity(255)), COLOURS, "val 2 images a class\n"),
        ("0.png", encoded(with_opacity(0)), 0 * COLOURS, "1 transparent, over black"),
        (
            "0.png",
            encoded(with_opacity(OPACITY)),
            np.round(COLOURS * (OPACITY[..., None] / 255)),
            "1 transparent, over black",
        ),
        (
            "0.png",
            encoded(with_opacity(51).convert("LA")),
            np.round(rgb(PICTURE.convert("L")) / 5),
            "1 transparent, over black",
        ),
        (
            "0.png",
            encoded(PALETTE, transparency=2),
            rgb(PALETTE) * (np.asarray(PALETTE) != 2)[..., None],
            "1 transparent, over black",
        ),
        ("0.gif", encoded(FRAMES[0], "GIF", **THREE), rgb(FRAMES[0]), "1 to the first of several frames"),
        ("0.webp", encoded(FRAMES[0], "WEBP", **THREE), rgb(FRAMES[0]), "1 to the first of several frames"),
        ("0.tif", encoded(FRAMES[0], "TIFF", **THREE), rgb(FRAMES[0]), "1 to the first of several frames"),
        ("0.png", encoded(PICTURE, exif=orientation(3)), COLOURS[::-1, ::-1], "1 turned upright"),
        ("0.png", encoded(PICTURE, exif=orientation(1)), COLOURS, "val 2 images a class\n"),
        ("0.png", encoded(PICTURE, exif=CORRUPT_EXIF), COLOURS, MORE),
    ],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_odd_image(tmp_path, capsys, name, content, expected, words):
    dataset = datasets.load(str(write(tmp_path, {**SET, f"train/cat/{name}": content})))
    np.testing.assert_array_equal(dataset.train_images[0], expected)
    assert dataset.train_labels.tolist() == [0, 0, 0, 1, 1]
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and words in line


def test_photos_are_upright_unless_asked_not_to(tmp_path, capsys):
    photos = [encoded(PICTURE, "JPEG", exif=orientation(number)) for number in range(1, 9)]
    write(tmp_path, SET | {f"train/cat/0{number}.jpg": photo for number, photo in enumerate(photos)})
    for upright in (True, False):
        dataset = datasets.load(str(tmp_path), exif_orientation=upright)
        as_shot = (Image.open(io.BytesIO(photo)) for photo in photos)
        expected = [rgb(ImageOps.exif_transpose(photo) if upright else photo) for photo in as_shot]
        np.testing.assert_array_equal(dataset.train_images[:8], expected)
        assert ("7 turned upright" in capsys.readouterr().out) == upright
    settings = train.resolve(["--noexif_orientation"])
    with pytest.raises(ValueError, match="--noexif_orientation for 'embedded': expected only for a folder"):
        run_flags.load_dataset(settings)
    with pytest.raises(ValueError, match="--download for 'embedded': expected only for cifar10, cifar"):
        run_flags.load_dataset(train.resolve(["--download"]))
    assert (run_flags.load_dataset(settings | {"dataset": str(tmp_path)}).train_images[:8] == expected).all()


# What lies beside a plain set, whether its first image is now the one that was added, and what is said.
@pytest.mark.parametrize(
    ("files", "is_first", "words"),
    [
        ({"train/.ipynb_checkpoints/0.png": ADDED}, False, "2 classes; train 2 images a class"),
        ({"train/cat/.ipynb_checkpoints/0.png": ADDED}, False, "left out: 1 hidden\n"),
        ({"train/__MACOSX/cat/0.png": ADDED, "val/dog/._1.png": b"junk"}, False, "left out: 2 hidden\n"),
        ({"train/cat/Thumbs.db": b"junk", "train/cat/desktop.ini": b""}, False, "left out: 2 hidden\n"),
        (
            {"train/cat/0.txt": b"a cat", "train/cat/0": b""},
            False,
            "1 not known to Pillow (.txt), 1 not known to Pillow (no ending)\n",
        ),
        ({"train/cat/0.eps": encoded(PICTURE, "EPS")}, False, "1 not known to Pillow (.eps)\n"),
        ({"train/0.png": ADDED}, False, "left out: 1 in no class folder\n"),
        ({"unlabelled/0.png": ADDED, "README": b"cats"}, False, "left out: 2 beside train/\n"),
        ({"train/cat/0/1/2.png": ADDED}, True, MORE),
        ({"more/0.png": ADDED, "train/cat/0": "more"}, True, MORE),
        ({"more/0.png": ADDED, "train/cat/0": "more", "train/cat/3": "more"}, True, "1 linked again\n"),
        ({"train/cat/0": "train"}, False, "left out: 1 linked again\n"),
        ({"train/cat/0.png": "train/dog/1.png"}, False, MORE),
    ],
)
def test_odd_folder(tmp_path, capsys, files, is_first, words):
    dataset = datasets.load(str(write(tmp_path, SET | files)))
    assert dataset.class_names == ("cat", "dog") and dataset.test_labels.tolist() == [0, 0, 1, 1]
    np.testing.assert_array_equal(dataset.train_images[0], COLOURS if is_first else GREY)
    line = capsys.readouterr().out
    assert line.count("\n") == 1 and words in line


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (SET | {"train/cat/0.tif": encoded(FLOATS, "TIFF")}, "train/cat/0.tif: .* mode F, expected 8 bits"),
        (SET | {"train/cat/0.tif": encoded(INTEGERS, "TIFF")}, "train/cat/0.tif: .* mode I, expected 8 bits"),
        (SET | {"train/cat/0.tif": WHITE_IS_0}, "train/cat/0.tif: .* mode I;16, expected 8 bits"),
        (SET | {"train/cat/0.jpg": encoded(PICTURE, "JPEG")[:900]}, "train/cat/0.jpg: cannot be decoded"),
        (SET | {"train/cat/0": encoded(PICTURE)[:900]}, "train/cat/0: cannot be decoded"),
        (SET | {"train/cat/0.PNG": b""}, "train/cat/0.PNG: cannot be decoded"),
        (SET | {"val/dog/0.webp": b"<html>not found</html>"}, "val/dog/0.webp: cannot be decoded"),
        (SET | {"train/cat/0.png": "nowhere"}, "train/cat/0.png: a link to nothing"),
        (SET | {"train/fox": "nowhere"}, "train/fox: a link to nothing"),
        (SET | {"train/cat/3.png": encoded(PICTURE.resize((9, 7)))}, "3.png is 9 x 7 and .*1.png is 32 x 32"),
        (SET | {"train/fox/.png": b""}, "train/fox: no image in this class folder"),
        (SET | {"train/fox/0.txt": b"a fox"}, "train/fox: no image in this class folder"),
        (
            SET | {"val/wolf/0.png": PLAIN},
            "val: got class wolf, expected only the 2 of the training images, cat to dog",
        ),
        (
            SET | {"valid/wolf/0.png": PLAIN},
            "valid: got class wolf, expected only the 2 of the training images, cat to dog",
        ),
        (SET | {"valid/0.png": PLAIN}, "valid: no class folder in it"),
        (SET | {"test/cat/0.png": PLAIN}, "got val/ and test/, expected one"),
        ({"cat/0.png": PLAIN, "dog/0.png": PLAIN}, "expected folders train/<class>/ and val/<class>/"),
        ({"train/0.png": PLAIN, "val/cat/0.png": PLAIN}, "train: no class folder in it"),
        ({"train/cat/0.png": PLAIN, "val/cat/0.png": PLAIN}, "got one class, expected two or more"),
    ],
)
def test_bad_folder(tmp_path, files, words):
    with pytest.raises((ValueError, FileNotFoundError), match=f"^{tmp_path}.*{words}.*$"):
        datasets.load(str(write(tmp_path, files)))


def test_a_class_of_one_image_cannot_be_divided(tmp_path, capsys):
    fox = "fox\udcff"  # as a file system gives a name that is no text
    dataset = datasets.load(str(write(tmp_path, SET | {f"train/{fox}/0.png": PLAIN})))
    line = capsys.readouterr().out
    assert r"train 1 (fox\udcff) to 2 (cat) images a class; val 0 (fox\udcff) to 2 (cat)" in line
    with pytest.raises(ValueError, match=f"^{tmp_path}: class {fox} has one training image, expected two"):
        datasets.search_parts(dataset)
    own = dataset._replace(valid_images=dataset.test_images, valid_labels=dataset.test_labels)
    assert len(datasets.search_parts(own)[0].labels) == 5


IMAGES, LABELS = dataset_writers.random_images(20, 0, (8, 8, 3)), np.arange(20) % 2
SMALL = {"images": IMAGES, "labels": LABELS}
PARTS = {f"{part}_{kind}": array for part in ("train", "test") for kind, array in SMALL.items()}
VALID = {f"valid_{kind}": array for kind, array in SMALL.items()}


@pytest.mark.parametrize(
    "content",
    [
        *(PARTS | {"train_labels": LABELS.reshape(shape)} for shape in ((20, 1), (1, 20), (1, 20, 1))),
        *(PARTS | {"train_labels": LABELS.astype(kind)} for kind in ("u1", "i1", ">i8", "u8")),
        PARTS | VALID | {"valid_labels": LABELS[:, None]},
        PARTS | {"train_index": LABELS[:3]},
    ],
)
def test_odd_npz(tmp_path, content):
    np.savez(tmp_path / "odd.npz", **content)
    dataset = datasets.load(str(tmp_path / "odd.npz"))
    np.testing.assert_array_equal(dataset.train_images, IMAGES)
    for labels in (dataset.train_labels, dataset.valid_labels if "valid_labels" in content else LABELS):
        np.testing.assert_array_equal(labels, LABELS)
    assert dataset.train_labels.dtype == np.int32 and dataset.class_names == ("0", "1")


# Every change is made to the arrays of the training, test and validation images in turn.
@pytest.mark.parametrize("part", ["train", "test", "valid"])
@pytest.mark.parametrize(
    ("kind", "array", "words"),
    [
        ("images", IMAGES / 255, "float64 .*, expected uint8"),
        ("images", IMAGES.astype(np.int64), "int64 .*, expected uint8"),
        ("images", IMAGES.astype(np.uint16), "uint16 .*, expected uint8"),
        ("images", IMAGES.transpose(0, 3, 1, 2), r"\[20, 3, 8, 8\], expected uint8 \[N, H, W, 3\]"),
        ("images", IMAGES[..., :2], r"\[20, 8, 8, 2\], expected uint8"),
        ("images", IMAGES.repeat(2, -1)[..., :4], r"\[20, 8, 8, 4\], expected uint8"),
        ("images", IMAGES[:0], "expected uint8 .*, and some images"),
        ("images", IMAGES[:, :0], "expected uint8 .*, and some images"),
        ("images", np.uint8(7), "expected uint8"),
        ("labels", LABELS[:19], r"\[19\], expected integers \[20\]"),
        ("labels", np.eye(20, 2, dtype=int), r"\[20, 2\], expected integers \[20\]"),
        ("labels", LABELS.reshape(4, 5), r"\[4, 5\], expected integers \[20\]"),
        ("labels", LABELS.astype(float), "float64 .*, expected integers"),
        ("labels", np.where(LABELS, np.nan, 0), "float64 .*, expected integers"),
        ("labels", LABELS.astype(str), "<U21 .*, expected integers"),
        ("labels", LABELS.astype(bool), "bool .*, expected integers"),
        ("labels", LABELS.astype(object), "cannot be read: Object arrays cannot be loaded"),
        ("labels", LABELS - 1, "from -1 to 0, expected 0"),
        ("labels", LABELS * 2, "0 to 2, expected 0 to 1"),
        ("labels", LABELS.astype(np.uint64) * 2**63, "to 9223372036854775808, expected 0 to 1"),
    ],
)
def test_bad_array(tmp_path, part, kind, array, words):
    good, bad = (str(tmp_path / name) for name in ("good.npz", "bad.npz"))
    np.savez(good, **PARTS)
    np.savez(bad, **PARTS | VALID | {f"{part}_{kind}": array})
    for given in [{"name": bad}, *([{"name": good, "valid_dataset": bad}] if part == "valid" else [])]:
        with pytest.raises(ValueError, match=f"^{bad}: {part}_{kind} .*{words}.*$"):
            datasets.load(**given)


def archive(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, content in members.items():
            zipped.writestr(f"{name}.npy", content)
    return file.getvalue()


def saved(save, *arrays, **named):
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def changed(content, place, mask):
    """With some bits of one byte, after the start of what is found last, turned over."""
    content = bytearray(content)
    content[content.rindex(place[0]) + place[1]] ^= mask
    return bytes(content)


NPZ = saved(np.savez, **SMALL)
HEADER = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,), }"
HUGE = b"\x93NUMPY\1\0" + len(HEADER).to_bytes(2, "little") + HEADER


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(np.savez, **PARTS | {"val_labels": LABELS}), "'val_labels'.*, expected .*valid_labels"),
        (
            saved(np.savez, **VALID | {"train_images": IMAGES, "train_label": LABELS}),
            "'train_label'.*, expected",
        ),
        (
            saved(np.savez, **SMALL | {"test_images": IMAGES, "test_labels": LABELS}),
            "'test_images'.*, expected",
        ),
        (saved(np.savez, **SMALL | PARTS), "'images', 'labels', 'test_images'.*, expected"),
        (saved(np.savez, **SMALL | {"valid_images": IMAGES}), "expected valid_images and valid_labels"),
        (saved(np.savez, **VALID), "expected .*train_images, train_labels"),
        (saved(np.savez, IMAGES, LABELS), r"\['arr_0', 'arr_1'\], expected"),
        (saved(np.savez), r"holds \[\], expected"),
        (saved(np.savez, images=IMAGES, labels=0 * LABELS), "got one class, expected two or more"),
        (saved(np.savez, images=IMAGES, labels=np.append(LABELS[:19], 2)), r"no fifth .*\(one of class 2\)"),
        (saved(np.save, IMAGES), r"truncated, or not an \.npz"),
        (NPZ[:-30], r"truncated, or not an \.npz"),
        (b"", r"truncated, or not an \.npz"),
        (changed(NPZ, (IMAGES[9].tobytes(), 0), 1), "images cannot be read: Bad CRC"),
        (changed(NPZ, (b"PK\1\2", 8), 1), "labels cannot be read: .*encrypted"),
        (changed(NPZ, (b"PK\1\2", 10), 9), "labels cannot be read: .*compression"),
        (archive(images=b"red", labels=saved(np.save, LABELS)), r"images is \|S3 \[\], expected uint8"),
        (archive(images=HUGE, labels=saved(np.save, LABELS)), "images cannot be read"),
        (archive(images=b"\x80\4]q.", labels=saved(np.save, LABELS)), r"images is \|S5 \[\], expected uint8"),
    ],
)
def test_bad_npz_file(tmp_path, content, words):
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/bad\.npz: .*{words}.*$"):
        datasets.load(str(tmp_path / "bad.npz"))


def test_what_is_no_file_of_arrays(tmp_path):
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "images.npy").write_bytes(saved(np.save, IMAGES))
    np.savez(tmp_path / "good.npz", **PARTS)
    for name, words in (
        ("folder.npz", "expected folders train/<class>/"),
        ("images.npy", "expected one of embedded"),
        ("none.npz", "no such file"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{tmp_path}/{name}.*{words}"):
            datasets.load(str(tmp_path / name))
    for name, words in (
        ("folder.npz", "no class folder in it"),
        ("images.npy", "expected an .npz file or an existing folder"),
        ("none", "expected an .npz file or an existing folder"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=f"{tmp_path}/{name}.*{words}"):
            datasets.load(str(tmp_path / "good.npz"), valid_dataset=str(tmp_path / name))


def digits(count=4):
    return {"X": np.zeros((32, 32, 3, count), np.uint8), "y": np.arange(1, count + 1, dtype=np.uint8)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (saved(scipy.io.savemat, {**digits(), "y": np.arange(4)}), "y is not made of integers from 1 to 10"),
        (saved(scipy.io.savemat, {**digits(), "y": np.arange(4) + 1.0}), "y is not made of integers from 1"),
        (saved(scipy.io.savemat, {**digits(), "y": [1, 2, 3]}), r"expected uint8 \[32, 32, 3, 3\]"),
        (saved(scipy.io.savemat, {**digits(), "X": digits()["X"] / 255}), "X is float64 .*, expected uint8"),
        (saved(scipy.io.savemat, {**digits(), "X": digits()["X"].T}), r"\[4, 3, 32, 32\] .*, expected uint8"),
        (saved(scipy.io.savemat, {"X": digits()["X"]}), "not a readable MATLAB file with variables X and y"),
        (saved(scipy.io.savemat, {**digits(), "X": {"a": 1}}), r"X is \[\('a', 'O'\)\] .*, expected uint8"),
        (saved(scipy.io.savemat, digits(0)), "X is uint8 .* for 0 labels"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(400), "not a readable MATLAB file"),
    ],
)
def test_bad_svhn(tmp_path, content, words):
    (tmp_path / "test_32x32.mat").write_bytes(saved(scipy.io.savemat, digits()))
    (tmp_path / "train_32x32.mat").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{tmp_path}/train_32x32\.mat: .*{words}.*$"):
        datasets.load("svhn", tmp_path)


def test_bad_folder_of_official_files(tmp_path):
    cifar10, text = tmp_path / "cifar10", tmp_path / "text"
    dataset_writers.write_cifar(cifar10, "cifar10", "binary", dataset_writers.cifar_parts("cifar10"))
    text.write_bytes(b"not a folder")
    for data_dir in (tmp_path / "nowhere", text, cifar10):
        for name in ("cifar100", "svhn", "reduced_svhn"):
            with pytest.raises(FileNotFoundError, match=f"{data_dir}.*--download fetches the official files"):
                datasets.load(name, data_dir)
    file = cifar10 / "cifar-10-batches-bin" / "data_batch_2.bin"
    file.unlink()
    file.mkdir()
    with pytest.raises(FileNotFoundError, match=r"without data_batch_2\.bin"):
        datasets.load("cifar10", cifar10)
    (cifar10 / "cifar-10-binary.tar.gz").write_bytes(archive(data_batch_1=b"1"))
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz: truncated, or not a \.tar\.gz archive"):
        datasets.load("cifar10", cifar10)
