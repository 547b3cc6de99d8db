"""Answers of a batch in input order, and the dropping of exited rows."""

from collections.abc import Callable
from dataclasses import replace

import torch

from .exit_scores_deebert import ExitCandidate
from .layer_state_deebert import LayerState, resize_columns


# Exited rows, and columns that only they needed, are carried along until they make up more than this share of a
# batch's cells, because dropping them copies all others. benchmarks/compaction.py measures the choice.
MAX_IDLE_SHARE = 1 / 32


class ExitAnswers:
    """
    The answers of a batch.

    Args:
        state (`LayerState`): In front of layer 1, before any row or column was dropped.
        readout (`Callable`, *optional*):
            Keeps pooled vectors and hidden states besides the logits, the states as it gives them back.
    """

    def __init__(self, state: LayerState, readout: Callable[[torch.Tensor], torch.Tensor] | None):
        self.total, self.width = state.mask.shape
        self.readout = readout
        self.logits: torch.Tensor | None = None
        self.pooled: torch.Tensor | None = None
        self.hidden: torch.Tensor | None = None
        self.exit_layers: torch.Tensor | None = None

    def record_all(self, state: LayerState, candidate: ExitCandidate) -> None:
        """All rows exit here and none exited before: no copies, and gradients flow as in the stock model."""
        self.logits = candidate.logits
        self.exit_layers = torch.full_like(state.rows, state.layer)
        if self.readout is not None:
            self.pooled, self.hidden = candidate.pooled, resize_columns(self.readout(state.hidden), self.width)

    def record_rest(self, state: LayerState, candidate: ExitCandidate, exiting: torch.Tensor) -> None:
        """The rows marked in `exiting` are all that were active."""
        if self.exit_layers is None:
            self.record_all(state, candidate)
        else:
            self.record(state, candidate, exiting)

    def record(self, state: LayerState, candidate: ExitCandidate, exiting: torch.Tensor) -> None:
        """The rows marked in `exiting`, `(rows,)`, exit here."""
        self.exit_layers = self.put(self.exit_layers, state, exiting, torch.full_like(state.rows, state.layer))
        if candidate.logits is not None:
            self.logits = self.put(self.logits, state, exiting, candidate.logits)
        if self.readout is not None:
            if candidate.pooled is not None:
                self.pooled = self.put(self.pooled, state, exiting, candidate.pooled)
            hidden = resize_columns(self.readout(state.hidden), self.width)
            self.hidden = self.put(self.hidden, state, exiting, hidden)

    def keep_none(self) -> None:
        """Cuts all answers to no rows."""
        for name in ("logits", "pooled", "hidden", "exit_layers"):
            answer = getattr(self, name)
            setattr(self, name, None if answer is None else answer[:0])

    def put(self, answer, state: LayerState, exiting: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Writes the values of exiting rows to their places, without reading `exiting` on the host."""
        if answer is None:
            answer = values.new_zeros(self.total, *values.shape[1:])
        exiting = exiting.view(-1, *[1] * (values.dim() - 1))
        return answer.index_put((state.rows,), torch.where(exiting, values, answer[state.rows]))


class Compactor:
    """
    Drops exited rows, and padding that only they needed, where that pays: when the rows and columns still needed
    make up at most `1 - MAX_IDLE_SHARE` of the batch's cells. A mask with holes keeps all columns up to its last
    attended one.

    Args:
        state (`LayerState`): In front of layer 1.
    """

    def __init__(self, state: LayerState):
        # On the host, each row's length (1 + its last attended column, at least 1), and 0 once it exited.
        self.remaining, self.holes = host_lengths(state.mask)

    def note_exits(self, exiting: torch.Tensor) -> bool:
        """Notes which rows exit, and returns whether any does; the one host synchronisation of a layer."""
        flags = host_flags(exiting)
        if not any(flags):
            return False
        self.remaining = [0 if exited else length for exited, length in zip(flags, self.remaining, strict=True)]
        return True

    @property
    def all_exited(self) -> bool:
        return not any(self.remaining)

    def compact(self, state: LayerState) -> LayerState:
        """The active rows, of which there is at least one, perhaps with exited ones among them."""
        active = [row for row, length in enumerate(self.remaining) if length]
        rows, columns = state.mask.shape
        count = min(rows, usual_size(len(active), state.mask.device))
        width = min(columns, usual_size(max(self.remaining), state.mask.device))
        if count * width > (1 - MAX_IDLE_SHARE) * rows * columns:
            # That nothing is padded is worth knowing: pooling and attention then need no mask.
            full = not self.holes and all(length == columns for length in self.remaining)
            return replace(state, padding=False) if full else state
        state = state.resize(width)
        if count < rows:
            exited = [row for row, length in enumerate(self.remaining) if not length]
            kept = active + exited[: count - len(active)]
            if len(kept) == len(active):
                state = replace(state, active=None)
            state = state.select(torch.tensor(kept, dtype=torch.long, device=state.mask.device))
            self.remaining = [self.remaining[row] for row in kept]
        return replace(state, padding=self.holes or any(length < width for length in self.remaining))


def usual_size(size: int, device: torch.device) -> int:
    """
    The number of rows or columns to keep where `size` of them are needed. Accelerators choose kernels and make plans
    for every new shape, which takes longer than a layer (cuDNN's attention: tens of milliseconds): they get one of
    four sizes an octave, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, …, so that shapes come again.
    """
    if device.type == "cpu":
        return size
    step = 1 << max(0, size.bit_length() - 3)
    return -(-size // step) * step


# Reading tensors on the host breaks a compiled graph anyway; here the breaks are in known places.
@torch.compiler.disable
def host_flags(exiting: torch.Tensor) -> list[bool]:
    return exiting.tolist()


@torch.compiler.disable
def host_lengths(mask: torch.Tensor) -> tuple[list[int], bool]:
    """Each row's length, and whether any row has a hole before that."""
    rows, width = mask.shape
    if mask.all():
        return [width] * rows, False
    columns = torch.arange(1, width + 1, device=mask.device)
    lengths, attended = torch.stack([(mask * columns).amax(1), mask.sum(1)]).tolist()
    return [max(length, 1) for length in lengths], lengths != attended
