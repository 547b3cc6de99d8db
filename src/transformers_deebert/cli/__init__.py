"""
The command line: `deebert COMMAND …`. A command is a module with `add(commands)`, which declares its options, and
`run(options)`, which writes its answer to stdout and returns the exit code; what it needs beyond torch and
transformers, it imports in `run`.
"""

import argparse
import os
import sys

from ..messages import EXTRAS, explain, note
from . import add_exits, bench, convert, export, pick, report, sweep


COMMANDS = (add_exits, sweep, pick, report, bench, convert, export)
# Exit codes; a command returns one of the first two. The last are those of shells: 128 + the signal.
FINE, UNMET, ERROR, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="deebert", description="DeeBERT early exit for transformers.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


def option_names(options: argparse.Namespace | None) -> dict[str, str]:
    """The options of a command by the arguments that they become; not what is given by its place."""
    if options is None:
        return {}
    places = ("checkpoint", "data", "folder", "old", "new", "run", "renamed", "table")  # a table is not `--table`
    names = [name for name in vars(options) if name not in places]
    return {name: f"--{name.replace('_', '-')}" for name in names} | getattr(options, "renamed", {})


def main(arguments: list[str] | None = None) -> int:
    """
    Runs one command.

    Args:
        arguments (`list[str]`, *optional*): Of the command line; those of the process otherwise.

    Returns:
        `int`: 0, fine; 1, a target cannot be met; 2, an error, told in one line on stderr; 130, interrupted; 141,
        nobody reads stdout any more.

    Raises:
        SystemExit: for `--help`, and with code 2 for a usage error, as argparse does.
    """
    options = None
    try:
        try:
            options = make_parser().parse_args(arguments)
            return options.run(options)
        finally:
            sys.stdout.flush()  # here, where it can still be caught that nobody reads
    except BrokenPipeError:
        # Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        note(explain(error, option_names(options)))
    except (ImportError, OSError, ValueError) as error:
        note(explain(error, option_names(options)))
    return ERROR
