"""`deebert sweep`: score and saving at many thresholds, from one pass."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated

from .exits import read_exits
from .inputs import load_metric, name_metric
from .options import TableOptions, ThresholdOptions, flag, only_one


@dataclass(kw_only=True)
class Sweep(ThresholdOptions, TableOptions):
    """
    Show score and saving at many thresholds.

    Runs the model once over labelled rows, at full depth, and shows what every threshold would give. By default the
    thresholds that save 10 %, 20 % and so on of the layers.
    """

    quantiles: Annotated[bool, flag("--quantiles", "200 quantiles of the off-ramps' scores", "Exits")] = False

    def __post_init__(self) -> None:
        only_one(self, "thresholds", "fractions", "quantiles")

    def run(self) -> int:
        from ..analysis.exit_curve import thresholds_by_saving
        from ..analysis.sweep import sweep_thresholds
        from ..analysis.tables import THRESHOLD, format_table

        module = load_metric(self.metric)
        table, _ = read_exits(self)
        metric, score = name_metric(self.metric, module, table)
        thresholds = self.thresholds or [fraction * (table.largest_score or 0.0) for fraction in self.fractions or ()]
        thresholds = thresholds or [0.0, *thresholds_by_saving(table)]
        full, *points = sweep_thresholds(table, None if self.quantiles else [0.0, *thresholds], score)
        points = [full, *points] if self.quantiles else points
        if self.json:
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
            "exits": (f"rows that exit at layers {', '.join(map(str, table.exit_layers))} (%)", ""),
        }
        sys.stdout.write(f"{format_table(rows, columns)}\n{len(table):,} rows; one is worth {1 / len(table):.2%}.\n")
        return 0
