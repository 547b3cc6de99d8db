"""Exit decisions in numpy, for all samples of a table at once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..models.exit_criteria_deebert import ExitCriterion, read_criterion
from ..models.exit_scores_deebert import ExitCandidate, Score, checked_score, find_score


Threshold = float | Sequence[float]


def as_criterion(criterion: Any) -> ExitCriterion:
    """A criterion of which only score and patience count, from a score or a criterion."""
    if isinstance(criterion, str) or callable(criterion):
        return ExitCriterion(criterion, 0.0)
    if isinstance(criterion, Mapping):
        criterion = {"threshold": 0.0, **criterion}
    return read_criterion(criterion, "criterion")


def score_name(score: str | Score) -> str:
    """The score's name, or that of the user's function."""
    return score if isinstance(score, str) else getattr(score, "__name__", repr(score))


def exit_settings(threshold: Threshold, score: str | Score, patience: int) -> dict[str, Any]:
    """The exit setting of a call: the short one for entropy with patience 1."""
    threshold = list(threshold) if isinstance(threshold, tuple) else threshold
    if (score, patience) == ("entropy", 1):
        return {"early_exit_entropy": threshold}
    return {"exit_criterion": {"score": score, "threshold": threshold, "patience": patience}}


def exit_scores(logits: np.ndarray, score: str | Score = "entropy", layers: Sequence[int] | None = None) -> np.ndarray:
    """
    Scores of exits, by the functions that the models use.

    Args:
        logits (`np.ndarray` of shape `(rows, exits, labels)`): Of the exits that are evaluated, in their order.
        score (`str` or `Callable`, *optional*, defaults to `"entropy"`): As of an [`ExitCriterion`].
        layers (sequence of `int`, *optional*): The layers that the exits stand behind; by default 1, 2, …

    Returns:
        `np.ndarray` of shape `(rows, exits)`, float64; infinite where a logit or the score is not finite.

    Raises:
        ValueError: if `logits` has another shape or fewer than two labels.
    """
    logits = check_logits(logits)
    layers = range(1, logits.shape[1] + 1) if layers is None else layers
    function, columns = find_score(score), []
    memory: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for place, layer in enumerate(layers):
            of_exit = torch.from_numpy(np.array(logits[:, place], dtype=np.float32))
            candidate = ExitCandidate(of_exit, memory=memory, layer=layer)
            columns.append(checked_score(function, candidate).double().numpy())
    return np.stack(columns, axis=1)


def entropies(logits: np.ndarray) -> np.ndarray:
    """[`exit_scores`] with the entropy: nats."""
    return exit_scores(logits)


def exit_layers(
    logits: np.ndarray, threshold: Threshold, score: str | Score = "entropy", patience: int = 1
) -> np.ndarray:
    """
    The layer at which each sample exits: the first off-ramp that completes a run of `patience` evaluated exits with a
    score strictly below the threshold, otherwise the last layer.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`): Logits of all layers.
        threshold (`float` or sequence of `layers - 1` floats):
            One number or one an off-ramp; finite and >= 0. `0` switches an off-ramp off.
        score, patience: As of an [`ExitCriterion`].

    Returns:
        `np.ndarray` of shape `(rows,)`, int64: `1` to `layers`. No sample exits where its logits are not finite.

    Raises:
        ValueError: if `logits` or `threshold` is malformed.
    """
    logits = check_logits(logits)
    thresholds = np.broadcast_to(check_threshold(threshold, logits.shape[1] - 1), logits.shape[1] - 1)
    return first_exits(scores_of_evaluated(logits, thresholds, score), thresholds, patience) + 1


def scores_of_evaluated(
    logits: np.ndarray, thresholds: np.ndarray, score: str | Score, layers: Sequence[int] | None = None
) -> np.ndarray:
    """
    `(rows, off-ramps)` scores of the off-ramps that are switched on, infinite for the others, which no score sees.

    Args:
        logits (`np.ndarray` of shape `(rows, exits, labels)`): Of all exits, the head's last.
        thresholds (`np.ndarray` of shape `(off-ramps,)`): 0 where an off-ramp is switched off.
        score (`str` or `Callable`): As of an [`ExitCriterion`].
        layers (sequence of `int`, *optional*): Of the off-ramps.
    """
    stands = np.arange(1, logits.shape[1]) if layers is None else np.asarray(layers)
    on = np.nonzero(thresholds > 0)[0]
    scores = np.full((len(logits), len(thresholds)), np.inf)
    if len(on):
        scores[:, on] = exit_scores(logits[:, on], score, stands[on].tolist())
    return scores


def first_exits(scores: np.ndarray, thresholds: np.ndarray | float, patience: int = 1) -> np.ndarray:
    """
    Places, `(rows,)` from 0, of the exits that samples take; the place behind the last off-ramp is the head's.

    Args:
        scores (`np.ndarray` of shape `(rows, off-ramps)`): Lower is more confident.
        thresholds (`np.ndarray` of shape `(off-ramps,)`, or a number): 0 switches an off-ramp off.
        patience (`int`): Consecutive off-ramps below the threshold that it takes.
    """
    exits = np.ones((scores.shape[0], scores.shape[1] + 1), dtype=bool)  # the head takes the rest
    exits[:, :-1] = scores < thresholds
    if patience > 1:
        run = np.zeros(len(scores), np.int64)
        for place in np.nonzero(np.broadcast_to(thresholds, scores.shape[1:]) > 0)[0]:
            run = (run + 1) * exits[:, place]
            exits[:, place] = run >= patience
    return exits.argmax(axis=1).astype(np.int64)


def normalize_threshold(threshold: Threshold) -> float | tuple[float, ...]:
    """One `float`, or a tuple of them, whatever kind of number or sequence came in."""
    value = np.asarray(threshold, dtype=np.float64).tolist()
    return tuple(value) if isinstance(value, list) else value


def check_logits(logits: np.ndarray) -> np.ndarray:
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
    if not np.issubdtype(logits.dtype, np.number) or np.iscomplexobj(logits):
        raise ValueError(f"`logits` must be real numbers, got {logits.dtype}.")
    return logits


def check_labels(labels: np.ndarray, rows: int, classes: int) -> np.ndarray:
    labels = np.asarray(labels)
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


def check_threshold(threshold: Threshold, off_ramps: int) -> np.ndarray:
    values = np.asarray(threshold)
    remedy = f"Pass one number >= 0 or a list of {off_ramps}, one for each off-ramp."
    if values.dtype == bool or not np.issubdtype(values.dtype, np.number):
        raise ValueError(f"`threshold` must be a number or a list of numbers, got {threshold!r}. {remedy}")
    if values.ndim > 0 and values.shape != (off_ramps,):
        raise ValueError(
            f"`threshold` has shape {values.shape} for {off_ramps} off-ramps, got {threshold!r}. {remedy}"
        )
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError(f"`threshold` must be finite and >= 0, got {threshold!r}. {remedy}")
    return values
