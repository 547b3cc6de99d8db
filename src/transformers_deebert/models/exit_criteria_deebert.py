"""Who leaves where: entropy, exit criteria, and the plan that a call's arguments and the configuration make."""

from dataclasses import dataclass, field

import torch
from transformers.utils import logging

from .configuration_early_exit_deebert import check_exit_layer, check_temperatures, check_thresholds
from .layer_state_deebert import LayerState


logger = logging.get_logger(__name__)


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """
    Entropy of the predictions in nats (DeeBERT, section 3.2), computed in float32 from `log_softmax`, so that it is
    finite for every finite input, half precision included.

    Args:
        logits (`torch.FloatTensor` of shape `(…, labels)`): Scores before softmax.

    Returns:
        `torch.FloatTensor` of shape `(…)`, between 0 and ln(labels); NaN where a logit is not finite.
    """
    return negative_entropy(logits).neg().clamp(min=0)


def negative_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Sum of p ln p, before rounding errors above 0 are cut off."""
    log_probabilities = logits.float().log_softmax(-1)
    return log_probabilities.exp().mul(log_probabilities).sum(-1)


def call_temperatures(config, training: bool) -> tuple[float, ...] | None:
    """The off-ramps' temperatures in a call; `None`: all 1, as always in training, for the loss of stage 2."""
    if training or config.off_ramp_temperatures is None:
        return None
    return check_temperatures(config.off_ramp_temperatures, config.num_hidden_layers - 1)


def scale_logits(logits: torch.Tensor, temperatures: tuple[float, ...] | None, layer: int) -> torch.Tensor:
    """Logits `(rows, labels)` of off-ramp `layer` (1 … L-1), divided by its temperature (Guo et al., 2017)."""
    return logits if temperatures is None else logits / temperatures[layer - 1]


@dataclass
class ExitCandidate:
    """
    One layer's answers, put before an exit criterion.

    Args:
        logits (`torch.FloatTensor` of shape `(rows, labels)`): What the off-ramp says, its temperature applied.
        pooled (`torch.FloatTensor` of shape `(rows, hidden)`): The vector its classifier read.
        memory (`dict[str, torch.Tensor]`):
            The criterion's own `(rows, …)` tensors, empty at the first layer. What it puts here it finds again at the
            next consulted layer, for the rows that are left.
    """

    logits: torch.Tensor
    pooled: torch.Tensor
    memory: dict[str, torch.Tensor] = field(default_factory=dict)


class ExitCriterion:
    """Decides row by row who leaves at an off-ramp. Subclasses implement [`__call__`]."""

    def consults(self, layer: int) -> bool:
        """Whether any row could leave at `layer` (1 … L-1); its off-ramp is not even computed otherwise."""
        return True

    def __call__(self, candidate: ExitCandidate, layer: int) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(rows,)`: which rows leave at `layer`. A row's answer is its own affair."""
        raise NotImplementedError


class EntropyCriterion(ExitCriterion):
    """
    A row leaves when the entropy of its prediction is below the layer's threshold (DeeBERT, Algorithm 1), strictly. A
    row with a logit that is not finite has no entropy and never leaves early.

    Args:
        thresholds (`tuple[float, ...]`): One for each off-ramp, in nats.
    """

    def __init__(self, thresholds: tuple[float, ...]):
        self.thresholds = thresholds

    def consults(self, layer: int) -> bool:
        return self.thresholds[layer - 1] > 0

    def __call__(self, candidate: ExitCandidate, layer: int) -> torch.Tensor:
        # Of NaN, the entropy of logits that are not finite, this is False: the row goes on. The layer is only
        # consulted for a threshold above 0, where this equals `entropy(logits) < threshold` with two operations less.
        return negative_entropy(candidate.logits) > -self.thresholds[layer - 1]


@dataclass(frozen=True)
class ExitPlan:
    """
    What one call does.

    Args:
        criterion ([`ExitCriterion`], *optional*): Who leaves before `answer_layer`; `None`: nobody.
        answer_layer (`int`): Where every row that is left gets its answer.
        last_layer (`int`): Where the loop ends.
        all_off_ramps (`bool`): Whether the logits of all exits are kept.
        compact (`bool`): Whether rows that left are dropped from the batch.
        temperatures (`tuple[float, ...]`, *optional*): Of the L-1 off-ramps; `None`: all 1.
    """

    criterion: ExitCriterion | None
    answer_layer: int
    last_layer: int
    all_off_ramps: bool
    compact: bool
    temperatures: tuple[float, ...] | None

    @property
    def stops(self) -> frozenset[int]:
        """Layers where rows may leave."""
        early = range(1, self.answer_layer) if self.criterion is not None else ()
        return frozenset([self.answer_layer, *(layer for layer in early if self.criterion.consults(layer))])

    def leaving(self, state: LayerState, candidate: ExitCandidate) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(rows,)`: which of the rows that wait leave behind the state's layer."""
        if state.layer == self.answer_layer:
            return state.waiting_mask()
        leave = self.criterion(candidate, state.layer)
        return leave if state.waiting is None else leave & state.waiting


