"""Layer report: metric, use and redundancy of every exit."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .calibration import expected_calibration_error
from .decisions import Threshold, check_threshold
from .exit_curve import ExitCurve, exit_curve
from .exit_table import ExitTable
from .scores import EXACT, Score, make_score


TOLERANCE = 0.002  # of score: a fifth of a point


@dataclass(frozen=True)
class LayerReport:
    """
    One exit at one threshold; shares are fractions.

    Args:
        layer (`int`): That the exit stands behind; L is the model's own head.
        score (`float`): When it answers every row.
        agreement (`float`): Share of all rows that it answers as the full depth does.
        calibration_error (`float`): Its expected calibration error.
        consulted (`float`): Share of the rows that it is asked about.
        taken (`float`): Share of the rows that leave there.
        right_when_taken (`float`, *optional*): Share of those that it answers right; `None` where none leave.
        curve_change (`float`, *optional*):
            By how much the best score at any saving falls, at most, when this off-ramp is left out; `None` for the
            model's own head.
        curve_change_here (`float`, *optional*): The same at savings up to that at the threshold.
        redundant (`bool`): Whether it would not be missed: less than the tolerance at every saving up to the present.
    """

    layer: int
    score: float
    agreement: float
    calibration_error: float
    consulted: float
    taken: float
    right_when_taken: float | None
    curve_change: float | None
    curve_change_here: float | None
    redundant: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, ready for JSON."""
        return asdict(self)


def layer_report(
    table: ExitTable,
    threshold: Threshold,
    metric: str = "accuracy",
    score: Score | None = None,
    tolerance: float = TOLERANCE,
) -> list[LayerReport]:
    """
    Reports on every exit.

    Args:
        table ([`ExitTable`]): Rows that the model was not trained on.
        threshold (`float` or sequence with one for each off-ramp): Of the table's score.
        metric, score: As for [`pick_threshold`]. What leaving an off-ramp out changes is told of accuracy or F1 only
            (of accuracy for any other metric).
        tolerance (`float`, *optional*, defaults to 0.002):
            An off-ramp is redundant when the best score at any saving up to that at `threshold` falls by less.

    Returns:
        `list[LayerReport]`: one an exit, the model's own head last. Redundancy is told of each off-ramp alone: two
        neighbours may both be redundant, and yet not both at once.
    """
    one = make_score(metric, score, table.num_labels)
    exits, answers = table.exits_at(threshold)
    off_ramps = len(table.exit_layers) - 1
    consults = np.append(np.broadcast_to(check_threshold(threshold, off_ramps), off_ramps) > 0, True)
    full, curve = table.answers[:, -1], exit_curve(table)
    saving = 1 - exits.mean() / table.num_layers
    of_curve = metric if score is None and metric in EXACT else "accuracy"
    report = []
    for place, layer in enumerate(table.exit_layers):
        own, taken, last = table.answers[:, place], exits == layer, place == off_ramps
        change, here, missed = (
            (None, None, True) if last else removal(table, curve, layer, of_curve, saving, tolerance)
        )
        report.append(
            LayerReport(
                layer=layer,
                score=one(own, table.labels),
                agreement=float((own == full).mean()),
                calibration_error=expected_calibration_error(table, layer),
                consulted=float((exits >= layer).mean()) if consults[place] else 0.0,
                taken=float(taken.mean()),
                right_when_taken=float((answers == table.labels)[taken].mean()) if taken.any() else None,
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
    The largest fall of the best score without an off-ramp, at any saving and at those up to the present, and whether
    it would be missed.
    """
    without = exit_curve(table.without_off_ramp(layer))
    reached = without.layer_saving.max()
    savings = np.arange(0, reached, 0.01)
    falls = best_scores(curve, metric, savings) - best_scores(without, metric, savings)
    relevant = falls[savings <= saving + 1e-9]
    here = float(relevant.max(initial=0.0))
    return float(falls.max(initial=0.0)), here, bool(reached < saving - 1e-9 or here >= tolerance)


def best_scores(curve: ExitCurve, metric: str, savings: np.ndarray) -> np.ndarray:
    """The best score of all thresholds that save at least so much, for each of some savings in reach."""
    best_from_here = np.maximum.accumulate(getattr(curve, metric)[::-1])[::-1]
    return best_from_here[np.searchsorted(curve.layer_saving, savings - 1e-12)]
