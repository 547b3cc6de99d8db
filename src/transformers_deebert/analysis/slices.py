"""Slices: exit depth and accuracy by class, by length, by any column."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np

from .decisions import Threshold
from .exit_table import ExitTable


MOST_SLICES = 20
SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Slice:
    """
    The rows that have something in common.

    Args:
        name (`str`): What that is.
        rows (`int`): How many there are.
        exit_layer (`float`): Mean exit layer.
        layer_saving (`float`): 1 minus layers run over layers in a full pass.
        accuracy, full_accuracy, accuracy_change (`float`): With early exit, at full depth, and their difference.
        negative_flips (`int`): Negative flips: full depth correct, early exit incorrect.
        worse (`bool`):
            Whether early exit costs these rows more than the average: they lose more accuracy, and their share of
            negative flips is above that of all rows by a one-sided exact binomial test at 5 %, divided by the number
            of slices.
    """

    name: str
    rows: int
    exit_layer: float
    layer_saving: float
    accuracy: float
    full_accuracy: float
    accuracy_change: float
    negative_flips: int
    worse: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers and strings, ready for JSON."""
        return asdict(self)


def slice_report(table: ExitTable, threshold: Threshold, by: str | Sequence[Any] = "label") -> list[Slice]:
    """
    Exit depth and accuracy of parts of the rows.

    Args:
        table ([`ExitTable`]):
            Rows that the model was not trained on.
        threshold (`float` or sequence of `layers - 1` floats):
            Of the table's score.
        by (`str` or sequence of `rows` values, *optional*, defaults to `"label"`):
            `"label"`: by true class. `"length"`: by number of tokens, in quarters of the rows. Or one value for each
            row of the table, such as a column of the data set, `[dataset[int(i)]["source"] for i in table.ids]`:
            numbers with more than 20 different values are cut in quarters; of other values the 20 most frequent
            are shown, and the rest together.

    Returns:
        `list[Slice]`: the one for all rows first (it is never `worse`), then the parts.

    Raises:
        ValueError: for something else to slice by, or another number of values than rows.
    """
    groups = group_rows(table, by)
    exits, answers = table.exits_at(threshold)
    correct, full = answers == table.labels, table.answers[:, -1] == table.labels
    everything = {"all rows": np.ones(len(table), bool)}
    flip_share = float((full & ~correct).mean())
    total_change = float(correct.mean() - full.mean())
    slices = []
    for name, rows in [*everything.items(), *groups.items()]:
        number, flips = int(rows.sum()), int((full & ~correct)[rows].sum())
        change = float(correct[rows].mean() - full[rows].mean())
        slices.append(
            Slice(
                name=name,
                rows=number,
                exit_layer=float(exits[rows].mean()),
                layer_saving=float(1 - exits[rows].mean() / table.num_layers),
                accuracy=float(correct[rows].mean()),
                full_accuracy=float(full[rows].mean()),
                accuracy_change=change,
                negative_flips=flips,
                worse=change < total_change and is_more_than_chance(flips, number, flip_share, len(groups)),
            )
        )
    return slices


def is_more_than_chance(flips: int, rows: int, share: float, tests: int) -> bool:
    from scipy.stats import binom

    return bool(flips > 0 and binom.sf(flips - 1, rows, share) < SIGNIFICANCE / tests)


def group_rows(table: ExitTable, by: str | Sequence[Any]) -> dict[str, np.ndarray]:
    """Masks of the rows of each part, by name."""
    if isinstance(by, str):
        if by == "label":
            classes = list(table.label_names)
            if len(set(classes)) < len(classes):
                classes = [f"{name} ({label})" for label, name in enumerate(classes)]
            masks = {name: table.labels == label for label, name in enumerate(classes)}
            return {name: mask for name, mask in masks.items() if mask.any()}
        if by == "length":
            return quarters(table.lengths.astype(float), "{:.0f} to {:.0f} tokens")
        raise ValueError(f'`by` must be "label", "length" or one value for each row, got {by!r}.')
    if len(by) != len(table):
        raise ValueError(f"`by` has {len(by)} values for {len(table)} rows: give one for each row of the table.")
    numbers = as_numbers(by)
    if numbers is not None and len(np.unique(numbers)) > MOST_SLICES:
        return quarters(numbers, "{:.4g} to {:.4g}")
    names = np.array([str(value) for value in by])
    known, counts = np.unique(names, return_counts=True)
    shown = known[np.argsort(-counts, kind="stable")[:MOST_SLICES]]
    groups = {str(name): names == name for name in shown}
    rest = ~np.isin(names, shown)
    return {**groups, f"{len(known) - len(shown)} others": rest} if rest.any() else groups


def as_numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Values as float64, NaN for `None`; `None` where one is no number."""
    numeric = all(value is None or (isinstance(value, Real) and not isinstance(value, bool)) for value in values)
    return np.array([math.nan if value is None else float(value) for value in values]) if numeric else None


def quarters(values: np.ndarray, form: str) -> dict[str, np.ndarray]:
    """Four parts of about equal size, fewer where values coincide; rows without a value apart."""
    known = np.isfinite(values)
    edges = np.unique(np.quantile(values[known], [0.25, 0.5, 0.75])) if known.any() else np.empty(0)
    place = np.searchsorted(edges, values)
    parts = [known & (place == index) for index in range(len(edges) + 1)]
    parts = [rows for rows in parts if rows.any()]
    for wording in (form, "{!r} to {!r}"):  # as many digits as it takes to distinguish them
        groups = {wording.format(values[rows].min().item(), values[rows].max().item()): rows for rows in parts}
        if len(groups) == len(parts):
            break
    return {**groups, "none": ~known} if (~known).any() else groups