def make_exit_plan(
    config,
    training: bool,
    early_exit_entropy=None,
    exit_layer=None,
    output_off_ramp_logits=None,
    output_all_layers: bool = False,
) -> ExitPlan:
    """
    Makes the plan of a call: its explicit arguments come first, then, in eval mode, the configuration's defaults.

    Args:
        config ([`EarlyExitConfigMixin`]): Holds the defaults.
        training (`bool`): Whether the model is in training mode, where nobody exits early.
        early_exit_entropy, exit_layer, output_off_ramp_logits: The call's arguments, `None` where not given.
        output_all_layers (`bool`): Whether hidden states or attentions of all layers are asked for.

    Raises:
        ValueError: for arguments that are out of range, exclude each other or do not fit the model.
    """
    if training and not (early_exit_entropy is None and exit_layer is None):
        name, value = (
            ("exit_layer", exit_layer) if early_exit_entropy is None else ("early_exit_entropy", early_exit_entropy)
        )
        raise ValueError(f"`{name}` ({value!r}) cannot be used in training mode: call `model.eval()` first.")
    if not training and early_exit_entropy is None and exit_layer is None:
        early_exit_entropy, exit_layer = config.early_exit_entropy, config.exit_layer
    if early_exit_entropy is not None and exit_layer is not None:
        raise ValueError(
            f"`early_exit_entropy` ({early_exit_entropy!r}) and `exit_layer` ({exit_layer!r}) exclude each other: "
            "set one of them."
        )
    if output_off_ramp_logits is None:
        output_off_ramp_logits = config.output_off_ramp_logits and not training

    depth = config.num_hidden_layers
    answer_layer = depth if exit_layer is None else check_exit_layer(exit_layer, depth)
    criterion = None
    if early_exit_entropy is not None:
        thresholds = check_thresholds(early_exit_entropy, depth - 1)
        if any(thresholds):
            check_entropy_defined(config, early_exit_entropy)
            criterion = EntropyCriterion(thresholds)
    if (criterion is not None or answer_layer < depth) and not config.off_ramps_trained:
        logger.warning_once(
            "This model is asked to exit early, but its off-ramps have not been trained: their answers are arbitrary. "
            "Train them with `OffRampTrainer`, or set `config.off_ramps_trained = True` if you trained them otherwise."
        )
    every_layer = output_off_ramp_logits or output_all_layers
    return ExitPlan(
        criterion=criterion,
        answer_layer=answer_layer,
        last_layer=depth if every_layer else answer_layer,
        all_off_ramps=bool(output_off_ramp_logits),
        compact=criterion is not None and not every_layer,
        temperatures=call_temperatures(config, training),
    )


def check_entropy_defined(config, early_exit_entropy) -> None:
    """Raises `ValueError` for models that do not choose one of several classes."""
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(
            f"`early_exit_entropy` ({early_exit_entropy!r}) needs a model that chooses one of several classes, this "
            f"one has num_labels={config.num_labels} and problem_type={config.problem_type!r}: use `exit_layer`, or 0 "
            "for the full depth."
        )
