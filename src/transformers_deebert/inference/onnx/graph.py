"""
From one graph with all exits to one that takes them: an `If` behind every off-ramp, each in the one before. Off-ramps
themselves are in an `If` as well: nothing is computed of one that nobody asks.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def nest_exits(flat: onnx.ModelProto, layers: int) -> onnx.ModelProto:
    """
    Makes a graph that stops at the first exit whose entropy is below its threshold. What layer i + 1 needs is computed
    in the else-branch of exit i; what several layers need (masks, shapes, shared weights), where it is first used;
    what only off-ramp i needs, only where its threshold is above 0.

    Args:
        flat (`onnx.ModelProto`): With the outputs `logits_i` and `entropy_i` of the exits i = 1 … `layers`.
        layers (`int`): L; exit L always answers.

    Returns:
        `onnx.ModelProto` with the inputs of `flat` and `early_exit_entropy`, float32 of shape `(1,)` or `(L-1,)`; with
        the outputs `logits`, as `logits_i`, and `exit_layer`, int64 of shape `(1,)`.
    """
    parts = split_by_exit(flat.graph, layers)
    values = {value.name: value for value in flat.graph.output}
    logits_type = values["logits_1"].type
    graph = None
    for layer in range(layers, 0, -1):
        graph = exit_graph(layer, parts[layer - 1], logits_type, rest=graph)
    assert graph is not None
    for place, node in enumerate(threshold_nodes(layers - 1)):
        graph.node.insert(place, node)
    graph.name = "early_exit"
    graph.input.extend(flat.graph.input)
    graph.input.append(helper.make_tensor_value_info("early_exit_entropy", TensorProto.FLOAT, ["thresholds_given"]))
    model = helper.make_model(graph, opset_imports=flat.opset_import, ir_version=flat.ir_version)
    rename_outputs(model.graph, {"exit_1_logits": "logits", "exit_1_layer": "exit_layer"})
    onnx.checker.check_model(model, full_check=True)
    return model


class Part:
    """
    Nodes and initializers that one exit needs and none before it: `trunk`, those that a later exit needs as well or
    that the last one answers by, and `off_ramp`, those that nobody else needs.
    """

    def __init__(self) -> None:
        self.trunk = Pieces([], [])
        self.off_ramp = Pieces([], [])


class Pieces(NamedTuple):
    nodes: list[onnx.NodeProto]
    initializers: list[onnx.TensorProto]


def split_by_exit(graph: onnx.GraphProto, layers: int) -> list[Part]:
    """Every node and initializer to the first exit that needs it, in the order of the graph."""
    producers = {name: node for node in graph.node for name in node.output}
    first: dict[str, int] = {}  # the number of the first exit that needs a value
    last: dict[str, int] = {}  # and that of the last
    for layer in range(1, layers + 1):
        for name in needed_for(exit_outputs(layer, layers), producers):
            first.setdefault(name, layer)
            last[name] = layer
    parts = [Part() for _ in range(layers)]

    def pieces(names: Iterable[str]) -> Pieces | None:
        known = [name for name in names if name in first]
        if not known:
            return None
        begin, end = min(first[name] for name in known), max(last[name] for name in known)
        return parts[begin - 1].off_ramp if begin == end < layers else parts[begin - 1].trunk

    for node in graph.node:
        if (place := pieces(node.output)) is not None:
            place.nodes.append(node)
    for initializer in graph.initializer:
        if (place := pieces([initializer.name])) is not None:
            place.initializers.append(initializer)
    return parts


def exit_outputs(layer: int, layers: int) -> list[str]:
    """What exit `layer` of `layers` is asked for in the flat graph."""
    return [f"logits_{layer}"] + ([f"entropy_{layer}"] if layer < layers else [])


def needed_for(outputs: list[str], producers: dict[str, onnx.NodeProto]) -> set[str]:
    """Names of all values that these outputs come from, and their own."""
    found: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            if name in producers:
                waiting += [value for value in producers[name].input if value]
    return found


def threshold_nodes(off_ramps: int) -> list[onnx.NodeProto]:
    """`threshold_i` and `consults_i` of every off-ramp i, of shape `(1,)`, from `early_exit_entropy`."""
    if not off_ramps:
        return []
    numbers = range(1, off_ramps + 1)
    return [
        helper.make_node("Constant", [], ["off_ramps"], value_ints=[off_ramps]),
        helper.make_node("Expand", ["early_exit_entropy", "off_ramps"], ["thresholds"]),
        helper.make_node("Constant", [], ["never"], value_floats=[0.0]),
        helper.make_node("Greater", ["thresholds", "never"], ["consults"]),
        helper.make_node("Split", ["thresholds"], [f"threshold_{i}" for i in numbers], axis=0, num_outputs=off_ramps),
        helper.make_node("Split", ["consults"], [f"consults_{i}" for i in numbers], axis=0, num_outputs=off_ramps),
    ]


def exit_graph(layer: int, part: Part, logits_type: onnx.TypeProto, rest: onnx.GraphProto | None) -> onnx.GraphProto:
    """A graph without inputs of its own: the layer and its exit, and in its else-branch `rest`, the layers behind."""
    outputs = [
        helper.make_value_info(f"exit_{layer}_logits", logits_type),
        helper.make_tensor_value_info(f"exit_{layer}_layer", TensorProto.INT64, [1]),
    ]
    nodes = list(part.trunk.nodes)
    if rest is None:
        nodes += answer_nodes(f"logits_{layer}", layer, [value.name for value in outputs])
    else:
        taken = [f"take_{layer}_logits", f"take_{layer}_layer"]
        then_outputs = [helper.make_value_info(name, value.type) for name, value in zip(taken, outputs, strict=True)]
        answer = answer_nodes(f"offered_{layer}", layer, taken)
        then = helper.make_graph(answer, f"take_exit_{layer}", [], then_outputs)
        nodes += [
            consult_node(layer, part.off_ramp, logits_type),
            helper.make_node(
                "If", [f"leaves_{layer}"], [value.name for value in outputs], then_branch=then, else_branch=rest
            ),
        ]
    return helper.make_graph(nodes, f"layer_{layer}", [], outputs, initializer=part.trunk.initializers)


def consult_node(layer: int, off_ramp: Pieces, logits_type: onnx.TypeProto) -> onnx.NodeProto:
    """Gives `offered_i`, the off-ramp's logits, and `leaves_i`, false where its threshold is 0."""
    # Of NaN, the entropy of logits that are not finite, this is false: the row goes on.
    sure = helper.make_node("Less", [f"entropy_{layer}", f"threshold_{layer}"], [f"sure_{layer}"])
    return compute_if(
        f"consults_{layer}",
        Pieces([*off_ramp.nodes, sure], off_ramp.initializers),
        [
            helper.make_value_info(f"logits_{layer}", logits_type),
            helper.make_tensor_value_info(f"sure_{layer}", TensorProto.BOOL, [1]),
        ],
        [f"offered_{layer}", f"leaves_{layer}"],
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
        then_branch=helper.make_graph(pieces.nodes, "ask", [], results, initializer=pieces.initializers),
        else_branch=helper.make_graph(constants, "skip", [], skipped),
    )


