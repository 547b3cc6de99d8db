"""One ONNX graph for any batch: exits inside, exited rows dropped inside."""

import hashlib
import itertools
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ...models.early_exit_deebert import PAST
from ...models.exit_plan_deebert import RUN_LENGTH
from .graph import Nodes, Pieces, rename_tensors, shared_by, split_by_output
from .segments import next_name


THRESHOLD = "exit_threshold"
TOKENS = ("input_ids", "token_type_ids")
SHARED_BYTES = 4096  # weights of at least so many that layers have in common are stored once
# Types and axes of what goes from layer to layer: per row, and the answers in the order of the input.
STATE = {
    "hidden": (TensorProto.FLOAT, 3),
    "attention_mask": (TensorProto.INT64, 2),
    "rows": (TensorProto.INT64, 2),  # (active rows, 1): each one's place in the answers
    "answers": (TensorProto.FLOAT, 2),
    "answer_layers": (TensorProto.INT64, 1),
}


class Evaluation(NamedTuple):
    """
    Names of what an exit gives: logits, which rows exit, whether some but not all of them do, whether any row stays
    active.
    """

    logits: str
    exiting: str
    some: str
    active: str


class SingleFile:
    """
    The graph of a classifier that is called with the tokens of any batch.

    Behind every off-ramp stand three `If`s. The first evaluates it, where its threshold is above 0. The second, where
    some of the rows exit, writes their answers and gathers the active rows, at the width that they need; otherwise
    everything stays as it is. The third holds all that follows, once, for whatever rows are active.

    Args:
        flats (`dict[int, onnx.ModelProto]`): Graphs of [`export_segment`] with a score, by layer. They are changed.
        exit_layers (`tuple[int, ...]`): The layers that an exit stands behind, the head's last.
        patience (`int`): Consecutive evaluated exits with a score below their threshold that it takes.
        thresholds (`list[float]`): Default of the input `exit_threshold`: one for all off-ramps, or one for each.
    """

    def __init__(
        self, flats: dict[int, onnx.ModelProto], exit_layers: tuple[int, ...], patience: int, thresholds: list[float]
    ) -> None:
        self.flats = flats
        self.exit_layers = exit_layers
        self.patience = patience
        self.thresholds = thresholds
        (logits,) = (value for value in flats[exit_layers[-1]].graph.output if value.name == "logits")
        self.labels = logits.type.tensor_type.shape.dim[1].dim_value
        self.shared: dict[bytes, str] = {}
        self.memory: dict[str, tuple[int, int]] = {}  # of the score, per row
        for flat in flats.values():
            for value in flat.graph.input:
                if value.name not in (*TOKENS, *STATE, PAST):
                    kind = value.type.tensor_type
                    self.memory[value.name] = (kind.elem_type, len(kind.shape.dim))
        self.compares = bool(self.memory)  # whether the score compares an exit with the one before
        if patience > 1:
            self.memory[RUN_LENGTH] = (TensorProto.INT64, 1)

    def make(self) -> onnx.ModelProto:
        """The model."""
        first = self.flats[min(self.flats)]
        tokens = [value for value in first.graph.input if value.name not in self.memory]
        nodes = Nodes()
        self.prepare_thresholds(nodes)
        state = self.prepare_tokens(nodes, [value.name for value in tokens])
        logits, layers = self.level(0, nodes, state)
        default = numpy_helper.from_array(np.array(self.thresholds, np.float32), THRESHOLD)
        for name, value in {"logits": logits, "exit_layer": layers}.items():
            nodes.pieces.nodes.append(helper.make_node("Identity", [value], [name], f"node_{name}"))
        graph = helper.make_graph(
            nodes.pieces.nodes,
            "early_exit",
            [*tokens, helper.make_tensor_value_info(THRESHOLD, TensorProto.FLOAT, ["thresholds"])],
            [
                helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["rows", self.labels]),
                helper.make_tensor_value_info("exit_layer", TensorProto.INT64, ["rows"]),
            ],
            initializer=[default],
        )
        model = helper.make_model(graph, opset_imports=first.opset_import, ir_version=first.ir_version)
        nodes.put_weights(model.graph)
        return model

    def prepare_thresholds(self, nodes: Nodes) -> None:
        """For every off-ramp its threshold, whether it is on, and whether any before, or any from it on, is."""
        count = len(self.exit_layers) - 1
        self.limits: list[str] = []
        self.on: list[str] = []
        if not count:
            return
        limits = nodes("Expand", THRESHOLD, nodes.constant([count]))
        axis = nodes.constant([0])
        for place in range(count):
            span = nodes.constant([place]), nodes.constant([place + 1])
            self.limits.append(nodes("Slice", limits, *span, axis))
        zero = nodes.constant([0.0], TensorProto.FLOAT)
        # Where there are no rows nothing is evaluated: not all operators know what to make of them.
        present = nodes("Greater", nodes("Shape", "attention_mask", start=0, end=1), nodes.constant([0]))
        self.on = [nodes("And", nodes("Greater", limit, zero), present) for limit in self.limits]
        if self.compares:
            self.before = list(itertools.accumulate(self.on, lambda one, other: nodes("Or", one, other)))
        if PAST in {value.name for flat in self.flats.values() for value in flat.graph.input}:
            later = itertools.accumulate(reversed(self.on), lambda one, other: nodes("Or", one, other))
            self.needed = list(later)[::-1]

    def prepare_tokens(self, nodes: Nodes, names: list[str]) -> dict[str, str]:
        """The state in front of the first layer: each row's first attended token in column 0, no needless columns."""
        one, none = nodes.constant(1), nodes.constant(0)
        mask = nodes("Cast", nodes("Cast", "attention_mask", to=TensorProto.BOOL), to=TensorProto.INT64)
        width = nodes("Shape", mask, start=1, end=2)
        places = nodes("Range", none, nodes("Squeeze", width), one)
        columns = nodes("Add", places, nodes("ArgMax", mask, axis=1, keepdims=1))
        columns = nodes("Where", nodes("Less", columns, width), columns, nodes("Sub", columns, width))
        mask = nodes("GatherElements", mask, columns, axis=1)
        begin, axis = nodes.constant([0]), nodes.constant([1])
        needed = self.width_of(nodes, mask, places)
        columns = nodes("Slice", columns, begin, needed, axis)
        state = {name: nodes("GatherElements", name, columns, axis=1) for name in names if name != "attention_mask"}
        state["attention_mask"] = nodes("Slice", mask, begin, needed, axis)
        shape = nodes("Shape", mask, start=0, end=1)
        rows = nodes("Range", none, nodes("Squeeze", shape), one)
        state["rows"] = nodes("Unsqueeze", rows, axis)
        whole = nodes("Concat", shape, nodes.constant([self.labels]), axis=0)
        state["answers"] = nodes("Expand", nodes.constant([0.0], TensorProto.FLOAT), whole)
        state["answer_layers"] = nodes("Expand", nodes.constant([self.exit_layers[-1]]), shape)
        for name, (kind, _) in self.memory.items():
            state[name] = nodes("Expand", nodes.constant([0], kind), shape)
        return state

    def width_of(self, nodes: Nodes, mask: str, places: str) -> str:
        """`(1,)`: one more than the last column that is attended in any row, at least 1."""
        ends = nodes("Mul", mask, nodes("Add", places, nodes.constant([1])))
        ends = nodes("Concat", nodes("Reshape", ends, nodes.constant([-1])), nodes.constant([1]), axis=0)
        return nodes("ReduceMax", ends, keepdims=1)

    def level(self, place: int, nodes: Nodes, state: dict[str, str]) -> tuple[str, str]:
        """Adds the layers up to an exit, the exit, and all behind it; names of the answers and their layers."""
        layer = self.exit_layers[place]
        begin = min(self.flats) if place == 0 else self.exit_layers[place - 1] + 1
        *before, last = range(begin, layer + 1)
        for one in before:
            (trunk,) = self.parts(one, state, [["states"]])
            nodes.extend(trunk)
            state = state | {"hidden": f"layer_{one}_states"}
        if place == len(self.exit_layers) - 1:
            (trunk,) = self.parts(last, state, [["logits"]])
            nodes.extend(trunk)
            return nodes("ScatterND", state["answers"], state["rows"], f"layer_{layer}_logits"), state["answer_layers"]
        known = {value.name for value in self.flats[last].graph.output}
        carried = [name for name in [next_name(PAST)] if name in known]
        given = [name for name in known if name not in ("states", "entropy", *carried)]
        both = shared_by(self.flats[last].graph, carried, given)
        trunk, carry, off_ramp = self.parts(last, state, [["states", *both], carried, given])
        nodes.extend(trunk)
        state = state | {"hidden": f"layer_{layer}_states"}
        if carried:
            state[PAST] = self.carry(place, nodes, carry, state)
            inside = f"layer_{layer}_{next_name(PAST)}"
            for node in off_ramp.nodes:
                node.input[:] = [state[PAST] if name == inside else name for name in node.input]
        evaluation, state = self.evaluate(place, nodes, off_ramp, state)
        state = self.drop_exited(layer, nodes, evaluation, state)
        following = nodes.branch()
        answers = self.level(place + 1, following, state)
        finished = nodes.branch()
        # Rows that have not exited before all exit here.
        layers = finished("Expand", finished.constant([layer]), finished("Shape", state["rows"], start=0, end=1))
        every = [
            finished("ScatterND", state["answers"], state["rows"], evaluation.logits),
            finished("ScatterND", state["answer_layers"], state["rows"], layers),
        ]
        kinds = [STATE["answers"], STATE["answer_layers"]]
        logits, layers = nodes.choose(evaluation.active, following, list(answers), finished, every, kinds)
        return logits, layers

    def parts(self, layer: int, state: dict[str, str], outputs: list[list[str]]) -> list[Pieces]:
        """
        What groups of a layer's outputs need, with the state as its inputs. Weights that an earlier layer has are its.
        """
        graph = self.flats[layer].graph
        names = {value.name: state[value.name] for value in graph.input if value.name in state}
        prefix = f"layer_{layer}_"
        for tensor in split_by_output(graph, outputs)[0].initializers:
            if len(tensor.raw_data) >= SHARED_BYTES:
                kind = repr((tensor.data_type, list(tensor.dims))).encode()
                content = hashlib.sha256(kind + tensor.raw_data).digest()
                if content in self.shared:
                    names[tensor.name] = self.shared[content]
                    graph.initializer.remove(tensor)
                else:
                    self.shared[content] = prefix + tensor.name
        rename_tensors(graph, lambda name: names.get(name, prefix + name), prefix)
        return split_by_output(graph, [[prefix + name for name in group] for group in outputs])

    def carry(self, place: int, nodes: Nodes, pieces: Pieces, state: dict[str, str]) -> str:
        """The pooled vectors of the exits so far, where this or a later off-ramp is on."""
        layer = self.exit_layers[place]
        then, skip = nodes.branch(), nodes.branch()
        then.extend(pieces)
        before = state.get(PAST) or skip("Expand", skip.constant([0.0], TensorProto.FLOAT), skip.constant([0, 0]))
        (vectors,) = nodes.choose(
            self.needed[place], then, [f"layer_{layer}_{next_name(PAST)}"], skip, [before], [(TensorProto.FLOAT, 2)]
        )
        return vectors

    def evaluate(
        self, place: int, nodes: Nodes, off_ramp: Pieces, state: dict[str, str]
    ) -> tuple[Evaluation, dict[str, str]]:
        """The off-ramp, where it is on, and the state with what the criterion keeps."""
        prefix = f"layer_{self.exit_layers[place]}_"
        then, skip = nodes.branch(), nodes.branch()
        then.extend(off_ramp)
        score = f"{prefix}score"
        if self.compares:
            score = f"{prefix}first_score"
            if place:
                score = then("Where", self.before[place - 1], f"{prefix}score", score)
        exiting = then("Less", score, self.limits[place])
        kept = {name: prefix + next_name(name) for name in self.memory}
        if self.patience > 1:
            run = then("Add", state[RUN_LENGTH], then.constant([1]))
            kept[RUN_LENGTH] = then("Mul", run, then("Cast", exiting, to=TensorProto.INT64))
            exiting = then("GreaterOrEqual", kept[RUN_LENGTH], then.constant([self.patience]))
        count = then("ReduceSum", then("Cast", exiting, to=TensorProto.INT64), keepdims=1)
        active = then("Less", count, then("Shape", exiting))
        some = then("And", active, then("Greater", count, then.constant([0])))
        computed = [f"{prefix}logits", exiting, some, active, *kept.values()]
        skipped = [
            skip("Expand", skip.constant([0.0], TensorProto.FLOAT), skip.constant([0, 0])),
            skip("Expand", skip.constant([0], TensorProto.BOOL), skip.constant([0])),
            skip.constant([0], TensorProto.BOOL),
            skip.constant([1], TensorProto.BOOL),
            *(state[name] for name in kept),
        ]
        flag = (TensorProto.BOOL, 1)
        kinds = [STATE["answers"], flag, flag, flag, *self.memory.values()]
        logits, exiting, some, active, *memory = nodes.choose(self.on[place], then, computed, skip, skipped, kinds)
        return Evaluation(logits, exiting, some, active), state | dict(zip(kept, memory, strict=True))

    def drop_exited(self, layer: int, nodes: Nodes, evaluation: Evaluation, state: dict[str, str]) -> dict[str, str]:
        """The state of the active rows, and the answers of those that exit, where some of them do."""
        then, skip = nodes.branch(), nodes.branch()
        axis = then.constant([0])
        exited = then("Squeeze", then("NonZero", evaluation.exiting), axis)
        active = then("Squeeze", then("NonZero", then("Not", evaluation.exiting)), axis)
        places = then("Gather", state["rows"], exited)
        layers = then("Expand", then.constant([layer]), then("Shape", exited))
        made = {
            "answers": then("ScatterND", state["answers"], places, then("Gather", evaluation.logits, exited)),
            "answer_layers": then("ScatterND", state["answer_layers"], places, layers),
        }
        # Rows and columns at once: as rows of (rows * width, …).
        zero, one = then.constant(0), then.constant(1)
        width = then("Shape", state["attention_mask"], start=1, end=2)
        mask = then("Gather", state["attention_mask"], active)
        columns = then("Range", zero, then("Squeeze", width), one)
        columns = then("Range", zero, then("Squeeze", self.width_of(then, mask, columns)), one)
        cells = then("Add", then("Unsqueeze", then("Mul", active, width), then.constant([1])), columns)
        for name in ("hidden", "attention_mask"):
            shape = then("Concat", then.constant([-1]), then("Shape", state[name], start=2), axis=0)
            made[name] = then("Gather", then("Reshape", state[name], shape), cells)
        names = [name for name in (*STATE, PAST, *self.memory) if name in state]
        made |= {name: then("Gather", state[name], active) for name in names if name not in made}
        kinds = {PAST: (TensorProto.FLOAT, 2)} | STATE | self.memory
        found = nodes.choose(
            evaluation.some,
            then,
            [made[name] for name in names],
            skip,
            [state[name] for name in names],
            [kinds[name] for name in names],
        )
        return dict(zip(names, found, strict=True))
