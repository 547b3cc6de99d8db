"""Classifying many texts with early exit, with full batches in all layers."""

import copy
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from ..checks import check_count
from ..models.configuration_early_exit_deebert import class_names
from ..models.exit_loop_deebert import has_exits
from ..models.exit_plan_deebert import ExitPlan
from ..processes import shared_state
from .predictions import Answers, Prediction, Predictions, predictions_of
from .prefetch import Prefetch
from .scheduler import Scheduler
from .tokenizing import RowReader, rows_of


class EarlyExitPredictor:
    """
    Classifies many texts. A row exits at the first confident off-ramp, as in `model(...)`, and the active rows go on
    together with those of other batches, so that deep layers run on full batches as well.

    Texts are read and tokenized ahead in a thread, sorted by length in windows, and cut into batches. What a row gets
    is what `model(**row, early_exit_entropy=…)` gives it alone (within float rounding; an ONNX export in int8 is the
    exception: there batch mates share scales). Input may be endless: at most two windows of texts are held,
    `batch_size * L` rows are active in the L layers, and no row is held behind a layer for longer than a window, even
    where few rows get.

    Full batches pay where small ones waste the hardware. On one or two cores that is below about 100 tokens: at batch
    size 8 they gain, at 32 and above a loop over batches sorted by length is about as fast.

    The model stays as it is, and other threads may use it at the same time; each thread needs a predictor of its own.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier in eval mode, on any device; it may be wrapped by PEFT.
        tokenizer (`PreTrainedTokenizerBase`, *optional*):
            For texts; a copy of it is used. Not needed for rows that are encoded already.
        batch_size (`int`, *optional*, defaults to 32):
            Rows that go through a layer together.
        window (`int`, *optional*, defaults to 256):
            Number of batches that are sorted by length together. Larger windows pad less, and take longer before the
            first answer, because a window is read to its end: 1 suits texts that come one by one.
        max_length (`int`, *optional*):
            Texts are cut to so many tokens. `None`: they are not cut, and one that the model has no positions for is
            an error.

    Raises:
        ValueError: for a model without off-ramps or head, and numbers out of range.

    ```python
    >>> from transformers_deebert import EarlyExitPredictor

    >>> predictor = EarlyExitPredictor(model, tokenizer, max_length=128)  # doctest: +SKIP
    >>> answers = predictor.predict(texts, early_exit_entropy=0.3)  # doctest: +SKIP
    >>> answers.labels[:2], answers.exit_layers[:2]  # doctest: +SKIP
    (['positive', 'negative'], tensor([2, 5]))
    >>> for answer in predictor.stream(line.strip() for line in file):  # doctest: +SKIP
    ...     print(answer.label, answer.score, answer.exit_layer)

    ```
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        batch_size: int = 32,
        window: int = 256,
        max_length: int | None = None,
    ):
        unwrap = getattr(model, "get_base_model", None)
        self.model = model if unwrap is None else unwrap()
        if not has_exits(self.model):
            raise ValueError(
                f"`model` is a `{type(self.model).__name__}`, but this needs a classifier with off-ramps: load it "
                "with `AutoModelForSequenceClassification`, or make one with `from_backbone` and train it."
            )
        self.batch_size = check_count("batch_size", batch_size)
        self.window = check_count("window", window)
        self.max_length = None if max_length is None else check_count("max_length", max_length)
        limit = self.model.max_tokens()
        if limit is not None and self.max_length is not None and self.max_length > limit:
            raise ValueError(
                f"`max_length` is {max_length}, but the position table of this model holds {limit}: set it to at most "
                f"{limit}."
            )
        # Fast tokenizers keep truncation as a state that calls in other threads would change.
        self.tokenizer = copy.deepcopy(tokenizer)
        self._counts = [0] * len(self.model.exit_layers)
        self._lock = threading.Lock()

    def predict(
        self,
        items: Any,
        batch_size: int | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion: Any = None,
        exit_layer: int | None = None,
        text_column: str | tuple[str, str] | None = None,
        errors: str = "raise",
        progress: bool = False,
    ) -> Predictions:
        """
        Classifies all items. Under `accelerate launch` each process runs its share of them, and every process gets all
        answers.

        Args:
            items:
                A list, data set or iterator of texts, pairs of texts, mappings with `text` (and `text_pair`), or
                encoded mappings with `input_ids` (and so on; padding is cut off, columns that the model does not take
                are ignored), or a pandas data frame of such columns. With several processes it needs a length and
                places.
            batch_size (`int`, *optional*):
                Instead of the predictor's.
            early_exit_entropy (`float` or `list[float]`, *optional*):
                Threshold S in nats, as in `model(...)`; by default the configuration decides.
            exit_criterion ([`ExitCriterion`] or `dict` of its fields, *optional*):
                Another score, with its threshold and patience, as in `model(...)`.
            exit_layer (`int`, *optional*):
                The layer whose exit answers every row, as in `model(...)`.
            text_column (`str` or a pair of `str`, *optional*):
                Where the text, or the two texts, of a mapping are.
            errors (`str`, *optional*, defaults to `"raise"`):
                What becomes of a sample that cannot be classified, or that the model fails on (with all others of its
                batch): `"raise"` raises what is wrong with it as soon as it shows, `"return"` leaves it without an
                answer, its error in `errors` of what is returned.
            progress (`bool`, *optional*, defaults to `False`):
                Whether to show a progress bar.

        Returns:
            [`Predictions`]: in the order of the input.

        Raises:
            ValueError: for a model in training mode, arguments out of range, and samples that cannot be classified,
                which are named by their index.
            RuntimeError: for a failure of the model; names the samples of its batch.
        """
        exits = {
            "early_exit_entropy": early_exit_entropy,
            "exit_criterion": exit_criterion,
            "exit_layer": exit_layer,
        }
        items = rows_of(items)
        settings = self.make_settings(items, batch_size, exits, text_column, errors)
        state = shared_state()
        rank, world = (0, 1) if state is None else (state.process_index, state.num_processes)
        size = len(items) if hasattr(items, "__len__") else None
        source: Iterable[tuple[int, Any]] = enumerate(items)
        if world > 1:
            if size is None or not hasattr(items, "__getitem__"):
                raise ValueError(
                    f"`items` is a `{type(items).__name__}`, which {world} processes cannot share out: give a list or "
                    "a data set with a length, or let each process `stream` what is its own."
                )
            source = ((index, items[index]) for index in range(size * rank // world, size * (rank + 1) // world))
        parts = self._run(source, *settings)
        if world > 1:
            parts = gather(parts)
        done = []
        with closing(parts), progress_bar(size, progress and rank == 0) as bar:
            for part in parts:
                if part.error is not None and errors == "raise":
                    raise part.error
                done.append(part)
                bar.update(len(part.indices))
        return Predictions.join(done, sum(len(part.indices) for part in done), self.model.config)

    def stream(
        self,
        items: Iterable[Any],
        in_order: bool = True,
        batch_size: int | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion: Any = None,
        exit_layer: int | None = None,
        text_column: str | tuple[str, str] | None = None,
        errors: str = "raise",
    ) -> Iterator[Prediction]:
        """
        Classifies items as they come, in this process. They are read in a thread, a window at a time; leaving the loop
        ends it. An error of the iterator itself is raised when all items that came before have been answered.

        Args:
            items: As in [`predict`], or an endless iterator.
            in_order (`bool`, *optional*, defaults to `True`):
                Whether answers come in the order of the items, or else as they are found, with their `index`.
            batch_size, early_exit_entropy, exit_criterion, exit_layer, text_column: As in [`predict`].
            errors (`str`, *optional*, defaults to `"raise"`):
                `"return"` yields an answer with `error` for a sample that failed; `"raise"` raises the error in its
                stead, when all answers that come before it have been yielded.

        Yields:
            [`Prediction`]

        Raises:
            ValueError, RuntimeError: As [`predict`].
        """
        exits = {
            "early_exit_entropy": early_exit_entropy,
            "exit_criterion": exit_criterion,
            "exit_layer": exit_layer,
        }
        items = rows_of(items)
        settings = self.make_settings(items, batch_size, exits, text_column, errors)
        return self._stream(items, in_order, errors, settings)

    def exit_counts(self, reset: bool = False) -> tuple[int, ...]:
        """
        How many samples have exited at each of `model.exit_layers` (by default 1 … L) since the predictor was made or
        the counts were reset: a service that watches them notices when its texts change. Other threads may call it.
        Each of several processes counts its own samples.

        Args:
            reset (`bool`, *optional*, defaults to `False`): Whether to begin again at 0.
        """
        with self._lock:
            counts = tuple(self._counts)
            if reset:
                self._counts = [0] * len(counts)
        return counts

    def make_settings(
        self, items: Any, batch_size: Any, exits: dict, text_column: Any, errors: Any
    ) -> tuple[ExitPlan, int, RowReader]:
        """What a call's arguments make: which samples exit where, the batch size, and how to read items."""
        iterable = hasattr(items, "__iter__") or hasattr(items, "__getitem__")
        if isinstance(items, (str, bytes, Mapping)) or not iterable:
            raise ValueError(
                f"`items` must be a list, a data set or an iterator of samples, got {items!r:.80} "
                f"({type(items).__name__}): put a single sample into a list."
            )
        if errors not in ("raise", "return"):
            raise ValueError(f'`errors` must be "raise" or "return", got {errors!r}.')
        columns = (text_column,) if isinstance(text_column, str) else text_column
        if columns is not None and (
            not isinstance(columns, (tuple, list))
            or len(columns) not in (1, 2)
            or not all(isinstance(column, str) for column in columns)
        ):
            raise ValueError(f"`text_column` must be the name of a column or a pair of names, got {text_column!r}.")
        batch_size = self.batch_size if batch_size is None else check_count("batch_size", batch_size)
        if self.model.training:
            raise ValueError("The model is in training mode, where no sample exits early: call `model.eval()` first.")
        plan = self.model.make_plan(**exits, output_off_ramp_logits=False)
        reader = RowReader(
            tokenizer=self.tokenizer,
            names=self.model.token_inputs,
            sizes=self.model.table_sizes(),
            limit=self.model.max_tokens(),
            max_length=self.max_length,
            text_columns=columns if columns is None else tuple(columns),
        )
        return plan, batch_size, reader

    def _run(
        self, items: Iterable[tuple[int, Any]], plan: ExitPlan, batch_size: int, reader: RowReader
    ) -> Generator[Answers, None, None]:
        """All answers, as they are found; raises what the iterator raised when it has no more."""
        scheduler = Scheduler(self.model, plan, batch_size, patience=batch_size * self.window)
        failures: list[Answers] = []

        def batches(windows: Iterable) -> Iterator[list]:
            for window in windows:
                failures.extend(window.failures)
                yield from window.batches

        with Prefetch(lambda stopped: reader.windows(items, batch_size, self.window, stopped)) as prefetch:
            for part in scheduler.run(batches(prefetch)):
                yield from take_all(failures)
                self.count(part)
                yield part
            yield from take_all(failures)
            if prefetch.error is not None:
                raise prefetch.error

    def _stream(
        self, items: Iterable[Any], in_order: bool, errors: str, settings: tuple[ExitPlan, int, RowReader]
    ) -> Iterator[Prediction]:
        config, names = self.model.config, tuple(class_names(self.model.config))
        with closing(self._run(enumerate(items), *settings)) as parts:
            found = (answer for part in parts for answer in predictions_of(part, config, names))
            for answer in ordered(found) if in_order else found:
                if answer.error is not None and errors == "raise":
                    raise answer.error
                yield answer

    def count(self, part: Answers) -> None:
        """Adds answers to [`exit_counts`]; failed ones do not count."""
        if part.error is None:
            with self._lock:
                self._counts[self.model.exit_layers.index(part.exit_layer)] += len(part.indices)


def take_all(values: list) -> Iterator:
    while values:
        yield values.pop(0)


def ordered(answers: Iterable[Prediction]) -> Iterator[Prediction]:
    """Answers in the order of their indices, each as soon as all before it are there."""
    early: dict[int, Prediction] = {}
    index = 0
    for answer in answers:
        early[answer.index] = answer
        while index in early:
            yield early.pop(index)
            index += 1


def progress_bar(total: int | None, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Rows", disable=not shown)


def gather(parts: Iterable[Answers]) -> Generator[Answers, None, None]:
    """The answers of all processes. What one of them fails with, all of them raise: none waits for another."""
    from accelerate.utils import gather_object

    error, own = None, []
    try:
        own = list(parts)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    shares = gather_object([(own, error)])
    for rank, (_, error) in enumerate(shares):
        if error is not None:
            raise RuntimeError(f"Process {rank} could not read its share of `items`: {error}")
    for own, _ in shares:
        yield from own
