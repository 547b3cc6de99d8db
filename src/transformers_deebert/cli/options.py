"""
The options that several commands share, as fields of dataclasses: a command is a dataclass that inherits those it
takes, and Typer makes an option of each field.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, ClassVar

from typer import Argument, BadParameter, Option


SOURCES = (
    "a .jsonl, .json, .csv, .tsv, .parquet or .txt file, a folder of `save_to_disk`, or a data set on the Hub such as "
    "nyu-mll/glue:sst2"
)
TEXT_COLUMNS = "one or two columns of DATA; by default found by usual names"
DISAGREEMENT = "largest share of rows with another answer than at full depth; needs no labels"
GUARANTEE = "guarantee the bound with this probability, such as 0.95"
DROP = "largest loss of the metric: 0.01 is one point"
SKIPPED = "leave out rows without a text or with an unknown label, and count them"
TABLE = "keep the exits of all rows there, or read them if they are there: the model then does not run"
SCORES = "what thresholds are of: entropy (the default), least_confidence, margin or disagreement"

# ---- values; Typer passes defaults through as well


def number(fits: Callable[[float], bool], words: str) -> Callable[[Any], float]:
    def parse(text: Any) -> float:
        try:
            value = float(text)
        except ValueError as error:
            raise BadParameter(f"must be a number, got {text!r}") from error
        if not fits(value):
            raise BadParameter(words.format(text))
        return value

    return parse


def whole(fits: Callable[[int], bool], words: str) -> Callable[[Any], int]:
    def parse(text: Any) -> int:
        if not str(text).isdecimal() or not fits(int(text)):
            raise BadParameter(f"must be a whole number {words}, got {text!r}")
        return int(text)

    return parse


def one_of(names: Callable[[], Iterable[str]]) -> Callable[[Any], str]:
    def parse(text: Any) -> str:
        if text not in names():
            raise BadParameter(f"must be one of {', '.join(names())}, got {text!r}")
        return text

    return parse


def score_names() -> Iterable[str]:
    from ..models.exit_scores_deebert import SCORES  # needs torch, which help does without

    return SCORES


positive = whole(lambda value: value >= 1, "of 1 or more")
random_seed = whole(lambda value: value < 2**32, f"from 0 to {2**32 - 1}")
BETWEEN = "must lie between 0 and 1, got {}: 0.01 is one per cent, or one point"
share = number(lambda value: 0 < value < 1, BETWEEN)
share_or_zero = number(lambda value: 0 <= value < 1, BETWEEN)
above_zero = number(lambda value: 0 < value < math.inf, "must be finite and above 0, got {}")
threshold = number(lambda value: 0 <= value < math.inf, "must be finite and not negative, got {}")


# ---- options


def place(metavar: str, words: str) -> Any:
    return Argument(metavar=metavar, help=words, show_default=False)


def option(words: str, parser: Any = None, metavar: str = "", name: str = "", panel: str | None = None) -> Any:
    """`parser` makes a value of a word, strings stay as they are; `name` is by default the field's."""
    metavar = metavar or ("N" if parser else "NAME")
    return Option(*name.split(), help=words, parser=parser, metavar=metavar, rich_help_panel=panel, show_default=False)


def flag(name: str, words: str, panel: str | None = None) -> Any:
    return Option(name, help=words, rich_help_panel=panel, show_default=False)  # without a name it has a `--no-…`, too


def only_one(options: Any, *names: str, required: bool = False) -> None:
    """Raises a usage error where several of these options are given, or none and one is required."""
    flags = {f"--{name.replace('_', '-')}": getattr(options, name) for name in names}
    given = [flag for flag, value in flags.items() if value is not None and value is not False]
    if len(given) > 1:
        raise BadParameter(f"argument {given[1]}: not allowed with argument {given[0]}")
    if required and not given:
        raise BadParameter(f"one of the arguments {' '.join(flags)} is required")


of_data, of_exits = partial(option, panel="Data and model"), partial(option, panel="Exits")


