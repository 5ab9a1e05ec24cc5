"""Figures of a run: the files from a small folder, what changes them, refused folders; DeepAA policies."""

import json
import os
import pathlib
import shutil

import jax
import matplotlib
import numpy as np
import pytest
import small_runs
from PIL import Image

from dada import ops, policies
from dada.searches.dada import space as policy_space
from dada.searches.deepaa.config import CIFAR_OPS
from experiments import plot
from experiments.data import datasets
from experiments.figures import (
    chart_figures,
    deepaa_figures,
    figure_style,
    finished_run,
    finished_search,
    image_figures,
    search_figures,
)
from experiments.runs import command_line, contents, run_folder

NAMES = ("sample_images", "ops", "curves", "policy", "augmented_images")


def make_run(path, *, kind="pairs", planted="Invert", dataset="embedded", leader="Invert", steps=30):
    """A run folder as a search leaves it, in which the mass of one op has grown."""
    folder = run_folder.create(
        path,
        {
            **{"dataset": dataset, "search_space": "strength", "extra_ops": ["Rotate90"], "seed": 1},
            **{"policy_space": kind, "planted_op": planted and f"{planted}:0.5"},
        },
        contents.of_dataset(datasets.load(dataset)),
    )
    space = ops.search_space("strength", ("Rotate90",))
    names, num_ops = [row.name for row in space.rows], len(space.rows)
    start = policy_space.init(kind, num_ops)
    if kind == "pairs":
        favoured = (policy_space.combinations(num_ops, 2) == names.index(leader)).any(1)
    else:
        favoured = np.arange(num_ops) == names.index(leader)
    learned = start._replace(op=start.op + 2.0 * favoured, level=start.level + 1.0)
    for step in range(1, steps + 1):
        share = step / steps
        now = jax.tree.map(lambda a, b, share=share: a + share * (b - a), start, learned)
        line = {f"{split}_loss": 2 - share for split in ("train", "valid")}
        line |= {f"{split}_accuracy": share / 2 for split in ("train", "valid")}
        mass = policy_space.op_mass(now, num_ops)
        line |= {"entropy": policy_space.entropy(now), "op_mass": mass, "temperature": 1 - share / 2}
        folder.log(step, {"seconds": step, **line})
    rows = policy_space.combinations(num_ops, 2)[:4]
    content = policies.SubPolicies(rows, np.full((4, 2), 0.7), np.full((4, 2), 0.6), np.arange(1.0, 5.0))
    found = policies.Policy("sub_policies", "strength", ("Rotate90",), content, method="dada")
    policies.save(folder.policy_path, found)
    folder.write_summary(
        {
            "op_mass_policy_file": dict(zip(names, policy_space.op_mass(learned, num_ops).tolist())),
            "op_mass_initial": dict(zip(names, policy_space.op_mass(start, num_ops).tolist())),
            "distribution": {
                "op": jax.nn.softmax(learned.op),
                "application": jax.nn.sigmoid(learned.application),
                "level": jax.nn.sigmoid(learned.level),
            },
        }
    )
    return pathlib.Path(path)


