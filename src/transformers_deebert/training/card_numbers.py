"""What a training run knows about its model, as numbers for the model card."""

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import EvalPrediction
from transformers.utils import logging

from ..analysis.sweep import OperatingPoint, pick_operating_points, sweep_thresholds


if TYPE_CHECKING:
    from .off_ramp_trainer import OffRampTrainer
    from .stage_trainer import StageTrainer

logger = logging.get_logger(__name__)

# Thresholds of the card's table, as far as they are below ln(labels), and the loss that its choice allows.
SHOWN = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
MAX_DROP = 0.01


def run_numbers(trainers: Mapping[str, Any]) -> dict[str, Any]:
    """
    What is known without running the model: base model, data set, hyper-parameters. Nothing is guessed, and what is
    not known is left out.

    Args:
        trainers (`Mapping[str, StageTrainer]`): The stages that were run, under `"backbone"` and `"off_ramps"`.
    """
    last = list(trainers.values())[-1]
    numbers: dict[str, Any] = {
        "training": {name: stage_numbers(trainer) for name, trainer in trainers.items()},
        "seed": last.args.seed,
    }
    if "off_ramps" in trainers:
        numbers["training"]["off_ramps"]["off_ramp_mode"] = trainers["off_ramps"].off_ramp_mode
        numbers |= logged_scores(trainers["off_ramps"])
    config = last.early_exit_model.config
    if getattr(config, "_commit_hash", None) is not None:  # it came from the Hub, not from a folder
        numbers["base_model"] = {"name": config.name_or_path, "hub_id": config.name_or_path}
    if (dataset := hub_dataset(last.train_dataset)) is not None:
        numbers["data"] = {"name": dataset, "hub_id": dataset}
    return numbers


def stage_numbers(trainer: "StageTrainer") -> dict[str, Any]:
    """Hyper-parameters of one stage."""
    args = trainer.args
    warm_up = args.warmup_steps
    numbers = {
        "epochs": args.num_train_epochs if args.max_steps <= 0 else round(trainer.state.epoch or 0, 2),
        "learning_rate": args.learning_rate,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warm_up": f"{warm_up:.0%} of the steps" if 0 < warm_up < 1 else f"{warm_up:g} steps",
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
    }
    runtimes = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if runtimes:
        numbers["seconds"] = round(runtimes[-1], 1)
    return numbers


def logged_scores(trainer: "OffRampTrainer") -> dict[str, Any]:
    """Scores of every layer as the last evaluation logged them, if there was one."""
    logged = [entry for entry in trainer.state.log_history if any(key.startswith("eval_layer_1_") for key in entry)]
    if not logged:
        return {}
    metrics = [key.removeprefix("eval_layer_1_") for key in logged[-1] if key.startswith("eval_layer_1_")]
    wanted = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    metric = wanted if wanted in metrics else metrics[0]
    layers = range(1, trainer.early_exit_model.config.num_hidden_layers + 1)
    scores = [logged[-1][f"eval_layer_{layer}_{metric}"] for layer in layers]
    return {"metric": metric, "full_depth": scores[-1], "layer_scores": scores} if 0 <= scores[-1] <= 1 else {}


def card_arguments(
    language: str | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset: str | None = None,
    dataset_tags: str | None = None,
) -> dict[str, Any]:
    """What a user says of the model with the names that `Trainer.create_model_card` has for it, as numbers."""
    numbers: dict[str, Any] = {"language": language, "model_name": model_name}
    if finetuned_from is not None:
        numbers["base_model"] = {"name": finetuned_from, "hub_id": finetuned_from}
    if dataset is not None or dataset_tags is not None:
        data = {"name": dataset or dataset_tags, "hub_id": dataset_tags}
        numbers["data"] = {key: value for key, value in data.items() if value is not None}
    return {key: value for key, value in numbers.items() if value is not None}


def hub_dataset(dataset: Any) -> str | None:
    """The id of the repository that a data set was loaded from, `None` where its files did not come from the Hub."""
    checksums = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    ids = {match[1] for url in checksums if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None


def score_numbers(trainer: "OffRampTrainer", dataset: Any) -> dict[str, Any]:
    """
    Scores of every layer and the trade-off, from one pass over labelled rows. The metric is `metric_for_best_model`
    or the first that `compute_metrics` returns; one that is no share of 1 is left out, and the trade-off of one that
    needs more than the predicted classes as well.
    """
    prediction = trainer.predict(dataset)
    logits, labels = np.stack(list(prediction.predictions), axis=1), np.asarray(prediction.label_ids)
    known = labels != -100
    logits, labels = logits[known], labels[known]  # (rows, layers, labels), (rows,)

    def layer_metrics(answers: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return trainer.layer_metrics(EvalPrediction(predictions=answers, label_ids=truth))

    full = layer_metrics(logits[:, -1], labels)
    metric = (trainer.args.metric_for_best_model or "").removeprefix("eval_")
    metric = metric if metric in full else next(iter(full), None)
    if metric is None or not 0 <= full[metric] <= 1:
        return {}
    numbers = {
        "metric": metric,
        "rows_scored": len(labels),
        "full_depth": full[metric],
        "layer_scores": [layer_metrics(logits[:, layer], labels)[metric] for layer in range(logits.shape[1])],
    }

    def score(classes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return layer_metrics(np.eye(logits.shape[2])[classes], truth)

    try:
        if math.isclose(score(logits[:, -1].argmax(-1), labels)[metric], full[metric], abs_tol=1e-9):
            numbers |= trade_off_numbers(logits, labels, score, metric)
    except Exception as error:  # `compute_metrics` is the user's, and was not made for predicted classes
        logger.warning(f"The model card has no trade-off: `compute_metrics` cannot score predicted classes ({error}).")
    return numbers


def trade_off_numbers(logits: np.ndarray, labels: np.ndarray, score: Any, metric: str) -> dict[str, Any]:
    """Score and saving at some thresholds, and at one that is chosen on one half of the rows and read on the other."""
    thresholds = [0.0, *(threshold for threshold in SHOWN if threshold < math.log(logits.shape[2]))]
    points = sweep_thresholds(logits, labels, thresholds, score)
    numbers: dict[str, Any] = {"trade_off": [trade_off_row(point, points[0], metric) for point in points]}
    if len(labels) < 4:
        return numbers
    (held_out,) = pick_operating_points(logits, labels, score, metric, max_drops=[MAX_DROP])
    low, high = (100 * change for change in held_out.score_change_interval)
    numbers["chosen"] = trade_off_row(held_out.read, held_out.full, metric) | {
        "how": (
            f"S = {held_out.threshold:.4g} saves most layers among the thresholds that lose at most "
            f"{100 * MAX_DROP:g} point of {metric} against full depth on one random half of the evaluation set. Read "
            f"on the other half ({held_out.rows:,} rows), it saves {held_out.read.layer_saving:.1%} of the layers and "
            f"changes {metric} by {100 * held_out.score_change:+.1f} points (95 % bootstrap interval {low:+.1f} to "
            f"{high:+.1f})."
        )
    }
    return numbers


def trade_off_row(point: OperatingPoint, full: OperatingPoint, metric: str) -> dict[str, Any]:
    return {
        "threshold": point.threshold,
        "score": point.scores[metric],
        "score_change": point.scores[metric] - full.scores[metric],
        "layer_saving": point.layer_saving,
        "note": "full depth" if point.threshold == 0 else "",
    }
