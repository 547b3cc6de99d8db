"""Choosing a threshold by what it shall give, if wanted with a guarantee."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .exit_curve import exit_curve
from .exit_table import ExitTable
from .sweep import interval


# The guarantee tests the thresholds ln(labels) * i / STEPS in turn, a sequence that is fixed before any data is seen.
STEPS = 200


@dataclass(frozen=True)
class ThresholdChoice:
    """
    A threshold and what it is worth.

    Args:
        threshold (`float`): S in nats; 0 where nothing else meets the target.
        met (`bool`): Whether the target is met.
        reason (`str`): How it was chosen, or why nothing could be, in a sentence or two.
        layer_saving, accuracy, full_accuracy, accuracy_change (`float`): On the rows that it was read on.
        layer_saving_interval, accuracy_change_interval (`tuple[float, float]`): 95 % bootstrap intervals of these.
        rows (`int`): How many rows it was read on.
        harmful_flips (`int`, *optional*):
            With a guarantee: rows that the full depth answers right and this threshold wrong.
    """

    threshold: float
    met: bool
    reason: str
    layer_saving: float
    layer_saving_interval: tuple[float, float]
    accuracy: float
    full_accuracy: float
    accuracy_change: float
    accuracy_change_interval: tuple[float, float]
    rows: int
    harmful_flips: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and strings, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def pick_threshold(
    table: ExitTable,
    *,
    target_saving: float | None = None,
    max_score_drop: float | None = None,
    confidence: float | None = None,
    seed: int = 0,
) -> ThresholdChoice:
    """
    Picks one threshold for all off-ramps.

    Without `confidence` it is chosen on one random half of the rows and read on the other: what is told of it is an
    honest estimate, but the drop on new rows may well be larger than the bound.

    With `confidence` the drop is *guaranteed*: with this probability over the draw of the table's rows, the accuracy
    on new rows of the same distribution is at most `max_score_drop` below that of the full depth. Thresholds are
    tested in rising order, in a sequence fixed beforehand, each by an exact binomial test of the share of harmful
    flips (full depth right, exit wrong), which bounds the drop from above; the last one before the first that fails is
    taken (Learn then Test, Angelopoulos et al., 2021: fixed-sequence testing).

    Args:
        table ([`ExitTable`]): Rows that the model was not trained on; at least four.
        target_saving (`float`, *optional*): Share of the layers to save, between 0 and 1; or `max_score_drop`.
        max_score_drop (`float`, *optional*): Largest loss of accuracy, between 0 and 1: 0.005 is half a point.
        confidence (`float`, *optional*): Probability of the guarantee, for example 0.95; with `max_score_drop`.
        seed (`int`, *optional*, defaults to 0): Of the split and of the bootstrap.

    Returns:
        [`ThresholdChoice`]: `met` says whether the target can be met.

    Raises:
        ValueError: for none or both of the targets, values out of range, a confidence without a bound, too few rows.
    """
    if (target_saving is None) == (max_score_drop is None):
        raise ValueError("Give exactly one of `target_saving` and `max_score_drop`.")
    given = {"target_saving": target_saving, "max_score_drop": max_score_drop, "confidence": confidence}
    for name, value in given.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value!r}: 0.01 is one point or one per cent.")
    if confidence is not None and max_score_drop is None:
        raise ValueError("`confidence` guarantees a bound: give `max_score_drop` with it.")
    if len(table) < 4:
        raise ValueError(f"`table` has {len(table)} rows, of which halves cannot be made: collect more.")
    bound = max_score_drop or 0.0
    if confidence is not None:
        return guaranteed_choice(table, bound, confidence, seed)
    choosing, reading = table.split(seed)
    curve = exit_curve(choosing)
    if target_saving is not None:
        allowed = np.nonzero(curve.layer_saving >= target_saving)[0]
        met, point = len(allowed) > 0, int(allowed[0]) if len(allowed) else int(curve.layer_saving.argmax())
        target = f"the lowest that saves {target_saving:.1%} of the layers"
        failed = f"No threshold saves {target_saving:.1%} of the layers: this one saves most."
    else:
        # Rounding must not rule out an equal score.
        allowed = np.nonzero(curve.accuracy >= curve.accuracy[0] - bound - 1e-12)[0]
        point = int(allowed[curve.layer_saving[allowed].argmax()])
        met = bool(curve.layer_saving[point] > 0)
        target = f"the one that saves most while losing at most {points(bound)} of accuracy"
        failed = f"No threshold saves anything while losing at most {points(bound)} of accuracy."
    reason = (
        f"Among the {len(curve):,} thresholds at which a decision changes, {target} on {len(choosing):,} rows, read "
        f"on {len(reading):,} others."
    )
    return read_choice(reading, float(curve.thresholds[point]), met, reason if met else failed, seed)


def guaranteed_threshold(table: ExitTable, bound: float, confidence: float) -> tuple[float, int]:
    """
    The highest threshold of the sequence before the first whose share of harmful flips might be more than `bound`, and
    its harmful flips; 0 where that is the very first.
    """
    from scipy.stats import binom

    rows, classes = len(table), table.logits.shape[2]
    right = table.answers[:, -1] == table.labels
    chosen, harmful = 0.0, 0
    for threshold in math.log(classes) * np.arange(1, STEPS + 1) / STEPS:
        _, answers = table.exits_at(threshold)
        flips = int((right & (answers != table.labels)).sum())
        if binom.cdf(flips, rows, bound) > 1 - confidence:
            break
        chosen, harmful = float(threshold), flips
    return chosen, harmful


def guaranteed_choice(table: ExitTable, bound: float, confidence: float, seed: int) -> ThresholdChoice:
    """The choice of [`guaranteed_threshold`], or why nothing could be promised."""
    rows, (chosen, harmful) = len(table), guaranteed_threshold(table, bound, confidence)
    exits, _ = table.exits_at(chosen)
    met = bool((exits < table.num_layers).any())
    promise = f"the accuracy on new rows of the same distribution is at most {points(bound)} below full depth"
    if met:
        reason = f"With {confidence:.0%} confidence {promise}: {harmful} harmful flips in {rows:,} rows."
        return read_choice(table, chosen, True, reason, seed, harmful)
    needed = math.ceil(math.log(1 - confidence) / math.log1p(-bound))
    if rows < needed:
        why = f"even without a single harmful flip it takes {needed:,} rows, and there are {rows:,}"
    else:
        why = f"as soon as any of these {rows:,} rows leaves early, too many are answered wrong"
    reason = f"No threshold lets anything out so that, with {confidence:.0%} confidence, {promise}: {why}."
    return read_choice(table, 0.0, False, reason, seed, 0)


def read_choice(
    table: ExitTable, threshold: float, met: bool, reason: str, seed: int, harmful: int | None = None
) -> ThresholdChoice:
    """What a threshold gives on the rows of a table."""
    exits, answers = table.exits_at(threshold)
    saving = 1 - exits / table.num_layers
    right = (answers == table.labels).astype(float)
    full = (table.answers[:, -1] == table.labels).astype(float)
    generator = np.random.default_rng(seed)
    draws = [generator.integers(0, len(table), len(table)) for _ in range(1000)]
    savings, changes = (np.array([values[draw].mean() for draw in draws]) for values in (saving, right - full))
    return ThresholdChoice(
        threshold=threshold,
        met=met,
        reason=reason,
        layer_saving=float(saving.mean()),
        layer_saving_interval=interval(savings, 0.95),
        accuracy=float(right.mean()),
        full_accuracy=float(full.mean()),
        accuracy_change=float((right - full).mean()),
        accuracy_change_interval=interval(changes, 0.95),
        rows=len(table),
        harmful_flips=harmful,
    )


def points(share: float) -> str:
    """A share of 1 in words: 0.01 is one point."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"
