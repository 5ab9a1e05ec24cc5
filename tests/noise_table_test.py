"""What the original search learns: spreads of policies, and of the walk that its rules make of noise."""

import json

import jax
import pytest

from dada import policies
from experiments import noise_table
from experiments.runs import command_line
from experiments.summaries import noise_simulation


def test_published_policies_have_the_spread_of_noise():
    # Expected of the noise: what an independent simulation gave, 0.090 and 0.065 over 12 runs.
    published = noise_table.spread(policies.load("dada_cifar10"))
    assert published == pytest.approx((0.090, 0.058, 0.083, 0.973), abs=0.001)
    keys = jax.random.split(jax.random.key(1), 6)
    spreads = [noise_table.spread(noise_simulation.simulate(key, 304)) for key in keys]
    means = [sum(column) / len(spreads) for column in zip(*spreads)]
    assert means[:2] == pytest.approx([0.090, 0.062], abs=0.015) and means[3] == pytest.approx(1.0, abs=0.05)
    assert spreads[0] != spreads[1]


def test_the_noise_table_names_what_was_not_run(tmp_path):
    line = {"name": "CIFAR-10", "steps": 304, "published": "dada_cifar10", "found": "found_*.json"}
    (tmp_path / "table.json").write_text(json.dumps({"tasks": [line]}))
    (task,) = noise_table.read_tasks(tmp_path, 2)
    text = noise_table.markdown([task])
    assert "| CIFAR-10 (304) | s.d. of the probabilities | not run | 0.090 | " in text
    for seed in (0, 1):
        policies.save(tmp_path / f"found_{seed}.json", policies.random_policy(seed))
    noise_table.main(*command_line.parse(noise_table.define, ["--simulations=2", str(tmp_path)]))
    assert "(n = 2)" in (tmp_path / "table.md").read_text() and (tmp_path / "table.png").exists()
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 1 + 4 * 3
    (tmp_path / "table.json").write_text(json.dumps({"tasks": [{"name": "x"}]}))
    with pytest.raises(ValueError, match="task 0 has name, expected name, steps"):
        noise_table.read_tasks(tmp_path, 2)
