"""What every exit of a model says of every row of a data set, collected in one pass at full depth."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .row_windows import read_columns, run_windows, token_count, write_windows
from .sweep import Threshold, answers_at, entropies


ARROW_FILE, FACTS_FILE = "exits.arrow", "exits.json"
# Logits of so many cells are read and turned into entropies at once.
CELLS = 4_000_000


@dataclass(frozen=True)
class ExitTable:
    """
    The answers of all exits to labelled rows. Everything about thresholds can be computed from it without the model.

    Args:
        logits (`np.ndarray` of shape `(rows, layers, labels)`, float32): Of all exits, the model's own head last.
        labels (`np.ndarray` of shape `(rows,)`, int64): True classes.
        lengths (`np.ndarray` of shape `(rows,)`, int64): Tokens of each row.
        ids (`np.ndarray` of shape `(rows,)`, int64): Each row's place in the data set.
        label_names (`tuple[str, ...]`): Names of the classes.
    """

    logits: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    label_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_layers(self) -> int:
        return self.logits.shape[1]

    @cached_property
    def entropies(self) -> np.ndarray:
        """Nats, `(rows, layers)`, float64; `inf` where a logit is not finite."""
        return self._by_rows(entropies)

    @cached_property
    def answers(self) -> np.ndarray:
        """Predicted classes, `(rows, layers)`, int64."""
        return self._by_rows(lambda logits: logits.argmax(-1))

    def _by_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        step = max(1, CELLS // (self.logits.shape[1] * self.logits.shape[2]))
        return np.concatenate([function(self.logits[at : at + step]) for at in range(0, len(self), step)])

    def exits_at(self, threshold: Threshold) -> tuple[np.ndarray, np.ndarray]:
        """Exit layers (1-based) and predicted classes at a threshold, each of shape `(rows,)`."""
        return answers_at(self.entropies, self.answers, threshold)

    def select(self, rows: np.ndarray) -> "ExitTable":
        """The table of some rows, by index or mask."""
        parts = {name: getattr(self, name)[rows] for name in ("logits", "labels", "lengths", "ids")}
        table = replace(self, **parts)
        # What was computed of all rows need not be computed of some again.
        for name in ("entropies", "answers"):
            if name in vars(self):
                vars(table)[name] = vars(self)[name][rows]
        return table

    def split(self, seed: int = 0) -> "tuple[ExitTable, ExitTable]":
        """Two random halves: one to choose on, one to read on."""
        order = np.random.default_rng(seed).permutation(len(self))
        half = len(self) // 2
        return self.select(np.sort(order[:half])), self.select(np.sort(order[half:]))

    def save(self, folder: str | Path) -> None:
        """Writes the table to a folder, as Arrow; it is there as a whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"logits": self.logits, "labels": self.labels, "lengths": self.lengths, "ids": self.ids}
        write_facts(folder, self.num_layers, self.label_names)
        write_windows(folder / ARROW_FILE, [columns])

    @classmethod
    def load(cls, folder: str | Path) -> "ExitTable":
        """
        Reads a table that [`save`] or [`collect_exits`] wrote; logits stay on disk until they are needed.

        Raises:
            ValueError: for a folder without a table.
        """
        folder = Path(folder)
        files = sorted(folder.glob("exits*.arrow"))
        if not files or not (folder / FACTS_FILE).is_file():
            raise ValueError(f"`folder` ({str(folder)!r}) holds no exit table: make one with `collect_exits`.")
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        columns = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in read_columns(files).items()
        }
        columns["logits"] = columns["logits"].reshape(-1, facts["layers"], len(facts["labels"]))
        return cls(**columns, label_names=tuple(facts["labels"]))


def write_facts(folder: Path, layers: int, label_names: Sequence[str]) -> None:
    text = json.dumps({"layers": layers, "labels": list(label_names)}, ensure_ascii=False)
    (folder / FACTS_FILE).write_text(text, encoding="utf-8")


def collect_exits(
    model: Any,
    dataset: Any,
    data_collator: Callable[[list[dict]], dict[str, torch.Tensor]],
    batch_size: int = 32,
    output_dir: str | Path | None = None,
    progress: bool = True,
) -> ExitTable:
    """
    Runs a model over a data set once, at full depth, and keeps what every exit says. Under `accelerate launch` each
    process runs its share, and every process gets the whole table, in the order of the data set.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier; it is put in eval mode for the pass.
        dataset:
            Map-style, of dicts with `input_ids` and so on, and `labels` or `label`: what a `Trainer` would take.
        data_collator (`Callable`):
            From a list of items to tensors, for example `DataCollatorWithPadding(tokenizer)`.
        batch_size (`int`, *optional*, defaults to 32):
            Rows of one forward pass; rows of like length go together.
        output_dir (`str` or `Path`, *optional*):
            Folder to keep the table in, written as the pass goes, so that memory stays flat; it can be loaded again
            with `ExitTable.load`. Needed with several processes.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar.

    Returns:
        [`ExitTable`]: rows without a label (-100) are left out.

    Raises:
        ValueError: for a model without off-ramps or classes, data without integer labels, several processes without
            `output_dir`.
    """
    config, base = model.config, model.base_model
    if not hasattr(base, "off_ramps"):
        raise ValueError(f"`model` is a `{type(model).__name__}`, which has no off-ramps: see `from_backbone`.")
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(
            f"`model` has num_labels={config.num_labels} and problem_type={config.problem_type!r}, but exits are "
            "about one of several classes."
        )
    if len(dataset) == 0:
        raise ValueError("`dataset` has no rows: give labelled ones.")
    rank, world, wait = _processes()
    if world > 1 and output_dir is None:
        raise ValueError(f"`output_dir` is needed with {world} processes: name a folder that all of them see.")
    share = range(len(dataset) * rank // world, len(dataset) * (rank + 1) // world)
    names = [str(config.id2label[label]) for label in range(config.num_labels)]

    def run(items: list[dict], indices: list[int]) -> dict[str, np.ndarray]:
        inputs = dict(data_collator(items))
        labels = inputs.pop("labels", inputs.pop("label", None))
        if labels is None or labels.is_floating_point():
            given = "none" if labels is None else str(labels.dtype)
            raise ValueError(f"`dataset` must give integer `labels` through `data_collator`, got {given}.")
        inputs = {name: tensor.to(model.device) for name, tensor in inputs.items()}
        output = model(**inputs, output_off_ramp_logits=True, early_exit_entropy=0.0)
        return {
            "logits": torch.stack(output.off_ramp_logits, 1).float().cpu().numpy(),
            "labels": labels.cpu().numpy().astype(np.int64),
            "lengths": np.array([token_count(item) for item in items]),
            "ids": np.array(indices),
        }

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
            folder = Path(output_dir or temporary)
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.glob("exits*.arrow"):
                    path.unlink()
                write_facts(folder, config.num_hidden_layers, names)
            wait()
            text = "Exits" if progress and rank == 0 else None
            name = ARROW_FILE if world == 1 else f"exits-{rank:05d}-of-{world:05d}.arrow"
            if share:
                write_windows(folder / name, run_windows(run, dataset, share, batch_size, text))
            wait()
            table = ExitTable.load(folder)
            if output_dir is None:  # the files are about to go
                table = replace(table, logits=table.logits.copy())
    finally:
        model.train(training)
    known = table.labels != -100
    if not known.any():
        raise ValueError("`dataset` has no labelled rows (all labels are -100): give labelled ones.")
    return table if known.all() else table.select(known)


def _processes() -> tuple[int, int, Callable[[], None]]:
    """This process's number, how many there are, and how to wait for all."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes, state.wait_for_everyone
