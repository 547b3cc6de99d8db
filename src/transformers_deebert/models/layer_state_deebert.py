"""State of a batch between two layers."""

from dataclasses import dataclass, field, replace

import torch


@dataclass
class LayerState:
    """
    Rows in the encoder. Holds primary, row-aligned tensors only; what can be derived from them (4-D
    masks, relative positions, …) is `context`, built when a layer needs it and dropped when rows or width change. So
    rows can be selected, states of different batches concatenated, and padding cut without knowing the family.
    Applying a layer changes a state in place; [`select`], [`resize`] and [`cat`] make new ones.

    Args:
        hidden (`torch.FloatTensor` of shape `(rows, width, hidden)`): States behind `layer` layers.
        mask (`torch.LongTensor` of shape `(rows, width)`): 1 for attended tokens; each row's first is in column 0.
        rows (`torch.LongTensor` of shape `(rows,)`): Each row's place in the answer.
        tokens (`dict[str, torch.Tensor]`): Further `(rows, width, …)` tensors that the family's layers need.
        memory (`dict[str, torch.Tensor]`): `(rows, …)` tensors of the exit criterion, kept from layer to layer.
        active (`torch.BoolTensor` of shape `(rows,)`, *optional*): Which rows have no answer yet; `None`: all of them.
        layer (`int`): Number of layers applied.
        padding (`bool`, *optional*): Whether any cell is masked, where the host knows it; `None` where it does not.
        context (`dict`, *optional*): Arguments derived for the layers, `None` until built.
        exit_logits (`torch.FloatTensor` of shape `(rows, labels)`, *optional*):
            Of the exit behind the last applied layer, where the runtime computes both at once.
    """

    hidden: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    tokens: dict[str, torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    active: torch.Tensor | None = None
    layer: int = 0
    padding: bool | None = None
    context: dict | None = None
    exit_logits: torch.Tensor | None = None

    @classmethod
    def begin(cls, hidden: torch.Tensor, mask: torch.Tensor, **tokens: torch.Tensor) -> "LayerState":
        """The state in front of the first layer."""
        rows = torch.arange(mask.shape[0], device=mask.device)
        return cls(hidden=hidden, mask=mask, rows=rows, tokens=tokens)

    def select(self, index: torch.Tensor) -> "LayerState":
        """The rows at `index` (`torch.LongTensor`), in that order."""
        return replace(
            self,
            hidden=self.hidden[index],
            mask=self.mask[index],
            rows=self.rows[index],
            active=None if self.active is None else self.active[index],
            tokens={name: tensor[index] for name, tensor in self.tokens.items()},
            memory={name: tensor[index] for name, tensor in self.memory.items()},
            padding=None,
            context=None,
            exit_logits=None,
        )

    def resize(self, width: int) -> "LayerState":
        """Cuts columns on the right, or adds masked ones."""
        if width == self.mask.shape[1]:
            return self
        return replace(
            self,
            hidden=resize_columns(self.hidden, width),
            mask=resize_columns(self.mask, width),
            tokens={name: resize_columns(tensor, width) for name, tensor in self.tokens.items()},
            padding=None,
            context=None,
            exit_logits=None,
        )

    def active_mask(self) -> torch.Tensor:
        """`active` as a tensor."""
        return torch.ones_like(self.rows, dtype=torch.bool) if self.active is None else self.active

    @staticmethod
    def cat(states: "list[LayerState]") -> "LayerState":
        """
        Joins states at the same layer, one behind the other, at the width of the widest. Their `rows` stay as they
        are: places in the answer must be distinct.
        """
        first = states[0]
        if any(state.layer != first.layer for state in states):
            raise ValueError(
                f"`states` are at layers {[state.layer for state in states]}: only states at the same layer can be "
                "joined."
            )
        if any(state.tokens.keys() != first.tokens.keys() for state in states):
            raise ValueError(
                f"`states` were begun with different arguments ({[sorted(state.tokens) for state in states]}): give "
                "them to all batches or to none."
            )
        width = max(state.mask.shape[1] for state in states)
        states = [state.resize(width) for state in states]
        return replace(
            first,
            hidden=torch.cat([state.hidden for state in states]),
            mask=torch.cat([state.mask for state in states]),
            rows=torch.cat([state.rows for state in states]),
            active=torch.cat([state.active_mask() for state in states]),
            tokens={name: torch.cat([state.tokens[name] for state in states]) for name in first.tokens},
            memory={name: torch.cat([state.memory[name] for state in states]) for name in first.memory},
            padding=None,
            context=None,
            exit_logits=None,
        )


def resize_columns(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Cuts or zero-pads `(rows, columns, …)` on the right to `width` columns."""
    missing = width - tensor.shape[1]
    if missing <= 0:
        return tensor[:, :width]
    return torch.cat([tensor, tensor.new_zeros(tensor.shape[0], missing, *tensor.shape[2:])], 1)


def is_left_aligned(mask: torch.Tensor) -> bool:
    """
    Whether every row is known to have its first attended token in column 0. Where looking would hold up an accelerator
    or break a graph, it is not known.
    """
    if not mask.numel():
        return True
    return mask.device.type == "cpu" and not torch.compiler.is_compiling() and bool(mask[:, 0].all())


def rotation(mask: torch.Tensor) -> torch.Tensor:
    """Columns `(rows, width)` that bring each row's first attended token to column 0; no change for right padding."""
    width = mask.shape[1]
    return (torch.arange(width, device=mask.device) + mask.argmax(1, keepdim=True)) % width


def rotation_back(columns: torch.Tensor) -> torch.Tensor:
    """The columns that undo a [`rotation`]."""
    width = columns.shape[1]
    return (torch.arange(width, device=columns.device) - columns[:, :1]) % width


def rotate_columns(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Gathers the columns of `(rows, width, …)`."""
    index = columns.view(*columns.shape, *[1] * (tensor.dim() - 2))
    return tensor.gather(1, index.expand(-1, -1, *tensor.shape[2:]))
