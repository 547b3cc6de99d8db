"""Selection of a threshold for a target, with a guarantee where wanted."""

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from ..models.exit_scores_deebert import SCORES
from .calibration import HIGHEST, LOWEST, fit_temperatures
from .decisions import Threshold, normalize_threshold
from .exit_curve import exit_curve
from .exit_table import ExitTable
from .layer_thresholds import search_layer_thresholds
from .scores import EXACT, Score, interval, make_score, points, row_worth
from .sweep import operating_point, threshold_grid
from .tables import threshold_text


if TYPE_CHECKING:
    from .latency import LatencyProfile

logger = logging.get_logger(__name__)

# The guarantee tests the thresholds largest score * i / STEPS in turn, a sequence fixed before any data is seen.
STEPS = 200
RESAMPLES = 1000


@dataclass(frozen=True)
class ThresholdChoice:
    """
    A threshold and what it is worth.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            Of the exit criterion's score, one number or one for each off-ramp; 0 where nothing else meets the target.
        fraction (`float` or `tuple[float, ...]`, *optional*):
            The same as a fraction of the largest score, ln(labels) for the entropy; `None` for a score without one.
        met (`bool`): Whether the target is met on the rows that it was chosen on.
        reason (`str`): How it was chosen, or why nothing could be, in a sentence or two.
        metric (`str`): What `score` is.
        score, full_score, score_change (`float`):
            With early exit, at full depth, and their difference, on the rows that it was read on.
        score_change_interval (`tuple[float, float]`): 95 % paired bootstrap interval over these rows.
        layer_saving (`float`): 1 minus layers run over layers in a full pass.
        layer_saving_interval (`tuple[float, float]`): 95 % bootstrap interval.
        rows (`int`): How many rows it was read on.
        row_worth (`float`): By how much the answer to one of them can move the score.
        latency_ms, full_latency_ms (`float`, *optional*):
            With a latency profile: expected milliseconds for a row, with early exit and at full depth.
        latency_ms_interval (`tuple[float, float]`, *optional*): 95 % bootstrap interval of `latency_ms`.
        harmful_flips (`int`, *optional*):
            With a guarantee: rows that the full depth answers right and this threshold wrong.
        temperatures (`tuple[float, ...]`, *optional*): Those of the table: the threshold is about no others.
        layers, labels (`int`): Of the model that it is for.
        exit_layers (`tuple[int, ...]`): The layers that its exits stand behind; empty: all.
        exit_score (`str`): Name of the exit criterion's score.
        patience (`int`): Of the exit criterion.
        is_ensemble (`bool`): Whether the table was that of an ensemble, which no model answers.
    """

    threshold: float | tuple[float, ...]
    fraction: float | tuple[float, ...] | None
    met: bool
    reason: str
    metric: str
    score: float
    full_score: float
    score_change: float
    score_change_interval: tuple[float, float]
    layer_saving: float
    layer_saving_interval: tuple[float, float]
    rows: int
    row_worth: float
    latency_ms: float | None = None
    full_latency_ms: float | None = None
    latency_ms_interval: tuple[float, float] | None = None
    harmful_flips: int | None = None
    temperatures: tuple[float, ...] | None = None
    layers: int = 0
    labels: int = 0
    is_ensemble: bool = False
    exit_layers: tuple[int, ...] = ()
    exit_score: str = "entropy"
    patience: int = 1

    @property
    def exit_settings(self) -> dict[str, Any]:
        """The exit settings of a call, or of a configuration, that exits so: exactly one of them is not `None`."""
        threshold = list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold
        settings = dict.fromkeys(("early_exit_entropy", "exit_criterion", "exit_layer"))
        if (self.exit_score, self.patience) == ("entropy", 1):
            return settings | {"early_exit_entropy": threshold}
        criterion = {"score": self.exit_score, "threshold": threshold, "patience": self.patience}
        return settings | {"exit_criterion": criterion}

    @property
    def call_arguments(self) -> str:
        """The exit settings of a call as Python code."""
        numbers = threshold_text(self.threshold)
        numbers = f"[{numbers}]" if isinstance(self.threshold, tuple) else numbers
        if self.exit_settings["early_exit_entropy"] is not None:
            return f"early_exit_entropy={numbers}"
        if self.exit_score in SCORES:
            return (
                f'exit_criterion={{"score": "{self.exit_score}", "threshold": {numbers}, "patience": {self.patience}}}'
            )
        return f"exit_criterion=ExitCriterion({self.exit_score}, {numbers}, {self.patience})"

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ThresholdChoice":
        """The choice that [`to_dict`] gave, also after a way through JSON."""
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and strings, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def pick_threshold(
    table: ExitTable,
    *,
    target_saving: float | None = None,
    max_score_drop: float | None = None,
    target_latency_ms: float | None = None,
    confidence: float | None = None,
    metric: str = "accuracy",
    score: Score | None = None,
    latency: "LatencyProfile | None" = None,
    per_layer: bool = False,
    reading: ExitTable | None = None,
    temperatures: bool = False,
    seed: int = 0,
) -> ThresholdChoice:
    """
    Picks a threshold by one target.

    Without `confidence` it is chosen on one random half of the rows and read on the other, or on `reading`: what is
    told of it is an honest estimate, but the drop on new rows may well be larger than the bound.

    With `confidence` the drop is *guaranteed*: with this probability over the draw of the table's rows, the accuracy
    on new rows of the same distribution is at most `max_score_drop` below that of the full depth. Thresholds are
    tested in rising order, in a sequence fixed beforehand, each by an exact binomial test of the share of harmful
    flips (full depth right, exit wrong), which bounds the drop from above; the last one before the first that fails is
    taken (Learn then Test, Angelopoulos et al., 2021: fixed-sequence testing).

    Args:
        table ([`ExitTable`]):
            Rows that the model was not trained on, at least four; the threshold is one of its score, with its patience
            ([`ExitTable.with_score`]).
        target_saving (`float`, *optional*): Share of the layers to save, between 0 and 1.
        max_score_drop (`float`, *optional*):
            Largest loss of score: 0.005 is half a point. Not negative, below 1; the most is saved within it.
        target_latency_ms (`float`, *optional*): Expected milliseconds for a row, by `latency`.
        confidence (`float`, *optional*): Probability of the guarantee, for example 0.95; with `max_score_drop`.
        metric (`str`, *optional*, defaults to `"accuracy"`):
            The score, higher is better: `"accuracy"`, `"f1"` (of class 1 with two classes, the mean over the classes
            with more), both at every threshold where a decision changes; or one that `score` returns, at up to 200
            quantiles of the scores.
        score (`Callable` or module of `evaluate`, *optional*):
            As for [`sweep_thresholds`]; called a few thousand times.
        latency ([`LatencyProfile`], *optional*): From [`measure_latency`].
        per_layer (`bool`, *optional*, defaults to `False`):
            Whether to search for a threshold of its own for each off-ramp ([`search_layer_thresholds`]). On the rows
            that it is chosen on that is never worse; on others it may be. Of the thresholds that save enough, or are
            fast enough, it takes those of best score, where one threshold for all is the lowest.
        reading ([`ExitTable`], *optional*):
            Other rows to read the choice on; all of `table` is then chosen on.
        temperatures (`bool`, *optional*, defaults to `False`):
            Whether to fit a temperature for each off-ramp first ([`fit_temperatures`]), on the rows that it is chosen
            on. A guarantee then is about the other rows alone, which have no part in what is fitted.
        seed (`int`, *optional*, defaults to 0): Of the split and of the bootstrap.

    Returns:
        [`ThresholdChoice`]: `met` says whether the target can be met.

    Raises:
        ValueError: for none or several of the targets, values out of range, a confidence without a bound, with
            another metric than accuracy or with a score of one's own, a latency target without a profile, too few
            rows, `per_layer` with a criterion whose exits depend on each other.
    """
    check_targets(target_saving, max_score_drop, target_latency_ms, confidence, latency)
    if confidence is not None and (metric != "accuracy" or score is not None or per_layer):
        raise ValueError(
            "`confidence` guarantees accuracy, with one threshold for all off-ramps: leave out `metric`, `score` and "
            "`per_layer`, or `confidence`."
        )
    if confidence is not None and table.largest_score is None:
        raise ValueError(
            f"`confidence` needs a score whose largest value is known beforehand, which {table.score_name!r} is not: "
            "leave it out, or use a score of the library."
        )
    if reading is None and len(table) < 4:
        raise ValueError(f"`table` has {len(table)} rows, of which halves cannot be made: collect more.")
    if reading is not None:
        table.check_alike(reading)
    if temperatures:
        table, reading = calibrated(table, reading, seed)
        if confidence is not None:
            table, reading = reading, None
    if confidence is not None:
        return guaranteed_choice(table, reading, max_score_drop or 0.0, confidence, latency, seed)
    if reading is None:
        choosing, reading = table.split(seed)
        where = f"on one random half of the rows ({len(choosing):,}), read on the other ({len(reading):,})"
    else:
        choosing = table
        others = "the same" if reading is table else f"{len(reading):,} others"
        where = f"on {len(choosing):,} rows, read on {others}"
    candidates = make_candidates(choosing, metric, score, latency)
    targets = (target_saving, max_score_drop, target_latency_ms)
    chosen, met, words = choose(candidates, metric, *targets)
    if per_layer:
        candidates = make_layer_candidates(choosing, metric, score, latency, extra=candidates.thresholds[chosen])
        chosen, met, words = choose(candidates, metric, *targets, best_score=True)
    threshold = candidates.thresholds[chosen]
    if met:
        number = f"{len(candidates.thresholds):,} {'vectors of thresholds' if per_layer else 'thresholds'}"
        words = f"Of {number}, {words}, chosen {where}."
        words += " Off-ramps are scaled by temperatures fitted on the first." if temperatures else ""
    return read_choice(reading, threshold, met, words, metric, score, latency, seed)


