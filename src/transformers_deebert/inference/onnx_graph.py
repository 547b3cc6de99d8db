"""From one graph with all exits to one that takes them: an `If` behind every off-ramp, each in the one before."""

import onnx
from onnx import TensorProto, helper


def nest_exits(flat: onnx.ModelProto, layers: int) -> onnx.ModelProto:
    """
    Makes a graph that stops at the first exit whose entropy is below its threshold. What layer i + 1 needs is computed
    in the else-branch of exit i; what several layers need (masks, shapes, shared weights), where it is first used.

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
    if layers > 1:
        shape = helper.make_node("Constant", [], ["off_ramps"], value_ints=[layers - 1])
        spread = helper.make_node("Expand", ["early_exit_entropy", "off_ramps"], ["thresholds"])
        graph.node.insert(0, shape)
        graph.node.insert(1, spread)
    graph.name = "early_exit"
    graph.input.extend(flat.graph.input)
    graph.input.append(helper.make_tensor_value_info("early_exit_entropy", TensorProto.FLOAT, ["thresholds_given"]))
    model = helper.make_model(graph, opset_imports=flat.opset_import, ir_version=flat.ir_version)
    rename_outputs(model.graph, {"exit_1_logits": "logits", "exit_1_layer": "exit_layer"})
    onnx.checker.check_model(model, full_check=True)
    return model


class Part:
    """Nodes and initializers that one exit needs and none before it."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []


def split_by_exit(graph: onnx.GraphProto, layers: int) -> list[Part]:
    """Every node and initializer to the first exit that needs it, in the order of the graph."""
    producers = {name: node for node in graph.node for name in node.output}
    first: dict[str, int] = {}  # the number of the first exit that needs a value
    for layer in range(1, layers + 1):
        waiting = [f"logits_{layer}"] + ([f"entropy_{layer}"] if layer < layers else [])
        while waiting:
            name = waiting.pop()
            if name in first:
                continue
            first[name] = layer
            if name in producers:
                waiting += [value for value in producers[name].input if value]
    parts = [Part() for _ in range(layers)]
    for node in graph.node:
        needed = [first[name] for name in node.output if name in first]
        if needed:
            parts[min(needed) - 1].nodes.append(node)
    for initializer in graph.initializer:
        if initializer.name in first:
            parts[first[initializer.name] - 1].initializers.append(initializer)
    return parts


def exit_graph(layer: int, part: Part, logits_type: onnx.TypeProto, rest: onnx.GraphProto | None) -> onnx.GraphProto:
    """A graph without inputs of its own: the layer and its exit, and in its else-branch `rest`, the layers behind."""
    outputs = [
        helper.make_value_info(f"exit_{layer}_logits", logits_type),
        helper.make_tensor_value_info(f"exit_{layer}_layer", TensorProto.INT64, [1]),
    ]
    nodes = list(part.nodes)
    if rest is None:
        nodes += answer_nodes(layer, [value.name for value in outputs])
    else:
        taken = [f"take_{layer}_logits", f"take_{layer}_layer"]
        then_outputs = [helper.make_value_info(name, value.type) for name, value in zip(taken, outputs, strict=True)]
        then = helper.make_graph(answer_nodes(layer, taken), f"take_exit_{layer}", [], then_outputs)
        nodes += [
            helper.make_node("Constant", [], [f"off_ramp_{layer}"], value_ints=[layer - 1]),
            helper.make_node("Gather", ["thresholds", f"off_ramp_{layer}"], [f"threshold_{layer}"]),
            # Of NaN, the entropy of logits that are not finite, this is false: the row goes on.
            helper.make_node("Less", [f"entropy_{layer}", f"threshold_{layer}"], [f"leaves_{layer}"]),
            helper.make_node(
                "If", [f"leaves_{layer}"], [value.name for value in outputs], then_branch=then, else_branch=rest
            ),
        ]
    return helper.make_graph(nodes, f"layer_{layer}", [], outputs, initializer=part.initializers)


def answer_nodes(layer: int, names: list[str]) -> list[onnx.NodeProto]:
    """The answer of exit `layer`, under these two names."""
    return [
        helper.make_node("Identity", [f"logits_{layer}"], names[:1]),
        helper.make_node("Constant", [], names[1:], value_ints=[layer]),
    ]


def rename_outputs(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    """Renames outputs of the main graph, which only its own nodes make."""
    for node in graph.node:
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in graph.output:
        value.name = names.get(value.name, value.name)
