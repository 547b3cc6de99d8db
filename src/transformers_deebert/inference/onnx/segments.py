"""What of a classifier becomes an ONNX graph: one layer with its exit, or all of them."""

import contextlib
import copy
import logging
import types
import warnings
from collections.abc import Iterator
from typing import Any

import onnx
import torch
from torch import nn

from ...models.exit_plan_deebert import ExitPlan, make_exit_plan
from ...models.exit_scores_deebert import Score, prediction_entropy
from ...models.layer_state_deebert import LayerState


TOKEN_INPUTS = ("input_ids", "token_type_ids")  # of those a family may know, the ones that a graph takes


class LayerSegment(nn.Module):
    """
    One layer and the exit behind it, if there is one: the off-ramp, its temperature applied, or behind the last layer
    the model's own head. The first segment embeds the tokens as well.

    Args:
        model (`PreTrainedModel`): An early-exit classifier in eval mode.
        layer (`int`): 1 … L; 0: the embeddings alone, where an exit stands behind them.
    """

    def __init__(self, model: Any, layer: int):
        super().__init__()
        self.model: Any = model
        self.layer = layer
        self.plan = full_plan(model)

    def forward(
        self, inputs: torch.Tensor, mask: torch.Tensor, segments: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            inputs (`torch.Tensor`):
                `(rows, width, hidden)` states in front of the layer; for the first segment the `input_ids`,
                `(rows, width)`.
            mask (`torch.LongTensor` of shape `(rows, width)`): 1 for attended tokens; column 0 is each row's first.
            segments (`torch.LongTensor` of shape `(rows, width)`, *optional*):
                For the first segment, the `token_type_ids`.

        Returns:
            `tuple`: the states behind the layer; where there is an exit, its logits `(rows, labels)` and their entropy
            `(rows,)`.
        """
        if self.layer == first_segment(self.model):
            inputs = embed_tokens(self.model, mask, {"input_ids": inputs, "token_type_ids": segments})
        state = LayerState.begin(inputs, mask)
        if self.layer:
            state.layer = self.layer - 1
            self.model.advance(state)
        if self.layer not in self.model.exit_layers:
            return (state.hidden,)
        candidate = self.plan.scale(self.model.evaluate_exit(state))
        return state.hidden, candidate.logits, finite_or_nan(prediction_entropy(candidate), candidate.logits)


class EveryExit(nn.Module):
    """
    The whole classifier, every exit of it.

    Args:
        model (`PreTrainedModel`): An early-exit classifier in eval mode.
        score (`Callable`): Of the exit criterion.
    """

    def __init__(self, model: Any, score: Score):
        super().__init__()
        self.model: Any = model
        self.score = score
        self.plan = full_plan(model)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """
        `tuple`: logits `(rows, labels)` and score `(rows,)` of the first exit, those of the second, … those of the
        head, and the states behind the last layer.
        """
        mask = attention_mask.ne(0).long()
        columns = columns_from_first(mask)
        tokens = {"input_ids": input_ids, "token_type_ids": token_type_ids}
        inputs = {name: tensor.gather(1, columns) for name, tensor in tokens.items() if tensor is not None}
        mask = mask.gather(1, columns)
        state = LayerState.begin(embed_tokens(self.model, mask, inputs), mask)
        exits: list[torch.Tensor] = []
        for layer in self.model.exit_layers:
            while state.layer < layer:
                self.model.advance(state)
            candidate = self.plan.scale(self.model.evaluate_exit(state))
            exits += [candidate.logits, finite_or_nan(self.score(candidate), candidate.logits)]
        return *exits, state.hidden


def finite_or_nan(score: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """
    Scores, NaN where a logit is not finite: below no threshold, so that such a row does not exit early. In operators
    that shape inference and converters know; runtimes differ in what `Relu` and `Max` make of NaN.
    """
    return score + (logits * 0).sum(-1)


def first_segment(model: Any) -> int:
    """The layer of the segment that embeds the tokens: 0 where an exit stands behind the embeddings, otherwise 1."""
    return min(1, *model.exit_layers)


def embed_tokens(model: Any, mask: torch.Tensor, tokens: dict) -> torch.Tensor:
    """States in front of layer 1, from those of the tokens' tensors that the family knows."""
    backbone = model.base_model
    return backbone.embed(mask, **{name: tokens.get(name) for name in backbone.embedding_inputs})


def columns_from_first(mask: torch.Tensor) -> torch.Tensor:
    """As `rotation`, for a width that is not known yet, by which the exporter cannot take remainders."""
    width = mask.shape[1]
    columns = torch.arange(width) + mask.argmax(1, keepdim=True)
    return torch.where(columns < width, columns, columns - width)


def full_plan(model: Any) -> ExitPlan:
    """The plan of a call that evaluates every exit and where no sample exits early."""
    return make_exit_plan(
        model.config, training=False, exit_layer=model.config.num_hidden_layers, output_off_ramp_logits=True
    )


def exportable(model: Any) -> Any:
    """A copy in float32, on the CPU, in eval mode, with the attention that takes the fewest ONNX operators."""
    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    model.set_attn_implementation("eager")
    backbone = model.base_model
    if "layer_types" not in model.config:  # with them some layers see a window only
        backbone.mask_arguments = types.MethodType(additive_mask_arguments, backbone)
    return model


def additive_mask_arguments(backbone: Any, state: LayerState) -> dict:
    """As `mask_arguments`, with a mask to add to the scores, `(rows, 1, 1, width)`: a handful of operators."""
    padding = 1.0 - state.mask[:, None, None].float()
    mask = padding * torch.finfo(torch.float32).min
    return {"config": backbone.config, "inputs_embeds": state.hidden, "attention_mask": mask}


def token_inputs(model: Any) -> tuple[str, ...]:
    """Those of `TOKEN_INPUTS` that the family's embeddings take."""
    return tuple(name for name in TOKEN_INPUTS if name in model.base_model.embedding_inputs)


def export_segment(model: Any, layer: int, opset: int) -> onnx.ModelProto:
    """
    One [`LayerSegment`] as an ONNX graph with dynamic rows and width. Inputs: `input_ids`, `attention_mask` and, where
    the family has them, `token_type_ids` for the first; `hidden` and `attention_mask` for the others. Outputs:
    `states` and, where there is an exit, `logits` and `entropy`, an off-ramp's as [`skip_exit`] takes them.
    """
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0  # padding must not be optimised away
    names: list[str]
    if layer == first_segment(model):
        names = ["input_ids", "attention_mask", *token_inputs(model)[1:]]
        inputs: list[torch.Tensor] = [torch.ones_like(mask), mask, torch.zeros_like(mask)][: len(names)]
    else:
        names = ["hidden", "attention_mask"]
        inputs = [torch.zeros(2, 8, model.config.hidden_size), mask]
    outputs = ["states"]
    if layer in model.exit_layers:
        outputs += ["logits", "entropy"] if layer == model.exit_layers[-1] else ["exit_logits", "exit_entropy"]
    return export_module(LayerSegment(model, layer), inputs, names, outputs, {0: "rows", 1: "width"}, opset)


def export_every_exit(model: Any, score: Score, opset: int) -> onnx.ModelProto:
    """
    [`EveryExit`] as one ONNX graph for a single row of any length. Inputs: `input_ids`, `attention_mask` and, where
    the family has them, `token_type_ids`. Outputs: `logits_i`, `score_i` for each exit layer i, `states`.
    """
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[:, 5:] = 0
    inputs_of = {"input_ids": torch.ones_like(mask), "token_type_ids": torch.zeros_like(mask)}
    names = ["input_ids", "attention_mask", *token_inputs(model)[1:]]
    inputs = [inputs_of.get(name, mask) for name in names]
    outputs = [f"{kind}_{layer}" for layer in model.exit_layers for kind in ("logits", "score")]
    return export_module(EveryExit(model, score), inputs, names, [*outputs, "states"], {1: "width"}, opset)


def export_module(
    module: nn.Module,
    inputs: list[torch.Tensor],
    input_names: list[str],
    output_names: list[str],
    dynamic: dict[int, str],
    opset: int,
) -> onnx.ModelProto:
    """Exports a module all of whose inputs have the same dynamic axes, and leaves out the notes of where it ran."""
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            module,
            tuple(inputs),
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=tuple(dynamic for _ in inputs),
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # which it is only without `dynamo`
    model = program.model_proto
    for node in model.graph.node:
        node.ClearField("metadata_props")  # stack traces, with the paths of this machine
        node.ClearField("doc_string")
    return model


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Without the exporter's notes about torchvision, and about axes that it names alike."""
    registration = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = registration.level
    registration.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        registration.setLevel(level)
