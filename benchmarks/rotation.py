"""Timing of several functions in one alternating rotation, so that a busy moment hits all of them alike."""

import gc
import statistics
import time
from collections.abc import Callable


def time_rotation(functions: dict[str, Callable], repeats: int, warmup: int = 3) -> dict[str, list[float]]:
    """
    Calls every function once a round, in turn.

    Args:
        functions (`dict[str, Callable]`): What to time, without arguments.
        repeats (`int`): Rounds that count.
        warmup (`int`): Rounds before that do not.

    Returns:
        `dict` of seconds, one for each counted round.
    """
    seconds = {name: [] for name in functions}
    gc.collect()
    gc.disable()
    try:
        for round_ in range(-warmup, repeats):
            for name, function in functions.items():
                start = time.perf_counter()
                function()
                if round_ >= 0:
                    seconds[name].append(time.perf_counter() - start)
    finally:
        gc.enable()
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str) -> float:
    """Median over the rounds of one function's time divided by the other's in the same round."""
    return statistics.median(a / b for a, b in zip(seconds[name], seconds[base], strict=True))
