"""`deebert bench`: measured run times."""

import argparse
import json
import sys

from .choosing import threshold
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
        help=f"entropies, in nats; by default that of the checkpoint, or {listed_fractions()} of ln(labels)",
    )
    which.add_argument(
        "--fractions", type=threshold, nargs="+", metavar="F", help="the same as fractions of ln(labels)"
    )
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
    config = inputs.model.config
    thresholds = options.thresholds
    if not thresholds:
        default = config.early_exit_entropy
        fractions = options.fractions or FRACTIONS
        own = options.fractions is None and default is not None
        thresholds = [default] if own else [fraction * config.max_entropy for fraction in fractions]
    benchmark = benchmark_runtime(
        inputs.model,
        inputs.encoded,
        [0.0, *(one for one in thresholds if one != 0)],
        options.batch_sizes or [size for size in (1, 32) if size <= len(inputs.rows)],
        inputs.tokenizer,
        texts if len(columns) == 2 else [text for (text,) in texts],
        options.repeats,
    )
    if options.json:
        sys.stdout.write(json.dumps(benchmark.to_dict(), indent=2) + "\n")
    else:
        from ..analysis.report_page import runtime_text

        table, notes = runtime_text(benchmark)
        sys.stdout.write("\n".join([table, "", *notes]) + "\n")
    return 0
