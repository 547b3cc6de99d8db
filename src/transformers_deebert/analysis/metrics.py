"""Metrics of predicted classes: accuracy and F1, or those of a user's own function."""

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np


# From predicted and true classes, each of shape `(rows,)`, to named metrics or to one; or a module of `evaluate`.
ComputeMetric = Any
Metrics = Callable[[np.ndarray, np.ndarray], dict[str, float]]

EXACT = ("accuracy", "f1")  # what the exact curve knows


def accuracy_and_f1(classes: int) -> Metrics:
    """
    Accuracy, and F1 of class 1 with two classes or the mean over the classes with more; a class that is neither there
    nor predicted counts 0.
    """

    def metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        pairs = np.bincount(labels * classes + predictions, minlength=classes**2).reshape(classes, classes)
        f1 = 2 * pairs.diagonal() / np.maximum(pairs.sum(0) + pairs.sum(1), 1)
        of_classes = f1[1] if classes == 2 else f1.mean()
        return {"accuracy": float(pairs.trace() / len(labels)), "f1": float(of_classes)}

    return metrics


def make_metrics(compute_metric: ComputeMetric | None, classes: int) -> Metrics:
    """
    The metrics of a function or module.

    Args:
        compute_metric (`Callable` or module of `evaluate`, *optional*):
            Called with the predicted and the true classes; returns a mapping from names to numbers, or a number, which
            is then called `"score"`. Accuracy and F1 by default.
        classes (`int`): Number of classes.
    """
    if compute_metric is None:
        return accuracy_and_f1(classes)
    compute = getattr(compute_metric, "compute", None)

    def metrics(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        if compute is not None:
            result = compute(predictions=predictions, references=labels)
        else:
            result = compute_metric(predictions, labels)
        if not isinstance(result, Mapping):
            result = {"score": result}
        named = {name: float(value) for name, value in result.items() if isinstance(value, (Real, np.number))}
        if not named:
            raise ValueError(f"`compute_metric` must return numbers by name, or one number, got {result!r}.")
        return named

    return metrics


def make_metric(
    metric: str, compute_metric: ComputeMetric | None, classes: int
) -> Callable[[np.ndarray, np.ndarray], float]:
    """One of the metrics, by name. One that is not a number (such as F1 of no rows) counts as the worst there is."""
    metrics = make_metrics(compute_metric, classes)

    def one(predictions: np.ndarray, labels: np.ndarray) -> float:
        found = metrics(predictions, labels)
        if metric not in found:
            known = (
                "what `compute_metric` returns"
                if compute_metric is not None
                else "accuracy and f1 without `compute_metric`"
            )
            raise ValueError(f"`metric` must be one of {known} ({sorted(found)}), got {metric!r}.")
        return -math.inf if math.isnan(found[metric]) else found[metric]

    return one


def row_worth(
    predictions: np.ndarray, labels: np.ndarray, metric: Callable[[np.ndarray, np.ndarray], float], classes: int
) -> float:
    """
    By how much the answer to one single row can move a metric: no difference below it means anything.

    Args:
        predictions, labels (`np.ndarray` of shape `(rows,)`): Predicted and true classes.
        metric (`Callable`): From both to a number that depends on the counts of (true, predicted) pairs alone.
        classes (`int`): Number of classes.

    Returns:
        `float`: the largest change, in the metric's own unit; `1 / rows` for accuracy.
    """
    before = metric(predictions, labels)
    # Rows of one (true, predicted) pair are alike. With many classes some of the pairs and of the changes will do.
    _, one_of_each = np.unique(labels * classes + predictions, return_index=True)
    largest = 0.0
    for row in one_of_each[:100]:
        for other in range(classes) if classes <= 10 else {0, classes - 1, int(labels[row])}:
            changed = predictions.copy()
            changed[row] = other
            largest = max(largest, abs(metric(changed, labels) - before))
    return float(largest)


def interval(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """The middle of a bootstrap's values."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def points(share: float) -> str:
    """A share of 1 in words: 0.01 is one point."""
    return f"{100 * share:g} point{'' if share == 0.01 else 's'}"
