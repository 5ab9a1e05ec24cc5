"""Validation images of their own: how they are given and checked, and what each method does with them."""

import jax
import numpy as np
import pytest
import small_runs
from PIL import Image

from experiments import plot, search, train
from experiments.data import datasets
from experiments.figures import finished_search, image_figures, search_figures
from experiments.methods import deepaa_run, search_loop
from experiments.runs import command_line, run_flags, run_folder

SMALL = {"model": "wrn_10_1", "epochs": 1, "batch_size": 16, "crop_padding": 1, "cutout_length": 2}
DEEPAA = {"proxy_images": 16, "num_points": 4, "num_layers": 1, "updates_per_layer": 1}
DARK = np.broadcast_to(np.arange(7, dtype=np.uint8)[:, None, None, None], (7, 8, 8, 3)) + np.uint8(3)
LABELS = np.array([3, 3, 3, 0, 0, 0, 0])  # classes 1 and 2 are missing


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("valid")
    small_runs.write_data_set(folder / "tiny.npz", 80, 8)
    np.savez(folder / "dark.npz", valid_images=DARK, valid_labels=LABELS)
    return folder


def load(files, name="tiny.npz", valid="dark.npz", **changes):
    return datasets.load(str(files / name), valid_dataset=valid and str(files / valid), **changes)


def write_images(folder, names, size=(8, 8), mode="RGB"):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, 60).save(folder / name)


def test_an_npz_beside_the_data_set_or_keys_in_it(files):
    beside = load(files)
    np.savez(files / "both.npz", **np.load(files / "tiny.npz"), **np.load(files / "dark.npz"))
    within = load(files, "both.npz", valid=None)
    for dataset in (beside, within):
        np.testing.assert_array_equal(dataset.valid_images, DARK)
        np.testing.assert_array_equal(dataset.valid_labels, LABELS)
        assert dataset.valid_labels.dtype == np.int32 and len(dataset.train_labels) == 80
    assert load(files, valid=None).valid_images is None
    np.savez(files / "other.npz", valid_images=255 - DARK[..., 0], valid_labels=LABELS)  # grey
    np.testing.assert_array_equal(load(files, "both.npz", "other.npz").valid_images, 255 - DARK)
    alone = {"images": np.zeros((10, 8, 8), np.uint8), "labels": np.arange(10) % 2}
    np.savez(files / "alone.npz", **alone, valid_images=DARK, valid_labels=LABELS // 3)
    dataset = load(files, "alone.npz", None)  # gives up a fifth for testing
    assert len(dataset.train_labels) == 8 and len(dataset.valid_labels) == 7


def test_folders_of_images(files, tmp_path):
    for part in ("train", "val", "valid"):
        write_images(tmp_path / "set" / part, ("cat/0.png", "dog/0.png", "dog/1.png"))
    own = datasets.load(str(tmp_path / "set"))
    assert own.valid_labels.tolist() == [0, 1, 1] and own.valid_images.shape == (3, 8, 8, 3)
    write_images(tmp_path / "grey", ("dog/a.png", "dog/b.png"), (12, 9), "L")
    with pytest.raises(ValueError, match=r"dog/a.png is 12 x 9 and a training image is 8 x 8: give --image"):
        load(tmp_path, "set", "grey")
    dataset = load(tmp_path, "set", "grey", image_size=8)
    assert dataset.valid_labels.tolist() == [1, 1] and (dataset.valid_images == 60).all()
    write_images(tmp_path / "other", ("dog/a.png", "wolf/a.png", "fox/a.png"))
    with pytest.raises(ValueError, match=r"other: got class fox, wolf, expected only the 2 .* cat to dog"):
        load(tmp_path, "set", "other")
    # The classes of a set that is no folder are its labels.
    write_images(tmp_path / "numbered", ("3/a.png", "1/a.png"), (12, 9))
    numbered = load(files, valid=tmp_path / "numbered", image_size=8)
    assert numbered.valid_labels.tolist() == [1, 3] and numbered.num_classes == 4
    with pytest.raises(ValueError, match="got class dog, expected only the 4 of the training images, 0 to 3"):
        load(files, valid=tmp_path / "grey")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"valid_images": DARK}, r"holds \['valid_images'\], expected valid_images and valid_labels"),
        ({"valid_images": DARK, "valid_labels": LABELS + 1}, "valid_labels are from 1 to 4, expected 0 to 3"),
        ({"valid_images": DARK, "valid_labels": LABELS[:3]}, r"expected integers \[7\]"),
        ({"valid_images": DARK[:, :4], "valid_labels": LABELS}, r"valid_images are \[4, 8, 3\]"),
        ({"valid_images": DARK[..., :2], "valid_labels": LABELS}, r"uint8 \[7, 8, 8, 2\]"),
        ({"valid_images": DARK / 255, "valid_labels": LABELS}, "float64"),
        ({"valid_images": DARK[:0], "valid_labels": LABELS[:0]}, r"valid_images is uint8 \[0, 8, 8, 3\]"),
        (b"text", "truncated"),
    ],
)
def test_bad_validation_images(files, tmp_path, content, message):
    if isinstance(content, bytes):
        (tmp_path / "bad.npz").write_bytes(content)
    else:
        np.savez(tmp_path / "bad.npz", **content)
    with pytest.raises(ValueError, match=r"bad\.npz.*" + message):
        load(files, valid=tmp_path / "bad.npz")


