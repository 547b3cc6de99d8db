"""What early exit would do at any thresholds, with any score, read from an exit table."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .decisions import Threshold, first_below, normalize_threshold, open_threshold
from .exit_table import ExitTable
from .scores import Score, Scores, make_scores


if TYPE_CHECKING:
    from .latency import LatencyProfile

QUANTILES = 200


@dataclass(frozen=True)
class OperatingPoint:
    """
    Score and cost of early exit at one threshold.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            The entropy threshold S in nats, one for all off-ramps or one each.
        scores (`dict[str, float]`):
            What the score function returned for the answers at this threshold.
        layer_cost_ratio (`float`):
            Layers run over layers in a full pass, `sum(exit_layer) / (rows * layers)`.
        layer_saving (`float`):
            `1 - layer_cost_ratio`.
        exit_counts (`tuple[int, ...]`):
            Number of rows that left at each layer, one entry a layer.
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


def layer_scores(table: ExitTable, score: Score | None = None) -> list[dict[str, float]]:
    """
    Score of each layer when it answers every row.

    Args:
        table ([`ExitTable`]): Of labelled rows.
        score (*optional*): As for [`sweep_thresholds`].

    Returns:
        `list[dict[str, float]]`: what `score` returned, one entry a layer, the model's own head last.
    """
    scores = make_scores(score, table.num_labels)
    return [scores(table.answers[:, layer], table.labels) for layer in range(table.num_layers)]


def threshold_grid(table: ExitTable) -> list[float]:
    """0, up to 200 quantiles of the off-ramps' entropies, and a threshold that lets every row out."""
    entropy = table.entropies[:, :-1]
    entropy = entropy[np.isfinite(entropy)]
    quantiles = np.quantile(entropy, np.linspace(0, 1, QUANTILES)) if entropy.size else []
    return np.unique(np.concatenate([[0.0], quantiles, [open_threshold(table.num_labels)]])).tolist()


def sweep_thresholds(
    table: ExitTable,
    thresholds: Sequence[Threshold] | None = None,
    score: Score | None = None,
    latency: "LatencyProfile | None" = None,
) -> list[OperatingPoint]:
    """
    Score and layer saving at each threshold. [`exit_curve`] has accuracy and F1 at every threshold there is.

    Args:
        table ([`ExitTable`]):
            Of labelled rows.
        thresholds (sequence of `float` or of sequences of `layers - 1` floats, *optional*):
            The thresholds to try, in nats; multiply a fraction of ln(labels) by `table.max_entropy`. By default 0, up
            to 200 quantiles of the off-ramps' entropies, and one that lets every row out at off-ramp 1.
        score (`Callable` or module of `evaluate`, *optional*):
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
    scores = make_scores(score, table.num_labels)
    milliseconds = None if latency is None else latency.of(table)  # (rows, layers)
    return [operating_point(table, threshold, scores, milliseconds) for threshold in thresholds]


def operating_point(
    table: ExitTable, threshold: Threshold, scores: Scores, milliseconds: np.ndarray | None = None
) -> OperatingPoint:
    rows, layers = np.arange(len(table)), table.num_layers
    exits = first_below(table.entropies, threshold)
    ratio = float(exits.sum() / (len(exits) * layers))
    mean, speed_up = None, 1 / ratio
    if milliseconds is not None:
        mean = float(milliseconds[rows, exits - 1].mean())
        speed_up = float(milliseconds[:, -1].mean()) / mean
    return OperatingPoint(
        threshold=normalize_threshold(threshold),
        scores=scores(table.answers[rows, exits - 1], table.labels),
        layer_cost_ratio=ratio,
        layer_saving=1.0 - ratio,
        exit_counts=tuple(np.bincount(exits - 1, minlength=layers).tolist()),
        expected_speed_up=speed_up,
        latency_ms=mean,
    )
