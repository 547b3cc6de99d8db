"""The default threshold inside `model.onnx`."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from transformers.utils import logging

from ...folders import whole_file
from ...models.exit_criteria_deebert import ExitCriterion, check_threshold_values, read_criterion
from .single_file import THRESHOLD


logger = logging.get_logger(__name__)

SINGLE_FILE = "model.onnx"


def criterion_of(early_exit_entropy: Any, exit_criterion: Any) -> ExitCriterion:
    """The exit criterion of these fields of a configuration; without one, entropy with the threshold 0."""
    if exit_criterion is not None:
        return read_criterion(exit_criterion)
    return ExitCriterion("entropy", 0.0 if early_exit_entropy is None else early_exit_entropy)


def default_thresholds(criterion: ExitCriterion, score: Any, patience: int) -> list[float]:
    """A criterion's thresholds for a file that knows this score; 0, the full depth, where it is about another."""
    values = check_threshold_values(criterion.threshold)
    if any(values) and (criterion.score, criterion.patience) != (score, patience):
        logger.warning(
            f"`{SINGLE_FILE}` knows the score {score!r} with patience {patience}, the configuration's threshold is of "
            f"{criterion.score!r} with patience {criterion.patience}: without `{THRESHOLD}` it runs the full depth. "
            "Export the model again."
        )
        return [0.0]
    return list(values)


def set_default_threshold(path: Path, thresholds: list[float]) -> None:
    """Changes the initializer of `exit_threshold` in a file."""
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.name == THRESHOLD:
            tensor.CopyFrom(numpy_helper.from_array(np.array(thresholds, np.float32), THRESHOLD))
    with whole_file(path) as whole:
        onnx.save(model, whole)
