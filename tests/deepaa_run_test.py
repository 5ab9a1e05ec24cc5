"""The search binary with --method=deepaa: its proxy, its layers, the same bytes after a break, bad input."""

import shutil

import jax
import numpy as np
import pytest
import small_runs

from dada import policies
from dada.searches.deepaa import config as deepaa_config
from dada.training import sgd
from experiments import plot, search
from experiments.data import datasets
from experiments.methods import deepaa_method, deepaa_run, search_loop
from experiments.runs import command_line, run_folder

SETTINGS = {
    "method": "deepaa",
    "model": "wrn_10_1",
    "proxy_images": 40,
    "epochs": 2,
    "batch_size": 16,
    "crop_padding": 1,
    "cutout_length": 2,
    "num_layers": 2,
    "updates_per_layer": 3,
    "num_points": 2,
    "valid_batch_size": 4,
    "num_chains": 20,
    "num_prefixes": 1,
    "stop_probability": 0.0,
    "planted_op": "Rotate",
}
UPPER = dict.fromkeys(("num_chains", "num_prefixes", "penalty", "stop_probability"))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deepaa")
    small_runs.write_data_set(folder / "tiny.npz", 160, 8)
    return folder


def run_to_the_end(folder, name, **changes):
    settings = {**SETTINGS, "dataset": str(folder / "tiny.npz")}
    return small_runs.run_here(search, settings, folder / name, **changes)


