"""The search binary with --method=ddas: files, resume, figures, presets, bad input; then a training."""

import jax
import numpy as np
import pytest
import small_runs
from PIL import Image

from dada import policies
from experiments import search, train
from experiments.data import datasets
from experiments.methods import ddas_method
from experiments.runs import run_folder

SMALL = {
    "method": "ddas",
    "model": "wrn_10_1",
    "epochs": 3,
    "batch_size": 16,
    "valid_batch_size": 20,
    "crop_padding": 1,
    "cutout_length": 2,
    "num_policies": 2,
    "search_space": "strength",
    "magnitudes": ["0.5", "1"],
    "extra_ops": ["Rotate90"],
    "planted_op": "Rotate90",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ddas")
    small_runs.write_data_set(folder / "tiny.npz", 80, 8)
    return folder


def run_here(folder, name, **changes):
    settings = {**SMALL, "dataset": str(folder / "tiny.npz")}
    return small_runs.run_here(search, settings, folder / name, **changes)


@pytest.fixture(scope="module")
def finished(files):
    return run_here(files, "first")


def test_a_run_leaves_its_folder(finished):
    summary, lines = run_folder.read_summary(finished), run_folder.read_metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, 10))
    found = policies.load(finished / "policy.json")
    assert (found.kind, found.method, found.preset) == ("schedule", "ddas", "corrected")
    assert len(found.content.row) == 12 * 2 + 4
    # The policy of an epoch is that after its third step.
    ends = [lines[index]["p_tp"] for index in (2, 5, 8)]
    np.testing.assert_allclose(summary["p_tp"], ends, rtol=1e-5)
    np.testing.assert_allclose(found.content.p_tp, ends, rtol=1e-5)
    assert abs(sum(summary["op_mass_initial"].values()) - 2 * 0.35) < 1e-6
    assert abs(sum(summary["op_mass"].values()) - 2 * ends[-1]) < 1e-5
    assert "plain_step_ratio" not in summary and summary["planted"][0]["op"] == "Rotate90"
    written = run_folder.read_flags(finished)
    assert written["method"] == "ddas" and written["learning_rate"] == "0.32" and written["draws"] == "image"
    assert "estimator" not in written and written["clip_norm"] == "0.0"


def test_figures(finished):
    names = {path.name for path in (finished / "figures").glob("*.png")}
    assert names >= {"policy.png", "p_tp.png", "curves.png", "ops.png", "augmented_images.png"}
    for name in ("policy", "p_tp", "ops"):
        image = np.asarray(Image.open(finished / "figures" / f"{name}.png").convert("RGB")).astype(int)
        assert image.shape[1] == 1600 and 0.01 < np.mean(np.any(image < 250, -1)) < 0.9
        assert np.all(image[[0, -1]] > 240) and np.all(image[:, [0, -1]] > 240), name  # nothing is cut off


def test_resumed_in_the_middle_of_an_epoch_is_the_straight_run(files, finished, monkeypatch):
    # Takes longer than the search.
    monkeypatch.setattr(search.finished_run, "draw", lambda *arguments: [])
    run_here(files, "resumed", max_steps=4)
    partial = policies.load(files / "resumed" / "policy.json")
    assert len(partial.content.p_tp) == 2  # the epochs that were begun
    assert not run_folder.read_summary(files / "resumed")["is_whole"]
    run_here(files, "resumed", resume=True)
    assert run_folder.read_summary(files / "resumed")["is_whole"]
    assert (files / "resumed" / "policy.json").read_bytes() == (finished / "policy.json").read_bytes()
    for straight, resumed in zip(*map(run_folder.read_metrics, (finished, files / "resumed"))):
        assert {**straight, "seconds": 0} == {**resumed, "seconds": 0}


def test_a_training_replays_the_policy(files, finished):
    settings = {"dataset": str(files / "tiny.npz"), "model": "wrn_10_1", "epochs": 3, "batch_size": 16}
    settings["policy"] = str(finished / "policy.json")
    dataset = datasets.load(settings["dataset"])
    given, static = (
        small_runs.task(train, settings, dataset, freeze_schedule=frozen)[0].config.policy.content
        for frozen in (None, "both")
    )
    np.testing.assert_array_equal(static.p_tp, given.p_tp[[-1] * 3])
    np.testing.assert_array_equal(static.p_o, given.p_o[[-1] * 3])
    assert np.any(given.p_o != static.p_o)


def task(files, **changes):
    path = str(files / "tiny.npz")
    return small_runs.task(search, {**SMALL, "dataset": path}, datasets.load(path), **changes)


def test_official_preset(files):
    official = {"preset": "official", "search_space": None, "magnitudes": [], "extra_ops": []}
    found, resolved = task(files, **official, planted_op="Brightness", batch_size=8, valid_batch_size=16)
    config = found.config
    assert resolved["search_space"] == "ddas" and resolved["draws"] == "batch"
    rates = config.learning_rate, config.policy_learning_rate, config.p_tp_learning_rate
    assert rates == (0.01, 0.005, 0.001)
    assert not config.share_randomness and len(config.candidates.row) == 52
    assert {level for level in config.candidates.level if level} == {28 / 32, 1.0}
    ((planted, value),) = found.planted
    assert planted == "Brightness" and abs(value - 5.14) < 1e-9
    # Five steps an epoch; 40 validation images are three batches, the same ones in every epoch.
    key = jax.random.key(0)
    batches = [np.asarray(ddas_method.valid_indices(config, key, step, 40, 16)) for step in range(6)]
    np.testing.assert_array_equal(batches[1], np.arange(16, 32))
    np.testing.assert_array_equal(batches[2][:8], np.arange(32, 40))
    np.testing.assert_array_equal(batches[3], batches[0])
    np.testing.assert_array_equal(batches[5], batches[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"estimator": "reinforce"}, "--estimator belongs to --method=dada, got --method=ddas"),
        ({"method": "dada"}, "--num_policies belongs to --method=ddas, got --method=dada"),
        ({"magnitudes": ["strong"]}, "--magnitudes: got strong, expected numbers"),
        ({"magnitudes": ["2"]}, r"expected numbers in \[0, 1\]"),
        ({"preset": "official", "magnitudes": []}, "the released code has only ddas, ddas_imagenet"),
        ({"preset": "official", "draws": "image", "search_space": "ddas", "magnitudes": []}, "only batch"),
        ({"p_tp": 1.0}, "initial_p_tp: got 1.0"),
        ({"nesterov": True}, "--nesterov has no effect with --momentum=0"),
        ({"magnitudes": ["0"], "planted_op": "Color"}, "expected a finite value that changes the images"),
        ({"extra_ops": ["RandFlip"]}, "got the random ops RandFlip, which only DeepAA searches"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises(ValueError, match=message):
        run_here(files, "refused", **changes)
    assert not (files / "refused").exists()