def read_image(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


@pytest.fixture(scope="module")
def dataset():
    return datasets.load("embedded")


@pytest.fixture(scope="module")
def run(tmp_path_factory, dataset):
    path = make_run(tmp_path_factory.mktemp("plot") / "run")
    return path, finished_run.draw(path, dataset)


def test_all_figures_are_drawn(run):
    path, drawn = run
    assert drawn == [path / "figures" / f"{name}.png" for name in NAMES]
    assert sorted(os.listdir(path / "figures")) == sorted(f"{name}.png" for name in NAMES)
    for file in drawn:
        image = read_image(file)
        ink = np.mean(np.any(image < 250, axis=-1))
        assert 0.03 < ink < 0.9, file  # neither empty nor covered
        # Nothing is cut off at the edge of the page.
        assert np.all(image[[0, -1]] > 240) and np.all(image[:, [0, -1]] > 240), file


def command(*arguments):
    plot.main(*command_line.parse(plot.define, list(map(str, arguments))))


def test_other_images_under_the_name_of_the_data_set_are_refused(tmp_path):
    small_runs.write_data_set(tmp_path / "tiny.npz", 80, 8)
    path = make_run(tmp_path / "run", dataset=str(tmp_path / "tiny.npz"))
    small_runs.write_data_set(tmp_path / "tiny.npz", 84, 8)
    with pytest.raises(ValueError, match=r"run: training images: got \[84, 8, 8, 3\]"):
        command(path)
    assert not (path / "figures").exists()


def test_drawing_again_from_the_folder_alone_gives_the_same_bytes(run, tmp_path, capsys):
    path, drawn = run
    shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("figures"))
    command(tmp_path / "copy")
    again = [pathlib.Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [file.name for file in again] == [file.name for file in drawn]
    for one, other in zip(drawn, again):
        assert one.read_bytes() == other.read_bytes(), one.name


def test_ops_sheet_shows_what_pillow_makes(dataset, monkeypatch, run):
    sheets = []
    monkeypatch.setattr(image_figures, "ops_sheet", lambda *arguments: sheets.append(arguments))
    search_figures._ops(finished_search.read(run[0]), dataset)
    (_, original, heads, sheet) = sheets[0]
    shown = {op.row.name: op for op in sheet}
    assert len(shown) == 16 and heads == ("level 0", "0.25", "0.5", "0.75", "1")
    np.testing.assert_array_equal(shown["Invert"].images, [255 - original])
    turned = Image.fromarray(original).transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(shown["Rotate90"].images, [np.asarray(turned)])
    np.testing.assert_array_equal(shown["Solarize"].values, [256, 192, 128, 64, 0])
    for value, image in zip(shown["Rotate"].values, shown["Rotate"].images):
        np.testing.assert_array_equal(image, np.asarray(Image.fromarray(original).rotate(value)))


def test_augment_in_blocks_applies_every_op_once(dataset):
    images = dataset.train_images[: search_figures._BLOCK + 9]
    op_ids = [ops.OPS.index(name) for name in ("Invert", "Rotate90")]
    shape = (len(images), 2)
    draws = ops.Draws(np.tile(np.int32(op_ids), (len(images), 1)), np.zeros(shape), np.zeros((*shape, 2)))
    expected = np.rot90(255 - images, axes=(1, 2))
    np.testing.assert_array_equal(search_figures._augment(images, draws), expected)


def test_captions_of_augmented_images(dataset, monkeypatch, run):
    grids = []
    monkeypatch.setattr(image_figures, "image_grid", lambda *arguments: grids.append(arguments))
    search_figures._augmented_images(finished_search.read(run[0]), dataset)
    ((_, (block,)),) = grids
    assert block.captions[0][:2] == ["T-shirt", "Trousers"]
    captions = [caption for line in block.captions[1:] for caption in line]
    assert "unchanged" in captions and any("\n" in caption for caption in captions)
    for line, images in zip(block.captions[1:], block.images[1:]):
        for caption, image, before in zip(line, images, block.images[0]):
            assert (caption == "unchanged") == np.array_equal(image, before)


def test_captions_name_the_op_and_its_value_has_the_direction():
    color, shear = (ops.OPS.index(name) for name in ("Color", "ShearY"))
    values = np.array([[1.43, -0.1], [0.69, 0.2]])
    draws = ops.Draws(np.full((2, 2), (color, shear)), values, np.zeros((2, 2, 2)))
    captions = search_figures._captions(ops.search_space("directed"), draws)
    assert captions == ["Color 1.43\nShearY −0.1", "Color 0.69\nShearY 0.2"]


def draw_policy(path):
    with figure_style.style():
        search = finished_search.read(path)
        figure = chart_figures.learned_policy(
            "title",
            search.space,
            search.distribution,
            search.policy_mass,
            search.initial_mass,
            [op.name for op in search.planted],
        )
        return read_image(figure_style.save(path / "one.png", figure)), figure


def test_policy_figure_follows_the_distribution(run, tmp_path):
    invert, figure = draw_policy(run[0])
    other, other_figure = draw_policy(make_run(tmp_path / "other", leader="Cutout"))
    assert np.mean(np.any(invert != other, axis=-1)) > 0.01
    for drawn, first in ((figure, "Invert (planted)"), (other_figure, "Cutout")):
        bars, _, level = drawn.subfigs[0].axes
        assert bars.get_yticklabels()[0].get_text() == first
        widths = [patch.get_width() for patch in bars.patches[:16]]
        assert widths == sorted(widths, reverse=True) and widths[0] > 4 * widths[1]
        np.testing.assert_allclose(level.lines[0].get_xdata(), 1 / (1 + np.exp(-1.0)), rtol=1e-5)
        names = [text.get_text() for text in drawn.subfigs[1].axes[0].texts]
        assert names[-1].splitlines()[1].split()[1] == first.split()[0]  # the heaviest pair


def test_mass_of_the_figure_is_that_of_the_search(run):
    search = finished_search.read(run[0])
    shares, probabilities, _ = chart_figures._entries(search.distribution, 16)
    np.testing.assert_allclose(np.sum(shares * probabilities, 0), search.metrics["op_mass"][-1], rtol=1e-5)
    np.testing.assert_allclose(np.sum(shares), 2.0, rtol=1e-5)


def test_spread_is_weighted():
    values = np.array([[0.0], [0.5], [1.0], [0.9]])
    weights = np.array([[8.0], [1.0], [1.0], [0.0]])
    np.testing.assert_allclose(chart_figures._spread(values, weights)[:, 0], [0.15, 0.0, 0.5])
    assert np.all(np.isnan(chart_figures._spread(values, 0 * weights)))


def test_slots_without_planted_op_and_one_step(tmp_path):
    path = make_run(tmp_path / "run", kind="slots", planted=None, steps=1)
    _, figure = draw_policy(path)
    assert not figure.subfigs and len(figure.axes) == 3  # no map of pairs
    search = finished_search.read(path)
    shares, probabilities, _ = chart_figures._entries(search.distribution, 16)
    np.testing.assert_allclose(np.sum(shares * probabilities, 0), search.policy_mass, rtol=1e-5)
    with figure_style.style():
        names = [row.name for row in search.space.rows]
        curves = chart_figures.curves("title", search.metrics, names, search.initial_mass)
        read_image(figure_style.save(tmp_path / "curves.png", curves))


def test_planted_images_of_the_caller_are_used(run, dataset, monkeypatch):
    grids = []
    monkeypatch.setattr(image_figures, "image_grid", lambda *arguments: grids.append(arguments))
    planted = finished_search.read(run[0]).planted
    _, valid = datasets.search_split(dataset)
    search_figures._sample_images(dataset, planted, None)
    search_figures._sample_images(dataset, planted, 255 - dataset.train_images[valid])
    search_figures._sample_images(dataset, [], None)
    applied, given, without = (blocks for _, blocks in grids)
    before, after = np.array(applied[1].images)
    np.testing.assert_array_equal(after, 255 - before)
    np.testing.assert_array_equal(after, given[1].images[1])
    assert len(without) == 1
    with pytest.raises(ValueError, match="planted_valid_images: got 3, expected 2000"):
        search_figures._sample_images(dataset, planted, dataset.train_images[:3])


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("Rotate", -13.456, "±13.5°"),
        ("Rotate", 0.0, "0°"),
        ("TranslateX", 0.225, "±22.5%"),
        ("Contrast", 1.45, "1±0.45"),
        ("Posterize", 5.0, "5 bits"),
        ("Solarize", 128.0, "128"),
        ("Cutout", 0.1, "10%"),
    ],
)
def test_value_text(name, value, expected):
    row = next(row for row in ops.search_space("strength").rows if row.name == name)
    assert figure_style.value_text(row, value) == expected


