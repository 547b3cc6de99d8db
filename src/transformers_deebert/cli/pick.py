"""`deebert pick`: a threshold by what it shall give."""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..messages import note
from .choosing import add_metric_argument, add_target_arguments, check_per_layer, load_metric, name_metric, share
from .exits import add_exit_arguments, read_exits


if TYPE_CHECKING:
    from ..analysis.latency import LatencyProfile
    from ..analysis.threshold_choice import ThresholdChoice


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "pick",
        help="pick a threshold by what it shall give",
        description="Picks a threshold on one half of the rows and reads on the other what it gives. Exit code 1 "
        "where the target cannot be met.",
    )
    add_exit_arguments(parser)
    add_target_arguments(parser, latency=True, required=True)
    add_metric_argument(parser)
    parser.add_argument(
        "--confidence",
        type=share,
        metavar="F",
        help="guarantee --max-score-drop (of accuracy) with this probability, such as 0.95",
    )
    add_way_arguments(parser)
    parser.add_argument(
        "--apply", action="store_true", help="make it the default of CHECKPOINT, a folder; writes its card"
    )
    parser.set_defaults(run=run)


def check_confidence(options: argparse.Namespace) -> None:
    """Raises `ValueError` for options that a guarantee cannot be had with, before the model runs."""
    if options.confidence is None:
        return
    if not options.max_score_drop:
        raise ValueError("`--confidence` guarantees a bound: give `--max-score-drop` above 0 with it.")
    if options.metric != "accuracy" or options.per_layer:
        raise ValueError(
            "`--confidence` guarantees accuracy, with one threshold: leave out `--metric` and `--per-layer`."
        )


def add_way_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares other ways to exit than by one threshold."""
    parser.add_argument("--per-layer", action="store_true", help="search for a threshold for each off-ramp")
    parser.add_argument(
        "--temperatures", action="store_true", help="fit a temperature for each off-ramp first, to calibrate them"
    )


def run(options: argparse.Namespace) -> int:
    from ..analysis.threshold_choice import pick_threshold
    from ..hub.applied_threshold import apply_threshold

    if options.apply and not Path(options.checkpoint).is_dir():
        raise ValueError(f"`--apply` needs a folder, but CHECKPOINT is {options.checkpoint!r}: download it first.")
    timed = options.target_latency_ms is not None
    check_confidence(options)
    check_per_layer(options)
    module = load_metric(options.metric)
    table, inputs = read_exits(options, need_inputs=timed)
    metric, score = name_metric(options.metric, module, table)
    latency = measure(inputs.model, table.lengths) if timed and inputs is not None else None
    choice = pick_threshold(
        table,
        target_saving=options.target_saving,
        max_score_drop=options.max_score_drop,
        target_latency_ms=options.target_latency_ms,
        confidence=options.confidence,
        metric=metric,
        score=score,
        latency=latency,
        per_layer=options.per_layer,
        temperatures=options.temperatures,
        seed=options.seed,
    )
    sys.stdout.write(json.dumps(choice.to_dict(), indent=2) + "\n" if options.json else describe(choice))
    if not choice.met:
        return 1
    if options.apply:
        apply_threshold(options.checkpoint, choice)
        note(f"{options.checkpoint} now exits there by default; its card says why.")
    return 0


def measure(model: Any, lengths: np.ndarray) -> "LatencyProfile":
    """A latency profile at lengths that the rows have."""
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
    share = [] if choice.fraction is None else [f"{'':16}{fraction_words(choice.fraction)} of {largest}"]
    lines = [
        choice.reason,
        "",
        f"threshold       {threshold_words(choice.threshold)}",
        *share,
        f"in a call       {choice.call_arguments}",
        f"layers saved    {choice.layer_saving:.1%} (95 % interval {least:.1%} to {most:.1%})",
        f"{choice.metric:15} {choice.score:.2%}, at full depth {choice.full_score:.2%}",
        f"change          {100 * choice.score_change:+.2f} points "
        f"(95 % interval {100 * low:+.2f} to {100 * high:+.2f})",
        f"read on         {choice.rows:,} rows; one is worth {choice.row_worth:.2%}",
    ]
    if choice.latency_ms is not None:
        lines.append(f"time for a row  {choice.latency_ms:.2f} ms, at full depth {choice.full_latency_ms:.2f} ms")
    if choice.temperatures is not None:
        lines.append(f"temperatures    {', '.join(f'{value:.3f}' for value in choice.temperatures)}")
    if choice.met and choice.harmful_flips is None:
        lines += ["", "On other rows it may lose more than on these; --confidence promises a bound."]
    return "\n".join(lines) + "\n"


def fraction_words(fraction: float | tuple[float, ...]) -> str:
    values = fraction if isinstance(fraction, tuple) else (fraction,)
    return ", ".join(f"{value:.1%}" for value in values)
