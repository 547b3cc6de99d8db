"""Inputs of the off-ramps over a data set, computed once and kept on disk as memory-mapped Arrow."""

import copy
import shutil
from collections.abc import Sized
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers.utils import logging

from ..analysis.row_windows import read_columns, run_windows
from .multi_exit_trainer import check_class_indices


logger = logging.get_logger(__name__)

# Options about tokens, of which a cached step has none, and what switches them off.
OFF_IN_CACHED_STEPS = {
    "neftune_noise_alpha": (None,),
    "include_num_input_tokens_seen": ("no",),
    "train_sampling_strategy": ("random", "sequential"),
}


def cached_arguments(args):
    """A copy of training arguments for cached steps; warns of those that have no meaning in them."""
    without = copy.copy(args)
    for name, off in OFF_IN_CACHED_STEPS.items():
        if (value := getattr(args, name)) not in off:
            setattr(without, name, off[0])
            logger.warning(
                f"`{name}` ({value!r}) has no effect on stage 2 with off_ramp_mode='cached', whose steps "
                "see no tokens: use 'through_backbone', or leave it out."
            )
    return without


def check_map_style(dataset) -> int:
    """Number of rows; raises `ValueError` for data that cannot be run through once and then read in any order."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not len(dataset):
        raise ValueError(
            f"`train_dataset` ({type(dataset).__name__}) has no rows or no length, but its off-ramp inputs are "
            "computed once and read in any order: give a map-style data set, or train with "
            "off_ramp_mode='through_backbone'."
        )
    return len(dataset)


def check_free_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"`output_dir` ({str(folder.parent)!r}) has {free / 2**30:.2f} GiB free, but the off-ramp inputs take "
            f"{size / 2**30:.2f} GiB: choose another folder, or train with off_ramp_mode='through_backbone'."
        )


def run_backbone(model, inputs: dict, reads_head: bool) -> dict[str, np.ndarray]:
    """What a cached step reads of a batch: the inputs of the off-ramps and, where the loss reads it, the head."""
    *layers, depth = model.exit_layers
    state, _ = model.begin(**inputs)
    pooled, head = [], {}
    for layer in [*layers, depth] if reads_head else layers:
        while state.layer < layer:
            model.advance(state)
        if layer == depth:
            head = {"head_logits": to_array(model.evaluate_exit(state).logits)}
        else:
            pooled.append(model.base_model.pooled_vector(state))
    return {"off_ramp_inputs": to_array(torch.stack(pooled, 1))} | head


def to_array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.float().cpu().numpy()


def cache_windows(trainer, rows: range, progress: bool):
    """
    Runs the frozen backbone over rows of the training data.

    Args:
        trainer ([`OffRampTrainer`]): Its model is in eval mode.
        rows (`range`): Indices of the rows.
        progress (`bool`): Whether a bar is shown.

    Yields:
        For each window, `off_ramp_inputs` `(rows, off-ramps, hidden)` and, where there are any and the loss reads
        them, `labels` `(rows,)` and `head_logits` `(rows, labels)` as numpy arrays.
    """
    collator = trainer._get_collator_with_removed_columns(trainer.data_collator, description="training")

    @torch.no_grad()
    def run(items, indices):
        inputs = dict(collator(items))
        labels = inputs.pop("labels", None)
        check_class_indices("train_dataset", labels, required=trainer.needs_labels)
        inputs = {name: tensor.to(trainer.args.device) for name, tensor in inputs.items()}
        columns = run_backbone(trainer.early_exit_model, inputs, trainer.reads_head)
        return columns if labels is None else columns | {"labels": labels.numpy().astype(np.int64)}

    text = "Off-ramp inputs" if progress else None
    return run_windows(run, trainer.train_dataset, rows, trainer.args.eval_batch_size, text)


class CachedInputs(torch.utils.data.Dataset):
    """
    Map-style data set of cached steps: dicts of a row's columns, `off_ramp_inputs` as `(off-ramps, hidden)`.

    Args:
        files (`list[Path]`): Arrow files of the processes' shares, in the order of the rows.
        num_off_ramps (`int`): Off-ramps of the model.
    """

    def __init__(self, files: list[Path], num_off_ramps: int):
        # Views of the mapped files, without the detour over Python lists: a training step takes a few milliseconds.
        self.columns = read_columns(files)
        pooled = self.columns["off_ramp_inputs"]
        self.columns["off_ramp_inputs"] = [part.reshape(len(part), num_off_ramps, -1) for part in pooled]
        self.ends = np.cumsum([len(part) for part in pooled])

    def __len__(self):
        return int(self.ends[-1])

    def __getitem__(self, index):
        chunk = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (self.ends[chunk - 1] if chunk else 0)
        return {name: torch.as_tensor(parts[chunk][row].copy()) for name, parts in self.columns.items()}
