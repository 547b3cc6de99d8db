"""The plan of a call: its arguments over the configuration's defaults."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from transformers.utils import logging

from .configuration_early_exit_deebert import check_exit_layer, check_temperatures
from .exit_criteria_deebert import (
    ExitCriterion,
    check_fits_problem,
    check_threshold_values,
    check_thresholds,
    read_criterion,
)
from .exit_scores_deebert import ExitCandidate, Score, checked_score, find_score
from .layer_state_deebert import LayerState


logger = logging.get_logger(__name__)

RUN_LENGTH = "exit_run_length"  # of consecutive exits below the threshold, in a row's memory


@dataclass(frozen=True)
class ExitPlan:
    """
    What one call does.

    Args:
        score (`Callable`, *optional*): Of the exit criterion; `None`: no sample exits before `final_layer`.
        thresholds (`dict[int, float]`): Of the off-ramps that are switched on, by layer.
        patience (`int`): Consecutive evaluated exits with a score below their threshold that it takes.
        final_layer (`int`): The layer behind which every sample that is still active exits.
        last_layer (`int`): Where the loop ends.
        exit_layers (`tuple[int, ...]`): The layers that an exit stands behind, the head's last.
        all_off_ramps (`bool`): Whether all exits are evaluated and their logits kept.
        compact (`bool`): Whether exited rows are dropped from the batch.
        temperatures (`dict[int, float]`, *optional*): Of the off-ramps, by layer; `None`: all 1.
        past (`bool`): Whether off-ramps read the pooled vectors of those before them.
    """

    score: Score | None
    thresholds: Mapping[int, float]
    patience: int
    final_layer: int
    last_layer: int
    exit_layers: tuple[int, ...]
    all_off_ramps: bool
    compact: bool
    temperatures: Mapping[int, float] | None
    past: bool

    @property
    def evaluated(self) -> frozenset[int]:
        """Layers whose exit is evaluated."""
        return frozenset(self.exit_layers) if self.all_off_ramps else self.possible_exits

    @property
    def possible_exits(self) -> frozenset[int]:
        """Layers where samples may exit."""
        return frozenset([*self.thresholds, self.final_layer])

    @property
    def carried(self) -> frozenset[int]:
        """Layers whose exit is not evaluated, but read by a later off-ramp that is."""
        if not self.past:
            return frozenset()
        evaluated = self.evaluated - {self.exit_layers[-1]}
        last = max(evaluated, default=0)
        return frozenset(layer for layer in self.exit_layers if layer < last) - evaluated

    def scale(self, candidate: ExitCandidate) -> ExitCandidate:
        """The candidate with its logits divided by the off-ramp's temperature (Guo et al., 2017)."""
        temperature = None if self.temperatures is None else self.temperatures.get(candidate.layer)
        if temperature is None or candidate.logits is None:
            return candidate
        return replace(candidate, logits=candidate.logits / temperature)

    def exiting(self, state: LayerState, candidate: ExitCandidate) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(rows,)`: which of the active rows exit behind the state's layer."""
        if state.layer == self.final_layer:
            return state.active_mask()
        below = checked_score(self.score, candidate) < self.thresholds[state.layer]
        if self.patience > 1:
            run = candidate.memory.get(RUN_LENGTH)
            run = below.long() if run is None else (run + 1) * below
            candidate.memory[RUN_LENGTH] = run
            below = run >= self.patience
        return below if state.active is None else below & state.active


def call_temperatures(config, training: bool) -> dict[int, float] | None:
    """The off-ramps' temperatures in a call, by layer; `None`: all 1, as always in training, for stage 2's loss."""
    if training or config.off_ramp_temperatures is None:
        return None
    layers = config.exit_layers[:-1]
    return dict(zip(layers, check_temperatures(config.off_ramp_temperatures, len(layers)), strict=True))


def choose_settings(config, training: bool, early_exit_entropy, exit_criterion, exit_layer) -> dict:
    """The one exit setting that holds: the call's, otherwise, in eval mode, the configuration's; empty without any."""
    given = given_settings(early_exit_entropy, exit_criterion, exit_layer)
    if training and given:
        ((name, value), *_) = given.items()
        raise ValueError(f"`{name}` ({value!r}) cannot be used in training mode: call `model.eval()` first.")
    if not training and not given:
        given = given_settings(config.early_exit_entropy, config.exit_criterion, config.exit_layer)
    return given


def given_settings(early_exit_entropy=None, exit_criterion=None, exit_layer=None) -> dict:
    """The settings that are not `None`; raises `ValueError` for more than one of them."""
    settings = {
        "early_exit_entropy": early_exit_entropy,
        "exit_criterion": exit_criterion,
        "exit_layer": exit_layer,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    if len(given) > 1:
        named = " and ".join(f"`{name}` ({value!r})" for name, value in given.items())
        raise ValueError(f"{named} exclude each other: set one of them.")
    return given


def make_exit_plan(
    config,
    training: bool,
    early_exit_entropy=None,
    exit_criterion=None,
    exit_layer=None,
    output_off_ramp_logits=None,
    output_all_layers: bool = False,
) -> ExitPlan:
    """
    Makes the plan of a call: its explicit arguments come first, then, in eval mode, the configuration's defaults.

    Args:
        config ([`EarlyExitConfigMixin`]): Holds the defaults.
        training (`bool`): Whether the model is in training mode, where no sample exits early.
        early_exit_entropy, exit_criterion, exit_layer, output_off_ramp_logits:
            The call's arguments, `None` where not given.
        output_all_layers (`bool`): Whether hidden states or attentions of all layers are wanted.

    Raises:
        ValueError: for arguments that are out of range, exclude each other or do not fit the model.
    """
    settings = choose_settings(config, training, early_exit_entropy, exit_criterion, exit_layer)
    if output_off_ramp_logits is None:
        output_off_ramp_logits = config.output_off_ramp_logits and not training
    exit_layers = config.exit_layers
    depth = exit_layers[-1]
    final_layer = depth
    if "exit_layer" in settings:
        final_layer = check_exit_layer(settings["exit_layer"], exit_layers)
    criterion, thresholds = find_thresholds(config, settings)
    if (thresholds or final_layer < depth) and not config.off_ramps_trained:
        logger.warning_once(
            "This model is to exit early, but its off-ramps have not been trained: their answers are arbitrary. "
            "Train them with `OffRampTrainer`, or set `config.off_ramps_trained = True` if you trained them otherwise."
        )
    every_layer = output_off_ramp_logits or output_all_layers
    return ExitPlan(
        score=find_score(criterion.score) if thresholds else None,
        thresholds=thresholds,
        patience=criterion.patience if thresholds else 1,
        final_layer=final_layer,
        last_layer=depth if every_layer else final_layer,
        exit_layers=exit_layers,
        all_off_ramps=bool(output_off_ramp_logits),
        compact=bool(thresholds) and not every_layer,
        temperatures=call_temperatures(config, training),
        past=config.off_ramp_context == "past",
    )


def find_thresholds(config, settings: dict) -> tuple[ExitCriterion | None, dict[int, float]]:
    """The criterion of the settings, and the thresholds of the off-ramps that it leaves switched on, by layer."""
    criterion = read_settings(settings)
    if criterion is None:
        return None, {}
    ((name, _),) = settings.items()
    layers = config.exit_layers[:-1]
    values = check_thresholds(criterion.threshold, len(layers), name)
    thresholds = {layer: value for layer, value in zip(layers, values, strict=True) if value > 0}
    if thresholds:
        check_fits_problem(config, criterion.score, name)
    return criterion, thresholds


def read_settings(settings: dict) -> ExitCriterion | None:
    """The exit criterion of a call's or a configuration's settings; `None` without one."""
    if "early_exit_entropy" in settings:
        check_threshold_values(settings["early_exit_entropy"], "early_exit_entropy")
        return ExitCriterion("entropy", settings["early_exit_entropy"])
    return read_criterion(settings["exit_criterion"]) if "exit_criterion" in settings else None