def test_bad_validation_images_within_a_data_set(files):
    np.savez(files / "broken.npz", **np.load(files / "tiny.npz"), valid_images=DARK)
    with pytest.raises(ValueError, match=r"broken\.npz: it holds .*, expected valid_images and valid_labels"):
        load(files, "broken.npz", None)
    for valid in ("tiny", "tiny.png"):
        with pytest.raises(ValueError, match=rf"--valid_dataset=.*{valid}: expected an \.npz file or"):
            load(files, valid=valid)
    with pytest.raises(FileNotFoundError, match=r"none\.npz"):
        load(files, valid="none.npz")


def task(dataset, **changes):
    """The task of a search, and its parts as arrays on the host."""
    found, _ = small_runs.task(search, {**SMALL, "dataset": dataset.name}, dataset, **changes)
    return found, jax.tree.map(np.asarray, found.data)


@pytest.mark.parametrize("method", ["dada", "ddas"])
@pytest.mark.parametrize("preset", ["corrected", "official"])
def test_all_training_images_are_searched_on(files, method, preset):
    dataset = load(files)
    found, data = task(dataset, method=method, preset=preset, valid_batch_size=5)
    np.testing.assert_array_equal(data.train.images, dataset.train_images)
    assert found.config.steps_per_epoch == 5
    # The validation images, in another order: the official batches are taken from the start.
    level = data.valid.images[:, 0, 0, 0]
    assert sorted(level.tolist()) == sorted(DARK[:, 0, 0, 0].tolist())
    assert set(data.valid.labels[:3].tolist()) == {0, 3}
    for one, label in zip(data.valid.images, data.valid.labels):
        assert label == LABELS[np.flatnonzero((one == DARK).all((1, 2, 3)))[0]]
    batch = search_loop.batches(found.method, found.config, jax.random.key(0), data, 0, found.sizes)
    assert batch.valid.images.shape == (5, 8, 8, 3) and batch.valid.images.max() <= DARK.max()
    _, planted = task(dataset, method=method, preset=preset, valid_batch_size=5, planted_op="Invert")
    np.testing.assert_array_equal(planted.valid.images, 255 - data.valid.images)
    with pytest.raises(ValueError, match="--valid_batch_size=8: the search has only 7 such images"):
        task(dataset, method=method, preset=preset, valid_batch_size=8)


@pytest.mark.parametrize("valid", [None, "dark.npz"])
def test_some_of_the_images(files, valid):
    dataset = load(files, valid=valid)
    (_, whole), (_, some), (_, fewer) = (
        task(dataset, valid_batch_size=2, num_valid=count) for count in (None, 6, 3)
    )
    jax.tree.map(np.testing.assert_array_equal, whole.train, fewer.train)
    _, trained = task(dataset, valid_batch_size=2, batch_size=4, num_draws=2, num_train=8)
    jax.tree.map(np.testing.assert_array_equal, whole.valid, trained.valid)
    assert np.bincount(trained.train.labels).tolist() == [2, 2, 2, 2]
    pixels = [part.valid.images.reshape(len(part.valid.labels), -1).tolist() for part in (whole, some, fewer)]
    places = [[pixels[0].index(image) for image in part] for part in pixels]
    assert list(map(len, places[1:])) == [6, 3] and places[1] == sorted(places[1])
    assert set(places[2]) < set(places[1]) < set(places[0])
    counts = [np.bincount(part.valid.labels, minlength=4) for part in (whole, some, fewer)]
    for part, size in zip(counts[1:], (6, 3)):
        assert np.all(np.abs(part - counts[0] * size / counts[0].sum()) < 1)


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        (
            {"num_valid": 30},
            24,
            "24 in place of 64: the search has only 30 such images, and 8 devices share them",
        ),
        ({"num_valid": 30, "num_devices": 1}, 30, "30 in place of 64: the search has only 30 such images\n"),
        ({"num_valid": 30, "method": "ddas", "batch_size": 16}, 24, "24 in place of 256"),
        (
            {"method": "deepaa", **DEEPAA, "num_points": 8, "batch_size": 16},
            3,
            "3 in place of 64: class 2 has 3 images to be clean\n",
        ),
    ],
)
def test_a_size_that_was_not_given_fits_the_images_and_the_devices(files, capsys, changes, size, said):
    given = {**SMALL, "dataset": files / "tiny.npz", "batch_size": 64, "num_devices": 8, **changes}
    resolved = search.resolve(small_runs.command(given))
    found = search.task_of(resolved, load(files, valid=None), fits_valid_batch=True)
    assert found.sizes[1] == size and f"--valid_batch_size={said}" in capsys.readouterr().out


