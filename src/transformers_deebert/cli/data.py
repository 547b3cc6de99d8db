"""Labelled rows: from a file, a folder or the Hub to what a model takes."""

import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .files import SUFFIXES, read_file
from .labels import class_indices
from .messages import listed, note


if TYPE_CHECKING:
    from datasets import Dataset

# In this order: the first that exists is read.
SPLITS = ("validation", "test", "train")
# A repository, and perhaps its configuration.
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(:[^/\\]+)?")
# GLUE's, and other usual names; pairs first, because they hold names of single ones.
TEXTS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("text1", "text2"),
    ("text",),
    ("sentence",),
)
LABELS = ("label", "labels")


def load_rows(
    source: str,
    split: str | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    splits: Sequence[str] = SPLITS,
    needed: Sequence[str] = (),
) -> "Dataset":
    """
    The rows of a data set.

    Args:
        source (`str`):
            A .jsonl, .json, .csv, .tsv or .parquet file; a folder that `save_to_disk` wrote, or one of data files laid
            out as on the Hub; or a data set on the Hub, `owner/name` or `owner/name:configuration`.
        split (`str`, *optional*):
            Defaults to the first that exists of validation, test and train, told on stderr. Files have none.
        max_rows (`int`, *optional*):
            A random sample of at most so many, in their own order.
        seed (`int`, *optional*, defaults to 0):
            Of the sample.
        splits (`Sequence[str]`, *optional*):
            Which splits to look for without `split`, in order.
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
    rows: Any
    if path.is_file():
        if split is not None:
            raise ValueError(f"The file {source!r} has no splits: leave out `--split` ({split!r}).")
        hide_bars()
        rows = read_file(path, {*needed, *LABELS, *itertools.chain(*TEXTS)})
    else:
        hide_bars()
        if path.is_dir():
            rows = load_folder(path)
        elif HUB_ID.fullmatch(source) and path.suffix.lower() not in SUFFIXES:
            rows = load_from_hub(source)
        else:
            raise ValueError(f"{source!r} does not exist: name a file, a folder, or a data set on the Hub.")
        rows = choose_split(rows, split, source, splits)
    if len(rows) == 0:
        raise ValueError(f"{source!r} has no rows: choose another split or file.")
    if max_rows is not None and max_rows < len(rows):
        rows = rows.select(np.sort(np.random.default_rng(seed).choice(len(rows), max_rows, replace=False)))
    return rows.with_format(None)  # a saved data set may bring one


def hide_bars() -> None:
    """No progress bars where nobody sees them move."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def load_folder(path: Path) -> Any:
    from datasets import load_dataset, load_from_disk
    from datasets.exceptions import DatasetsError

    saved = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
    try:
        return load_from_disk(str(path)) if saved else load_dataset(str(path))
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"The folder {str(path)!r} cannot be read ({reason(error)}).") from error


def load_from_hub(source: str) -> Any:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    name, _, configuration = source.partition(":")
    try:
        return load_dataset(name, configuration or None)
    except (DatasetsError, OSError, ValueError) as error:
        hint = f": choose one, as in `{name}:…`" if "Config name is missing" in str(error) else ""
        raise ValueError(
            f"{name!r} is neither a file nor a folder, and cannot be loaded as a data set from the Hub "
            f"({reason(error)}{hint})."
        ) from error


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


# ---- columns


def find_columns(
    rows: "Dataset", text_columns: Sequence[str] | None = None, label_column: str | None = None, labelled: bool = True
) -> tuple[tuple[str, ...], str | None]:
    """
    Which columns hold the texts and the label.

    Args:
        rows (`datasets.Dataset`): The data set.
        text_columns (`Sequence[str]`, *optional*): One or two names; found by GLUE's and other usual names otherwise,
            or as the only column of strings.
        label_column (`str`, *optional*): Defaults to `label` or `labels`.
        labelled (`bool`, *optional*, defaults to `True`): Whether there must be a label.

    Returns:
        `tuple`: one or two names of text columns; the name of the label column, `None` where there is none.

    Raises:
        ValueError: for names that are not there, or where none can be found, listing the columns.
    """
    names = rows.column_names
    if label_column is None:
        label_column = next((name for name in LABELS if name in names), None)
        if label_column is None and labelled:
            raise ValueError(f"No label column among {listed(names)}: name it with `--label-column`.")
    elif label_column not in names:
        raise ValueError(f"No column {label_column!r} for `--label-column`: there are {listed(names)}.")
    if text_columns is not None:
        texts = tuple(text_columns)
        missing = [name for name in texts if name not in names]
        if missing:
            raise ValueError(f"No column {missing[0]!r} for `--text-columns`: there are {listed(names)}.")
        if len(texts) not in (1, 2) or len(set(texts)) < len(texts):
            raise ValueError(f"`--text-columns` takes one or two columns, got {listed(texts) or 'none'}.")
        return texts, label_column
    others = [name for name in names if name != label_column]
    for texts in TEXTS:
        if set(texts) <= set(others):
            return texts, label_column
    strings = [name for name in others if getattr(rows.features[name], "dtype", None) in ("string", "large_string")]
    if len(strings) != 1:  # two may be a pair, or a text and an identifier
        raise ValueError(
            f"No telling which of the columns {listed(names)} hold texts: name them with `--text-columns`."
        )
    return tuple(strings), label_column


