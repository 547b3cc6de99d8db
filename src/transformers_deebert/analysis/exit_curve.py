"""Exit curves: accuracy, F1 and saving at every threshold where a decision changes, from an exit table."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .exit_table import ExitTable


if TYPE_CHECKING:
    from .latency import LatencyProfile

ROUNDING = 1e-6  # scores are computed in float32
SAVINGS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class ExitCurve:
    """
    The whole trade-off of one threshold for all off-ramps: between two neighbours of `thresholds` no decision changes.

    Args:
        thresholds (`np.ndarray` of shape `(points,)`):
            Of the table's score, rising, 0 first; each lies between two scores.
        layer_saving (`np.ndarray` of shape `(points,)`): 1 minus layers run over all layers.
        accuracy (`np.ndarray` of shape `(points,)`): Share of correct answers.
        f1 (`np.ndarray` of shape `(points,)`):
            F1 of class 1 with two classes, the mean over the classes with more; a class that is neither there nor
            predicted counts 0.
        latency_ms (`np.ndarray` of shape `(points,)`, *optional*):
            With a latency profile, expected milliseconds for a row, the mean over the rows.
    """

    thresholds: np.ndarray
    layer_saving: np.ndarray
    accuracy: np.ndarray
    f1: np.ndarray
    latency_ms: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.thresholds)


def exit_curve(table: ExitTable, latency: "LatencyProfile | None" = None) -> ExitCurve:
    """
    Sweeps all thresholds at once: sorted by score, each change of one row's exit is added to running counts.

    Args:
        table ([`ExitTable`]): Of labelled rows, with its score and patience.
        latency ([`LatencyProfile`], *optional*): For `latency_ms`.

    Returns:
        [`ExitCurve`]: of at most `rows * off-ramps + 1` points.
    """
    rows, exits, classes = table.logits.shape
    scores, answers, labels = table.deciding_scores, table.answers, table.labels
    layers = np.asarray(table.exit_layers)
    # With a rising threshold a row exits at ever earlier places: at those whose score is the lowest so far.
    lowest = np.minimum.accumulate(scores, axis=1)
    before = np.concatenate([np.full((rows, 1), np.inf), lowest], axis=1)[:, :-1]
    stops = (scores < before) & np.isfinite(scores)  # (rows, off-ramps)
    row, place = np.nonzero(stops)  # ordered by row, then by place
    # From where the row comes: its next stop, or the head.
    last_of_row = np.append(row[1:] != row[:-1], True) if len(row) else np.zeros(0, bool)
    origin = np.where(last_of_row, exits - 1, np.append(place[1:], exits - 1)[: len(place)])
    order = np.argsort(scores[row, place], kind="stable")
    row, place, origin = row[order], place[order], origin[order]
    values = scores[row, place]
    new, old, truth = answers[row, place], answers[row, origin], labels[row]

    # Scores that differ by rounding alone are one: no threshold could be relied on to fall between them.
    ends = np.append(np.nonzero(np.diff(values) > ROUNDING)[0], len(values) - 1) if len(values) else np.zeros(0, int)

    def running(start: float, changes: np.ndarray) -> np.ndarray:
        """`start`, and the running sum behind all changes of each distinct score."""
        return start + np.concatenate([[0], np.cumsum(changes)[ends]])

    full = answers[:, -1]
    layers_run = running(rows * table.num_layers, layers[place] - layers[origin])
    correct = running((full == labels).sum(), (new == truth).astype(int) - (old == truth))
    kinds = [1] if classes == 2 else range(classes)
    f1 = np.zeros(len(ends) + 1)
    for kind in kinds:
        of_truth, was, becomes = truth == kind, old == kind, new == kind
        hits = running(((full == kind) & (labels == kind)).sum(), of_truth * (becomes.astype(int) - was))
        predicted = running((full == kind).sum(), becomes.astype(int) - was)
        f1 += 2 * hits / np.maximum(predicted + (labels == kind).sum(), 1)
    mean = None
    if latency is not None:
        milliseconds = latency.of(table)  # (rows, exits)
        mean = running(milliseconds[:, -1].sum(), milliseconds[row, place] - milliseconds[row, origin]) / rows
    # Halfway to the next score.
    following = np.append(values[ends[:-1] + 1], values[-1:] + 1e-3)
    return ExitCurve(
        thresholds=np.concatenate([[0.0], (values[ends] + following) / 2]),
        layer_saving=1 - layers_run / (rows * table.num_layers),
        accuracy=correct / rows,
        f1=f1 / len(list(kinds)),
        latency_ms=mean,
    )


def mean_saving(table: ExitTable, largest_drop: float = 0.01, steps: int = 11) -> float:
    """
    The largest layer saving within a drop of accuracy, the mean over drops from 0 to `largest_drop`: one number for a
    whole curve, less subject to chance than the saving at one drop. The threshold is the best on these rows.
    """
    curve = exit_curve(table)
    within = [curve.accuracy >= curve.accuracy[0] - drop - 1e-12 for drop in np.linspace(0, largest_drop, steps)]
    return float(np.mean([curve.layer_saving[allowed].max() for allowed in within]))


def thresholds_by_saving(table: ExitTable, savings: Sequence[float] = SAVINGS) -> list[float]:
    """For each saving, the lowest threshold that reaches it; without repetitions."""
    curve = exit_curve(table)
    places = [np.nonzero(curve.layer_saving >= saving - 1e-12)[0] for saving in savings]
    return [float(curve.thresholds[place]) for place in dict.fromkeys(int(found[0]) for found in places if len(found))]
