"""The exit table of a checkpoint on data: collected, or read again from where it was kept."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .inputs import Inputs, add_model_and_data_arguments, read_inputs
from .messages import note


if TYPE_CHECKING:
    from ..analysis.exit_table import ExitTable

SOURCE_FILE = "source.json"
# Options that the exits depend on.
DEPENDS_ON = (
    "checkpoint",
    "data",
    "split",
    "text_columns",
    "label_column",
    "max_rows",
    "max_length",
    "revision",
    "seed",
)


class Exits(NamedTuple):
    """
    Args:
        table ([`ExitTable`]): Of the labelled rows.
        inputs ([`Inputs`], *optional*): Model and rows; `None` where the table was kept and they are not needed.
    """

    table: "ExitTable"
    inputs: Inputs | None


def add_exit_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares CHECKPOINT, DATA, what belongs to them, `--table` and `--json`."""
    add_model_and_data_arguments(parser)
    parser.add_argument(
        "--table",
        metavar="FOLDER",
        help="keep the exits of all rows there, or read them if they are there already: the model then does not run",
    )
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")


def read_exits(options: argparse.Namespace, need_inputs: bool = False) -> Exits:
    """
    The exits of every row, from one pass of the model or from the folder of `--table`.

    Args:
        options (`argparse.Namespace`): Those of [`add_exit_arguments`].
        need_inputs (`bool`, *optional*, defaults to `False`): Whether model and rows are needed in any case.

    Raises:
        ValueError: for a folder that holds the exits of something else.
    """
    from ..analysis.exit_table import ExitTable, collect_exits

    folder = None if options.table is None else Path(options.table)
    source = describe_source(options)
    kept = folder is not None and (folder / SOURCE_FILE).is_file()
    if kept and folder is not None:
        check_source(folder, source)
        note(f"reads the exits that are kept in {folder}.")
    elif folder is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f"`--table` ({str(folder)!r}) is not empty and holds no exits: name another folder.")
    if kept and folder is not None and not need_inputs:
        return Exits(labelled(ExitTable.load(folder)), None)
    inputs = read_inputs(options)
    if kept and folder is not None:
        return Exits(labelled(ExitTable.load(folder)), inputs)
    from transformers import DataCollatorWithPadding

    collate = DataCollatorWithPadding(inputs.tokenizer)
    table = collect_exits(inputs.model, inputs.encoded, collate, options.batch_size, folder, is_a_terminal())
    if folder is not None:
        (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2), encoding="utf-8")
    return Exits(table, inputs)


def labelled(table: "ExitTable") -> "ExitTable":
    return table.select(table.labels != -100)


def is_a_terminal() -> bool:
    return sys.stderr.isatty()


def describe_source(options: argparse.Namespace) -> dict[str, Any]:
    """What the exits depend on, with sizes and times of files, so that a change of them shows."""
    source = {name: getattr(options, name) for name in DEPENDS_ON}
    folder, data = Path(options.checkpoint), Path(options.data)
    files = [*folder.glob("*.safetensors"), *folder.glob("*.json")] if folder.is_dir() else []
    files += [data] if data.is_file() else []
    # `config.json` may get another default threshold, which changes no exit's answer.
    stamps = {
        str(path): [path.stat().st_size, path.stat().st_mtime_ns]
        for path in sorted(files)
        if path.suffix == ".safetensors" or path == data or path.name.startswith("tokenizer")
    }
    return source | {"files": stamps, "temperatures": temperatures_of(folder)}


def temperatures_of(folder: Path) -> Any:
    """The `off_ramp_temperatures` of a local checkpoint: they change what exits say."""
    path = folder / "config.json"
    return json.loads(path.read_text(encoding="utf-8")).get("off_ramp_temperatures") if path.is_file() else None


def check_source(folder: Path, source: dict[str, Any]) -> None:
    kept = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
    changed = [name for name, value in source.items() if kept.get(name) != value]
    if changed:
        what = "files that have changed since" if changed == ["files"] else f"another {', '.join(changed)}"
        raise ValueError(f"`--table` ({str(folder)!r}) holds the exits of {what}: name another folder, or remove it.")
