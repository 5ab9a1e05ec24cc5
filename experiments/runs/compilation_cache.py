"""Keeps compiled programs on disk, so that a run starts without compiling what an earlier one compiled.

A program is found again by all that it was compiled from (code, shapes, compiler, devices), so that a run has
the same results whether its programs were compiled or found.
"""

import contextlib
import functools
import glob
import os
import pathlib
import re
import sys
import warnings

import jax

from experiments.data import sources

_BROKEN = "Error (?:reading|writing) persistent compilation cache entry for '(.+?)'"


def use(folder: str | None) -> None:
    """Keeps compiled programs from now on; to be called before anything is compiled.

    Without a folder, that of JAX_COMPILATION_CACHE_DIR, or else the user's, if it can be made; "" for none at
    all.

    Raises:
      OSError: the folder that was given cannot be made.
    """
    if folder == "":
        jax.config.update("jax_compilation_cache_dir", None)
    elif folder is not None:
        _use(pathlib.Path(os.path.expanduser(folder)))
    elif jax.config.jax_compilation_cache_dir is None:
        # A machine without a home that can be written to compiles every time.
        with contextlib.suppress(OSError, RuntimeError):
            _use(sources.user_cache() / "jax")
    # JAX warns of an entry that a killed run or a full disk left half written, at every start, for ever.
    warnings.filterwarnings("always", _BROKEN)
    warnings.showwarning = functools.partial(_delete_broken, warnings.showwarning)


def _use(folder):
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX leaves out what took less than a second; a start has a hundred such programs.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _delete_broken(show, message, *arguments, **more):
    """Deletes what JAX could not read, before it writes the program again; shows other warnings.

    JAX says the name of the program alone: all entries of that name go.
    """
    found = re.match(_BROKEN, str(message))
    if not found:
        return show(message, *arguments, **more)
    folder = pathlib.Path(jax.config.jax_compilation_cache_dir)
    for entry in folder.glob(f"{glob.escape(found[1])}-*-cache"):
        with contextlib.suppress(OSError):
            entry.unlink()
    _say_once(f"{folder}: compiled programs that cannot be read or written are compiled again")


@functools.cache
def _say_once(line):
    print(line, file=sys.stderr)
