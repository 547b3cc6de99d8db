"""
Exits as `If` nodes: from one graph with all exits to one where each is nested in the `else` of the one before, and
exits that are computed on demand.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import onnx
from onnx import TensorProto, helper


def nest_exits(flat: onnx.ModelProto, exit_layers: tuple[int, ...], threshold_name: str) -> onnx.ModelProto:
    """
    Makes a graph that stops at the first exit whose score is below its threshold. What only later exits need is
    computed in the else-branch of that exit; what several need (masks, shapes, shared weights), where it is first
    used; what only one off-ramp needs, only where its threshold is above 0.

    Args:
        flat (`onnx.ModelProto`): With the outputs `logits_i` and `score_i` of the exits behind the layers i.
        exit_layers (`tuple[int, ...]`): These layers; the last exit always answers.
        threshold_name (`str`): Of the input with the thresholds.

    Returns:
        `onnx.ModelProto` with the inputs of `flat` and the thresholds, float32 of shape `(1,)` or `(off-ramps,)`; with
        the outputs `logits`, as `logits_i`, and `exit_layer`, int64 of shape `(1,)`.
    """
    parts = split_by_exit(flat.graph, exit_layers)
    values = {value.name: value for value in flat.graph.output}
    logits_type = values[f"logits_{exit_layers[0]}"].type
    graph = None
    for layer, part in zip(reversed(exit_layers), reversed(parts), strict=True):
        graph = exit_graph(layer, part, logits_type, rest=graph)
    assert graph is not None
    for place, node in enumerate(threshold_nodes(exit_layers[:-1], threshold_name)):
        graph.node.insert(place, node)
    graph.name = "early_exit"
    graph.input.extend(flat.graph.input)
    graph.input.append(helper.make_tensor_value_info(threshold_name, TensorProto.FLOAT, ["thresholds_given"]))
    model = helper.make_model(graph, opset_imports=flat.opset_import, ir_version=flat.ir_version)
    first = exit_layers[0]
    rename_outputs(model.graph, {f"answer_{first}_logits": "logits", f"answer_{first}_layer": "exit_layer"})
    onnx.checker.check_model(model, full_check=True)
    return model


class Pieces(NamedTuple):
    nodes: list[onnx.NodeProto]
    initializers: list[onnx.TensorProto]


class Part:
    """
    Nodes and initializers that one exit needs and none before it: `trunk`, those that a later exit needs as well or
    that the last one answers by, and `off_ramp`, those that no other exit needs.
    """

    def __init__(self) -> None:
        self.trunk = Pieces([], [])
        self.off_ramp = Pieces([], [])


def split_by_exit(graph: onnx.GraphProto, exit_layers: tuple[int, ...]) -> list[Part]:
    """Every node and initializer to the first exit that needs it, in the order of the graph."""
    producers = {name: node for node in graph.node for name in node.output}
    first: dict[str, int] = {}  # the place of the first exit that needs a value
    last: dict[str, int] = {}  # and that of the last
    final = len(exit_layers) - 1
    for place, layer in enumerate(exit_layers):
        outputs = [f"logits_{layer}"] + ([f"score_{layer}"] if place < final else [])
        for name in needed_for(outputs, producers):
            first.setdefault(name, place)
            last[name] = place
    parts = [Part() for _ in exit_layers]

    def pieces(names: Iterable[str]) -> Pieces | None:
        known = [name for name in names if name in first]
        if not known:
            return None
        begin, end = min(first[name] for name in known), max(last[name] for name in known)
        return parts[begin].off_ramp if begin == end < final else parts[begin].trunk

    for node in graph.node:
        if (part := pieces(node.output)) is not None:
            part.nodes.append(node)
    for initializer in graph.initializer:
        if (part := pieces([initializer.name])) is not None:
            part.initializers.append(initializer)
    return parts


def needed_for(outputs: list[str], producers: dict[str, onnx.NodeProto]) -> set[str]:
    """Names of all values that these outputs come from, and their own."""
    found: set[str] = set()
    pending = list(outputs)
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            if name in producers:
                pending += [value for value in producers[name].input if value]
    return found


def threshold_nodes(layers: tuple[int, ...], name: str) -> list[onnx.NodeProto]:
    """`threshold_i` and `switched_on_i` of the off-ramp behind every layer i, of shape `(1,)`, from the input."""
    if not layers:
        return []
    count = len(layers)
    return [
        constant("off_ramps", TensorProto.INT64, [count]),
        helper.make_node("Expand", [name, "off_ramps"], ["thresholds"]),
        constant("never", TensorProto.FLOAT, [0.0]),
        helper.make_node("Greater", ["thresholds", "never"], ["switched_on"]),
        helper.make_node("Split", ["thresholds"], [f"threshold_{i}" for i in layers], axis=0, num_outputs=count),
        helper.make_node("Split", ["switched_on"], [f"switched_on_{i}" for i in layers], axis=0, num_outputs=count),
    ]


def constant(name: str, kind: int, values: list) -> onnx.NodeProto:
    """A `Constant` of shape `(len(values),)`. Other attributes than `value` stop many tools that rewrite graphs."""
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, kind, [len(values)], values))


def exit_graph(layer: int, part: Part, logits_type: onnx.TypeProto, rest: onnx.GraphProto | None) -> onnx.GraphProto:
    """A graph without inputs of its own: up to a layer and its exit, and in its else-branch `rest`, what is behind."""
    outputs = [
        helper.make_value_info(f"answer_{layer}_logits", logits_type),
        helper.make_tensor_value_info(f"answer_{layer}_layer", TensorProto.INT64, [1]),
    ]
    names = [value.name for value in outputs]
    nodes = list(part.trunk.nodes)
    if rest is None:
        nodes += answer_nodes(f"logits_{layer}", layer, names)
    else:
        exited = [f"exited_{layer}_logits", f"exited_{layer}_layer"]
        then_outputs = [helper.make_value_info(name, value.type) for name, value in zip(exited, outputs, strict=True)]
        answer = answer_nodes(f"evaluated_{layer}", layer, exited)
        then = helper.make_graph(answer, f"exit_{layer}", [], then_outputs)
        nodes += [
            evaluate_node(layer, part.off_ramp, logits_type),
            helper.make_node("If", [f"exits_{layer}"], names, then_branch=then, else_branch=rest),
        ]
    return helper.make_graph(nodes, f"layer_{layer}", [], outputs, initializer=part.trunk.initializers)


def evaluate_node(layer: int, off_ramp: Pieces, logits_type: onnx.TypeProto) -> onnx.NodeProto:
    """Gives `evaluated_i`, the off-ramp's logits, and `exits_i`, false where its threshold is 0."""
    below = helper.make_node("Less", [f"score_{layer}", f"threshold_{layer}"], [f"below_{layer}"])
    return compute_if(
        f"switched_on_{layer}",
        Pieces([*off_ramp.nodes, below], off_ramp.initializers),
        [
            helper.make_value_info(f"logits_{layer}", logits_type),
            helper.make_tensor_value_info(f"below_{layer}", TensorProto.BOOL, [1]),
        ],
        [f"evaluated_{layer}", f"exits_{layer}"],
        [zeros(1, logits_type.tensor_type.shape.dim[1].dim_value), helper.make_tensor("", TensorProto.BOOL, [1], [0])],
    )


