"""What a training run knows about its model, as [`CardData`]."""

import os
import re
from collections.abc import Mapping, Sized
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
from huggingface_hub.utils import validate_repo_id
from transformers import EvalPrediction
from transformers.utils import logging

from ..analysis.exit_table import ExitTable
from ..analysis.selection import pick_threshold
from ..hub.card_data import CardData


logger = logging.get_logger(__name__)

# The loss that the card's choice allows.
MAX_DROP = 0.01


def run_numbers(trainers: Mapping[str, Any]) -> CardData:
    """
    What is known without running the model: base model, data set, hyper-parameters. Nothing is guessed, and what is
    not known is left out.

    Args:
        trainers (`Mapping[str, StageTrainer]`): The stages that were run, under `"backbone"` and `"off_ramps"`.
    """
    last = list(trainers.values())[-1]
    card = CardData(training={name: stage_numbers(trainer) for name, trainer in trainers.items()})
    if "off_ramps" in trainers:
        card |= logged_scores(trainers["off_ramps"])
    if last.base_model_id is not None:
        card.base_model = {"name": last.base_model_id, "hub_id": last.base_model_id}
    if (dataset := hub_dataset(last.train_dataset)) is not None:
        card.data = {"name": dataset, "hub_id": dataset}
    return card


def stage_numbers(trainer: Any) -> dict[str, Any]:
    """Hyper-parameters of one stage."""
    args = trainer.args
    warm_up = args.warmup_steps
    numbers = {
        "epochs": args.num_train_epochs if trainer.state.epoch is None else round(trainer.state.epoch, 2),
        "learning_rate": args.learning_rate,
        "batch_size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "optimizer": str(getattr(args.optim, "value", args.optim)),
        "schedule": str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)),
        "warm_up": f"{warm_up:.0%} of the steps" if 0 < warm_up < 1 else f"{warm_up:g} steps",
        "weight_decay": args.weight_decay,
        "max_grad_norm": args.max_grad_norm,
        "seed": args.seed,
    }
    if trainer.trained_part == "off_ramps":
        numbers["off_ramp_mode"] = trainer.off_ramp_mode
        if trainer.distillation[0]:
            numbers["distillation_weight"] = trainer.distillation[0]
    if trainer.trained_part == "all":
        numbers["strategy"] = args.joint_strategy
        if trainer.full_depths is not None:
            numbers |= {f"full_depth_{when}": trainer.full_depths[when] for when in ("before", "after")}
    runtimes = [entry["train_runtime"] for entry in trainer.state.log_history if "train_runtime" in entry]
    if runtimes:
        numbers["seconds"] = round(runtimes[-1], 1)
    return numbers


def logged_scores(trainer: Any) -> CardData:
    """Scores of every layer as the last evaluation of these weights on `eval_dataset` logged them, if any did."""
    state = trainer.state
    step = state.best_global_step if trainer.args.load_best_model_at_end else state.global_step
    rows = len(trainer.eval_dataset) if isinstance(trainer.eval_dataset, Sized) else None

    def counted(entry) -> int:
        return round(entry.get("eval_runtime", 0) * entry.get("eval_samples_per_second", 0))

    layers = trainer.exit_layers
    first = f"eval_layer_{layers[0]}_"
    logged = [
        entry
        for entry in state.log_history
        if entry.get("step") == step
        and any(key.startswith(first) for key in entry)
        and (rows is None or abs(counted(entry) - rows) <= 1 + rows / 100)  # the log rounds
    ]
    if not logged:
        return CardData()
    last = {key.removeprefix(first): value for key, value in logged[-1].items() if first in key}
    metric = choose_metric(last, trainer.args)
    if metric is None:
        return CardData()
    scores = [float(logged[-1][f"eval_layer_{layer}_{metric}"]) for layer in layers]
    if not 0 <= scores[-1] <= 1:
        return CardData()
    return CardData(metric=metric, full_depth=scores[-1], layer_scores=scores)


def choose_metric(metrics: Mapping[str, Any], args: Any) -> str | None:
    """The metric of a card: `metric_for_best_model`, or the first that is a number."""
    wanted = (args.metric_for_best_model or "").removeprefix("eval_")
    names = [name for name, value in metrics.items() if isinstance(value, Real) or np.ndim(value) == 0]
    names = [name for name in names if not isinstance(metrics[name], (str, bool, type(None)))]
    return wanted if wanted in names else next(iter(names), None)


