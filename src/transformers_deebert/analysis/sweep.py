"""What early exit would do at any threshold, read from the logits of all layers.

One forward pass with every off-ramp consulted is enough: a row's exit layer follows from its off-ramps' entropies, so
a whole trade-off curve costs no further pass. All functions here take those logits as one array of shape
`(rows, layers, labels)`, the last layer being the model's own head; `np.stack(predictions, axis=1)` makes it from the
tuple that `OffRampTrainer.predict` returns.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np


Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]
Threshold = float | Sequence[float]


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
    """

    threshold: float | tuple[float, ...]
    scores: dict[str, float]
    layer_cost_ratio: float
    layer_saving: float
    exit_counts: tuple[int, ...]

    def to_dict(self) -> dict:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return {
            "threshold": list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold,
            "scores": dict(self.scores),
            "layer_cost_ratio": self.layer_cost_ratio,
            "layer_saving": self.layer_saving,
            "exit_counts": list(self.exit_counts),
        }


@dataclass(frozen=True)
class HeldOutPoint:
    """
    An operating point chosen on one half of the rows and read on the other.

    Args:
        max_drop (`float`):
            Largest loss of score against full depth that was allowed on the choosing half, in the score's own unit.
        chosen (`OperatingPoint`):
            The point as it looked on the choosing half: an optimistic figure.
        read (`OperatingPoint`):
            The same threshold on the other half: the figure to report.
        full (`OperatingPoint`):
            Full depth (S = 0) on the reading half.
        score_change (`float`):
            Score of `read` minus score of `full`.
        score_change_interval (`tuple[float, float]`):
            Paired bootstrap interval of `score_change` over the rows of the reading half.
        layer_saving_interval (`tuple[float, float]`):
            Bootstrap interval of the layer saving over the same resamples.
        row_worth (`float`):
            By how much the answer to one single row can move the score of the reading half.
        rows (`int`):
            Number of rows of the reading half.
    """

    max_drop: float
    chosen: OperatingPoint
    read: OperatingPoint
    full: OperatingPoint
    score_change: float
    score_change_interval: tuple[float, float]
    layer_saving_interval: tuple[float, float]
    row_worth: float
    rows: int

    @property
    def threshold(self) -> float | tuple[float, ...]:
        return self.read.threshold

    def to_dict(self) -> dict:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return {
            "max_drop": self.max_drop,
            "threshold": self.read.to_dict()["threshold"],
            "chosen": self.chosen.to_dict(),
            "read": self.read.to_dict(),
            "full": self.full.to_dict(),
            "score_change": self.score_change,
            "score_change_interval": list(self.score_change_interval),
            "layer_saving_interval": list(self.layer_saving_interval),
            "row_worth": self.row_worth,
            "rows": self.rows,
        }


def entropies(logits: np.ndarray) -> np.ndarray:
    """
    Entropy of every layer's answer.

    Computed in float64, so it is finite for any finite logits. The models compute theirs in float32: the two differ
    by rounding alone.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`):
            Logits of all layers; two or more labels.

    Returns:
        `np.ndarray` of shape `(rows, layers)`, float64: nats, `0` to `ln(labels)`; `inf` where a logit is not finite.

    Raises:
        `ValueError`: if `logits` has another shape or fewer than two labels.
    """
    logits = _check_logits(logits)
    finite = np.isfinite(logits).all(axis=-1)  # (rows, layers)
    logits = np.where(finite[..., None], logits, 0.0)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    entropy = -(np.exp(log_probabilities) * log_probabilities).sum(axis=-1)
    return np.where(finite, np.maximum(entropy, 0.0), np.inf)


def exit_layers(logits: np.ndarray, threshold: Threshold) -> np.ndarray:
    """
    The layer at which each row leaves: the first whose off-ramp has an entropy strictly below S, otherwise the last.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`):
            Logits of all layers.
        threshold (`float` or sequence of `layers - 1` floats):
            Entropy in nats, one number or one per off-ramp; finite and >= 0. `0` never exits.

    Returns:
        `np.ndarray` of shape `(rows,)`, int64: `1` to `layers`. A row does not leave where its logits are not finite.

    Raises:
        `ValueError`: if `logits` or `threshold` is malformed.
    """
    entropy = entropies(logits)
    return _first_below(entropy, _check_threshold(threshold, entropy.shape[1]))


