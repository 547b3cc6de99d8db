"""`deebert sweep`: score and saving at many thresholds, from one pass."""

import argparse
import json
import sys

from .choosing import add_metric_argument, load_metric, name_metric, threshold
from .exits import add_exit_arguments, read_exits


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "sweep",
        help="show score and saving at many thresholds",
        description="Runs the model once over labelled rows, at full depth, and shows what every threshold would "
        "give. By default the thresholds that save 10, 20, … % of the layers.",
    )
    add_exit_arguments(parser)
    add_metric_argument(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--thresholds", type=threshold, nargs="+", metavar="S", help="nats, or of --criterion")
    which.add_argument(
        "--fractions",
        type=threshold,
        nargs="+",
        metavar="F",
        help="as fractions of the largest, ln(labels) nats",
    )
    which.add_argument("--quantiles", action="store_true", help="200 quantiles of the off-ramps' scores")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..analysis.exit_curve import thresholds_by_saving
    from ..analysis.sweep import sweep_thresholds
    from ..analysis.tables import THRESHOLD, format_table

    module = load_metric(options.metric)
    table, _ = read_exits(options)
    metric, score = name_metric(options.metric, module, table)
    thresholds = options.thresholds
    if options.fractions:
        thresholds = [fraction * (table.largest_score or 0.0) for fraction in options.fractions]
    elif not thresholds and not options.quantiles:
        thresholds = [0.0, *thresholds_by_saving(table)]
    full, *points = sweep_thresholds(table, None if options.quantiles else [0.0, *thresholds], score)
    points = [full, *points] if options.quantiles else points
    if options.json:
        facts = {"rows": len(table), "metric": metric, "full_score": full.scores[metric], "points": points}
        facts |= {"score": table.score_name, "patience": table.patience}
        sys.stdout.write(json.dumps(facts, default=lambda point: point.to_dict(), indent=2) + "\n")
        return 0
    rows = [
        {
            "threshold": point.threshold,
            "fraction": point.threshold / (table.largest_score or 1.0),
            "score": point.scores[metric],
            "change": 100 * (point.scores[metric] - full.scores[metric]),
            "saving": point.layer_saving,
            "speed_up": point.expected_speed_up,
            "exits": " ".join(f"{100 * count / len(table):.0f}" for count in point.exit_counts),
        }
        for point in points
        if isinstance(point.threshold, float)
    ]
    columns = {
        "threshold": ("S", THRESHOLD),
        "fraction": ("of ln C" if table.score == "entropy" else "of largest", ".1%"),
        "score": (metric, ".2%"),
        "change": ("points", "+.2f"),
        "saving": ("layers saved", ".1%"),
        "speed_up": ("ideal speed-up", ".2f"),
        "exits": ("rows that leave at layers 1, 2, … (%)", ""),
    }
    sys.stdout.write(f"{format_table(rows, columns)}\n{len(table):,} rows; one is worth {1 / len(table):.2%}.\n")
    return 0
