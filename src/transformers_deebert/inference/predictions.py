"""What the predictor answers: row by row, and as columns."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ..models.configuration_early_exit_deebert import class_names


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """
    The answer for one sample.

    Args:
        index (`int`): Its place in the input, from 0.
        label (`str`, *optional*): Name of the most probable label; `None` where the sample failed.
        label_id (`int`): Its number; -1 where the sample failed.
        score (`float`): Its probability, as in the text classification pipeline; NaN where the sample failed.
        exit_layer (`int`): The layer that the sample exited at; -1 where it failed.
        logits (`torch.FloatTensor` of shape `(labels,)`): In float32, on the CPU; NaN where the sample failed.
        error (`Exception`, *optional*): Why the sample failed.
    """

    index: int
    label: str | None
    label_id: int
    score: float
    exit_layer: int
    logits: torch.Tensor
    error: Exception | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """
    What one step of the scheduler answers.

    Args:
        indices (`list[int]`): Places of the rows in the input.
        exit_layer (`int`): Where they exited; -1 where they failed.
        logits (`torch.FloatTensor` of shape `(rows, labels)`, *optional*): In float32, on the CPU.
        error (`Exception`, *optional*): Why they failed.
    """

    indices: list[int]
    exit_layer: int = -1
    logits: torch.Tensor | None = None
    error: Exception | None = None


@dataclass(frozen=True, eq=False)
class Predictions:
    """
    The answers for many samples, in the order of the input: as columns, and as a sequence of [`Prediction`].

    Args:
        logits (`torch.FloatTensor` of shape `(rows, labels)`): In float32, on the CPU; NaN for rows that failed.
        scores (`torch.FloatTensor` of shape `(rows,)`): Probabilities of the most probable labels.
        label_ids (`torch.LongTensor` of shape `(rows,)`): Their numbers; -1 for rows that failed.
        exit_layers (`torch.LongTensor` of shape `(rows,)`): Where each sample exited; -1 for samples that failed.
        names (`tuple[str, ...]`): Names of all labels.
        errors (`dict[int, Exception]`): Of the rows that failed, by their index.
    """

    logits: torch.Tensor
    scores: torch.Tensor
    label_ids: torch.Tensor
    exit_layers: torch.Tensor
    names: tuple[str, ...]
    errors: dict[int, Exception]

    @classmethod
    def join(cls, parts: Iterable[Answers], rows: int, config: Any) -> "Predictions":
        """All answers of a run over `rows` rows."""
        logits = torch.full((rows, config.num_labels), torch.nan)
        exit_layers = torch.full((rows,), -1)
        errors: dict[int, Exception] = {}
        for part in parts:
            if part.error is not None:
                errors.update(dict.fromkeys(part.indices, part.error))
            if part.logits is not None:
                logits[part.indices] = part.logits
                exit_layers[part.indices] = part.exit_layer
        scores, label_ids = label_scores(logits, config).max(-1)
        label_ids = label_ids.where(exit_layers >= 0, -1)
        return cls(logits, scores, label_ids, exit_layers, tuple(class_names(config)), dict(sorted(errors.items())))

    @property
    def labels(self) -> list[str | None]:
        """The name of each row's most probable label; `None` for rows that failed."""
        return [None if label < 0 else self.names[label] for label in self.label_ids.tolist()]

    def __len__(self) -> int:
        return len(self.exit_layers)

    def __getitem__(self, index: int) -> Prediction:
        index = range(len(self))[index]  # negative ones too; raises IndexError behind the end
        label = int(self.label_ids[index])
        return Prediction(
            index,
            None if label < 0 else self.names[label],
            label,
            float(self.scores[index]),
            int(self.exit_layers[index]),
            self.logits[index],
            self.errors.get(index),
        )

    def __iter__(self) -> Iterator[Prediction]:
        return (self[index] for index in range(len(self)))


def predictions_of(part: Answers, config: Any, names: tuple[str, ...]) -> list[Prediction]:
    """The rows of one step, one by one."""
    if part.logits is None:
        nothing = torch.full((config.num_labels,), torch.nan)
        return [Prediction(index, None, -1, float("nan"), -1, nothing, part.error) for index in part.indices]
    scores, labels = label_scores(part.logits, config).max(-1)
    rows = zip(part.indices, labels.tolist(), scores.tolist(), part.logits, strict=True)
    return [Prediction(index, names[label], label, score, part.exit_layer, row) for index, label, score, row in rows]


def label_scores(logits: torch.Tensor, config: Any) -> torch.Tensor:
    """Scores `(rows, labels)` of logits, by the rule of transformers' text classification pipeline."""
    if config.problem_type == "regression":
        return logits
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return logits.sigmoid()
    return logits.softmax(-1)
