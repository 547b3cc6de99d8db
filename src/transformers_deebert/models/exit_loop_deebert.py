"""The layer loop, written once for all families and runtimes, as functions over a `LayerRunner`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from .exit_answers_deebert import Compactor, ExitAnswers
from .exit_plan_deebert import ExitPlan
from .exit_scores_deebert import ExitCandidate
from .layer_state_deebert import LayerState, rotate_columns, rotation_back


class LayerRunner(Protocol):
    """What the loop, the scheduler of the predictor and the exit table need of a model, on whatever runtime it is."""

    @property
    def token_inputs(self) -> tuple[str, ...]:
        """Names of the token arguments that [`begin`] takes, without the mask."""

    def max_tokens(self) -> int | None:
        """Number of tokens that its position table holds, `None` without such a table."""

    def table_sizes(self) -> dict[str, int]:
        """Rows of the tables that ids are looked up in, by the token argument: `input_ids`, `token_type_ids`."""

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers that an exit stands behind, the head's last; 0: the embeddings."""

    def make_plan(self, **settings) -> ExitPlan:
        """The plan of a call: [`make_exit_plan`] of its settings, as the runtime needs it."""

    def begin(self, **inputs: torch.Tensor) -> tuple[LayerState, torch.Tensor | None]:
        """The state in front of layer 1, and the columns that each row was rotated by, `None` where it was not."""

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        """
        Applies one layer, in place; `evaluate`: whether its exit will be evaluated, for runtimes that compute both at
        once.
        """

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        """The exit behind the last applied layer."""

    def carry_exit(self, state: LayerState) -> object:
        """For an exit behind the last applied layer that is not evaluated: keeps what later exits read of it."""

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        """What off-ramps and head read of states `(rows, tokens, hidden)`."""


def has_exits(model) -> bool:
    """Whether a model is a classifier with exits, on whatever runtime: not a stock model, nor a base model."""
    return bool(getattr(model, "has_head", False)) and hasattr(model, "exit_layers")


@dataclass
class LoopOutput:
    """
    What a run of the loop gives.

    Args:
        answers ([`ExitAnswers`]): Of all rows.
        off_ramp_logits (`tuple[torch.Tensor]`, *optional*): Of all exits, with `plan.all_off_ramps`.
        hidden_states (`tuple[torch.Tensor]`, *optional*): In front of layer 1 and behind every layer.
        attentions (`tuple[torch.Tensor]`, *optional*): Of every layer.
    """

    answers: ExitAnswers
    off_ramp_logits: tuple[torch.Tensor, ...] | None
    hidden_states: tuple[torch.Tensor, ...] | None
    attentions: tuple[torch.Tensor, ...] | None = None


def run_call(
    runner: LayerRunner,
    plan: ExitPlan,
    inputs: dict,
    keep_states: bool = False,
    keep_all_states: bool = False,
    collect_attentions: Callable | None = None,
) -> LoopOutput:
    """
    From the token arguments of a call to its answers, tokens in the places where the input had them.

    Args:
        runner ([`LayerRunner`]): The model.
        plan ([`ExitPlan`]): Which samples exit where.
        inputs (`dict`): The token arguments of `forward`.
        keep_states (`bool`): Whether the rows' states and pooled vectors are wanted besides their logits.
        keep_all_states (`bool`): Whether the states in front of and behind all layers are wanted.
        collect_attentions (`Callable`, *optional*):
            Calls a function without arguments and returns its output with the attentions of all layers.
    """
    state, columns = runner.begin(**inputs)
    empty = state.rows.shape[0] == 0
    mask = state.mask
    if empty:
        state, plan = stand_in(state), replace(plan, thresholds={}, compact=False)

    def run() -> LoopOutput:
        return run_layers(runner, state, plan, keep_states, keep_all_states)

    output = run() if collect_attentions is None else collect_attentions(run)
    if empty:
        drop_rows(output)
    elif keep_states or keep_all_states or output.attentions:
        restore_token_order(output, mask, columns, exits=bool(plan.thresholds))
    return output