def run(folder, name, **changes):
    """A run without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.finished_run, "draw", lambda *_: [])
        return run_to_the_end(folder, name, **changes)


@pytest.fixture(scope="module")
def finished(files):
    return run_to_the_end(files, "first", measure_cost=True)


def test_a_run_leaves_its_folder(finished):
    summary, lines = run_folder.read_summary(finished), run_folder.read_metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, 7)) and summary["steps"] == 6
    assert [line["layer"] for line in lines] == [1, 1, 1, 2, 2, 2]
    found = policies.load(finished / "policy.json")
    names = [row.name for row in policies.space(found).rows]
    assert found.kind == "layers" and found.content.probability.shape == (2, 139)
    assert names[-3:] == list(deepaa_config.CIFAR_OPS)
    for layer, line in zip(summary["layers"], (lines[2], lines[5])):
        np.testing.assert_allclose(list(layer.values()), line["op_mass"], rtol=1e-4)
    assert abs(sum(summary["op_mass_initial"].values()) - 2) < 1e-5
    (planted,) = summary["planted"]
    assert planted.pop("rank") > 1 and 0.0 < planted.pop("level_found") < 1.0
    assert planted | {"seconds_until_it_leads": 0} == {
        "op": "Rotate",
        "row": "Rotate",
        "value": 30.0,
        "level": 1.0,
        "steps_until_it_leads": None,
        "seconds_until_it_leads": 0,
    }
    assert min(summary[name] for name in ("seconds_run", "seconds_proxy", "plain_step_ratio")) > 0
    proxy = run_folder.read_metrics(finished / "proxy")
    assert [line["epoch"] for line in proxy] == [1, 2]
    assert summary["proxy_accuracy"] == proxy[-1]["test_accuracy"]
    figures = {path.name for path in (finished / "figures").glob("*.png")}
    assert figures == {"operations.png", "magnitudes.png", "curves.png"}


def test_plot_draws_the_figures_again(finished, capsys):
    path = finished / "figures" / "operations.png"
    before = path.read_bytes()
    path.unlink()
    plot.main(*command_line.parse(plot.define, [str(finished)]))
    assert path.read_bytes() == before and "magnitudes.png" in capsys.readouterr().out


@pytest.mark.parametrize("max_steps", [3, 5])
def test_a_resumed_run_ends_in_the_same_bytes(files, finished, max_steps):
    """Stopped between the layers, and inside the second; the proxy is not trained again."""
    name = f"stopped_{max_steps}"
    run(files, name, max_steps=max_steps)
    proxy = (files / name / "proxy" / "metrics.jsonl").read_bytes()
    run(files, name, resume=True)
    assert (files / name / "policy.json").read_bytes() == (finished / "policy.json").read_bytes()
    assert (files / name / "proxy" / "metrics.jsonl").read_bytes() == proxy
    assert [line["step"] for line in run_folder.read_metrics(files / name)] == list(range(1, 7))


def test_a_proxy_that_is_given_is_used(files, finished):
    other = run(files, "given", proxy=str(finished / "proxy"))  # of as many epochs as are given
    assert not (other / "proxy").exists()
    assert (other / "policy.json").read_bytes() == (finished / "policy.json").read_bytes()


def test_another_seed_finds_another_policy(files, finished):
    both = run(files, "both", seed=0, num_seeds=2, num_layers=1, updates_per_layer=1, **UPPER)
    found = [policies.load(both / f"seed_{seed}" / "policy.json").content.probability for seed in (0, 1)]
    assert (found[0] != found[1]).any()
    assert (both / "seed_1" / "proxy" / "summary.json").exists()


def test_a_layer_of_identity_is_the_last(files, finished):
    given = {"proxy": str(finished / "proxy"), "stop_probability": 0.9}
    shorter = run(files, "short", **given)
    assert len(policies.load(shorter / "policy.json").content.probability) == 1
    before = small_runs.snapshot(shorter)
    run(files, "short", resume=True, **given)
    assert small_runs.snapshot(shorter) == before


def test_a_run_that_was_killed_before_the_summary_of_its_proxy(files, finished):
    killed = files / "killed"
    shutil.copytree(finished, killed)
    for name in ("summary.json", "policy.json", "metrics.jsonl", "checkpoints", "proxy/summary.json"):
        shutil.rmtree(killed / name) if name == "checkpoints" else (killed / name).unlink()
    proxy = (killed / "proxy" / "metrics.jsonl").read_bytes()
    run(files, "killed", resume=True, max_steps=1)
    assert (killed / "proxy" / "metrics.jsonl").read_bytes() == proxy
    summaries = [run_folder.read_summary(path / "proxy") for path in (finished, killed)]
    assert summaries[0]["last"] == summaries[1]["last"]


def test_parts_have_as_many_images_of_every_class_where_they_can(files):
    labels = np.repeat(np.arange(4, dtype=np.int32), (70, 40, 60, 50))
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    whole = datasets.Dataset("a", images, labels, images, labels, tuple("abcd"), np.zeros(3), np.ones(3))
    settings = search.resolve(small_runs.command(SETTINGS))
    for num_train, num_valid, expected in ((80, 20, (20, 5)), (81, 20, (None, 5)), (128, None, (None, None))):
        settings |= {"num_train": num_train, "num_valid": num_valid}
        parts = deepaa_method.CORRECTED.split(whole, settings)
        for part, of_each in zip(parts, expected):
            counts = np.bincount(part.labels)
            assert counts.tolist() == [of_each] * 4 if of_each else counts.min() < counts.max()


def test_points_have_clean_images_of_their_class():
    labels = np.random.default_rng(0).integers(0, 4, 60).astype(np.int32)
    half = sgd.Batch(np.arange(60, dtype=np.uint8).reshape(60, 1, 1, 1), labels)
    tables = (deepaa_run.class_table(labels, 4),) * 2
    seen, classes = set(), []
    for step in range(120):
        points, clean = deepaa_run.batches(
            jax.random.key(0), search_loop.Data(half, half), tables, step, num_points=5, num_valid=6
        )
        assert (np.asarray(clean.labels) == np.asarray(points.labels)[:, None]).all()
        index = np.asarray(clean.images).reshape(5, 6)
        assert (labels[index] == np.asarray(clean.labels)).all()
        assert all(len(set(row)) == 6 for row in index.tolist())  # distinct
        seen.update(np.asarray(points.images).ravel().tolist())
        classes += points.labels.tolist()
    assert seen == set(range(60))
    counts = np.bincount(classes, minlength=4)
    assert ((counts - 150) ** 2 / 150).sum() < 16.3  # 0.1 % of chi-squared with 3 degrees of freedom


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valid_batch_size": 20}, "--valid_batch_size=20: class . has . images to be clean, expected 20"),
        ({"proxy_images": 150}, "--proxy_images=150: expected less than 128 of the 160"),
        ({"proxy_images": 10}, "--batch_size=16: the proxy has only 10"),
        ({"num_train": 12, "num_layers": 1, **UPPER, "num_valid": 4}, "--valid_batch_size=4: class . has 1 "),
        *(
            ({**UPPER, "num_layers": 1, flag: 0.5}, f"--{flag}=0.5 has no effect with --num_layers=1")
            for flag in ("penalty", "stop_probability")
        ),
        *(
            ({**UPPER, "num_layers": 1, flag: 5}, f"--{flag}=5 has no effect with --num_layers=1")
            for flag in ("num_chains", "num_prefixes")
        ),
        ({"proxy": "nowhere"}, "nowhere.flags.txt: no such file"),
        ({"search_space": "strength"}, "space: got 'strength' without Identity"),
        ({"planted_op": "Rotate:0"}, "expected a finite value that changes the images"),
        ({"planted_op": "RandCrop"}, "--planted_op: got 'RandCrop', expected one of Identity"),
        ({"estimator": "reinforce"}, "--estimator belongs to --method=dada, got --method=deepaa"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(files, "refused", **changes)
    assert not (files / "refused").exists()


@pytest.mark.parametrize(
    "changes",
    [
        *({"epochs": 3}, {"learning_rate": 0.2}, {"weight_decay": 0.1}, {"clip_norm": 1.0}),
        *({"crop_padding": 2}, {"flip": False}, {"color_jitter": 0.4}),
    ],
)
def test_a_proxy_that_was_trained_otherwise_is_refused(files, finished, changes):
    with pytest.raises(ValueError, match="has no effect with --proxy, which was trained otherwise"):
        run(files, "refused", proxy=str(finished / "proxy"), **changes)


def test_a_proxy_of_another_network_is_refused(files, finished):
    shutil.copytree(finished / "proxy", files / "other")
    text = (files / "other" / "flags.txt").read_text()
    (files / "other" / "flags.txt").write_text(text.replace("wrn_10_1", "wrn_16_1"))
    with pytest.raises(ValueError, match="expected a trained wrn_10_1, got a run of wrn_16_1"):
        run(files, "refused", proxy=str(files / "other"))