def calibrated(table: ExitTable, reading: ExitTable | None, seed: int) -> tuple[ExitTable, ExitTable]:
    """The rows to choose on and those to read on, off-ramps scaled by temperatures that are fitted on the first."""
    fitted_on, others = table.split(seed) if reading is None else (table, reading)
    fit = fit_temperatures(fitted_on, reading=others)
    if any(not 1.01 * LOWEST < value < HIGHEST / 1.01 for value in fit.temperatures):
        logger.warning(
            "An off-ramp is correct so often, or so seldom, that its temperature reached its bound: give more rows."
        )
    return fitted_on.with_temperatures(fit.temperatures), others.with_temperatures(fit.temperatures)


def check_targets(
    target_saving: float | None,
    max_score_drop: float | None,
    target_latency_ms: float | None,
    confidence: float | None,
    latency: "LatencyProfile | None",
) -> None:
    """Raises `ValueError` unless there is one target, in range, with what it needs."""
    targets = {
        "target_saving": target_saving,
        "max_score_drop": max_score_drop,
        "target_latency_ms": target_latency_ms,
    }
    if sum(value is not None for value in targets.values()) != 1:
        raise ValueError("Give exactly one of `target_saving`, `max_score_drop` and `target_latency_ms`.")
    shares = {"target_saving": target_saving, "max_score_drop": max_score_drop, "confidence": confidence}
    for name, value in shares.items():
        may_be_zero = name == "max_score_drop" and confidence is None
        if value is not None and not (0 < value < 1 or (may_be_zero and value == 0)):
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value!r}: 0.01 is one point or one per cent.")
    if confidence is not None and max_score_drop is None:
        raise ValueError("`confidence` guarantees a bound: give `max_score_drop` with it.")
    if target_latency_ms is not None:
        if not 0 < target_latency_ms < math.inf:
            raise ValueError(f"`target_latency_ms` must be finite and above 0, got {target_latency_ms!r}.")
        if latency is None:
            raise ValueError("`target_latency_ms` needs `latency`: measure a profile with `measure_latency(model)`.")


