"""Single requests from many threads: they join between layers (continuous batching)."""

import itertools
import queue
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from ..checks import check_count
from ..models.configuration_early_exit_deebert import class_names
from .predictions import Answers, Prediction, predictions_of
from .predictor import EarlyExitPredictor
from .scheduler import Scheduler


@dataclass(frozen=True)
class Request:
    index: int
    texts: tuple[str, ...]
    future: "Future[Prediction]"


class OnlinePredictor:
    """
    Classifies texts as they come, from any number of threads: what a server needs. One thread of its own runs the
    model. Between two layers it begins what has come meanwhile, and rows that are at the same layer go on together, so
    that easy samples are answered while hard ones are still in the encoder. New requests and the deepest rows take
    turns: neither can hold up the other.

    What a text gets is what `model(**row, early_exit_entropy=…)` gives it alone, within float rounding.

    Args:
        model (`PreTrainedModel` or [`OnnxEarlyExitModel`]): An early-exit classifier in eval mode.
        tokenizer (`PreTrainedTokenizerBase`): A copy of it is used.
        batch_size (`int`, *optional*, defaults to 8): Rows that go through a layer together, at most.
        max_length (`int`, *optional*): Texts are cut to so many tokens.
        capacity (`int`, *optional*, defaults to 1024): Requests that are queued; more are refused.
        early_exit_entropy, exit_criterion, exit_layer:
            As in `model(...)`, for all requests; by default the configuration decides.

    Raises:
        ValueError: as [`EarlyExitPredictor`] and `model(...)` do.

    ```python
    >>> from transformers_deebert import OnlinePredictor

    >>> with OnlinePredictor(model, tokenizer, early_exit_entropy=0.3) as predictor:  # doctest: +SKIP
    ...     future = predictor.submit("A warm film.")
    ...     answer = future.result()  # or: await asyncio.wrap_future(future)
    ...     print(answer.label, answer.score, answer.exit_layer)

    ```
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        batch_size: int = 8,
        max_length: int | None = None,
        capacity: int = 1024,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion: Any = None,
        exit_layer: int | None = None,
    ):
        self.predictor = EarlyExitPredictor(model, tokenizer, batch_size, window=1, max_length=max_length)
        exits = {
            "early_exit_entropy": early_exit_entropy,
            "exit_criterion": exit_criterion,
            "exit_layer": exit_layer,
        }
        plan, self.batch_size, self.reader = self.predictor.make_settings([], None, exits, None, "return")
        self.config = self.predictor.model.config
        self.names = tuple(class_names(self.config))
        self.scheduler = Scheduler(self.predictor.model, plan, self.batch_size, patience=1)
        self.requests: queue.Queue[Request | None] = queue.Queue(check_count("capacity", capacity))
        self.indices = itertools.count()
        self.futures: dict[int, Future[Prediction]] = {}  # of rows that have begun
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._run, name="deebert-online", daemon=True)
        self.thread.start()

    def submit(self, text: str, text_pair: str | None = None) -> "Future[Prediction]":
        """
        Queues a text, or a pair of texts.

        Returns:
            `concurrent.futures.Future` of a [`Prediction`]; it raises `ValueError` for a text that cannot be
            classified, `RuntimeError` for a failure of the model. Cancelling it before it has begun spares the work.

        Raises:
            ValueError: for what is no text.
            queue.Full: where `capacity` requests are queued: the caller may try again later.
            RuntimeError: behind [`close`].
        """
        texts = (text,) if text_pair is None else (text, text_pair)
        for name, value in zip(("text", "text_pair"), texts, strict=False):
            if not isinstance(value, str):
                raise ValueError(f"`{name}` must be a str, got {value!r:.80} ({type(value).__name__}).")
        if self.closing.is_set():
            raise RuntimeError("This predictor is closed: make another one.")
        request = Request(next(self.indices), texts, Future())
        self.requests.put_nowait(request)
        return request.future

    def exit_counts(self, reset: bool = False) -> tuple[int, ...]:
        """As [`EarlyExitPredictor.exit_counts`]."""
        return self.predictor.exit_counts(reset)

    def close(self) -> None:
        """Answers what was submitted, and ends the thread."""
        if not self.closing.is_set():
            self.closing.set()
            self.requests.put(None)  # wakes the thread where it is idle
        self.thread.join()

    def __enter__(self) -> "OnlinePredictor":
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def _run(self) -> None:
        while True:
            requests = self._next_requests()
            if requests:
                self._begin(requests)
            if (layer := self.scheduler.deepest()) is not None:
                self._answer(self.scheduler.go_on(layer))
            elif self.closing.is_set() and self.requests.empty():
                return

    def _next_requests(self) -> list[Request]:
        """Up to a batch of queued requests; where the model is idle, as soon as there is one."""
        found: list[Request] = []
        idle = not self.scheduler.active and not self.closing.is_set()
        try:
            while len(found) < self.batch_size:
                request = self.requests.get(block=idle and not found)
                if request is None:
                    break
                if request.future.set_running_or_notify_cancel():
                    found.append(request)
        except queue.Empty:
            pass
        return found

    def _begin(self, requests: list[Request]) -> None:
        self.futures |= {request.index: request.future for request in requests}
        rows, failures = self.reader.read(
            [(request.index, request.texts if len(request.texts) > 1 else request.texts[0]) for request in requests]
        )
        self._answer(failures)
        if rows:
            self._answer(self.scheduler.begin(rows))

    def _answer(self, parts: list[Answers]) -> None:
        for part in parts:
            self.predictor.count(part)
            for answer in predictions_of(part, self.config, self.names):
                future = self.futures.pop(answer.index)
                if answer.error is None:
                    future.set_result(answer)
                else:
                    future.set_exception(answer.error)
