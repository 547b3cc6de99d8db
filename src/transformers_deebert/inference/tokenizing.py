"""Tokenization and checks of the predictor's input, and batches of about equal length."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch

from ..models.inputs_deebert import check_ids
from .predictions import Answers


FIRST_WINDOW = 8  # the first window is so many times smaller than the others


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """
    One encoded sample.

    Args:
        index (`int`): Its place in the input.
        tokens (`dict[str, torch.LongTensor]`):
            `input_ids` and what else the model takes, each `(length,)`, from the first attended token to the last.
        mask (`torch.LongTensor` of shape `(length,)`, *optional*): `None` where all of these are attended.
    """

    index: int
    tokens: dict[str, torch.Tensor]
    mask: torch.Tensor | None

    @property
    def length(self) -> int:
        return len(self.tokens["input_ids"])


class Window(NamedTuple):
    """Rows that were sorted together, cut into batches, and the answers to items that cannot be rows."""

    batches: list[list[Row]]
    failures: list[Answers]


@dataclass
class RowReader:
    """
    Makes rows from items, and batches from rows.

    Args:
        tokenizer (`PreTrainedTokenizerBase`, *optional*): For texts; it must be used by this reader alone.
        names (`tuple[str, ...]`): Further arguments of the model, besides `input_ids` and the mask.
        sizes (`dict[str, int]`): Rows of the tables that ids are looked up in, by the argument's name.
        limit (`int`, *optional*): Number of tokens that its position table holds.
        max_length (`int`, *optional*): Texts are cut to so many tokens; `None`: they are not cut.
        text_columns (`tuple[str, ...]`, *optional*): Where the text, or the two texts, of a mapping are.
    """

    tokenizer: Any
    names: tuple[str, ...]
    sizes: dict[str, int]
    limit: int | None
    max_length: int | None
    text_columns: tuple[str, ...] | None = None

    def windows(
        self, items: Iterable[tuple[int, Any]], batch_size: int, batches: int, stopped: Callable[[], bool]
    ) -> Iterator[Window]:
        """
        Reads items with their indices, `batch_size * batches` at a time, and fewer in the beginning, while the model
        is idle. The longest rows come first in the first window, last in the second, and so on: rows that meet
        where two windows do are alike, too.
        """
        items = iter(items)
        size = batch_size * max(1, batches // FIRST_WINDOW)
        wanted: list[str] | None = None
        longest_first = True
        error = None
        while error is None:
            window, error = take(items, size, stopped)
            if stopped() or not (window or error):
                return
            rows, failures = self.read(window)
            wanted = sorted(rows[0].tokens) if wanted is None and rows else wanted
            failures += [self.other_columns(row, wanted) for row in rows if sorted(row.tokens) != wanted]
            rows = [row for row in rows if sorted(row.tokens) == wanted]
            rows.sort(key=lambda row: row.length, reverse=longest_first)
            longest_first = not longest_first
            size = batch_size * batches
            yield Window([rows[start : start + batch_size] for start in range(0, len(rows), batch_size)], failures)
        raise error

    def read(self, items: list[tuple[int, Any]]) -> tuple[list[Row], list[Answers]]:
        """The rows of items, and the answers to those that fail."""
        rows: list[Row] = []
        failures: list[Answers] = []
        texts: list[tuple[int, tuple[str, ...]]] = []
        for index, item in items:
            try:
                encoded = self.encoded(item)
                if encoded is None:
                    texts.append((index, self.texts(item)))
                else:
                    rows.append(self.row(index, encoded))
            except Exception as error:
                failures.append(failure(index, error))
        # Single texts and pairs need calls of their own.
        for parts in (1, 2):
            self.tokenize([text for text in texts if len(text[1]) == parts], rows, failures)
        return rows, failures

    def encoded(self, item: Any) -> Mapping | None:
        """The item, if it is encoded already."""
        return item if self.text_columns is None and isinstance(item, Mapping) and "input_ids" in item else None

    def texts(self, item: Any) -> tuple[str, ...]:
        """The text of an item, or its two."""
        found = item
        if isinstance(item, Mapping):
            names = self.text_columns
            if names is None:
                names = ("text",) if item.get("text_pair") is None else ("text", "text_pair")
            missing = [name for name in names if name not in item]
            if missing:
                raise ValueError(
                    f"it is a mapping of {sorted(map(str, item))} without {missing[0]!r}: name the column of its text "
                    "with `text_column`, or encode it."
                )
            found = tuple(item[name] for name in names)
        elif isinstance(item, str):
            found = (item,)
        known = isinstance(found, (tuple, list)) and len(found) in (1, 2)
        if not known or not all(isinstance(text, str) for text in found):
            raise ValueError(
                f"it is {item!r:.80} ({type(item).__name__}): give a str, a pair of str, a mapping with `text` (and "
                "`text_pair`) or an encoded mapping with `input_ids`."
            )
        if not isinstance(item, (str, Mapping)) and len(found) == 1:
            raise ValueError(f"it is {item!r:.80}, a list of one text: give the text, or a pair.")
        return tuple(found)

    def tokenize(self, items: list[tuple[int, tuple[str, ...]]], rows: list[Row], failures: list[Answers]) -> None:
        """Appends the rows of texts (all single, or all pairs) to `rows`, or the answers to them to `failures`."""
        if not items:
            return
        try:
            if self.tokenizer is None:
                raise ValueError("it is a text, but there is no tokenizer: give `EarlyExitPredictor` one.")
            encoded = self.tokenizer(
                *(list(texts) for texts in zip(*(texts for _, texts in items), strict=True)),
                padding=False,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                return_attention_mask=False,
            )
        except Exception as error:
            # Which of them it was shows when they come alone.
            if len(items) == 1:
                failures.append(failure(items[0][0], error))
            else:
                for item in items:
                    self.tokenize([item], rows, failures)
            return
        for place, (index, _) in enumerate(items):
            try:
                rows.append(self.row(index, {name: values[place] for name, values in encoded.items()}))
            except ValueError as error:
                failures.append(failure(index, error))

    def row(self, index: int, encoded: Mapping) -> Row:
        """Checks one encoded sample, and cuts its padding off."""
        tokens = {
            name: integers(name, encoded[name]) for name in ("input_ids", *self.names) if encoded.get(name) is not None
        }
        ids, mask = tokens["input_ids"], encoded.get("attention_mask")
        if mask is not None:
            mask = torch.as_tensor(mask)
        for name, values in {**tokens, "attention_mask": ids if mask is None else mask}.items():
            if values.shape != ids.shape or not len(values):
                raise ValueError(
                    f"its `{name}` has the shape {tuple(values.shape)}, its `input_ids` {tuple(ids.shape)}: give one "
                    "number a token, and at least one token."
                )
        if mask is not None:
            mask, attended = checked_mask(mask)
            tokens = {name: values[attended] for name, values in tokens.items()}
        for name, size in self.sizes.items():
            check_ids(f"its `{name}`", tokens.get(name), size)
        length = len(tokens["input_ids"])
        if self.limit is not None and length > self.limit and "position_ids" not in tokens:
            raise ValueError(
                f"it has {length} tokens, but the position table of this model holds {self.limit}: set `max_length` "
                f"(at most {self.limit}), which cuts texts, or cut it yourself."
            )
        return Row(index, tokens, mask)

    def other_columns(self, row: Row, wanted: list[str] | None) -> Answers:
        return failure(
            row.index,
            ValueError(f"it has {sorted(row.tokens)}, but the first sample has {wanted}: encode all of them alike."),
        )


def rows_of(items: Any) -> Any:
    """
    The rows of a table, which iterates over its column names: a pandas data frame's as mappings; other items stay.

    Raises:
        ValueError: for other tables.
    """
    if not hasattr(items, "columns"):
        return items
    if not hasattr(items, "iterrows"):
        raise ValueError(
            f"`items` is a table ({type(items).__name__}), which iterates over its columns: give its rows, for "
            "example `items.to_pylist()` or `items.to_dicts()`."
        )
    return items.to_dict("records")


def integers(name: str, values: Any) -> torch.Tensor:
    """Values as an int64 tensor on the CPU."""
    tensor = torch.as_tensor(values)
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"its `{name}` are {tensor.dtype}: give whole numbers.")
    return tensor.long().cpu()


def checked_mask(mask: torch.Tensor) -> tuple[torch.Tensor | None, slice]:
    """The mask between the first and the last attended token, `None` if it has no holes there, and that range."""
    mask = mask.cpu()
    if not bool((mask >= 0).all()):  # NaN is neither
        raise ValueError("its `attention_mask` has negative values or NaN: give 1 for attended tokens, 0 for others.")
    attended = mask.nonzero()[:, 0].tolist()
    if not attended:
        raise ValueError("its `attention_mask` attends to no token: give 1 for attended tokens.")
    span = slice(attended[0], attended[-1] + 1)
    holes = len(attended) < span.stop - span.start
    return mask[span].ne(0).long() if holes else None, span


def failure(index: int, error: Exception) -> Answers:
    """The answer to a sample that cannot be a row."""
    reported = ValueError(f"Sample {index} of the input cannot be classified: {error}")
    reported.__cause__ = error
    return Answers([index], error=reported)


def take(items: Iterator, count: int, stopped: Callable[[], bool]) -> tuple[list, Exception | None]:
    """The next `count` items, or as many as there are before `stopped` is true or an error, which comes with them."""
    taken = []
    try:
        for item in islice(items, count):
            taken.append(item)
            if stopped():
                break
    except Exception as error:
        return taken, error
    return taken, None
