"""Verify: its parts pass as the library stands, and a line fails where something is broken."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_runs

from dada.gradients import bilevel, estimators
from dada.searches import dada
from experiments import verify
from experiments.data import datasets
from experiments.measure import verify_estimators, verify_hypergradient, verify_score
from experiments.runs import command_line


def test_hypergradients_pass_and_a_broken_one_fails(monkeypatch):
    assert all(line.passed for line in verify_hypergradient.quadratic_lines(0))
    true_hypergradient = bilevel.exact_hypergradient
    monkeypatch.setattr(
        bilevel, "exact_hypergradient", lambda *arguments: 1.001 * true_hypergradient(*arguments)
    )
    verdicts = [line.passed for line in verify_hypergradient.quadratic_lines(0)]
    assert verdicts == [True, False, True, False]


def test_estimators_pass_and_a_broken_one_fails(monkeypatch):
    """One run for both: most of it is compilation. `estimators_test` has the baseline as it is."""
    # Costs divided by their spread, as is often done, are no gradient of their mean.
    monkeypatch.setattr(estimators, "leave_one_out", lambda costs: (costs - costs.mean()) / costs.std())
    lines = {line.estimator: line for line in verify_estimators.estimator_lines(0, 32_000)}
    failed = {name for name, line in lines.items() if not line.passed}
    assert len(lines) == 5 and "REINFORCE, leave-one-out" in failed
    assert failed <= {"REINFORCE, leave-one-out", "RELAX, leave-one-out"}, lines
    assert lines["RELAX"].variance < 0.5 * lines["REINFORCE"].variance
    assert lines["REINFORCE"].bias < 0.3 * lines["Gumbel-softmax"].bias


def test_official_relax_passes_and_fails_without_a_control_variate(monkeypatch):
    assert [line.passed for line in verify_estimators.official_relax_lines(0, 8)] == [True, True]
    trained = verify_estimators._trained_control
    monkeypatch.setattr(
        verify_estimators, "_trained_control", lambda *args: jax.tree.map(jnp.zeros_like, trained(*args))
    )
    assert [line.passed for line in verify_estimators.official_relax_lines(0, 8)] == [True, False]


def _first_in_a_linear_problem(shares, lengths):
    """By form, which of four ops score highest when they are planted: g = length (own + share * common)."""
    own, common = np.eye(5)[:4], np.eye(5)[4]
    gradients = lengths[:, None] * (own + shares[:, None] * common)
    noise = 0.01 * np.random.default_rng(0).normal(size=(3, *gradients.shape))
    groups = [verify_score.scores(own + common, *(gradients + noisy,) * 2) for noisy in noise]
    return {
        form: (verify_score.ranks_and_distances(np.stack([one[form] for one in groups]))[0] == 1).tolist()
        for form in groups[0]
    }


def test_the_planted_op_is_first_by_the_right_score():
    found, longest = [True] * 4, [False] * 3 + [True]
    first = _first_in_a_linear_problem(shares=np.ones(4), lengths=np.array([1.0, 2.0, 3.0, 9.0]))
    assert first[verify_score.SAME] == first[verify_score.OWN] == longest
    assert first[verify_score.COSINE] == found


def test_scores_are_compared_and_a_broken_default_fails(monkeypatch, tmp_path):
    small_runs.write_data_set(tmp_path / "data.npz", 200, 10)
    dataset = datasets.load(str(tmp_path / "data.npz"))
    true_cosine = bilevel.cosine
    monkeypatch.setattr(bilevel, "cosine", lambda *vectors: -true_cosine(*vectors))
    # Fewer passes compile sooner.
    monkeypatch.setattr(dada, "Config", functools.partial(dada.Config, num_draws=2))
    lines = list(verify_score.score_lines(0, dataset, ("Invert", "FlipUD"), (1,), 2))
    assert [line.score for line in lines][::3] == [verify_score.MIXED, verify_score.COSINE]
    assert [line.steps for line in lines] == [1] * 4
    assert all(np.isfinite(line.distance) and 1 <= line.mean_rank <= 2 for line in lines)
    verdicts = {line.score: line.passed for line in lines}
    assert verdicts[verify_score.COSINE] and not verdicts[verify_score.SAME]


class Line(NamedTuple):
    what: str
    relative_error: float
    passed: bool


def test_table_and_exit_code(monkeypatch, capsys):
    lines = [Line("good", 0.0123, True), Line("bad", 2.0, False)]
    part = verify.Part("Title", "What it is about.", Line, lambda seed: lines[: seed + 1])
    monkeypatch.setattr(verify, "PARTS", (part,))
    for seed, code in ((0, 0), (1, 1)):
        with pytest.raises(SystemExit) as stopped:
            verify.main(*command_line.parse(verify.define, [f"--seed={seed}"]))
        assert stopped.value.code == code
    printed = capsys.readouterr().out
    assert "device " in printed and f"jax {jax.__version__}" in printed
    assert "1/1 Title\nWhat it is about.\n" in printed
    table = [line for line in printed.splitlines() if line.startswith(("  what", "  good", "  bad"))]
    assert [line.split() for line in table[-3:]] == [
        ["what", "relative", "error", "verdict"],
        ["good", "0.012", "ok"],
        ["bad", "2.0", "FAIL"],
    ]
    assert len({line.rstrip().rindex(end) for line, end in zip(table[-3:], ("verdict", "ok", "FAIL"))}) == 1
    assert printed.endswith("1 of 2 lines ok, 1 FAIL\n")


def test_an_argument_is_refused():
    with pytest.raises(ValueError, match="unexpected argument 'more'"):
        verify.main(*command_line.parse(verify.define, ["more"]))
