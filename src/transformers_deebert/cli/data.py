"""Labelled rows of a file, a folder or the Hub."""

import itertools
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import listed, note
from ..rows import LABELS, TEXTS
from .files import SUFFIXES, read_file


if TYPE_CHECKING:
    from datasets import Dataset

# In this order: the first that exists is read.
SPLITS = ("validation", "test", "train")
# A repository, and perhaps its configuration.
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/\\]+)?")


def load_rows(
    source: str,
    split: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    splits: Sequence[str] = SPLITS,
    needed: Sequence[str] = (),
) -> "Dataset":
    """
    The rows of a data set. Those of a user are copied to no cache folder.

    Args:
        source (`str`):
            A .jsonl, .json, .csv, .tsv, .parquet or .txt file; a folder that `save_to_disk` wrote, or one of data
            files laid out as on the Hub; or a data set on the Hub, `owner/name` or `owner/name:configuration`.
        split (`str`, *optional*): Files have none; by default the first of `splits` that exists, noted on stderr.
        max_rows (`int`, *optional*), seed (`int`): A random sample of at most so many, in their own order.
        splits (`Sequence[str]`, *optional*): By default validation, test, train.
        needed (`Sequence[str]`, *optional*):
            Columns of a file that have to be of one type, besides those with usual names for texts and labels.

    Returns:
        `datasets.Dataset`, in no particular format.

    Raises:
        ValueError: for what is not there, cannot be read, or has no rows.
        ModuleNotFoundError: without `datasets`.
    """
    if max_rows is not None and max_rows < 1:
        raise ValueError(f"`max_rows` must be 1 or more, got {max_rows}.")
    path = Path(source)
    if not sys.stderr.isatty():  # no terminal that could show bars
        import datasets

        datasets.disable_progress_bars()
    if path.is_file():
        if split is not None:
            raise ValueError(f"The file {source!r} has no splits: leave out `--split` ({split!r}).")
        rows = read_file(path, {*needed, *LABELS, *itertools.chain(*TEXTS)})
    elif path.is_dir() or (HUB_ID.fullmatch(source) and path.suffix.lower() not in SUFFIXES):
        rows = load(source, path, split, splits)
    else:
        raise ValueError(f"{source!r} does not exist: name a file, a folder, or a data set on the Hub.")
    if len(rows) == 0:
        raise ValueError(f"{source!r} has no rows: choose another split or file.")
    if max_rows is not None and max_rows < len(rows):
        rows = rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)))
    return rows.with_format(None)  # a saved data set may bring one


def load(source: str, path: Path, split: str | None, splits: Sequence[str]) -> "Dataset":
    """A split of a data set in a folder or on the Hub."""
    import pyarrow
    from datasets import Dataset, load_dataset, load_from_disk

    name, _, configuration = (str(path), "", "") if path.is_dir() else source.partition(":")
    saved = any((path / file).is_file() for file in ("state.json", "dataset_dict.json"))
    with errors_that_name(name, path.is_dir()):
        found = load_from_disk(name) if saved else load_dataset(name, configuration or None, streaming=path.is_dir())
    rows = choose_split(found, split, source, splits)
    if isinstance(rows, Dataset):
        return rows
    # Files of a folder are streamed into memory: `datasets` would otherwise copy their rows to its cache.
    with errors_that_name(name, path.is_dir()):
        parts = list(rows.with_format("arrow").iter(batch_size=10_000))
        return Dataset(pyarrow.concat_tables(parts, promote_options="permissive") if parts else pyarrow.table({}))


@contextmanager
def errors_that_name(name: str, is_folder: bool) -> Iterator[None]:
    import pyarrow
    from datasets.exceptions import DatasetsError

    try:
        yield
    except (DatasetsError, OSError, ValueError, pyarrow.ArrowException) as error:
        hint = f": choose one, as in `{name}:…`" if "Config name is missing" in str(error) else ""
        hub = f"{name!r} is neither a file nor a folder, and cannot be loaded as a data set from the Hub"
        what = f"The folder {name!r} cannot be read" if is_folder else hub
        raise ValueError(f"{what} ({reason(error)}{hint}).") from error


def reason(error: Exception) -> str:
    """What was wrong; an error in the making of a data set has it in its cause."""
    text = str(error.__cause__ or error) if "generating the dataset" in str(error) else str(error)
    return " ".join(text.partition("Example of usage")[0].split())[:400].rstrip(".") or type(error).__name__


def choose_split(rows: Any, split: str | None, source: str, splits: Sequence[str] = SPLITS) -> "Dataset":
    """One split of a data set that may have several."""
    if not isinstance(rows, dict):
        if split is not None:
            raise ValueError(f"{source!r} has no splits: leave out `--split` ({split!r}).")
        return rows
    if split is not None:
        if split not in rows:
            raise ValueError(f"{source!r} has no split {split!r}: choose one of {listed(rows)}.")
        return rows[split]
    found = next((name for name in splits if name in rows), None)
    # MNLI has two sets for validation, and others call theirs otherwise: no reason to take the training rows.
    alike = [name for name in rows if name.startswith(("validation", "dev"))]
    if found is None or (splits is SPLITS and found != "validation" and alike):
        raise ValueError(f"{source!r} has the splits {listed(rows)}: choose one with `--split`.")
    if len(rows) > 1:
        note(f"reads the split {found!r} of {source} (of {listed(rows)}).")
    return rows[found]
