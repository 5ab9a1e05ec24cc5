"""Seconds until a planted op leads: the search of planted.flags, corrected and as the released code does it.

Each search is a process of its own, `experiments.search`, which has the device to itself; its folder stays.
"""

import pathlib
import subprocess
import sys
from typing import Any

from dada import ops
from experiments.runs import command_line, run_folder

# By preset, what it changes in planted.flags: the official one has no orthogonal part.
PRESETS = {"corrected": (), "official": ("--noorthogonal_to_clean",)}
_FLAGS = pathlib.Path(__file__).resolve().parents[1] / "flags" / "planted.flags"
_EXTRA_OPS = ("Rotate90", "FlipUD")  # of planted.flags


def check(names: list[str]) -> None:
    """Raises ValueError if an op cannot be planted."""
    known = [row.name for row in ops.search_space("strength", _EXTRA_OPS).rows]
    if not names or not set(names) <= set(known):
        raise ValueError(f"--planted_ops: got {','.join(names)!r}, expected some of {', '.join(known)}")


def run(names: list[str], folder: pathlib.Path, seed: int) -> dict[str, Any]:
    """Searches with every op planted; the run folders are FOLDER/OP_PRESET.

    Returns:
      By op and preset: steps and seconds until the op leads to the end, None where it does not, and of the
      whole search. Seconds do not include compiling.

    Raises:
      command_line.Interrupted: a search failed.
    """
    results = {op: {} for op in names}
    for op in names:
        for preset, changes in PRESETS.items():
            path = (folder / f"{op}_{preset}").resolve()
            flags = [f"--flagfile={_FLAGS}", f"--planted_op={op}", f"--preset={preset}", *changes]
            place = [f"--seed={seed}", f"--run_dir={path}"]
            command = [sys.executable, "-m", "experiments.search", *flags, *place]
            print(f"planted {op}, {preset}", flush=True)
            done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=_FLAGS.parents[2])
            if done.returncode:
                raise command_line.Interrupted(f"the search in {path} failed")
            summary = run_folder.read_summary(path)
            leads = ("steps_until_it_leads", "seconds_until_it_leads")
            results[op][preset] = {
                **{name: summary["planted"][0][name] for name in leads},
                **{name: summary[name] for name in ("steps", "seconds_run", "seconds_compile")},
            }
    return results
