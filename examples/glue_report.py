"""Tables of the GLUE experiment: means and spreads over seeds. Used by run_glue.py."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from glue_tasks import GlueTask

from transformers_deebert.analysis import (
    OperatingPoint,
    RuntimeFigure,
    ThresholdChoice,
    format_table,
    plot_trade_off,
    write_csv,
)
from transformers_deebert.analysis.tables import THRESHOLD


Row = dict[str, Any]
Columns = dict[str, tuple[str, str]]


def mean_and_spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """`name` and, of several values, `name_std`: the sample standard deviation."""
    spread = {f"{name}_std": float(np.std(values, ddof=1))} if len(values) > 1 else {}
    return {name: float(np.mean(values)), **spread}


def average_points(seeds: Sequence[OperatingPoint]) -> OperatingPoint:
    """One threshold's point over all seeds: means of scores and savings, sums of exit counts."""
    return OperatingPoint(
        threshold=seeds[0].threshold,
        scores={name: float(np.mean([point.scores[name] for point in seeds])) for name in seeds[0].scores},
        layer_cost_ratio=float(np.mean([point.layer_cost_ratio for point in seeds])),
        layer_saving=float(np.mean([point.layer_saving for point in seeds])),
        exit_counts=tuple(np.sum([point.exit_counts for point in seeds], axis=0).tolist()),
    )


def trade_off_rows(
    curves: Sequence[Sequence[OperatingPoint]], metric: str, figures: Mapping[float, RuntimeFigure]
) -> list[Row]:
    """One row a threshold, from one curve a seed that begins at S = 0, with run times where they were measured."""
    rows = []
    for seeds in zip(*curves, strict=True):
        figure = figures.get(seeds[0].threshold)
        row: Row = {"threshold": seeds[0].threshold}
        for name in [metric, *(other for other in seeds[0].scores if other != metric)]:
            row |= mean_and_spread(name, [point.scores[name] for point in seeds])
        changes = [point.scores[metric] - curve[0].scores[metric] for point, curve in zip(seeds, curves, strict=True)]
        row |= mean_and_spread("score_change", changes)
        row |= mean_and_spread("layer_saving", [point.layer_saving for point in seeds])
        if figures and row["threshold"] == 0:
            row |= {"runtime_saving": 0.0, "speed_up": 1.0}
        elif figures:
            row |= {name: figure and getattr(figure, name) for name in ("runtime_saving", "speed_up", "efficiency")}
        rows.append(row)
    return rows


def baseline_row(
    scores: Sequence[Mapping[str, float]],
    full_scores: Sequence[float],
    metric: str,
    seconds: Mapping[str, float] | None,
) -> Row:
    """The baseline's row: it has no threshold and no layer saving; its time is set against ours at full depth."""
    row: Row = {"threshold": None}
    for name in [metric, *(other for other in scores[0] if other != metric)]:
        row |= mean_and_spread(name, [one[name] for one in scores])
    changes = [one[metric] - full for one, full in zip(scores, full_scores, strict=True)]
    row |= mean_and_spread("score_change", changes) | {"layer_saving": None}
    if seconds is not None:
        row["runtime_saving"] = 1 - seconds["baseline"] / seconds["full_depth"]
        row["speed_up"] = seconds["full_depth"] / seconds["baseline"]
    return row


def layer_rows(seeds: Sequence[Sequence[Mapping[str, float]]]) -> list[Row]:
    """One row a layer, from the layers' scores of each seed."""
    rows = []
    for layer, scores in enumerate(zip(*seeds, strict=True), start=1):
        row: Row = {"layer": layer}
        for name in scores[0]:
            row |= mean_and_spread(name, [one[name] for one in scores])
        rows.append(row)
    return rows


def choice_rows(seeds: Sequence[Mapping[float, ThresholdChoice]], metric: str) -> list[Row]:
    """One row an allowed loss, from the choices of each seed; intervals are means of the seeds' intervals."""
    rows = []
    for max_drop in seeds[0]:
        choices = [choices[max_drop] for choices in seeds]
        row: Row = {"max_drop": max_drop}
        row |= mean_and_spread("threshold", [choice.threshold for choice in choices])
        row |= mean_and_spread(metric, [choice.score for choice in choices])
        for name in ("score_change", "layer_saving"):
            row |= mean_and_spread(name, [getattr(choice, name) for choice in choices])
            intervals = [getattr(choice, f"{name}_interval") for choice in choices]
            row[f"{name}_low"], row[f"{name}_high"] = np.mean(intervals, axis=0).tolist()
        row["row_worth"] = float(np.mean([choice.row_worth for choice in choices]))
        row["rows"] = choices[0].rows
        rows.append(row)
    return rows


