"""The layer loop, written once for all families."""

from dataclasses import replace

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .exit_answers_deebert import Compactor, ExitAnswers
from .exit_criteria_deebert import ExitCandidate, ExitPlan, make_exit_plan, scale_logits
from .inputs_deebert import check_mask, check_tokens
from .layer_state_deebert import LayerState, is_left_aligned, rotate_columns, rotation, rotation_back
from .loading_deebert import EarlyExitLoading
from .off_ramps_deebert import OffRamp, OffRampPooler, init_off_ramp
from .outputs_deebert import EarlyExitModelOutput, select_states


class EarlyExitBackbone(EarlyExitLoading):
    """
    A base model with off-ramps. Bases: this mixin first, then the family's stock base model. A family says how to
    begin ([`embed`], [`max_tokens`]), what a layer needs besides the states ([`layer_context`]), how to apply one
    ([`apply_layer`]), what off-ramps and head see of its output ([`readout`]) and what an off-ramp is made of
    ([`make_off_ramp`]); everything else is here. The defaults are those of BERT.

    Class attributes:
        embedding_inputs (`tuple[str, ...]`):
            Arguments of [`forward`] that [`embed`] takes. Others of them are ignored, as in the stock models.
        layer_inputs (`tuple[str, ...]`): Arguments of [`forward`] that the layers take, kept in `LayerState.tokens`.
        checkpoints_in_loop (`bool`):
            Whether the loop does the gradient checkpointing, for families whose own layers cannot.
    """

    embedding_inputs: tuple[str, ...] = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")
    layer_inputs: tuple[str, ...] = ()
    checkpoints_in_loop = False

    def __init__(self, config, *args, **kwargs):
        # Only some families' configurations know decoders.
        if getattr(config, "is_decoder", False):
            raise ValueError(f"`is_decoder` is {config.is_decoder}, but early exit needs an encoder: set it to False.")
        # transformers validates a configuration when it is made, not when `from_pretrained` changes it.
        config.validate_off_ramps()
        config.validate_exit_defaults()
        super().__init__(config, *args, **kwargs)
        self.off_ramps = nn.ModuleList(self.make_off_ramp(config) for _ in range(config.num_hidden_layers - 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, OffRamp):
            init_off_ramp(module, self.pooler_dense(), self.config.initializer_range)

    # ---- what a family may say differently

    def make_off_ramp(self, config) -> OffRamp:
        """One off-ramp, with the activation (and norm, where it has one) and dropout of the family's own head."""
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        return OffRamp(config, OffRampPooler(config.hidden_size, torch.tanh), dropout)

    def pooler_dense(self) -> nn.Linear | None:
        """The dense layer of the backbone's own pooler, `None` where it has none: what off-ramps start from."""
        return None if self.pooler is None else self.pooler.dense

    def pool_last(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """What the backbone's own pooler, where it has one, makes of the states behind the last layer."""
        return None if self.pooler is None else self.pooler(hidden)

    def max_tokens(self) -> int | None:
        """Number of tokens that the position table holds, `None` without such a table."""
        table = self.embeddings.position_embeddings
        # RoBERTa's positions, and those of its kind, start behind the padding index.
        return table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)

    def vocabulary(self) -> int:
        """Number of tokens that the model knows."""
        return self.get_input_embeddings().weight.shape[0]

    def embed(self, mask: torch.Tensor, **inputs) -> torch.Tensor:
        """`(rows, width, hidden)` states in front of the first layer."""
        return self.embeddings(**inputs)

    def layer_context(self, state: LayerState) -> dict:
        """Arguments of the layers that derive from the state; kept while its rows and width stay as they are."""
        return {"attention_mask": create_bidirectional_mask(**self.mask_arguments(state))}

    def mask_arguments(self, state: LayerState) -> dict:
        """Arguments for the functions of transformers that make masks for the attention backend."""
        return {
            "config": self.config,
            "inputs_embeds": state.hidden,
            # Where the host already knows about padding, transformers need not look (and synchronise) again.
            "attention_mask": None if state.padding is False else state.mask,
            "allow_is_bidirectional_skip": not state.padding,
        }

    def apply_layer(self, index: int, state: LayerState) -> torch.Tensor:
        """States behind layer `index` (0-based)."""
        return self.encoder.layer[index](state.hidden, **state.context)

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        What off-ramps and head see of states `(rows, tokens, hidden)`, token by token: the `last_hidden_state` that
        the stock model would have if it ended here.
        """
        return hidden

    # ---- the same for all

    def begin(self, input_ids=None, attention_mask=None, inputs_embeds=None, **inputs):
        """
        Checks the inputs, turns every row so that its first attended token is in column 0 (left padding then is the
        same case as right padding), and embeds them.

        Returns:
            The [`LayerState`] in front of layer 1, and the `(rows, width)` columns it was rotated by, `None` where
            every row is known to start in column 0.
        """
        tokens = check_tokens(input_ids, inputs_embeds)
        rows, width = tokens.shape[:2]
        limit = self.max_tokens()
        if limit is not None and width > limit and inputs.get("position_ids") is None:
            raise ValueError(
                f"The input has {width} tokens a row, but the position table of this model holds {limit}: "
                "truncate it, for example with `tokenizer(..., truncation=True)`."
            )
        mask = check_mask(attention_mask, tokens)
        inputs = {"input_ids": input_ids, "inputs_embeds": inputs_embeds, **inputs}
        for name, tensor in inputs.items():
            if tensor is not None and tensor.shape[1] != width:
                raise ValueError(
                    f"`{name}` has the shape {tuple(tensor.shape)}, but the input has {width} tokens a row: give one "
                    f"each."
                )
        # One row of positions or segments may stand for the whole batch, as in the stock models.
        inputs = {
            name: tensor.expand(rows, *tensor.shape[1:]) for name, tensor in inputs.items() if tensor is not None
        }
        columns = None if is_left_aligned(mask) else rotation(mask)
        if columns is not None:
            mask = rotate_columns(mask, columns)
            inputs = {name: rotate_columns(tensor, columns) for name, tensor in inputs.items()}
        embedded = self.embed(mask, **{name: inputs.get(name) for name in self.embedding_inputs})
        further = {name: inputs[name] for name in self.layer_inputs if name in inputs}
        return LayerState.begin(embedded, mask, **further), columns

    def advance(self, state: LayerState, asked: bool = True) -> None:
        """Applies one layer, in place; `asked`: whether its exit will be, for runtimes that compute both at once."""
        if self.checkpoints_in_loop and self.gradient_checkpointing and self.training:
            state.hidden = self.apply_checkpointed(state.layer, state)
        else:
            if state.context is None:
                state.context = self.layer_context(state)
            state.hidden = self.apply_layer(state.layer, state)
        state.layer += 1

    def apply_checkpointed(self, index: int, state: LayerState) -> torch.Tensor:
        """[`apply_layer`] that computes the layer again in the backward pass instead of keeping its activations."""

        # The layer will be applied again when the state has moved on: it gets a state of its own, and derives what it
        # needs from it alone, because gradients can pass through nothing that several checkpointed layers share.
        def apply(hidden):
            own = replace(state, hidden=hidden, context=None)
            own.context = self.layer_context(own)
            return self.apply_layer(index, own)

        return self._gradient_checkpointing_func(apply, state.hidden)

    def off_ramp_input(self, off_ramp: OffRamp, state: LayerState) -> torch.Tensor:
        """`(rows, hidden)`: what an off-ramp reads of a state."""
        hidden = state.hidden[:, :1] if off_ramp.pooling == "cls" else state.hidden
        return off_ramp.pool(self.readout(hidden), None if state.padding is False else state.mask)

    def answer(self, state: LayerState, plan: ExitPlan, answer_last) -> ExitCandidate:
        """What the off-ramp behind the last applied layer says, or `answer_last` behind the last layer."""
        if state.layer == self.config.num_hidden_layers:
            return answer_last(state)
        off_ramp = self.off_ramps[state.layer - 1]
        vector, logits = off_ramp(self.off_ramp_input(off_ramp, state))
        logits = scale_logits(logits, plan.temperatures, state.layer)
        return ExitCandidate(logits=logits, pooled=vector, memory=state.memory)

    # `capture_outputs` collects attentions through hooks on the layers, as in the stock models.
    @capture_outputs(tie_last_hidden_states=False)
    def run_layers(
        self,
        state: LayerState,
        plan: ExitPlan,
        answer_last,
        keep_states: bool,
        keep_all_states: bool,
        output_attentions: bool,
        output_hidden_states: bool = False,
    ) -> dict:
        """
        The layer loop.

        Args:
            state (`LayerState`): In front of layer 1.
            plan (`ExitPlan`): Who may leave where.
            answer_last (`Callable`): From the state behind the last layer to its [`ExitCandidate`].
            keep_states (`bool`): Whether the rows' states and pooled vectors are wanted besides their logits.
            keep_all_states (`bool`): Whether the states in front of and behind all layers are wanted.
            output_attentions, output_hidden_states (`bool`): For `capture_outputs`.

        Returns:
            `dict` with `answers` ([`ExitAnswers`]), `off_ramp_logits` and, where asked for, `hidden_states` and
            `attentions`.
        """
        answers = ExitAnswers(state, self.readout if keep_states else None)
        hidden_states = [state.hidden] if keep_all_states else None
        compactor = Compactor(state) if plan.compact else None
        if compactor is not None:
            state = compactor.compact(state)
        off_ramp_logits = []
        stops = plan.stops
        while state.layer < plan.last_layer:
            asked = plan.all_off_ramps or state.layer + 1 in stops
            self.advance(state, asked)
            if keep_all_states:
                hidden_states.append(state.hidden)
            if not asked:
                continue
            candidate = self.answer(state, plan, answer_last)
            if plan.all_off_ramps:
                off_ramp_logits.append(candidate.logits)
            if state.layer not in stops:
                continue
            if state.layer == plan.answer_layer and answers.exit_layers is None:
                answers.take_all(state, candidate)
                continue
            leave = plan.leaving(state, candidate)
            if compactor is None:
                answers.take(state, candidate, leave)
                state.waiting = state.waiting_mask() & ~leave
            elif compactor.somebody_leaves(leave):
                if compactor.nobody_waits:
                    answers.take_rest(state, candidate, leave)
                    break
                answers.take(state, candidate, leave)
                state.waiting = state.waiting_mask() & ~leave
                state = compactor.compact(state)
        if keep_all_states:
            hidden_states[-1] = self.readout(hidden_states[-1])
        return {
            "answers": answers,
            "off_ramp_logits": tuple(off_ramp_logits) if plan.all_off_ramps else None,
            "hidden_states": tuple(hidden_states) if keep_all_states else None,
        }

    def run(
        self,
        inputs: dict,
        answer_last,
        keep_states: bool,
        early_exit_entropy=None,
        exit_layer=None,
        output_off_ramp_logits=None,
        output_hidden_states=None,
        output_attentions=None,
    ) -> dict:
        """From the arguments of a call to its answers: plans, begins, runs the layers, turns the rows back."""
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        # `output_hidden_states` may be a flag, an index or a list of indices; 0 is an index.
        keep_all_states = output_hidden_states is not None and output_hidden_states is not False
        plan = make_exit_plan(
            self.config,
            self.training,
            early_exit_entropy,
            exit_layer,
            output_off_ramp_logits,
            output_all_layers=keep_all_states or bool(output_attentions),
        )
        state, columns = self.begin(**inputs)
        wanted = {
            "keep_states": keep_states,
            "keep_all_states": keep_all_states,
            "output_attentions": output_attentions,
            "output_hidden_states": False,  # the loop keeps them itself
            "return_dict": True,
        }
        if state.rows.shape[0] == 0:
            return self.run_empty(state, plan, answer_last, wanted)
        mask = state.mask
        output = self.run_layers(state, plan, answer_last, **wanted)
        if keep_states or keep_all_states or output.get("attentions"):
            turn_back(output, mask, columns, exits=plan.criterion is not None)
        if keep_all_states:
            output["hidden_states"] = select_states(output["hidden_states"], output_hidden_states)
        return output

    def run_empty(self, state: LayerState, plan: ExitPlan, answer_last, wanted: dict) -> dict:
        """The empty batch: layers cannot run on no rows, so one row runs that no answer is kept of."""
        rows, width, size = state.hidden.shape
        hidden = state.hidden.new_zeros(1, max(width, 1), size)
        row = LayerState.begin(hidden, torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device))
        plan = replace(plan, criterion=None, compact=False)
        output = self.run_layers(row, plan, answer_last, **wanted)
        output["answers"].keep_none()
        for name in ("off_ramp_logits", "hidden_states", "attentions"):
            if output.get(name):
                output[name] = tuple(None if tensor is None else tensor[:0] for tensor in output[name])
        return output

    def compute_off_ramp_inputs(self, **inputs) -> torch.Tensor:
        """
        What the L-1 off-ramps read of each row, `(rows, L-1, hidden)`: the pooled states of layers 1 … L-1. With a
        frozen backbone that never changes, so stage 2 can train on it without running a layer again. Meant for `"cls"`
        and `"mean"` pooling, which have no parameters.

        Args:
            inputs: The token arguments of [`forward`].
        """
        state, _ = self.begin(**inputs)
        pooled = []
        for off_ramp in self.off_ramps:
            self.advance(state)
            pooled.append(self.off_ramp_input(off_ramp, state))
        return torch.stack(pooled, 1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_layer: int | None = None,
        output_off_ramp_logits: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> EarlyExitModelOutput:
        """
        As the stock base model, with rows that leave at the first sure off-ramp. See
        [`EarlyExitClassifier.forward`] for the early-exit arguments and [`EarlyExitModelOutput`] for what comes back.
        """
        output = self.run(
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            },
            self.answer_last,
            True,
            early_exit_entropy,
            exit_layer,
            output_off_ramp_logits,
            output_hidden_states,
            output_attentions,
        )
        answers = output["answers"]
        return EarlyExitModelOutput(
            last_hidden_state=answers.hidden,
            pooler_output=None if self.pooler is None else answers.pooled,
            exit_layers=None if self.training else answers.exit_layers,
            # The base model has no head that could answer for the last layer.
            off_ramp_logits=output["off_ramp_logits"] and output["off_ramp_logits"][:-1],
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )

    def answer_last(self, state: LayerState) -> ExitCandidate:
        """Behind the last layer a base model has the family's pooler, if any, and no logits."""
        return ExitCandidate(logits=None, pooled=self.pool_last(self.readout(state.hidden)))


def turn_back(output: dict, mask: torch.Tensor, columns: torch.Tensor | None, exits: bool) -> None:
    """Puts the tokens of all states back to where the input had them; `exits`: zeroes padding as rows exited early."""
    answers = output["answers"]
    if answers.hidden is not None and exits:
        answers.hidden = answers.hidden * mask.unsqueeze(-1)
    if columns is None:
        return
    columns = rotation_back(columns)
    if answers.hidden is not None:
        answers.hidden = rotate_columns(answers.hidden, columns)
    if output.get("hidden_states"):
        output["hidden_states"] = tuple(rotate_columns(hidden, columns) for hidden in output["hidden_states"])
    if output.get("attentions"):
        output["attentions"] = tuple(
            # (rows, heads, queries, keys): both the queries and the keys were rotated.
            rotate_columns(rotate_columns(weights.transpose(1, 2), columns).transpose(1, 3), columns).permute(
                0, 2, 3, 1
            )
            for weights in output["attentions"]
        )
