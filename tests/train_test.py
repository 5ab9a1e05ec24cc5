"""The training binary: same bits after a kill, last and best epoch, recipes, one line on bad input."""

import json

import jax
import numpy as np
import pytest
import small_runs
from PIL import Image, ImageEnhance

from dada import policies
from dada.models import wide_resnet
from dada.training import policy_training, sgd
from experiments import plot, train
from experiments.data import datasets
from experiments.runs import command_line, compiled_loop, run_flags, run_folder

RECIPES = sorted((small_runs.ROOT / "experiments" / "flags").glob("train_*.flags"))
SMALL = {
    "model": "wrn_10_1",
    "policy": "dada_cifar10",
    "epochs": 5,
    "batch_size": 16,
    "eval_batch_size": 5,
    "learning_rate": 0.05,
    "crop_padding": 1,
    "cutout_length": 2,
}
TIMES = {"seconds": 0, "seconds_train": 0}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    small_runs.write_data_set(folder / "tiny.npz", 84, 12)
    tall = np.zeros((20, 8, 6, 3), np.uint8)
    np.savez(folder / "tall.npz", images=tall, labels=np.arange(20) % 4)
    small_runs.write_folder(folder / "folder", np.random.default_rng(0), 2, 1)
    policies.save(folder / "rotate90.json", policies.from_sequences("dada", [[]], extra_ops=("Rotate90",)))
    return folder


def settings(folder):
    return {**SMALL, "dataset": str(folder / "tiny.npz")}


def run(folder, name, **changes):
    return small_runs.run_here(train, settings(folder), folder / name, **changes)


def start(folder, name, *more):
    return small_runs.start(train, settings(folder), folder / name, *more)


def weights(path):
    """The last checkpoint of a run."""
    params, stats = wide_resnet.init(jax.random.key(0), wide_resnet.Config(10, 1, 4))
    return run_folder.RunFolder(path).restore(sgd.init(params, stats))


def without_times(path):
    return [{**line, **TIMES} for line in run_folder.read_metrics(path)]


@pytest.fixture(scope="module")
def finished(files):
    return run(files, "first")


def test_a_run_leaves_its_folder(finished):
    summary, lines = run_folder.read_summary(finished), run_folder.read_metrics(finished)
    assert [line["epoch"] for line in lines] == list(range(1, 6))
    assert [line["step"] for line in lines] == list(range(5, 26, 5))  # 84 // 16, the last part is dropped
    assert int(weights(finished).step) == 25
    errors = [1 - line["test_accuracy"] for line in lines]
    assert summary["last"]["epoch"] == 5 and summary["last"]["test_error"] == errors[-1]
    assert summary["best"]["test_error"] == min(errors)
    assert summary["best"]["epoch"] == 1 + errors.index(min(errors))
    assert all(abs(12 * error - round(12 * error)) < 1e-9 for error in errors)  # twelve test images
    assert summary["num_parameters"] == 77_796 and summary["recipe"]["policy"] == "dada_cifar10"
    assert not {"seed", "run_dir", "smoke"} & set(summary["recipe"])
    assert abs(sum(summary["op_mass"].values()) - 1.0) < 0.5
    assert min(summary[k] for k in ("seconds_compile", "seconds_run", "images_per_second")) > 0
    written = policies.load(finished / "policy.json")
    assert policies.to_json(written) == policies.to_json(policies.load("dada_cifar10"))
    assert (finished / "figures" / "curves.png").stat().st_size > 10_000
    assert json.loads((finished / "environment.json").read_text())["platform"] == "cpu"


def test_top_5_errors_are_told_from_100_classes_on(files, finished, capsys):
    images = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 3)).astype(np.uint8)
    labels = np.arange(100)
    arrays = {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}
    np.savez(files / "many.npz", **arrays)
    path = run(files, "many", dataset=files / "many.npz", epochs=1, policy="none", eval_batch_size=100)
    (line,), result = run_folder.read_metrics(path), run_folder.read_summary(path)["last"]
    assert line["test_accuracy"] <= line["test_top_5_accuracy"] < 0.5
    assert result["test_top_5_error"] == 1 - line["test_top_5_accuracy"]
    assert f"top-5 error {100 * result['test_top_5_error']:.2f} %" in capsys.readouterr().out
    assert "test_top_5_accuracy" not in run_folder.read_metrics(finished)[0]