def card_arguments(
    language: str | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    dataset: str | None = None,
    dataset_tags: str | None = None,
    dataset_args: str | None = None,
    tasks: str | None = None,
) -> CardData:
    """
    What a user states of the model with the names that `Trainer.create_model_card` has for it. `tasks` is text
    classification whatever is given.
    """
    card = CardData(language=language, model_name=model_name)
    if finetuned_from is not None:
        if hub_id(finetuned_from) is None:
            raise ValueError(
                f"`finetuned_from` ({finetuned_from!r}) is no repository on the Hub, and a card names no "
                "folders: name the repository, or leave it out."
            )
        card.base_model = {"name": finetuned_from, "hub_id": finetuned_from}
    if dataset is not None or dataset_tags is not None:
        name = f"{dataset or dataset_tags} ({dataset_args})" if dataset_args else dataset or dataset_tags
        data = {"name": name, "hub_id": dataset_tags}
        card.data = {key: value for key, value in data.items() if value is not None}
    return card


def hub_id(name: str | None) -> str | None:
    """`name` if it can be that of a repository on the Hub; `None` for a folder."""
    try:
        validate_repo_id(name)
    except ValueError:
        return None
    return None if os.path.exists(name) else name


def hub_dataset(dataset: Any) -> str | None:
    """The id of the repository that a data set was loaded from, `None` where its files did not come from the Hub."""
    checksums = getattr(getattr(dataset, "info", None), "download_checksums", None) or {}
    ids = {match[1] for url in checksums if (match := re.match(r"hf://datasets/([^@]+)@", url))}
    return ids.pop() if len(ids) == 1 else None


def score_numbers(trainer: Any, dataset: Any) -> CardData:
    """
    Scores of every layer and the trade-off, from one pass over labelled rows. The metric is `metric_for_best_model`
    or the first that `compute_metrics` returns; one that is no share of 1 is left out, and the trade-off of one that
    needs more than the predicted classes as well.
    """
    if trainer.preprocess_logits_for_metrics is not None:
        return CardData()  # what comes out of it are no logits
    prediction = trainer.predict(dataset)
    if prediction.predictions is None or prediction.label_ids is None:
        return CardData()
    logits, labels = np.stack(list(prediction.predictions), axis=1), np.asarray(prediction.label_ids)
    known = labels != -100
    logits, labels = logits[known], labels[known]  # (rows, layers, labels), (rows,)
    if not len(labels):
        return CardData()

    def layer_metrics(answers: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        return trainer.layer_metrics(EvalPrediction(predictions=answers, label_ids=truth))

    layers = [layer_metrics(logits[:, layer], labels) for layer in range(logits.shape[1])]
    metric = choose_metric(layers[-1], trainer.args)
    if metric is None or not 0 <= layers[-1][metric] <= 1:
        return CardData()
    scores = [float(layer[metric]) for layer in layers]
    card = CardData(metric=metric, rows_scored=len(labels), full_depth=scores[-1], layer_scores=scores)
    if trainer.args.greater_is_better is False or re.search("loss|error", metric):
        return card  # lower is better, which nothing below understands

    def score(classes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
        return {metric: float(layer_metrics(np.eye(logits.shape[2])[classes], truth)[metric])}

    try:
        of_classes = [score(logits[:, layer].argmax(-1), labels)[metric] for layer in range(logits.shape[1])]
        if np.allclose(of_classes, scores, rtol=0, atol=1e-9):
            table = replace(ExitTable.from_logits(logits, labels), exit_layers=trainer.exit_layers)
            card |= CardData.from_table(table, metric, score)
            if len(table) >= 4:
                choice = pick_threshold(table, max_metric_drop=MAX_DROP, metric=metric, compute_metric=score)
                card |= CardData.from_choice(choice)
    except Exception as error:  # `compute_metrics` is the user's, and was not made for predicted classes
        logger.warning(f"The model card has no trade-off: `compute_metrics` cannot score predicted classes ({error}).")
    return card
