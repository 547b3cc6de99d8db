"""What the quickstart got, as numbers for the model card and as tables for the terminal."""

import importlib.metadata
import textwrap
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

from quickstart_data import CLEAR_RATING, MODEL_PACKAGE, NEAR_DUPLICATE, REVIEWS_PACKAGE

from transformers_deebert.analysis import (
    ExitTable,
    OperatingPoint,
    RuntimeFigure,
    ThresholdChoice,
    describe_machine,
    format_table,
)
from transformers_deebert.analysis.tables import THRESHOLD
from transformers_deebert.hub.card_data import CardData


PACKAGES = ("transformers-deebert", "transformers", "torch", "tokenizers", "accelerate", "datasets", "numpy")
USES = {"train": "both training stages", "validation": "choosing the threshold", "test": "all figures in this card"}

LIFE_SIGN = 5  # seconds between two lines while a phase runs


class Phases:
    """Announces each phase of the run and keeps its seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, announcement: str):
        print(f"\n[{len(self.seconds) + 1}] {announcement}", flush=True)
        start = time.perf_counter()
        done = threading.Event()

        def show_life() -> None:
            while not done.wait(LIFE_SIGN):
                print(f"    … {time.perf_counter() - start:.0f} s", flush=True)

        clock = threading.Thread(target=show_life, daemon=True)
        clock.start()
        try:
            yield
        finally:
            done.set()
            clock.join()
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"    {self.seconds[name]:.0f} s", flush=True)


def collect_numbers(
    model,
    known: CardData,
    splits: Mapping[str, list],
    table: ExitTable,
    points: Sequence[OperatingPoint],
    figures: Sequence[RuntimeFigure],
    choice: ThresholdChoice,
) -> dict:
    """The numbers of the card; `known` has the training's, `points` start with full depth, `figures` with the next."""
    card = CardData.from_config(model.config.to_dict()) | known
    card |= CardData.from_table(table, points=points, figures=figures)
    chosen = next(row for row in card.trade_off if row["threshold"] == choice.threshold)
    chosen["note"] = "chosen"
    low, high = (100 * change for change in choice.score_change_interval)
    sizes = {name: f"{len(rows):,} {name} sentences" for name, rows in splits.items()}
    return card.to_dict() | {
        "model_name": "deebert-movie-reviews",
        "model_class": type(model).__name__,
        "language": "en",
        "base_model": {"name": f"all-MiniLM-L6-v2, from the package {MODEL_PACKAGE.name} {MODEL_PACKAGE.version}"},
        "default_threshold": choice.threshold,
        "data": {
            "name": "VADER movie reviews",
            "description": (
                "Movie-review sentences with mean human ratings from -4 to 4 (Hutto and Gilbert, ICWSM 2014), from "
                f"the package {REVIEWS_PACKAGE.name} {REVIEWS_PACKAGE.version}. A rating of {CLEAR_RATING:g} "
                f"and more is positive, of {-CLEAR_RATING:g} and less negative; what lies between is left out. Of "
                f"near-duplicates (sentences that share {NEAR_DUPLICATE:.0%} of their words) one is kept. "
                "The split is random."
            ),
            "rows": [{"name": name, "rows": len(rows), "use": USES[name]} for name, rows in splits.items()],
        },
        "chosen": {
            **chosen,
            "score_change_interval": list(choice.score_change_interval),
            "how": (
                f"{choice.reason} The threshold was selected on the {sizes['validation']}. All figures are evaluated "
                f"on the {sizes['test']}, which had no part in training or in the choice: there it changes accuracy "
                f"by {100 * choice.score_change:+.1f} points (95 % bootstrap interval {low:+.1f} to {high:+.1f})."
            ),
        },
        "timing": {
            "batch_size": figures[0].batch_size,
            "rows": figures[0].rows,
            "repeats": len(figures[0].seconds),
            "control_gap": figures[0].control_gap,
        },
        "machine": describe_machine(model.device),
        "limits": [
            "Trained on single English sentences from film reviews with a clear rating. A text that is neither "
            "negative nor positive gets one of the two labels all the same."
        ],
        "packages": {
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "sha256": {package.filename: package.sha256 for package in (MODEL_PACKAGE, REVIEWS_PACKAGE)},
        },
    }


def print_report(numbers: Mapping) -> None:
    columns = {
        "threshold": ("threshold", THRESHOLD),
        "score": ("accuracy", ".1%"),
        "score_points": ("points", "+.1f"),
        "layer_saving": ("layers saved", ".1%"),
        "runtime_saving": ("time saved", ".1%"),
        "speed_up": ("speed-up", ".2f"),
        "ideal_speed_up": ("ideal", ".2f"),
        "note": ("", ""),
    }
    scores = "  ".join(f"{score:.1%}" for score in numbers["layer_scores"])
    layers = ", ".join(map(str, numbers["exit_layers"]))
    print(f"\nAccuracy of the exits behind the layers {layers}, each alone: {scores}")
    print(
        f"\nAccuracy on {numbers['rows_scored']:,} unseen sentences; time on {numbers['timing']['rows']:,} of them, "
        "one at a time:\n"
    )
    print(format_table([{**row, "score_points": 100 * row["score_change"]} for row in numbers["trade_off"]], columns))
    print("\n" + textwrap.fill(numbers["chosen"]["how"], 100))
    gap = numbers["timing"]["control_gap"]
    if gap > 0.03:
        print(f"\nThe machine was busy: the same model, timed twice, differed by {gap:.0%}. Do not trust the times.")


def print_answers(answers: Sequence[Mapping], threshold: float | None = None) -> None:
    columns = {
        "label": ("label", ""),
        "verdict": ("", ""),
        "score": ("score", ".1%"),
        "exit_layer": ("exit layer", "d"),
        "sentence": ("sentence", ""),
    }
    if threshold is not None:
        print(f"\nAn exit at the first off-ramp with an entropy below {format(threshold, THRESHOLD)} nats:")
    rows = [answer | {"verdict": "correct" if answer["correct"] else "incorrect"} for answer in answers]
    print(f"\n{format_table(rows, columns)}", flush=True)
