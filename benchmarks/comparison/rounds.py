"""Contenders take turns, as often as a budget of time allows."""

import gc
import time
from collections.abc import Callable, Mapping
from typing import Any


MOST_ROUNDS = 100


def run_once(functions: Mapping[Any, Callable]) -> dict[Any, Any]:
    """What each function returns; the first pass, where compilers and caches warm up."""
    return {name: function() for name, function in functions.items()}


def run_rounds(functions: Mapping[Any, Callable], seconds: float, least: int = 3) -> dict[Any, list[float]]:
    """
    Calls every function once a round; each round begins with another one, so that nobody always follows the same.

    Args:
        functions (`Mapping[Any, Callable]`): What to time, without arguments, warmed up.
        seconds (`float`): Budget for all rounds, times the number of functions.
        least (`int`): Rounds that are run whatever they take.

    Returns:
        `dict` of seconds, one for each round.
    """
    names = list(functions)
    gc.collect()
    gc.disable()
    try:
        done = [one_round(functions, names)]
        wanted = int(seconds * len(names) / sum(done[0].values()))
        for number in range(1, min(MOST_ROUNDS, max(least, wanted))):
            first = number % len(names)
            done.append(one_round(functions, names[first:] + names[:first]))
    finally:
        gc.enable()
    return {name: [seconds_of[name] for seconds_of in done] for name in names}


def one_round(functions: Mapping[Any, Callable], names: list[Any]) -> dict[Any, float]:
    seconds = {}
    for name in names:
        begin = time.perf_counter()
        functions[name]()
        seconds[name] = time.perf_counter() - begin
    return seconds
