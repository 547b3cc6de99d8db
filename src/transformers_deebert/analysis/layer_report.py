"""Layer report: metric, use and redundancy of every exit."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..checks import renamed_arguments
from .calibration import expected_calibration_error
from .decisions import Threshold, check_threshold
from .exit_curve import ExitCurve, exit_curve
from .exit_table import ExitTable
from .metrics import EXACT, ComputeMetric, make_metric


TOLERANCE = 0.002  # of the metric: a fifth of a point


@dataclass(frozen=True)
class LayerReport:
    """
    One exit at one threshold; shares are fractions.

    Args:
        layer (`int`): That the exit stands behind; L is the model's own head.
        score (`float`): The metric where it answers every row.
        agreement (`float`): Share of all rows that it answers as the full depth does.
        calibration_error (`float`): Its expected calibration error.
        evaluated (`float`): Share of the rows that it is evaluated for.
        exited (`float`): Share of the rows that exit there.
        correct_when_exited (`float`, *optional*): Share of correct answers among those; `None` where none exit.
        curve_change (`float`, *optional*):
            By how much the best metric at any saving falls, at most, when this off-ramp is left out; `None` for the
            model's own head.
        curve_change_here (`float`, *optional*): The same at savings up to that at the threshold.
        redundant (`bool`): Whether that is less than the tolerance, and the saving still in reach.
    """

    layer: int
    score: float
    agreement: float
    calibration_error: float
    evaluated: float
    exited: float
    correct_when_exited: float | None
    curve_change: float | None
    curve_change_here: float | None
    redundant: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, ready for JSON."""
        return asdict(self)


@renamed_arguments(score="compute_metric")
def layer_report(
    table: ExitTable,
    threshold: Threshold,
    metric: str = "accuracy",
    compute_metric: ComputeMetric | None = None,
    tolerance: float = TOLERANCE,
) -> list[LayerReport]:
    """
    Reports on every exit.

    Args:
        table ([`ExitTable`]): Rows that the model was not trained on.
        threshold (`float` or sequence with one for each off-ramp): Of the table's score.
        metric, compute_metric: As for [`pick_threshold`]. The fields of the curve are about accuracy or F1
            (about accuracy for any other metric).
        tolerance (`float`, *optional*, defaults to 0.002):
            An off-ramp is redundant when the best metric at any saving up to that at `threshold` falls by less.

    Returns:
        `list[LayerReport]`: one an exit, the model's own head last. Redundancy is that of each off-ramp alone: two
        neighbours may both be redundant, and yet not both at once.
    """
    one = make_metric(metric, compute_metric, table.num_labels)
    exits, answers = table.exits_at(threshold)
    off_ramps = len(table.exit_layers) - 1
    evaluates = np.append(np.broadcast_to(check_threshold(threshold, off_ramps), off_ramps) > 0, True)
    full, curve = table.answers[:, -1], exit_curve(table)
    saving = 1 - exits.mean() / table.num_layers
    of_curve = metric if compute_metric is None and metric in EXACT else "accuracy"
    report = []
    for place, layer in enumerate(table.exit_layers):
        own, exited, last = table.answers[:, place], exits == layer, place == off_ramps
        change, here, missed = (
            (None, None, True) if last else removal(table, curve, layer, of_curve, saving, tolerance)
        )
        report.append(
            LayerReport(
                layer=layer,
                score=one(own, table.labels),
                agreement=float((own == full).mean()),
                calibration_error=expected_calibration_error(table, layer),
                evaluated=float((exits >= layer).mean()) if evaluates[place] else 0.0,
                exited=float(exited.mean()),
                correct_when_exited=float((answers == table.labels)[exited].mean()) if exited.any() else None,
                curve_change=change,
                curve_change_here=here,
                redundant=not missed,
            )
        )
    return report


def removal(
    table: ExitTable, curve: ExitCurve, layer: int, metric: str, saving: float, tolerance: float
) -> tuple[float, float, bool]:
    """
    The largest fall of the best metric without an off-ramp, at any saving and at those up to the present, and whether
    it is needed.
    """
    without = exit_curve(table.without_off_ramp(layer))
    reached = without.layer_saving.max()
    savings = np.arange(0, reached, 0.01)
    falls = best_scores(curve, metric, savings) - best_scores(without, metric, savings)
    relevant = falls[savings <= saving + 1e-9]
    here = float(relevant.max(initial=0.0))
    return float(falls.max(initial=0.0)), here, bool(reached < saving - 1e-9 or here >= tolerance)


def best_scores(curve: ExitCurve, metric: str, savings: np.ndarray) -> np.ndarray:
    """The best metric of all thresholds that save at least so much, for each of some savings in reach."""
    best_from_here = np.maximum.accumulate(getattr(curve, metric)[::-1])[::-1]
    return best_from_here[np.searchsorted(curve.layer_saving, savings - 1e-12)]
