"""Exit criteria: a score, its threshold and the patience with it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from .exit_scores_deebert import SCORES, Score, find_score


FIELDS = ("score", "threshold", "patience")


@dataclass(frozen=True)
class ExitCriterion:
    """
    When a sample exits: at the first off-ramp that completes `patience` consecutive evaluated exits with a score below
    their threshold, strictly. An exit whose threshold is 0 is switched off: it is not evaluated, and neither continues
    nor breaks a run.

    Args:
        score (`str` or `Callable`):
            How unsure an exit is: `"entropy"` (DeeBERT), `"least_confidence"`, `"margin"`, `"disagreement"` (with
            patience t PABEE's rule), or a function from an [`ExitCandidate`] to a tensor of shape `(rows,)`, values
            >= 0, lower where it is more confident. A function can be used in a call, not in a configuration.
        threshold (`float` or `list[float]`):
            One for all off-ramps or one for each, in the score's unit; finite and >= 0.
        patience (`int`, *optional*, defaults to 1): Consecutive exits below the threshold that it takes.

    Raises:
        ValueError: for an unknown score, a threshold that is no number, negative or not finite, a patience below 1.

    ```python
    >>> from transformers_deebert import ExitCriterion

    >>> criterion = ExitCriterion("margin", threshold=0.1, patience=2)
    >>> model(**inputs, exit_criterion=criterion).exit_layers  # doctest: +SKIP
    tensor([4, 6])

    ```
    """

    score: str | Score
    threshold: float | Sequence[float]
    patience: int = 1

    def __post_init__(self):
        find_score(self.score)
        check_threshold_values(self.threshold)
        if isinstance(self.patience, bool) or not isinstance(self.patience, Integral) or self.patience < 1:
            raise ValueError(f"`patience` must be a whole number >= 1, got {self.patience!r}: 1 is plain early exit.")

    def to_dict(self) -> dict[str, Any]:
        """
        The fields as plain Python values, as `config.exit_criterion` holds them.

        Raises:
            ValueError: for a score that is a function.
        """
        if not isinstance(self.score, str):
            raise ValueError(
                f"`score` is a function ({self.score!r}), which no configuration can hold: give it with each call, or "
                f"use one of {', '.join(SCORES)}."
            )
        values = check_threshold_values(self.threshold)
        threshold = list(values) if is_list(self.threshold) else values[0]
        return {"score": self.score, "threshold": threshold, "patience": int(self.patience)}


def read_criterion(value, name: str = "exit_criterion") -> ExitCriterion:
    """
    The criterion that a mapping, or an object with the same attributes, describes: after a load of remote code the
    class of `value` may be another copy of [`ExitCriterion`].

    Raises:
        ValueError: for missing, unknown or malformed fields.
    """
    if isinstance(value, Mapping):
        unknown, missing = sorted(set(value) - set(FIELDS)), [field for field in FIELDS[:2] if field not in value]
        if unknown or missing:
            raise ValueError(
                f"`{name}` must have the fields score, threshold and, optionally, patience, got {dict(value)!r}"
                f"{f': unknown {unknown}' if unknown else ''}{f': missing {missing}' if missing else ''}."
            )
        return ExitCriterion(**value)
    try:
        return ExitCriterion(value.score, value.threshold, value.patience)
    except AttributeError:
        raise ValueError(
            f"`{name}` must be an `ExitCriterion` or a dict of its fields, got {value!r}: for example "
            '{"score": "margin", "threshold": 0.1}.'
        ) from None


def is_list(value) -> bool:
    """Whether a threshold is given as one number for each off-ramp: a list, a tuple or an array."""
    return isinstance(value, (list, tuple)) or getattr(value, "ndim", 0) > 0


def check_threshold_values(value, name: str = "threshold") -> tuple[float, ...]:
    """The thresholds of a number or a list of numbers; raises `ValueError` unless all are finite and >= 0."""
    values = tuple(value) if is_list(value) else (value,)
    for threshold in values:
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise ValueError(
                f"`{name}` must be a number or a list of numbers, got {threshold!r} "
                f"({type(threshold).__name__}): pass a float such as 0.4."
            )
        if not math.isfinite(threshold) or threshold < 0:
            raise ValueError(
                f"`{name}` must be finite and not negative, got {threshold!r}: 0 switches an exit off, and a sample "
                "exits where the score is below the threshold."
            )
    return tuple(float(threshold) for threshold in values)


def check_thresholds(value, num_off_ramps: int, name: str = "early_exit_entropy") -> tuple[float, ...]:
    """
    Checks thresholds and spells them out, one for each off-ramp.

    Args:
        value (`float` or `list[float]`): One threshold for all off-ramps or one for each; finite and not negative.
        num_off_ramps (`int`): Number of off-ramps.
        name (`str`): The argument's, for errors.

    Returns:
        `tuple[float, ...]` of length `num_off_ramps`.

    Raises:
        ValueError: where a threshold is not a number, is negative or not finite, or their number is wrong.
    """
    values = check_threshold_values(value, name)
    if is_list(value) and len(values) != num_off_ramps:
        raise ValueError(
            f"`{name}` has {len(values)} thresholds, but the model has {num_off_ramps} off-ramps: give one number for "
            "all of them, or exactly one number for each."
        )
    return values if is_list(value) else values * num_off_ramps


def is_single_label(config) -> bool:
    """Whether a model chooses one of several classes."""
    return config.num_labels >= 2 and config.problem_type in (None, "single_label_classification")


def check_fits_problem(config, score: str | Score, name: str) -> None:
    """Raises `ValueError` for a score of the library and a model that does not choose one of several classes."""
    if isinstance(score, str) and not is_single_label(config):
        raise ValueError(
            f"`{name}` with the score {score!r} needs a model that chooses one of several classes, this one has "
            f"num_labels={config.num_labels} and problem_type={config.problem_type!r}: use `exit_layer`, a score of "
            "your own, or the threshold 0 for the full depth."
        )
