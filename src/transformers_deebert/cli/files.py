"""Rows of files: JSON lines, JSON, CSV, TSV, Parquet."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..messages import first_line, listed, note


if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")


def read_file(path: Path, needed: Iterable[str]) -> "Dataset":
    """
    The rows of a file. JSON holds one object a line or a list of objects; CSV and TSV have a header, empty cells are
    null, and a column of numbers alone becomes one of numbers. Columns of several types are left out with a note,
    unless they are among `needed`.

    Raises:
        ValueError: for another suffix, a broken line (with its number), needed columns of several types, no rows.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{str(path)!r} has the suffix {path.suffix!r}: convert it to one of {', '.join(SUFFIXES)}.")
    try:
        if suffix == ".parquet":
            rows = read_parquet(path)
        elif suffix in (".csv", ".tsv"):
            rows = make_rows(read_delimited(path), path, needed)
        else:
            rows = make_rows(read_json(path), path, needed)
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text ({error.reason}): convert it first.") from error
    if len(rows) == 0:
        raise ValueError(f"{str(path)!r} has no rows: give at least one.")
    return rows


def read_parquet(path: Path) -> "Dataset":
    """In memory: `Dataset.from_parquet` would copy all rows to its cache folder."""
    import pyarrow.parquet
    from datasets import Dataset, Features

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{str(path)!r} is not a Parquet file ({first_line(error)}).") from error
    for field in table.schema:
        try:
            Features.from_arrow_schema(pyarrow.schema([field]))
        except (ValueError, TypeError, NotImplementedError):
            note(f"the column {field.name!r} of {path} ({field.type}) is left out: data sets have no such type.")
            table = table.drop_columns([field.name])
    return Dataset(table)


# ---- JSON


def read_json(path: Path) -> dict[str, list]:
    """Columns of a file with one object a line, or with one list of objects."""
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        if start != "[":
            return columns_of(read_lines(path, file))
        try:
            items = json.load(file)
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is not JSON: {first_line(error)}.") from error
    return columns_of((f"Item {number} of {str(path)!r}", item) for number, item in enumerate(items, start=1))


def read_lines(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """Where each object is, and the object; empty lines count but hold none."""
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield f"Line {number} of {str(path)!r}", json.loads(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of {str(path)!r} is not JSON: {first_line(error)}.") from error


def columns_of(items: Iterable[tuple[str, Any]]) -> dict[str, list]:
    """Columns of objects; a key that one of them lacks is null there."""
    columns: dict[str, list] = {}
    for rows, (where, item) in enumerate(items):
        if not isinstance(item, dict):
            raise ValueError(f'{where} must be an object such as {{"text": …, "label": …}}, got {str(item)[:60]}.')
        for name, value in item.items():
            columns.setdefault(name, [None] * rows).append(value)
        for column in columns.values():
            if len(column) == rows:
                column.append(None)
    return columns


# ---- CSV and TSV


def read_delimited(path: Path) -> dict[str, list]:
    """Columns of strings, `None` in empty cells."""
    if path.suffix.lower() == ".csv":
        return read_cells(path, delimiter=",", strict=True)
    try:
        raw = read_cells(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    except ValueError:
        return read_cells(path, delimiter="\t", strict=True)
    try:
        quoted = read_cells(path, delimiter="\t", strict=True)
    except ValueError:
        return raw
    # As GLUE's own files are written: quotes are part of the text, and may happen to pair across lines.
    return quoted if count_rows(quoted) == count_rows(raw) else raw


def count_rows(columns: dict[str, list]) -> int:
    return len(next(iter(columns.values()), []))


def read_cells(path: Path, **form: Any) -> dict[str, list]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, **form)
        try:
            header = next(reader, [])
            names = [name for name in header if name]  # spreadsheets leave columns without any at the end
            if len(set(names)) < len(names):
                raise ValueError(f"{str(path)!r} has a column name twice ({listed(names)}): rename one.")
            columns: dict[str, list] = {name: [] for name in names}
            for cells in reader:
                if not any(cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"Line {reader.line_num} of {str(path)!r} has {len(cells)} cells, but the header has "
                        f"{len(header)} ({listed(header)}): quote texts that hold the delimiter."
                    )
                for name, cell in zip(header, cells, strict=True):
                    if name:
                        columns[name].append(cell or None)
        except csv.Error as error:
            raise ValueError(f"Line {reader.line_num} of {str(path)!r} is broken: {error}.") from error
    return {name: as_numbers(cells) for name, cells in columns.items()}


def as_numbers(cells: list) -> list:
    """Integers or floats where all cells are such, the cells themselves otherwise."""
    if any(
        cell is not None and len(cell) > 18 for cell in cells
    ):  # texts, or more digits than numbers of a table have
        return cells
    for kind in (int, float):
        try:
            return [None if cell is None else kind(cell) for cell in cells]
        except ValueError:
            pass
    return cells


# ---- rows


def make_rows(columns: dict[str, list], path: Path, needed: Iterable[str]) -> "Dataset":
    import pyarrow
    from datasets import Dataset

    clean = {}
    for name, column in columns.items():
        try:
            pyarrow.array(column)
            clean[name] = column
        except (pyarrow.ArrowException, OverflowError, ValueError) as error:
            fault = f"The column {name!r} of {str(path)!r} {what_is_wrong(column, error)}"
            if name in needed:
                raise ValueError(f"{fault}.") from error
            note(f"{fault[0].lower()}{fault[1:]}: it is left out.")
    return Dataset.from_dict(clean)


def what_is_wrong(column: list, error: Exception) -> str:
    """Why a column cannot be one of a table: mostly values of several types."""
    kinds = [type(value) for value in column]
    first = next((kind for kind in kinds if kind is not type(None)), type(None))
    for number, kind in enumerate(kinds, start=1):
        if kind not in (first, type(None)) and {kind, first} != {int, float}:
            return (
                f"mixes types: {first.__name__} at first, {kind.__name__} in row {number} ({column[number - 1]!r:.60})"
            )
    return f"cannot be read: {first_line(error)}"