def run_layers(
    runner: LayerRunner, state: LayerState, plan: ExitPlan, keep_states: bool, keep_all_states: bool
) -> LoopOutput:
    """The layer loop, from the state in front of layer 1; arguments as of [`run_call`]."""
    answers = ExitAnswers(state, runner.readout if keep_states else None)
    hidden_states = [state.hidden] if keep_all_states else None
    compactor = Compactor(state) if plan.compact else None
    if compactor is not None:
        state = compactor.compact(state)
    off_ramp_logits = []
    evaluated, possible_exits, carried = plan.evaluated, plan.possible_exits, plan.carried
    while True:
        if state.layer in evaluated:
            candidate = plan.scale(runner.evaluate_exit(state))
            if plan.all_off_ramps:
                off_ramp_logits.append(candidate.logits)
            if state.layer in possible_exits:
                if state.layer == plan.final_layer and answers.exit_layers is None:
                    answers.record_all(state, candidate)
                else:
                    state = record_exits(answers, compactor, state, plan, candidate)
        elif state.layer in carried:
            runner.carry_exit(state)
        if state.layer == plan.last_layer or (compactor is not None and compactor.all_exited):
            break
        runner.advance(state, state.layer + 1 in evaluated)
        if keep_all_states:
            hidden_states.append(state.hidden)
    if keep_all_states:
        hidden_states[-1] = runner.readout(hidden_states[-1])
    return LoopOutput(
        answers=answers,
        off_ramp_logits=tuple(off_ramp_logits) if plan.all_off_ramps else None,
        hidden_states=tuple(hidden_states) if keep_all_states else None,
    )


def record_exits(
    answers: ExitAnswers, compactor: Compactor | None, state: LayerState, plan: ExitPlan, candidate: ExitCandidate
) -> LayerState:
    """Stores the answers of the rows that exit behind the state's layer; the state with the others active."""
    exiting = plan.exiting(state, candidate)
    if compactor is not None and not compactor.note_exits(exiting):
        return state
    if compactor is not None and compactor.all_exited:
        answers.record_rest(state, candidate, exiting)
        return state
    answers.record(state, candidate, exiting)
    state.active = state.active_mask() & ~exiting
    return state if compactor is None else compactor.compact(state)


def stand_in(state: LayerState) -> LayerState:
    """For the empty batch: layers cannot run on no rows, so one row runs whose answers are dropped."""
    _, width, size = state.hidden.shape
    hidden = state.hidden.new_zeros(1, max(width, 1), size)
    return LayerState.begin(hidden, torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device))


def drop_rows(output: LoopOutput) -> None:
    """Cuts everything to no rows."""
    output.answers.keep_none()
    for name in ("off_ramp_logits", "hidden_states", "attentions"):
        tensors = getattr(output, name)
        if tensors:
            setattr(output, name, tuple(None if tensor is None else tensor[:0] for tensor in tensors))


def restore_token_order(output: LoopOutput, mask: torch.Tensor, columns: torch.Tensor | None, exits: bool) -> None:
    """Puts the tokens of all states back to their columns in the input; `exits`: zeroes padding, as rows exited."""
    answers = output.answers
    if answers.hidden is not None and exits:
        answers.hidden = answers.hidden * mask.unsqueeze(-1)
    if columns is None:
        return
    columns = rotation_back(columns)
    if answers.hidden is not None:
        answers.hidden = rotate_columns(answers.hidden, columns)
    if output.hidden_states:
        output.hidden_states = tuple(rotate_columns(hidden, columns) for hidden in output.hidden_states)
    if output.attentions:
        output.attentions = tuple(
            # (rows, heads, queries, keys): both the queries and the keys were rotated.
            rotate_columns(rotate_columns(weights.transpose(1, 2), columns).transpose(1, 3), columns).permute(
                0, 2, 3, 1
            )
            for weights in output.attentions
        )