@dataclass(frozen=True)
class Candidates:
    """Thresholds, and what they give on the rows that the choice is made on: arrays of shape `(candidates,)`."""

    thresholds: list[Threshold]
    layer_saving: np.ndarray
    score: np.ndarray
    full_score: float
    latency_ms: np.ndarray | None


def make_candidates(
    table: ExitTable, metric: str, score: Score | None, latency: "LatencyProfile | None"
) -> Candidates:
    """Every threshold where a decision changes, or quantiles where the score is not one of the curve's."""
    if score is None and metric in EXACT:
        curve = exit_curve(table, latency)
        scores = getattr(curve, metric)
        return Candidates(curve.thresholds.tolist(), curve.layer_saving, scores, scores[0], curve.latency_ms)
    return score_candidates(table, threshold_grid(table), metric, score, latency)


def make_layer_candidates(
    table: ExitTable, metric: str, score: Score | None, latency: "LatencyProfile | None", extra: Threshold
) -> Candidates:
    """Vectors of thresholds, and one more threshold."""
    vectors = search_layer_thresholds(table, None if latency is None else latency.of(table))
    return score_candidates(table, [extra, *vectors], metric, score, latency)


def score_candidates(
    table: ExitTable,
    thresholds: list[Any],
    metric: str,
    score: Score | None,
    latency: "LatencyProfile | None",
) -> Candidates:
    one = make_score(metric, score, table.num_labels)
    milliseconds = None if latency is None else latency.of(table)

    def scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {metric: one(predictions, labels)}

    full_score = one(table.answers[:, -1], table.labels)
    if not math.isfinite(full_score):
        raise ValueError(f"`metric` {metric!r} is {full_score} at full depth: choose another, or give more rows.")
    found = [operating_point(table, threshold, scores, milliseconds) for threshold in thresholds]
    return Candidates(
        thresholds,
        np.array([point.layer_saving for point in found]),
        np.array([point.scores[metric] for point in found]),
        full_score,
        None if latency is None else np.array([point.latency_ms for point in found]),
    )


