"""How every command starts and fails: absl flags in; on bad input one line on stderr and exit code 2.

A command has `define(values)`, which defines its flags, and `main(values, arguments)`. Flags live in a
FlagValues of the command's own, so that a program can parse those of several commands as often as it likes.
"""

import difflib
import functools
import inspect
import math
import os
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags, logging

Define = Callable[[flags.FlagValues], None]
MAX_SEED = 2**32 - 1  # NumPy takes no larger one, and of a larger one JAX drops the upper bits
MAX_SEEDS = 10_000  # every one has a folder
_MAX_INTEGER = 2**31 - 1  # what an int32 on a device holds
_HELP = {"--help", "-help", "-h", "--helpshort", "--helpfull"}


class Interrupted(Exception):
    """A run that stopped before its end for a reason that the user must see, such as a NaN loss."""


def parse(define: Define, arguments: list[str]) -> tuple[flags.FlagValues, list[str]]:
    """Parses a command line without the command's name.

    Returns:
      (values, the arguments that are no flags).

    Raises:
      ValueError: an unknown flag, a value that a flag does not take, or a flag file that cannot be read.
    """
    values = flags.FlagValues()
    define(values)
    try:
        rest = values(["", *_with_flag_files(arguments)])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"unknown flag --{error.flagname}{hint}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    for name in values:
        if isinstance(values[name].value, float) and not math.isfinite(values[name].value):
            raise ValueError(f"--{name}={values[name].value}: expected a finite number")
    return values, rest


def resolve(
    define: Define, resolve_values: Callable[[flags.FlagValues], dict[str, Any]], arguments: list[str]
) -> dict[str, Any]:
    """The resolved flags of a command line, in which a command allows flags only.

    Raises:
      ValueError: a flag that cannot be read, or that the command refuses.
    """
    values, rest = parse(define, arguments)
    require_no_arguments(rest)
    return resolve_values(values)


def _with_flag_files(arguments, within=()):
    """The arguments, with those of a flag file in the place of its name."""
    expanded, left = [], iter(arguments)
    for argument in left:
        name, is_joined, path = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        path = path if is_joined else next(left, "")
        if path in within:
            raise ValueError(f"--flagfile={path}: the file includes itself")
        expanded += _with_flag_files(_lines(path), (*within, path))
    return expanded


def _lines(path):
    """The arguments in a flag file."""
    try:
        text = pathlib.Path(os.path.expanduser(path)).read_text("utf-8-sig")
    except OSError as error:
        raise ValueError(f"--flagfile={path}: {error.strerror}") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"--flagfile={path}: expected UTF-8 text, one --name=value a line")
    lines = (line.strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith(("#", "//"))]


def definers(values: flags.FlagValues) -> types.SimpleNamespace:
    """absl's DEFINE_bool, DEFINE_enum, ... for these values, as `bool`, `enum` and so on.

    An `integer` always has a lower bound, and is at most 2**31 - 1 unless it has another upper one.
    """

    def integer(name, default, about, lower_bound, upper_bound=_MAX_INTEGER):
        flags.DEFINE_integer(name, default, about, lower_bound, upper_bound, flag_values=values)

    kinds = ("bool", "enum", "float", "list", "string")
    define = {kind: functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=values) for kind in kinds}
    return types.SimpleNamespace(integer=integer, **define)


def require_no_arguments(arguments: list[str]) -> None:
    """Raises ValueError if a command that takes flags only got something else."""
    if arguments:
        raise ValueError(f"unexpected argument {arguments[0]!r}; options start with --")


def run(
    define: Define,
    main: Callable[[flags.FlagValues, list[str]], None],
    resolve_values: Callable[[flags.FlagValues], Mapping[str, Any]] | None = None,
) -> None:
    """Parses the command line of this process and calls `main`.

    An error that its user can mend ends the program with one line and exit code 2 (`explain`), Ctrl-C with
    one line and 130. Any other one shows its traceback and the folder of the run, and ends it with 1.

    Args:
      define: defines the flags.
      main: takes the flags and the other arguments. It sets the value of --run_dir that it uses.
      resolve_values: the flags that are read with those that are given, and their values; --help shows these.
    """

    def define_all(values):
        define(values)
        flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)

    logging.set_verbosity(logging.WARNING)
    if sys.stdout:
        sys.stdout.reconfigure(errors="replace")  # a terminal may lack ±
    given = [argument for argument in sys.argv[1:] if argument not in _HELP]
    values = {}
    try:
        values, arguments = parse(define_all, given)
        if len(given) < len(sys.argv) - 1:
            shown = resolve_values(values) if resolve_values else values.flag_values_dict()
            print(_help(inspect.getmodule(main).__doc__ or "", values, shown))
        else:
            main(values, arguments)
        print(end="", flush=True)  # here a closed pipe or a full disk can be told
    except KeyboardInterrupt:
        _end("interrupted", values, 130)
    except Exception as error:
        explanation = explain(error, list(values))
        if explanation is None or (values and values.debug):
            traceback.print_exc()
        if explanation is None:
            _end("error: this was not expected", values, 1)
        _end(f"error: {explanation}", {}, 2)


def explain(error: Exception, flag_names: list[str]) -> str | None:
    """What went wrong, for an error that a user of a command with these flags can mend; else None."""
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and str(error).startswith("RESOURCE_EXHAUSTED")
    ):
        sizes = [f"--{name}" for name in flag_names if name.endswith("batch_size") or name == "chunk_size"]
        hint = f"; a smaller {' or '.join(sizes)} needs less" if sizes else ""
        return f"out of memory{hint} {error}"
    if isinstance(error, BrokenPipeError):
        return "nobody reads what is printed any more (broken pipe)"
    if isinstance(error, ValueError | TypeError | OSError | OverflowError | Interrupted):
        return str(error)
    try:
        jax.devices()
    except Exception as no_device:  # RuntimeError, or AssertionError where a plugin is missing
        return f"JAX finds no device (JAX_PLATFORMS={jax.config.jax_platforms}). {no_device}"
    return None


def _end(line, values, code):
    """Ends the program with one line on stderr, which names the folder of the run if there is one."""
    run_dir = "run_dir" in values and values["run_dir"].value
    if run_dir and os.path.isdir(run_dir):
        line += f"; the run so far is in {run_dir}" + (", --resume goes on" if "resume" in values else "")
    print(" ".join(line.split()), file=sys.stderr)
    try:
        print(end="", flush=True)
    except OSError:  # Python would try it again at exit, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _help(description, values, shown):
    lines = [description.strip(), "", "Flags, with the values that they have now:"]
    for name, value in sorted(shown.items()):
        flag = values[name]
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"  --{name}={'' if text is None else text}\n      {flag.help}")
    return "\n".join(lines)