def columns_of(rows: Sequence[Row]) -> Columns:
    """Headings and formats: shares, scores and their changes in percent or points, spreads as ±."""
    headings = {
        "model": ("model", ""),
        "threshold": ("S", THRESHOLD),
        "max_drop": ("allowed loss", ".1%"),
        "layer": ("layer", "d"),
        "score_change": ("score change", "+.2%"),
        "score_change_low": ("from", "+.2%"),
        "score_change_high": ("to", "+.2%"),
        "row_worth": ("one row", ".2%"),
        "speed_up": ("speed-up", ".2f"),
        "efficiency": ("efficiency", ".2f"),
        "rows": ("rows", "d"),
    }
    columns: Columns = {}
    for key in dict.fromkeys(key for row in rows for key in row):
        if key.endswith("_std"):
            columns[key] = ("±", ".2g" if key == "threshold_std" else ".2%")
        elif key in ("layer_saving_low", "layer_saving_high"):
            columns[key] = (key.rsplit("_", 1)[1].replace("low", "from").replace("high", "to"), ".1%")
        elif key in ("layer_saving", "runtime_saving"):
            columns[key] = (key.replace("_", " "), ".1%")
        else:
            columns[key] = headings.get(key, (key.replace("_", " "), ".2%"))
    return columns


def shallow_name(layers: int) -> str:
    return f"{layers} layer{'s' * (layers > 1)}"


def summarize(
    task: GlueTask,
    seeds: list[int],
    curves: Sequence[Sequence[OperatingPoint]],
    layers: Sequence[Sequence[Mapping[str, float]]],
    choices: Sequence[Mapping[float, ThresholdChoice]],
    figures: Mapping[float, RuntimeFigure],
    seconds: Mapping[str, float] | None,
    baseline: str | None,
    baseline_scores: Sequence[Mapping[str, float]],
    shallow: Mapping[int, Sequence[Mapping[str, float]]],
) -> dict[str, Any]:
    """
    All that is known about one evaluated set: tables over the seeds, and the single seeds' numbers behind them. A
    model of k layers costs k/L of the layers.
    """
    metric = task.metrics[0]
    table = trade_off_rows(curves, metric, figures)
    full_scores = [curve[0].scores[metric] for curve in curves]
    if baseline or shallow:
        table = [{"model": "early exit"} | row for row in table]
    for count, scores in shallow.items():
        saving = {"layer_saving": 1 - count / len(layers[0])}
        table.append({"model": shallow_name(count)} | baseline_row(scores, full_scores, metric, None) | saving)
    if baseline:
        table.append({"model": Path(baseline).name} | baseline_row(baseline_scores, full_scores, metric, seconds))
    return {
        "metric": metric,
        "rows": sum(curves[0][0].exit_counts),
        "seeds": seeds,
        "layers": layer_rows(layers),
        "trade_off": table,
        "operating_points": choice_rows(choices, metric),
        "timing": list(figures.values()),
        "baseline_seconds": seconds,
        "each_seed": [
            {"seed": seed, "trade_off": list(curve), "layers": list(scores), "operating_points": list(chosen.values())}
            for seed, curve, scores, chosen in zip(seeds, curves, layers, choices, strict=True)
        ],
    }


def print_tables(task: GlueTask, name: str, results: dict[str, Any]) -> None:
    """Writes the tables of one evaluated set to the terminal."""
    titles = {
        "layers": "score of each layer when it answers every row",
        "trade_off": "trade-off, all rows",
        "operating_points": "operating points chosen on one half of the rows, read on the other",
    }
    for key, title in titles.items():
        heading = f"{task.name} {name}, {results['rows']} rows, {len(results['seeds'])} seed(s): {title}"
        print(f"\n{heading}\n{format_table(results[key], columns_of(results[key]))}")
    for figure in results["timing"][:1]:
        verdict = "" if figure.machine_was_quiet else ": the machine was too busy for a verdict"
        print(
            f"Timed on {figure.rows} rows at batch size {figure.batch_size}; two runs of the stock model differ by "
            f"{figure.control_gap:.1%}{verdict}."
        )


def draw(
    path: Path, task: GlueTask, name: str, curves: Sequence[Sequence[OperatingPoint]], chosen: set[float], results
) -> None:
    """
    The mean curve over the seeds, with the chosen points, the shallower models, and the baseline at its runtime saving
    where timed.
    """
    curve = [average_points(points) for points in zip(*curves, strict=True)]
    last = results["trade_off"][-1]
    stock = [row for row in results["trade_off"] if row["threshold"] is None and row["layer_saving"] is not None]
    others = {row["model"]: (row["layer_saving"], row[task.metrics[0]]) for row in stock}
    if last["threshold"] is None and last.get("runtime_saving") is not None:
        others[f"{last['model']} (runtime saving)"] = (last["runtime_saving"], last[task.metrics[0]])
    plot_trade_off(
        curve,
        path,
        score_name=task.metrics[0],
        full_score=curve[0].scores[task.metrics[0]],
        chosen=[point for point in curve if point.threshold in chosen],
        title=f"{task.name} {name}",
        others=others,
    )


def write_tables(folder: Path, sets: dict[str, dict[str, Any]]) -> None:
    """Writes one CSV file a kind of table, the sets below each other."""
    for key, file in {"trade_off": "table", "layers": "layers", "operating_points": "operating_points"}.items():
        write_csv(folder / f"{file}.csv", [{"set": name, **row} for name, one in sets.items() for row in one[key]])
