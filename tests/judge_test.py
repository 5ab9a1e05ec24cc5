"""The judge of a search: what the last third sees, the rule, the files, the same verdict after a break."""

import pathlib

import jax
import numpy as np
import pytest
import small_runs

from dada import policies
from dada.training import sgd
from experiments import search
from experiments.data import datasets
from experiments.figures import finished_run, search_figures
from experiments.methods import deepaa_run, judge, search_loop
from experiments.runs import contents, run_folder, train_run

draw_all = finished_run.draw
SMALL = {
    "model": "wrn_10_1",
    "epochs": 2,
    "batch_size": 16,
    "crop_padding": 1,
    "cutout_length": 2,
    "extra_ops": ["Rotate90"],
    "planted_op": "Rotate90",
    "judge": True,
    "judge_epochs": 1,
}
DDAS = {"method": "ddas", "valid_batch_size": 20, "search_space": "strength", "magnitudes": ["0.5"]}
OFFICIAL = {"preset": "official", "extra_ops": None, "planted_op": None}
DEEPAA = {
    **{"method": "deepaa", "extra_ops": None, "planted_op": None, "num_layers": 2, "updates_per_layer": 5},
    **{"num_points": 6, "valid_batch_size": 3, "proxy_images": 40},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    small_runs.write_data_set(folder / "tiny.npz", 80, 8)
    small_runs.write_data_set(folder / "more.npz", 160, 8)
    return folder


@pytest.fixture(scope="module", autouse=True)
def quick_runs():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search.finished_run, "draw", lambda *_: [])
        patch.setattr(judge, "_NUM_SEEDS", 2)
        yield


def settings(folder, file="tiny.npz"):
    return {**SMALL, "dataset": str(folder / file)}


