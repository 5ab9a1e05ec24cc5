"""Class folders and packed shards: the same files in the same order, found whole before a run begins."""

import io
import os
import pathlib

import numpy as np
import pytest
from PIL import Image

from experiments import pack_images
from experiments.data import sources
from experiments.runs import command_line

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8))


def encoded(name, image=PICTURE, **options):
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


JPEG, PNG = encoded("JPEG"), encoded("PNG")
SET = {
    f"{part}/{name}/{n}.JPEG": JPEG for part in ("train", "val") for name in ("cat", "dog") for n in (1, 2)
}


def write(root, files):
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def pack(root, packed):
    pack_images.main(*command_line.parse(pack_images.define, [f"--dataset={root}", f"--packed={packed}"]))
    return packed


@pytest.fixture(autouse=True)
def user_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def test_what_pillow_reads_is_an_image_whatever_its_name(tmp_path, capsys):
    odd = {
        "cmyk.JPEG": encoded("JPEG", PICTURE.convert("CMYK")),
        "grey.JPEG": encoded("JPEG", PICTURE.convert("L")),
        "png.JPEG": PNG,
        "more/bytes after.jpg": JPEG + b"more",
        "tiff": encoded("TIFF"),
        "notes.txt": b"no image",
    }
    write(tmp_path, SET | {f"train/cat/{name}": content for name, content in odd.items()})
    source = sources.open_parts(tmp_path)["train"]
    names = ["1.JPEG", "2.JPEG", *sorted(set(odd) - {"notes.txt"}), "1.JPEG", "2.JPEG"]
    assert [os.path.relpath(source.name(i), tmp_path / "train")[4:] for i in range(len(source))] == names
    assert source.labels.tolist() == [0] * 7 + [1] * 2 and list(source.classes) == ["cat", "dog"]
    assert "left out: 1 not known to Pillow (.txt)" in capsys.readouterr().out
    for index, name in enumerate(names):
        image = sources.decode(source, index)
        expected = Image.open(io.BytesIO(odd.get(name, JPEG))).convert("RGB")
        assert image.mode == "RGB" and image.tobytes() == expected.tobytes()


@pytest.mark.parametrize("content", [JPEG[:-1], JPEG[: len(JPEG) // 2], PNG[:-40], b"", b"text"])
def test_an_image_that_is_not_whole_is_named(tmp_path, content):
    write(tmp_path, SET | {"train/dog/bad.JPEG": content})
    with pytest.raises(ValueError, match=r"train/dog/bad\.JPEG: cannot be decoded as an image"):
        sources.open_parts(tmp_path)
    (tmp_path / "train/dog/bad.JPEG").unlink()
    (tmp_path / "train/dog/bad.JPEG").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"train/dog/bad\.JPEG: a link to nothing"):
        sources.open_parts(tmp_path)


def test_an_image_that_is_lost_later_is_named(tmp_path):
    source = sources.open_parts(write(tmp_path, SET))["train"]
    pathlib.Path(source.name(3)).unlink()
    with pytest.raises(ValueError, match=r"train/dog/2\.JPEG: cannot be decoded .*No such file"):
        sources.decode(source, 3)


def test_a_packed_set_is_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_SHARD_BYTES", len(JPEG) + len(PNG))
    root = write(tmp_path / "a", SET | {"train/cat/0.png": PNG, "train/dog/a.txt": b"", "valid/dog/7": PNG})
    packed = pack(root, tmp_path / "packed")
    assert (packed / "train-00002.bin").is_file() and not list(packed.glob("*.part"))
    folder, shards = sources.open_parts(root), sources.open_parts(packed)
    assert list(folder) == list(shards) == ["train", "val", "valid"]
    for part, source in shards.items():
        assert source.digest == folder[part].digest and source.classes == folder[part].classes
        assert source.labels.tolist() == folder[part].labels.tolist()
        assert [source.read(i) for i in range(len(source))] == list(
            map(folder[part].read, range(len(source)))
        )
    assert shards["train"].name(0).endswith("packed/train.npz: cat/0.png")
    assert "train 2 (dog) to 3 (cat) images a class" in capsys.readouterr().out.splitlines()[-1]
    with open(packed / "train-00001.bin", "r+b") as file:
        file.truncate(9)
    with pytest.raises(ValueError, match=r"train-00001\.bin: got 9 bytes, expected "):
        sources.open_parts(packed)
    (packed / "train-00001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.bin"):
        sources.open_parts(packed)
    (packed / "train.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"train\.npz: no index of packed images"):
        sources.open_parts(packed)


def test_packing_refuses_what_is_wrong(tmp_path):
    root = write(tmp_path / "a", SET)
    with pytest.raises(ValueError, match="--packed: got none"):
        pack_images.main(*command_line.parse(pack_images.define, [f"--dataset={root}"]))
    with pytest.raises(ValueError, match="is not an empty folder"):
        pack(root, root)
    middle = len(JPEG) // 2
    write(root, {"val/cat/3.JPEG": JPEG[:middle] + JPEG[-2:]})  # found only where all is decoded
    with pytest.raises(ValueError, match=r"val/cat/3\.JPEG: cannot be decoded"):
        pack(root, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_list_of_a_large_folder_is_kept_until_files_come_or_go(tmp_path, user_cache, monkeypatch, capsys):
    monkeypatch.setattr(sources, "_LARGE", 4)
    root = write(tmp_path, SET | {"train/dog/more/a.txt": b"no image"})

    checked, check = [], sources.image_folder.check
    monkeypatch.setattr(sources.image_folder, "check", lambda path: checked.append(path) or check(path))

    def names():
        checked.clear()
        source = sources.open_parts(root)["train"]
        return [os.path.relpath(source.name(i), root / "train") for i in range(len(source))], len(checked)

    first, count = names()
    assert first == ["cat/1.JPEG", "cat/2.JPEG", "dog/1.JPEG", "dog/2.JPEG"] and count == 9
    assert len(list((user_cache / "dada" / "lists").iterdir())) == 2
    line = capsys.readouterr().out
    assert names() == (first, 0) and capsys.readouterr().out == line and "1 not known to Pillow" in line
    write(root, {"train/dog/more/3.JPEG": JPEG})
    assert names() == ([*first, "dog/more/3.JPEG"], 6)
    (root / "train/cat/1.JPEG").unlink()
    assert names() == ([*first[1:], "dog/more/3.JPEG"], 5)
    for file in (user_cache / "dada" / "lists").iterdir():
        file.write_bytes(b"half")
    assert names() == ([*first[1:], "dog/more/3.JPEG"], 9)