def layer_scores(logits: np.ndarray, labels: np.ndarray, score: Score) -> list[dict[str, float]]:
    """
    Score of each layer when it answers every row.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`):
            Logits of all layers.
        labels (`np.ndarray` of shape `(rows,)`):
            True class of each row.
        score (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`):
            Called with the predicted classes and the true ones, each of shape `(rows,)`.

    Returns:
        `list[dict[str, float]]`: what `score` returned, one entry a layer, the model's own head last.
    """
    logits = _check_logits(logits)
    labels = _check_labels(labels, logits)
    answers = logits.argmax(axis=-1)  # (rows, layers)
    return [score(answers[:, layer], labels) for layer in range(answers.shape[1])]


def sweep_thresholds(
    logits: np.ndarray, labels: np.ndarray, thresholds: Sequence[Threshold], score: Score
) -> list[OperatingPoint]:
    """
    Score and layer saving at each threshold, from the logits of one forward pass.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`):
            Logits of all layers.
        labels (`np.ndarray` of shape `(rows,)`):
            True class of each row.
        thresholds (sequence of `float` or of sequences of `layers - 1` floats):
            The thresholds to try, in nats.
        score (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`):
            Called with the predicted classes and the true ones, each of shape `(rows,)`.

    Returns:
        `list[OperatingPoint]`: one a threshold, in the order given.

    Raises:
        `ValueError`: if an argument is malformed, or there are no rows or no thresholds.

    Example:

    ```python
    >>> import numpy as np
    >>> from transformers_deebert.analysis import sweep_thresholds

    >>> logits = np.array([[[4.0, 0.0], [4.0, 0.0]], [[0.1, 0.0], [0.0, 3.0]]])  # two rows, two layers, two labels
    >>> labels = np.array([0, 1])
    >>> def accuracy(answers, labels):
    ...     return {"accuracy": (answers == labels).mean()}
    >>> points = sweep_thresholds(logits, labels, [0, 0.3], accuracy)
    >>> [(point.threshold, point.layer_saving, point.exit_counts) for point in points]
    [(0.0, 0.0, (0, 2)), (0.3, 0.25, (1, 1))]

    ```
    """
    logits = _check_logits(logits)
    labels = _check_labels(labels, logits)
    if len(thresholds) == 0:
        raise ValueError(f"`thresholds` must hold at least one threshold, got {thresholds!r}. Try [0, 0.1, 0.3].")
    entropy, answers = entropies(logits), logits.argmax(axis=-1)
    return [_operating_point(entropy, answers, labels, threshold, score) for threshold in thresholds]


