"""Verify: its parts pass as the library stands, and a line fails where something is broken."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from dada.gradients import bilevel, estimators
from experiments import verify
from experiments.measure import verify_estimators, verify_hypergradient
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
