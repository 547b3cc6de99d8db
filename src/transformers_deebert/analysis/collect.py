"""Collection of the logits of every exit, in one pass of a model at full depth."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import default_data_collator

from ..checks import check_count, check_single_label
from ..models.configuration_early_exit_deebert import class_names
from ..models.exit_criteria_deebert import ExitCriterion
from ..models.exit_loop_deebert import has_exits
from ..models.exit_scores_deebert import ExitCandidate, Score, checked_score
from ..processes import shared_state
from .decisions import as_criterion, check_labels, score_name
from .exit_table import ARROW_FILE, ExitTable, remove_table, table_files, write_facts
from .row_windows import data_columns, run_windows, token_count, write_windows


def collect_exits(
    model: Any,
    dataset: Any,
    data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
    batch_size: int = 32,
    output_dir: str | Path | None = None,
    progress: bool = True,
    criterion: Any = "entropy",
    labelled: bool = True,
) -> ExitTable:
    """
    Runs a model over a data set once, at full depth, and keeps the logits of every exit. Under `accelerate launch`
    each process runs its share, and every process gets the whole table, in the order of the data set.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier; it is put in eval mode for the pass.
        dataset:
            Map-style, of dicts with `input_ids` and so on, and `labels` or `label`: what a `Trainer` would take. Or a
            [`~torch.utils.data.DataLoader`] of batches of tensors, which is run through once, in its own batches.
        data_collator (`Callable`, *optional*):
            From a list of items to tensors, for example `DataCollatorWithPadding(tokenizer)`. By default items are
            stacked, which works where all have one length. Not used with a `DataLoader`.
        batch_size (`int`, *optional*, defaults to 32):
            Rows of one forward pass; rows of like length go together. Not used with a `DataLoader`.
        output_dir (`str` or `Path`, *optional*):
            Folder to keep the table in, written as the pass goes, so that memory stays flat; it can be loaded again
            with `ExitTable.load`. Needed with several processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.
        criterion (`str`, `Callable`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            The score and the patience of the table; thresholds are ignored. A function is called during the pass, with
            pooled vectors, and its scores are kept: for scores that need more than logits.
        labelled (`bool`, *optional*, defaults to `True`):
            `False` for rows without labels: those of the table are then the answers at full depth, and its accuracy is
            agreement with them.

    Returns:
        [`ExitTable`]: rows without a label (-100) are left out.

    Raises:
        ValueError: for a model without off-ramps or classes, data without integer labels, several processes without
            `output_dir` or with a `DataLoader`.
    """
    config = model.config
    if not has_exits(model):
        raise ValueError(f"`model` is a `{type(model).__name__}`, which has no off-ramps: see `from_backbone`.")
    check_single_label("`model`", config)
    criterion = as_criterion(criterion)
    own_score = None if isinstance(criterion.score, str) else criterion.score
    batch_size = check_count("batch_size", batch_size)
    loader = isinstance(dataset, torch.utils.data.DataLoader)
    if not loader and len(dataset) == 0:
        raise ValueError("`dataset` has no rows: give labelled ones.")
    state = shared_state()
    rank, world = (0, 1) if state is None else (state.process_index, state.num_processes)
    if world > 1 and (output_dir is None or loader):
        raise ValueError(
            f"With {world} processes `output_dir` must name a folder that all of them see, and `dataset` must be "
            "map-style, so that they can share it out."
        )
    taken = {*data_columns(model), "label"}
    names = class_names(config)
    text = "Exits" if progress and rank == 0 else None
    if loader:
        windows = _run_batches(model, dataset, text, own_score, labelled)
    else:
        share = range(len(dataset) * rank // world, len(dataset) * (rank + 1) // world)
        collate = data_collator or default_data_collator

        def run(items: list[dict], indices: list[int]) -> dict[str, np.ndarray]:
            # As `Trainer` does, columns are dropped that the model does not take.
            items = [{name: value for name, value in item.items() if name in taken} for item in items]
            lengths = [token_count(item) for item in items]
            return _exits_of(model, collate(items), own_score, labelled) | {
                "lengths": np.array(lengths),
                "ids": np.array(indices),
            }

        windows = run_windows(run, dataset, share, batch_size, text)

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
            folder = Path(output_dir or temporary)
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                remove_table(folder)
                score = score_name(criterion.score)
                write_facts(folder, config.exit_layers, names, temperatures_of(model), score, criterion.patience)
            if state is not None:
                state.wait_for_everyone()
            name = ARROW_FILE if world == 1 else f"exits-{rank:05d}-of-{world:05d}.arrow"
            known = with_labels(windows, config.num_labels)
            if (first := next(known, None)) is not None:
                write_windows(folder / name, itertools.chain([first], known))
            if state is not None:
                state.wait_for_everyone()
            if not table_files(folder):
                raise ValueError("`dataset` has no labelled rows (all labels are -100): give labelled ones.")
            table = ExitTable.load(folder)
            if output_dir is None:  # the files are about to go
                stored = None if table.stored_scores is None else table.stored_scores.copy()
                table = replace(table, logits=table.logits.copy(), stored_scores=stored)
    finally:
        model.train(training)
    return table


def temperatures_of(model: Any) -> list[float] | None:
    """What the model's off-ramps are scaled by: exported graphs keep theirs, whatever the configuration says now."""
    configured = getattr(model.config, "off_ramp_temperatures", None)
    return getattr(model, "exported_temperatures", configured)


def with_labels(windows: Iterator[dict[str, np.ndarray]], classes: int) -> Iterator[dict[str, np.ndarray]]:
    """The rows of windows that have a label, which is checked; windows without any are left out."""
    for columns in windows:
        known = columns["labels"] != -100
        if known.any():
            rows = {name: values[known] for name, values in columns.items()}
            check_labels(rows["labels"], len(rows["labels"]), classes)
            yield rows


class ScoreRecorder:
    """A score that keeps the values of another one and lets no sample exit."""

    def __init__(self, score: Score):
        self.score = score
        self.values: list[torch.Tensor] = []

    def __call__(self, candidate: ExitCandidate) -> torch.Tensor:
        self.values.append(checked_score(self.score, candidate))
        return torch.full_like(self.values[-1], torch.inf)


def _exits_of(model: Any, batch: Mapping[str, Any], own_score: Score | None, labelled: bool) -> dict[str, np.ndarray]:
    """Logits of all exits, the labels and, where wanted, the scores of a function, of one batch."""
    inputs = dict(batch)
    labels = inputs.pop("labels", inputs.pop("label", None))
    if not labelled:
        labels = torch.zeros(len(next(iter(inputs.values()))), dtype=torch.long)  # replaced below
    if labels is None or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        given = "none" if labels is None else str(getattr(labels, "dtype", type(labels).__name__))
        raise ValueError(f"`dataset` must give integer `labels` (through `data_collator`), got {given}.")
    if labels.dim() != 1:
        raise ValueError(f"`labels` of a batch must have the shape (rows,), got {tuple(labels.shape)}: one a row.")
    inputs = {name: value.to(model.device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    settings: dict[str, Any] = {"early_exit_entropy": 0.0}
    if own_score is not None:
        recorder = ScoreRecorder(own_score)
        settings = {"exit_criterion": ExitCriterion(recorder, 1.0)}
    output = model(**inputs, output_off_ramp_logits=True, **settings, return_dict=True)
    logits = torch.stack(output.off_ramp_logits, 1)  # (rows, exits, labels)
    labels = labels if labelled else logits[:, -1].argmax(-1)
    columns = {"logits": logits.float().cpu().numpy(), "labels": labels.cpu().numpy().astype(np.int64)}
    if own_score is not None:
        columns["scores"] = torch.stack(recorder.values, 1).float().cpu().numpy()
    return columns


def _run_batches(
    model: Any, loader: Any, progress: str | None, own_score: Score | None, labelled: bool
) -> Iterator[dict[str, np.ndarray]]:
    """The exits of the batches of a `DataLoader`, as they come."""
    seen = 0
    for batch in tqdm(loader, desc=progress, disable=progress is None):
        exits = _exits_of(model, batch, own_score, labelled)
        rows = len(exits["labels"])
        mask = batch.get("attention_mask")
        if mask is not None:
            lengths = (mask != 0).sum(1).cpu().numpy()
        else:
            lengths = np.full(rows, batch["input_ids"].shape[1] if "input_ids" in batch else 0)
        yield exits | {"lengths": lengths.astype(np.int64), "ids": np.arange(seen, seen + rows)}
        seen += rows
    if not seen:
        raise ValueError("`dataset` has no rows: give labelled ones.")
