"""The run time of early exit on rows of one's own, at several batch sizes, tokenisation apart."""

import inspect
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..checks import check_count
from ..models.exit_criteria_deebert import check_fits_problem
from .decisions import Threshold, as_criterion, score_name
from .rotation import in_blocks, time_rotation
from .stock import check_off_ramps, stock_model, token_limit
from .tables import THRESHOLD, threshold_text
from .timing import RuntimeFigure, describe_machine, plain_thresholds, time_thresholds


# Headings and formats of the columns of [`RuntimeBenchmark.table`], for [`format_table`].
RUNTIME_COLUMNS = {
    "batch_size": ("batch", "d"),
    "threshold": ("S", THRESHOLD),
    "milliseconds_per_row": ("ms a row", ".3f"),
    "runtime_saving": ("runtime saving", ".1%"),
    "layer_saving": ("layer saving", ".1%"),
    "speed_up": ("x full depth", ".2f"),
    "stock_speed_up": ("x stock", ".2f"),
    "efficiency": ("efficiency", ".2f"),
    "spread": ("spread", ".1%"),
    "control_gap": ("control gap", ".1%"),
}


@dataclass(frozen=True)
class RuntimeBenchmark:
    """
    Measured run time at several batch sizes and thresholds. Made by [`benchmark_runtime`].

    Args:
        figures (`tuple[RuntimeFigure, ...]`):
            One for each batch size and threshold, in the order given, the thresholds of a batch size together.
        tokenization_ms (`dict[int, float]`):
            By batch size, median milliseconds per row from text to padded tensors; empty if no texts were given. It is
            in none of the figures.
        padding (`str`):
            How rows became batches, in words.
        machine (`dict[str, str | int]`):
            What it was measured on, as [`describe_machine`] tells.
        rows (`int`):
            Number of rows in a pass.
        score (`str`):
            What the thresholds are of, such as `"entropy"`, in nats.
        patience (`int`):
            Consecutive exits below the threshold that an exit took.
    """

    figures: tuple[RuntimeFigure, ...]
    tokenization_ms: dict[int, float]
    padding: str
    machine: dict[str, str | int]
    rows: int
    score: str = "entropy"
    patience: int = 1

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return asdict(self)

    def table(self) -> list[dict[str, Any]]:
        """
        One row for each figure, for [`format_table`] and [`write_csv`].

        Returns:
            `list[dict]` with the keys of `RUNTIME_COLUMNS`: `batch_size`, `threshold` (nats; text where each off-ramp
            has its own, and for another score, which it then names), `milliseconds_per_row`, `runtime_saving`
            (measured), `layer_saving` (the ideal), `speed_up` (against full depth), `stock_speed_up`, `efficiency`,
            `spread` and `control_gap`, shares as fractions: see [`RuntimeFigure`].
        """
        return [
            {name: getattr(figure, name, None) for name in RUNTIME_COLUMNS}
            | {
                "threshold": _threshold_text(figure),
                "milliseconds_per_row": 1e3 * figure.seconds_median / figure.rows,
            }
            for figure in self.figures
        ]