def zeros(*shape: int) -> onnx.TensorProto:
    return helper.make_tensor("", TensorProto.FLOAT, shape, [0.0] * math.prod(shape))


def skip_exit(flat: onnx.ModelProto) -> onnx.ModelProto:
    """
    Makes a segment whose off-ramp is computed on demand.

    Args:
        flat (`onnx.ModelProto`): With the outputs `states`, `asked_logits` and `asked_entropy`.

    Returns:
        `onnx.ModelProto` with the outputs `states`, `logits` and `entropy`, and one more input, `consult`, bool of
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
    node = compute_if("consult", off_ramp, [logits, entropy], ["logits", "entropy"], [zeros(0, labels), zeros(0)])
    outputs = [states, helper.make_value_info("logits", logits.type), helper.make_value_info("entropy", entropy.type)]
    gated = helper.make_graph(
        [*(node for node in graph.node if is_trunk(node.output)), node],
        graph.name,
        [*graph.input, helper.make_tensor_value_info("consult", TensorProto.BOOL, [1])],
        outputs,
        initializer=[tensor for tensor in graph.initializer if is_trunk([tensor.name])],
    )
    return helper.make_model(gated, opset_imports=flat.opset_import, ir_version=flat.ir_version)


def use_value_tensors(graph: onnx.GraphProto) -> None:
    """Constants as tensors everywhere: several tools read no other form (`value_ints`, `value_floats`, …)."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                use_value_tensors(attribute.g)
        if node.op_type == "Constant" and node.attribute[0].name != "value":
            number = helper.get_attribute_value(node.attribute[0])
            dtype = np.float32 if node.attribute[0].name.startswith("value_float") else np.int64
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.array(number, dtype))))


def answer_nodes(logits: str, layer: int, names: list[str]) -> list[onnx.NodeProto]:
    """`logits` as the answer of exit `layer`, under these two names."""
    return [
        helper.make_node("Identity", [logits], names[:1]),
        helper.make_node("Constant", [], names[1:], value_ints=[layer]),
    ]


def rename_outputs(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames outputs of the main graph, which only its own nodes make."""
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
