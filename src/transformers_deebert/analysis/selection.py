"""Selection of a threshold for a target, with a guarantee where wanted."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from ..checks import renamed_arguments
from .calibration import HIGHEST, LOWEST, fit_temperatures
from .choice import ThresholdChoice, evaluated_choice
from .decisions import Threshold
from .exit_curve import exit_curve
from .exit_table import ExitTable
from .guarantee import guaranteed_choice
from .layer_thresholds import search_layer_thresholds
from .metrics import EXACT, ComputeMetric, make_metric, points
from .sweep import operating_point, threshold_grid


if TYPE_CHECKING:
    from .latency import LatencyProfile

logger = logging.get_logger(__name__)


@renamed_arguments(max_score_drop="max_metric_drop", score="compute_metric", reading="evaluate_on")
def pick_threshold(
    table: ExitTable,
    *,
    target_saving: float | None = None,
    max_metric_drop: float | None = None,
    max_disagreement: float | None = None,
    target_latency_ms: float | None = None,
    confidence: float | None = None,
    metric: str = "accuracy",
    compute_metric: ComputeMetric | None = None,
    latency: "LatencyProfile | None" = None,
    per_layer: bool = False,
    evaluate_on: ExitTable | None = None,
    temperatures: bool = False,
    seed: int = 0,
) -> ThresholdChoice:
    """
    Selects a threshold by one target.

    Without `confidence` it is selected on one random half of the rows and evaluated on the other, or on `evaluate_on`:
    its figures are an honest estimate, but the drop on new rows may well be larger than the bound.

    With `confidence` the drop is *guaranteed*: with this probability over the draw of the table's rows, the accuracy
    on new rows of the same distribution is at most `max_metric_drop` below that of the full depth. Thresholds are
    tested in rising order, in a sequence fixed beforehand, each by an exact binomial test of the share of negative
    flips (full depth correct, early exit incorrect), which bounds the drop from above; the last one before the first
    that fails is selected (Learn then Test, Angelopoulos et al., 2021: fixed-sequence testing).

    Args:
        table ([`ExitTable`]):
            Rows that the model was not trained on, at least four; the threshold is one of its score, with its patience
            ([`ExitTable.with_score`]).
        target_saving (`float`, *optional*): Share of the layers to save, between 0 and 1.
        max_metric_drop (`float`, *optional*):
            Largest drop of the metric: 0.005 is half a point. Not negative, below 1; the most is saved within it.
        max_disagreement (`float`, *optional*):
            Largest share of rows whose answer is another one than at full depth; needs no labels. The metric of the
            choice is then `"agreement"`, and `confidence` guarantees that.
        target_latency_ms (`float`, *optional*): Expected milliseconds for a row, by `latency`.
        confidence (`float`, *optional*):
            Probability of the guarantee, for example 0.95; with `max_metric_drop` or `max_disagreement`.
        metric (`str`, *optional*, defaults to `"accuracy"`):
            The metric, higher is better: `"accuracy"`, `"f1"` (of class 1 with two classes, the mean over the classes
            with more), both at every threshold where a decision changes; or one that `compute_metric` returns, at up
            to 200 quantiles of the scores.
        compute_metric (`Callable` or module of `evaluate`, *optional*):
            As for [`sweep_thresholds`]; called a few thousand times.
        latency ([`LatencyProfile`], *optional*): From [`measure_latency`].
        per_layer (`bool`, *optional*, defaults to `False`):
            Whether to search for a threshold of its own for each off-ramp ([`search_layer_thresholds`]). On the rows
            that it is selected on that is never worse; on others it may be. Of the thresholds that save enough, or are
            fast enough, it takes those of best metric, where one threshold for all is the lowest.
        evaluate_on ([`ExitTable`], *optional*):
            Other rows to evaluate the choice on; all of `table` is then selected on.
        temperatures (`bool`, *optional*, defaults to `False`):
            Whether to fit a temperature for each off-ramp first ([`fit_temperatures`]), on the rows to select on. A
            guarantee is then computed on the other rows alone, which have no part in what is fitted.
        seed (`int`, *optional*, defaults to 0): Of the split and of the bootstrap.

    Returns:
        [`ThresholdChoice`]: its `met` is whether the target can be met.

    Raises:
        ValueError: for none or several of the targets, values out of range, a confidence without a bound, with
            another metric than accuracy, a latency target without a profile, too few
            rows, `per_layer` with a criterion whose exits depend on each other.
    """
    check_targets(target_saving, max_metric_drop, target_latency_ms, confidence, latency, max_disagreement)
    if max_disagreement is not None:
        if metric != "accuracy" or compute_metric is not None:
            raise ValueError("`max_disagreement` is about agreement alone: leave out `metric` and `compute_metric`.")
        choice = pick_threshold(
            table.against_full_depth(),
            max_metric_drop=max_disagreement,
            confidence=confidence,
            latency=latency,
            per_layer=per_layer,
            evaluate_on=None if evaluate_on is None else evaluate_on.against_full_depth(),
            temperatures=temperatures,
            seed=seed,
        )
        return replace(choice, metric="agreement", reason=choice.reason.replace("accuracy", "agreement"))
    if confidence is not None and (metric != "accuracy" or compute_metric is not None or per_layer):
        raise ValueError(
            "`confidence` guarantees accuracy, with one threshold for all off-ramps: leave out `metric`, "
            "`compute_metric` and `per_layer`, or `confidence`."
        )
    if confidence is not None and table.largest_score is None:
        raise ValueError(
            f"`confidence` needs a score whose largest value is known beforehand, which {table.score_name!r} is not: "
            "leave it out, or use a score of the library."
        )
    if evaluate_on is None and len(table) < 4:
        raise ValueError(f"`table` has {len(table)} rows, of which halves cannot be made: collect more.")
    if evaluate_on is not None:
        table.check_alike(evaluate_on)
    if temperatures:
        table, evaluate_on = calibrated(table, evaluate_on, seed)
        if confidence is not None:
            table, evaluate_on = evaluate_on, None
    if confidence is not None:
        return guaranteed_choice(table, evaluate_on, max_metric_drop or 0.0, confidence, latency, seed)
    if evaluate_on is None:
        select_on, evaluate_on = table.split(seed)
        where = f"on one random half of the rows ({len(select_on):,}), evaluated on the other ({len(evaluate_on):,})"
    else:
        select_on = table
        others = "the same" if evaluate_on is table else f"{len(evaluate_on):,} others"
        where = f"on {len(select_on):,} rows, evaluated on {others}"
    candidates = make_candidates(select_on, metric, compute_metric, latency)
    targets = (target_saving, max_metric_drop, target_latency_ms)
    selected, met, words = select(candidates, metric, *targets)
    if per_layer:
        extra = candidates.thresholds[selected]
        candidates = make_layer_candidates(select_on, metric, compute_metric, latency, extra)
        selected, met, words = select(candidates, metric, *targets, best_metric=True)
    threshold = candidates.thresholds[selected]
    if met:
        number = f"{len(candidates.thresholds):,} {'vectors of thresholds' if per_layer else 'thresholds'}"
        words = f"Of {number}, {words}, selected {where}."
        words += " Off-ramps are scaled by temperatures fitted on the first." if temperatures else ""
    return evaluated_choice(evaluate_on, threshold, met, words, metric, compute_metric, latency, seed)


def calibrated(table: ExitTable, evaluate_on: ExitTable | None, seed: int) -> tuple[ExitTable, ExitTable]:
    """The rows to select on and to evaluate on, off-ramps scaled by temperatures that are fitted on the first."""
    fitted_on, others = table.split(seed) if evaluate_on is None else (table, evaluate_on)
    fit = fit_temperatures(fitted_on, evaluate_on=others)
    if any(not 1.01 * LOWEST < value < HIGHEST / 1.01 for value in fit.temperatures):
        logger.warning(
            "An off-ramp is correct so often, or so seldom, that its temperature reached its bound: give more rows."
        )
    return fitted_on.with_temperatures(fit.temperatures), others.with_temperatures(fit.temperatures)


def check_targets(
    target_saving: float | None,
    max_metric_drop: float | None,
    target_latency_ms: float | None,
    confidence: float | None,
    latency: "LatencyProfile | None",
    max_disagreement: float | None = None,
) -> None:
    """Raises `ValueError` unless there is one target, in range, with what it needs."""
    bounds = {"max_metric_drop": max_metric_drop, "max_disagreement": max_disagreement}
    targets = {"target_saving": target_saving, **bounds, "target_latency_ms": target_latency_ms}
    if sum(value is not None for value in targets.values()) != 1:
        raise ValueError(f"Give exactly one of {', '.join(f'`{name}`' for name in targets)}.")
    shares = {"target_saving": target_saving, **bounds, "confidence": confidence}
    for name, value in shares.items():
        may_be_zero = name in bounds and confidence is None
        if value is not None and not (0 < value < 1 or (may_be_zero and value == 0)):
            raise ValueError(f"`{name}` must lie between 0 and 1, got {value!r}: 0.01 is one point or one per cent.")
    if confidence is not None and not any(value is not None for value in bounds.values()):
        raise ValueError("`confidence` guarantees a bound: give `max_metric_drop` or `max_disagreement` with it.")
    if target_latency_ms is not None:
        if not 0 < target_latency_ms < math.inf:
            raise ValueError(f"`target_latency_ms` must be finite and above 0, got {target_latency_ms!r}.")
        if latency is None:
            raise ValueError("`target_latency_ms` needs `latency`: measure a profile with `measure_latency(model)`.")


@dataclass(frozen=True)
class Candidates:
    """Thresholds, and their figures on the rows to select on: arrays of shape `(candidates,)`."""

    thresholds: list[Threshold]
    layer_saving: np.ndarray
    metric: np.ndarray
    full_metric: float
    latency_ms: np.ndarray | None


def make_candidates(
    table: ExitTable, metric: str, compute_metric: ComputeMetric | None, latency: "LatencyProfile | None"
) -> Candidates:
    """Every threshold where a decision changes, or quantiles where the metric is not one of the curve's."""
    if compute_metric is None and metric in EXACT:
        curve = exit_curve(table, latency)
        values = getattr(curve, metric)
        return Candidates(curve.thresholds.tolist(), curve.layer_saving, values, values[0], curve.latency_ms)
    return metric_candidates(table, threshold_grid(table), metric, compute_metric, latency)


