"""A report, and its page: one HTML file with its pictures in it, which needs no network and no script."""

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import write_text
from ..models.exit_scores_deebert import largest_score
from .calibration import TemperatureFit
from .choice import ThresholdChoice
from .layer_report import TOLERANCE, LayerReport
from .plots import plot_exit_depths, plot_layer_scores, plot_reliability, plot_slices, plot_trade_off
from .runtime import RUNTIME_COLUMNS, RuntimeBenchmark
from .slices import Slice
from .sweep import OperatingPoint
from .tables import format_table, threshold_text, to_plain
from .timing import QUIET


TEMPLATE = Path(__file__).with_name("report_template.html")


@dataclass(frozen=True)
class Report:
    """
    What [`make_report`] found, all but `choices` and `alternatives` of it on the rows to evaluate on.

    Args:
        title (`str`): Headline.
        facts (`dict[str, str]`): What the model and the data are.
        metric (`str`): The score.
        classes (`int`): Number of classes.
        rows, read_rows (`int`): Rows in all, and those that the figures are evaluated on.
        guaranteed_on (`int`): Rows that a guarantee is tested on.
        guarantee_held_out (`bool`): Whether its figures are evaluated on others than these.
        choice ([`ThresholdChoice`]): The threshold of all other figures.
        choices (`dict[str, ThresholdChoice]`): For other allowed losses, and with a guarantee, by target.
        curve (`list[OperatingPoint]`): The trade-off.
        points (`list[OperatingPoint]`): Full depth, thresholds at savings of 10, 20, … %, and the choice.
        band (`tuple` of three lists):
            Savings, and the score at full depth plus the 95 % paired bootstrap interval of the change there.
        layers (`list[LayerReport]`): Every exit.
        without_redundant (`OperatingPoint`, *optional*):
            The choice without all off-ramps that are redundant, each by itself.
        temperatures ([`TemperatureFit`]): Temperature scaling.
        alternatives (`dict[str, ThresholdChoice]`): Ways to exit, for the same target, evaluated on the same rows.
        slices (`dict[str, list[Slice]]`): By class, by length, by columns.
        runtime ([`RuntimeBenchmark`], *optional*): Measured run times.
    """

    title: str
    facts: dict[str, str]
    metric: str
    classes: int
    rows: int
    read_rows: int
    guaranteed_on: int
    guarantee_held_out: bool
    choice: ThresholdChoice
    choices: dict[str, ThresholdChoice]
    curve: list[OperatingPoint]
    points: list[OperatingPoint]
    band: tuple[list[float], list[float], list[float]]
    layers: list[LayerReport]
    without_redundant: OperatingPoint | None
    temperatures: TemperatureFit
    alternatives: dict[str, ThresholdChoice]
    slices: dict[str, list[Slice]]
    runtime: RuntimeBenchmark | None
    reliability: dict[str, dict[str, list]] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """All numbers as plain Python, ready for JSON."""
        names = [name for name in self.__dataclass_fields__ if name not in ("reliability", "curve")]
        return {name: to_plain(getattr(self, name)) for name in names}

    def save(self, path: str | Path) -> None:
        """
        Writes the page: one HTML file with its pictures in it, which needs no network and no script.

        Args:
            path (`str` or `Path`): File to write; its folder is made.
        """
        write_text(path, render(self))


