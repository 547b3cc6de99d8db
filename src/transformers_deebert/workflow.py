"""Early exits for a fine-tuned classifier: from a checkpoint and labelled rows to a model with card and report."""

import hashlib
import json
import math
import os
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding, PrinterCallback, set_seed

from .analysis.choice import ThresholdChoice
from .analysis.collect import collect_exits
from .analysis.decisions import as_criterion
from .analysis.exit_table import ExitTable
from .analysis.layer_thresholds import check_independent
from .analysis.report import check_report_packages, make_report
from .analysis.selection import check_targets, pick_threshold
from .checkpoints import check_device, check_tokenizer, load_backbone
from .folders import check_new_folder, whole_folder
from .hub.applied_threshold import apply_threshold
from .hub.card_data import CardData
from .hub.model_card import write_model_card
from .labels import UNLABELLED
from .messages import listed, note
from .models.exit_loop_deebert import has_exits
from .rows import encode_rows, find_columns, without_invalid
from .training.card_numbers import run_numbers
from .training.off_ramp_search import FitSettings, search_off_ramps
from .training.off_ramp_trainer import OffRampTrainer
from .training.training_arguments import DeeBertTrainingArguments


if TYPE_CHECKING:
    from datasets import Dataset

LEAST_ROWS = 40  # held out: a report needs as many
# What measures well on sentence classifiers; the paper's own defaults are those of the configuration.
MODEL_SETTINGS = {"off_ramp_pooling": "mean"}
# Arguments of a training that the search over kinds takes, as fields of its settings.
FITTED = {
    "num_train_epochs": "epochs",
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "distillation_weight": "distillation_weight",
    "distillation_temperature": "distillation_temperature",
}
TRAINING = {"num_train_epochs": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 32, "warmup_steps": 0.1}


@dataclass(frozen=True)
class AddedExits:
    """
    What [`add_exits`] made.

    Args:
        folder (`Path`): Holds the model, its tokenizer, its card (README.md, numbers.json) and report.html.
        choice ([`ThresholdChoice`]): The default threshold of the model, if `choice.met`.
        table ([`ExitTable`]): The exits of the rows held out.
    """

    folder: Path
    choice: ThresholdChoice
    table: ExitTable