def make_layer_candidates(
    table: ExitTable,
    metric: str,
    compute_metric: ComputeMetric | None,
    latency: "LatencyProfile | None",
    extra: Threshold,
) -> Candidates:
    """Vectors of thresholds, and one more threshold."""
    vectors = search_layer_thresholds(table, None if latency is None else latency.of(table))
    return metric_candidates(table, [extra, *vectors], metric, compute_metric, latency)


def metric_candidates(
    table: ExitTable,
    thresholds: list[Any],
    metric: str,
    compute_metric: ComputeMetric | None,
    latency: "LatencyProfile | None",
) -> Candidates:
    one = make_metric(metric, compute_metric, table.num_labels)
    milliseconds = None if latency is None else latency.of(table)

    def metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        return {metric: one(predictions, labels)}

    full_metric = one(table.answers[:, -1], table.labels)
    if not math.isfinite(full_metric):
        raise ValueError(f"`metric` {metric!r} is {full_metric} at full depth: choose another, or give more rows.")
    found = [operating_point(table, threshold, metrics, milliseconds) for threshold in thresholds]
    return Candidates(
        thresholds,
        np.array([point.layer_saving for point in found]),
        np.array([point.scores[metric] for point in found]),
        full_metric,
        None if latency is None else np.array([point.latency_ms for point in found]),
    )


