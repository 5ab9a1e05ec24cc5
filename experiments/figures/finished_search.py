"""Reads the run folder of a finished search and checks that it holds what a search writes.

Contract: reads flags.txt, metrics.jsonl, summary.json and policy.json; writes nothing. T steps, R ops.
"""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from dada import ops, policies
from dada.searches.dada import space as policy_space
from experiments.data import planting
from experiments.figures import figure_style
from experiments.runs import run_folder

_CURVES = ("train_loss", "valid_loss", "entropy", "op_mass")
_TASK_CURVES = {
    "classification": ("train_accuracy", "valid_accuracy"),
    "detection": ("train_box_loss", "valid_box_loss"),
}
# Of one method only.
_METHOD_CURVES = {"dada": (), "ddas": ("p_tp",)}
_METHOD_NUMBERS = {"dada": (), "ddas": ("p_tp_initial", "steps_per_epoch")}


class Planted(NamedTuple):
    """An op that was applied to the validation images."""

    name: str  # of its row
    op: str
    value: float
    text: str  # name and value, to be read


class FinishedSearch(NamedTuple):
    """What the figures need of a finished run."""

    path: pathlib.Path
    method: str
    flags: dict[str, str]
    summary: dict[str, Any]
    space: ops.SearchSpace
    metrics: dict[str, np.ndarray]  # [T] each, op_mass [T, R]
    policy: policies.Policy
    policy_mass: np.ndarray  # [R], of the policy file
    initial_mass: np.ndarray  # [R], of the distribution before the first step
    distribution: policy_space.Parameters | None  # probabilities and levels; of DADA only
    planted: list[Planted]  # in order of application


def read(path: str | os.PathLike) -> FinishedSearch:
    """Reads and checks the folder of a finished search.

    Raises:
      FileNotFoundError: not a run folder, or a run that has not finished.
      ValueError: a file does not hold what a search writes.
    """
    path = pathlib.Path(path)
    run_flags = run_folder.read_flags(path)
    summary = run_folder.read_summary(path)
    method = run_flags.get("method", "dada")
    if method not in _METHOD_CURVES:
        known = " or ".join(_METHOD_CURVES)
        raise ValueError(f"{path / 'flags.txt'}: got --method={method}, expected {known}")
    if method == "dada" and run_flags.get("preset") == "official":
        run_flags = {"policy_space": "pairs", **run_flags}  # it has no other
    for name in ("dataset", "search_space", *(("policy_space",) if method == "dada" else ())):
        if name not in run_flags:
            raise ValueError(f"{path / 'flags.txt'}: no --{name}, expected the flags of a search")
    policy = policies.load(path / "policy.json")
    space = policies.space(policy)
    names = [row.name for row in space.rows]
    masses = [_numbers(path, summary, key, names) for key in ("op_mass_policy_file", "op_mass_initial")]
    for name in _METHOD_NUMBERS[method]:
        if not isinstance(summary.get(name), int | float):
            raise ValueError(f"{path / 'summary.json'}, {name}: got {summary.get(name)!r}, expected a number")
    is_dada = method == "dada"
    relaxed = ("temperature",) if "temperature" in run_flags else ()
    of_task = _TASK_CURVES[run_flags.get("task", "classification")]
    return FinishedSearch(
        path,
        method,
        run_flags,
        summary,
        space,
        _read_metrics(path, len(names), (*_CURVES, *of_task, *_METHOD_CURVES[method], *relaxed)),
        policy,
        *masses,
        _read_distribution(path, summary, run_flags["policy_space"], len(names)) if is_dada else None,
        read_planted(path, run_flags, space),
    )


def _numbers(path, summary, key, names):
    values = summary.get(key)
    if not isinstance(values, dict) or list(values) != names:
        raise ValueError(f"{path / 'summary.json'}, {key}: expected a number for each of {', '.join(names)}")
    return np.array([values[name] for name in names], np.float64)


def _read_distribution(path, summary, kind, num_ops):
    expected = jax.eval_shape(lambda: policy_space.init(kind, num_ops))
    distribution = summary.get("distribution") or {}
    leaves = []
    for name, leaf in expected._asdict().items():
        array = np.array(distribution.get(name, np.nan), np.float64)
        if array.shape != leaf.shape:
            raise ValueError(
                f"{path / 'summary.json'}, distribution.{name}: got shape {array.shape}, "
                f"expected {leaf.shape}"
            )
        leaves.append(array)
    return policy_space.Parameters(*leaves)


def _read_metrics(path, num_ops, curves):
    lines = run_folder.read_metrics(path)
    file = path / "metrics.jsonl"
    if not lines:
        raise FileNotFoundError(f"{file}: no metrics, expected a line for each step of the search")
    columns = {}
    for name in ("step", *curves):
        missing = [number for number, line in enumerate(lines, start=1) if name not in line]
        if missing:
            raise ValueError(f"{file}, line {missing[0]}: no {name!r}, expected the metrics of a search")
        columns[name] = np.array([line[name] for line in lines], np.float64)  # null becomes NaN
    expected = (len(lines), num_ops)
    if columns["op_mass"].shape != expected:
        raise ValueError(f"{file}, op_mass: got shape {columns['op_mass'].shape}, expected {expected}")
    return columns


def read_planted(path: pathlib.Path, run_flags: dict[str, str], space: ops.SearchSpace) -> list[Planted]:
    """The planted ops of the flags of a run; ValueError if one is not in its search space."""
    found = []
    for name, value in planting.parse(run_flags.get("planted_op")):
        index = planting.row_of(space, name, value)
        if index is None:
            raise ValueError(f"{path / 'flags.txt'}, planted_op: {name} is not an op of the search space")
        row = space.rows[index]._replace(random_sign=False)
        text = figure_style.value_text(row, value) if row.unit else ""
        found.append(Planted(row.name, row.op, value, f"{name} {text}".strip()))
    return found
