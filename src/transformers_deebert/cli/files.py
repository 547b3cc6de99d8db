"""Rows of files: JSON lines, JSON, CSV, TSV, Parquet, plain text."""

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..messages import first_line, listed, note


if TYPE_CHECKING:
    from datasets import Dataset

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")


def read_file(path: Path, needed: Iterable[str]) -> "Dataset":
    """
    The rows of a file. JSON holds one object a line or a list of objects; CSV and TSV have a header, empty cells are
    null, and a column of numbers alone becomes one of numbers; each line of a .txt file that is not blank is a `text`,
    without a label. Columns of several types are left out with a note,
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
        elif suffix == ".txt":
            lines = (line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines())
            rows = make_rows({"text": [line for line in lines if line]}, path, needed)
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
    """Columns of a file with one object a line, or with one list of objects; a key that one of them lacks is null."""
    name = repr(str(path))
    columns: dict[str, list] = {}
    with open(path, encoding="utf-8-sig") as file:
        is_list = next((line for line in file if line.strip()), "").lstrip().startswith("[")
        file.seek(0)
        items: Iterable[tuple[int, Any]]
        if is_list:
            items = enumerate(parse(file.read(), name), start=1)
        else:  # empty lines count, but hold none
            lines = ((number, line) for number, line in enumerate(file, start=1) if line.strip())
            items = ((number, parse(line, f"Line {number} of {name}")) for number, line in lines)
        for rows, (number, item) in enumerate(items):
            if not isinstance(item, dict):
                where = f"{'Item' if is_list else 'Line'} {number} of {name}"
                raise ValueError(f'{where} must be an object such as {{"text": …, "label": …}}, got {str(item)[:60]}.')
            for key in item:
                columns.setdefault(key, [None] * rows)
            for key, column in columns.items():
                column.append(item.get(key))
    return columns


def parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {first_line(error)}.") from error


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
    rows, others = (len(next(iter(columns.values()), [])) for columns in (raw, quoted))
    return quoted if rows == others else raw


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
    if max((len(cell or "") for cell in cells), default=0) > 18:  # texts, or more digits than numbers of a table have
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
