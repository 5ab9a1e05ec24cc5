"""How every binary starts and fails: absl flags in; on bad input one line on stderr and exit code 2."""

import difflib
import sys
from collections.abc import Callable

from absl import app, flags, logging


class Interrupted(Exception):
    """A run that stopped before its end for a reason that the user must see, such as a NaN loss."""


def _parse(arguments: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(arguments)
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, list(flags.FLAGS), n=1)
        _fail(f"unknown flag --{error.flagname}" + (f"; did you mean --{near[0]}?" if near else ""))
    except flags.Error as error:
        _fail(str(error))
    except OSError as error:  # an unreadable --flagfile
        _fail(f"{error.filename}: {error.strerror}")
    return rest


def _fail(message: str):
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[list[str]], None]) -> None:
    """Parses the flags and calls `main` with what is left of the command line.

    Args:
      main: takes the positional arguments. A ValueError, TypeError or OSError, and
        `Interrupted`, end the program with their message.
    """

    def guarded(arguments):
        logging.set_verbosity(logging.WARNING)
        try:
            main(arguments[1:])
        except (ValueError, TypeError, OSError, Interrupted) as error:
            if flags.FLAGS["debug"].value:
                raise
            _fail(str(error))

    flags.DEFINE_bool("debug", False, "Show the traceback of an error instead of one line.")
    app.run(guarded, flags_parser=_parse)
