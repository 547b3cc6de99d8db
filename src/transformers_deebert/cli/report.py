"""`deebert report`: a page about a model."""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..messages import note
from .exits import read_exits
from .inputs import Inputs, load_metric, name_metric
from .options import TableOptions, TargetOptions, flag, of_data, option


if TYPE_CHECKING:
    from ..analysis.choice import ThresholdChoice
    from ..analysis.runtime import RuntimeBenchmark

TIMED_ROWS = 200


@dataclass(kw_only=True)
class Report(TargetOptions, TableOptions):
    """
    Write a page with pictures and tables about a model.

    One HTML file: the trade-off, every layer, calibration, other ways to exit, parts of the data. Exit code 1 where
    the target cannot be met, which the page shows.
    """

    output: Annotated[str, option("page to write (report.html)", None, "FILE", "-o --output")] = "report.html"
    slice_by: Annotated[list[str] | None, of_data("columns of DATA to slice by", None, "NAME...")] = None
    title: Annotated[str | None, option("headline of the page", metavar="TEXT")] = None
    time: Annotated[bool, flag("--time", f"measure run times as well, on up to {TIMED_ROWS} rows")] = False

    def run(self) -> int:
        from ..analysis.report import LEAST_ROWS, check_report_packages, make_report
        from ..analysis.selection import pick_threshold
        from ..folders import check_new_file
        from ..hub.applied_threshold import plain

        check_report_packages()
        slices = self.slice_by or []
        output = Path(self.output)
        check_new_file("output", output)
        self.check_per_layer()
        module = load_metric(self.metric)
        table, inputs = read_exits(self, need_inputs=self.time, columns=slices)
        metric, score = name_metric(self.metric, module, table)
        if self.target_saving is None and self.max_score_drop is None:
            self.max_score_drop = 0.01
        if len(table) < 2 * LEAST_ROWS:
            raise ValueError(f"DATA has {len(table)} labelled rows, and a report takes {2 * LEAST_ROWS}: give more.")
        choice = pick_threshold(
            table,
            target_saving=self.target_saving,
            max_metric_drop=self.max_score_drop,
            metric=metric,
            compute_metric=score,
            per_layer=self.per_layer,
            temperatures=self.temperatures,
            seed=self.seed,
        )
        select_on, evaluate_on = table.with_temperatures(choice.temperatures).split(self.seed)
        # Of folders the last two names, as in sst2/validation: those above may name a user.
        model, data = ("/".join(Path(name).with_suffix("").parts[-2:]) for name in (self.checkpoint, self.data))
        report = make_report(
            select_on,
            evaluate_on=evaluate_on,
            choice=choice,
            title=self.title or f"Early exit: {model} on {data}",
            facts={"model": model, "data": data, "rows": f"{len(table):,}", "layers": str(table.num_layers)},
            target_saving=self.target_saving,
            max_metric_drop=self.max_score_drop,
            metric=metric,
            compute_metric=score,
            columns={name: inputs.rows.select(evaluate_on.ids)[name][:] for name in slices} if inputs else {},
            seed=self.seed,
        )
        if self.time and inputs is not None:
            inputs.model.config.off_ramp_temperatures = plain(choice.temperatures)
            report = replace(report, runtime=time_choice(inputs, choice, self.seed))
        report.save(output)
        if self.json:
            sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
        else:
            sys.stdout.write(f"{report.choice.reason}\n{output}\n")
        return 0 if report.choice.met else 1


def time_choice(inputs: Inputs, choice: "ThresholdChoice", seed: int) -> "RuntimeBenchmark":
    from ..analysis.runtime import benchmark_runtime

    rows = inputs.encoded.shuffle(seed=seed).select(range(min(TIMED_ROWS, len(inputs.encoded))))
    sizes = tuple(size for size in (1, 8, 32) if size <= len(rows))
    note(f"measures the time of {len(rows)} rows at batch sizes {', '.join(map(str, sizes))}.")
    criterion = {"score": choice.exit_score, "patience": choice.patience}
    thresholds = [0.0, choice.threshold]
    return benchmark_runtime(inputs.model, rows, thresholds, sizes, inputs.tokenizer, repeats=3, criterion=criterion)
