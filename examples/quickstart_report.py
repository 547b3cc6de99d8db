"""What the quickstart got, as numbers for the model card and as tables for the terminal."""

import importlib.metadata
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import numpy as np
from quickstart_data import CLEAR_RATING, LABELS, MODEL_PACKAGE, NEAR_DUPLICATE, REVIEWS_PACKAGE
from transformers import Trainer
from transformers.trainer_utils import TrainOutput

from transformers_deebert import OffRampTrainer, TwoStageTrainer
from transformers_deebert.analysis import (
    OperatingPoint,
    RuntimeFigure,
    describe_machine,
    exit_layers,
    format_table,
)


PACKAGES = ("transformers-deebert", "transformers", "torch", "tokenizers", "accelerate", "datasets", "numpy")
USES = {"train": "both training stages", "validation": "choosing the threshold", "test": "all figures in this card"}


class Phases:
    """Announces each phase of the run and keeps its seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str, announcement: str):
        print(f"\n[{len(self.seconds) + 1}] {announcement}", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 1)
        print(f"    {self.seconds[name]:.0f} s", flush=True)


def collect_numbers(
    trainer: TwoStageTrainer,
    trained: Mapping[str, TrainOutput],
    splits: Mapping[str, list],
    logits: np.ndarray,
    labels: np.ndarray,
    points: Sequence[OperatingPoint],
    figures: Sequence[RuntimeFigure],
    threshold: float,
    max_drop: float,
) -> dict:
    """The numbers as `create_model_card` takes them; `points` start with full depth, `figures` with the next one."""
    config = trainer.model.config
    rows = [trade_off_row(points[0], points[0], None)]
    rows += [trade_off_row(point, points[0], figure) for point, figure in zip(points[1:], figures, strict=True)]
    chosen = next(row for row in rows if row["threshold"] == threshold)
    chosen["note"] = "chosen"
    interval = change_interval(logits, labels, threshold)
    sizes = {name: f"{len(rows):,} {name} sentences" for name, rows in splits.items()}
    return {
        "model_name": "deebert-movie-reviews",
        "model_class": type(trainer.model).__name__,
        "language": "en",
        "base_model": {"name": f"all-MiniLM-L6-v2, from the package {MODEL_PACKAGE.name} {MODEL_PACKAGE.version}"},
        "layers": config.num_hidden_layers,
        "off_ramp_pooling": config.off_ramp_pooling,
        "off_ramp_head": config.off_ramp_head,
        "labels": list(LABELS),
        "default_threshold": threshold,
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
        "training": {
            "backbone": hyper_parameters(trainer.backbone_trainer, trained["backbone"]),
            "off_ramps": hyper_parameters(trainer.off_ramp_trainer, trained["off_ramps"]),
        },
        "metric": "accuracy",
        "rows_scored": len(labels),
        "full_depth": rows[0]["score"],
        "layer_scores": (logits.argmax(-1) == labels[:, None]).mean(axis=0).tolist(),
        "trade_off": rows,
        "chosen": {
            **chosen,
            "score_change_interval": list(interval),
            "how": (
                f"S = {threshold:g} saves most layers among the thresholds that lose at most {100 * max_drop:g} point "
                f"of accuracy against full depth on the {sizes['validation']}. The figures are read on the "
                f"{sizes['test']}, which had no part in training or in the choice: there it changes accuracy by "
                f"{100 * chosen['score_change']:+.1f} points (95 % bootstrap interval {100 * interval[0]:+.1f} to "
                f"{100 * interval[1]:+.1f})."
            ),
        },
        "timing": {
            "batch_size": figures[0].batch_size,
            "rows": figures[0].rows,
            "repeats": len(figures[0].seconds),
            "control_gap": figures[0].control_gap,
        },
        "machine": describe_machine(trainer.model.device),
        "limits": [
            "Trained on single English sentences from film reviews with a clear rating. A text that is neither "
            "negative nor positive gets one of the two labels all the same."
        ],
        "packages": {
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "sha256": {package.filename: package.sha256 for package in (MODEL_PACKAGE, REVIEWS_PACKAGE)},
        },
    }


def trade_off_row(point: OperatingPoint, full: OperatingPoint, figure: RuntimeFigure | None) -> dict:
    return {
        "threshold": point.threshold,
        "score": point.scores["accuracy"],
        "score_change": point.scores["accuracy"] - full.scores["accuracy"],
        "layer_saving": point.layer_saving,
        "runtime_saving": figure.runtime_saving if figure else 0.0,
        "speed_up": figure.speed_up if figure else 1.0,
        "ideal_speed_up": 1 / point.layer_cost_ratio,
        "note": "" if figure else "full depth",
    }


def change_interval(logits: np.ndarray, labels: np.ndarray, threshold: float) -> tuple[float, float]:
    """95 % bootstrap interval, over the rows, of the change of accuracy against full depth."""
    rows = np.arange(len(labels))
    early = logits[rows, exit_layers(logits, threshold) - 1].argmax(-1) == labels
    change = early.astype(float) - (logits[:, -1].argmax(-1) == labels)
    draws = np.random.default_rng(0).choice(change, size=(1000, len(rows))).mean(axis=1)
    return tuple(np.quantile(draws, [0.025, 0.975]).tolist())


def hyper_parameters(trainer: Trainer, trained: TrainOutput) -> dict:
    args = trainer.args
    numbers = {
        "epochs": args.num_train_epochs,
        "learning_rate": args.learning_rate,
        "batch_size": args.train_batch_size,
        "optimizer": "AdamW",
        "schedule": f"{args.lr_scheduler_type.value} decay",
        "warm_up": f"{args.warmup_steps:.0%} of the steps",
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "dropout": trainer.model.config.hidden_dropout_prob,
        "seconds": round(trained.metrics["train_runtime"], 1),
    }
    return numbers | ({"off_ramp_mode": trainer.off_ramp_mode} if isinstance(trainer, OffRampTrainer) else {})


def print_report(numbers: Mapping) -> None:
    columns = {
        "threshold": ("S", "g"),
        "score": ("accuracy", ".1%"),
        "score_points": ("points", "+.1f"),
        "layer_saving": ("layers saved", ".1%"),
        "runtime_saving": ("time saved", ".1%"),
        "speed_up": ("speed-up", ".2f"),
        "ideal_speed_up": ("ideal", ".2f"),
        "note": ("", ""),
    }
    scores = "  ".join(f"{score:.1%}" for score in numbers["layer_scores"])
    print(f"\nAccuracy of layers 1 to {numbers['layers']}, each alone: {scores}")
    print(f"\nAccuracy against time, on {numbers['rows_scored']:,} unseen sentences, one at a time:\n")
    print(format_table([{**row, "score_points": 100 * row["score_change"]} for row in numbers["trade_off"]], columns))
    print("\n" + textwrap.fill(numbers["chosen"]["how"], 100))
    gap = numbers["timing"]["control_gap"]
    if gap > 0.03:
        print(f"\nThe machine was busy: the same model, timed twice, differed by {gap:.0%}. Do not trust the times.")


def print_answers(answers: Sequence[Mapping], numbers: Mapping) -> None:
    columns = {
        "label": ("label", ""),
        "score": ("score", ".1%"),
        "exit_layer": ("exit layer", "d"),
        "sentence": ("sentence", ""),
    }
    print(f"\nThe saved checkpoint, which exits at S = {numbers['default_threshold']:g} unless told otherwise:\n")
    print(format_table(answers, columns))
