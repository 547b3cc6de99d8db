"""Scheduling of the predictor: full batches in all layers, of rows from different batches."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from ..models.exit_answers_deebert import usual_size
from ..models.exit_plan_deebert import ExitPlan
from ..models.layer_state_deebert import LayerState
from .predictions import Answers
from .tokenizing import Row


@dataclass
class Group:
    """
    Rows that go through a layer together.

    Args:
        state ([`LayerState`]): Their states.
        rows (`list[Row]`): The rows, in the same order: what the host knows of them.
    """

    state: LayerState
    rows: list[Row]

    def select(self, places: list[int]) -> "Group":
        """The rows at `places`, without columns of padding that they do not need."""
        rows = [self.rows[place] for place in places]
        index = torch.tensor(places).to(self.state.mask.device, non_blocking=True)
        state = self.state.resize(usual_width(self.state, rows)).select(index)
        return Group(fit(state, rows), rows)

    def split(self, count: int) -> "tuple[Group, Group]":
        """The first `count` rows, and the others: as views, because they are copied when they are joined."""
        parts = slice(count), slice(count, None)
        first, others = (Group(self.state.select(part), self.rows[part]) for part in parts)  # type: ignore[arg-type]
        return first, others

    @staticmethod
    def join(groups: "list[Group]") -> "Group":
        """Groups at the same layer, one behind the other, at the width of the longest row."""
        rows = [row for group in groups for row in group.rows]
        if len(groups) == 1:
            return Group(fit(groups[0].state, rows), rows)
        width = usual_width(groups[0].state, rows)
        state = type(groups[0].state).cat([group.state.resize(width) for group in groups])
        state.active = None  # exited rows were dropped: all of these are active
        return Group(fit(state, rows), rows)


def fit(state: LayerState, rows: list[Row]) -> LayerState:
    """The state at the width that its rows need."""
    width = usual_width(state, rows)
    # What the host knows about padding need not be looked up on the device.
    padding = any(row.length < width or row.mask is not None for row in rows)
    return replace(state.resize(width), padding=padding)


def usual_width(state: LayerState, rows: list[Row]) -> int:
    """The width of the longest row, rounded up to a usual size where the device likes that."""
    return usual_size(max(row.length for row in rows), state.mask.device)


class Waiting:
    """The queue of rows behind one layer, first in, first out."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self.rows = 0
        self.since = 0  # how many rows of the input had begun when the first of these came

    def add(self, group: Group, begun: int) -> None:
        if not self.rows:
            self.since = begun
        self.groups.append(group)
        self.rows += len(group.rows)

    def take(self, count: int, begun: int) -> Group:
        """The first `count` rows, or all if there are fewer."""
        taken = []
        while count and self.groups:
            group = self.groups.pop(0)
            if len(group.rows) > count:
                group, others = group.split(count)
                self.groups.insert(0, others)
            taken.append(group)
            count -= len(group.rows)
            self.rows -= len(group.rows)
        # The rows that remain came with the last group, just now.
        self.since = begun
        return Group.join(taken)


