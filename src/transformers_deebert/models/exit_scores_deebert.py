"""Scores of exit criteria: how unsure an exit is of each sample. One function and one entry of `SCORES` a score."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch


@dataclass
class ExitCandidate:
    """
    What an exit offers a score.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, labels)`): Of the exit, its temperature applied.
        pooled (`torch.FloatTensor` of shape `(rows, hidden)`, *optional*): The vector that its classifier read.
        memory (`dict[str, torch.Tensor]`):
            The score's own `(rows, …)` tensors, empty at the first evaluated exit. What a score stores here it finds
            again at the next evaluated exit, for the rows that are still active.
        layer (`int`): The layer that the exit stands behind.
    """

    logits: torch.Tensor
    pooled: torch.Tensor | None = None
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    layer: int = 0


# From a candidate to `(rows,)` values >= 0, lower where the exit is more confident.
Score = Callable[[ExitCandidate], torch.Tensor]


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """
    Entropy of the predictions in nats (DeeBERT, section 3.2), computed in float32 from `log_softmax`, so that it is
    finite for every finite input, half precision included.

    Args:
        logits (`torch.FloatTensor` of shape `(…, labels)`): Before softmax.

    Returns:
        `torch.FloatTensor` of shape `(…)`, between 0 and ln(labels); NaN where a logit is not finite.
    """
    log_probabilities = logits.float().log_softmax(-1)
    return log_probabilities.exp().mul(log_probabilities).sum(-1).neg().relu()


def prediction_entropy(candidate: ExitCandidate) -> torch.Tensor:
    """[`entropy`] of the exit's prediction, between 0 and ln(labels)."""
    return entropy(candidate.logits)


def least_confidence(candidate: ExitCandidate) -> torch.Tensor:
    """1 - max p, between 0 and 1 - 1 / labels."""
    return 1 - candidate.logits.float().softmax(-1).amax(-1)


def margin(candidate: ExitCandidate) -> torch.Tensor:
    """1 - (p1 - p2) of the two most probable labels, between 0 and 1."""
    best = candidate.logits.float().softmax(-1).topk(2, -1).values
    return 1 - (best[..., 0] - best[..., 1])


def disagreement(candidate: ExitCandidate) -> torch.Tensor:
    """
    0 where the predicted label equals that of the previous evaluated exit, else 1; infinite at the first one. With
    patience t this is the rule of PABEE (Zhou et al., 2020): t exits in a row confirm the answer before them.
    """
    labels = candidate.logits.argmax(-1)
    previous = candidate.memory.get("previous_label")
    candidate.memory["previous_label"] = labels
    if previous is None:
        return torch.full(labels.shape, math.inf, device=labels.device)
    return (labels != previous).float()


class BuiltInScore(NamedTuple):
    """
    A score of the library.

    Args:
        function (`Callable`): From an [`ExitCandidate`] to `(rows,)` scores.
        largest (`Callable`): From the number of labels to the largest finite score there is.
        of_one_exit (`bool`): Whether it depends on the exit alone, and not on those evaluated before it.
    """

    function: Score
    largest: Callable[[int], float]
    of_one_exit: bool = True


SCORES = {
    "entropy": BuiltInScore(prediction_entropy, math.log),
    "least_confidence": BuiltInScore(least_confidence, lambda labels: 1 - 1 / labels),
    "margin": BuiltInScore(margin, lambda labels: 1.0),
    "disagreement": BuiltInScore(disagreement, lambda labels: 1.0, of_one_exit=False),
}


def find_score(score: str | Score) -> Score:
    """The function of a score's name, or the user's own function; raises `ValueError` for anything else."""
    if isinstance(score, str) and score in SCORES:
        return SCORES[score].function
    if callable(score):
        return score
    raise ValueError(f"`score` must be one of {', '.join(SCORES)} or a function of an `ExitCandidate`, got {score!r}.")


def largest_score(score: str | Score, labels: int) -> float | None:
    """The largest finite score that there can be, ln(labels) nats of entropy; `None` for one of the user's own."""
    return SCORES[score].largest(labels) if isinstance(score, str) and score in SCORES else None


def checked_score(score: Score, candidate: ExitCandidate) -> torch.Tensor:
    """
    A candidate's scores, infinite where the score or a logit is not finite: such a row does not exit early, whatever
    the score.

    Raises:
        ValueError: where a user's own score returns anything but one number a row.
    """
    values = score(candidate)
    rows = candidate.logits.shape[:1]
    if not isinstance(values, torch.Tensor) or values.shape != rows:
        given = tuple(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise ValueError(f"`score` must return a tensor of shape {tuple(rows)}, one number a row, got {given}.")
    # NaN where anything is not finite: fewer operations than `isfinite`, which is felt at batch 1.
    zero = (candidate.logits.sum(-1, dtype=torch.float32) + values) * 0
    return torch.where(zero == 0, values, math.inf)
