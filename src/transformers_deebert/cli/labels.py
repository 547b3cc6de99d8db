"""Labels of data sets, however they are written, as a model's class indices."""

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .messages import listed, note


UNLABELLED = -100  # what losses and `collect_exits` leave out
KINDS = (str, bool, int, float)
WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?")


def class_indices(values: Sequence[Any], class_names: Sequence[str] | None, config: Any) -> list[int]:
    """
    The model's class index of every label.

    A string is a class name of `config.label2id` (in its own case, or in any where only one fits), else an index or a
    truth value in writing. A number is an index, unless the model's class names are numbers themselves: then it is a
    name. Where the data set has class names and the model knows any of them, names count, whatever their order.

    Args:
        values (sequence): Integers, whole floats, booleans, strings; -1, -100, NaN and `None` are no label.
        class_names (`Sequence[str]`, *optional*): The data set's own names of its indices.
        config (`PreTrainedConfig`): Of the model.

    Returns:
        `list[int]`: 0 … C-1, and -100 for rows without a label, whose number is told on stderr.

    Raises:
        ValueError: for the first label that is none of the model's, naming its row (from 1); if no row has a label.
    """
    find = lru_cache(maxsize=None, typed=True)(make_finder(class_names, config))
    indices = []
    for row, value in enumerate(values, start=1):
        # Lists and the like are none, and cannot be looked up.
        index = find(value) if value is None or isinstance(value, KINDS) else None
        if index is None:
            shown = value if class_names is None or not isinstance(value, int) else name_at(class_names, value)
            raise ValueError(
                f"The label in row {row} is {shown!r:.80}, but the model knows {describe_labels(config)}: map the "
                "labels to these, or name another column with `--label-column`."
            )
        indices.append(index)
    missing = indices.count(UNLABELLED)
    if missing == len(indices):
        raise ValueError("No row has a label (all are null or -1): choose another split or file.")
    if len(set(indices) - {UNLABELLED}) == 1 and any(
        value in (-1, "-1") for value in values if isinstance(value, KINDS)
    ):
        raise ValueError(
            "The labels are -1 and one class: -1 means that a row has no label, so map the classes to "
            f"{describe_labels(config)}."
        )
    if missing:
        note(f"{missing} of {len(indices)} rows have no label and are left out.")
    return indices


def is_missing(value: Any) -> bool:
    """Whether a label says that there is none."""
    if isinstance(value, str):
        return value.strip() in ("-1", "-100")
    return value is None or value in (-1, UNLABELLED) or value != value


def make_finder(class_names: Sequence[str] | None, config: Any) -> Callable[[Any], int | None]:
    """The function from a label to the model's class index, or to `None` for a label that the model does not know."""
    if class_names is None:
        return lambda value: find_class(value, config)
    found = [find_name(name, config) for name in class_names]
    if any(index is not None for index in found):
        return lambda value: UNLABELLED if is_missing(value) else found[value] if value in range(len(found)) else None
    if has_names(config):
        note(
            f"the data set's class names ({listed(class_names)}) are none of the model's "
            f"({listed(names_of(config))}): class indices are taken as they are."
        )
    return lambda value: UNLABELLED if is_missing(value) else in_range(value, config)


def find_class(value: str | bool | int | float | None, config: Any) -> int | None:
    """The class of a label: a name, or else an index."""
    if value is None:
        return UNLABELLED
    # "1" … "5" for the classes 0 … 4: a name and an index could not be told apart.
    numbers_are_names = all(WHOLE.fullmatch(name) for name in names_of(config))
    number = whole_number(value)
    if isinstance(value, (str, bool)) or numbers_are_names:
        index = find_name(value if number is None or isinstance(value, (str, bool)) else number, config)
        if index is not None:
            return index
    if is_missing(value):
        return UNLABELLED
    if number is None:
        return None
    return find_name(number, config) if numbers_are_names else in_range(number, config)


def whole_number(value: str | bool | int | float) -> int | None:
    """The number that a label is, perhaps in writing; `None` where it is none, or not whole."""
    if isinstance(value, str):
        value = value.strip().lower()
        if value in ("true", "false"):
            return int(value == "true")
        return int(value.partition(".")[0]) if WHOLE.fullmatch(value) else None
    return int(value) if math.isfinite(value) and value == int(value) else None


def find_name(name: Any, config: Any) -> int | None:
    """The class of that name, in its own case or, where only one fits, in any."""
    name = str(name)
    names = names_of(config)
    if name in names:
        return names.index(name)
    alike = [index for index, other in enumerate(names) if other.casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def in_range(index: int, config: Any) -> int | None:
    return index if 0 <= index < config.num_labels else None


def names_of(config: Any) -> list[str]:
    """The model's class names in the order of their indices."""
    names = {int(index): str(name) for name, index in config.label2id.items()}
    return [names.get(index, str(config.id2label.get(index, f"LABEL_{index}"))) for index in range(config.num_labels)]


def has_names(config: Any) -> bool:
    """Whether the classes have names other than transformers' own."""
    return any(not re.fullmatch(r"LABEL_\d+", name) for name in names_of(config))


def name_at(class_names: Sequence[str], index: int) -> str | int:
    return class_names[index] if 0 <= index < len(class_names) else index


def describe_labels(config: Any) -> str:
    indices = f"the indices 0 … {config.num_labels - 1}"
    return f"{indices} and the names {listed(names_of(config))}" if has_names(config) else indices
