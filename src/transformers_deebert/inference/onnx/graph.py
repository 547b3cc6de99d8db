"""Parts of ONNX graphs, nodes with names of their own, and exits that are computed on demand."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import onnx
from onnx import TensorProto, helper

from .segments import INPUTS


class Pieces(NamedTuple):
    nodes: list[onnx.NodeProto]
    initializers: list[onnx.TensorProto]


class Nodes:
    """
    Nodes as they are written, one after the other.

    Args:
        parent ([`Nodes`], *optional*): Of the graph around a branch, with which it shares numbers for names.
    """

    def __init__(self, parent: "Nodes | None" = None) -> None:
        self.names: Iterator[int] = itertools.count() if parent is None else parent.names
        # Initializers of branches by the graph's name: a graph is copied into the one around it, and weights are not.
        self.weights: dict[str, list[onnx.TensorProto]] = {} if parent is None else parent.weights
        self.pieces = Pieces([], [])

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node with one output, and returns the output's name."""
        name = f"{operator.lower()}_{next(self.names)}"
        self.pieces.nodes.append(helper.make_node(operator, list(inputs), [name], f"node_{name}", **attributes))
        return name

    def constant(self, values: Any, kind: int = TensorProto.INT64) -> str:
        """A list as a tensor `(len(values),)`, a number as a scalar."""
        many = isinstance(values, list)
        value = helper.make_tensor("", kind, [len(values)] if many else [], values if many else [values])
        return self("Constant", value=value)  # other attributes than `value` stop many tools that rewrite graphs

    def extend(self, pieces: Pieces) -> None:
        self.pieces.nodes.extend(pieces.nodes)
        self.pieces.initializers.extend(pieces.initializers)

    def branch(self) -> "Nodes":
        """An empty list for a branch."""
        return Nodes(self)

    def choose(
        self,
        condition: str,
        then: "Nodes",
        then_values: list[str],
        otherwise: "Nodes",
        other_values: list[str],
        kinds: Sequence[tuple[int, int]],
    ) -> list[str]:
        """An `If`, whose results have these types and numbers of axes; returns their names."""
        outputs = [f"if_{next(self.names)}" for _ in kinds]

        def graph(nodes: Nodes, values: list[str], name: str) -> onnx.GraphProto:
            made = {output for node in nodes.pieces.nodes for output in node.output}
            # A branch gives what it makes itself, and each of it once.
            seen: set[str] = set()
            results = []
            for value in values:
                results.append(value if value in made - seen else nodes("Identity", value))
                seen.add(value)
            infos = [value_info(result, *kind) for result, kind in zip(results, kinds, strict=True)]
            self.weights[name] = nodes.pieces.initializers
            return helper.make_graph(nodes.pieces.nodes, name, [], infos)

        self.pieces.nodes.append(
            helper.make_node(
                "If",
                [condition],
                outputs,
                f"node_{outputs[0]}",
                then_branch=graph(then, then_values, f"then_{outputs[0]}"),
                else_branch=graph(otherwise, other_values, f"else_{outputs[0]}"),
            )
        )
        return outputs

    def put_weights(self, graph: onnx.GraphProto) -> None:
        """Gives a finished graph and its branches their initializers."""
        graph.initializer.extend(self.weights.get(graph.name, self.pieces.initializers))
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    self.put_weights(attribute.g)


def value_info(name: str, kind: int, axes: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, [None] * axes)


def needed_for(outputs: Iterable[str], producers: dict[str, onnx.NodeProto]) -> set[str]:
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


def split_by_output(graph: onnx.GraphProto, outputs: Iterable[list[str]]) -> list[Pieces]:
    """What each group of outputs needs, and none of the groups before it."""
    producers = {name: node for node in graph.node for name in node.output}
    known: set[str] = set()
    parts = []
    for group in outputs:
        needed = needed_for(group, producers) - known
        known |= needed
        parts.append(
            Pieces(
                [node for node in graph.node if any(name in needed for name in node.output)],
                [tensor for tensor in graph.initializer if tensor.name in needed],
            )
        )
    return parts


def shared_by(graph: onnx.GraphProto, first: list[str], second: list[str]) -> list[str]:
    """What both groups of outputs need, besides the first outputs themselves; constants, above all."""
    producers = {name: node for node in graph.node for name in node.output}
    before = needed_for(first, producers) - set(first)
    for name in first:
        del producers[name]
    return sorted(before & needed_for(second, producers))


def rename_tensors(graph: onnx.GraphProto, renamed: Callable[[str], str], prefix: str) -> None:
    """Renames all tensors of a graph without branches, and puts the prefix in front of its nodes' names."""
    for node in graph.node:
        node.name = prefix + node.name
        node.input[:] = [renamed(name) if name else name for name in node.input]
        node.output[:] = [renamed(name) if name else name for name in node.output]
    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)


def skip_exit(flat: onnx.ModelProto) -> onnx.ModelProto:
    """
    Makes a segment whose off-ramp is computed on demand.

    Args:
        flat (`onnx.ModelProto`): With the outputs `states`, `logits` and `entropy`, or more. It is changed.

    Returns:
        `onnx.ModelProto` with these outputs, and one more input, `evaluate`, bool of shape `(1,)`. Where that is
        false, `logits` `(0, labels)` and `entropy` `(0,)` are empty.
    """
    graph = flat.graph
    outputs = {value.name: value for value in graph.output}
    names = ["logits", "entropy"]
    rename_tensors(graph, lambda name: f"evaluated_{name}" if name in names else name, "")
    trunk, exit_pieces = split_by_output(graph, [["states"], [f"evaluated_{name}" for name in names]])
    labels = outputs["logits"].type.tensor_type.shape.dim[1].dim_value
    then, skipped = [], []
    for name, shape in zip(names, [(0, labels), (0,)], strict=True):
        then.append(helper.make_value_info(f"evaluated_{name}", outputs[name].type))
        value = helper.make_tensor("", TensorProto.FLOAT, shape, [0.0] * math.prod(shape))
        skipped.append(helper.make_node("Constant", [], [f"no_{name}"], value=value))
    infos = [value_info("no_logits", TensorProto.FLOAT, 2), value_info("no_entropy", TensorProto.FLOAT, 1)]
    node = helper.make_node(
        "If",
        ["evaluate"],
        names,
        then_branch=helper.make_graph(exit_pieces.nodes, "evaluate", [], then, initializer=exit_pieces.initializers),
        else_branch=helper.make_graph(skipped, "skip", [], infos),
    )
    inputs = [value for value in graph.input if value.name in INPUTS]
    gated = helper.make_graph(
        [*trunk.nodes, node],
        graph.name,
        [*inputs, helper.make_tensor_value_info("evaluate", TensorProto.BOOL, [1])],
        [outputs[name] for name in ("states", *names)],
        initializer=trunk.initializers,
    )
    return helper.make_model(gated, opset_imports=flat.opset_import, ir_version=flat.ir_version)
