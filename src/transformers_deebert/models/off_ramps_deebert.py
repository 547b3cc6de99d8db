"""Off-ramps: the small classifiers behind the layers (DeeBERT, section 3.1)."""

from collections.abc import Callable

import torch
from torch import nn
from transformers import initialization as init


def mean_pool(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Mean over the attended tokens: `(rows, tokens, hidden)`, `(rows, tokens)` -> `(rows, hidden)`."""
    if mask is None:
        return hidden.mean(1)
    weights = mask.to(hidden.dtype)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm(weights.unsqueeze(1), hidden).squeeze(1)  # (rows, 1, tokens) @ (rows, tokens, hidden)


class AttentionPooling(nn.Module):
    """Mean over the attended tokens, weighted by the softmax of their scaled products with a learned query."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.query = nn.Parameter(torch.empty(hidden_size))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        scores = hidden @ self.query * hidden.shape[-1] ** -0.5  # (rows, tokens)
        if mask is not None:
            # A row without any attended token gets equal weights instead of NaN.
            scores = scores.masked_fill(mask == 0, torch.finfo(scores.dtype).min)
        return torch.bmm(scores.softmax(-1).unsqueeze(1), hidden).squeeze(1)


class OffRampPooler(nn.Module):
    """Dense layer and activation: the counterpart of the family head's, or the hidden layer of an mlp."""

    def __init__(
        self, hidden_size: int, activation: Callable[[torch.Tensor], torch.Tensor], inputs: int | None = None
    ):
        super().__init__()
        self.dense = nn.Linear(hidden_size if inputs is None else inputs, hidden_size)
        self.activation = activation

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.activation(self.dense(pooled))


class OffRamp(nn.Module):
    """
    The classifier behind one layer: pooling, then `pooler` or `mlp` (by `off_ramp_head`), dropout and `classifier`.

    Args:
        config ([`EarlyExitConfigMixin`]):
            `off_ramp_pooling`, `off_ramp_head` and `off_ramp_context` choose its parts.
        pooler (`nn.Module`):
            Counterpart of the dense part of the family's own head, `(rows, hidden)` -> `(rows, hidden)`, with a linear
            layer `dense`. Used with `off_ramp_head="pooler"`.
        dropout (`float`): Rate in front of the classifier.
        place (`int`): The off-ramp's place in the list; with `off_ramp_context="past"` it reads `place + 1` vectors.
    """

    def __init__(self, config, pooler: nn.Module, dropout: float, place: int):
        super().__init__()
        self.pooling, self.context = config.off_ramp_pooling, config.off_ramp_context
        self.attention = AttentionPooling(config.hidden_size) if self.pooling == "attention" else None
        size, head = config.hidden_size, config.off_ramp_head
        inputs = size * (place + 1) if self.context == "past" else size
        self.pooler = pooler if head == "pooler" else None
        self.mlp = OffRampPooler(size, nn.functional.gelu, inputs) if head == "mlp" else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(inputs if head == "linear" else size, config.num_labels)

    def pool(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """
        The pooled vector of one layer: `(rows, tokens, hidden)` states and `(rows, tokens)` mask, `None` where all
        tokens are attended, -> `(rows, hidden)`.
        """
        if self.pooling == "cls":
            return hidden.select(1, 0)
        if self.pooling == "mean":
            return mean_pool(hidden, mask)
        return self.attention(hidden, mask)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        The pooled vector, or with the context "past" those of all exits so far side by side, `(rows, inputs)` -> the
        vector that the classifier reads, `(rows, hidden)` or `(rows, inputs)`, and logits `(rows, labels)`.
        """
        dense = self.pooler if self.mlp is None else self.mlp
        vector = pooled if dense is None else dense(pooled)
        # An off-ramp is a dozen tiny operations behind every layer: at batch 1 an idle dropout call is felt.
        return vector, self.classifier(self.dropout(vector) if self.training else vector)


@torch.no_grad()
def init_off_ramp(off_ramp: OffRamp, pooler_dense: nn.Linear | None, std: float) -> None:
    """
    Starts an off-ramp's parameters that no checkpoint holds: its pooler as a copy of the backbone's where there is one
    (as the original implementation does), the rest like every linear layer of the family. Never touches loaded ones.
    """
    if off_ramp.attention is not None:
        init.normal_(off_ramp.attention.query, mean=0.0, std=std)
    if off_ramp.pooler is not None and pooler_dense is not None:
        for name, parameter in off_ramp.pooler.get_submodule("dense").named_parameters():
            init.copy_(parameter, pooler_dense.get_parameter(name))
