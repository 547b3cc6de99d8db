"""The base model with off-ramps, written once for all families."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import capture_outputs

from .configuration_early_exit_deebert import OFF_RAMP_FIELDS
from .exit_loop_deebert import LayerRunner, LoopOutput, run_call
from .exit_plan_deebert import ExitPlan, make_exit_plan
from .exit_scores_deebert import ExitCandidate
from .inputs_deebert import prepare_tokens
from .layer_state_deebert import LayerState
from .loading_deebert import EarlyExitLoading, postponed_checkpointing
from .off_ramps_deebert import OffRamp, OffRampPooler, init_off_ramp
from .outputs_deebert import EarlyExitModelOutput, select_states


PAST = "pooled_vectors"  # of the exits so far, in a row's memory


class EarlyExitBackbone(EarlyExitLoading):
    """
    A base model with off-ramps, a [`LayerRunner`]. Bases: this mixin first, then the family's stock base model. A
    family defines how to begin ([`embed`], [`max_tokens`]), what a layer needs besides the states ([`layer_context`]),
    how to apply one ([`apply_layer`]), what off-ramps and head read of its output ([`readout`]) and what an off-ramp
    is made of ([`off_ramp_parts`]); everything else is here. The defaults are those of BERT.

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
    layer_dropout = 0.0  # LayerDrop (Fan et al., 2020) in training mode, for the last layer; it rises linearly to that

    def __init__(self, config, *args, **kwargs):
        # Only some families' configurations know decoders.
        if getattr(config, "is_decoder", False):
            raise ValueError(f"`is_decoder` is {config.is_decoder}, but early exit needs an encoder: set it to False.")
        # transformers validates a configuration when it is made, not when `from_pretrained` changes it.
        config.validate_off_ramps()
        config.validate_exit_defaults()
        with postponed_checkpointing(config):
            super().__init__(config, *args, **kwargs)
            self.off_ramps = nn.ModuleList(self.make_off_ramp(place) for place in range(len(config.exit_layers) - 1))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, OffRamp):
            init_off_ramp(module, self.pooler_dense(), self.config.initializer_range)

    # ---- what a family may define otherwise

    def off_ramp_parts(self, config) -> tuple[nn.Module, float]:
        """The pooler of an off-ramp, with the activation (and norm, where it has one) and dropout of the own head."""
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        return OffRampPooler(config.hidden_size, torch.tanh), dropout

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

    def table_sizes(self) -> dict[str, int]:
        sizes = {"input_ids": self.get_input_embeddings().weight.shape[0]}
        if "token_type_ids" in self.embedding_inputs:
            sizes["token_type_ids"] = self.config.type_vocab_size
        return sizes

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
        What off-ramps and head read of states `(rows, tokens, hidden)`, token by token: the `last_hidden_state` that
        the stock model would have if it ended here.
        """
        return hidden

    # ---- the same for all

    def make_off_ramp(self, place: int) -> OffRamp:
        return OffRamp(self.config, *self.off_ramp_parts(self.config), place)

    def begin(self, **inputs):
        """
        Checks, aligns and embeds the token arguments of a call, see [`prepare_tokens`].

        Returns:
            The [`LayerState`] in front of layer 1, and the `(rows, width)` columns it was rotated by, or `None`.
        """
        mask, inputs, columns = prepare_tokens(inputs, self.max_tokens(), self.table_sizes())
        embedded = self.embed(mask, **{name: inputs.get(name) for name in self.embedding_inputs})
        further = {name: inputs[name] for name in self.layer_inputs if name in inputs}
        return LayerState.begin(embedded, mask, **further), columns

    @property
    def token_inputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.embedding_inputs, *self.layer_inputs)))

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return self.config.exit_layers

    def make_plan(self, **settings) -> ExitPlan:
        return make_exit_plan(self.config, self.training, **settings)

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        """Applies one layer, in place."""
        if self.training and self.layer_dropout and self.skips(state.layer + 1):
            state.layer += 1
            return
        if self.checkpoints_in_loop and self.gradient_checkpointing and self.training:
            state.hidden = self.apply_checkpointed(state.layer, state)
        else:
            if state.context is None:
                state.context = self.layer_context(state)
            state.hidden = self.apply_layer(state.layer, state)
        state.layer += 1

    def skips(self, layer: int) -> bool:
        """Whether a training step skips a layer, at random."""
        return float(torch.rand(())) < self.layer_dropout * layer / self.config.num_hidden_layers

    def apply_checkpointed(self, index: int, state: LayerState) -> torch.Tensor:
        """[`apply_layer`] that computes the layer again in the backward pass instead of keeping its activations."""

        # The layer will be applied again when the state has moved on: it gets a state of its own, and derives what it
        # needs from it alone, because gradients can pass through nothing that several checkpointed layers share.
        def apply(hidden):
            own = replace(state, hidden=hidden, context=None)
            own.context = self.layer_context(own)
            return self.apply_layer(index, own)

        return self._gradient_checkpointing_func(apply, state.hidden)

    def off_ramp_behind(self, layer: int) -> OffRamp:
        return self.off_ramps[self.exit_layers.index(layer)]

    def pooled_vector(self, state: LayerState, off_ramp: OffRamp | None = None) -> torch.Tensor:
        """`(rows, hidden)`: what the off-ramp behind the last applied layer makes of its states."""
        off_ramp = self.off_ramp_behind(state.layer) if off_ramp is None else off_ramp
        hidden = state.hidden[:, :1] if off_ramp.pooling == "cls" else state.hidden
        return off_ramp.pool(self.readout(hidden), None if state.padding is False else state.mask)

    def carry_exit(self, state: LayerState, off_ramp: OffRamp | None = None) -> torch.Tensor:
        """What the off-ramp behind the last applied layer reads, kept for later ones where they read it as well."""
        off_ramp = self.off_ramp_behind(state.layer) if off_ramp is None else off_ramp
        pooled = self.pooled_vector(state, off_ramp)
        if off_ramp.context == "own":
            return pooled
        past = state.memory.get(PAST)
        state.memory[PAST] = pooled if past is None else torch.cat([past, pooled], 1)
        return state.memory[PAST]

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        """The off-ramp behind the last applied layer; behind the last one the family's pooler, if any, no logits."""
        if state.layer == self.config.num_hidden_layers:
            return ExitCandidate(None, self.pool_last(self.readout(state.hidden)), state.memory, state.layer)
        off_ramp = self.off_ramp_behind(state.layer)
        vector, logits = off_ramp(self.carry_exit(state, off_ramp))
        return ExitCandidate(logits, vector, state.memory, state.layer)

    # `capture_outputs` collects attentions through hooks on the layers, as in the stock models.
    @capture_outputs(tie_last_hidden_states=False)
    def capture(self, run: Callable[[], LoopOutput], **flags) -> dict:
        return {"output": run()}

    def collect_attentions(self, run: Callable[[], LoopOutput], wanted: bool) -> LoopOutput:
        """Runs the loop, and notes the attentions of all layers where `wanted`."""
        # The loop keeps the hidden states itself.
        captured = self.capture(run, output_attentions=wanted, output_hidden_states=False, return_dict=True)
        captured["output"].attentions = captured.get("attentions")
        return captured["output"]

    def run(
        self,
        runner: LayerRunner,
        tokens: dict,
        keep_states: bool,
        output_hidden_states=None,
        output_attentions=None,
        **settings,
    ) -> LoopOutput:
        """
        A call of `forward`.

        Args:
            runner ([`LayerRunner`]): This model, or the classifier around it.
            tokens (`dict`): The token arguments.
            keep_states (`bool`): Whether the rows' states and pooled vectors are wanted besides their logits.
            output_hidden_states, output_attentions: As of `forward`.
            settings: The early-exit arguments of `forward`.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if output_attentions is None:
            output_attentions = self.config.output_attentions
        # `output_hidden_states` may be a flag, an index or a list of indices; 0 is an index.
        keep_all_states = output_hidden_states is not None and output_hidden_states is not False
        output_all_layers = keep_all_states or bool(output_attentions)
        plan = self.make_plan(**settings, output_all_layers=output_all_layers)
        attentions = partial(self.collect_attentions, wanted=bool(output_attentions))
        output = run_call(runner, plan, tokens, keep_states, keep_all_states, attentions)
        if keep_all_states:
            output.hidden_states = select_states(output.hidden_states, output_hidden_states)
        return output

    def compute_off_ramp_inputs(self, **inputs) -> torch.Tensor:
        """
        The pooled states behind the off-ramps' layers of each row, `(rows, off-ramps, hidden)`. With a
        frozen backbone that never changes, so stage 2 can train on it without running a layer again. Meant for `"cls"`
        and `"mean"` pooling, which have no parameters.

        Args:
            inputs: The token arguments of [`forward`].
        """
        state, _ = self.begin(**inputs)
        pooled = []
        for layer in self.exit_layers[:-1]:
            while state.layer < layer:
                self.advance(state)
            pooled.append(self.pooled_vector(state))
        return torch.stack(pooled, 1)

    @torch.no_grad()
    def set_off_ramps(self, **fields) -> None:
        """
        Changes the off-ramps: those that read what they read before, and make the same of it, stay as they are, the
        others are dropped or new. Thresholds and temperatures of the configuration are the caller's.

        Args:
            fields: Of the configuration: `off_ramp_layers`, `off_ramp_head`, `off_ramp_context`, `off_ramp_pooling`.

        Raises:
            ValueError: for values that the configuration refuses.
        """
        config, kept = self.config, {}
        if all(getattr(config, name) == fields.get(name, getattr(config, name)) for name in OFF_RAMP_FIELDS):
            kept = dict(zip(config.off_ramp_readings, self.off_ramps, strict=True))
        for name, value in fields.items():
            setattr(config, name, value)
        config.validate_off_ramps()
        like = next(self.parameters())
        for place, reading in enumerate(self.config.off_ramp_readings):
            if reading not in kept:
                kept[reading] = self.make_off_ramp(place)
                kept[reading].apply(self._init_weights).to(like.device, like.dtype).train(self.training)
        self.off_ramps = nn.ModuleList(kept[reading] for reading in self.config.off_ramp_readings)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion=None,
        exit_layer: int | None = None,
        output_off_ramp_logits: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> EarlyExitModelOutput:
        """
        As the stock base model, with rows that exit at the first confident off-ramp. See
        [`EarlyExitClassifier.forward`] for the early-exit arguments and [`EarlyExitModelOutput`] for the result.
        """
        output = self.run(
            self,
            {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "position_ids": position_ids,
                "inputs_embeds": inputs_embeds,
            },
            keep_states=True,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            early_exit_entropy=early_exit_entropy,
            exit_criterion=exit_criterion,
            exit_layer=exit_layer,
            output_off_ramp_logits=output_off_ramp_logits,
        )
        answers = output.answers
        return EarlyExitModelOutput(
            last_hidden_state=answers.hidden,
            pooler_output=None if self.pooler is None else answers.pooled,
            exit_layers=None if self.training else answers.exit_layers,
            # The base model has no head behind the last layer.
            off_ramp_logits=output.off_ramp_logits and output.off_ramp_logits[:-1],
            hidden_states=output.hidden_states,
            attentions=output.attentions,
        )
