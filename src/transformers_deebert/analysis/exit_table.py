"""What every exit of a model says of every row of a data set, collected in one pass at full depth."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import default_data_collator

from .decisions import Threshold, check_labels, check_logits, entropies, first_below
from .row_windows import read_columns, run_windows, token_count, write_windows


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
        temperatures (`tuple[float, ...]`, *optional*):
            What the off-ramps' logits have been divided by, one number each; `None`: nothing.
    """

    logits: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    label_names: tuple[str, ...]
    temperatures: tuple[float, ...] | None = None

    @classmethod
    def from_logits(
        cls,
        logits: np.ndarray,
        labels: np.ndarray,
        lengths: np.ndarray | None = None,
        label_names: Sequence[str] | None = None,
    ) -> "ExitTable":
        """
        A table of logits that are there already, such as those of `OffRampTrainer.predict`.

        Args:
            logits (`np.ndarray` of shape `(rows, layers, labels)`):
                Of all exits, the model's own head last; `np.stack(predictions, axis=1)` makes it from the tuple that
                `OffRampTrainer.predict` returns.
            labels (`np.ndarray` of shape `(rows,)`): Class indices.
            lengths (`np.ndarray` of shape `(rows,)`, *optional*): Tokens of each row; 0 without them.
            label_names (sequence of `str`, *optional*): By default the indices.

        Raises:
            ValueError: for arrays of other shapes, labels that are no class indices, no rows.
        """
        logits = check_logits(logits)
        rows, _, classes = logits.shape
        labels = check_labels(labels, rows, classes).astype(np.int64)  # small integers would overflow in counts
        lengths = np.zeros(rows, np.int64) if lengths is None else np.asarray(lengths)
        if lengths.shape != (rows,):
            raise ValueError(f"`lengths` must have shape ({rows},), got {lengths.shape}: give one number a row.")
        if not np.issubdtype(lengths.dtype, np.integer) or lengths.min() < 0:
            raise ValueError(f"`lengths` must be whole numbers >= 0, got {lengths!r}: count each row's tokens.")
        names = tuple(str(name) for name in (range(classes) if label_names is None else label_names))
        if len(names) != classes:
            raise ValueError(f"`label_names` has {len(names)} names for {classes} classes: give one each.")
        return cls(logits, labels, lengths, np.arange(rows), names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_layers(self) -> int:
        return self.logits.shape[1]

    @property
    def num_labels(self) -> int:
        return self.logits.shape[2]

    @property
    def max_entropy(self) -> float:
        """ln(labels), nats."""
        return math.log(self.num_labels)

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
        exits = first_below(self.entropies, threshold)
        return exits, self.answers[np.arange(len(exits)), exits - 1]

    def with_temperatures(self, temperatures: Sequence[float] | None) -> "ExitTable":
        """The table that a model with other `off_ramp_temperatures` gives."""
        ones = np.ones(self.num_layers - 1)
        old, new = (ones if given is None else np.asarray(given) for given in (self.temperatures, temperatures))
        if new.shape != old.shape or not np.isfinite(new).all() or (new <= 0).any():
            raise ValueError(
                f"`temperatures` must hold {len(old)} numbers above 0, one for each off-ramp, got {temperatures!r}."
            )
        factors = np.append(old / new, 1.0).astype(np.float32)
        chosen = None if temperatures is None else tuple(new.tolist())
        return replace(self, logits=self.logits * factors[:, None], temperatures=chosen)

    def without_off_ramp(self, layer: int) -> "ExitTable":
        """The table of a model that never leaves at off-ramp `layer` (1 … L-1)."""
        table = replace(self)
        entropy = self.entropies.copy()
        entropy[:, layer - 1] = np.inf
        vars(table)["entropies"], vars(table)["answers"] = entropy, self.answers
        return table

    def ensemble(self) -> "ExitTable":
        """
        The table of another answer: layer i says the mean of the probabilities of exits 1 … i. No model answers so: it
        gains little, in the paper and in docs/benchmarks.md; this is there to see whether it would on other data.
        Exits whose logits are not finite have no part in the mean.
        """
        finite = np.isfinite(self.logits).all(-1, keepdims=True)
        logits = np.where(finite, self.logits, 0).astype(np.float64)
        probabilities = np.exp(logits - logits.max(-1, keepdims=True))
        probabilities *= finite / probabilities.sum(-1, keepdims=True)
        exits = finite.cumsum(1)
        means = probabilities.cumsum(1) / np.maximum(exits, 1)
        answers = np.log(np.maximum(means, np.finfo(np.float64).tiny))
        return replace(self, logits=np.where(exits > 0, answers, np.nan))

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
        write_facts(folder, self.num_layers, self.label_names, self.temperatures)
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
        temperatures = facts.get("temperatures")
        return cls(
            **columns,
            label_names=tuple(facts["labels"]),
            temperatures=None if temperatures is None else tuple(temperatures),
        )


def write_facts(
    folder: Path, layers: int, label_names: Sequence[str], temperatures: Sequence[float] | None = None
) -> None:
    facts = {"layers": layers, "labels": list(label_names), "temperatures": temperatures and list(temperatures)}
    (folder / FACTS_FILE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def collect_exits(
    model: Any,
    dataset: Any,
    data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
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

    Returns:
        [`ExitTable`]: rows without a label (-100) are left out.

    Raises:
        ValueError: for a model without off-ramps or classes, data without integer labels, several processes without
            `output_dir` or with a `DataLoader`.
    """
    config = model.config
    if not hasattr(model.base_model, "off_ramps"):
        raise ValueError(f"`model` is a `{type(model).__name__}`, which has no off-ramps: see `from_backbone`.")
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(
            f"`model` has num_labels={config.num_labels} and problem_type={config.problem_type!r}, but exits are "
            "about one of several classes."
        )
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be 1 or more, got {batch_size}.")
    loader = isinstance(dataset, torch.utils.data.DataLoader)
    if not loader and len(dataset) == 0:
        raise ValueError("`dataset` has no rows: give labelled ones.")
    rank, world, wait = _processes()
    if world > 1 and (output_dir is None or loader):
        raise ValueError(
            f"With {world} processes `output_dir` must name a folder that all of them see, and `dataset` must be "
            "map-style, so that they can share it out."
        )
    names = [str(config.id2label[label]) for label in range(config.num_labels)]
    text = "Exits" if progress and rank == 0 else None
    if loader:
        share, windows = range(1), _run_batches(model, dataset, text)
    else:
        share = range(len(dataset) * rank // world, len(dataset) * (rank + 1) // world)
        collate = data_collator or default_data_collator

        def run(items: list[dict], indices: list[int]) -> dict[str, np.ndarray]:
            lengths = [token_count(item) for item in items]
            return _exits_of(model, collate(items)) | {"lengths": np.array(lengths), "ids": np.array(indices)}

        windows = run_windows(run, dataset, share, batch_size, text)

    training = model.training
    model.eval()
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as temporary:
            folder = Path(output_dir or temporary)
            if rank == 0:
                folder.mkdir(parents=True, exist_ok=True)
                for path in folder.glob("exits*.arrow"):
                    path.unlink()
                write_facts(folder, config.num_hidden_layers, names, getattr(config, "off_ramp_temperatures", None))
            wait()
            name = ARROW_FILE if world == 1 else f"exits-{rank:05d}-of-{world:05d}.arrow"
            if share:
                write_windows(folder / name, windows)
            wait()
            table = ExitTable.load(folder)
            if output_dir is None:  # the files are about to go
                table = replace(table, logits=table.logits.copy())
    finally:
        model.train(training)
    known = table.labels != -100
    if not known.any():
        raise ValueError("`dataset` has no labelled rows (all labels are -100): give labelled ones.")
    check_labels(table.labels[known], int(known.sum()), config.num_labels)
    return table if known.all() else table.select(known)


def _exits_of(model: Any, batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Logits of all exits, and the labels, of one batch."""
    inputs = dict(batch)
    labels = inputs.pop("labels", inputs.pop("label", None))
    if labels is None or not isinstance(labels, torch.Tensor) or labels.is_floating_point():
        given = "none" if labels is None else str(getattr(labels, "dtype", type(labels).__name__))
        raise ValueError(f"`dataset` must give integer `labels` (through `data_collator`), got {given}.")
    inputs = {name: value.to(model.device) for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    output = model(**inputs, output_off_ramp_logits=True, early_exit_entropy=0.0)
    logits = torch.stack(output.off_ramp_logits, 1)  # (rows, layers, labels)
    return {"logits": logits.float().cpu().numpy(), "labels": labels.cpu().numpy().astype(np.int64)}


def _run_batches(model: Any, loader: Any, progress: str | None) -> Iterator[dict[str, np.ndarray]]:
    """The exits of the batches of a `DataLoader`, as they come."""
    seen = 0
    for batch in tqdm(loader, desc=progress, disable=progress is None):
        exits = _exits_of(model, batch)
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


def _processes() -> tuple[int, int, Callable[[], None]]:
    """This process's number, how many there are, and how to wait for all."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    from accelerate import PartialState

    state = PartialState()
    return state.process_index, state.num_processes, state.wait_for_everyone
