"""Every recipe takes its two smoke steps with its own network; `-m slow` runs those that take minutes."""

import numpy as np
import pytest
import small_runs

from experiments import train
from experiments.runs import command_line

RECIPES = sorted((small_runs.ROOT / "experiments" / "flags").glob("train_*.flags"))
# Compiling a deep network takes ten seconds to minutes: one recipe in every test run, the others if asked.
QUICK = ("train_cifar10_wrn_40_2_dada",)
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