def pick_operating_points(
    logits: np.ndarray,
    labels: np.ndarray,
    score: Score,
    metric: str,
    max_drops: Sequence[float] = (0.0, 0.01, 0.03),
    thresholds: Sequence[float] | None = None,
    seed: int = 0,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> list[HeldOutPoint]:
    """
    Choose operating points on one random half of the rows and read them on the other.

    For each allowed loss of score the threshold that saves most layers on the choosing half is taken. A threshold that
    is chosen and judged on the same rows looks better than it is; the other half says what it is worth.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`):
            Logits of all layers, at least four rows.
        labels (`np.ndarray` of shape `(rows,)`):
            True class of each row.
        score (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`):
            Called with the predicted classes and the true ones; a function of the counts of (true, predicted) pairs,
            higher is better. It is called a few thousand times.
        metric (`str`):
            The key of `score`'s result that the choice is made on.
        max_drops (sequence of `float`, *optional*, defaults to `(0.0, 0.01, 0.03)`):
            Allowed losses of score against full depth, in the score's own unit: one point each.
        thresholds (sequence of `float`, *optional*):
            Candidates, in nats. By default 0 and the 1/200 quantiles of the off-ramps' entropies on the choosing half.
        seed (`int`, *optional*, defaults to 0):
            Seed of the split and of the bootstrap.
        resamples (`int`, *optional*, defaults to 1000):
            Number of bootstrap resamples.
        confidence (`float`, *optional*, defaults to 0.95):
            Mass of the bootstrap interval.

    Returns:
        `list[HeldOutPoint]`: one for each entry of `max_drops`.

    Raises:
        `ValueError`: if an argument is malformed, `metric` is not a key of what `score` returns, or there are fewer
            than four rows.
    """
    logits = _check_logits(logits)
    labels = _check_labels(labels, logits)
    rows, _, classes = logits.shape
    if rows < 4:
        raise ValueError(f"`logits` must hold at least 4 rows to be split into halves, got {rows}. Use more rows.")
    if len(max_drops) == 0 or not all(math.isfinite(drop) and drop >= 0 for drop in max_drops):
        raise ValueError(
            f"`max_drops` must hold finite numbers >= 0, got {max_drops!r}. 0.01 allows a loss of one point."
        )
    if resamples < 1:
        raise ValueError(f"`resamples` must be >= 1, got {resamples!r}. 1000 is usual.")
    if not 0 < confidence < 1:
        raise ValueError(f"`confidence` must lie between 0 and 1, got {confidence!r}. 0.95 is usual.")
    generator = np.random.default_rng(seed)
    order = generator.permutation(rows)
    halves = np.sort(order[: rows // 2]), np.sort(order[rows // 2 :])
    entropy, answers = entropies(logits), logits.argmax(axis=-1)
    choosing, reading = [(entropy[half], answers[half], labels[half]) for half in halves]

    if thresholds is None:
        off_ramp_entropies = choosing[0][:, :-1]
        off_ramp_entropies = off_ramp_entropies[np.isfinite(off_ramp_entropies)]
        quantiles = np.quantile(off_ramp_entropies, np.linspace(0, 1, 201)) if off_ramp_entropies.size else []
        thresholds = np.unique(np.concatenate([[0.0], quantiles])).tolist()
    candidates = [_operating_point(*choosing, threshold, score) for threshold in thresholds]
    full_on_choosing = _operating_point(*choosing, 0.0, score)
    if metric not in full_on_choosing.scores:
        raise ValueError(
            f"`metric` must be a key of what `score` returns ({sorted(full_on_choosing.scores)}), got {metric!r}."
        )

    full = _operating_point(*reading, 0.0, score)
    full_answers = reading[1][:, -1]
    worth = row_worth(full_answers, reading[2], score, metric, classes)
    draws = generator.integers(0, len(reading[2]), size=(resamples, len(reading[2])))
    full_draws = np.array([score(full_answers[draw], reading[2][draw])[metric] for draw in draws])

    points = []
    for drop in max_drops:
        floor = full_on_choosing.scores[metric] - drop - 1e-9  # rounding must not rule out an equal score
        allowed = [point for point in candidates if point.scores[metric] >= floor] or [full_on_choosing]
        chosen = max(allowed, key=lambda point: (point.layer_saving, point.scores[metric]))
        read = _operating_point(*reading, chosen.threshold, score)
        exits, picked = answers_at(*reading[:2], chosen.threshold)
        changes = [score(picked[draw], reading[2][draw])[metric] for draw in draws] - full_draws
        savings = 1 - exits[draws].mean(axis=1) / logits.shape[1]
        points.append(
            HeldOutPoint(
                max_drop=float(drop),
                chosen=chosen,
                read=read,
                full=full,
                score_change=read.scores[metric] - full.scores[metric],
                score_change_interval=interval(changes, confidence),
                layer_saving_interval=interval(savings, confidence),
                row_worth=worth,
                rows=len(reading[2]),
            )
        )
    return points


def row_worth(answers: np.ndarray, labels: np.ndarray, score: Score, metric: str, classes: int) -> float:
    """
    By how much the answer to one single row can move a score: no difference below it means anything.

    Args:
        answers (`np.ndarray` of shape `(rows,)`):
            Predicted classes.
        labels (`np.ndarray` of shape `(rows,)`):
            True classes.
        score (`Callable[[np.ndarray, np.ndarray], dict[str, float]]`):
            A function of the counts of (true, predicted) pairs.
        metric (`str`):
            The key of `score`'s result to look at.
        classes (`int`):
            Number of classes.

    Returns:
        `float`: the largest change, in the score's own unit; `1 / rows` for accuracy.
    """
    answers, labels = np.asarray(answers), np.asarray(labels)
    before = score(answers, labels)[metric]
    _, one_of_each = np.unique(
        labels * classes + answers, return_index=True
    )  # rows of one (true, predicted) pair are alike
    largest = 0.0
    for row in one_of_each:
        for other in range(classes):
            changed = answers.copy()
            changed[row] = other
            largest = max(largest, abs(score(changed, labels)[metric] - before))
    return float(largest)


def normalize_threshold(threshold: Threshold) -> float | tuple[float, ...]:
    """One `float`, or a tuple of them, whatever kind of number or sequence came in."""
    value = np.asarray(threshold, dtype=np.float64).tolist()
    return tuple(value) if isinstance(value, list) else value


def _operating_point(
    entropy: np.ndarray, answers: np.ndarray, labels: np.ndarray, threshold: Threshold, score: Score
) -> OperatingPoint:
    layers = entropy.shape[1]
    exits, picked = answers_at(entropy, answers, threshold)
    ratio = float(exits.sum() / (len(exits) * layers))
    return OperatingPoint(
        threshold=normalize_threshold(threshold),
        scores={name: float(value) for name, value in score(picked, labels).items()},
        layer_cost_ratio=ratio,
        layer_saving=1.0 - ratio,
        exit_counts=tuple(np.bincount(exits - 1, minlength=layers).tolist()),
    )


def answers_at(entropy: np.ndarray, answers: np.ndarray, threshold: Threshold) -> tuple[np.ndarray, np.ndarray]:
    exits = _first_below(entropy, _check_threshold(threshold, entropy.shape[1]))
    return exits, answers[np.arange(len(exits)), exits - 1]


def _first_below(entropy: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    leaves = np.ones(entropy.shape, dtype=bool)  # the last layer takes the rest
    leaves[:, :-1] = entropy[:, :-1] < thresholds
    return leaves.argmax(axis=1).astype(np.int64) + 1


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _check_logits(logits: np.ndarray) -> np.ndarray:
    logits = np.asarray(logits)
    if logits.ndim != 3:
        raise ValueError(
            f"`logits` must have shape (rows, layers, labels), got {logits.shape}. "
            "Stack the layers' logits with np.stack(predictions, axis=1)."
        )
    if logits.shape[1] < 1 or logits.shape[2] < 2:
        raise ValueError(
            f"`logits` must have at least 1 layer and 2 labels, got shape {logits.shape}. "
            "Entropy needs classes: regression cannot exit early on it."
        )
    return logits.astype(np.float64)


def _check_labels(labels: np.ndarray, logits: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    rows, _, classes = logits.shape
    if labels.shape != (rows,) or rows == 0:
        raise ValueError(
            f"`labels` must have shape (rows,) with rows = {rows} >= 1 as in `logits`, got {labels.shape}. "
            "Pass one class index for each row of `logits`."
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"`labels` must be integers from 0 to {classes - 1}, got {labels.dtype} values from {labels.min()} to "
            f"{labels.max()}. Map the class names to indices first."
        )
    return labels


def _check_threshold(threshold: Threshold, layers: int) -> np.ndarray:
    values = np.asarray(threshold)
    remedy = f"Pass one number >= 0 in nats or a list of {layers - 1}, one for each off-ramp."
    if values.dtype == bool or not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"`threshold` must be a number or a list of numbers, got {threshold!r}. {remedy}")
    if values.ndim > 0 and values.shape != (layers - 1,):
        raise ValueError(
            f"`threshold` has shape {values.shape} for {layers - 1} off-ramps, got {threshold!r}. {remedy}"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"`threshold` must be finite and >= 0, got {threshold!r}. {remedy}")
    return values
