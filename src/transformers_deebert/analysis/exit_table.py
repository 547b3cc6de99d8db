"""What every exit of a model says of every row of a data set."""

import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from .decisions import Threshold, check_labels, check_logits, entropies, first_below
from .row_windows import read_columns, write_windows


ARROW_FILE, FACTS_FILE = "exits.arrow", "exits.json"
FILES = re.compile(r"exits(-\d{5}-of-\d{5})?\.arrow")
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
        is_ensemble (`bool`, *optional*, defaults to `False`):
            Whether an exit's logits are the mean of all up to it ([`ensemble`]), which no model answers.

    Raises:
        ValueError: for arrays of other shapes, labels that are no class indices, no rows.
    """

    logits: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray
    ids: np.ndarray
    label_names: tuple[str, ...]
    temperatures: tuple[float, ...] | None = None
    is_ensemble: bool = False

    def __post_init__(self) -> None:
        rows, _, classes = check_logits(self.logits).shape
        check_labels(self.labels, rows, classes)
        for name in ("lengths", "ids"):
            values = getattr(self, name)
            if values.shape != (rows,) or not np.issubdtype(values.dtype, np.integer) or values.min() < 0:
                raise ValueError(
                    f"`{name}` must be whole numbers >= 0 of shape ({rows},), got {values.dtype} of shape "
                    f"{values.shape}: give one a row."
                )
        if len(self.label_names) != classes:
            raise ValueError(f"`label_names` has {len(self.label_names)} names for {classes} classes: give one each.")

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
        rows, _, classes = check_logits(logits).shape
        return cls(
            np.asarray(logits),
            check_labels(labels, rows, classes).astype(np.int64),  # small integers would overflow in counts
            np.zeros(rows, np.int64) if lengths is None else np.asarray(lengths),
            np.arange(rows),
            tuple(str(name) for name in (range(classes) if label_names is None else label_names)),
        )

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
        return replace(self, logits=np.where(exits > 0, answers, np.nan), is_ensemble=True)

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
        """
        Writes the table to a folder, as Arrow, in place of one that is there; a save that fails leaves that as it is.

        Raises:
            ValueError: for the table of an ensemble, which is computed again from that of the exits.
        """
        if self.is_ensemble:
            raise ValueError("This is the table of an `ensemble()`: save the table that it was made of.")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"logits": self.logits, "labels": self.labels, "lengths": self.lengths, "ids": self.ids}
        new = folder / "new.arrow"
        write_windows(new, [columns])
        remove_table(folder)
        write_facts(folder, self.num_layers, self.label_names, self.temperatures)
        os.replace(new, folder / ARROW_FILE)

    def check_alike(self, reading: "ExitTable") -> None:
        """Raises `ValueError` unless another table can be of the same model, with the same temperatures."""
        mine, others = ((one.logits.shape[1:], one.temperatures, one.is_ensemble) for one in (self, reading))
        if mine != others:
            raise ValueError(
                "`reading` is of another model, or of other temperatures, than `table`: collect both alike."
            )

    @classmethod
    def load(cls, folder: str | Path) -> "ExitTable":
        """
        Reads a table that [`save`] or [`collect_exits`] wrote; logits stay on disk until they are needed.

        Raises:
            ValueError: for a folder without a table.
        """
        folder = Path(folder)
        files = table_files(folder)
        if not files or not (folder / FACTS_FILE).is_file():
            raise ValueError(f"`folder` ({str(folder)!r}) holds no exit table: make one with `collect_exits`.")
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        columns = {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in read_columns(files).items()
        }
        columns["logits"] = columns["logits"].reshape(-1, facts["layers"], len(facts["labels"]))
        temperatures = facts.get("temperatures")
        return cls(
            columns["logits"],
            columns["labels"],
            columns["lengths"],
            columns["ids"],
            label_names=tuple(facts["labels"]),
            temperatures=None if temperatures is None else tuple(temperatures),
        )


def write_facts(
    folder: Path, layers: int, label_names: Sequence[str], temperatures: Sequence[float] | None = None
) -> None:
    facts = {"layers": layers, "labels": list(label_names), "temperatures": temperatures and list(temperatures)}
    (folder / FACTS_FILE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def table_files(folder: Path) -> list[Path]:
    """The files of a table: one, or one for each process that wrote it."""
    return sorted(path for path in folder.glob("exits*.arrow") if FILES.fullmatch(path.name))


def remove_table(folder: Path) -> None:
    for path in table_files(folder):
        path.unlink()
