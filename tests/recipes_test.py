"""Every recipe takes its two smoke steps with its own network; `-m slow` runs those that take minutes."""

import jax
import numpy as np
import pytest
import small_runs

from dada.models import resnet
from experiments import search, train
from experiments.data import reduced_imagenet
from experiments.runs import command_line, pretrained, run_flags

RECIPES = sorted((small_runs.ROOT / "experiments" / "flags").glob("train_*.flags"))
# Compiling a deep network takes ten seconds to minutes: the small one in every test run, the others if asked.
QUICK = ("train_quick",)
CASES = [
    pytest.param(path, id=path.stem, marks=() if path.stem in QUICK else pytest.mark.slow) for path in RECIPES
]


def test_the_quick_ones_exist():
    assert {path.stem for path in RECIPES} > set(QUICK)


@pytest.mark.parametrize("path", CASES)
def test_a_recipe_takes_its_smoke_steps(path, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)
    small_runs.write_data_set(tmp_path / "tiny.npz", 12, 4)
    small_runs.write_folder(tmp_path / "folder", np.random.default_rng(0), 2, 1)
    dataset = small_runs.data_of_recipe(path, tmp_path)
    small = [*dataset, "--batch_size=2", f"--run_dir={tmp_path / 'run'}"]
    flags = [f"--flagfile={path}", *small, "--num_devices=1", "--smoke"]
    train.main(*command_line.parse(train.define, flags))
    assert "parameters, loss" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", ["dada", "ddas", "deepaa"])
def test_the_searches_of_imagenet_are_built_from_their_flag_files(method, tmp_path, monkeypatch):
    monkeypatch.chdir(small_runs.ROOT)
    monkeypatch.setattr(reduced_imagenet, "reduce", lambda name, dataset: dataset)
    small_runs.write_folder(tmp_path / "folder", np.random.default_rng(0), 80, 1)
    shapes = jax.eval_shape(lambda: resnet.init(jax.random.key(0), resnet.Config(50, 4)))
    weights = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    monkeypatch.setattr(pretrained, "load", lambda path, *_, **__: weights if path else ({}, {}))
    path = small_runs.ROOT / "experiments" / "flags" / f"{method}_imagenet.flags"
    small = ["--num_train=128", "--num_valid=16", "--valid_batch_size=4", "--num_devices=1"]
    small += ["--pretrained=a.npz"] * (method == "deepaa")
    given = [f"--flagfile={path}", f"--dataset={tmp_path / 'folder'}", *small]
    settings = search.resolve(given)
    task = search.task_of(settings, run_flags.load_dataset(settings))
    assert np.bincount(task.data.valid.labels).tolist() == [4] * 4
    images = np.zeros((1, *task.dataset.train_images.shape[1:]), np.float32)
    logits, _ = jax.eval_shape(lambda images: task.config.apply(*weights, images, False), images)
    assert logits.shape == (1, 4)
