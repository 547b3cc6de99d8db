"""Labels of data sets, however they are written, as a model's class indices."""

import math
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from .messages import listed, note
from .models.configuration_early_exit_deebert import class_names


UNLABELLED = -100  # what losses and `collect_exits` leave out
KINDS = (str, bool, int, float)
WHOLE = re.compile(r"[+-]?\d{1,18}(\.0*)?")


def class_indices(
    values: Sequence[Any], data_names: Sequence[str] | None, config: Any, skip_unknown: bool = False
) -> list[int]:
    """
    The model's class index of every label.

    A string is a class name of `config.id2label` (in its own case, or in any where only one fits), else an index or a
    truth value in writing. A number is an index, unless the model's class names are numbers themselves: then it is a
    name. Where the data set has class names and the model knows any of them, names count, whatever their order.

    Args:
        values (sequence): Integers, whole floats, booleans, strings; -1, -100, NaN and `None` are no label.
        data_names (`Sequence[str]`, *optional*): The data set's own names of its indices.
        config (`PreTrainedConfig`): Of the model.
        skip_unknown (`bool`, *optional*, defaults to `False`): Count labels that are none of the model's as missing.

    Returns:
        `list[int]`: 0 … C-1, and -100 for rows without a label, whose number is noted on stderr.

    Raises:
        ValueError: for the first label that is none of the model's, naming its row (from 1); if no row has a label.
    """
    if data_names is None:
        values = numbers_as_names(values, config)
    find = lru_cache(maxsize=None, typed=True)(make_finder(data_names, config))
    indices, unknown = [], []
    for row, value in enumerate(values, start=1):
        # Lists and the like are none, and cannot be looked up.
        index = find(value) if value is None or isinstance(value, KINDS) else None
        if index is None and skip_unknown:
            unknown.append(row)
            index = UNLABELLED
        if index is None:
            shown = value if data_names is None or not isinstance(value, int) else name_at(data_names, value)
            raise ValueError(
                f"The label in row {row} is {shown!r:.80}, but the model knows {describe_labels(config)}: map the "
                "labels to these, name another column with `label_column`, or leave such rows out with "
                "`skip_invalid`."
            )
        indices.append(index)
    if unknown:
        note(
            f"{len(unknown)} of {len(indices)} rows are skipped: their label is none of the model's (rows "
            f"{listed(unknown)})."
        )
    missing = indices.count(UNLABELLED) - len(unknown)
    if missing + len(unknown) == len(indices):
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


def numbers_as_names(values: Sequence[Any], config: Any) -> Sequence[Any]:
    """
    The labels, numbers replaced by class names where they are the numbers in these: 1 … 5 for "1 star" … "5 stars".

    Raises:
        ValueError: where numbers may be such, or indices.
    """
    names = class_names(config)
    found = [re.findall(r"\d+", name) for name in names]
    named = {int(numbers[0]): name for name, numbers in zip(names, found, strict=True) if len(numbers) == 1}
    if len(named) < len(names) or list(named) == list(range(len(names))) or all(map(WHOLE.fullmatch, names)):
        return values
    numbers = [whole_number(value) if isinstance(value, KINDS) and not is_missing(value) else None for value in values]
    given = {number for number in numbers if number is not None}
    if not given or not given <= set(named):
        return values
    if given <= set(range(len(names))):
        raise ValueError(
            f"The labels {listed(sorted(given))} may be indices, or the numbers in the class names ({listed(names)}): "
            "write the class names in their place."
        )
    note(f"the labels are read as the numbers in the class names ({listed(names)}).")
    return [value if number is None else named[number] for value, number in zip(values, numbers, strict=True)]


def is_missing(value: Any) -> bool:
    """Whether a label says that there is none."""
    if isinstance(value, str):
        return value.strip() in ("-1", "-100")
    return value is None or value in (-1, UNLABELLED) or value != value


def make_finder(data_names: Sequence[str] | None, config: Any) -> Callable[[Any], int | None]:
    """The function from a label to the model's class index, or to `None` for a label that the model does not know."""
    if data_names is None:
        return lambda value: find_class(value, config)
    found = [find_name(name, config) for name in data_names]
    if any(index is not None for index in found):
        return lambda value: UNLABELLED if is_missing(value) else found[value] if value in range(len(found)) else None
    if has_names(config):
        note(
            f"the data set's class names ({listed(data_names)}) are none of the model's "
            f"({listed(class_names(config))}): class indices are taken as they are."
        )
    return lambda value: UNLABELLED if is_missing(value) else in_range(value, config)


def find_class(value: str | bool | int | float | None, config: Any) -> int | None:
    """The class of a label: a name, or else an index."""
    if value is None:
        return UNLABELLED
    # "1" … "5" for the classes 0 … 4: a name and an index could not be distinguished.
    numbers_are_names = all(WHOLE.fullmatch(name) for name in class_names(config))
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
    names = class_names(config)
    if name in names:
        return names.index(name)
    alike = [index for index, other in enumerate(names) if other.casefold() == name.strip().casefold()]
    return alike[0] if len(alike) == 1 else None


def in_range(index: int, config: Any) -> int | None:
    return index if 0 <= index < config.num_labels else None


def has_names(config: Any) -> bool:
    """Whether the classes have names other than transformers' own."""
    return any(not re.fullmatch(r"LABEL_\d+", name) for name in class_names(config))


def name_at(data_names: Sequence[str], index: int) -> str | int:
    return data_names[index] if 0 <= index < len(data_names) else index


def describe_labels(config: Any) -> str:
    indices = f"the indices 0 … {config.num_labels - 1}"
    return f"{indices} and the names {listed(class_names(config))}" if has_names(config) else indices
