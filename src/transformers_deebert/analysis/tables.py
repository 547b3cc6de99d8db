"""Tables of results for the terminal, for Markdown, and as JSON and CSV files."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import whole_file, write_text


def format_table(
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, tuple[str, str]] | None = None,
    markdown: bool = False,
) -> str:
    """
    Lay out rows as aligned text.

    Args:
        rows (sequence of `Mapping[str, Any]`):
            One mapping a row.
        columns (`Mapping[str, tuple[str, str]]`, *optional*):
            Key of a column to its heading and format specification, in order: `{"layer_saving": ("saving", ".1%")}`.
            A specification applies to numbers alone. By default all keys of the rows, as they come.
        markdown (`bool`, *optional*, defaults to `False`):
            Whether to write a Markdown table.

    Returns:
        `str`: the table, without a newline at its end. Absent values, `None` and NaN read `-`.

    Example:

    ```python
    >>> from transformers_deebert.analysis import format_table

    >>> rows = [{"threshold": 0.0, "saving": 0.0}, {"threshold": 0.1, "saving": 0.25}]
    >>> print(format_table(rows, {"threshold": ("S", "g"), "saving": ("layer saving", ".1%")}, markdown=True))
    |   S | layer saving |
    | --: | -----------: |
    |   0 |         0.0% |
    | 0.1 |        25.0% |

    ```
    """
    if columns is None:
        columns = {key: (key, "") for row in rows for key in row}
    headings = [heading for heading, _ in columns.values()]
    cells = [[_cell(row.get(key), form) for key, (_, form) in columns.items()] for row in rows]
    numeric = [
        all(not isinstance(row.get(key), str) or row[key] == "" for row in rows) for key in columns
    ]  # numbers to the right, words to the left
    widths = [max(3, *(len(line[column]) for line in [headings, *cells])) for column in range(len(headings))]

    def lay_out(line: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |" if markdown else "  ".join(padded).rstrip()

    if markdown:
        rule = lay_out(
            ["-" * (width - 1) + ":" if right else "-" * width for width, right in zip(widths, numeric, strict=True)]
        )
    else:
        rule = lay_out(["-" * width for width in widths])
    return "\n".join([lay_out(headings), rule, *(lay_out(line) for line in cells)])


# Of a threshold: it lies between two scores that differ by more than 1e-6 (`exit_curve.ROUNDING`), so that these
# digits give the same exits, up to 10 nats.
THRESHOLD = ".7g"


def threshold_text(threshold: float | Sequence[float]) -> str:
    """A threshold, or one for each off-ramp, with as many digits as give the same exits when they are copied."""
    values = threshold if isinstance(threshold, Sequence) else [threshold]
    return ", ".join(format(value, THRESHOLD) for value in values)


def write_json(path: str | Path, data: Any) -> None:
    """
    Write numbers, dataclasses with a `to_dict` method, numpy values and containers of them as JSON.

    Args:
        path (`str` or `Path`):
            File to write; its folder is made.
        data (`Any`):
            What to write. Numbers that are not finite become `null`, as JSON has none.
    """
    write_text(path, json.dumps(to_plain(data), indent=2, allow_nan=False) + "\n")


def write_csv(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """
    Write rows as CSV, at full precision.

    Args:
        path (`str` or `Path`):
            File to write; its folder is made.
        rows (sequence of `Mapping[str, Any]`):
            One mapping a row; the columns are the union of their keys, in order of appearance. Absent values and
            `None` are left empty.
    """
    with whole_file(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return str(value) if isinstance(value, str) else format(value, form)


def to_plain(value: Any) -> Any:
    """Numbers, dataclasses with a `to_dict` method, numpy values and containers of them, ready for JSON."""
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str | int) or value is None:
        return value
    return to_plain(value.to_dict())
