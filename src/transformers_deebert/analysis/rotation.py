"""The timing loop: contenders in rotation, with warm-up, medians and a control."""

import gc
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from tqdm.auto import tqdm


Key = TypeVar("Key")
Call = Callable[[], Any]

QUIET = 0.03  # how far apart two runs of one model may be for a verdict
MOST_ROUNDS = 100  # within a budget of time
SHORT = 10  # seconds of work that show no progress bar


def time_rotation(
    contenders: Mapping[Key, Call],
    rounds: int,
    warm_up: int = 1,
    seconds: float | None = None,
    shuffle: bool = False,
    devices: Iterable[torch.device | str] = (),
    progress: bool = True,
) -> dict[Key, list[float]]:
    """
    Calls every contender once a round, so that a change of the machine's speed meets all alike. Each round begins with
    another one. Python's garbage collection waits meanwhile.

    Args:
        contenders (`Mapping[Key, Callable]`): What to time, without arguments.
        rounds (`int`): Rounds that are timed; with a budget, the least.
        warm_up (`int`, *optional*, defaults to 1): Calls of each contender before that.
        seconds (`float`, *optional*):
            Budget, times the number of contenders: after the first round as many, up to 100, as it allows.
        shuffle (`bool`, *optional*, defaults to `False`):
            Whether the order is drawn anew in each round, so that no contender always follows the same one.
        devices (*optional*): Accelerators that a call waits for before the clock stops.
        progress (`bool`, *optional*, defaults to `True`): Whether to show a progress bar after ten seconds.

    Returns:
        `dict[Key, list[float]]`: seconds of each round.
    """
    names, draw = list(contenders), random.Random(0)
    accelerators = [device for device in map(torch.device, devices) if device.type != "cpu"]
    done: list[dict[Key, float]] = []
    with _no_collections(), tqdm(total=rounds, desc="Timing", delay=SHORT, disable=not progress) as bar:
        for call in contenders.values():
            for _ in range(warm_up):
                call()
        while len(done) < rounds:
            first = len(done) % len(names)
            order = draw.sample(names, len(names)) if shuffle else names[first:] + names[:first]
            done.append({name: _seconds_of(contenders[name], accelerators) for name in order})
            if len(done) == 1 and seconds is not None:
                fitting = int(seconds * len(names) / sum(done[0].values()))
                bar.total = rounds = min(MOST_ROUNDS, max(rounds, fitting))
            bar.update()
    return {name: [taken[name] for taken in done] for name in names}


def in_blocks(calls: Sequence[Call], warm_up: int, size: int) -> Call:
    """
    A contender of many calls, which are too short to take turns one by one: the first time it makes `warm_up` of them,
    then each time the next `size`, over and over.
    """

    starts = itertools.cycle(range(0, len(calls), size))
    blocks = itertools.chain([calls[:warm_up]], (calls[start : start + size] for start in starts))

    def call_next() -> None:
        for call in next(blocks):
            call()

    return call_next


def median_ratio(seconds: Iterable[float], base: Iterable[float]) -> float:
    """Median over the rounds of one contender's time divided by another's in the same round."""
    return statistics.median(one / other for one, other in zip(seconds, base, strict=True))


def gap_between(one: float, other: float) -> float:
    """How far apart two times of the same work are, as a fraction of the shorter."""
    return max(one, other) / min(one, other) - 1


def efficiency(taken: float, full: float, bare: float, layer_cost_ratio: float) -> float:
    """The time that there would be if every saved layer saved its time, over that taken; `bare`: without layers."""
    return (bare + layer_cost_ratio * (full - bare)) / taken


def _seconds_of(call: Call, accelerators: Iterable[torch.device]) -> float:
    _synchronize(accelerators)
    begin = time.perf_counter()
    call()
    _synchronize(accelerators)
    return time.perf_counter() - begin


def _synchronize(accelerators: Iterable[torch.device]) -> None:
    for device in accelerators:
        torch.accelerator.synchronize(device)


@contextmanager
def _no_collections() -> Iterator[None]:
    """Python's garbage collection falls on no contender."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
