"""Checks that several modules share, each with one wording."""

from numbers import Integral
from typing import Any

from transformers import PreTrainedModel

from .models.exit_criteria_deebert import is_single_label
from .models.exit_loop_deebert import has_exits


def check_count(name: str, number: Any, least: int = 1) -> int:
    """The argument `name` as an `int`; raises `ValueError` for what is no whole number, or below `least`."""
    if isinstance(number, bool) or not isinstance(number, Integral) or number < least:
        raise ValueError(f"`{name}` must be a whole number >= {least}, got {number!r}.")
    return int(number)


def check_in_pytorch(name: str, model: Any) -> None:
    """Raises `ValueError` for anything but a classifier with off-ramps whose weights are at hand."""
    if not has_exits(model) or not isinstance(model, PreTrainedModel):
        raise ValueError(
            f"`{name}` must be a classifier with off-ramps in PyTorch (`Dee…ForSequenceClassification`), got a "
            f"`{type(model).__name__}`: load the checkpoint, or see `from_backbone`."
        )


def check_single_label(what: str, config: Any) -> None:
    """Raises `ValueError` for the configuration of `what` unless it chooses one of several classes."""
    if not is_single_label(config):
        raise ValueError(
            f"{what} has num_labels={config.num_labels} and problem_type={config.problem_type!r}, but exits are about "
            "one of several classes: load a classifier of that kind."
        )


def has_vocabulary(tokenizer: Any) -> bool:
    """Whether a tokenizer knows more than its special tokens: without a vocabulary transformers makes one of these."""
    return len(tokenizer) > len(set(tokenizer.all_special_tokens))
