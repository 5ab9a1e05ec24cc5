"""What the seeds of a search found together: one policy, and how far they agree, op by op.

    RUN_DIR/policy.json     the policies of all seeds, merged (`policies.merge`)
    RUN_DIR/summary.json    seeds; op_mass of that policy; op_mass_initial; planted_ops; agreement: by op the
                            op_mass of each seed, its mean and standard deviation, and seeds_above_start;
                            the largest mean comes first

An op is above its start in a seed k in which it has a larger share of all applications than before the first
step, whatever became of their number: m_k(o) / sum m_k > m_0(o) / sum m_0, with op masses m. By chance alone
that happens in every other seed or so: what only one seed finds is noise.

Contract: reads the finished run folders of the seeds; the same folders give the same bytes.
"""

import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from dada import policies
from experiments.runs import run_folder


def write(path: str | os.PathLike, folders: dict[int, run_folder.RunFolder]) -> dict[str, Any]:
    """Writes both files into the folder around those of the seeds, given by seed; returns the summary.

    Raises:
      ValueError: the policies do not fit together.
    """
    found = [policies.load(folder.policy_path) for folder in folders.values()]
    of_first = run_folder.read_summary(next(iter(folders.values())).path)
    merged, start = policies.merge(found), of_first["op_mass_initial"]
    masses = [policies.op_mass(policy) for policy in found]
    agreement = {}
    for name in start:
        values = [mass[name] for mass in masses]
        above = [
            seed
            for seed, mass in zip(folders, masses)
            if mass[name] * sum(start.values()) > start[name] * sum(mass.values())
        ]
        numbers = {"op_mass": values, "mean": np.mean(values), "std": np.std(values, ddof=1)}
        agreement[name] = {**numbers, "seeds_above_start": above}
    summary = {
        "seeds": list(folders),
        "op_mass": policies.op_mass(merged),
        "op_mass_initial": start,
        "planted_ops": [op["row"] for op in of_first.get("planted", [])],
        "agreement": dict(sorted(agreement.items(), key=lambda item: -item[1]["mean"])),
    }
    folder = run_folder.RunFolder(path)
    policies.save(folder.policy_path, merged)
    folder.write_summary(summary)
    return summary


def is_finished(path: str | os.PathLike, seeds: Iterable[int]) -> bool:
    """Whether a folder is finished around these seeds, or around more."""
    is_finished = run_folder.RunFolder(path).is_finished
    return is_finished and set(seeds) <= set(run_folder.read_summary(path).get("seeds", []))


def format_table(summary: dict[str, Any]) -> str:
    """A line for each op: mean and deviation of its mass, where it is above its start; what chance does."""
    count = len(summary["seeds"])
    lines = [f"{'op':<16}{'mass':>8}{'std':>8}   above its start"]
    for name, op in summary["agreement"].items():
        above = len(op["seeds_above_start"])
        lines.append(f"{name:<16}{op['mean']:8.4f}{op['std']:8.4f}   in {above} of {count} seeds")
    lines.append("By chance alone an op is above its start in every other seed or so.")
    return "\n".join(lines)
