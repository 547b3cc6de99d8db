"""Options about targets and scores."""

import argparse
import math
from typing import TYPE_CHECKING, Any

from .inputs import positive


if TYPE_CHECKING:
    from ..analysis.exit_table import ExitTable


def add_target_arguments(parser: argparse.ArgumentParser, latency: bool = False, required: bool = False) -> None:
    """Declares the targets, of which one may be given."""
    targets = parser.add_mutually_exclusive_group(required=required)
    targets.add_argument("--target-saving", type=share, metavar="F", help="share of the layers to save: 0.4 is 40 %%")
    targets.add_argument(
        "--max-score-drop", type=share_or_zero, metavar="F", help="largest loss of score: 0.01 is one point"
    )
    if latency:
        targets.add_argument(
            "--target-latency-ms",
            type=above_zero,
            metavar="MS",
            help="expected milliseconds for a row at batch size 1, by a profile that is measured on this machine",
        )


def add_criterion_arguments(parser: argparse.ArgumentParser, default: str = "entropy") -> None:
    """Declares the score and the patience of thresholds; what stands for neither is `default`, in words."""
    parser.add_argument(
        "--criterion",
        type=score_name,
        metavar="SCORE",
        help="what thresholds are of: entropy, least_confidence, margin or disagreement; lower is more confident "
        f"(default: {default})",
    )
    parser.add_argument(
        "--patience", type=positive, metavar="N", help="consecutive exits that have to be below the threshold (1)"
    )


def asked_criterion(options: argparse.Namespace) -> dict[str, Any]:
    """Score and patience of thresholds, as fields of an `ExitCriterion`."""
    return {"score": options.criterion or "entropy", "patience": options.patience or 1}


def check_per_layer(options: argparse.Namespace) -> None:
    """Raises `ValueError` for a criterion that `--per-layer` cannot have, before the model runs."""
    from ..analysis.layer_thresholds import check_independent

    if options.per_layer:
        check_independent(**asked_criterion(options))


def score_name(text: str) -> str:
    from ..models.exit_scores_deebert import SCORES

    if text not in SCORES:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(SCORES)}, got {text!r}")
    return text


def add_metric_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric", default="accuracy", help="accuracy (the default), f1, or a metric of the `evaluate` library"
    )


def share(text: str) -> float:
    value = number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must lie between 0 and 1, got {text}: 0.01 is one per cent, or one point")
    return value


def share_or_zero(text: str) -> float:
    return 0.0 if number(text) == 0 else share(text)


def above_zero(text: str) -> float:
    value = number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and above 0, got {text}")
    return value


def threshold(text: str) -> float:
    value = number(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"must be finite and not negative, got {text}")
    return value


def number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from error


def load_metric(name: str) -> Any:
    """
    A module of `evaluate` by its name, `None` for accuracy and F1, which need none.

    Raises:
        ValueError: for a metric that cannot be loaded.
    """
    from ..analysis.scores import EXACT

    if name in EXACT:
        return None
    import evaluate

    from ..messages import first_line

    try:
        return evaluate.load(name)
    except (OSError, ValueError, ImportError) as error:
        raise ValueError(
            f"`--metric` {name!r} cannot be loaded ({first_line(error)}): accuracy and f1 are always there."
        ) from error


def name_metric(name: str, module: Any, table: "ExitTable") -> tuple[str, Any]:
    """
    What `metric` and `score` of the analysis are to be.

    Raises:
        ValueError: for a module that returns several numbers of other names.
    """
    from ..analysis.scores import make_scores

    if module is None:
        return name, None
    found = list(make_scores(module, table.num_labels)(table.answers[:, -1], table.labels))
    if name not in found and len(found) > 1:
        raise ValueError(f"`--metric` {name!r} returns several numbers ({', '.join(found)}): choose another metric.")
    return (name if name in found else found[0]), module
