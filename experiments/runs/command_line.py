"""How every command starts and fails: absl flags in; on bad input one line on stderr and exit code 2.

A command has `define(values)`, which defines its flags, and `main(values, arguments)`. Flags live in a
FlagValues of the command's own, so that a program can parse those of several commands as often as it likes.
"""

import difflib
import functools
import inspect
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags, logging

Define = Callable[[flags.FlagValues], None]
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
        return values, values(["", *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(values), n=1)
        hint = f"; did you mean --{near[0]}?" if near else ""
        raise ValueError(f"unknown flag --{error.flagname}{hint}") from error
    except flags.Error as error:
        raise ValueError(str(error)) from error
    except OSError as error:  # an unreadable --flagfile
        raise ValueError(f"{error.filename}: {error.strerror}") from error


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


def definers(values: flags.FlagValues) -> types.SimpleNamespace:
    """absl's DEFINE_bool, DEFINE_enum, ... for these values, as `bool`, `enum` and so on."""
    kinds = ("bool", "enum", "float", "integer", "list", "string")
    return types.SimpleNamespace(
        **{kind: functools.partial(getattr(flags, f"DEFINE_{kind}"), flag_values=values) for kind in kinds}
    )


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

    Args:
      define: defines the flags.
      main: takes the flags and the other arguments. A ValueError, TypeError or OSError, and `Interrupted`,
        end the program with their message.
      resolve_values: the flags that are read with those that are given, and their values; --help shows these.
    """

    def define_all(values):
        define(values)
        flags.DEFINE_bool("debug", False, "Show the traceback of an error.", flag_values=values)

    logging.set_verbosity(logging.WARNING)
    given = [argument for argument in sys.argv[1:] if argument not in _HELP]
    try:
        values, arguments = parse(define_all, given)
    except ValueError as error:
        _fail(error)
    try:
        if len(given) < len(sys.argv) - 1:
            shown = resolve_values(values) if resolve_values else values.flag_values_dict()
            print(_help(inspect.getmodule(main).__doc__, values, shown))
        else:
            main(values, arguments)
    except (ValueError, TypeError, OSError, Interrupted) as error:
        if values.debug:
            raise
        _fail(error)


def _fail(error):
    print("error: " + " ".join(str(error).split()), file=sys.stderr)
    sys.exit(2)


def _help(description, values, shown):
    lines = [description.strip(), "", "Flags, with the values that they have now:"]
    for name, value in sorted(shown.items()):
        flag = values[name]
        text = ",".join(map(str, value)) if isinstance(value, list) else value
        lines.append(f"  --{name}={'' if text is None else text}\n      {flag.help}")
    return "\n".join(lines)
