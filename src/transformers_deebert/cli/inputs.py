"""What the options of commands that run a model over data name: model, tokenizer, rows, metric."""

from typing import TYPE_CHECKING, Any, NamedTuple

from ..messages import first_line, listed, note
from .options import DataOptions


if TYPE_CHECKING:
    from datasets import Dataset

    from ..analysis.exit_table import ExitTable


class Inputs(NamedTuple):
    model: Any  # an early-exit classifier in eval mode, on its device
    tokenizer: Any
    rows: "Dataset"  # all columns
    encoded: "Dataset"  # the same rows as the model takes them, not padded, with `labels`


def read_inputs(options: DataOptions, labelled: bool = True) -> Inputs:
    """Reads and encodes what the options name; raises `ValueError` for what is not there or does not fit."""
    from ..checkpoints import load_model
    from ..rows import encode_rows

    rows, texts, label = read_rows(options, labelled)
    model, tokenizer = load_model(options.checkpoint, options.revision, options.device)
    encoded = encode_rows(
        rows, texts, label if labelled else None, tokenizer, model, options.max_length, options.skip_invalid
    )
    return Inputs(model, tokenizer, rows, encoded)


def read_rows(options: DataOptions, labelled: bool = True) -> "tuple[Dataset, tuple[str, ...], str | None]":
    """Rows, and the names of their texts and label, which are noted on stderr."""
    from ..rows import find_columns, without_invalid
    from .data import load_rows

    named = [*(options.text_columns or ()), options.label_column, *(getattr(options, "slice_by", None) or ())]
    rows = load_rows(options.data, options.split, options.max_rows, options.seed, needed=named)
    texts, label = find_columns(rows, options.text_columns, options.label_column, labelled)
    if options.skip_invalid:
        rows = without_invalid(rows, texts)
    note(f"{len(rows)} rows; texts: {listed(texts)}; labels: {label or 'none'}.")
    return rows, texts, label


def load_metric(name: str) -> Any:
    """A module of `evaluate`, `None` for accuracy and F1, which need none; raises `ValueError` for an unknown one."""
    from ..analysis.metrics import EXACT

    if name in EXACT:
        return None
    import evaluate

    try:
        return evaluate.load(name)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"`--metric` {name!r} cannot be loaded ({first_line(error)}): accuracy and f1 are always there."
        ) from error


def name_metric(name: str, module: Any, table: "ExitTable") -> tuple[str, Any]:
    """`metric` and `score` of the analysis; raises `ValueError` for several numbers of other names."""
    from ..analysis.metrics import make_metrics

    if module is None:
        return name, None
    found = list(make_metrics(module, table.num_labels)(table.answers[:, -1], table.labels))
    if name not in found and len(found) > 1:
        raise ValueError(f"`--metric` {name!r} returns several numbers ({', '.join(found)}): choose another metric.")
    return (name if name in found else found[0]), module
