"""
The command line: `deebert COMMAND …`. A command is a module with a dataclass, whose fields are its options and whose
`run` writes its answer to stdout and returns the exit code. Nothing is imported that help does without.
"""

import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

from typer import Abort, BadParameter, Typer
from typer.main import get_command

from ..messages import EXTRAS, explain, note
from .add_exits import AddExits
from .bench import Bench
from .convert import Convert
from .export import Export
from .options import Command
from .pick import Pick
from .report import Report
from .sweep import Sweep


COMMANDS: dict[str, type[Command]] = {
    "add-exits": AddExits,
    "sweep": Sweep,
    "pick": Pick,
    "report": Report,
    "bench": Bench,
    "convert": Convert,
    "export": Export,
}
# Exit codes; a command returns one of the first two. The last are those of shells: 128 + the signal.
FINE, UNMET, ERROR, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 130, 141
UsageError: Any = BadParameter.__mro__[1]  # Typer has no name of its own for it
SEVERAL = ("--text-columns", "--slice-by", "--thresholds", "--fractions", "--batch-sizes")
FORMER = {"--swap_labels": "--swap-labels"}
HELP = {"help": "DeeBERT early exit for transformers.", "context_settings": {"help_option_names": ["-h", "--help"]}}


def parse(words: Iterable[str]) -> Command | None:
    """
    The command with its options; `None` for `--help`, which is shown.

    Raises:
        SystemExit: with code 2 for a usage error, which is shown.
    """
    app = Typer(add_completion=False, rich_markup_mode="rich", **HELP)  # type: ignore[arg-type]
    for name, command in COMMANDS.items():
        # A line of the docstring is none of the help page.
        app.command(name, help=re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(command) or ""))(command)
    try:
        parsed = get_command(app).main(list(spread(words)), "deebert", standalone_mode=False)
    except UsageError as error:
        sys.stderr.write(usage_text(error))
        raise SystemExit(ERROR) from error
    except SystemExit:  # what Typer makes of a closed pipe
        raise BrokenPipeError from None
    return parsed if isinstance(parsed, Command) else None


def spread(words: Iterable[str]) -> Iterable[str]:
    """The words with each of several values behind its option, as Typer takes them: `--fractions 1 --fractions 2`."""
    option, values = "", 0
    for word in words:
        if word.startswith("-") and not re.match(r"-\.?\d", word):  # no negative number
            option, values = word, -1
        if option in SEVERAL and values > 0:
            yield option
        values += 1
        yield FORMER.get(word, word)


def usage_text(error: Any) -> str:
    """A usage error for stderr, with our words for a value that does not fit."""
    words, parameter = error.format_message(), getattr(error, "param", None)
    if isinstance(error, BadParameter) and error.message:
        words = f"argument {'/'.join(parameter.opts)}: {error.message}" if parameter else error.message
    usage, path = "usage: deebert COMMAND ...", "deebert"
    if error.ctx is not None:  # as for an option without its value
        usage, path = error.ctx.get_usage().strip().replace("Usage:", "usage:"), error.ctx.command_path
    return f"{usage}\n{path}: error: {words}\n"


def option_names(command: Command | None) -> dict[str, str]:
    """The options of a command by the arguments that they become; not what is given by its place."""
    if command is None:
        return {}
    places = ("checkpoint", "data", "folder", "old", "new", "table")  # an exit table is not `--table`
    names = [name for name in vars(command) if name not in places]
    return {name: f"--{name.replace('_', '-')}" for name in names} | command.RENAMED


def main(arguments: list[str] | None = None, prepare: Callable[[], None] | None = None) -> int:
    """
    Runs one command.

    Args:
        arguments (`list[str]`, *optional*): Of the command line; those of the process otherwise.
        prepare (`Callable`, *optional*): Called before the command runs; not for help, nor for usage errors.

    Returns:
        `int`: 0, fine; 1, a target cannot be met; 2, an error, reported in one line on stderr; 130, interrupted; 141,
        stdout is a closed pipe.

    Raises:
        SystemExit: with code 2 for a usage error.
    """
    command = None
    try:
        try:
            command = parse(sys.argv[1:] if arguments is None else arguments)
            if command is None:
                return FINE
            if prepare is not None:
                prepare()
            return command.run()
        finally:
            sys.stdout.flush()  # here, where a closed pipe can still be caught
    except BrokenPipeError:
        # Python flushes stdout once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except (KeyboardInterrupt, Abort):  # Typer's while it reads the words
        return INTERRUPTED
    except (ImportError, OSError, ValueError) as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] not in EXTRAS:
            raise
        note(explain(error, option_names(command)))
        return ERROR