def test_plot_draws_the_same_figure_again(finished, capsys):
    figure = finished / "figures" / "curves.png"
    before = figure.read_bytes()
    figure.unlink()
    plot.main(*command_line.parse(plot.define, [str(finished)]))
    assert figure.read_bytes() == before and str(figure) in capsys.readouterr().out


def test_the_network_learns(finished):
    lines = run_folder.read_metrics(finished)
    assert lines[-1]["train_loss"] < 0.7 * np.log(4) < lines[0]["train_loss"]


def test_a_planted_op_is_on_the_test_images_only(files, finished):
    lines = [run_folder.read_metrics(path) for path in (finished, run(files, "planted", planted_op="Invert"))]
    assert [line["train_loss"] for line in lines[0]] == [line["train_loss"] for line in lines[1]]
    # The classes differ in brightness: the darkest and the brightest change places.
    assert lines[0][-1]["test_accuracy"] > lines[1][-1]["test_accuracy"] + 0.4


def test_planted_ops_are_applied_one_after_another(files):
    dataset = datasets.load(str(files / "tiny.npz"))
    text = "Invert,Brightness:0.5,Rotate:90"
    planted, _ = small_runs.task(train, settings(files), dataset, planted_op=text)
    for number, image in enumerate(dataset.test_images):
        after = ImageEnhance.Brightness(Image.fromarray(255 - image)).enhance(0.5).rotate(90)
        np.testing.assert_array_equal(planted.data.test_images[number], after)


def test_killed_three_times_and_resumed_is_the_straight_run(files, finished):
    killed, generator = run_folder.RunFolder(files / "killed"), np.random.default_rng(0)
    small_runs.kill_at_random(start(files, "killed"), killed.path, 0, 1, generator)
    # While a checkpoint is written.
    checkpoints = killed.path / "checkpoints"
    process, before = start(files, "killed", "--resume"), killed.latest_step() or 0
    half_written = f"{before + 5}.orbax-checkpoint-tmp"  # the first kill may have left one, too
    small_runs.kill_when(
        process, lambda: small_runs.is_open(killed.path, 1) and list(checkpoints.glob(half_written))
    )
    assert (killed.latest_step() or 0) in (before, before + 5)
    small_runs.kill_at_random(start(files, "killed", "--resume"), killed.path, 2, 3, generator)
    assert not (files / "killed" / "summary.json").exists()
    assert killed.latest_step() < 25
    small_runs.run(train, settings(files), files / "killed", "--resume")
    jax.tree.map(np.testing.assert_array_equal, weights(finished), weights(files / "killed"))
    for name in ("policy.json", "inputs.json", "figures/curves.png"):
        assert (killed.path / name).read_bytes() == (finished / name).read_bytes(), name
    assert {path.name for path in killed.path.iterdir()} == {path.name for path in finished.iterdir()}
    assert without_times(files / "killed") == without_times(finished)
    summaries = [run_folder.read_summary(path) for path in (finished, files / "killed")]
    assert summaries[0]["best"] == summaries[1]["best"]


def test_a_finished_run_is_not_changed(files, finished, capsys):
    before = small_runs.snapshot(finished)
    policies.save(files / "same.json", policies.load("dada_cifar10"))
    for changes in ({}, {"policy": files / "same.json", "eval_batch_size": 7}):
        run(files, "first", resume=True, **changes)
        assert capsys.readouterr().out == f"{finished} is finished: nothing is changed\n"
    for changes, message in (
        ({"policy": "random:3"}, "first: policy: got .*, expected .*, with which this run started"),
        ({"dataset": "embedded"}, "first: training images: got "),
        ({"epochs": 6}, "was run with --epochs=5, got 6"),
    ):
        with pytest.raises(ValueError, match=message):
            run(files, "first", resume=True, **changes)
    assert small_runs.snapshot(finished) == before


