"""`deebert pick`: a threshold by what it shall give."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..messages import note
from .exits import read_exits
from .inputs import load_metric, name_metric
from .options import (
    DISAGREEMENT,
    GUARANTEE,
    TableOptions,
    TargetOptions,
    above_zero,
    flag,
    of_exits,
    only_one,
    share,
    share_or_zero,
)


if TYPE_CHECKING:
    import numpy as np

    from ..analysis.choice import ThresholdChoice
    from ..analysis.latency import LatencyProfile

LATENCY = "expected milliseconds for a row at batch size 1, by a profile that is measured on this machine"


@dataclass(kw_only=True)
class Pick(TargetOptions, TableOptions):
    """
    Pick a threshold by what it shall give.

    It is selected on one half of the rows and evaluated on the other. Exit code 1 where the target cannot be met.
    """

    target_latency_ms: Annotated[float | None, of_exits(LATENCY, above_zero, "MS")] = None
    max_disagreement: Annotated[float | None, of_exits(DISAGREEMENT, share_or_zero, "F")] = None
    confidence: Annotated[float | None, of_exits(GUARANTEE, share, "F")] = None
    apply: Annotated[bool, flag("--apply", "make it the default of CHECKPOINT, a folder; writes its card")] = False

    def __post_init__(self) -> None:
        only_one(self, *self.TARGETS, "max_disagreement", "target_latency_ms", required=True)

    def run(self) -> int:
        from ..analysis.selection import pick_threshold
        from ..hub.applied_threshold import apply_threshold

        if self.apply and not Path(self.checkpoint).is_dir():
            raise ValueError(f"`--apply` needs a folder, but CHECKPOINT is {self.checkpoint!r}: download it first.")
        timed = self.target_latency_ms is not None
        self.check_confidence()
        self.check_per_layer()
        module = load_metric(self.metric)
        table, inputs = read_exits(self, need_inputs=timed)
        metric, score = name_metric(self.metric, module, table)
        latency = measure(inputs.model, table.lengths) if timed and inputs is not None else None
        choice = pick_threshold(
            table,
            target_saving=self.target_saving,
            max_metric_drop=self.max_score_drop,
            max_disagreement=self.max_disagreement,
            target_latency_ms=self.target_latency_ms,
            confidence=self.confidence,
            metric=metric,
            compute_metric=score,
            latency=latency,
            per_layer=self.per_layer,
            temperatures=self.temperatures,
            seed=self.seed,
        )
        sys.stdout.write(json.dumps(choice.to_dict(), indent=2) + "\n" if self.json else describe(choice))
        if not choice.met:
            return 1
        if self.apply:
            apply_threshold(self.checkpoint, choice)
            note(f"{self.checkpoint} now exits there by default; its card shows the evidence.")
        return 0

    def check_confidence(self) -> None:
        """Raises `ValueError` for options that a guarantee cannot be had with, before the model runs."""
        if self.confidence is None:
            return
        if not (self.max_score_drop or self.max_disagreement):
            raise ValueError("`--confidence` guarantees a bound: give `--max-score-drop` above 0 with it.")
        if self.metric != "accuracy" or self.per_layer:
            raise ValueError(
                "`--confidence` guarantees accuracy, with one threshold: leave out `--metric` and `--per-layer`."
            )


def measure(model: Any, lengths: "np.ndarray") -> "LatencyProfile":
    """A latency profile at lengths that the rows have."""
    import numpy as np

    from ..analysis.latency import measure_latency

    chosen = tuple(sorted({int(length) for length in np.quantile(lengths, [0, 0.25, 0.5, 0.75, 0.95, 1])}))
    note(f"measures the time of each layer at {', '.join(map(str, chosen))} tokens.")
    return measure_latency(model, chosen)


def describe(choice: "ThresholdChoice") -> str:
    """A choice for the terminal."""
    from ..hub.card_data import threshold_words

    low, high = choice.score_change_interval
    least, most = choice.layer_saving_interval
    largest = "ln(labels)" if choice.exit_score == "entropy" else f"the largest {choice.exit_score}"
    fractions = choice.fraction if isinstance(choice.fraction, tuple) else (choice.fraction,)
    share = f"{'':16}{', '.join(f'{value:.1%}' for value in fractions if value is not None)} of {largest}"
    lines = [
        choice.reason,
        "",
        f"threshold       {threshold_words(choice.threshold)}",
        share,
        f"in a call       {choice.call_arguments}",
        f"layers saved    {choice.layer_saving:.1%} (95 % interval {least:.1%} to {most:.1%})",
        f"{choice.metric:15} {choice.score:.2%}, at full depth {choice.full_score:.2%}",
        f"change          {100 * choice.score_change:+.2f} points "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})",
        f"evaluated on    {choice.rows:,} rows; one is worth {choice.row_worth:.2%}",
    ]
    if choice.latency_ms is not None:
        lines.append(f"time for a row  {choice.latency_ms:.2f} ms, at full depth {choice.full_latency_ms:.2f} ms")
    if choice.temperatures is not None:
        lines.append(f"temperatures    {', '.join(f'{value:.3f}' for value in choice.temperatures)}")
    if choice.met and choice.negative_flips is None:
        lines += ["", "On other rows it may lose more than on these; --confidence promises a bound."]
    return "\n".join(lines) + "\n"
