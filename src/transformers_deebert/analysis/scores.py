"""Scores of predicted classes: accuracy and F1, or what the user brings."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np


# From predicted and true classes, each of shape `(rows,)`, to named scores or to one; or a module of `evaluate`.
Score = Any
Scores = Callable[[np.ndarray, np.ndarray], dict[str, float]]

EXACT = ("accuracy", "f1")  # what the exact curve knows


def accuracy_and_f1(classes: int) -> Scores:
    """
    Accuracy, and F1 of class 1 with two classes or the mean over the classes with more; a class that is neither there
    nor predicted counts 0.
    """

    def scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        pairs = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
        f1 = 2 * pairs.diagonal() / np.maximum(pairs.sum(0) + pairs.sum(1), 1)
        of_classes = f1[1] if classes == 2 else f1.mean()
        return {"accuracy": float(pairs.trace() / len(labels)), "f1": float(of_classes)}

    return scores


def make_scores(score: Score | None, classes: int) -> Scores:
    """
    The scores that a user means.

    Args:
        score (`Callable` or module of `evaluate`, *optional*):
            Called with the predicted and the true classes; returns a mapping from names to numbers, or a number, which
            is then called `"score"`. Accuracy and F1 by default.
        classes (`int`): Number of classes.
    """
    if score is None:
        return accuracy_and_f1(classes)
    compute = getattr(score, "compute", None)

    def scores(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if compute is not None:
            result = compute(predictions=predictions, references=labels)
        else:
            result = score(predictions, labels)
        if not isinstance(result, Mapping):
            result = {"score": result}
        named = {name: float(value) for name, value in result.items() if isinstance(value, (Real, np.number))}
        if not named:
            raise ValueError(f"`score` must return numbers by name, or one number, got {result!r}.")
        return named

    return scores


def make_score(metric: str, score: Score | None, classes: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """One of the scores, by name. A score that is not a number (F1 of nothing, say) counts as the worst there is."""
    scores = make_scores(score, classes)

    def one(predictions: np.ndarray, labels: np.ndarray) -> float:
        found = scores(predictions, labels)
        if metric not in found:
            known = "what `score` returns" if score is not None else "what there is without `score`"
            raise ValueError(f"`metric` must be one of {known} ({sorted(found)}), got {metric!r}.")
        return -math.inf if math.isnan(found[metric]) else found[metric]

    return one


def row_worth(
    predictions: np.ndarray, labels: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float], classes: int
) -> float:
    """
    By how much the answer to one single row can move a score: no difference below it means anything.

    Args:
        predictions, labels (`np.ndarray` of shape `(rows,)`): Predicted and true classes.
        score (`Callable`): From both to a number that depends on the counts of (true, predicted) pairs alone.
        classes (`int`): Number of classes.

    Returns:
        `float`: the largest change, in the score's own unit; `1 / rows` for accuracy.
    """
    before = score(predictions, labels)
    # Rows of one (true, predicted) pair are alike. With many classes some of the pairs and of the changes will do.
    _, one_of_each = np.unique(labels * classes + predictions, return_index=True)
    largest = 0.0
    for row in one_of_each[:100]:
        for other in range(classes) if classes <= 10 else {0, classes - 1, int(labels[row])}:
            changed = predictions.copy()
            changed[row] = other
            largest = max(largest, abs(score(changed, labels) - before))
    return float(largest)


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle of a bootstrap's values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def points(share: float) -> str:
    """A share of 1 in words: 0.01 is one point."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"