def test_seeds_have_folders_of_their_own(files, finished):
    both = run(files, "both", num_seeds=2)
    before = small_runs.snapshot(both)
    run(files, "both", num_seeds=2, resume=True)
    assert small_runs.snapshot(both) == before
    assert without_times(both / "seed_0") == without_times(finished)
    assert without_times(both / "seed_1") != without_times(finished)


def test_seeds_at_once_on_an_accelerator_are_the_seeds_one_by_one(files, finished, monkeypatch):
    monkeypatch.setattr(compiled_loop, "scans", lambda: True)
    # Two epochs of the same schedule: scans of convolutions are slow on a CPU.
    both = run(files, "at_once", num_seeds=2, epochs=2, cosine_epochs=5.0)
    assert run_folder.read_summary(both / "seed_1")["seeds_at_once"] == 2
    scanned, single = (run_folder.read_metrics(path)[:2] for path in (both / "seed_0", finished))
    assert [line["step"] for line in scanned] == [line["step"] for line in single] == [5, 10]
    for name in ("train_loss", "learning_rate"):
        np.testing.assert_allclose(
            [line[name] for line in scanned], [line[name] for line in single], rtol=0.02, atol=0.002
        )


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(files):
    with pytest.raises(command_line.Interrupted, match=r"seed 0 is not finite at step [23] .*diverged"):
        run(files, "diverged", policy="none", learning_rate=1e30, clip_norm=0.0)
    assert run_folder.read_metrics(files / "diverged") == []
    assert run_folder.RunFolder(files / "diverged").latest_step() is None


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_read_and_say_what_they_reproduce(path, files, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)  # a recipe names another
    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    assert "Hours and hardware" in header[-1] and len(header) >= 3
    dataset = small_runs.data_of_recipe(path, files)
    given = [f"--flagfile={path}", *dataset, "--batch_size=4", "--num_devices=1"]
    resolved = train.resolve(given)
    task = train.task_of(resolved, run_flags.load_dataset(resolved))
    assert task.config.num_epochs == int(text.split("--epochs=")[1].split()[0])


@pytest.mark.parametrize(
    ("recipe", "rates"),
    [
        ("resnet_50_dada", {0: 0.2, 1: 0.2667, 3: 0.4, 92: 0.4, 93: 0.04, 183: 0.004, 243: 0.0004}),
        ("resnet_50_ddas", {0: 0.2, 89: 0.2, 90: 0.02, 180: 0.002, 240: 0.0002}),
        ("resnet_200_ddas", {0: 0.05, 3: 0.1, 92: 0.1, 93: 0.01}),
        ("resnet_50_trivialaugment", {0: 0.2, 3: 0.8, 92: 0.8, 93: 0.08}),
        ("resnet_50_randaugment", {0: 0.2, 3: 0.8, 93: 0.08}),
        ("resnet_50_fast_autoaugment", {0: 0.1, 3: 0.2, 93: 0.02}),
        ("resnet_50_deepaa", {0: 0.1, 5: 0.8, 94: 0.8, 95: 0.08, 185: 0.008, 245: 0.0008}),
    ],
)
def test_rates_of_the_imagenet_recipes_are_those_of_the_papers(recipe, rates, files, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)  # a recipe names another
    path = small_runs.ROOT / "experiments" / "flags" / f"train_imagenet_{recipe}.flags"
    resolved = train.resolve([f"--flagfile={path}", "--batch_size=4", "--num_devices=1"])
    assert recipe.startswith(resolved["model"]) and resolved["clip_norm"] == 0
    assert resolved["weight_decay"] == 1e-4 and resolved["decay_batch_norm"] == ("deepaa" not in recipe)
    dataset = run_flags.load_dataset({**resolved, "dataset": str(files / "folder")})
    task = train.task_of({**resolved, "model": "wrn_10_1"}, dataset)
    assert (task.native_policy is not None) == (resolved["policy_position"] == "native")
    for epoch, rate in rates.items():
        found = policy_training.learning_rate(task.config, epoch * task.config.steps_per_epoch)
        np.testing.assert_allclose(found, rate, rtol=1e-3)