def edit_summary(path, change):
    file = path / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda path: (path / "flags.txt").unlink(), FileNotFoundError, "not a run folder"),
        (lambda path: (path / "summary.json").unlink(), FileNotFoundError, "not a finished run"),
        (lambda path: (path / "metrics.jsonl").unlink(), FileNotFoundError, "metrics.jsonl: no metrics"),
        (lambda path: (path / "metrics.jsonl").write_text('{"step": 1}\n'), ValueError, "no 'train_loss'"),
        (lambda path: (path / "policy.json").unlink(), ValueError, "policy.json"),
        (lambda path: edit_summary(path, {"op_mass_policy_file": {"Invert": 1}}), ValueError, "_file: exp"),
        (lambda path: edit_summary(path, {"distribution": {}}), ValueError, "distribution.op: got shape"),
        (
            lambda path: (path / "flags.txt").write_text("--dataset=embedded\n"),
            ValueError,
            "no --search_space",
        ),
    ],
)
def test_folders_that_are_refused(run, dataset, tmp_path, damage, error, message):
    path = tmp_path / "run"
    shutil.copytree(run[0], path, ignore=shutil.ignore_patterns("figures"))
    damage(path)
    with pytest.raises(error, match=message):
        finished_run.draw(path, dataset)
    assert not (path / "figures").exists()


def test_bad_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        command(tmp_path)
    with pytest.raises(ValueError, match="expected a run folder, or policies and a folder"):
        command()
    with pytest.raises(ValueError, match="dada_cifar10: got a policy of kind 'sub_policies'"):
        command("dada_cifar10", tmp_path / "figures")
    assert not (tmp_path / "figures").exists()


def test_an_official_search_has_pairs_and_no_flag_for_it(run, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(run[0], path)
    lines = [line for line in (path / "flags.txt").read_text().splitlines() if "policy_space" not in line]
    (path / "flags.txt").write_text("\n".join([*lines, "--preset=official"]))
    assert finished_search.read(path).distribution.op.shape == (1, 1, 120)


def test_a_deepaa_search_is_drawn_with_the_training_of_its_proxy(tmp_path, monkeypatch):
    (tmp_path / "flags.txt").write_text("--method=deepaa\n")
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "proxy").mkdir()
    for module, name in ((deepaa_figures, "draw_run"), (finished_run, "draw_training")):
        monkeypatch.setattr(module, name, lambda path: [path])
    assert finished_run.draw(tmp_path) == [tmp_path, tmp_path / "proxy"]


def test_figures_of_published_policies(tmp_path, capsys):
    command("deepaa_imagenet_1", tmp_path)
    names = [pathlib.Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["operations.png", "magnitudes_deepaa_imagenet_1.png"]
    bars = deepaa_figures.operations("", {"": policies.load("deepaa_cifar_2")}).axes[0].patches
    heights = np.array([bar.get_height() for bar in bars]).reshape(18, 6)
    np.testing.assert_allclose(heights.sum(0), 100.0, rtol=1e-5)
    crop = [row.name for row in ops.search_space("deepaa", CIFAR_OPS).rows].index("RandCrop")
    np.testing.assert_allclose(heights[crop], [0.01, 0.31, 67.85, 72.51, 0.03, 0.05], atol=0.01)


def test_style_is_left_behind():
    before = dict(matplotlib.rcParams)
    with figure_style.style():
        assert matplotlib.rcParams["axes.titlelocation"] == "left"
    assert dict(matplotlib.rcParams) == before
