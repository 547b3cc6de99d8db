"""Running something over the rows of a data set: batched by length, in flat memory, in their own order, to disk."""

import contextlib
import inspect
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm


# Rows are batched by length within windows of so many, and given back in their own order: memory stays flat.
WINDOW = 2048


def chunks(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def token_count(item: dict) -> int:
    return len(item["input_ids"]) if "input_ids" in item else 0


def data_columns(model: Any) -> list[str]:
    """Arguments of the model's `forward` that a data set can have as columns: inputs and labels, no settings."""
    settings = ("early_exit_entropy", "exit_criterion", "exit_layer", "off_ramp_inputs")
    names = inspect.signature(model.forward).parameters
    return [name for name in names if name not in settings and not name.startswith("output_")]


def run_windows(
    run: Callable[[list[dict], list[int]], dict[str, np.ndarray]],
    dataset: Any,
    indices: range,
    batch_size: int,
    progress: str | None = None,
) -> Iterator[dict[str, np.ndarray]]:
    """
    Runs something over rows of a data set.

    Args:
        run (`Callable`): From a list of items and that of their indices to named arrays with one row for each.
        dataset: Map-style, of dicts.
        indices (`range`): Its rows to run.
        batch_size (`int`): Items for one call of `run`; those of like length go together.
        progress (`str`, *optional*): Text before a progress bar; none without it.

    Yields:
        For each window of rows, in their order, the arrays of `run`.
    """
    with tqdm(total=len(indices), desc=progress, disable=progress is None) as bar:
        for window in chunks(indices, WINDOW):
            items = [dataset[index] for index in window]
            lengths = np.array([token_count(item) for item in items])
            columns: dict[str, np.ndarray] = {}
            for rows in chunks(np.argsort(-lengths, kind="stable"), batch_size):
                for name, values in run([items[row] for row in rows], [window[row] for row in rows]).items():
                    if name not in columns:
                        columns[name] = np.empty((len(items), *values.shape[1:]), values.dtype)
                    columns[name][rows] = values
                bar.update(len(rows))
            yield columns


def write_windows(path: Path, windows: Iterable[dict[str, np.ndarray]]) -> None:
    """Writes the windows as one Arrow file; it appears under its name when it is complete."""

    def column(values: np.ndarray) -> Any:
        if values.ndim == 1:
            return pa.array(values)
        return pa.FixedSizeListArray.from_arrays(values.reshape(-1), int(np.prod(values.shape[1:])))

    unfinished = path.with_suffix(".unfinished")
    writer = None
    try:
        for columns in windows:
            table = pa.table({name: column(values) for name, values in columns.items()})
            if writer is None:
                writer = ArrowWriter(path=str(unfinished), features=datasets.Features.from_arrow_schema(table.schema))
            writer.write_table(table)
        if writer is None:
            raise ValueError("`windows` has no rows to write.")
        writer.finalize()
        writer.close()
    except BaseException:
        if writer is not None:
            writer.close()
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    os.replace(unfinished, path)


def read_columns(files: Iterable[Path]) -> dict[str, list[np.ndarray]]:
    """The columns of files that [`write_windows`] wrote, as views of the mapped files: of each, one array a chunk."""

    def view(part: Any) -> np.ndarray:
        if not pa.types.is_fixed_size_list(part.type):
            return part.to_numpy()
        return part.flatten().to_numpy(zero_copy_only=True).reshape(len(part), -1)

    rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
    return {name: [view(part) for part in rows.data.column(name).chunks] for name in rows.column_names}
