"""What the options of commands that run a model over data name: model, tokenizer, rows."""

from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import listed, note
from .options import DataOptions


if TYPE_CHECKING:
    from datasets import Dataset


class Inputs(NamedTuple):
    """
    What the options name.

    Args:
        model: An early-exit classifier in eval mode, on its device.
        tokenizer: The model's.
        rows (`datasets.Dataset`): All columns of the rows that are read.
        encoded (`datasets.Dataset`): The same rows as the model takes them, not padded, with `labels`.
    """

    model: Any
    tokenizer: Any
    rows: "Dataset"
    encoded: "Dataset"


def read_inputs(options: DataOptions, labelled: bool = True) -> Inputs:
    """
    Reads and encodes what the options name. What it took for texts and label is reported on stderr.

    Raises:
        ValueError: in one line, for anything that is not there or does not fit.
    """
    from ..checkpoints import load_model
    from ..rows import encode_rows

    rows, texts, label = read_rows(options, labelled)
    model, tokenizer = load_model(options.checkpoint, options.revision, options.device)
    encoded = encode_rows(
        rows, texts, label if labelled else None, tokenizer, model, options.max_length, options.skip_invalid
    )
    return Inputs(model, tokenizer, rows, encoded)


def read_rows(options: DataOptions, labelled: bool = True) -> "tuple[Dataset, tuple[str, ...], str | None]":
    """Rows, and the names of their texts and label."""
    from ..rows import find_columns, without_invalid
    from .data import load_rows

    named = [*(options.text_columns or ()), options.label_column, *(getattr(options, "slice_by", None) or ())]
    rows = load_rows(options.data, options.split, options.max_rows, options.seed, needed=named)
    texts, label = find_columns(rows, options.text_columns, options.label_column, labelled)
    if options.skip_invalid:
        rows = without_invalid(rows, texts)
    note(f"{len(rows)} rows; texts: {listed(texts)}; labels: {label or 'none'}.")
    return rows, texts, label