@dataclass(kw_only=True)
class Command:
    # Arguments of our functions whose options have other names, for messages.
    RENAMED: ClassVar[dict[str, str]] = {"max_metric_drop": "--max-score-drop", "compute_metric": "--metric"}

    def run(self) -> int:
        """Writes the answer to stdout and returns the exit code; imports what needs torch or more."""
        raise NotImplementedError


@dataclass(kw_only=True)
class DataOptions(Command):
    checkpoint: Annotated[str, place("CHECKPOINT", "early-exit model: repository on the Hub or folder")]
    data: Annotated[str, place("DATA", f"labelled rows: {SOURCES}")]
    split: Annotated[str | None, of_data("of DATA; default: the first of validation, test, train")] = None
    text_columns: Annotated[list[str] | None, of_data(TEXT_COLUMNS, None, "NAME...")] = None
    label_column: Annotated[str | None, of_data("column of DATA; by default label or labels")] = None
    max_rows: Annotated[int | None, of_data("read a random sample of so many rows", positive)] = None
    max_length: Annotated[int | None, of_data("cut rows to so many tokens; by default all that fit", positive)] = None
    skip_invalid: Annotated[bool, flag("--skip-invalid", SKIPPED, "Data and model")] = False
    batch_size: Annotated[int, of_data("rows of one pass (32)", positive)] = 32
    device: Annotated[str, of_data("cpu (the default), cuda or mps")] = "cpu"
    revision: Annotated[str | None, of_data("branch, tag or commit of CHECKPOINT")] = None
    seed: Annotated[int, of_data("of everything random (0)", random_seed)] = 0


@dataclass(kw_only=True)
class CriterionOptions(Command):
    criterion: Annotated[str | None, of_exits(SCORES, one_of(score_names), "SCORE")] = None
    patience: Annotated[int | None, of_exits("exits in a row below the threshold that it takes (1)", positive)] = None

    @property
    def asked(self) -> dict[str, Any]:
        """As fields of an `ExitCriterion`."""
        return {"score": self.criterion or "entropy", "patience": self.patience or 1}


@dataclass(kw_only=True)
class ThresholdOptions(CriterionOptions):
    thresholds: Annotated[list[float] | None, of_exits("nats, or of --criterion", threshold, "S...")] = None
    fractions: Annotated[list[float] | None, of_exits("of the largest, ln(labels) nats", threshold, "F...")] = None

    def __post_init__(self) -> None:
        only_one(self, "thresholds", "fractions")


@dataclass(kw_only=True)
class TableOptions(CriterionOptions, DataOptions):
    """Those of commands that read an exit table."""

    metric: Annotated[str, of_exits("accuracy (the default), f1, or a metric of the `evaluate` library")] = "accuracy"
    table: Annotated[str | None, option(TABLE, metavar="FOLDER")] = None
    json: Annotated[bool, flag("--json", "write JSON instead of a table")] = False


@dataclass(kw_only=True)
class TargetOptions(CriterionOptions):
    """One target, and other ways to exit than by one threshold."""

    target_saving: Annotated[float | None, of_exits("share of the layers to save: 0.4 is 40 %", share, "F")] = None
    max_score_drop: Annotated[float | None, of_exits(DROP, share_or_zero, "F")] = None
    per_layer: Annotated[bool, flag("--per-layer", "search for a threshold for each off-ramp", "Exits")] = False
    temperatures: Annotated[
        bool, flag("--temperatures", "fit one for each off-ramp first, to calibrate it", "Exits")
    ] = False

    TARGETS: ClassVar[tuple[str, ...]] = ("target_saving", "max_score_drop")

    def __post_init__(self) -> None:
        only_one(self, *self.TARGETS)

    def check_per_layer(self) -> None:
        """Raises `ValueError` for a criterion that `--per-layer` cannot have, before the model runs."""
        from ..analysis.layer_thresholds import check_independent

        if self.per_layer:
            check_independent(**self.asked)
