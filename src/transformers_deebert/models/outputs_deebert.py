"""Outputs of the models."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


def select_states(states: tuple[torch.Tensor, ...], wanted: bool | int | list[int]) -> tuple:
    """All states for the flag `True`; for an index or a list of indices these, and `None` in the other places."""
    if isinstance(wanted, bool):
        return states
    number = len(states)
    given = [wanted] if isinstance(wanted, int) else wanted
    indices = {index % number for index in given if -number <= index < number}
    return tuple(state if index in indices else None for index, state in enumerate(states))


@dataclass
class EarlyExitModelOutput(ModelOutput):
    """
    Output of an early-exit base model.

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, tokens, hidden)`):
            Of each row, the state behind the layer it exited at. Where rows may exit early, padding is zero.
        pooler_output (`torch.FloatTensor` of shape `(batch, hidden)`, *optional*):
            Of each row, the vector that the classifier of its off-ramp read; at the last layer, the output of the
            family's pooler. `None` for a base model built without a pooler.
        exit_layers (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Layer that each row exited at, L for rows that ran to full depth. `None` in training mode.
        off_ramp_logits (`tuple[torch.FloatTensor]`, *optional*):
            With `output_off_ramp_logits=True`: a tensor `(batch, labels)` for each off-ramp, divided in eval mode by
            its temperature if the configuration has any.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            With `output_hidden_states=True`: L+1 tensors `(batch, tokens, hidden)`, the embeddings and each layer's.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            With `output_attentions=True`: L tensors `(batch, heads, tokens, tokens)`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    exit_layers: torch.Tensor | None = None
    off_ramp_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class EarlyExitSequenceClassifierOutput(ModelOutput):
    """
    Output of an early-exit sequence classifier. `loss`, `logits` and `exit_layers` are always the answer under the
    exit settings of the call; asking for more outputs never changes it.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*):
            With `labels`: the loss of `logits`, as of the family's stock classifier.
        logits (`torch.FloatTensor` of shape `(batch, labels)`):
            The answer of the exit that each row took, before softmax.
        exit_layers (`torch.LongTensor` of shape `(batch,)`, *optional*):
            Layer that each row exited at, L for rows that ran to full depth. `None` in training mode.
        off_ramp_logits (`tuple[torch.FloatTensor]`, *optional*):
            With `output_off_ramp_logits=True`: a tensor `(batch, labels)` for each exit, the last from the model's own
            head. With `off_ramp_inputs`: those of the off-ramps. In eval mode an off-ramp's are
            divided by its temperature if the configuration has any.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*):
            With `output_hidden_states=True`: L+1 tensors `(batch, tokens, hidden)`, the embeddings and each layer's.
        attentions (`tuple[torch.FloatTensor]`, *optional*):
            With `output_attentions=True`: L tensors `(batch, heads, tokens, tokens)`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    exit_layers: torch.Tensor | None = None
    off_ramp_logits: tuple[torch.Tensor, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
