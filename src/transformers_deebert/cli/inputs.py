"""The options of commands that run a model over data, and what they name."""

import argparse
from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import listed, note


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


def add_model_and_data_arguments(
    parser: argparse.ArgumentParser,
    checkpoint: str = "early-exit model",
    rows: str = "labelled rows",
    split: str = "the first that exists of validation, test, train",
    max_rows: int | None = None,
) -> None:
    """Declares CHECKPOINT, DATA and the options about them, in the words of the command."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help=f"{checkpoint}: repository on the Hub or folder")
    parser.add_argument(
        "data",
        metavar="DATA",
        help=f"{rows}: a .jsonl, .json, .csv, .tsv or .parquet file, a folder of `save_to_disk`, or a data set on the "
        "Hub such as nyu-mll/glue:sst2",
    )
    parser.add_argument("--split", help=f"of DATA; {split} by default")
    parser.add_argument(
        "--text-columns", nargs="+", metavar="NAME", help="one or two columns of DATA; found by usual names by default"
    )
    parser.add_argument("--label-column", metavar="NAME", help="column of DATA; `label` or `labels` by default")
    default = "" if max_rows is None else f" (default: {max_rows})"
    parser.add_argument(
        "--max-rows",
        type=positive,
        default=max_rows,
        metavar="N",
        help=f"read a random sample of so many rows{default}",
    )
    parser.add_argument(
        "--max-length",
        type=positive,
        metavar="N",
        help="cut rows to so many tokens; as many as the model takes by default",
    )
    parser.add_argument(
        "--skip-invalid",
        action="store_true",
        help="leave out rows without a text or with an unknown label, and count them",
    )
    parser.add_argument("--batch-size", type=positive, default=32, metavar="N", help="rows of one pass (default: 32)")
    parser.add_argument("--device", default="cpu", help="cpu (the default), cuda or mps")
    parser.add_argument("--revision", help="branch, tag or commit of CHECKPOINT")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of everything random (default: 0)")


def positive(text: str) -> int:
    """An option's value that must be 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of 1 or more, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """An option's value that random generators take."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}, got {text!r}")
    return int(text)


def read_inputs(options: argparse.Namespace, labelled: bool = True) -> Inputs:
    """
    Reads and encodes what the options of [`add_model_and_data_arguments`] name. What it took for texts and label is
    told on stderr.

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


def read_rows(options: argparse.Namespace, labelled: bool = True) -> "tuple[Dataset, tuple[str, ...], str | None]":
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