def test_smoke_takes_two_steps_and_writes_nothing(files, capsys):
    path = small_runs.ROOT / "experiments" / "flags" / "train_cifar10_wrn_28_10_trivialaugment_8_copies.flags"
    small = ("--model=wrn_10_1", "--batch_size=4", f"--run_dir={files / 'smoke'}", "--smoke")
    given = [f"--flagfile={path}", f"--dataset={files / 'tiny.npz'}", "--num_devices=1", *small]
    train.main(*command_line.parse(train.define, given))
    shown = capsys.readouterr().out
    assert "wrn_10_1, 77,796 parameters, loss" in shown and "in two steps of 4 images" in shown
    train.main(*command_line.parse(train.define, [*given, "--batch_size=2048"]))  # on a CPU not so many
    assert "in two steps of 32 images" in capsys.readouterr().out
    assert not (files / "smoke").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "resnet"}, "--model: models: expected a network"),
        ({"model": "wrn_11_1"}, "--model: wide_resnet: expected depth 6 n"),
        ({"final_crop": 9}, "--final_crop=9: expected no more than 8, which the images have"),
        ({"dataset": "mnist"}, "data set 'mnist': expected one of embedded"),
        ({"dataset": "cifar10"}, "needs --data_dir"),
        ({"policy": "dada_cifar11"}, "--policy: policy: got 'dada_cifar11', expected a file or one of"),
        ({"policy": "randaugment:2"}, "--policy: got 'randaugment:2', expected one of none, random:SEED"),
        ({"policy": "randaugment:2,31"}, "M = 31, expected N of 1 or more and M in 0..30"),
        ({"batch_size": 128}, "has only 84 training images"),
        ({"schedule": "step"}, "decay_epochs: got none"),
        ({"decay_epochs": ["30"]}, "--decay_epochs has no effect with --schedule=cosine"),
        ({"schedule": "step", "cosine_epochs": 3}, "--cosine_epochs has no effect with --schedule=step"),
        ({"schedule": "step", "decay_epochs": ["30", "x"]}, "--decay_epochs: got 30,x, expected numbers"),
        ({"planted_op": "Inverse"}, "--planted_op: got 'Inverse'"),
        ({"planted_op": "Rotate"}, "--planted_op=Rotate: got no value, expected Rotate:NUMBER"),
        ({"planted_op": "Invert,Rotate"}, "--planted_op=Rotate: got no value"),
        ({"planted_op": "Rotate:nan"}, "got 'Rotate:nan', expected a finite value"),
        ({"warmup_multiplier": 4.0}, "warm-up: got multiplier 4.0 over 0"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(files, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(files, "refused", **changes)
    assert not (files / "refused").exists()


def test_a_policy_for_square_images_is_refused_on_others(files):
    changes = {"dataset": str(files / "tall.npz"), "policy": str(files / "rotate90.json"), "batch_size": 8}
    with pytest.raises(ValueError, match="Rotate90 needs square images, got 8 x 6"):
        run(files, "refused", **changes)


def test_a_run_of_another_network_is_not_resumed(files, finished):
    before = (finished / "summary.json").read_bytes()
    with pytest.raises(ValueError, match="not an empty folder"):
        run(files, "first")
    with pytest.raises(ValueError, match=r"was run with --model=wrn_10_1, got wrn_16_1"):
        run(files, "first", resume=True, model="wrn_16_1")
    assert (finished / "summary.json").read_bytes() == before


def test_the_process_fails_with_one_line_and_exit_code_2(files):
    process = start(files, "refused", "--policy=deepaa_cifar_3")
    small_runs.assert_fails_with_one_line(process, "got 'deepaa_cifar_3', expected a file or one of")