def task(folder, file="tiny.npz", **changes):
    return small_runs.task(search, settings(folder, file), datasets.load(str(folder / file)), **changes)[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        OFFICIAL,
        DDAS,
        {**DDAS, **OFFICIAL, "search_space": None, "magnitudes": None, "valid_batch_size": 8},
    ],
    ids=["dada", "dada_official", "ddas", "ddas_official"],
)
def test_the_last_third_of_a_search_does_not_see_what_is_tested_on(files, changes):
    small = task(files, **changes)
    method = search_loop.steps(small, is_vmapped=False)._step.args[0]
    labels = np.asarray(small.data.valid.labels)
    kept, held_out = small.judge.kept, small.judge.held_out
    assert sorted([*kept, *held_out]) == list(range(40))
    assert np.bincount(labels[held_out]).tolist() == [5] * 4
    total, size = search_loop.total_steps(small.config), small.sizes[1]
    first = -(-2 * total // 3) if total % 3 == 0 else 2 * total // 3
    seen = set()
    for step in range(total):
        arguments = small.config, jax.random.key(0), step, 40, size
        index = np.asarray(method.valid_indices(*arguments))
        assert index.shape == (size,)
        if step < first:
            np.testing.assert_array_equal(index, small.method.valid_indices(*arguments))
        else:
            seen.update(index.tolist())
    assert len(seen) >= 8 and seen <= set(kept.tolist())


def test_the_last_third_of_every_layer_of_deepaa_does_not_see_them_either(files):
    small = task(files, "more.npz", **DEEPAA)
    places = np.arange(32).reshape(-1, 1, 1, 1)
    data = small.data._replace(valid=sgd.Batch(places, small.data.valid.labels))
    kept, seen = set(small.judge.kept.tolist()), [set(), set()]
    steps = deepaa_run.Steps(small, is_vmapped=False)
    for step in range(200):
        points, clean = steps._batches(jax.random.key(0), data, step=step)
        assert (np.asarray(clean.labels) == np.asarray(points.labels)[:, None]).all()
        index = np.asarray(clean.images).reshape(6, 3)
        assert all(len(set(row)) == 3 for row in index.tolist())
        seen[step % 5 >= 3].update(index.ravel().tolist())
    assert seen == [set(range(32)), kept] and len(kept) == 16


def rows(wrong, num_seeds=3, count=50):
    """Right answers of seeds that are wrong on the first so many images."""
    return np.array([np.arange(count) >= number for number in np.broadcast_to(wrong, num_seeds)]).astype(int)


@pytest.mark.parametrize(
    ("changes", "recommended"),
    [
        ({}, "none"),
        ({"found": rows((8, 10, 9))}, "found"),
        ({"random": rows(0)}, "none"),  # never random
        ({"found": rows(17)}, "none"),  # three images of fifty
        ({"found": rows((5, 28, 8))}, "none"),  # seeds that differ
        ({"base": rows((8, 10, 9))}, "base"),
        ({"base": rows((8, 10, 9)), "found": rows((7, 9, 8))}, "base"),
        ({"base": rows((8, 10, 9)), "found": rows(0)}, "found"),
        ({"a.json": rows((8, 10, 9))}, "a.json"),
        ({"found": rows((8, 10, 9)), "a.json": rows((44, 40, 42))}, "found"),
    ],
)
def test_the_simplest_that_nothing_beats_is_recommended(changes, recommended):
    names = ("none", "base", "found", "random", "a.json")
    right = {name: changes.get(name, rows((20, 21, 19))) for name in names}
    verdict = judge.decide(right, dict.fromkeys(right, 0))
    assert verdict["recommended"] == recommended and verdict["test_images"] == 50
    assert verdict["better_than_random"] == ("found" in changes and recommended != "none")
    assert verdict["rows"][0] == {
        **{"name": "none", "mean": pytest.approx(40.0), "deviation": pytest.approx(2.0), "n": 3},
        "errors": pytest.approx([40.0, 42.0, 38.0]),
        "diverged": 0,
    }


def test_a_row_that_diverged_is_not_recommended():
    right = {name: rows((20, 21, 19)) for name in judge.ROWS} | {"found": rows(0)}
    for number, recommended in ((0, "found"), (1, "none")):
        verdict = judge.decide(right, {**dict.fromkeys(right, 0), "found": number})
        assert verdict["recommended"] == recommended and verdict["rows"][2]["diverged"] == number


@pytest.mark.parametrize(("count", "recommended"), [(1, "none"), (2, "none"), (5, "none"), (6, "found")])
def test_without_any_spread_the_number_of_images_decides(count, recommended):
    right = {name: rows(count, count=count) for name in judge.ROWS} | {"found": rows(0, count=count)}
    assert judge.decide(right, dict.fromkeys(right, 0))["recommended"] == recommended


@pytest.mark.parametrize(("found", "recommended"), [((15, 16, 15), "found"), ((15, 17, 15), "none")])
def test_every_training_counts_whatever_the_spreads(found, recommended):
    wrong = {"none": (17, 36, 44), "found": found, "random": 30}
    right = {name: rows(number) for name, number in wrong.items()}
    assert judge.decide(right, dict.fromkeys(right, 0))["recommended"] == recommended


@pytest.fixture(scope="module")
def finished(files):
    return small_runs.run_here(search, settings(files), files / "first")


def test_a_run_leaves_its_verdict(files, finished):
    verdict = run_folder.read_summary(finished)["verdict"]
    names = ["none", "base", "found", "random"]
    assert [row["name"] for row in verdict["rows"]] == names and verdict["test_images"] == 20
    for row in verdict["rows"]:
        summary = run_folder.read_summary(finished / "judge" / row["name"])
        assert summary["made_of"]["seeds"] == [0, 1] and summary["diverged"] == []
        right = summary["right"]
        assert row["errors"] == pytest.approx([100 - 5 * one.count("1") for one in right])
    recommended = policies.to_json(policies.load(finished / "recommended.json"))
    is_found = verdict["recommended"] == "found"
    expected = policies.load(finished / "policy.json") if is_found else policies.identity()
    assert recommended == policies.to_json(expected)
    left = {path.name for path in (finished / "judge").rglob("*") if path.is_file()}
    assert left == {"summary.json"}  # no weights


def test_the_figure_is_drawn_again_from_the_files(finished, monkeypatch):
    figure = finished / "figures" / "verdict.png"
    before = figure.read_bytes()
    figure.unlink()
    monkeypatch.setattr(search_figures, "draw", lambda *_: [])
    assert draw_all(finished) == [figure] and figure.read_bytes() == before


def test_a_run_that_was_killed_in_a_training_ends_with_the_same_verdict(files, finished, monkeypatch):
    begun = []

    def run(task, folders, run=train_run.run):
        begun.append(task.label)
        for result in run(task, folders):
            yield result
            if begun == ["judge none", "judge base"]:
                raise KeyboardInterrupt

    monkeypatch.setattr(train_run, "run", run)
    with pytest.raises(KeyboardInterrupt):
        small_runs.run_here(search, settings(files), files / "killed")
    killed, searched = files / "killed", run_folder.read_metrics(files / "killed")
    assert not (killed / "recommended.json").exists()
    small_runs.run_here(search, settings(files), killed, resume=True)
    assert begun[2:] == ["judge base", "judge found", "judge random"]
    assert run_folder.read_metrics(killed) == searched  # nothing was searched again
    for name in ("policy.json", "recommended.json"):
        assert (killed / name).read_bytes() == (finished / name).read_bytes()
    verdicts = [run_folder.read_summary(path)["verdict"] for path in (finished, killed)]
    assert verdicts[0] == verdicts[1]


def test_the_report_says_what_to_do(files, tmp_path):
    small, right = task(files), {name: rows((20, 21, 19)) for name in judge.ROWS}
    for better, (said, flags) in {
        "none": ("use none: no policy did better", "--crop_padding=0 --noflip --cutout_length=0"),
        "base": ("use base: 18.0 ± 2.0 % against", "--crop_padding=1 --flip --cutout_length=2"),
        "found": (
            "keep the policy: 18.0 ± 2.0 % against 40.0 ± 2.0 % without",
            "--policy_position=after_crop",
        ),
    }.items():
        known = right if better == "none" else {**right, better: rows((8, 10, 9))}
        verdict = judge.decide(known, {**dict.fromkeys(known, 0), "random": 1})
        text = judge.report(small, tmp_path, verdict)
        lines = text.splitlines()
        assert lines[0] == "none    40.0 ± 2.0 %  n = 3"
        assert lines[3] == "random  40.0 ± 2.0 %  n = 3, 1 diverged"
        assert lines[4].endswith(" (every training, p < 0.05 on 50 test images)")
        assert said in text and flags in text.splitlines()[-1]
        assert ("recommended.json" in text) == (better == "found")
        assert ("not better than a random one" in text) == (better != "found")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge": False}, "--judge_epochs=1 has no effect with --nojudge"),
        (
            {"judge": False, "judge_epochs": None, "judge_also": ["random:1"]},
            "--judge_also=.* has no effect with --nojudge",
        ),
        ({"judge_also": ["dada_cifar11"]}, "--judge_also: policy: got 'dada_cifar11', expected a file"),
        ({"judge_also": ["none"]}, "--judge_also: got 'none', expected each once and none of none, base"),
        ({"judge_also": ["random:1", "random:1"]}, "--judge_also: got 'random:1', expected each once"),
        (
            {"valid_batch_size": 21},
            "--valid_batch_size=21: the search has only 20 such images without the half that --judge holds",
        ),
        ({"max_steps": 5}, "--max_steps=5: expected all 6 steps with --judge"),
        (
            {**DEEPAA, "dataset": "more.npz", "valid_batch_size": 5},
            "has 3 images to be clean without the half that --judge holds back, expected 5 or more",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    if "dataset" in changes:
        changes = {**changes, "dataset": str(files / changes["dataset"])}
    with pytest.raises(ValueError, match=message):
        small_runs.run_here(search, settings(files), files / "refused", **changes)
    assert not (files / "refused").exists()


def test_too_few_validation_images_are_refused():
    valid = sgd.Batch(np.zeros((5, 8, 8, 3), np.uint8), np.array([0, 0, 1, 1, 2], np.int32))
    with pytest.raises(
        ValueError, match=r"--judge tests on half of the validation images: .*two or more of each"
    ):
        judge.plan({}, None, jax.tree.map(lambda leaf: np.repeat(leaf, 9, 0), valid), valid)
    with pytest.raises(ValueError, match="--judge trains on 5 images, expected 32 or more"):
        judge.plan({}, None, valid, valid)


@pytest.mark.parametrize("changes", [{}, DEEPAA], ids=["dada", "deepaa"])
def test_half_of_the_images_of_the_place_of_use_is_held_back(files, changes):
    # Classes 1 and 2 are missing; class 3 is there twice.
    labels = np.array([3, 3, 0, 0, 0, 0, 0])
    valid_images = np.random.default_rng(1).integers(0, 256, (7, 8, 8, 3), np.uint8)
    dataset = datasets.load(str(files / "more.npz"))
    own = dataset._replace(valid_images=valid_images, valid_labels=labels)
    given = {**changes, "planted_op": None, "valid_batch_size": None}
    resolved = search.resolve(small_runs.command(settings(files, "more.npz"), **given))
    small = search.task_of(resolved, own, fits_valid_batch=True)
    valid, plan = jax.tree.map(np.asarray, small.data.valid), small.judge
    assert small.sizes[1] == (1 if changes else 4) == min(small.sizes[1], len(plan.kept))
    assert sorted([*plan.kept, *plan.held_out]) == list(range(7)) and len(plan.held_out) == 3
    assert {*valid.labels[plan.kept]} == {*valid.labels[plan.held_out]} == {0, 3}
    assert all((image == valid_images).all((1, 2, 3)).any() for image in valid.images)
    assert len(small.data.train.labels) == (120 if changes else 160)  # none of them goes to validation
    with pytest.raises(ValueError, match="two or more of each class"):
        search.task_of(resolved, own._replace(valid_labels=np.array([3, 0, 0, 0, 0, 0, 0])))


def test_policies_that_stand_alone_are_trained_with_and_recommended_alone(files, tmp_path):
    small = task(files, "more.npz", **DEEPAA)
    right = {name: rows((20, 21, 19)) for name in judge.ROWS}
    alone = "--crop_padding=0 --noflip --cutout_length=0"
    for name, flags in {"base": "--crop_padding=1 --flip --cutout_length=2", "found": alone}.items():
        better = {**right, name: rows((8, 10, 9))}
        text = judge.report(small, tmp_path, judge.decide(better, dict.fromkeys(better, 0)))
        assert text.endswith(flags)
    padding = {name: judge._config(small, name, policies.identity()).crop_padding for name in judge.ROWS}
    assert padding == {"none": 0, "base": 1, "found": 0, "random": 0}
    padding = [judge._config(task(files), name, policies.identity()).crop_padding for name in judge.ROWS]
    assert padding == [0, 1, 1, 1]


@pytest.mark.parametrize("num_ops", [2, 3])
def test_the_random_policy_has_the_size_of_the_one_found(files, tmp_path, monkeypatch, num_ops):
    trained = {}

    def train(task, path, name, policy, *_):
        trained[name] = policy
        return {"right": ["01" * 10] * 2, "diverged": []}

    monkeypatch.setattr(judge, "_train", train)
    folder = run_folder.RunFolder(tmp_path)
    folder.write_summary({})
    judge.run(task(files), folder, 0, policies.random_policy(7, "directed", num_ops=num_ops))
    assert trained["random"].content.row.shape == trained["found"].content.row.shape == (25, num_ops)


def test_a_training_that_diverges_is_all_wrong(files, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "_TRAINING", {**judge._TRAINING, "learning_rate": 1e38})
    small = task(files, judge_epochs=3)
    test = jax.tree.map(lambda part: part[small.judge.held_out], small.data.valid)

    def is_right(state, test):
        return np.ones(len(test.labels), int)

    result = judge._train(small, tmp_path, "none", policies.identity(), range(2), test, is_right)
    assert result == {"right": ["0" * 20] * 2, "diverged": [0, 1]}


def test_a_row_of_other_things_is_begun_anew(tmp_path):
    path, made_of = tmp_path / "judge" / "found", {"policy": "a", "seeds": [0, 1]}
    assert judge._begun(path, made_of) == {"made_of": made_of}
    for other in ({**made_of, "policy": "b"}, made_of, {**made_of, "seeds": [2, 3]}):
        (path / "seed_0").mkdir()
        assert judge._begun(path, other) == {"made_of": other}
        assert not (path / "seed_0").exists()
    (path / "seed_0").mkdir()
    judge._begun(path, other)
    assert (path / "seed_0").exists()  # half trained
    judge._finish(path, {"made_of": other, "right": ["1"]})
    assert judge._begun(path, other)["right"] == ["1"] and not (path / "seed_0").exists()
    (path / "summary.json").write_text('{"right": ["1"]}')  # from before
    assert "right" not in judge._begun(path, other)


def test_two_seeds_are_judged_each_and_as_one(files, tmp_path, monkeypatch):
    given, trained = {**settings(files), "epochs": 1, "num_seeds": 2, "seed": 5}, []

    def train(task, path, name, policy, seeds, *_):
        trained.append((name, seeds[0] // 2, policy.seed))
        return {"right": ["01" * 10] * 2, "diverged": []}

    monkeypatch.setattr(judge, "_train", train)
    path = small_runs.run_here(search, given, tmp_path / "run")
    assert [(name, seed) for name, seed, _ in trained] == [(row, n) for n in (5, 6, 7) for row in judge.ROWS]
    assert [seed for name, _, seed in trained if name == "found"] == [5, 6, None]  # the last one is merged
    for name in ("seed_5", "seed_6", "."):
        verdict = run_folder.read_summary(path / name)["verdict"]
        assert [row["mean"] for row in verdict["rows"]] == [50.0] * 4
        assert verdict["recommended"] == "none" and (path / name / "recommended.json").is_file()
    before = small_runs.snapshot(path)
    small_runs.run_here(search, given, path, resume=True)
    assert small_runs.snapshot(path) == before
    # Killed while the policy of all was judged.
    (path / "environment.json").unlink()
    small_runs.run_here(search, given, path, resume=True)
    assert len(trained) == 12  # nothing was trained again
    for name, (_, content) in before.items():
        if not name.endswith("environment.json"):
            assert pathlib.Path(name).read_bytes() == content, name
    assert [file.name for file in draw_all(path)] == ["agreement.png", "verdict.png"]
    # One seed more makes another policy of all, which is judged anew.
    small_runs.run_here(search, {**given, "num_seeds": 3}, path, resume=True)
    assert [(name, seed) for name, seed, _ in trained[12:]] == [
        (row, seed) for seed in (7, 8) for row in judge.ROWS
    ]
    made_of = run_folder.read_summary(path / "judge" / "found")["made_of"]
    merged = contents.of_policies([policies.load(path / "policy.json")])
    assert made_of == {"policy": merged, "seeds": [16, 17]}
