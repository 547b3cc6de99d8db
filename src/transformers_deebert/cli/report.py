"""`deebert report`: a page about a model."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..folders import check_new_file
from ..messages import note
from .choosing import add_metric_argument, add_target_arguments, check_per_layer, load_metric, name_metric
from .exits import add_exit_arguments, read_exits
from .inputs import Inputs
from .pick import add_way_arguments


if TYPE_CHECKING:
    from ..analysis.exit_table import ExitTable
    from ..analysis.runtime import RuntimeBenchmark
    from ..analysis.threshold_choice import ThresholdChoice

TIMED_ROWS = 200


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="write a page with pictures and tables about a model",
        description="Writes one HTML file: the trade-off, every layer, calibration, other ways to exit, whom early "
        "exit hurts. Exit code 1 where the target cannot be met; the page says so.",
    )
    add_exit_arguments(parser)
    add_target_arguments(parser)
    add_metric_argument(parser)
    add_way_arguments(parser)
    parser.add_argument("-o", "--output", default="report.html", metavar="FILE", help="page to write (report.html)")
    parser.add_argument("--slice-by", nargs="+", default=[], metavar="NAME", help="columns of DATA to slice by")
    parser.add_argument("--title", help="headline of the page")
    parser.add_argument("--time", action="store_true", help=f"measure run times as well, on up to {TIMED_ROWS} rows")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from ..analysis.report import LEAST_ROWS, check_report_packages, make_report
    from ..analysis.threshold_choice import pick_threshold
    from ..hub.applied_threshold import plain

    check_report_packages()
    output = Path(options.output)
    check_new_file("output", output)
    check_per_layer(options)
    module = load_metric(options.metric)
    table, inputs = read_exits(options, need_inputs=options.time, columns=options.slice_by)
    metric, score = name_metric(options.metric, module, table)
    if options.target_saving is None and options.max_score_drop is None:
        options.max_score_drop = 0.01
    if len(table) < 2 * LEAST_ROWS:
        raise ValueError(f"DATA has {len(table)} labelled rows, and a report takes {2 * LEAST_ROWS}: give more.")
    choice = pick_threshold(
        table,
        target_saving=options.target_saving,
        max_score_drop=options.max_score_drop,
        metric=metric,
        score=score,
        per_layer=options.per_layer,
        temperatures=options.temperatures,
        seed=options.seed,
    )
    chosen_on, read_on = table.with_temperatures(choice.temperatures).split(options.seed)
    # Of folders the last two names, as in sst2/validation; whose they are is nobody's business.
    model, data = ("/".join(Path(name).with_suffix("").parts[-2:]) for name in (options.checkpoint, options.data))
    report = make_report(
        chosen_on,
        reading=read_on,
        choice=choice,
        title=options.title or f"Early exit: {model} on {data}",
        facts={"model": model, "data": data, "rows": f"{len(table):,}", "layers": str(table.num_layers)},
        target_saving=options.target_saving,
        max_score_drop=options.max_score_drop,
        metric=metric,
        score=score,
        columns=read_columns(read_on, inputs, options.slice_by),
        seed=options.seed,
    )
    if options.time and inputs is not None:
        inputs.model.config.off_ramp_temperatures = plain(choice.temperatures)
        report = replace(report, runtime=time_choice(inputs, choice, options.seed))
    report.save(output)
    if options.json:
        sys.stdout.write(json.dumps(report.to_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(f"{report.choice.reason}\n{output}\n")
    return 0 if report.choice.met else 1


def read_columns(table: "ExitTable", inputs: Inputs | None, names: list[str]) -> dict[str, list]:
    """Values of columns of the data, for the rows of the table."""
    if inputs is None:
        return {}
    return {name: inputs.rows.select(table.ids)[name][:] for name in names}


def time_choice(inputs: Inputs, choice: "ThresholdChoice", seed: int) -> "RuntimeBenchmark":
    from ..analysis.runtime import benchmark_runtime

    rows = inputs.encoded.shuffle(seed=seed).select(range(min(TIMED_ROWS, len(inputs.encoded))))
    sizes = tuple(size for size in (1, 8, 32) if size <= len(rows))
    note(f"measures the time of {len(rows)} rows at batch sizes {', '.join(map(str, sizes))}.")
    criterion = {"score": choice.exit_score, "patience": choice.patience}
    thresholds = [0.0, choice.threshold]
    return benchmark_runtime(inputs.model, rows, thresholds, sizes, inputs.tokenizer, repeats=3, criterion=criterion)