def benchmark_runtime(
    model: PreTrainedModel,
    dataset: Any,
    thresholds: Sequence[Threshold],
    batch_sizes: Sequence[int] = (1, 32),
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[str] | Sequence[tuple[str, str]] | None = None,
    repeats: int = 5,
    warm_up: int = 8,
    progress: bool = True,
    criterion: Any = "entropy",
) -> RuntimeBenchmark:
    """
    Measures the run time of early exit against full depth and against the stock class.

    For each batch size, one rotation as in [`time_thresholds`], with [`stock_model`] as the baseline and as the
    control. Batches are made in the order of the data set and padded to their longest row, before the clock starts and
    on the model's device: the clock sees the model alone. What comes before it is told apart, by tokenising the texts.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier.
        dataset:
            Map-style, of encoded rows with `input_ids` and so on, not padded. Columns that the stock model does not
            take, and labels, are left out. Use rows that the model was not trained on: those exit early.
        thresholds (sequence of `float` or of sequences of `layers - 1` floats):
            Of the criterion's score (entropy: in nats).
        batch_sizes (sequence of `int`, *optional*, defaults to `(1, 32)`):
            Rows a batch; none larger than the data set.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            Pads the batches; needed when rows of different lengths meet in one, or with `texts`.
        texts (sequence of `str` or of pairs of `str`, *optional*):
            The text of each row, to time the tokenizer on: at each batch size, truncated to the longest row of
            `dataset`.
        repeats (`int`, *optional*, defaults to 5):
            Timed passes over all rows, of which the median counts.
        warm_up (`int`, *optional*, defaults to 8):
            Batches that each contender runs before the clock starts.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show progress bars after ten seconds.
        criterion (`str`, `Callable`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            The score and the patience; a threshold in it is ignored.

    Returns:
        [`RuntimeBenchmark`]

    Raises:
        `ValueError`: for anything malformed, before anything is timed: a model without off-ramps, thresholds or batch
            sizes out of range, rows that are absent, padded or too long, texts that do not match them, or no tokenizer
            where one is needed.
    """
    check_off_ramps(model)
    plain = plain_thresholds(thresholds, len(model.config.exit_layers) - 1)
    criterion = as_criterion(criterion)
    if any(np.any(threshold) for threshold in plain):
        check_fits_problem(model.config, criterion.score, "thresholds")
    check_count("repeats", repeats)
    check_count("warm_up", warm_up, least=0)
    stock = stock_model(model)
    columns = set(inspect.signature(stock.forward).parameters) - {"labels", "kwargs"}
    rows = _encoded_rows(dataset, columns, token_limit(model))
    lengths = [len(row["input_ids"]) for row in rows]
    _check_batch_sizes(batch_sizes, lengths, tokenizer)
    pairs = _check_texts(texts, len(rows), tokenizer)

    data_collator = None if tokenizer is None else DataCollatorWithPadding(tokenizer)
    figures: list[RuntimeFigure] = []
    for size in map(int, batch_sizes):
        figures += time_thresholds(
            model, rows, plain, size, repeats, stock, data_collator, warm_up, progress, criterion
        )
    tokenization = {}
    if tokenizer is not None and pairs is not None:
        calls = {int(size): _tokenizer_calls(tokenizer, pairs, max(lengths), size) for size in batch_sizes}
        turns = {size: in_blocks(one, warm_up, len(one)) for size, one in calls.items()}
        seconds = time_rotation(turns, repeats, progress=progress)
        tokenization = {size: 1e3 * statistics.median(passes) / len(pairs) for size, passes in seconds.items()}
    padding = "no padding: rows of equal length" if tokenizer is None else "each padded to its longest row"
    return RuntimeBenchmark(
        figures=tuple(figures),
        tokenization_ms=tokenization,
        padding=f"batches in the order of the data set, {padding}",
        machine=describe_machine(model.device),
        rows=len(rows),
        score=score_name(criterion.score),
        patience=criterion.patience,
    )


