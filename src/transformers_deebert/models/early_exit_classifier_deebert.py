"""The sequence classifier with off-ramps, written once for all families."""

from copy import copy

import torch
from transformers.utils.generic import can_return_tuple

from .exit_plan_deebert import ExitPlan, call_temperatures
from .exit_scores_deebert import ExitCandidate
from .inputs_deebert import check_labels, check_tokens
from .layer_state_deebert import LayerState
from .loading_deebert import EarlyExitLoading, postponed_checkpointing
from .outputs_deebert import EarlyExitSequenceClassifierOutput


class EarlyExitClassifier(EarlyExitLoading):
    """
    A sequence classifier with off-ramps, a [`LayerRunner`]. Bases: this mixin first, then the family's stock
    classifier. A family names its base model (`backbone_class`, `backbone_kwargs`) and defines how its head is applied
    ([`classify`]).
    """

    backbone_class: type
    backbone_kwargs: dict = {}
    has_head = True

    def __init__(self, config):
        device = torch.get_default_device()
        with postponed_checkpointing(config):
            # The stock class makes a backbone that is replaced: on "meta" it takes neither memory nor time.
            with torch.device("meta"):
                super().__init__(config)
            setattr(self, self.base_model_prefix, None)
            self.to_empty(device=device)  # the head, whose weights are initialised below
            setattr(self, self.base_model_prefix, self.backbone_class(config, **self.backbone_kwargs))
        self.post_init()

    def classify(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The family's own head: states `(rows, width, hidden)` and mask `(rows, width)` -> logits."""
        return self.classifier(hidden)

    @property
    def token_inputs(self) -> tuple[str, ...]:
        return self.base_model.token_inputs

    def max_tokens(self) -> int | None:
        return self.base_model.max_tokens()

    def table_sizes(self) -> dict[str, int]:
        return self.base_model.table_sizes()

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return self.config.exit_layers

    def make_plan(self, **settings) -> ExitPlan:
        return self.base_model.make_plan(**settings)

    def begin(self, **inputs):
        return self.base_model.begin(**inputs)

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        self.base_model.advance(state, evaluate)

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.base_model.readout(hidden)

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        """The off-ramp behind the last applied layer, or the model's own head."""
        if state.layer < self.config.num_hidden_layers:
            return self.base_model.evaluate_exit(state)
        logits = self.classify(self.readout(state.hidden), state.mask)
        return ExitCandidate(logits, None, state.memory, state.layer)

    def carry_exit(self, state: LayerState) -> torch.Tensor:
        return self.base_model.carry_exit(state)

    def answer_off_ramp_inputs(self, inputs: torch.Tensor, alone: bool) -> EarlyExitSequenceClassifierOutput:
        """The off-ramps' logits for `off_ramp_inputs` of [`forward`]; `alone`: nothing else was given."""
        off_ramps = self.base_model.off_ramps
        if not alone or inputs.dim() != 3 or inputs.shape[1] != len(off_ramps):
            raise ValueError(
                f"`off_ramp_inputs` must have the shape (batch, {len(off_ramps)}, hidden) and come without tokens, "
                f"labels or exit settings, got {tuple(inputs.shape)}."
            )
        inputs = inputs.to(off_ramps[0].classifier.weight.dtype)
        past = self.config.off_ramp_context == "past"
        read = [inputs[:, : place + 1].flatten(1) if past else inputs[:, place] for place in range(len(off_ramps))]
        logits = [off_ramp(one)[1] for off_ramp, one in zip(off_ramps, read, strict=True)]
        temperatures = call_temperatures(self.config, self.training)
        if temperatures is not None:
            logits = [values / temperature for values, temperature in zip(logits, temperatures.values(), strict=True)]
        return EarlyExitSequenceClassifierOutput(off_ramp_logits=tuple(logits))

    def set_trainable(self, part: str) -> None:
        """
        Freezes and unfreezes parameters (`requires_grad`).

        Args:
            part (`str`):
                What shall train: `"backbone"` (stage 1: everything but the off-ramps), `"off_ramps"` (stage 2:
                nothing else) or `"all"`.
        """
        if part not in ("backbone", "off_ramps", "all"):
            raise ValueError(f'`part` must be "backbone", "off_ramps" or "all", got {part!r}.')
        self.requires_grad_(part != "off_ramps")
        self.base_model.off_ramps.requires_grad_(part != "backbone")

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion=None,
        exit_layer: int | None = None,
        output_off_ramp_logits: bool | None = None,
        off_ramp_inputs: torch.FloatTensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> EarlyExitSequenceClassifierOutput:
        r"""
        As the stock classifier, with rows that exit at the first confident off-ramp. The early-exit arguments hold for
        this call only; where they are `None`, the configuration's defaults do (in eval mode).

        Args:
            attention_mask (`torch.Tensor` of shape `(batch, tokens)`, *optional*):
                Non-zero for attended tokens. A row's first attended token counts as its first token, so that left and
                right padding give the same answer.
            labels (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Class indices, `0 … num_labels - 1`, or -100 for rows without one.
            early_exit_entropy (`float` or `list[float]`, *optional*):
                Threshold S in nats, one number or one for each off-ramp: a sample exits at the first off-ramp whose
                prediction has entropy < S (DeeBERT, Algorithm 1). 0 is the full depth; above ln(num_labels) all
                samples exit at the first off-ramp.
            exit_criterion ([`ExitCriterion`] or `dict` of its fields, *optional*):
                Another score, with its threshold and patience. At most one of `early_exit_entropy`, `exit_criterion`
                and `exit_layer` is given.
            exit_layer (`int`, *optional*):
                The exit behind this layer answers every sample (L: the model's own head); later layers do not run.
            output_off_ramp_logits (`bool`, *optional*):
                Runs all layers and returns the logits of all exits.
            off_ramp_inputs (`torch.FloatTensor` of shape `(batch, off-ramps, hidden)`, *optional*):
                From [`compute_off_ramp_inputs`], in place of tokens: only the off-ramps run, and the output has only
                their logits.
            output_hidden_states, output_attentions (`bool`, *optional*):
                As in the stock model. All layers run.

        Raises:
            ValueError: for early-exit arguments in training mode, out of range, given together, or a score in a model
                that does not choose one of several classes; for inputs longer than the position table, labels out of
                range, masks of another shape.
        """
        if off_ramp_inputs is not None:
            others = (input_ids, inputs_embeds, labels, early_exit_entropy, exit_criterion, exit_layer)
            return self.answer_off_ramp_inputs(off_ramp_inputs, alone=all(other is None for other in others))
        if labels is not None:
            rows = len(check_tokens(input_ids, inputs_embeds))
            labels = check_labels(labels, self.config, rows, self.training)
        output = self.base_model.run(
            self,
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            },
            keep_states=False,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            early_exit_entropy=early_exit_entropy,
            exit_criterion=exit_criterion,
            exit_layer=exit_layer,
            output_off_ramp_logits=output_off_ramp_logits,
        )
        answers = output.answers
        return EarlyExitSequenceClassifierOutput(
            # The stock loss notes the kind of problem in the configuration it is given: a call must leave no trace.
            loss=None if labels is None else self.loss_function(labels, answers.logits, copy(self.config)),
            logits=answers.logits,
            exit_layers=None if self.training else answers.exit_layers,
            off_ramp_logits=output.off_ramp_logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
