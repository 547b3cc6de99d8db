"""Thresholds with a guarantee: Learn then Test (Angelopoulos et al., 2021), by fixed-sequence testing."""

import math
from bisect import bisect_left
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from .choice import ThresholdChoice, evaluated_choice
from .exit_table import ExitTable
from .metrics import points


if TYPE_CHECKING:
    from .latency import LatencyProfile


# The thresholds largest score * i / STEPS are tested in turn, a sequence fixed before any data is seen.
STEPS = 200


def guaranteed_threshold(table: ExitTable, bound: float, confidence: float) -> tuple[float, int, int]:
    """
    The highest threshold of the sequence before the first whose share of negative flips might be more than `bound`,
    and its negative flips; 0 where that is the very first. And the flips of the one that failed.
    """
    from scipy.stats import binom

    correct = table.answers[:, -1] == table.labels
    selected, negative = 0.0, 0
    for threshold in (table.largest_score or 0.0) * np.arange(1, STEPS + 1) / STEPS:
        _, answers = table.exits_at(threshold)
        flips = int((correct & (answers != table.labels)).sum())
        if binom.cdf(flips, len(table), bound) > 1 - confidence:
            return selected, negative, flips
        selected, negative = float(threshold), flips
    return selected, negative, negative


def guaranteed_choice(
    table: ExitTable,
    evaluate_on: ExitTable | None,
    bound: float,
    confidence: float,
    latency: "LatencyProfile | None",
    seed: int,
) -> ThresholdChoice:
    """The choice of [`guaranteed_threshold`], or why nothing could be promised."""
    rows, (selected, negative, failed) = len(table), guaranteed_threshold(table, bound, confidence)
    exits, _ = table.exits_at(selected)
    met = bool((exits < table.num_layers).any())
    promise = f"the accuracy on new rows of the same distribution is at most {points(bound)} below full depth"
    if met:
        reason = f"With {100 * confidence:g}% confidence {promise}: {flips_words(negative)} in {rows:,} rows."
    else:
        enough = rows_needed(failed / rows, bound, confidence)
        if enough is None:
            why = (
                f"as soon as any of these {rows:,} rows exits early, {failed / rows:.1%} are negative flips, and no "
                "number of rows would be enough"
            )
        elif rows >= enough and not failed:
            why = "no off-ramp gives any of these rows a score below the largest that there is"
        elif failed:
            are = "is" if failed == 1 else "are"
            why = f"{flips_words(failed)} in {rows:,} rows {are} too many; about {enough:,} rows like these are enough"
        else:
            why = f"even without a single negative flip it takes {enough:,} rows, and there are {rows:,}"
        reason = f"No threshold exits early so that, with {100 * confidence:g}% confidence, {promise}: {why}."
        selected, negative = 0.0, 0
    choice = evaluated_choice(evaluate_on or table, selected, met, reason, "accuracy", None, latency, seed)
    return replace(choice, negative_flips=negative)


def flips_words(number: int) -> str:
    return f"{number:,} negative flip{'' if number == 1 else 's'}"


def rows_needed(share: float, bound: float, confidence: float) -> int | None:
    """How many rows pass the test where this share of them are negative flips; `None` where none do."""
    from scipy.stats import binom

    if share >= bound:
        return None
    rows = math.ceil(math.log(1 - confidence) / math.log1p(-bound))  # enough without a flip
    while True:
        flips = math.ceil(share * rows)
        last = max(rows, int(flips / share)) if share else rows  # the most rows with so many flips

        def passes(number: int, flips: int = flips) -> bool:
            return bool(binom.cdf(flips, number, bound) <= 1 - confidence)

        if passes(last):
            return bisect_left(range(last + 1), True, lo=rows, key=passes)
        rows = max(last + 1, math.ceil(1.1 * rows))
