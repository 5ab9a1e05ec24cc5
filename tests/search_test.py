"""The search binary: same bytes from the same seed, also after a kill; files; one line on bad input."""

import json
import shutil
import sys

import numpy as np
import pytest
import small_runs

from dada import policies
from experiments import search
from experiments.runs import command_line, compiled_loop, run_folder

SMALL = {
    "model": "wrn_10_1",
    "epochs": 3,
    "batch_size": 16,
    "crop_padding": 1,
    "cutout_length": 2,
    "extra_ops": ["Rotate90"],
    "planted_op": "Rotate90",
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    small_runs.write_data_set(folder / "tiny.npz", 80, 8)
    return folder


def settings(folder):
    return {**SMALL, "dataset": str(folder / "tiny.npz")}


def run_here(folder, name, **changes):
    return small_runs.run_here(search, settings(folder), folder / name, **changes)


def run(folder, name, *more):
    return small_runs.run(search, settings(folder), folder / name, *more)


def start(folder, name, *more):
    return small_runs.start(search, settings(folder), folder / name, *more)


@pytest.fixture(scope="module")
def finished(files):
    """Seed 0 of a run with two seeds, which had to compile its programs."""
    before = small_runs.compiled_programs()
    both = run(files, "both", "--num_seeds=2", "--measure_cost")
    assert len(small_runs.compiled_programs() - before) > 10
    return both / "seed_0"


def test_a_run_leaves_its_folder(finished):
    summary = run_folder.read_summary(finished)
    lines = run_folder.read_metrics(finished)
    assert [line["step"] for line in lines] == list(range(1, 10)) == list(range(1, summary["steps"] + 1))
    assert summary["seconds_compile"] > 0 and summary["seconds_run"] > 0
    assert summary["plain_step_ratio"] > 1
    space = policies.space(policies.load(finished / "policy.json"))
    assert set(summary["op_mass"]) == {row.name for row in space.rows}
    assert abs(sum(summary["op_mass_initial"].values()) - 1.0) < 1e-5  # two ops with probability one half
    assert [op["row"] for op in summary["planted"]] == ["Rotate90"]
    figures = {path.name for path in (finished / "figures").glob("*.png")}
    assert {"policy.png", "curves.png", "ops.png", "sample_images.png", "augmented_images.png"} <= figures
    written = run_folder.read_flags(finished)
    assert written["search_space"] == "directed" and written["policy_learning_rate"] == "0.05"
    assert json.loads((finished / "environment.json").read_text())["platform"] == "cpu"


def test_another_seed_finds_another_policy(files, finished):
    one, other = (json.loads((files / "both" / f"seed_{i}" / "policy.json").read_text()) for i in (0, 1))
    assert one["seed"] == 0 and other["seed"] == 1 and one["sub_policies"] != other["sub_policies"]


def test_all_seeds_give_one_policy_also_when_one_of_them_is_resumed(files, finished):
    both, again = finished.parent, files / "again"
    masses = [policies.op_mass(policies.load(both / f"seed_{seed}" / "policy.json")) for seed in (0, 1)]
    merged = policies.op_mass(policies.load(both / "policy.json"))
    np.testing.assert_allclose(
        list(merged.values()), np.mean([list(mass.values()) for mass in masses], 0), atol=1e-9
    )
    summary = run_folder.read_summary(both)
    assert summary["seeds"] == [0, 1] and summary["planted_ops"] == ["Rotate90"]
    assert summary["agreement"]["Rotate90"]["op_mass"] == [mass["Rotate90"] for mass in masses]
    assert (both / "figures" / "agreement.png").exists()
    shutil.copytree(both, again)
    for path in (again / "seed_1", again / "figures"):
        shutil.rmtree(path)
    names = ("policy.json", "summary.json")
    for name in names:
        (again / name).unlink()
    run(files, "again", "--num_seeds=2", "--resume")
    for name in names:
        assert (again / name).read_bytes() == (both / name).read_bytes()


def without_times(path):
    summary = run_folder.read_summary(path)
    for name in ("seconds_run", "seconds_compile", "seeds_at_once", "plain_step_ratio"):
        summary.pop(name, None)
    for op in summary["planted"]:
        op.pop("seconds_until_it_leads")
    return summary


def test_same_seed_same_bytes_alone_and_killed_twice_and_resumed(files, finished):
    killed, compiled = files / "killed", small_runs.compiled_programs()
    # In the middle of the second epoch.
    small_runs.kill_when(start(files, "killed"), lambda: len(run_folder.read_metrics(killed)) >= 5)
    assert small_runs.compiled_programs() == compiled  # it found all of its programs
    assert not (killed / "policy.json").exists()
    assert run_folder.RunFolder(killed).latest_step() == 3
    generator = np.random.default_rng(1)
    process = start(files, "killed", "--resume")
    small_runs.kill_at_random(process, killed, 1, generator.integers(4, 9), generator)
    # As if killed while a checkpoint is written: before its rename, before its last file.
    checkpoints, last = killed / "checkpoints", run_folder.RunFolder(killed).latest_step()
    for name in (f"{last + 1}.orbax-checkpoint-tmp", str(last + 2)):
        shutil.copytree(checkpoints / str(last), checkpoints / name)
    (checkpoints / str(last + 2) / "_CHECKPOINT_METADATA").unlink()
    (killed / "summary.json.part").write_text("{")
    run(files, "killed", "--resume")
    assert len(run_folder.read_environment(killed)["resumed"]) == 2
    names = ["policy.json", "inputs.json", *(f"figures/{path.name}" for path in finished.glob("figures/*"))]
    for name in names:
        assert (killed / name).read_bytes() == (finished / name).read_bytes(), name
    assert {path.name for path in killed.iterdir()} == {path.name for path in finished.iterdir()}
    assert without_times(killed) == without_times(finished)
    for straight, resumed in zip(*map(run_folder.read_metrics, (finished, killed)), strict=True):
        assert {**straight, "seconds": 0} == {**resumed, "seconds": 0}


def test_a_finished_search_is_not_changed(files, finished, capsys):
    before = small_runs.snapshot(finished.parent)
    for changes in ({}, {"measure_cost": True}, {"max_steps": 4}):
        run_here(files, "both", num_seeds=2, resume=True, **changes)
        assert capsys.readouterr().out == f"{files / 'both'} is finished: nothing is changed\n"
    small_runs.write_data_set(files / "other.npz", 88, 8)
    with pytest.raises(ValueError, match=r"both/seed_0: training images: got \[88, 8, 8, 3\]"):
        run_here(files, "both", num_seeds=2, resume=True, dataset=files / "other.npz")
    with pytest.raises(ValueError, match="holds a run of one seed, got --num_seeds=2"):
        run_here(files, "both/seed_0", num_seeds=2, resume=True)
    assert small_runs.snapshot(finished.parent) == before


def test_seeds_at_once_on_an_accelerator_are_the_seeds_one_by_one(files, finished, monkeypatch):
    monkeypatch.setattr(compiled_loop, "scans", lambda: True)
    monkeypatch.setattr(search.finished_run, "draw", lambda *arguments: [])
    both = run_here(files, "at_once", num_seeds=2, max_steps=2)
    for seed in (0, 1):
        assert run_folder.read_summary(both / f"seed_{seed}")["seeds_at_once"] == 2
    scanned, single = (run_folder.read_metrics(path)[:2] for path in (both / "seed_0", finished))
    assert [line["step"] for line in scanned] == [line["step"] for line in single]
    for name in ("train_loss", "valid_loss", "op_mass"):
        np.testing.assert_allclose(
            [line[name] for line in scanned], [line[name] for line in single], rtol=0.02, atol=0.002
        )


def test_official_preset_and_max_steps(files):
    changes = {"preset": "official", "max_steps": 2, "extra_ops": []}
    changes |= {"planted_op": "Invert,Brightness:0.5", "num_valid": 18, "exclude_ops": ["Rotate", "Cutout"]}
    official = run_here(files, "official", **changes)
    found = policies.load(official / "policy.json")
    assert (found.search_space, found.preset, found.content.weight) == ("dada", "official", None)
    assert found.excluded_ops == ("Rotate", "Cutout") and len(policies.space(found).rows) == 13
    summary = run_folder.read_summary(official)
    assert len(found.content.row) == 25 and summary["steps"] == 2
    assert [(op["row"], op["value"]) for op in summary["planted"]] == [("Invert", 0.8), ("Brightness", 0.5)]
    assert run_folder.read_flags(official)["planted_op"] == "Invert:0.8,Brightness:0.5"
    before = small_runs.snapshot(official)
    run_here(files, "official", resume=True, **changes)
    with pytest.raises(ValueError, match="--measure_cost: expected a search that goes on"):
        run_here(files, "official", resume=True, measure_cost=True, **changes)
    assert small_runs.snapshot(official) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet"}, "expected a network of the form wrn_"),
        ({"dataset": "mnist"}, "data set 'mnist': expected one of embedded"),
        ({"dataset": "missing.npz"}, "missing.npz"),
        ({"dataset": "cifar10"}, "needs --data_dir"),
        ({"search_space": "adda"}, "search space: got 'adda', expected one of dada, strength"),
        ({"extra_ops": ["Rotate91"]}, "Rotate91"),
        ({"planted_op": "Inverse"}, "--planted_op: got 'Inverse'"),
        ({"planted_op": "Brightness:dark"}, "expected NAME or NAME:NUMBER"),
        ({"planted_op": "Brightness:nan"}, "expected a finite value that changes the images"),
        ({"planted_op": "Rotate:0"}, "expected a finite value that changes the images"),
        ({"planted_op": "FlipUD"}, "--extra_ops=FlipUD adds it"),
        ({"planted_op": "TranslateXAbs:3"}, "TranslateXAbs is not in the search space, whose ops are ShearX"),
        ({"planted_op": "Rotate90,Rotate:0"}, "got 'Rotate:0', expected a finite value that changes"),
        ({"planted_op": "Rotate90,"}, "--planted_op: got '', expected one of"),
        ({"num_valid": 41}, "--num_valid=41: the search has only 40 such images"),
        ({"num_train": 41}, "--num_train=41: the search has only 40 such images"),
        ({"batch_size": 4000}, "has only 40"),
        (
            {"preset": "official", "policy_space": "slots"},
            "--policy_space=slots has no effect with --preset=official",
        ),
        ({"preset": "official", "score": "exact"}, "--score=exact has no effect with --preset=official"),
        (
            {"preset": "official", "estimator": "reinforce"},
            "--estimator=reinforce: expected relax with --preset=official",
        ),
        (
            {"preset": "official", "dtype": "bfloat16"},
            "--dtype=bfloat16 has no effect with --preset=official",
        ),
        (
            {"score": "exact", "hypergradient": "finite_difference", "dtype": "bfloat16"},
            "--dtype=bfloat16: got --hypergradient=finite_difference, expected exact",
        ),
        ({"method": "ddas", "dtype": "bfloat16"}, "--dtype belongs to --method=dada, got --method=ddas"),
        (
            {"policy_space": "slots", "estimator": "gumbel"},
            "--estimator=gumbel has no effect with --score=cosine; --score=exact reads it",
        ),
        (
            {"score": "exact", "estimator": "straight_through", "policy_space": "triples"},
            "policy_space: got 'triples', expected slots with estimator 'straight_through'",
        ),
        ({"policy_space": "slots", "top_k": 10}, "--top_k=10 has no effect with --policy_space=slots"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_here(files, "refused", **changes)
    assert not (files / "refused").exists()


def test_a_run_folder_with_content_is_not_overwritten(files, finished):
    before = (finished / "policy.json").read_bytes()
    with pytest.raises(ValueError, match="not an empty folder"):
        run_here(files, "both/seed_0")
    with pytest.raises(ValueError, match=r"was run with --epochs=3, got 4"):
        run_here(files, "both/seed_0", resume=True, epochs=4)
    assert (finished / "policy.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--epoch=3", "unknown flag --epoch; did you mean --epochs?"),
        ("--planted_op=Inverse", "--planted_op: got 'Inverse'"),
    ],
)
def test_the_process_fails_with_one_line_and_exit_code_2(files, argument, message):
    small_runs.assert_fails_with_one_line(start(files, "refused", argument), message)
    assert not (files / "refused").exists()


@pytest.mark.parametrize(
    ("argument", "message"),
    [("--draws=all", "draws"), ("--epochs=many", "epochs"), ("--flagfile=missing.flags", "missing.flags")],
)
def test_flags_that_cannot_be_read_end_with_one_line_and_exit_code_2(argument, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search", argument])
    with pytest.raises(SystemExit) as stopped:
        command_line.run(search.define, search.main)
    assert stopped.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors


def test_arguments_that_are_no_flags_are_refused():
    with pytest.raises(ValueError, match=r"unexpected argument 'policy\.json'"):
        search.main(*command_line.parse(search.define, ["policy.json"]))
