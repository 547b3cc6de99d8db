"""What the off-ramps read of a data set, computed once and kept on disk as memory-mapped Arrow."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets.arrow_writer import ArrowWriter
from tqdm.auto import tqdm


# Rows are batched by length within windows of so many, and written in their own order: memory stays flat.
WINDOW = 2048


def chunks(items, size: int) -> Iterator[list]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def token_count(item: dict) -> int:
    return len(item["input_ids"]) if "input_ids" in item else 0


@torch.no_grad()
def pooled_windows(backbone, dataset, indices, collator, batch_size: int, device, progress: bool):
    """
    Runs a frozen backbone over rows of a data set.

    Args:
        backbone ([`EarlyExitBackbone`]): In eval mode.
        dataset: Map-style, of dicts.
        indices (`range`): Its rows to run.
        collator (`Callable`): From a list of items to the arguments of the model and `labels`.

    Yields:
        For each window, pooled states `(rows, L-1, hidden)` and labels `(rows,)` as numpy arrays.
    """
    bar = tqdm(total=len(indices), desc="Off-ramp inputs", disable=not progress)
    for window in chunks(indices, WINDOW):
        items = [dataset[index] for index in window]
        lengths = np.array([token_count(item) for item in items])
        pooled = labels = None
        for rows in chunks(np.argsort(-lengths, kind="stable"), batch_size):
            inputs = dict(collator([items[row] for row in rows]))
            batch_labels = inputs.pop("labels", None)
            if batch_labels is None or batch_labels.is_floating_point():
                raise ValueError(
                    "`train_dataset` must give integer `labels` through the data collator, got "
                    f"{'none' if batch_labels is None else batch_labels.dtype}."
                )
            inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
            batch = backbone.compute_off_ramp_inputs(**inputs).float().cpu().numpy()
            if pooled is None:
                pooled = np.empty((len(items), *batch.shape[1:]), np.float32)
                labels = np.empty(len(items), np.int64)
            pooled[rows], labels[rows] = batch, batch_labels.numpy()
            bar.update(len(rows))
        yield pooled, labels
    bar.close()


def check_free_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"`output_dir` ({str(folder.parent)!r}) has {free / 2**30:.2f} GiB free, but the off-ramp inputs take "
            f"{size / 2**30:.2f} GiB: choose another folder, or train with off_ramp_mode='through_backbone'."
        )


def write_windows(path: Path, windows) -> None:
    """Writes the windows as one Arrow file; it appears under its name when it is complete."""
    unfinished = path.with_suffix(".unfinished")
    writer = None
    try:
        for pooled, labels in windows:
            rows, *shape = pooled.shape
            columns = {
                "off_ramp_inputs": pa.FixedSizeListArray.from_arrays(pooled.reshape(-1), int(np.prod(shape))),
                "labels": pa.array(labels),
            }
            table = pa.table(columns)
            if writer is None:
                writer = ArrowWriter(path=str(unfinished), features=datasets.Features.from_arrow_schema(table.schema))
            writer.write_table(table)
        writer.finalize()
        writer.close()
    except BaseException:
        if writer is not None:
            writer.close()
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise
    os.replace(unfinished, path)


class OffRampInputs(torch.utils.data.Dataset):
    """
    Map-style data set of what the off-ramps read: dicts of `off_ramp_inputs` `(L-1, hidden)` and `labels`.

    Args:
        files (`list[Path]`): Arrow files of the processes' shares, in the order of the rows.
        num_off_ramps (`int`): L-1.
    """

    def __init__(self, files: list[Path], num_off_ramps: int):
        rows = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        self.labels = rows.data.column("labels").to_numpy()
        # Views of the mapped files, without the detour over Python lists: a training step takes a few milliseconds.
        chunks = rows.data.column("off_ramp_inputs").chunks
        self.pooled = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(len(chunk), num_off_ramps, -1) for chunk in chunks
        ]
        self.ends = np.cumsum([len(chunk) for chunk in chunks])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        chunk = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (self.ends[chunk - 1] if chunk else 0)
        return {
            "off_ramp_inputs": torch.from_numpy(self.pooled[chunk][row].copy()),
            "labels": int(self.labels[index]),
        }
