"""An iterator that runs ahead in a thread of its own."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any


class Prefetch:
    """
    Runs an iterator in a background thread, one value ahead of its consumer. A context manager whose exit ends the
    thread. Only a thread that is blocked inside the iterator outlives that, until the iterator gives its next value;
    it is a daemon and keeps no process alive.

    An error in the iterator ends the values; it is kept in `error`, for the consumer to raise.

    Args:
        make (`Callable`):
            Makes the iterator. Is given a function without arguments that returns whether the thread shall end, to be
            called between steps that may take long.
    """

    def __init__(self, make: Callable[[Callable[[], bool]], Iterator]):
        self.error: BaseException | None = None
        self._make = make
        self._values: queue.SimpleQueue = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="early-exit-tokenizing", daemon=True)

    def _work(self) -> None:
        try:
            for value in self._make(self._stop.is_set):
                self._values.put((value,))
                self._wanted.acquire()
                if self._stop.is_set():
                    return
        except BaseException as error:  # whatever it is, the consumer must not block for ever
            self.error = error
        finally:
            self._values.put(None)

    def __enter__(self) -> "Prefetch":
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Any]:
        while (value := self._values.get()) is not None:
            self._wanted.release()
            yield value[0]

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._wanted.release()
        self._thread.join(timeout=1.0)
