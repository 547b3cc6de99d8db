"""What of a classifier becomes an ONNX graph: one layer with its exit."""

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

from ...models.early_exit_deebert import PAST
from ...models.exit_plan_deebert import ExitPlan, make_exit_plan
from ...models.exit_scores_deebert import ExitCandidate, Score, prediction_entropy
from ...models.layer_state_deebert import LayerState


TOKEN_INPUTS = ("input_ids", "token_type_ids")  # of those a family may know, the ones that a graph takes
INPUTS = (*TOKEN_INPUTS, "attention_mask", "hidden")


class LayerSegment(nn.Module):
    """
    One layer and the exit behind it, if there is one: the off-ramp, its temperature applied, or behind the last layer
    the model's own head. The first segment embeds the tokens as well.

    Args:
        model (`PreTrainedModel`): An early-exit classifier in eval mode.
        layer (`int`): 1 … L; 0: the embeddings alone, where an exit stands behind them.
        score (`Callable`, *optional*): Of an exit criterion, where it is wanted besides the entropy.
    """

    def __init__(self, model: Any, layer: int, score: Score | None = None):
        super().__init__()
        self.model: Any = model
        self.layer = layer
        self.score = score
        self.plan = full_plan(model)

    def forward(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """
        Args:
            tensors (`dict[str, torch.Tensor]`):
                `attention_mask`, int64 `(rows, width)`, 1 for attended tokens, column 0 each row's first; `hidden`,
                `(rows, width, hidden)` states in front of the layer, or for the first segment `input_ids` and
                `token_type_ids`; for an off-ramp what it and the score keep from exit to exit, `(rows, …)`.

        Returns:
            `dict[str, torch.Tensor]`: `states` behind the layer; where there is an exit, `logits` `(rows, labels)` and
            their `entropy` `(rows,)`; for an off-ramp also what it keeps, and the `score`, `(rows,)`, with
            `first_score`, that of a first evaluated exit, where the score compares exits.
        """
        mask = tensors["attention_mask"]
        hidden = tensors["hidden"] if "hidden" in tensors else embed_tokens(self.model, mask, tensors)
        state = LayerState.begin(hidden, mask)
        if self.layer:
            state.layer = self.layer - 1
            self.model.advance(state)
        found = {"states": state.hidden}
        if self.layer not in self.model.exit_layers:
            return found
        if PAST in tensors:
            state.memory[PAST] = tensors[PAST]
        candidate = self.plan.scale(self.model.evaluate_exit(state))
        logits = candidate.logits
        found |= {"logits": logits, "entropy": finite_or_nan(prediction_entropy(candidate), logits)}
        if self.layer == self.model.exit_layers[-1]:
            return found
        if PAST in state.memory:
            found[next_name(PAST)] = state.memory[PAST]
        if self.score is not None:
            kept = {name: tensor for name, tensor in tensors.items() if name not in (*INPUTS, PAST)}
            if kept:
                found["first_score"] = finite_or_nan(self.score(ExitCandidate(logits, layer=self.layer)), logits)
            candidate = ExitCandidate(logits, memory=kept, layer=self.layer)
            found["score"] = finite_or_nan(self.score(candidate), logits)
            found |= {next_name(name): tensor for name, tensor in candidate.memory.items()}
        return found


def next_name(name: str) -> str:
    """The output's name of what an exit keeps for later ones as the input `name`."""
    return f"next_{name}"


def memory_of(score: Score, labels: int) -> dict[str, torch.Tensor]:
    """Two rows of what a score keeps from exit to exit."""
    candidate = ExitCandidate(torch.zeros(2, labels))
    score(candidate)
    return candidate.memory


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


def export_segment(model: Any, layer: int, opset: int, score: Score | None = None) -> onnx.ModelProto:
    """One [`LayerSegment`] as an ONNX graph with dynamic rows and width, and the names of its tensors."""
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0  # padding must not be optimised away
    if layer == first_segment(model):
        tensors = {"input_ids": torch.ones_like(mask), "attention_mask": mask}
        tensors |= {name: torch.zeros_like(mask) for name in token_inputs(model)[1:]}
    else:
        tensors = {"hidden": torch.zeros(2, 8, model.config.hidden_size), "attention_mask": mask}
    dynamic = {name: {0: "rows", 1: "width"} for name in tensors}
    *off_ramp_layers, _ = model.exit_layers
    if layer in off_ramp_layers:
        kept = {} if score is None else memory_of(score, model.config.num_labels)
        place = off_ramp_layers.index(layer)
        if place and model.config.off_ramp_context == "past":
            kept[PAST] = torch.zeros(2, place * model.config.hidden_size)
        tensors |= kept
        dynamic |= {name: {0: "rows"} for name in kept}
    module = LayerSegment(model, layer, score)
    names = list(module(tensors))
    return export_module(module, {"tensors": tensors}, list(tensors), names, {"tensors": dynamic}, opset)


def export_module(
    module: nn.Module,
    arguments: dict[str, Any],
    input_names: list[str],
    output_names: list[str],
    dynamic: dict[str, Any],
    opset: int,
) -> onnx.ModelProto:
    """Exports a module with its keyword arguments' dynamic axes, and leaves out the notes of where it ran."""
    with torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            module,
            kwargs=arguments,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic,
            dynamo=True,
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # which it is only without `dynamo`
    model = program.model_proto
    spell_out_maxima(model.graph)
    for node in model.graph.node:
        node.ClearField("metadata_props")  # stack traces, with the paths of this machine
        node.ClearField("doc_string")
    return model


def spell_out_maxima(graph: onnx.GraphProto) -> None:
    """Makes each `Max` of two a comparison and a choice: converters to float16 fail at it inside branches."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Max" and len(node.input) == 2:
            larger = f"{node.output[0]}_larger"
            nodes.append(onnx.helper.make_node("Greater", list(node.input), [larger], f"{node.name}_larger"))
            node = onnx.helper.make_node("Where", [larger, *node.input], list(node.output), node.name)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


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
