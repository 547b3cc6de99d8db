"""Pictures: the trade-off between score and saving, exit depths, layers, reliability, slices."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import whole_file
from .calibration import ReliabilityBin
from .slices import Slice
from .sweep import OperatingPoint
from .tables import threshold_text


# Okabe and Ito's palette: distinct with any colour vision; markers keep the curves distinct in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
MOST_MARKERS = 40  # of a curve with more points the line is drawn alone
MOST_DIAGRAMS = 12  # reliability diagrams in one picture
ON_WHITE = {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}  # text that lines may run behind


def new_figure(width: float = 6.4, height: float = 4.4) -> Any:
    try:
        from matplotlib.figure import Figure  # no pyplot: it would keep global state
    except ImportError as error:
        raise ImportError("Pictures need matplotlib: pip install transformers-deebert[analysis]") from error
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Any, path: str | Path | BytesIO, form: str | None = None) -> None:
    if isinstance(path, BytesIO):
        figure.savefig(path, format=form)
        return
    with whole_file(path) as new:
        figure.savefig(new, format=form)


def plot_trade_off(
    points: Sequence[OperatingPoint] | Mapping[str, Sequence[OperatingPoint]],
    path: str | Path | BytesIO,
    score_name: str,
    full_score: float,
    chosen: Sequence[OperatingPoint] | None = None,
    title: str | None = None,
    others: Mapping[str, tuple[float, float]] | None = None,
    band: tuple[Sequence[float], Sequence[float], Sequence[float]] | None = None,
    form: str | None = None,
) -> None:
    """
    Draw score against layer saving, both in percent, and write the picture.

    Args:
        points (sequence of `OperatingPoint`, or a mapping from a name to one):
            One curve or several named ones; their order does not matter.
        path (`str`, `Path` or `BytesIO`):
            Picture to write, its format by its suffix (`.png`, `.svg`, `.pdf`); its folder is made.
        score_name (`str`):
            The key of the points' scores to draw, and the name on the axis.
        full_score (`float`):
            Score at full depth, drawn as a level line; `0` to `1`.
        chosen (sequence of `OperatingPoint`, *optional*):
            Points to mark, each with its threshold.
        title (`str`, *optional*):
            Title of the picture.
        others (`Mapping[str, tuple[float, float]]`, *optional*):
            Other models to draw as single marks: name to (saving, score), both as fractions.
        band (`tuple` of three sequences, *optional*):
            Savings, rising, and the lower and upper score there, all as fractions: a confidence band.
        form (`str`, *optional*):
            Format, where `path` has no suffix.

    Raises:
        `ImportError`: if matplotlib is missing.
        `ValueError`: if there are no points, or `score_name` is not among their scores.
    """
    curves = points if isinstance(points, Mapping) else {"early exit": points}
    for name, curve in curves.items():
        if len(curve) == 0:
            raise ValueError(f"`points` has no operating point for {name!r}. Pass what sweep_thresholds returned.")
    for point in [*(point for curve in curves.values() for point in curve), *(chosen or ())]:
        if score_name not in point.scores:
            raise ValueError(f"`score_name` must be one of {sorted(point.scores)}, got {score_name!r}.")

    figure = new_figure()
    axes = figure.subplots()
    axes.axhline(100 * full_score, color="0.45", linestyle="--", linewidth=1, label="full depth")
    if band is not None:
        savings, low, high = (100 * np.asarray(values) for values in band)
        axes.fill_between(
            savings, low, high, color=COLOURS[0], alpha=0.18, linewidth=0, label="95 % band of the change"
        )
    for index, (name, curve) in enumerate(curves.items()):
        ordered = sorted(curve, key=lambda point: point.layer_saving)
        axes.plot(
            [100 * point.layer_saving for point in ordered],
            [100 * point.scores[score_name] for point in ordered],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)] if len(ordered) <= MOST_MARKERS else None,
            markersize=4,
            label=name,
        )
    for index, (name, (saving, score)) in enumerate((others or {}).items(), start=len(curves)):
        axes.plot(
            [100 * saving],
            [100 * score],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            linestyle="none",
            label=name,
        )
    for index, point in enumerate(chosen or ()):
        at = (100 * point.layer_saving, 100 * point.scores[score_name])
        label = "threshold" if index == 0 else None
        axes.plot(*at, marker="o", markersize=11, markerfacecolor="none", color="black", linestyle="none", label=label)
        if not isinstance(point.threshold, tuple):
            # The curve falls to the right: there is room above it, and at its end below.
            last = at[0] >= 75
            axes.annotate(
                threshold_text(point.threshold),
                at,
                textcoords="offset points",
                xytext=(-9, -14) if last else (9, 5),
                ha="right" if last else "left",
                bbox=ON_WHITE,
            )
    axes.set_xlabel("layer saving (%)")
    axes.set_ylabel(f"{score_name.replace('_', ' ')} (%)")
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.15)  # room for the thresholds
    axes.legend(loc="best")
    if title:
        axes.set_title(title)
    save_figure(figure, path, form)


def plot_exit_depths(
    counts: Sequence[int],
    path: str | Path | BytesIO,
    title: str | None = None,
    form: str | None = None,
    layers: Sequence[int] | None = None,
) -> None:
    """
    Draw how many rows exited at each layer.

    Args:
        counts (sequence of `int`): Rows that exited at each of `layers`; `OperatingPoint.exit_counts`.
        path, title, form: As for [`plot_trade_off`].
        layers (sequence of `int`, *optional*): `ExitTable.exit_layers`; by default 1 … L.
    """
    figure, rows = new_figure(height=3.4), sum(counts)
    axes = figure.subplots()
    layers = list(layers or range(1, len(counts) + 1))
    bars = axes.bar(layers, [100 * count / rows for count in counts], color=COLOURS[0])
    axes.bar_label(bars, [f"{100 * count / rows:.0f}" for count in counts], padding=3, bbox=ON_WHITE)
    mean = sum(layer * count for layer, count in zip(layers, counts, strict=True)) / rows
    axes.axvline(mean, color=COLOURS[1], linestyle="--", label=f"mean {mean:.2f}")
    axes.set_xticks(layers)
    axes.set_xlabel("exit layer (the last is the model's own head)")
    axes.set_ylabel("rows (%)")
    axes.margins(y=0.12)
    axes.legend(loc="best")
    if title:
        axes.set_title(title)
    save_figure(figure, path, form)


def plot_layer_scores(
    scores: Sequence[float],
    path: str | Path | BytesIO,
    score_name: str = "accuracy",
    taken: Sequence[float | None] | None = None,
    title: str | None = None,
    form: str | None = None,
    layers: Sequence[int] | None = None,
) -> None:
    """
    Draw the metric of each exit when it answers every row.

    Args:
        scores (sequence of `float`): Of the exits behind `layers`, as fractions.
        path, title, form: As for [`plot_trade_off`].
        score_name (`str`, *optional*, defaults to `"accuracy"`): Name on the axis.
        taken (sequence of `float`, *optional*): Share of correct answers among the rows that exit there.
        layers (sequence of `int`, *optional*): `ExitTable.exit_layers`; by default 1 … L.
    """
    figure = new_figure(height=3.6)
    axes = figure.subplots()
    layers = list(layers or range(1, len(scores) + 1))
    axes.plot(layers, [100 * score for score in scores], color=COLOURS[0], marker=MARKERS[0], label="all rows")
    if taken is not None:
        shown = [(layer, 100 * share) for layer, share in zip(layers, taken, strict=True) if share is not None]
        marks = {"color": COLOURS[1], "marker": MARKERS[1], "linestyle": "none"}
        axes.plot(*zip(*shown, strict=True), label="correct, of the rows that exit there", **marks)
        axes.legend(loc="best")
    axes.set_xticks(layers)
    axes.set_xlabel("layer (the last is the model's own head)")
    axes.set_ylabel(f"{score_name.replace('_', ' ')} (%)")
    axes.grid(alpha=0.3)
    if title:
        axes.set_title(title)
    save_figure(figure, path, form)


def plot_reliability(
    layers: Mapping[str, Mapping[str, Sequence[ReliabilityBin]]], path: str | Path | BytesIO, form: str | None = None
) -> None:
    """
    Draw a reliability diagram for each exit: accuracy against confidence. Below the diagonal an exit is more confident
    than correct.

    Args:
        layers (`Mapping[str, Mapping[str, Sequence[ReliabilityBin]]]`):
            Title of a diagram to its curves: name to what [`reliability_bins`] returned. Of more than 12 diagrams, 12
            are drawn, evenly spread.
        path, form: As for [`plot_trade_off`].
    """
    titles = list(layers)
    if len(titles) > MOST_DIAGRAMS:
        titles = [titles[index] for index in np.linspace(0, len(titles) - 1, MOST_DIAGRAMS).round().astype(int)]
    columns = min(4, len(titles))
    lines = -(-len(titles) // columns)
    figure = new_figure(width=2.3 * columns + 0.4, height=2.5 * lines + 0.8)
    grid = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for axes, title in zip(grid.flat, titles, strict=False):
        axes.plot([0, 100], [0, 100], color="0.6", linestyle="--", linewidth=1)
        for index, (name, bins) in enumerate(layers[title].items()):
            total = sum(one.rows for one in bins)
            confidence, accuracy = [100 * one.confidence for one in bins], [100 * one.accuracy for one in bins]
            line = {"color": COLOURS[index], "label": name, "linewidth": 1, "marker": MARKERS[index], "markersize": 2}
            axes.plot(confidence, accuracy, **line)
            # The more rows, the larger the mark.
            sizes = [8 + 60 * one.rows / total for one in bins]
            axes.scatter(confidence, accuracy, s=sizes, color=COLOURS[index], marker=MARKERS[index], alpha=0.7)
        axes.set_title(title, fontsize="medium")
        axes.set_xlim(0, 103)
        axes.set_ylim(0, 103)
        axes.set_aspect("equal")
    for index, axes in enumerate(grid.flat):
        axes.tick_params(labelbottom=index + columns >= len(titles))
        if index >= len(titles):
            axes.set_axis_off()
    figure.supxlabel("confidence (%)")
    figure.supylabel("correct answers (%)")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    save_figure(figure, path, form)


def plot_slices(
    slices: Sequence[Slice], path: str | Path | BytesIO, title: str | None = None, form: str | None = None
) -> None:
    """
    Draw what early exit saves of each slice, and what it does to its accuracy.

    Args:
        slices (sequence of `Slice`): From [`slice_report`].
        path, title, form: As for [`plot_trade_off`].
    """
    figure = new_figure(width=7.2, height=1.5 + 0.34 * len(slices))
    left, right = figure.subplots(1, 2, sharey=True)
    places = range(len(slices))
    colours = [COLOURS[1] if one.worse else COLOURS[0] for one in slices]
    hatches = ["//" if one.worse else "" for one in slices]
    bars = left.barh(places, [100 * one.layer_saving for one in slices], color=colours)
    left.bar_label(bars, [f"{100 * one.layer_saving:.0f}" for one in slices], padding=2)
    left.set_xlabel("layer saving (%)")
    left.margins(x=0.15)
    points = [round(100 * one.accuracy_change, 6) for one in slices]
    changes = right.barh(places, points, color=colours, hatch=hatches, edgecolor="white")
    right.bar_label(changes, [f"{100 * one.accuracy_change:+.1f}" for one in slices], padding=2)
    right.axvline(0, color="0.3", linewidth=1)
    if not any(points):
        right.set_xlim(-1, 1)
    right.set_xlabel("change of accuracy (points)")
    right.use_sticky_edges = False  # room for the numbers on either side
    right.margins(x=0.35)
    names = [f"{shorten(one.name)} ({one.rows:,})" for one in slices]
    left.set_yticks(list(places), names, parse_math=False)  # a dollar sign is one
    left.set_ylim(len(slices) - 0.5, -0.5)
    if title:
        figure.suptitle(title, fontsize="medium")
    save_figure(figure, path, form)


def shorten(name: str, length: int = 28) -> str:
    """On one line and cut in the middle: names often differ at their end."""
    name = " ".join(name.split())
    return name if len(name) <= length else f"{name[: length - 11]}…{name[-10:]}"