def choose(
    candidates: Candidates,
    metric: str,
    target_saving: float | None,
    max_score_drop: float | None,
    target_latency_ms: float | None,
    best_score: bool = False,
) -> tuple[int, bool, str]:
    """
    The candidate that meets a target best, whether it does, and how it was chosen or why not. `best_score`: among
    those that save enough the one of highest score; otherwise the first, candidates being in rising order.
    """
    saving = candidates.layer_saving
    if max_score_drop is not None:
        # Rounding must not rule out an equal score.
        allowed = np.nonzero(candidates.score >= candidates.full_score - max_score_drop - 1e-12)[0]
        if not len(allowed) or saving[allowed].max() <= 0:
            within = f"losing at most {points(max_score_drop)} of {metric}"
            return int(saving.argmin()), False, f"No threshold saves anything while {within}."
        chosen = max(allowed, key=lambda index: (saving[index], candidates.score[index]))
        return int(chosen), True, f"the one that saves most while losing at most {points(max_score_drop)} of {metric}"
    if target_saving is not None:
        allowed, best = np.nonzero(saving >= target_saving - 1e-12)[0], int(saving.argmax())
        target, failed = f"that saves {target_saving:.1%} of the layers", f"saves {target_saving:.1%} of the layers"
        hint = "this one saves most"
    else:
        taken = np.asarray(candidates.latency_ms)
        allowed, best = np.nonzero(taken <= np.asarray(target_latency_ms) * (1 + 1e-9))[0], int(taken.argmin())
        target = f"that is expected to take at most {target_latency_ms:g} ms a row"
        failed, hint = f"takes at most {target_latency_ms:g} ms a row", "this one takes least"
    if not len(allowed):
        return best, False, f"No threshold {failed}: {hint}."
    if best_score:
        chosen = max(allowed, key=lambda index: (candidates.score[index], saving[index]))
        return int(chosen), True, f"the one of best {metric} {target}"
    return int(allowed[0]), True, f"the lowest {target}"


def guaranteed_threshold(table: ExitTable, bound: float, confidence: float) -> tuple[float, int, int]:
    """
    The highest threshold of the sequence before the first whose share of harmful flips might be more than `bound`, and
    its harmful flips; 0 where that is the very first. And the flips of the one that failed.
    """
    from scipy.stats import binom

    right = table.answers[:, -1] == table.labels
    chosen, harmful = 0.0, 0
    for threshold in (table.largest_score or 0.0) * np.arange(1, STEPS + 1) / STEPS:
        _, answers = table.exits_at(threshold)
        flips = int((right & (answers != table.labels)).sum())
        if binom.cdf(flips, len(table), bound) > 1 - confidence:
            return chosen, harmful, flips
        chosen, harmful = float(threshold), flips
    return chosen, harmful, harmful