def compute_if(
    condition: str,
    pieces: Pieces,
    results: list[onnx.ValueInfoProto],
    outputs: list[str],
    otherwise: list[onnx.TensorProto],
) -> onnx.NodeProto:
    """An `If` with the `outputs`: the `results` of the `pieces`, or constants, for which nothing is computed."""
    skipped, constants = [], []
    for result, value in zip(results, otherwise, strict=True):
        name = f"no_{result.name}"
        skipped.append(helper.make_tensor_value_info(name, value.data_type, list(value.dims)))
        constants.append(helper.make_node("Constant", [], [name], value=value))
    return helper.make_node(
        "If",
        [condition],
        outputs,
        then_branch=helper.make_graph(pieces.nodes, "evaluate", [], results, initializer=pieces.initializers),
        else_branch=helper.make_graph(constants, "skip", [], skipped),
    )


def zeros(*shape: int) -> onnx.TensorProto:
    return helper.make_tensor("", TensorProto.FLOAT, shape, [0.0] * math.prod(shape))


def skip_exit(flat: onnx.ModelProto) -> onnx.ModelProto:
    """
    Makes a segment whose off-ramp is computed on demand.

    Args:
        flat (`onnx.ModelProto`): With the outputs `states`, `exit_logits` and `exit_entropy`.

    Returns:
        `onnx.ModelProto` with the outputs `states`, `logits` and `entropy`, and one more input, `evaluate`, bool of
        shape `(1,)`. Where that is false, `logits` `(0, labels)` and `entropy` `(0,)` are empty.
    """
    graph = flat.graph
    states, logits, entropy = graph.output
    producers = {name: node for node in graph.node for name in node.output}
    trunk = needed_for([states.name], producers)

    def is_trunk(names: Iterable[str]) -> bool:
        return any(name in trunk for name in names)

    off_ramp = Pieces(
        [node for node in graph.node if not is_trunk(node.output)],
        [tensor for tensor in graph.initializer if not is_trunk([tensor.name])],
    )
    labels = logits.type.tensor_type.shape.dim[1].dim_value
    node = compute_if("evaluate", off_ramp, [logits, entropy], ["logits", "entropy"], [zeros(0, labels), zeros(0)])
    outputs = [states, helper.make_value_info("logits", logits.type), helper.make_value_info("entropy", entropy.type)]
    gated = helper.make_graph(
        [*(node for node in graph.node if is_trunk(node.output)), node],
        graph.name,
        [*graph.input, helper.make_tensor_value_info("evaluate", TensorProto.BOOL, [1])],
        outputs,
        initializer=[tensor for tensor in graph.initializer if is_trunk([tensor.name])],
    )
    return helper.make_model(gated, opset_imports=flat.opset_import, ir_version=flat.ir_version)


def answer_nodes(logits: str, layer: int, names: list[str]) -> list[onnx.NodeProto]:
    """`logits` as the answer of exit `layer`, under these two names."""
    return [
        helper.make_node("Identity", [logits], names[:1]),
        constant(names[1], TensorProto.INT64, [layer]),
    ]


def rename_outputs(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames outputs of the main graph, which only its own nodes make."""
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
