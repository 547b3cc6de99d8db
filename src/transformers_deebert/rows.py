"""Labelled rows as a model takes them: the columns of texts and label, tokens and class indices."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .labels import class_indices
from .messages import listed, note


if TYPE_CHECKING:
    from datasets import Dataset

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
            raise ValueError(f"No label column among {listed(names)}: name it with `label_column`.")
    elif label_column not in names:
        raise ValueError(f"No column {label_column!r} for `label_column`: there are {listed(names)}.")
    if text_columns is not None:
        texts = tuple(text_columns)
        missing = [name for name in texts if name not in names]
        if missing:
            raise ValueError(f"No column {missing[0]!r} for `text_columns`: there are {listed(names)}.")
        if len(texts) not in (1, 2) or len(set(texts)) < len(texts):
            raise ValueError(f"`text_columns` takes one or two columns, got {listed(texts) or 'none'}.")
        return texts, label_column
    others = [name for name in names if name != label_column]
    for texts in TEXTS:
        if set(texts) <= set(others):
            return texts, label_column
    strings = [name for name in others if getattr(rows.features[name], "dtype", None) in ("string", "large_string")]
    if len(strings) != 1:  # two may be a pair, or a text and an identifier
        raise ValueError(f"No telling which of the columns {listed(names)} hold texts: name them with `text_columns`.")
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
        max_length (`int`, *optional*): Tokens to cut longer rows to, whose number is noted on stderr; as many as model
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
        raise ValueError(f"No row has a text in {listed(columns)}: name other columns with `text_columns`.")
    note(f"{len(invalid)} of {len(rows)} rows are skipped: no text in {listed(columns)} (rows {listed(invalid)}).")
    return rows.select([row for row, fine in enumerate(valid) if fine])


def check_texts(cells: list, name: str, indices: Sequence[int]) -> list[str]:
    for cell, index in zip(cells, indices, strict=True):
        if not isinstance(cell, str):
            raise ValueError(
                f"Row {index + 1} has {cell!r:.80} in the column {name!r}, where a text should be: fix the row, "
                "leave such rows out with `skip_invalid`, or name other columns with `text_columns`."
            )
    return cells


def token_limit(tokenizer: Any, model: Any, max_length: int | None, pair: bool) -> int | None:
    """The most tokens a row may have, `None` without a limit."""
    table = model.max_tokens()
    if max_length is None:
        # A tokenizer without a limit of its own has 1e30.
        limits = [limit for limit in (table, tokenizer.model_max_length) if limit is not None and limit < 1e9]
        return int(min(limits)) if limits else None
    least = tokenizer.num_special_tokens_to_add(pair) + 1
    if max_length < least or (table is not None and max_length > table):
        upper = "more" if table is None else f"{table}, what the model's position table holds"
        raise ValueError(f"`max_length` must be {least} to {upper}, got {max_length}.")
    return max_length
