"""`deebert bench`: measured run times."""

import argparse
import json
import sys
from typing import Any

from .choosing import add_criterion_arguments, asked_criterion, threshold
from .inputs import add_model_and_data_arguments, positive, read_inputs


FRACTIONS = (0.2, 0.5, 0.8)


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure the run time at some thresholds and batch sizes",
        description="Measures run times against full depth and against the stock class, all in one rotation with a "
        "control. Labels are not needed.",
    )
    add_model_and_data_arguments(parser, rows="rows, whose labels are not needed", max_rows=200)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--thresholds",
        type=threshold,
        nargs="+",
        metavar="S",
        help="of the entropy in nats, or of --criterion; by default that of the checkpoint, or "
        f"{listed_fractions()} of the largest",
    )
    which.add_argument(
        "--fractions",
        type=threshold,
        nargs="+",
        metavar="F",
        help="as fractions of the largest, ln(labels) nats",
    )
    add_criterion_arguments(parser, "the checkpoint's own with its threshold, otherwise entropy")
    parser.add_argument("--batch-sizes", type=positive, nargs="+", metavar="N", help="default: 1 32")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed passes over all rows (5)")
    parser.add_argument("--json", action="store_true", help="write JSON instead of a table")
    parser.set_defaults(run=run)


def listed_fractions() -> str:
    return ", ".join(map(str, FRACTIONS))


def run(options: argparse.Namespace) -> int:
    from ..analysis.runtime import benchmark_runtime
    from ..rows import find_columns

    inputs = read_inputs(options, labelled=False)
    columns, _ = find_columns(inputs.rows, options.text_columns, options.label_column, labelled=False)
    texts = list(zip(*(inputs.rows[name][:] for name in columns), strict=True))
    thresholds, criterion = thresholds_to_time(options, inputs.model.config)
    benchmark = benchmark_runtime(
        inputs.model,
        inputs.encoded,
        [0.0, *(one for one in thresholds if one != 0)],
        options.batch_sizes or [size for size in (1, 32) if size <= len(inputs.rows)],
        inputs.tokenizer,
        texts if len(columns) == 2 else [text for (text,) in texts],
        options.repeats,
        criterion=criterion,
    )
    if options.json:
        sys.stdout.write(json.dumps(benchmark.to_dict(), indent=2) + "\n")
    else:
        from ..analysis.report_page import runtime_text

        table, notes = runtime_text(benchmark)
        sys.stdout.write("\n".join([table, "", *notes]) + "\n")
    return 0


def thresholds_to_time(options: argparse.Namespace, config: Any) -> tuple[list[Any], dict[str, Any]]:
    """Thresholds besides the full depth, and score and patience that they go with."""
    from ..models.exit_criteria_deebert import read_criterion
    from ..models.exit_scores_deebert import largest_score

    asked = asked_criterion(options)
    if options.thresholds:
        return options.thresholds, asked
    if options.criterion is options.patience is options.fractions is None:
        own = config.exit_criterion
        if own is None and config.early_exit_entropy is not None:
            own = asked | {"threshold": config.early_exit_entropy}
        if own is not None:
            own = read_criterion(own).to_dict()
            return [own.pop("threshold")], own
    largest = largest_score(asked["score"], config.num_labels) or 0.0
    return [fraction * largest for fraction in options.fractions or FRACTIONS], asked