# ---- tokens and class indices


def encode_rows(
    rows: "Dataset",
    columns: Sequence[str],
    label_column: str | None,
    tokenizer: Any,
    model: Any,
    max_length: int | None = None,
    skip_unknown: bool = False,
) -> "Dataset":
    """
    What a model takes of every row, in their order.

    Args:
        rows (`datasets.Dataset`): With texts and labels; other columns are left out.
        columns (`Sequence[str]`): One or two text columns.
        label_column (`str`, *optional*): Without one there will be no `labels`.
        tokenizer: The model's.
        model: An early-exit classifier.
        max_length (`int`, *optional*): Tokens to cut longer rows to, whose number is told on stderr; as many as model
            and tokenizer take by default.
        skip_unknown (`bool`, *optional*, defaults to `False`): Count labels that are none of the model's as missing.

    Returns:
        `datasets.Dataset` with the tokenizer's columns, not padded, and `labels`: class indices, -100 for no label
        (see [`class_indices`]).

    Raises:
        ValueError: for the first cell that is no text, or label that is none of the model's, naming its row (from 1);
            a `max_length` that is out of range.
    """
    labels = None
    if label_column is not None:
        names = getattr(rows.features[label_column], "names", None)
        labels = class_indices(rows[label_column][:], names, model.config, skip_unknown)
    limit = token_limit(tokenizer, model, max_length, pair=len(columns) == 2)

    def encode(batch: dict[str, list], indices: list[int]) -> dict[str, Any]:
        texts = [check_texts(batch[name], name, indices) for name in columns]
        if limit is None:
            return {**tokenizer(*texts), "cut": [False] * len(indices)}
        encoded = dict(tokenizer(*texts, truncation=True, max_length=limit))
        # Whether a full row was cut shows with room for one token more.
        full = [row for row, tokens in enumerate(encoded["input_ids"]) if len(tokens) == limit]
        longer = [[column[row] for row in full] for column in texts]
        more = tokenizer(*longer, truncation=True, max_length=limit + 1)["input_ids"] if full else []
        over = {row for row, tokens in zip(full, more, strict=True) if len(tokens) > limit}
        return encoded | {"cut": [row in over for row in range(len(indices))]}

    encoded = rows.select_columns(list(columns)).map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=list(columns),
        keep_in_memory=True,  # not as files beside the data
        load_from_cache_file=False,
        desc="Tokenizing",
    )
    cut = sum(encoded["cut"])
    if cut:
        note(f"{cut} of {len(rows)} rows are longer than {limit} tokens and were cut.")
    encoded = encoded.remove_columns("cut")
    return encoded if labels is None else encoded.add_column("labels", labels)


def without_invalid(rows: "Dataset", columns: Sequence[str]) -> "Dataset":
    """The rows that have a text in all of these columns; how many have none is reported on stderr."""
    valid = [
        all(isinstance(cell, str) for cell in cells)
        for cells in zip(*(rows[name][:] for name in columns), strict=True)
    ]
    invalid = [row for row, fine in enumerate(valid, start=1) if not fine]
    if not invalid:
        return rows
    if len(invalid) == len(rows):
        raise ValueError(f"No row has a text in {listed(columns)}: name other columns with `--text-columns`.")
    note(f"{len(invalid)} of {len(rows)} rows are skipped: no text in {listed(columns)} (rows {listed(invalid)}).")
    return rows.select([row for row, fine in enumerate(valid) if fine])


def check_texts(cells: list, name: str, indices: Sequence[int]) -> list[str]:
    for cell, index in zip(cells, indices, strict=True):
        if not isinstance(cell, str):
            raise ValueError(
                f"Row {index + 1} has {cell!r:.80} in the column {name!r}, where a text should be: fix the row, "
                "leave such rows out with `--skip-invalid`, or name other columns with `--text-columns`."
            )
    return cells


def token_limit(tokenizer: Any, model: Any, max_length: int | None, pair: bool) -> int | None:
    """The most tokens a row may have, `None` without a limit."""
    table = model.base_model.max_tokens()
    if max_length is None:
        # Without a limit of its own a tokenizer says 1e30.
        limits = [limit for limit in (table, tokenizer.model_max_length) if limit is not None and limit < 1e9]
        return int(min(limits)) if limits else None
    least = tokenizer.num_special_tokens_to_add(pair) + 1
    if max_length < least or (table is not None and max_length > table):
        upper = "more" if table is None else f"{table}, what the model's position table holds"
        raise ValueError(f"`--max-length` must be {least} to {upper}, got {max_length}.")
    return max_length
