"""Thresholds per layer: a search for those that gain most, each layer in turn."""

import numpy as np

from ..models.exit_scores_deebert import Score
from .decisions import first_exits, score_name
from .exit_curve import ROUNDING
from .exit_table import ExitTable, has_independent_scores


# What a full pass saved is worth, in corrected answers: from next to nothing to three of them.
WORTHS = np.geomspace(0.002, 3, 40)
ROUNDS = 10


def check_independent(score: str | Score, patience: int) -> None:
    """Raises `ValueError` for a criterion of which thresholds per layer cannot be searched."""
    if not has_independent_scores(score, patience):
        raise ValueError(
            f"`per_layer` searches for the threshold of one exit at a time, but with the score {score_name(score)!r} "
            f"and patience {patience} an exit depends on those before it: use one threshold for all off-ramps."
        )


def search_layer_thresholds(table: ExitTable, costs: np.ndarray | None = None) -> list[tuple[float, ...]]:
    """
    Vectors of thresholds, one number for each off-ramp, from saving next to nothing to saving nearly all.

    For each of 40 prices of time it looks for the thresholds that maximise right answers minus the price of the layers
    run: given all other thresholds, the best one of a layer is found exactly, from running sums over the rows that
    reach it, sorted by entropy; the layers take turns until nothing gets better. That ends in a local optimum.

    Args:
        table ([`ExitTable`]): Rows to search on: they flatter what is found, so judge it on others.
        costs (`np.ndarray` of shape `(rows, exits)`, *optional*):
            What a row costs that exits there, in any unit; the layers run by default.

    Returns:
        `list[tuple[float, ...]]`: the vectors found, without repetitions.

    Raises:
        ValueError: for a table with patience above 1, or a score that depends on the exits before.
    """
    check_independent(table.score, table.patience)
    rows, exits = len(table), len(table.exit_layers)
    if costs is None:
        costs = np.broadcast_to(np.asarray(table.exit_layers) / table.num_layers, (rows, exits))
    else:
        costs = costs / costs[:, -1].mean()
    correct = (table.answers == table.labels[:, None]).astype(np.float64)  # (rows, exits)
    scores = table.scores
    orders = np.argsort(scores, axis=0, kind="stable")  # (rows, off-ramps)
    thresholds = np.zeros(exits - 1)
    found: dict[tuple[float, ...], None] = {}  # in order, without repetitions
    for worth in WORTHS:
        values = correct - worth * costs
        for _ in range(ROUNDS):
            before = thresholds.copy()
            for place in range(exits - 1):
                thresholds[place] = best_threshold(scores, orders[:, place], values, thresholds, place)
            if np.array_equal(before, thresholds):
                break
        found[tuple(thresholds.tolist())] = None
    return list(found)


def best_threshold(
    scores: np.ndarray, order: np.ndarray, values: np.ndarray, thresholds: np.ndarray, place: int
) -> float:
    """The threshold of one off-ramp that maximises the sum of the rows' values, the others as they are."""
    reach = np.all(scores[:, :place] >= thresholds[:place], axis=1)
    rows = order[reach[order]]
    rows = rows[np.isfinite(scores[rows, place])]
    if not len(rows):
        return 0.0
    # Without this off-ramp a row exits at a later one.
    later = place + 1 + first_exits(scores[rows, place + 1 :], thresholds[place + 1 :])
    gains = np.concatenate([[0.0], np.cumsum(values[rows, place] - values[rows, later])])
    own = scores[rows, place]
    # A threshold falls between two scores that differ by more than rounding, or above all.
    places = np.append(np.nonzero(np.diff(own) > ROUNDING)[0], len(own) - 1) + 1
    best = places[gains[places].argmax()]
    if gains[best] <= 0:
        return 0.0
    return float((own[best - 1] + own[best]) / 2) if best < len(own) else float(own[-1] + 1e-3)
