"""What a model card shows: a dataclass, from a configuration, an exit table and a choice, to and from JSON."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..analysis.choice import ThresholdChoice
from ..analysis.exit_curve import thresholds_by_saving
from ..analysis.exit_table import ExitTable
from ..analysis.metrics import ComputeMetric
from ..analysis.sweep import OperatingPoint, layer_scores, sweep_thresholds
from ..analysis.tables import threshold_text, write_json
from ..analysis.timing import RuntimeFigure


Table = list[dict[str, Any]]


@dataclass(kw_only=True)
class CardData:
    """
    The numbers behind a model card, all of them optional; what is not known is left out of the card. Scores of the
    metric, savings and shares are fractions.

    Args:
        model_name, model_class, language, example (`str`): The example is a sentence.
        layers (`int`), exit_layers (`list[int]`): Depth, and the layers that an exit stands behind.
        off_ramp_pooling, off_ramp_head, off_ramp_context (`str`), off_ramps_trained (`bool`),
        off_ramp_temperatures (`list[float]`):
            As in the configuration; `off_ramps_trained=False` for a model that stage 2 has not seen.
        labels (`list[str]`), max_length (`int`), seed (`int`): Names of the classes; longest input in tokens.
        default_threshold (`float` or `list[float]`), default_criterion (`dict`):
            The checkpoint's own S, or its `exit_criterion`.
        base_model (`dict`): `name`, and `hub_id` where it has one.
        data (`dict`): `name`, `hub_id` where it has one, `description`, `rows` (list of `name`, `rows`, `use`).
        training (`dict`): `backbone` and `off_ramps`, each with the keys of `model_card.HYPER_PARAMETERS`.
        metric (`str`), rows_scored (`int`), full_depth (`float`), layer_scores (`list[float]`): The head's last.
        trade_off (`list[dict]`): With the keys of `model_card.TRADE_OFF_COLUMNS`.
        trade_off_criterion (`dict`): `score` and `patience` of the trade-off's thresholds; by default the entropy's.
        chosen (`dict`): The same at the threshold chosen, `how` (a sentence or two), and `criterion` where its score
            is not the entropy.
        threshold_choice (`dict`): [`ThresholdChoice.to_dict`].
        timing (`dict`): `batch_size`, `rows`, `repeats`, `control_gap`.
        machine (`dict`), limits (`list[str]`), packages (`dict`): `versions`, and `sha256` of files.
        further (`dict`): What a file of numbers holds besides; it is written again.
    """

    model_name: str | None = None
    model_class: str | None = None
    language: str | None = None
    example: str | None = None
    layers: int | None = None
    exit_layers: list[int] | None = None
    off_ramp_pooling: str | None = None
    off_ramp_head: str | None = None
    off_ramp_context: str | None = None
    off_ramps_trained: bool | None = None
    off_ramp_temperatures: list[float] | None = None
    labels: list[str] | None = None
    max_length: int | None = None
    seed: int | None = None
    default_threshold: float | Sequence[float] | None = None
    default_criterion: dict[str, Any] | None = None
    base_model: dict[str, str] | None = None
    data: dict[str, Any] | None = None
    training: dict[str, dict[str, Any]] | None = None
    metric: str | None = None
    rows_scored: int | None = None
    full_depth: float | None = None
    layer_scores: list[float] | None = None
    trade_off: Table | None = None
    trade_off_criterion: dict[str, Any] | None = None
    chosen: dict[str, Any] | None = None
    threshold_choice: dict[str, Any] | None = None
    timing: dict[str, Any] | None = None
    machine: dict[str, Any] | None = None
    limits: list[str] | None = None
    packages: dict[str, dict[str, str]] | None = None
    further: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rows_scored is not None and self.rows_scored < 1:
            raise ValueError(f"`rows_scored` must be 1 or more, got {self.rows_scored}: leave it out.")

    @classmethod
    def from_dict(cls, numbers: "Mapping[str, Any] | CardData") -> "CardData":
        """Of a mapping with the names of the fields; others are kept in `further`."""
        if isinstance(numbers, CardData):
            return numbers
        names = {one.name for one in fields(cls)} - {"further"}
        known = {name: value for name, value in numbers.items() if name in names}
        return cls(**known, further={name: value for name, value in numbers.items() if name not in names})

    def to_dict(self) -> dict[str, Any]:
        """The fields that are known, and `further`."""
        known = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "further"}
        return {name: value for name, value in known.items() if value is not None} | self.further

    @classmethod
    def read(cls, path: str | Path) -> "CardData":
        """
        Of a JSON file.

        Raises:
            ValueError: for a file that is damaged or holds something else, naming it.
        """
        path = Path(path)
        try:
            numbers = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{str(path)!r} is damaged ({error}): remove it, or write the card from numbers."
            ) from error
        if not isinstance(numbers, dict):
            raise ValueError(f"{str(path)!r} holds a {type(numbers).__name__} instead of numbers by name: remove it.")
        try:
            return cls.from_dict(numbers)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{str(path)!r} cannot be shown in a card ({error}): remove it.") from error

    def write(self, path: str | Path) -> None:
        """To a JSON file, whole or not at all."""
        write_json(path, self.to_dict())

    def __or__(self, other: "CardData") -> "CardData":
        """What both know; `other` comes first."""
        return CardData.from_dict(self.to_dict() | other.to_dict())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "CardData":
        """What a checkpoint's own config.json holds."""
        id2label = config.get("id2label", {})
        labels = [id2label.get(str(label)) for label in range(len(id2label))]
        named = labels and not all(str(label).startswith("LABEL_") for label in labels)
        depth = config.get("num_hidden_layers", config.get("n_layers"))
        layers = config.get("off_ramp_layers")
        return cls(
            model_class=next(iter(config.get("architectures") or []), None),
            layers=depth,
            exit_layers=None if layers is None else [*layers, depth],
            off_ramp_pooling=config.get("off_ramp_pooling"),
            off_ramp_head=config.get("off_ramp_head"),
            off_ramp_context=config.get("off_ramp_context") if config.get("off_ramp_context") != "own" else None,
            off_ramps_trained=config.get("off_ramps_trained"),
            labels=labels if named else None,
            default_threshold=config.get("early_exit_entropy"),
            default_criterion=config.get("exit_criterion"),
            off_ramp_temperatures=config.get("off_ramp_temperatures"),
        )

    @classmethod
    def from_table(
        cls,
        table: ExitTable,
        metric: str = "accuracy",
        compute_metric: ComputeMetric | None = None,
        points: Sequence[OperatingPoint] | None = None,
        figures: Sequence[RuntimeFigure] = (),
    ) -> "CardData":
        """
        The metric of every exit, and the trade-off.

        Args:
            table ([`ExitTable`]): Rows that the model was not trained on.
            metric, compute_metric: As for [`pick_threshold`].
            points (sequence of [`OperatingPoint`], *optional*):
                Of the trade-off, full depth first; by default at savings of 10, 20, … %.
            figures (sequence of `RuntimeFigure`, *optional*): Measured times of the points behind the first.
        """
        if points is None:
            points = sweep_thresholds(table, [0.0, *thresholds_by_saving(table)], compute_metric)
        times: list[dict[str, float]] = [{}] * len(points)
        if figures:
            times = [{"runtime_saving": 0.0, "speed_up": 1.0}]
            times += [{"runtime_saving": one.runtime_saving, "speed_up": one.speed_up} for one in figures]
            # Without bound where every row exits behind the embeddings.
            ideal = [{"ideal_speed_up": 1 / one.layer_cost_ratio} if one.layer_cost_ratio else {} for one in points]
            times = [time | one for time, one in zip(times, ideal, strict=True)]
        values = [found[metric] for found in layer_scores(table, compute_metric)]
        criterion = {"score": table.score_name, "patience": table.patience}
        return cls(
            exit_layers=list(table.exit_layers),
            off_ramp_temperatures=None if table.temperatures is None else list(table.temperatures),
            metric=metric,
            rows_scored=len(table),
            full_depth=values[-1],
            layer_scores=values,
            trade_off=[trade_off_row(one, points[0], metric) | time for one, time in zip(points, times, strict=True)],
            trade_off_criterion=None if criterion == {"score": "entropy", "patience": 1} else criterion,
        )

    @classmethod
    def from_choice(cls, choice: ThresholdChoice) -> "CardData":
        """The evidence of a choice."""
        low, high = (100 * change for change in choice.score_change_interval)
        scaled = "" if choice.temperatures is None else ", with the off-ramps scaled by temperatures,"
        where = "On these rows" if choice.negative_flips is not None else "There"
        criterion = choice.exit_settings.get("exit_criterion")
        name = threshold_words(choice.threshold) if criterion is None else criterion_words(criterion)
        chosen = {
            "threshold": list(choice.threshold) if isinstance(choice.threshold, tuple) else choice.threshold,
            "score": choice.score,
            "score_change": choice.score_change,
            "layer_saving": choice.layer_saving,
            "note": "" if choice.met else "full depth",
            "how": (
                f"{choice.reason} {where} {name}{scaled} saves {choice.layer_saving:.1%} of the layers and changes "
                f"{choice.metric} by {100 * choice.score_change:+.1f} points (95 % bootstrap interval {low:+.1f} to "
                f"{high:+.1f})."
            ),
        }
        return cls(chosen=chosen if criterion is None else chosen | {"criterion": criterion})


def trade_off_row(point: OperatingPoint, full: OperatingPoint, metric: str) -> dict[str, Any]:
    return {
        "threshold": point.threshold,
        "score": point.scores[metric],
        "score_change": point.scores[metric] - full.scores[metric],
        "layer_saving": point.layer_saving,
        "note": "full depth" if point is full else "",
    }


def threshold_words(threshold: float | tuple[float, ...]) -> str:
    return f"S = ({threshold_text(threshold)})" if isinstance(threshold, tuple) else f"S = {threshold_text(threshold)}"


def criterion_words(criterion: Mapping[str, Any]) -> str:
    """An exit criterion in a sentence."""
    patience = criterion.get("patience", 1)
    times = f" at {patience} consecutive exits" if patience > 1 else ""
    score = str(criterion["score"]).replace("_", " ")
    return f"the score {score} below {threshold_text(criterion['threshold'])}{times}"