def add_exits(
    model: Any,
    rows: Any,
    output_dir: str | Path,
    *,
    held_out: Any = None,
    hold_out: float = 0.2,
    tokenizer: Any = None,
    target_saving: float | None = None,
    max_metric_drop: float | None = None,
    max_disagreement: float | None = None,
    confidence: float | None = None,
    per_layer: bool = False,
    temperatures: bool = False,
    criterion: Any = "entropy",
    off_ramps: str | Mapping[str, Any] = "auto",
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    max_length: int | None = None,
    skip_invalid: bool = False,
    training: Mapping[str, Any] | None = None,
    batch_size: int = 32,
    device: str = "cpu",
    revision: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> AddedExits:
    """
    Adds exits to a fine-tuned classifier, which itself stays as it is: trains off-ramps on its states, picks a
    threshold on rows held out, and writes model, card and report.

    The folder appears when all is written. Off-ramps that are trained when a later step fails (a full disk, say) are
    kept beside it: the same call goes on from there.

    Args:
        model (`str`, `Path` or `PreTrainedModel`):
            Checkpoint of a fine-tuned classifier of a supported family, or a model that [`from_backbone`] made of one.
        rows (`datasets.Dataset`, data frame or sequence of `dict`):
            Rows to train on: texts in columns of usual names (`text`, `sentence`, or `sentence1` with `sentence2`, …)
            and a `label`, index or class name; or encoded, with `input_ids` and `labels` or `label`. Without labels
            everything is about the answers at full depth: off-ramps learn from them, and accuracy is agreement with
            them.
        output_dir (`str` or `Path`): Must not exist, or be empty.
        held_out (as `rows`, *optional*):
            Rows to pick the threshold on, best ones that the model was not fine-tuned on: those exit early.
        hold_out (`float`, *optional*, defaults to 0.2): Without `held_out`, the share of `rows` that is held out.
        tokenizer (*optional*): The checkpoint's by default.
        target_saving, max_metric_drop, max_disagreement, confidence, per_layer, temperatures:
            As for [`pick_threshold`]; at most one target, by default a drop of at most one point of accuracy, or
            without labels a disagreement of at most one per cent.
        criterion (`str`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            The score, by its name, and the patience of the threshold that is picked; one in it is ignored.
        off_ramps (`str` or `Mapping`, *optional*, defaults to `"auto"`):
            `"auto"`: several kinds are fitted to learn the model's own answers, with `"mean"` pooling, an exit behind
            the embeddings among them, and the one of largest mean saving between 0 and 1 point lost, on a part split
            off `rows`, is kept ([`search_off_ramps`]). Or fields of the configuration, for one kind that
            [`OffRampTrainer`] trains, such as `{"off_ramp_head": "linear"}`.
        text_columns, label_column (*optional*): Where texts and label are.
        max_length (`int`, *optional*): Tokens to cut longer rows to; as many as the model takes by default.
        skip_invalid (`bool`, *optional*): Leave out rows without a text or with an unknown label, and report how many.
        training (`Mapping`, *optional*):
            Fields of [`DeeBertTrainingArguments`]; by default 10 epochs at a learning rate of 1e-3, batches of 32.
            With `"auto"` epochs, learning rate, batch size and distillation alone.
        batch_size (`int`, *optional*, defaults to 32): Of the passes through the model.
        device (`str`, *optional*, defaults to `"cpu"`): Such as `"cuda"`.
        revision (`str`, *optional*): Branch, tag or commit of `model` on the Hub.
        seed (`int`, *optional*, defaults to 0): Of everything random.
        progress (`bool`, *optional*): Whether bars are shown; by default where stderr is a terminal.

    Returns:
        [`AddedExits`]: where `choice.met` is false, the model has no default threshold.

    Raises:
        ValueError: before anything is trained or written, for a folder that is not empty or cannot be written, a
            checkpoint that is none of a fine-tuned classifier, rows that do not fit it, fewer than 40 held out,
            targets out of range, a criterion that no configuration can hold or that `per_layer` cannot have.
        OSError: for what cannot be written later.

    ```python
    >>> from transformers_deebert import add_exits

    >>> added = add_exits("org/my-classifier", rows, "with-exits", target_saving=0.5)  # doctest: +SKIP
    >>> added.choice.threshold  # doctest: +SKIP
    0.31

    ```
    """
    check_report_packages()
    folder = Path(output_dir).absolute()
    check_new_folder("output_dir", folder)
    target: dict[str, Any] = {
        "target_saving": target_saving,
        "max_metric_drop": max_metric_drop,
        "max_disagreement": max_disagreement,
    }
    given = any(value is not None for value in target.values())
    if given or confidence is not None:
        check_targets(target_saving, max_metric_drop, None, confidence, None, max_disagreement)
    fields = check_off_ramps(off_ramps, training)
    criterion = as_criterion(criterion)
    criterion.to_dict()  # raises for a function, which the configuration of the model could not hold
    if per_layer:
        check_independent(criterion.score, criterion.patience)
    model, tokenizer = load(model, tokenizer, revision, device, MODEL_SETTINGS | fields)

    def encode(given: Any) -> "Dataset":
        return encoded(given, model, tokenizer, text_columns, label_column, max_length, skip_invalid)

    rows, held_out = encode(rows), None if held_out is None else encode(held_out)
    if held_out is None:
        rows, held_out = halves(rows, hold_out, seed)
    labelled = "labels" in held_out.column_names
    if not labelled and max_metric_drop is not None:
        raise ValueError("`max_metric_drop` needs labels, which the rows do not have: use `max_disagreement`.")
    if not given:
        target["max_metric_drop" if labelled else "max_disagreement"] = 0.01
    if len(held_out) < LEAST_ROWS:
        raise ValueError(
            f"There are {len(held_out)} rows to pick a threshold on, and it takes {LEAST_ROWS}: give more."
        )
    progress = sys.stderr.isatty() if progress is None else progress
    settings = TRAINING | {"seed": seed, "use_cpu": device == "cpu", "dataloader_pin_memory": device != "cpu"}
    settings |= {"per_device_eval_batch_size": batch_size} | dict(training or {})
    # What is trained is kept here until all is written.
    work = folder.with_name(f".{folder.name}.unfinished")
    model = trained(model, tokenizer, rows, settings, off_ramps == "auto", work, progress)
    collate = DataCollatorWithPadding(tokenizer)
    table = collect_exits(model, held_out, collate, batch_size, None, progress, criterion, labelled)
    ways: dict[str, Any] = {"confidence": confidence, "per_layer": per_layer, "temperatures": temperatures}
    choice = pick_threshold(table, **target, **ways, seed=seed)
    # The card is about the model that is written, temperatures included.
    scaled = table.with_temperatures(choice.temperatures)
    with whole_folder(folder) as whole:
        shutil.copytree(work / "model", whole, copy_function=link_or_copy, dirs_exist_ok=True)
        numbers = CardData.read(work / "run.json") | CardData.from_table(scaled if choice.met else table)
        numbers.metric = "accuracy" if labelled else "agreement"
        write_model_card(whole, numbers)
        if choice.met:
            apply_threshold(whole, choice)
        select_on, evaluate_on = scaled.split(seed)
        report = make_report(
            select_on,
            evaluate_on=evaluate_on,
            choice=choice,
            title=f"Early exit: {folder.name}",
            facts={"model": folder.name, "rows": f"{len(table):,} held out"} | facts_of(numbers, labelled),
            target_saving=target_saving,
            max_metric_drop=target["max_metric_drop"] or target["max_disagreement"],
            seed=seed,
        )
        report.save(whole / "report.html")
    shutil.rmtree(work, ignore_errors=True)
    return AddedExits(folder, choice, table)


def load(
    model: Any, tokenizer: Any, revision: str | None, device: str, settings: Mapping[str, Any]
) -> tuple[Any, Any]:
    """The classifier with untrained off-ramps, and its tokenizer."""
    if isinstance(model, (str, os.PathLike)):
        model, own = load_backbone(str(model), revision, device, **settings)
        return model, own if tokenizer is None else tokenizer
    if not has_exits(model):
        raise ValueError(
            f"`model` is a `{type(model).__name__}`, which has no off-ramps: give a checkpoint, or make one with "
            "`from_backbone`."
        )
    if tokenizer is None:
        raise ValueError("`tokenizer` is missing: a model in memory comes without one.")
    check_tokenizer(tokenizer, model.name_or_path)
    return model.to(check_device(device)), tokenizer


def encoded(
    rows: Any,
    model: Any,
    tokenizer: Any,
    text_columns: Sequence[str] | None,
    label_column: str | None,
    max_length: int | None,
    skip_invalid: bool,
) -> "Dataset":
    """Rows as the model takes them; of a data set with labels those without one are left out."""
    from datasets import Dataset

    if hasattr(rows, "iterrows"):
        rows = Dataset.from_pandas(rows, preserve_index=False)
    elif not isinstance(rows, Dataset):
        rows = Dataset.from_list(list(rows))
    if "input_ids" not in rows.column_names:
        texts, label = find_columns(rows, text_columns, label_column, labelled=False)
        if skip_invalid:
            rows = without_invalid(rows, texts)
        note(f"{len(rows):,} rows; texts: {listed(texts)}; labels: {label or 'none, so the answers at full depth'}.")
        rows = encode_rows(rows, texts, label, tokenizer, model, max_length, skip_invalid)
    elif "label" in rows.column_names:  # which data collators rename
        rows = rows.rename_column("label", "labels")
    if "labels" not in rows.column_names:
        return rows
    return rows.filter(lambda labels: labels != UNLABELLED, input_columns="labels", keep_in_memory=True)


def halves(rows: "Dataset", share: float, seed: int) -> "tuple[Dataset, Dataset]":
    """Rows to train on, and a random share of them that is held out."""
    if not 0 < share < 1:
        raise ValueError(f"`hold_out` must lie between 0 and 1, got {share!r}.")
    parts = rows.train_test_split(test_size=share, seed=seed)
    note(
        f"holds {len(parts['test']):,} rows out. If the model was fine-tuned on them, they exit earlier than others "
        "will: give others (`held_out`, on the command line `--validation`)."
    )
    return parts["train"], parts["test"]


def check_off_ramps(off_ramps: Any, training: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of the configuration that `off_ramps` sets; raises `ValueError` for anything else."""
    if isinstance(off_ramps, Mapping):
        return dict(off_ramps)
    if off_ramps != "auto":
        raise ValueError(f"`off_ramps` must be 'auto' or fields of the configuration, got {off_ramps!r}.")
    unknown = sorted(set(training or ()) - FITTED.keys())
    if unknown:
        raise ValueError(
            f"`training` has {listed(unknown)}, which `off_ramps` 'auto' has no use for: it takes "
            f"{listed(FITTED)}, or give the kind of off-ramps, such as {{'off_ramp_head': 'linear'}}."
        )
    return {}


def facts_of(numbers: CardData, labelled: bool) -> dict[str, str]:
    """Facts about off-ramps and labels, for the head of the report."""
    kind = (numbers.training or {}).get("off_ramps", {}).get("kind")
    facts = {} if kind is None else {"off-ramps": kind}
    return facts if labelled else facts | {"labels": "the answers at full depth; accuracy is agreement with them"}


def searched(model: Any, tokenizer: Any, rows: "Dataset", settings: Mapping[str, Any], progress: bool) -> CardData:
    """Gives the model the best of several kinds of off-ramps; what the card shows of that."""
    given = {new: settings[name] for name, new in FITTED.items() if settings.get(name) is not None}
    fit = FitSettings(**given | {"seed": settings["seed"], "epochs": math.ceil(given["epochs"])})
    batch_size = settings["per_device_eval_batch_size"]
    found = search_off_ramps(
        model, rows, DataCollatorWithPadding(tokenizer), fit, batch_size=batch_size, progress=progress
    )
    others = ", ".join(f"{kind.name} {kind.mean_saving:.1%}" for kind in found[1:])
    words = (
        f"{found[0].name}: {found[0].mean_saving:.1%} saved between 0 and 1 point lost, on {fit.held_out:.0%} of the "
        f"training rows ({others})"
    )
    note(f"keeps the off-ramps of the kind {words}.")
    numbers = {
        "kind": words,
        "epochs": max(found[0].epochs),
        "learning_rate": fit.learning_rate,
        "batch_size": fit.batch_size,
        "distillation_weight": fit.distillation_weight,
        "seed": fit.seed,
        "seconds": round(sum(kind.seconds for kind in found), 1),
    }
    return CardData(training={"off_ramps": numbers})


def trained(
    model: Any,
    tokenizer: Any,
    rows: "Dataset",
    settings: Mapping[str, Any],
    search: bool,
    work: Path,
    progress: bool,
) -> Any:
    """The model with trained off-ramps: those that an earlier call left in `work`, or new ones, kept there."""
    fingerprint = fingerprint_of(model, rows, settings, search)
    if (work / "fingerprint").is_file() and (work / "fingerprint").read_text(encoding="utf-8") == fingerprint:
        note("goes on with the off-ramps that were trained before.")
        return AutoModelForSequenceClassification.from_pretrained(work / "model").to(model.device)
    shutil.rmtree(work, ignore_errors=True)
    if search:
        note(f"fits several kinds of off-ramps on {len(rows):,} rows.")
        numbers = searched(model, tokenizer, rows, settings, progress)
        with whole_folder(work / "model") as whole:
            model.save_pretrained(whole)
            tokenizer.save_pretrained(whole)
        numbers.write(work / "run.json")
        (work / "fingerprint").write_text(fingerprint, encoding="utf-8")
        return model
    note(f"trains {len(model.base_model.off_ramps)} off-ramps on {len(rows):,} rows.")
    set_seed(settings["seed"])
    own: dict[str, Any] = {
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": not progress,
    }
    trainer = OffRampTrainer(
        model,
        DeeBertTrainingArguments(output_dir=str(work / "training"), **own | dict(settings)),
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for answers
    trainer.train()
    with whole_folder(work / "model") as whole:
        trainer.save_model(str(whole))
    run_numbers({"off_ramps": trainer}).write(work / "run.json")
    (work / "fingerprint").write_text(fingerprint, encoding="utf-8")
    return model


def fingerprint_of(model: Any, rows: "Dataset", settings: Mapping[str, Any], search: bool) -> str:
    """Of everything that trained off-ramps depend on."""
    digest = hashlib.sha256(json.dumps([dict(settings), search], sort_keys=True, default=str).encode())
    digest.update(model.config.to_json_string().encode())
    for name, tensor in model.state_dict().items():
        if ".off_ramps." not in name:  # these are new, and drawn from the seed
            digest.update(tensor.detach().cpu().flatten().view(torch.uint8).numpy())
    for name in [name for name in ("input_ids", "labels") if name in rows.column_names]:
        column: Iterable[Any] = rows[name]
        digest.update(np.concatenate([np.atleast_1d(np.asarray(value)) for value in column]).tobytes())
    return digest.hexdigest()


def link_or_copy(source: str, target: str) -> None:
    """Weights are not written twice where the file system can link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