def select(
    candidates: Candidates,
    metric: str,
    target_saving: float | None,
    max_metric_drop: float | None,
    target_latency_ms: float | None,
    best_metric: bool = False,
) -> tuple[int, bool, str]:
    """
    The candidate that meets a target best, whether it does, and how it was selected or why not. `best_metric`: among
    those that save enough the one of highest metric; otherwise the first, candidates being in rising order.
    """
    saving = candidates.layer_saving
    if max_metric_drop is not None:
        # Rounding must not rule out an equal metric.
        allowed = np.nonzero(candidates.metric >= candidates.full_metric - max_metric_drop - 1e-12)[0]
        if not len(allowed) or saving[allowed].max() <= 0:
            within = f"losing at most {points(max_metric_drop)} of {metric}"
            return int(saving.argmin()), False, f"No threshold saves anything while {within}."
        selected = max(allowed, key=lambda index: (saving[index], candidates.metric[index]))
        return (
            int(selected),
            True,
            f"the one that saves most while losing at most {points(max_metric_drop)} of {metric}",
        )
    if target_saving is not None:
        allowed, best = np.nonzero(saving >= target_saving - 1e-12)[0], int(saving.argmax())
        target, failed = f"that saves {target_saving:.1%} of the layers", f"saves {target_saving:.1%} of the layers"
        hint = "this one saves most"
    else:
        milliseconds = np.asarray(candidates.latency_ms)
        allowed, best = (
            np.nonzero(milliseconds <= np.asarray(target_latency_ms) * (1 + 1e-9))[0],
            int(milliseconds.argmin()),
        )
        target = f"that is expected to take at most {target_latency_ms:g} ms a row"
        failed, hint = f"takes at most {target_latency_ms:g} ms a row", "this one takes least"
    if not len(allowed):
        return best, False, f"No threshold {failed}: {hint}."
    if best_metric:
        selected = max(allowed, key=lambda index: (candidates.metric[index], saving[index]))
        return int(selected), True, f"the one of best {metric} {target}"
    return int(allowed[0]), True, f"the lowest {target}"
