"""What the off-ramps read of a data set, computed once and kept on disk as memory-mapped Arrow."""

import shutil
from pathlib import Path

import numpy as np
import torch

from ..analysis.row_windows import read_columns, run_windows


def pooled_windows(backbone, dataset, indices, collator, batch_size: int, device, progress: bool):
    """
    Runs a frozen backbone over rows of a data set.

    Args:
        backbone ([`EarlyExitBackbone`]): In eval mode.
        dataset: Map-style, of dicts.
        indices (`range`): Its rows to run.
        collator (`Callable`): From a list of items to the arguments of the model and `labels`.

    Yields:
        For each window, `off_ramp_inputs` `(rows, L-1, hidden)` and `labels` `(rows,)` as numpy arrays.
    """

    @torch.no_grad()
    def run(items, indices):
        inputs = dict(collator(items))
        labels = inputs.pop("labels", None)
        if labels is None or labels.is_floating_point():
            raise ValueError(
                "`train_dataset` must give integer `labels` through the data collator, got "
                f"{'none' if labels is None else labels.dtype}."
            )
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
        pooled = backbone.compute_off_ramp_inputs(**inputs).float().cpu().numpy()
        return {"off_ramp_inputs": pooled, "labels": labels.numpy().astype(np.int64)}

    return run_windows(run, dataset, indices, batch_size, "Off-ramp inputs" if progress else None)


def check_free_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"`output_dir` ({str(folder.parent)!r}) has {free / 2**30:.2f} GiB free, but the off-ramp inputs take "
            f"{size / 2**30:.2f} GiB: choose another folder, or train with off_ramp_mode='through_backbone'."
        )


class OffRampInputs(torch.utils.data.Dataset):
    """
    Map-style data set of what the off-ramps read: dicts of `off_ramp_inputs` `(L-1, hidden)` and `labels`.

    Args:
        files (`list[Path]`): Arrow files of the processes' shares, in the order of the rows.
        num_off_ramps (`int`): L-1.
    """

    def __init__(self, files: list[Path], num_off_ramps: int):
        columns = read_columns(files)
        self.labels = np.concatenate(columns["labels"])
        # Views of the mapped files, without the detour over Python lists: a training step takes a few milliseconds.
        self.pooled = [part.reshape(len(part), num_off_ramps, -1) for part in columns["off_ramp_inputs"]]
        self.ends = np.cumsum([len(part) for part in self.pooled])

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        chunk = int(np.searchsorted(self.ends, index, side="right"))
        row = index - (self.ends[chunk - 1] if chunk else 0)
        return {
            "off_ramp_inputs": torch.from_numpy(self.pooled[chunk][row].copy()),
            "labels": int(self.labels[index]),
        }
