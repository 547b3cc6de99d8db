"""`deebert bench`: measured run times."""

import json
import sys
from dataclasses import dataclass
from typing import Annotated, Any

from .inputs import read_inputs
from .options import SOURCES, DataOptions, ThresholdOptions, flag, of_data, option, place, positive


FRACTIONS = (0.2, 0.5, 0.8)


@dataclass(kw_only=True)
class Bench(ThresholdOptions, DataOptions):
    """
    Measure the run time at some thresholds and batch sizes.

    Against full depth and against the stock class, all in one rotation with a control. Labels are not needed. By
    default at the threshold of the checkpoint, or at 0.2, 0.5 and 0.8 of the largest.
    """

    data: Annotated[str, place("DATA", f"rows, whose labels are not needed: {SOURCES}")]
    max_rows: Annotated[int | None, of_data("read a random sample of so many rows (200)", positive)] = 200
    batch_sizes: Annotated[list[int] | None, option("default: 1 32", positive, "N...")] = None
    repeats: Annotated[int, option("timed passes over all rows (5)", positive)] = 5
    json: Annotated[bool, flag("--json", "write JSON instead of a table")] = False

    def run(self) -> int:
        from ..analysis.runtime import benchmark_runtime
        from ..rows import find_columns

        inputs = read_inputs(self, labelled=False)
        columns, _ = find_columns(inputs.rows, self.text_columns, self.label_column, labelled=False)
        texts = list(zip(*(inputs.rows[name][:] for name in columns), strict=True))
        thresholds, criterion = thresholds_to_time(self, inputs.model.config)
        benchmark = benchmark_runtime(
            inputs.model,
            inputs.encoded,
            [0.0, *(one for one in thresholds if one != 0)],
            self.batch_sizes or [size for size in (1, 32) if size <= len(inputs.rows)],
            inputs.tokenizer,
            texts if len(columns) == 2 else [text for (text,) in texts],
            self.repeats,
            criterion=criterion,
        )
        if self.json:
            sys.stdout.write(json.dumps(benchmark.to_dict(), indent=2) + "\n")
        else:
            from ..analysis.report_page import runtime_text

            table, notes = runtime_text(benchmark)
            sys.stdout.write("\n".join([table, "", *notes]) + "\n")
        return 0


def thresholds_to_time(options: Bench, config: Any) -> tuple[list[Any], dict[str, Any]]:
    """Thresholds besides the full depth, and the criterion that they go with."""
    from ..models.exit_scores_deebert import largest_score

    asked = options.asked
    own = config.exit_criterion or asked | {"threshold": config.early_exit_entropy}
    if options.thresholds:
        return options.thresholds, asked
    if options.criterion is options.patience is options.fractions is None and own["threshold"] is not None:
        return [own["threshold"]], own
    largest = largest_score(asked["score"], config.num_labels) or 0.0
    return [fraction * largest for fraction in options.fractions or FRACTIONS], asked