def render(report: Report) -> str:
    """The page."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "points": signed, "threshold": threshold_text, "range": range_text}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    redundant = [layer.layer for layer in report.layers if layer.redundant]
    return template.render(
        report=report,
        choice=report.choice,
        pictures={name: as_data(picture) for name, picture in draw(report).items()},
        metric=report.metric.replace("_", " "),
        redundant=redundant,
        tolerance=TOLERANCE,
        criterion=criterion_text(report.choice),
        evaluated=sum(layer.evaluated for layer in report.layers[:-1]),
        evaluated_without=None if report.without_redundant is None else evaluated(report.without_redundant),
        worse={name: [one for one in slices if one.worse] for name, slices in report.slices.items()},
        largest=largest_score(report.choice.exit_score, report.classes),
        runtime=None if report.runtime is None else runtime_text(report.runtime),
        # Nothing in a string may end the element that the numbers stand in.
        numbers=json.dumps(report.to_dict()).replace("<", "\\u003c"),
    )


def criterion_text(choice: ThresholdChoice) -> str:
    """The exit criterion as the subject of a sentence."""
    thresholds = "The thresholds" if isinstance(choice.threshold, tuple) else "The threshold"
    patience = "" if choice.patience == 1 else f" with patience {choice.patience}"
    score = choice.exit_score.replace("_", " ")
    return f"{thresholds} {threshold_text(choice.threshold)} of the {score}{patience}"


def evaluated(point: OperatingPoint) -> float:
    """How many off-ramps are evaluated for a row, on average: those up to its exit that are switched on."""
    active = np.cumsum(point.exit_counts[::-1])[::-1]  # rows that reach each layer
    switched_on = np.broadcast_to(point.threshold, len(active) - 1) > 0
    return float((active[:-1] * switched_on).sum() / active[0])


def runtime_text(runtime: RuntimeBenchmark) -> tuple[str, list[str]]:
    """The measured times as preformatted text, and notes on them."""
    tokenization = "; ".join(
        f"{milliseconds:.3f} ms a row at batch size {size}" for size, milliseconds in runtime.tokenization_ms.items()
    )
    notes = [f"{runtime.rows:,} rows; {runtime.padding}."]
    if (runtime.score, runtime.patience) != ("entropy", 1):
        notes.append(f"S is of the score {runtime.score.replace('_', ' ')}, with patience {runtime.patience}.")
    notes += [f"Tokenisation, not counted above: {tokenization}."] if tokenization else []
    gap = max(figure.control_gap for figure in runtime.figures)
    if gap > QUIET:
        notes.append(f"Two runs of the stock class differ by up to {gap:.1%}: the machine was too busy for a verdict.")
    notes.append("Efficiency: against the stock class, 1 where every layer saved became time saved.")
    machine = ", ".join(f"{name} {value}" for name, value in runtime.machine.items())
    return format_table(runtime.table(), RUNTIME_COLUMNS), [*notes, f"{machine}."]


def draw(report: Report) -> dict[str, Callable[..., None]]:
    """The pictures of the page, each as a function of where to write it."""
    chosen = [point for point in report.points if point.threshold == report.choice.threshold]
    taken = [layer.correct_when_exited for layer in report.layers]
    exit_layers = [layer.layer for layer in report.layers]

    def trade_off(path: Any, form: str | None = None) -> None:
        full = report.choice.full_score
        plot_trade_off(report.curve, path, report.metric, full, chosen, band=report.band, form=form)

    def depths(path: Any, form: str | None = None) -> None:
        plot_exit_depths(chosen[0].exit_counts, path, form=form, layers=exit_layers)

    def layers(path: Any, form: str | None = None) -> None:
        scores = [layer.score for layer in report.layers]
        plot_layer_scores(scores, path, report.metric, taken, form=form, layers=exit_layers)

    def diagrams(path: Any, form: str | None = None) -> None:
        plot_reliability(report.reliability, path, form)

    pictures: dict[str, Callable[..., None]] = {
        "trade_off": trade_off,
        "exit_depths": depths,
        "layer_scores": layers,
        "reliability": diagrams,
    }
    for name, slices in report.slices.items():
        pictures[f"slices_{name}"] = lambda path, form=None, slices=slices: plot_slices(slices, path, form=form)
    return pictures


def as_data(picture: Callable[..., None]) -> str:
    """A picture as a `data:` address."""
    buffer = BytesIO()
    picture(buffer, form="svg")
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def signed(value: float) -> str:
    """A change of score in points; U+2212 is the minus sign."""
    return f"{100 * value:+.1f}".replace("-", "−")


def range_text(bounds: tuple[float, float], form: Callable[[float], str] = signed) -> str:
    return f"{form(bounds[0])} to {form(bounds[1])}"