def guaranteed_choice(
    table: ExitTable,
    reading: ExitTable | None,
    bound: float,
    confidence: float,
    latency: "LatencyProfile | None",
    seed: int,
) -> ThresholdChoice:
    """The choice of [`guaranteed_threshold`], or why nothing could be promised."""
    rows, (chosen, harmful, failed) = len(table), guaranteed_threshold(table, bound, confidence)
    exits, _ = table.exits_at(chosen)
    met = bool((exits < table.num_layers).any())
    promise = f"the accuracy on new rows of the same distribution is at most {points(bound)} below full depth"
    if met:
        reason = f"With {100 * confidence:g}% confidence {promise}: {flips_words(harmful)} in {rows:,} rows."
    else:
        enough = rows_needed(failed / rows, bound, confidence)
        if enough is None:
            why = (
                f"as soon as any of these {rows:,} rows leaves early, {failed / rows:.1%} of them are harmed, and no "
                "number of rows would be enough"
            )
        elif rows >= enough and not failed:
            why = "no off-ramp gives any of these rows a score below the largest that there is"
        elif failed:
            are = "is" if failed == 1 else "are"
            why = f"{flips_words(failed)} in {rows:,} rows {are} too many; about {enough:,} rows like these are enough"
        else:
            why = f"even without a single harmful flip it takes {enough:,} rows, and there are {rows:,}"
        reason = f"No threshold lets anything out so that, with {100 * confidence:g}% confidence, {promise}: {why}."
        chosen, harmful = 0.0, 0
    choice = read_choice(reading or table, chosen, met, reason, "accuracy", None, latency, seed)
    return replace(choice, harmful_flips=harmful)


def flips_words(number: int) -> str:
    return f"{number:,} harmful flip{'' if number == 1 else 's'}"


def rows_needed(share: float, bound: float, confidence: float) -> int | None:
    """How many rows pass the test where this share of them is harmed; `None` where none do."""
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


def read_choice(
    table: ExitTable,
    threshold: Threshold,
    met: bool,
    reason: str,
    metric: str,
    score: Score | None,
    latency: "LatencyProfile | None",
    seed: int,
) -> ThresholdChoice:
    """What a threshold gives on the rows of a table."""
    one = make_score(metric, score, table.num_labels)
    labels, full = table.labels, table.answers[:, -1]
    rows, places = np.arange(len(table)), table.places_at(threshold)
    answers = table.answers[rows, places]
    saving = 1 - np.asarray(table.exit_layers)[places] / table.num_layers
    milliseconds = None if latency is None else latency.of(table)
    taken = None if milliseconds is None else milliseconds[rows, places]
    generator = np.random.default_rng(seed)
    draws = [generator.integers(0, len(table), len(table)) for _ in range(RESAMPLES)]
    if metric == "accuracy" and score is None:
        flips = (answers == labels).astype(float) - (full == labels)
        changes = np.array([flips[draw].mean() for draw in draws])
    else:
        changes = np.array([one(answers[draw], labels[draw]) - one(full[draw], labels[draw]) for draw in draws])
    fraction = None if table.largest_score is None else np.asarray(threshold) / table.largest_score
    with_early_exit, at_full_depth = one(answers, labels), one(full, labels)
    return ThresholdChoice(
        threshold=normalize_threshold(threshold),
        fraction=None if fraction is None else normalize_threshold(fraction.tolist()),
        met=met,
        reason=reason,
        metric=metric,
        score=with_early_exit,
        full_score=at_full_depth,
        score_change=with_early_exit - at_full_depth,
        score_change_interval=interval(changes, 0.95),
        layer_saving=float(saving.mean()),
        layer_saving_interval=mean_interval(saving, draws),
        rows=len(table),
        row_worth=row_worth(full, labels, one, table.num_labels),
        latency_ms=None if taken is None else float(taken.mean()),
        full_latency_ms=None if milliseconds is None else float(milliseconds[:, -1].mean()),
        latency_ms_interval=None if taken is None else mean_interval(taken, draws),
        temperatures=table.temperatures,
        layers=table.num_layers,
        labels=table.num_labels,
        is_ensemble=table.is_ensemble,
        exit_layers=table.exit_layers,
        exit_score=table.score_name,
        patience=table.patience,
    )


def mean_interval(values: np.ndarray, draws: list[np.ndarray]) -> tuple[float, float]:
    return interval(np.array([values[draw].mean() for draw in draws]), 0.95)
