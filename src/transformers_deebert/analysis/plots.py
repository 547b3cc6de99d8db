"""Pictures of the trade-off between score and saving."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from .sweep import OperatingPoint


# Okabe and Ito's palette: told apart by readers with any colour vision; markers tell the curves apart in grey, too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def plot_trade_off(
    points: Sequence[OperatingPoint] | Mapping[str, Sequence[OperatingPoint]],
    path: str | Path,
    score_name: str,
    full_score: float,
    chosen: Sequence[OperatingPoint] | None = None,
    title: str | None = None,
    others: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """
    Draw score against layer saving, both in percent, and write the picture.

    Args:
        points (sequence of `OperatingPoint`, or a mapping from a name to one):
            One curve or several named ones; their order does not matter.
        path (`str` or `Path`):
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

    Raises:
        `ImportError`: if matplotlib is missing.
        `ValueError`: if there are no points, or `score_name` is not among their scores.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`plot_trade_off` needs matplotlib: pip install transformers-deebert[analysis]") from error

    curves = points if isinstance(points, Mapping) else {"early exit": points}
    for name, curve in curves.items():
        if len(curve) == 0:
            raise ValueError(f"`points` has no operating point for {name!r}. Pass what sweep_thresholds returned.")
    for point in [*(point for curve in curves.values() for point in curve), *(chosen or ())]:
        if score_name not in point.scores:
            raise ValueError(f"`score_name` must be one of {sorted(point.scores)}, got {score_name!r}.")

    figure = Figure(figsize=(6.4, 4.4), dpi=150, layout="constrained")  # no pyplot: it would keep global state
    axes = figure.subplots()
    axes.axhline(100 * full_score, color="0.45", linestyle="--", linewidth=1, label="full depth")
    for index, (name, curve) in enumerate(curves.items()):
        ordered = sorted(curve, key=lambda point: point.layer_saving)
        axes.plot(
            [100 * point.layer_saving for point in ordered],
            [100 * point.scores[score_name] for point in ordered],
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
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
        label = "chosen" if index == 0 else None
        axes.plot(*at, marker="o", markersize=11, markerfacecolor="none", color="black", linestyle="none", label=label)
        if not isinstance(point.threshold, tuple):
            axes.annotate(
                f"S = {point.threshold:.3g}",
                at,
                textcoords="offset points",
                xytext=(9, 5),  # the curve falls to the right, so there is room
                ha="left",
            )
    axes.set_xlabel("layer saving (%)")
    axes.set_ylabel(f"{score_name.replace('_', ' ')} (%)")
    axes.grid(alpha=0.3)
    axes.margins(x=0.1, y=0.15)  # room for the thresholds
    axes.legend(loc="best")
    if title:
        axes.set_title(title)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