class Scheduler:
    """
    Keeps one queue a layer and always runs the deepest layer for which a full batch is queued; without one, a new
    batch begins. So no queue ever holds a full batch while another begins: at most `batch_size * layers` rows are
    active. When the input has ended, the queues are emptied from the shallowest layer to the deepest, so that each
    layer runs at most one batch that is not full.

    A layer that few rows reach might never have a full batch, and its rows would hold up an endless stream: a queue
    whose first row came `patience` rows of the input ago is run as it is.

    Args:
        model (`PreTrainedModel`): An early-exit classifier.
        plan ([`ExitPlan`]): Which rows exit where.
        batch_size (`int`): Rows that go through a layer together.
        patience (`int`): Rows of the input.
    """

    def __init__(self, model: Any, plan: ExitPlan, batch_size: int, patience: int):
        self.model = model
        self.plan = plan
        self.evaluated, self.carried = plan.evaluated, plan.carried
        self.batch_size = batch_size
        self.patience = patience
        self.waiting = {layer: Waiting() for layer in range(plan.final_layer)}
        self.begun = 0

    @property
    def active(self) -> int:
        """Number of active rows."""
        return sum(waiting.rows for waiting in self.waiting.values())

    def run(self, batches: Iterable[list[Row]]) -> Iterator[Answers]:
        """Runs all batches, in the order given; answers come as they are found."""
        for rows in batches:
            self.begun += len(rows)
            yield from self.begin(rows)
            while (layer := first_of(self.full(), self.overdue())) is not None:
                yield from self.go_on(layer)
        while (layer := first_of(self.full(), self.shallowest())) is not None:
            yield from self.go_on(layer)

    def full(self) -> int | None:
        """The deepest layer with a full batch in its queue."""
        return next((layer for layer in reversed(self.waiting) if self.waiting[layer].rows >= self.batch_size), None)

    def overdue(self) -> int | None:
        """The shallowest layer whose queue is due."""
        late = self.begun - self.patience
        return next((layer for layer, queue in self.waiting.items() if queue.rows and queue.since <= late), None)

    def shallowest(self) -> int | None:
        """The shallowest layer with rows in its queue."""
        return next((layer for layer, queue in self.waiting.items() if queue.rows), None)

    def deepest(self) -> int | None:
        """The deepest layer with rows in its queue."""
        return next((layer for layer in reversed(self.waiting) if self.waiting[layer].rows), None)

    def begin(self, rows: list[Row]) -> list[Answers]:
        """Embeds new rows, and evaluates an exit there or runs the first layer."""
        try:
            group = self.embed(rows)
            return self.evaluate(group) if 0 in self.evaluated else self.apply(self.carry(group))
        except Exception as error:
            return [failure(rows, 0, error)]

    def go_on(self, layer: int) -> list[Answers]:
        """Runs rows of the queue behind `layer` through the next."""
        group = self.waiting[layer].take(self.batch_size, self.begun)
        try:
            return self.apply(group)
        except Exception as error:
            return [failure(group.rows, layer, error)]

    @torch.no_grad()
    def embed(self, rows: list[Row]) -> Group:
        if self.model.training:
            raise ValueError("the model is in training mode, where no row exits early: call `model.eval()` first.")
        inputs = {
            name: tensor.to(self.model.device, non_blocking=True)
            for name, tensor in pad(rows, self.model.config.pad_token_id or 0).items()
        }
        state, _ = self.model.begin(**inputs)
        places = torch.tensor([row.index for row in rows]).to(state.mask.device, non_blocking=True)
        return Group(fit(replace(state, rows=places), rows), rows)

    @torch.no_grad()
    def apply(self, group: Group) -> list[Answers]:
        """Runs a group through its next layer, and evaluates the exit behind it."""
        state = group.state
        evaluate = state.layer + 1 in self.evaluated
        self.model.advance(state, evaluate)
        if evaluate:
            return self.evaluate(group)
        self.waiting[state.layer].add(self.carry(group), self.begun)
        return []

    @torch.no_grad()
    def carry(self, group: Group) -> Group:
        """Keeps what later off-ramps read of an exit that is not evaluated."""
        if group.state.layer in self.carried:
            self.model.carry_exit(group.state)
        return group

    @torch.no_grad()
    def evaluate(self, group: Group) -> list[Answers]:
        """Rows that exit behind their layer get their answers, the others are queued there."""
        state = group.state
        candidate = self.plan.scale(self.model.evaluate_exit(state))
        exiting = self.plan.exiting(state, candidate)
        # One transfer, the layer's one synchronisation: which rows exit, and the logits.
        packed = torch.cat([exiting.float().unsqueeze(1), candidate.logits.float()], 1).cpu()
        exiting, logits = packed[:, 0].bool(), packed[:, 1:]
        exited = exiting.nonzero()[:, 0].tolist()
        if len(exited) < len(group.rows):
            active = group.select((~exiting).nonzero()[:, 0].tolist()) if exited else group
            self.waiting[state.layer].add(active, self.begun)
        return [Answers([group.rows[place].index for place in exited], state.layer, logits[exiting])] if exited else []


def pad(rows: list[Row], padding: int) -> dict[str, torch.Tensor]:
    """The rows as tensors `(rows, width)`, with padding on the right."""

    def stack(values: list[torch.Tensor], value: int = 0) -> torch.Tensor:
        return pad_sequence(values, batch_first=True, padding_value=value)

    names = rows[0].tokens
    inputs = {name: stack([row.tokens[name] for row in rows], padding if name == "input_ids" else 0) for name in names}
    masks = [torch.ones(row.length, dtype=torch.long) if row.mask is None else row.mask for row in rows]
    return inputs | {"attention_mask": stack(masks)}


def first_of(*layers: int | None) -> int | None:
    """The first that is a layer; 0 is one."""
    return next((layer for layer in layers if layer is not None), None)


def failure(rows: list[Row], layer: int, error: Exception) -> Answers:
    """The answer to rows that the model failed on."""
    indices = sorted(row.index for row in rows)
    reported = RuntimeError(f"The model failed in layer {layer + 1} on the samples {indices} of the input: {error}")
    reported.__cause__ = error
    return Answers(indices, error=reported)
