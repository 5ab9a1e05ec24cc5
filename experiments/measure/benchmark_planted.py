"""Seconds until a planted op leads: the search of planted.flags, corrected and as the released code does it.

Each search is a process of its own, `experiments.search`, which has the device to itself; its folder stays.
"""

import pathlib
import subprocess
import sys
from typing import Any

from dada.ops import table as op_table
from experiments.runs import command_line, run_folder

PRESETS = ("corrected", "official")
_FLAGS = pathlib.Path(__file__).resolve().parent / "flags" / "planted.flags"
_EXTRA_OPS = ("Rotate90", "FlipUD")  # of planted.flags


def check(ops: list[str]) -> None:
    """Raises ValueError if an op cannot be planted."""
    known = [row.name for row in op_table.search_space("strength", _EXTRA_OPS).rows]
    if not ops or not set(ops) <= set(known):
        raise ValueError(f"--planted_ops: got {','.join(ops)!r}, expected some of {', '.join(known)}")


def run(ops: list[str], folder: pathlib.Path, seed: int, *more: str) -> dict[str, Any]:
    """Searches with every op planted.

    Args:
      ops: names.
      folder: for the run folders, OP_PRESET.
      seed: of the searches.
      *more: further flags of the searches.

    Returns:
      By op and preset: steps and seconds until the op leads to the end, None where it does not, and of the
      whole search. Seconds do not include compiling.

    Raises:
      command_line.Interrupted: a search failed.
    """
    found = {}
    for op in ops:
        found[op] = {}
        for preset in PRESETS:
            path = (folder / f"{op}_{preset}").resolve()
            flags = [f"--flagfile={_FLAGS}", f"--planted_op={op}", f"--preset={preset}", f"--seed={seed}"]
            command = [sys.executable, "-m", "experiments.search", *flags, f"--run_dir={path}", *more]
            print(f"planted {op}, {preset}", flush=True)
            done = subprocess.run(command, stdout=subprocess.DEVNULL, cwd=_FLAGS.parents[2])
            if done.returncode:
                raise command_line.Interrupted(f"the search in {path} failed")
            summary = run_folder.read_summary(path)
            names = ("steps", "seconds_run", "seconds_compile")
            found[op][preset] = {
                **{
                    name: summary["planted"][name]
                    for name in ("steps_until_it_leads", "seconds_until_it_leads")
                },
                **{name: summary[name] for name in names},
            }
    return found
