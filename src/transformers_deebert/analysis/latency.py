"""Milliseconds of a row that exits at each layer, measured on one machine, by its length."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel

from ..checks import check_count
from ..models.exit_criteria_deebert import ExitCriterion, check_fits_problem
from ..models.exit_scores_deebert import ExitCandidate, Score, find_score
from .decisions import as_criterion
from .rotation import time_rotation
from .stock import check_off_ramps, token_limit
from .tables import to_plain
from .timing import describe_machine, evaluating


if TYPE_CHECKING:
    from .exit_table import ExitTable


@dataclass(frozen=True)
class LatencyProfile:
    """
    Milliseconds of a row that exits at each layer, at several lengths. Made by [`measure_latency`].

    Medians as they were measured: nothing makes them rise from layer to layer or with the length.

    Args:
        lengths (`tuple[int, ...]`):
            Tokens a row, rising.
        milliseconds (`np.ndarray` of shape `(lengths, layers)`, float64):
            Per row, for a row that exits at each of `exit_layers`, every off-ramp before it and its own evaluated.
        batch_size (`int`):
            Rows a batch, all of one length and leaving together.
        machine (`dict[str, str | int]`):
            What it was measured on, as [`describe_machine`] returns it.
        exit_layers (`tuple[int, ...]`, *optional*):
            The layers that the model's exits stand behind; by default 1, 2, …

    Raises:
        `ValueError`: for lengths that do not rise, or milliseconds of another shape, negative or not finite.
    """

    lengths: tuple[int, ...]
    milliseconds: np.ndarray
    batch_size: int
    machine: dict[str, str | int]
    exit_layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_lengths(self.lengths)
        check_count("batch_size", self.batch_size)
        values = self.milliseconds
        if not isinstance(values, np.ndarray) or values.ndim != 2 or len(values) != len(self.lengths):
            shape = getattr(values, "shape", type(values).__name__)
            raise ValueError(
                f"`milliseconds` must be an array of shape (lengths, layers) with {len(self.lengths)} lengths, got "
                f"{shape}. Measure it with `measure_latency`."
            )
        if values.shape[1] == 0 or not np.isfinite(values).all() or (values < 0).any():
            raise ValueError(
                f"`milliseconds` must be finite and >= 0 for one layer or more, got {values.tolist()}. Measure it "
                "with `measure_latency`."
            )

        if not self.exit_layers:
            object.__setattr__(self, "exit_layers", tuple(range(1, values.shape[1] + 1)))
        if len(self.exit_layers) != values.shape[1]:
            raise ValueError(f"`exit_layers` ({self.exit_layers}) must name {values.shape[1]} layers, one a column.")

    @property
    def num_layers(self) -> int:
        return self.exit_layers[-1]

    def at(self, lengths: np.ndarray) -> np.ndarray:
        """
        Milliseconds of rows of any length.

        Between two measured lengths the values are interpolated linearly. Beyond the ends they are *not* extrapolated:
        a row shorter than the shortest length costs what that costs, one longer than the longest likewise. So measure
        up to the longest row.

        Args:
            lengths (`np.ndarray` of shape `(rows,)`):
                Tokens of each row, 1 or more.

        Returns:
            `np.ndarray` of shape `(rows, layers)`, float64.

        Raises:
            `ValueError`: if `lengths` is not a vector of numbers >= 1.
        """
        wanted = np.asarray(lengths)
        if wanted.ndim != 1 or not (
            np.issubdtype(wanted.dtype, np.integer) or np.issubdtype(wanted.dtype, np.floating)
        ):
            raise ValueError(f"`lengths` must be numbers of shape (rows,), got {lengths!r}. Pass one length a row.")
        if not np.isfinite(wanted).all() or (wanted < 1).any():
            raise ValueError(f"`lengths` must be finite and >= 1, got {lengths!r}. Pass the rows' numbers of tokens.")
        return np.stack([np.interp(wanted, self.lengths, layer) for layer in self.milliseconds.T], axis=1)

    def of(self, table: "ExitTable") -> np.ndarray:
        """
        Milliseconds of the rows of an exit table, by their lengths: [`at`] of `table.lengths`.

        Raises:
            `ValueError`: for a table of a model with other exit layers, or without lengths.
        """
        missing = [layer for layer in table.exit_layers if layer not in self.exit_layers]
        if missing or table.num_layers != self.num_layers:
            raise ValueError(
                f"`latency` is of a model with {self.num_layers} layers and exits behind {self.exit_layers}, `table` "
                f"of one with {table.num_layers} and exits behind {table.exit_layers}: measure the table's model."
            )
        if not table.lengths.all():
            raise ValueError("`latency` needs lengths, and `table` has rows of 0 tokens: give it `lengths`.")
        return self.at(table.lengths)[:, [self.exit_layers.index(layer) for layer in table.exit_layers]]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return to_plain(asdict(self))

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "LatencyProfile":
        """
        The profile that [`to_dict`] wrote down.

        Raises:
            `ValueError`: if a field is missing or malformed.
        """
        names = ("lengths", "milliseconds", "batch_size", "machine")
        missing = [name for name in names if name not in fields]
        if missing:
            raise ValueError(f"`fields` lacks {missing}: pass what `LatencyProfile.to_dict` returned.")
        try:
            milliseconds = np.array(fields["milliseconds"], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"`milliseconds` must hold one number for each length and layer, got {fields['milliseconds']!r}: pass "
                "what `LatencyProfile.to_dict` returned."
            ) from error
        layers = tuple(fields.get("exit_layers", ()))
        return cls(tuple(fields["lengths"]), milliseconds, fields["batch_size"], dict(fields["machine"]), layers)


def measure_latency(
    model: PreTrainedModel,
    lengths: Sequence[int] = (16, 32, 64, 128),
    batch_size: int = 1,
    repeats: int = 5,
    warm_up: int = 3,
    progress: bool = True,
    criterion: Any = "entropy",
) -> LatencyProfile:
    """
    Measures what a row costs that exits at each layer.

    Batches of random tokens without padding exit together at a given layer, with every off-ramp before it evaluated
    in vain, as Algorithm 1 of the paper has it. All lengths and layers take turns, in an order that is shuffled anew
    in each repeat: a change of the machine's mood meets all alike, and none always finds the cache as another left it.
    The model runs where it is, in evaluation mode, and returns to its mode afterwards.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier of several classes. Default thresholds in its configuration do not matter.
        lengths (sequence of `int`, *optional*, defaults to `(16, 32, 64, 128)`):
            Tokens a row, rising.
        batch_size (`int`, *optional*, defaults to 1):
            Rows a batch.
        repeats (`int`, *optional*, defaults to 5):
            Timed passes of each length and layer; the median counts.
        warm_up (`int`, *optional*, defaults to 3):
            Passes of each before the clock starts.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar after ten seconds.
        criterion (`str`, `Callable`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            Whose score every off-ramp computes; where rows exit is laid down, whatever its thresholds.

    Returns:
        [`LatencyProfile`]: milliseconds per row, of shape `(lengths, exits)`.

    Raises:
        `ValueError`: for a model without off-ramps or classes, lengths that do not rise or that the model cannot take,
            counts out of range, or rows that do not leave where they should, as with weights that are not finite.
    """
    check_off_ramps(model)
    score = as_criterion(criterion).score
    check_fits_problem(model.config, score, "model")
    lengths = check_lengths(lengths)
    limit = token_limit(model)
    if limit is not None and lengths[-1] > limit:
        raise ValueError(
            f"`lengths` must not exceed the {limit} tokens that this model's position table holds, got {lengths}. "
            "Leave the longer ones out."
        )
    check_count("batch_size", batch_size)
    check_count("repeats", repeats)
    check_count("warm_up", warm_up, least=0)
    layers = model.config.exit_layers
    calls = {
        (length, layer): partial(model, **random_batch(model, batch_size, length), **exiting_at(layer, score))
        for length in lengths
        for layer in layers
    }
    with evaluating([model]):
        for (_, layer), call in calls.items():
            check_exit(call().exit_layers, layer)
        seconds = time_rotation(calls, repeats, warm_up, shuffle=True, devices=[model.device], progress=progress)
    medians = np.median(list(seconds.values()), axis=1)
    return LatencyProfile(
        lengths=lengths,
        milliseconds=1e3 * medians.reshape(len(lengths), len(layers)) / batch_size,
        batch_size=int(batch_size),
        machine=describe_machine(model.device),
        exit_layers=layers,
    )


def check_lengths(lengths: Sequence[int]) -> tuple[int, ...]:
    """Lengths as plain numbers; raises `ValueError` unless they are whole numbers >= 1 that rise."""
    remedy = "Pass a list of whole numbers >= 1 that rise, such as [16, 32, 64]."
    if not isinstance(lengths, Sequence | np.ndarray) or isinstance(lengths, str) or len(lengths) == 0:
        raise ValueError(f"`lengths` must be one or more lengths, got {lengths!r}. {remedy}")
    for length in lengths:
        check_count("lengths", length)
    plain = tuple(int(length) for length in lengths)
    if list(plain) != sorted(set(plain)):
        raise ValueError(f"`lengths` must rise, got {lengths!r}. {remedy}")
    return plain


def random_batch(model: Any, rows: int, length: int) -> dict[str, torch.Tensor]:
    """Random tokens, none of them padding, as a tokenizer would give them."""
    vocabulary, padding = model.table_sizes()["input_ids"], model.config.pad_token_id
    ids = torch.randint(vocabulary - 1, (rows, length), generator=torch.Generator().manual_seed(length))
    if padding is not None:
        ids += (ids >= padding).long()
    return {"input_ids": ids.to(model.device), "attention_mask": torch.ones_like(ids).to(model.device)}


def exiting_at(layer: int, score: str | Score) -> dict[str, Any]:
    """Keywords with which every row exits at a layer, the scores of all off-ramps up to there being computed."""
    function = find_score(score)

    def exits(candidate: ExitCandidate) -> torch.Tensor:
        return torch.full_like(function(candidate), 0.0 if candidate.layer == layer else math.inf)

    # What the configuration asks for besides the answer would have all layers run.
    others = dict.fromkeys(("output_off_ramp_logits", "output_hidden_states", "output_attentions"), False)
    return {"exit_criterion": ExitCriterion(exits, 1.0), **others}


def check_exit(exit_layers: torch.Tensor, layer: int) -> None:
    """Raises `ValueError` unless all rows exit at `layer`."""
    exits = exit_layers.unique().tolist()
    if exits != [layer]:
        raise ValueError(
            f"`model` lets rows exit at layers {exits} that should exit at layer {layer}: the logits of its off-ramps "
            "are not finite. Check its weights."
        )
