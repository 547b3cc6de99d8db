"""Reports: everything that the exits of labelled rows show of a model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import renamed_arguments
from .calibration import TemperatureFit, fit_temperatures, reliability_bins
from .choice import ThresholdChoice
from .exit_curve import thresholds_by_saving
from .exit_table import ExitTable
from .layer_report import LayerReport, layer_report
from .metrics import ComputeMetric, interval, make_metric, points
from .report_page import Report
from .selection import pick_threshold
from .slices import slice_report
from .sweep import OperatingPoint, sweep_thresholds, threshold_grid


if TYPE_CHECKING:
    from .latency import LatencyProfile
    from .runtime import RuntimeBenchmark

BAND_POINTS, BAND_RESAMPLES = 40, 200
LEAST_ROWS = 20


def check_report_packages() -> None:
    """Raises `ImportError` where a package is missing that a report needs."""
    missing = [name for name in ("jinja2", "matplotlib", "scipy") if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"A report needs more packages ({', '.join(missing)}): pip install 'transformers-deebert[analysis]'"
        )


@renamed_arguments(max_score_drop="max_metric_drop", score="compute_metric", reading="evaluate_on")
def make_report(
    table: ExitTable,
    *,
    title: str = "Early exit",
    facts: Mapping[str, str] | None = None,
    target_saving: float | None = None,
    max_metric_drop: float | None = None,
    metric: str = "accuracy",
    compute_metric: ComputeMetric | None = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
    latency: "LatencyProfile | None" = None,
    runtime: "RuntimeBenchmark | None" = None,
    evaluate_on: ExitTable | None = None,
    choice: ThresholdChoice | None = None,
    seed: int = 0,
) -> Report:
    """
    Selects a threshold on one random half of the rows and evaluates it on the other: the trade-off, every layer,
    calibration, other ways to exit, and parts of the data.

    Args:
        table ([`ExitTable`]): Rows that the model was not trained on, at least 20.
        title (`str`, *optional*, defaults to `"Early exit"`): Headline.
        facts (`Mapping[str, str]`, *optional*): What the model and the data are, for the head of the page.
        target_saving, max_metric_drop (`float`, *optional*):
            The target, as for [`pick_threshold`]; a loss of at most one point by default.
        metric, compute_metric: As for [`pick_threshold`].
        columns (`Mapping[str, Sequence]`, *optional*):
            To slice by: one value for each row of the table (of `evaluate_on`, where it is given).
        latency ([`LatencyProfile`], *optional*): For expected times.
        runtime ([`RuntimeBenchmark`], *optional*): Measured times to show.
        evaluate_on ([`ExitTable`], *optional*): Other rows to evaluate on; all of `table` is then selected on.
        choice ([`ThresholdChoice`], *optional*):
            What the page is about, where it has been picked already: on the rows that this would be chosen on, for the
            same target. By default one threshold for all off-ramps.
        seed (`int`, *optional*, defaults to 0): Of the split and of the bootstraps.

    Returns:
        [`Report`]: `report.save("report.html")` writes it as a page.

    Raises:
        ValueError: for too few rows, or settings that [`pick_threshold`] refuses.
    """
    if len(table) < LEAST_ROWS:
        raise ValueError(f"`table` has {len(table)} rows, and a report needs at least {LEAST_ROWS}: collect more.")
    if evaluate_on is None:
        select_on, evaluated_on = table.split(seed)
        # Rows of `table`, in the order of the half that is read on.
        place = replace(table, ids=np.arange(len(table))).split(seed)[1].ids
    else:
        select_on, evaluated_on, place = table, evaluate_on, np.arange(len(evaluate_on))
    number = len(table) if evaluate_on is None else len(evaluate_on)
    for name, values in (columns or {}).items():
        if len(values) != number:
            raise ValueError(f"`columns` has {len(values)} values of {name!r} for {number} rows: give one each.")
    if target_saving is None and max_metric_drop is None:
        max_metric_drop = 0.01
    settings: dict[str, Any] = {"metric": metric, "compute_metric": compute_metric, "latency": latency, "seed": seed}
    target: dict[str, Any] = {"target_saving": target_saving, "max_metric_drop": max_metric_drop}
    one_for_all = pick_threshold(select_on, evaluate_on=evaluated_on, **target, **settings)
    choice = choice or one_for_all
    layers = layer_report(evaluated_on, choice.threshold, metric, compute_metric)
    fit = fit_temperatures(select_on, evaluate_on=evaluated_on)
    parts: dict[str, Any] = {"class": "label"} | ({"length": "length"} if evaluated_on.lengths.any() else {})
    for name, values in (columns or {}).items():
        values = list(values)  # by place, whatever the column's own index is
        parts[name if name not in parts else f"column {name}"] = [values[index] for index in place]
    return Report(
        title=title,
        facts=dict(facts or {}),
        metric=metric,
        classes=table.num_labels,
        rows=len(table) if evaluate_on is None else len(table) + len(evaluate_on),
        read_rows=len(evaluated_on),
        guaranteed_on=len(table),
        guarantee_held_out=evaluate_on is not None,
        choice=choice,
        choices=other_choices(select_on, evaluated_on, table, evaluate_on, settings),
        curve=sweep_thresholds(evaluated_on, None, compute_metric, latency),
        points=shown_points(evaluated_on, choice, compute_metric, latency),
        band=trade_off_band(evaluated_on, metric, compute_metric, seed),
        layers=layers,
        without_redundant=without_redundant(evaluated_on, choice, layers, compute_metric, latency),
        temperatures=fit,
        alternatives=alternatives(select_on, evaluated_on, one_for_all, fit, target, settings),
        slices={name: slice_report(evaluated_on, choice.threshold, by) for name, by in parts.items()},
        runtime=runtime,
        reliability=reliability(evaluated_on, fit),
    )


def shown_points(
    table: ExitTable, choice: ThresholdChoice, compute_metric: ComputeMetric | None, latency: "LatencyProfile | None"
) -> list[OperatingPoint]:
    """Full depth, the thresholds that save 10, 20, … %, and the choice: at its place, or last if it is several."""
    thresholds: list[Any] = [0.0, *thresholds_by_saving(table)]
    if isinstance(choice.threshold, tuple):
        thresholds.append(choice.threshold)
    else:
        thresholds = sorted({*thresholds, choice.threshold})
    return sweep_thresholds(table, thresholds, compute_metric, latency)


def other_choices(
    select_on: ExitTable,
    evaluated_on: ExitTable,
    table: ExitTable,
    evaluate_on: ExitTable | None,
    settings: Mapping[str, Any],
) -> dict[str, ThresholdChoice]:
    """For several allowed losses; of accuracy also with a guarantee, which needs no second half."""
    choices = {
        f"at most {points(drop)} lost" if drop else "nothing lost": pick_threshold(
            select_on, evaluate_on=evaluated_on, max_metric_drop=drop, **settings
        )
        for drop in (0.0, 0.005, 0.01, 0.02)
    }
    if settings["metric"] == "accuracy" and settings["compute_metric"] is None and table.largest_score is not None:
        options = {"latency": settings["latency"], "seed": settings["seed"], "evaluate_on": evaluate_on}
        for drop in (0.01, 0.02):
            guaranteed = pick_threshold(table, max_metric_drop=drop, confidence=0.95, **options)
            choices[f"at most {points(drop)} lost, guaranteed with 95 % confidence"] = guaranteed
    return choices


def alternatives(
    select_on: ExitTable,
    evaluated_on: ExitTable,
    choice: ThresholdChoice,
    fit: TemperatureFit,
    target: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, ThresholdChoice]:
    """Other ways to exit, for the same target on the same halves."""

    def pick(one: Callable[[ExitTable], ExitTable], **more: Any) -> ThresholdChoice:
        return pick_threshold(one(select_on), evaluate_on=one(evaluated_on), **target, **settings, **more)

    def scaled(one: ExitTable) -> ExitTable:
        return one.with_temperatures(fit.temperatures)

    found = {"one threshold": choice}
    follows_logits = select_on.stored_scores is None
    if follows_logits:
        found["one threshold, off-ramps scaled by temperatures"] = pick(scaled)
    if select_on.has_independent_scores:
        found["a threshold for each off-ramp"] = pick(lambda one: one, per_layer=True)
    if follows_logits:
        found["one threshold, mean of the exits passed so far (ensemble)"] = pick(ExitTable.ensemble)
    return found


def without_redundant(
    table: ExitTable,
    choice: ThresholdChoice,
    layers: Sequence[LayerReport],
    compute_metric: ComputeMetric | None,
    latency: "LatencyProfile | None",
) -> OperatingPoint | None:
    """The choice with the thresholds of redundant off-ramps set to 0, where they are not even computed."""
    if not any(layer.redundant for layer in layers):
        return None
    thresholds = np.broadcast_to(choice.threshold, len(table.exit_layers) - 1)
    left = [0.0 if layer.redundant else value for layer, value in zip(layers, thresholds.tolist(), strict=False)]
    return sweep_thresholds(table, [left], compute_metric, latency)[0]


def trade_off_band(
    table: ExitTable, metric: str, compute_metric: ComputeMetric | None, seed: int
) -> tuple[list[float], list[float], list[float]]:
    """Savings, and the 95 % paired bootstrap interval of the metric's change, added to its value at full depth."""
    one, generator = make_metric(metric, compute_metric, table.num_labels), np.random.default_rng(seed)
    draws = generator.integers(0, len(table), (BAND_RESAMPLES, len(table)))
    grid = threshold_grid(table)
    grid = [grid[index] for index in np.linspace(0, len(grid) - 1, BAND_POINTS).astype(int)]
    labels, full = table.labels, table.answers[:, -1]
    at_full_depth = one(full, labels)
    at_full_depths = np.array([one(full[draw], labels[draw]) for draw in draws])
    band = {}
    for threshold in grid:
        exits, answers = table.exits_at(threshold)
        if metric == "accuracy" and compute_metric is None:
            changes = (answers == labels)[draws].mean(1) - at_full_depths
        else:
            changes = np.array([one(answers[draw], labels[draw]) for draw in draws]) - at_full_depths
        low, high = interval(changes, 0.95)
        band[1 - float(exits.mean()) / table.num_layers] = (at_full_depth + low, at_full_depth + high)
    savings = sorted(band)
    return savings, [band[saving][0] for saving in savings], [band[saving][1] for saving in savings]


def reliability(table: ExitTable, fit: TemperatureFit) -> dict[str, dict[str, list]]:
    """Curves of the reliability diagrams: before and after temperature scaling."""
    table = table.with_score("entropy")  # of which nothing here depends; scores that are stored cannot be scaled
    after, (*ramps, last) = table.with_temperatures(fit.temperatures), table.exit_layers
    diagrams = {
        f"off-ramp {layer}, T = {temperature:.2f}": {
            "as trained": reliability_bins(table, layer),
            "scaled": reliability_bins(after, layer),
        }
        for layer, temperature in zip(ramps, fit.temperatures, strict=True)
    }
    return {**diagrams, "own head": {"as trained": reliability_bins(table, last)}}