def test_an_empty_name_is_none(files):
    resolved = search.resolve(
        small_runs.command({**SMALL, "dataset": files / "tiny.npz", "valid_dataset": ""})
    )
    assert run_flags.load_dataset(resolved).valid_images is None


@pytest.mark.parametrize("preset", ["corrected", "official"])
def test_deepaa_has_clean_images_of_the_classes_that_there_are(files, preset):
    dataset = load(files)
    given = {"method": "deepaa", "preset": preset, **DEEPAA, "valid_batch_size": 3, "planted_op": "Invert"}
    found, data = task(dataset, **given)
    proxy = found.plan.proxy.images
    assert len(proxy.labels) == 16 and len(data.train.labels) == 64  # all of the 80
    np.testing.assert_array_equal(data.valid.images, 255 - DARK)
    points = deepaa_run.Steps(found, False)._batches
    for step in range(4):
        shown, clean = points(jax.random.key(0), data, step=step)
        assert set(shown.labels.tolist()) <= {0, 3}
        assert (clean.labels == shown.labels[:, None]).all() and clean.images.shape[:2] == (4, 3)
        assert all(len(np.unique(of_point, axis=0)) == 3 for of_point in clean.images)
    with pytest.raises(ValueError, match="size=4: class 3 has 3 images to be clean, expected 4"):
        task(dataset, **given | {"valid_batch_size": 4})
    of_one_class = dataset._replace(train_labels=0 * dataset.train_labels)
    with pytest.raises(ValueError, match="class 3 has no image to be augmented"):
        task(of_one_class, **given)


def test_a_run_takes_what_there_is_and_shows_it(files, monkeypatch, capsys):
    settings = {**SMALL, "dataset": files / "tiny.npz", "valid_dataset": files / "dark.npz", "max_steps": 1}
    path = small_runs.run_here(search, settings, files / "run")
    flags = run_folder.read_flags(path)
    assert flags["valid_batch_size"] == "7" and flags["valid_dataset"] == str(files / "dark.npz")
    before = (path / "figures" / "sample_images.png").read_bytes()
    plot.main(*command_line.parse(plot.define, [str(path)]))
    assert (path / "figures" / "sample_images.png").read_bytes() == before
    grids = []
    monkeypatch.setattr(image_figures, "image_grid", lambda _, blocks: grids.append(blocks))
    search_figures._sample_images(load(files), [], None)
    planted = [finished_search.Planted("Invert", "Invert", 0.0, "Invert")]
    search_figures._sample_images(load(files), planted, None)
    own, (before, after) = (blocks[1].images for blocks in grids)
    assert [len(row) for row in own] == [4] * 4
    shown = [image for row in own for image in row if image is not None]
    assert sorted(one[0, 0, 0] for one in shown) == sorted(DARK[:, 0, 0, 0])
    assert before[1] is before[2] is after[1] is None
    np.testing.assert_array_equal(after[3], 255 - before[3])
    monkeypatch.setattr(search.finished_run, "draw", lambda *_: [])
    small_runs.run_here(search, settings, path, resume=True)
    with pytest.raises(ValueError, match="--valid_batch_size=8: the search has only 7"):
        small_runs.run_here(search, settings, files / "refused", valid_batch_size=8)
    assert not (files / "refused").exists()


def test_a_training_takes_no_notice(files):
    np.savez(files / "with.npz", **np.load(files / "tiny.npz"), **np.load(files / "dark.npz"))
    tasks = [
        small_runs.task(train, {**SMALL, "dataset": name}, load(files, name, None))[0]
        for name in ("tiny.npz", "with.npz")
    ]
    jax.tree.map(np.testing.assert_array_equal, *(task.data for task in tasks))
    assert tasks[0].config.steps_per_epoch == tasks[1].config.steps_per_epoch == 5
    with pytest.raises(ValueError, match="unknown flag --valid_dataset"):
        train.resolve(["--valid_dataset=dark.npz"])
