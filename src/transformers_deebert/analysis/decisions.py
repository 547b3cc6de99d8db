"""Who leaves where, read from the logits of all layers: the models' decisions in numpy, for all rows at once."""

from collections.abc import Sequence

import numpy as np


Threshold = float | Sequence[float]


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
    logits = check_logits(logits).astype(np.float64)
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
    return first_below(entropies(logits), threshold)


def first_below(entropy: np.ndarray, threshold: Threshold) -> np.ndarray:
    """[`exit_layers`] of entropies, `(rows, layers)`."""
    leaves = np.ones(entropy.shape, dtype=bool)  # the last layer takes the rest
    leaves[:, :-1] = entropy[:, :-1] < check_threshold(threshold, entropy.shape[1])
    return leaves.argmax(axis=1).astype(np.int64) + 1


def open_threshold(classes: int) -> float:
    """A threshold that lets every row out at off-ramp 1: more than any entropy, rounding included."""
    return float(np.log(classes)) + 0.001


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


def check_threshold(threshold: Threshold, layers: int) -> np.ndarray:
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