def _encoded_rows(dataset: Any, columns: set[str], limit: int | None) -> list[dict[str, list[int]]]:
    """The model's columns of all rows, as lists."""
    if isinstance(dataset, str | Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(
            f"`dataset` must be a list or map-style data set of encoded rows, got a `{type(dataset).__name__}`: pass "
            "one mapping a row, such as {'input_ids': …, 'attention_mask': …}."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` has no rows: give one or more.")
    rows = [_encoded_row(dataset[index], index, columns, limit) for index in range(len(dataset))]
    for index, row in enumerate(rows):
        if set(row) != set(rows[0]):
            raise ValueError(
                f"`dataset` has {sorted(row)} in row {index}, but {sorted(rows[0])} in row 0: encode all rows alike."
            )
    return rows


def _encoded_row(item: Any, index: int, columns: set[str], limit: int | None) -> dict[str, list[int]]:
    if not isinstance(item, Mapping) or "input_ids" not in item:
        raise ValueError(f"`dataset` has no `input_ids` in row {index} ({item!r:.80}): encode it with the tokenizer.")
    row = {name: np.asarray(item[name]).tolist() for name in item if name in columns}
    shapes = {name: np.shape(values) for name, values in row.items()}
    length = len(row["input_ids"]) if shapes["input_ids"] else 0
    if length == 0 or set(shapes.values()) != {(length,)}:
        raise ValueError(
            f"`dataset` has the shapes {shapes} in row {index}: give one number a token, without batches."
        )
    if limit is not None and length > limit:
        raise ValueError(
            f"`dataset` has {length} tokens in row {index}, but the position table of this model holds {limit}: "
            "truncate it."
        )
    if not all(row.get("attention_mask", [1])):
        raise ValueError(
            f"`dataset` is padded (`attention_mask` has zeros in row {index}), which would be timed as text: encode "
            "it with `padding=False`."
        )
    return row


def _check_batch_sizes(
    batch_sizes: Sequence[int], lengths: list[int], tokenizer: PreTrainedTokenizerBase | None
) -> None:
    if not isinstance(batch_sizes, Sequence | np.ndarray) or isinstance(batch_sizes, str) or len(batch_sizes) == 0:
        raise ValueError(f"`batch_sizes` must be one or more batch sizes, got {batch_sizes!r}. Pass a list.")
    for size in batch_sizes:
        check_count("batch_sizes", size)
        if size > len(lengths):
            raise ValueError(
                f"`batch_sizes` has {size}, but `dataset` {len(lengths)} rows, which never fill a batch: give more "
                "rows or smaller batches."
            )
        mixed = any(len(set(lengths[start : start + size])) > 1 for start in range(0, len(lengths), size))
        if mixed and tokenizer is None:
            raise ValueError(
                f"`tokenizer` is needed at batch size {size}, where rows of different lengths have to be padded: pass "
                "the model's tokenizer, or batch_sizes=[1]."
            )


def _check_texts(
    texts: Any, rows: int, tokenizer: PreTrainedTokenizerBase | None
) -> list[tuple[str, str | None]] | None:
    """Each text as a pair, without a second part where it is a single one."""
    if texts is None:
        return None
    if tokenizer is None:
        raise ValueError("`texts` are there to time `tokenizer`, which is None: pass it, or no texts.")
    if isinstance(texts, str) or not hasattr(texts, "__len__") or len(texts) != rows:
        given = f"{len(texts)} of them" if hasattr(texts, "__len__") and not isinstance(texts, str) else repr(texts)
        raise ValueError(f"`texts` must hold one text for each of the {rows} rows of `dataset`, got {given:.80}.")
    pairs = [_as_pair(text) for text in texts]
    if len({second is None for _, second in pairs}) > 1:
        raise ValueError("`texts` must be all strings or all pairs of strings, got both: split them.")
    return pairs


def _as_pair(text: Any) -> tuple[str, str | None]:
    if isinstance(text, str):
        return text, None
    if isinstance(text, Sequence) and [isinstance(part, str) for part in text] == [True, True]:
        return text[0], text[1]
    raise ValueError(f"`texts` must be strings or pairs of strings, got {text!r:.80}.")


def _tokenizer_calls(tokenizer: Any, pairs: list[tuple[str, str | None]], max_length: int, size: int) -> list[partial]:
    """From text to padded tensors, batch by batch."""
    settings = {"padding": True, "truncation": True, "max_length": max_length, "return_tensors": "pt"}
    calls = []
    for start in range(0, len(pairs), size):
        first, second = map(list, zip(*pairs[start : start + size], strict=True))
        calls.append(partial(tokenizer, first, None if second[0] is None else second, **settings))
    return calls


def _threshold_text(figure: RuntimeFigure) -> float | str:
    threshold = figure.threshold
    if (figure.exit_score, figure.patience) == ("entropy", 1):
        return threshold_text(threshold) if isinstance(threshold, tuple) else threshold
    patience = "" if figure.patience == 1 else f", patience {figure.patience}"
    return f"{figure.exit_score.replace('_', ' ')} {threshold_text(threshold)}{patience}"
