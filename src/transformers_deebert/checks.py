"""Checks that several modules share, each with one wording."""

import warnings
from collections.abc import Callable
from functools import wraps
from numbers import Integral
from typing import Any, TypeVar

from transformers import PreTrainedModel

from .models.exit_criteria_deebert import is_single_label
from .models.exit_loop_deebert import has_exits


Function = TypeVar("Function", bound=Callable[..., Any])


def renamed_arguments(**new_names: str) -> Callable[[Function], Function]:
    """For one release a public function takes keyword arguments by their earlier names too: `earlier="new"`."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            for earlier in new_names.keys() & kwargs.keys():
                new = new_names[earlier]
                if new in kwargs:
                    raise ValueError(f"`{earlier}` is the earlier name of `{new}`: give `{new}` alone.")
                message = (
                    f"`{earlier}` of {function.__name__} is now called `{new}`; the next release takes that alone."
                )
                warnings.warn(message, FutureWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(earlier)
            return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    return decorate


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
