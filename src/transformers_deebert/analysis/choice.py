"""Chosen thresholds and their figures."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..models.exit_scores_deebert import SCORES
from .decisions import Threshold, exit_settings, normalize_threshold
from .exit_table import ExitTable
from .metrics import ComputeMetric, interval, make_metric, row_worth
from .tables import threshold_text


if TYPE_CHECKING:
    from .latency import LatencyProfile

RESAMPLES = 1000
EARLIER_NAMES = {"harmful_flips": "negative_flips"}


@dataclass(frozen=True)
class ThresholdChoice:
    """
    A threshold, and its metric and saving on the rows that it was evaluated on.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            Of the exit criterion's score, one number or one for each off-ramp; 0 where nothing else meets the target.
        fraction (`float` or `tuple[float, ...]`, *optional*):
            The same as a fraction of the largest score, ln(labels) for the entropy; `None` for a score without one.
        met (`bool`): Whether the target is met on the rows that it was selected on.
        reason (`str`): How it was selected, or why nothing could be, in a sentence or two.
        metric (`str`): Name of the metric whose value `score` is.
        score, full_score, score_change (`float`):
            The metric with early exit, at full depth, and their difference, on the rows evaluated on.
        score_change_interval (`tuple[float, float]`): 95 % paired bootstrap interval over these rows.
        layer_saving (`float`): 1 minus layers run over layers in a full pass.
        layer_saving_interval (`tuple[float, float]`): 95 % bootstrap interval.
        rows (`int`): How many rows it was evaluated on.
        row_worth (`float`): By how much the answer to one of them can move the metric.
        latency_ms, full_latency_ms (`float`, *optional*):
            With a latency profile: expected milliseconds for a row, with early exit and at full depth.
        latency_ms_interval (`tuple[float, float]`, *optional*): 95 % bootstrap interval of `latency_ms`.
        negative_flips (`int`, *optional*): With a guarantee: negative flips among its rows.
        temperatures (`tuple[float, ...]`, *optional*): Those of the table: the threshold holds for no others.
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
    negative_flips: int | None = None
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
        settings = dict.fromkeys(("early_exit_entropy", "exit_criterion", "exit_layer"))
        return settings | exit_settings(self.threshold, self.exit_score, self.patience)

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
        """The choice that [`to_dict`] gave, also after a way through JSON and with the names of version 0.1."""
        fields: dict[str, Any] = {
            EARLIER_NAMES.get(name, name): tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and strings, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def evaluated_choice(
    table: ExitTable,
    threshold: Threshold,
    met: bool,
    reason: str,
    metric: str,
    compute_metric: ComputeMetric | None,
    latency: "LatencyProfile | None",
    seed: int,
) -> ThresholdChoice:
    """A threshold with its figures on the rows of a table."""
    one = make_metric(metric, compute_metric, table.num_labels)
    labels, full = table.labels, table.answers[:, -1]
    rows, places = np.arange(len(table)), table.places_at(threshold)
    answers = table.answers[rows, places]
    saving = 1 - np.asarray(table.exit_layers)[places] / table.num_layers
    milliseconds = None if latency is None else latency.of(table)
    taken = None if milliseconds is None else milliseconds[rows, places]
    generator = np.random.default_rng(seed)
    draws = [generator.integers(0, len(table), len(table)) for _ in range(RESAMPLES)]
    if metric == "accuracy" and compute_metric is None:
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
