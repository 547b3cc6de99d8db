"""The exit table of a checkpoint on data: collected, or read again from where it was kept."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import first_line, listed, note
from .inputs import Inputs, read_inputs
from .options import DataOptions, TableOptions


if TYPE_CHECKING:
    from ..analysis.exit_table import ExitTable

SOURCE_FILE = "source.json"
# What commands write beside a checkpoint; no exit depends on it.
PAGES = ("config.json", "README.md", "numbers.json", "report.html", "trade_off.png")
EXIT_DEFAULTS = ("early_exit_entropy", "exit_criterion", "exit_layer")
# Options that the exits depend on.
DEPENDS_ON = [one.name for one in fields(DataOptions) if one.name not in ("batch_size", "device")]


def read_exits(
    options: TableOptions, need_inputs: bool = False, columns: Sequence[str] = ()
) -> "tuple[ExitTable, Inputs | None]":
    """
    The exits of every labelled row, from one pass of the model or from the folder of `--table`; model and rows, or
    `None` where the table was kept and they are not needed (`need_inputs`, or values of `columns` of DATA).

    Raises:
        ValueError: for a folder that holds the exits of something else, is damaged, or cannot be written; for columns
            that are not there.
    """
    folder = None if options.table is None else Path(options.table)
    source = describe_source(options)
    table = None if folder is None else read_kept(folder, source)
    inputs = read_inputs(options) if table is None or need_inputs or columns else None
    for name in columns:
        if inputs is not None and name not in inputs.rows.column_names:
            raise ValueError(f"No column {name!r} for `--slice-by`: there are {listed(inputs.rows.column_names)}.")
    if table is None:
        table = collect(options.batch_size, inputs, folder, source)
    correct = float((table.answers[:, -1] == table.labels).mean())
    if correct < 1 / table.num_labels:
        note(f"at full depth {correct:.1%} are correct, fewer than by chance: do the labels of DATA fit the model?")
    return table.with_score(**options.asked), inputs  # what is kept serves every criterion


def collect(batch_size: int, inputs: Any, folder: Path | None, source: dict[str, Any]) -> "ExitTable":
    """The table from one pass, kept in the folder; one of a pass that was stopped has no checksums."""
    from transformers import DataCollatorWithPadding

    from ..analysis.collect import collect_exits

    if folder is not None:
        write_source(folder, source)
    collate = DataCollatorWithPadding(inputs.tokenizer)
    table = collect_exits(inputs.model, inputs.encoded, collate, batch_size, folder, progress=sys.stderr.isatty())
    if folder is not None:
        write_source(folder, source | {"sha256": checksums(folder)})
    return table


def read_kept(folder: Path, source: dict[str, Any]) -> "ExitTable | None":
    """The table of a folder, `None` where there is none yet; raises `ValueError` for anything else that is there."""
    from ..analysis.exit_table import FACTS_FILE, ExitTable, table_files

    name = f"`--table` ({str(folder)!r})"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "new.unfinished").touch()
        (folder / "new.unfinished").unlink()
    except OSError as error:
        raise ValueError(f"{name} cannot be written ({error.strerror}): name another folder.") from error
    files = [path for path in folder.iterdir() if path.name != FACTS_FILE and path.suffix != ".unfinished"]
    if not files:  # none, or what a run left that was stopped
        return None
    if not (folder / SOURCE_FILE).is_file():
        what = "exits of unknown origin" if table_files(folder) else "something else"
        raise ValueError(f"{name} holds {what}: name another folder, or remove it.")
    try:
        kept = json.loads((folder / SOURCE_FILE).read_text(encoding="utf-8"))
        changed = [key for key, value in source.items() if kept.get(key) != value]
        if "sha256" not in kept:
            note(f"the exits in {folder} were not finished, or kept by an earlier version: they are collected again.")
            return None
        if not changed and kept["sha256"] != checksums(folder):
            raise ValueError("its files are not what was written")
        table = None if changed else ExitTable.load(folder)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{name} is damaged ({first_line(error)}): remove it, or name another folder.") from error
    if changed:
        what = "files that have changed since" if changed == ["files"] else f"another {', '.join(changed)}"
        raise ValueError(f"{name} holds the exits of {what}: name another folder, or remove it.")
    note(f"reads the exits that are kept in {folder}.")
    return table


def write_source(folder: Path, source: dict[str, Any]) -> None:
    (folder / SOURCE_FILE).write_text(json.dumps(source, indent=2), encoding="utf-8")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a table."""
    from ..analysis.exit_table import FACTS_FILE, table_files

    sums = {}
    for path in [folder / FACTS_FILE, *table_files(folder)]:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        sums[path.name] = digest.hexdigest()
    return sums


def describe_source(options: TableOptions) -> dict[str, Any]:
    """What the exits depend on, with sizes and times of files, so that a change of them shows."""
    source = {name: getattr(options, name) for name in DEPENDS_ON}
    checkpoint, data = Path(options.checkpoint), Path(options.data)
    files = [path for path in checkpoint.glob("*") if path.is_file() and path.name not in PAGES]
    files += [path for path in (data.rglob("*") if data.is_dir() else [data]) if path.is_file()]
    stamps = {str(path): [path.stat().st_size, path.stat().st_mtime_ns] for path in sorted(files)}
    return source | {"files": stamps, "commit": commit_of(options), "configuration": configuration_of(checkpoint)}


def commit_of(options: TableOptions) -> str | None:
    """The commit of a checkpoint on the Hub that is in the cache: a branch may have moved."""
    from huggingface_hub import try_to_load_from_cache

    if Path(options.checkpoint).is_dir():
        return None
    path = try_to_load_from_cache(options.checkpoint, "config.json", revision=options.revision or "main")
    return Path(path).parent.name if isinstance(path, str) else None


def configuration_of(folder: Path) -> Any:
    """The configuration of a local checkpoint, but for its default exits, which change no exit's answer."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        return {name: value for name, value in config.items() if name not in EXIT_DEFAULTS}
    except (ValueError, AttributeError):
        return None  # loading it will show what is wrong
