"""Sweeps: metrics and cost of early exit at given thresholds, from an exit table."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ..checks import renamed_arguments
from .decisions import Threshold, normalize_threshold
from .exit_table import ExitTable
from .metrics import ComputeMetric, Metrics, make_metrics


if TYPE_CHECKING:
    from .latency import LatencyProfile

QUANTILES = 200


@dataclass(frozen=True)
class OperatingPoint:
    """
    Metrics and cost of early exit at one threshold.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            Of the table's score (entropy: in nats), one for all off-ramps or one each.
        scores (`dict[str, float]`):
            Metrics of the answers at this threshold.
        layer_cost_ratio (`float`):
            Layers run over layers in a full pass, `sum(exit_layer) / (rows * layers)`.
        layer_saving (`float`):
            `1 - layer_cost_ratio`.
        exit_counts (`tuple[int, ...]`):
            Number of samples that exited at each exit, one entry for each of the table's `exit_layers`.
        expected_speed_up (`float`):
            Time at full depth over time at this threshold: with a latency profile from its milliseconds, otherwise
            `1 / layer_cost_ratio`, the ideal.
        latency_ms (`float`, *optional*):
            With a latency profile, the expected milliseconds for a row.
    """

    threshold: float | tuple[float, ...]
    scores: dict[str, float]
    layer_cost_ratio: float
    layer_saving: float
    exit_counts: tuple[int, ...]
    expected_speed_up: float = 1.0
    latency_ms: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@renamed_arguments(score="compute_metric")
def layer_scores(table: ExitTable, compute_metric: ComputeMetric | None = None) -> list[dict[str, float]]:
    """
    Metrics of each exit when it answers every row.

    Args:
        table ([`ExitTable`]): Of labelled rows.
        compute_metric (*optional*): As for [`sweep_thresholds`].

    Returns:
        `list[dict[str, float]]`: what `compute_metric` returned, one entry an exit, the model's own head last.
    """
    scores = make_metrics(compute_metric, table.num_labels)
    return [scores(table.answers[:, place], table.labels) for place in range(len(table.exit_layers))]


def threshold_grid(table: ExitTable) -> list[float]:
    """0, up to 200 quantiles of the off-ramps' scores, and a threshold above all of them."""
    scores = table.deciding_scores
    scores = scores[np.isfinite(scores)]
    quantiles = np.quantile(scores, np.linspace(0, 1, QUANTILES)) if scores.size else []
    largest = table.largest_score
    highest = scores.max(initial=0.0) if largest is None else largest
    return np.unique(np.concatenate([[0.0], quantiles, [highest + 0.001]])).tolist()


@renamed_arguments(score="compute_metric")
def sweep_thresholds(
    table: ExitTable,
    thresholds: Sequence[Threshold] | None = None,
    compute_metric: ComputeMetric | None = None,
    latency: "LatencyProfile | None" = None,
) -> list[OperatingPoint]:
    """
    Metrics and layer saving at each threshold. [`exit_curve`] has accuracy and F1 at every threshold there is.

    Args:
        table ([`ExitTable`]):
            Of labelled rows.
        thresholds (sequence of `float` or of sequences with one for each off-ramp, *optional*):
            The thresholds to try, of the table's score; multiply a fraction of the largest by `table.largest_score`.
            By default 0, up to 200 quantiles of the off-ramps' scores, and one above all of them.
        compute_metric (`Callable` or module of `evaluate`, *optional*):
            Called with the predicted classes and the true ones, each of shape `(rows,)`; returns numbers by name, or
            one number (then called `"score"`). By default `accuracy` and `f1` (of class 1 with two classes, the mean
            over the classes with more).
        latency ([`LatencyProfile`], *optional*):
            For `latency_ms` and `expected_speed_up`.

    Returns:
        `list[OperatingPoint]`: one a threshold, in the order given.

    Raises:
        `ValueError`: if a threshold is malformed, or there are none.

    Example:

    ```python
    >>> import numpy as np
    >>> from transformers_deebert import ExitTable, sweep_thresholds

    >>> logits = np.array([[[4.0, 0.0], [4.0, 0.0]], [[0.1, 0.0], [0.0, 3.0]]])  # two rows, two layers, two labels
    >>> table = ExitTable.from_logits(logits, labels=np.array([0, 1]))
    >>> points = sweep_thresholds(table, [0, 0.3])
    >>> [(point.threshold, point.layer_saving, point.exit_counts) for point in points]
    [(0.0, 0.0, (0, 2)), (0.3, 0.25, (1, 1))]

    ```
    """
    if thresholds is None:
        thresholds = threshold_grid(table)
    if isinstance(thresholds, Real) or not len(thresholds):
        raise ValueError(
            f"`thresholds` must be a list of at least one threshold, got {thresholds!r}. Try [0, 0.1, 0.3]."
        )
    scores = make_metrics(compute_metric, table.num_labels)
    milliseconds = None if latency is None else latency.of(table)  # (rows, exits)
    return [operating_point(table, threshold, scores, milliseconds) for threshold in thresholds]


def operating_point(
    table: ExitTable, threshold: Threshold, scores: Metrics, milliseconds: np.ndarray | None = None
) -> OperatingPoint:
    rows, places = np.arange(len(table)), table.places_at(threshold)
    ratio = float(np.asarray(table.exit_layers)[places].mean() / table.num_layers)
    mean, speed_up = None, 1 / ratio if ratio else math.inf
    if milliseconds is not None:
        mean = float(milliseconds[rows, places].mean())
        speed_up = float(milliseconds[:, -1].mean()) / mean
    return OperatingPoint(
        threshold=normalize_threshold(threshold),
        scores=scores(table.answers[rows, places], table.labels),
        layer_cost_ratio=ratio,
        layer_saving=1.0 - ratio,
        exit_counts=tuple(np.bincount(places, minlength=len(table.exit_layers)).tolist()),
        expected_speed_up=speed_up,
        latency_ms=mean,
    )
