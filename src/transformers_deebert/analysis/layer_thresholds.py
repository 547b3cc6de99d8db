"""Thresholds per layer: a search for those that gain most, each layer in turn."""

import numpy as np

from .decisions import first_below
from .exit_curve import ROUNDING
from .exit_table import ExitTable


# What a full pass saved is worth, in answers put right: from next to nothing to three of them.
WORTHS = np.geomspace(0.002, 3, 40)
ROUNDS = 10


def search_layer_thresholds(table: ExitTable, costs: np.ndarray | None = None) -> list[tuple[float, ...]]:
    """
    Vectors of thresholds, one number for each off-ramp, from saving next to nothing to saving nearly all.

    For each of 40 prices of time it looks for the thresholds that maximise right answers minus the price of the layers
    run: given all other thresholds, the best one of a layer is found exactly, from running sums over the rows that
    reach it, sorted by entropy; the layers take turns until nothing gets better. That ends in a local optimum.

    Args:
        table ([`ExitTable`]): Rows to search on: they flatter what is found, so judge it on others.
        costs (`np.ndarray` of shape `(rows, layers)`, *optional*):
            What a row costs that leaves at each layer, in any unit; the layers run by default.

    Returns:
        `list[tuple[float, ...]]`: the vectors found, without repetitions.
    """
    rows, layers = len(table), table.num_layers
    if costs is None:
        costs = np.broadcast_to(np.arange(1, layers + 1) / layers, (rows, layers))
    else:
        costs = costs / costs[:, -1].mean()
    right = (table.answers == table.labels[:, None]).astype(np.float64)  # (rows, layers)
    entropy = table.entropies[:, :-1]
    orders = np.argsort(entropy, axis=0, kind="stable")  # (rows, off-ramps)
    thresholds = np.zeros(layers - 1)
    found: dict[tuple[float, ...], None] = {}  # in order, without repetitions
    for worth in WORTHS:
        values = right - worth * costs
        for _ in range(ROUNDS):
            before = thresholds.copy()
            for layer in range(layers - 1):
                thresholds[layer] = best_threshold(entropy, orders[:, layer], values, thresholds, layer)
            if np.array_equal(before, thresholds):
                break
        found[tuple(thresholds.tolist())] = None
    return list(found)


def best_threshold(
    entropy: np.ndarray, order: np.ndarray, values: np.ndarray, thresholds: np.ndarray, layer: int
) -> float:
    """The threshold of one off-ramp (0-based) that maximises the sum of the rows' values, the others as they are."""
    reach = np.all(entropy[:, :layer] >= thresholds[:layer], axis=1)
    rows = order[reach[order]]
    rows = rows[np.isfinite(entropy[rows, layer])]
    if not len(rows):
        return 0.0
    # Without this off-ramp a row leaves at a later one.
    later = layer + first_below(entropy_behind(entropy[rows], layer), tuple(thresholds[layer + 1 :]))
    gains = np.concatenate([[0.0], np.cumsum(values[rows, layer] - values[rows, later])])
    own = entropy[rows, layer]
    # A threshold falls between two entropies that differ by more than rounding, or above all.
    places = np.append(np.nonzero(np.diff(own) > ROUNDING)[0], len(own) - 1) + 1
    best = places[gains[places].argmax()]
    if gains[best] <= 0:
        return 0.0
    return float((own[best - 1] + own[best]) / 2) if best < len(own) else float(own[-1] + 1e-3)


def entropy_behind(entropy: np.ndarray, layer: int) -> np.ndarray:
    """Entropies of the exits behind an off-ramp, with a column for the model's own head."""
    return np.concatenate([entropy[:, layer + 1 :], np.zeros((len(entropy), 1))], axis=1)
