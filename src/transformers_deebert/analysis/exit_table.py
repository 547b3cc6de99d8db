"""Exit tables: the logits of every exit for every sample of a data set."""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from ..models.exit_criteria_deebert import ExitCriterion
from ..models.exit_scores_deebert import SCORES, Score, largest_score
from .decisions import (
    Threshold,
    check_labels,
    check_logits,
    check_threshold,
    exit_scores,
    first_exits,
    score_name,
    scores_of_evaluated,
)
from .row_windows import read_columns, write_windows


ARROW_FILE, FACTS_FILE = "exits.arrow", "exits.json"
FILES = re.compile(r"exits(-\d{5}-of-\d{5})?\.arrow")
# Logits of so many cells are read and turned into scores at once.
CELLS = 4_000_000


@dataclass(frozen=True)
class ExitTable:
    """
    The answers of all exits to labelled samples, and the score that decides about them. Everything about thresholds
    can be computed from it without the model.

    Args:
        logits (`np.ndarray` of shape `(rows, exits, labels)`, float32): Of all exits, the model's own head last.
        labels (`np.ndarray` of shape `(rows,)`, int64): True classes.
        lengths (`np.ndarray` of shape `(rows,)`, int64): Tokens of each row.
        ids (`np.ndarray` of shape `(rows,)`, int64): Each row's place in the data set.
        label_names (`tuple[str, ...]`): Names of the classes.
        temperatures (`tuple[float, ...]`, *optional*):
            What the off-ramps' logits have been divided by, one number each; `None`: nothing.
        is_ensemble (`bool`, *optional*, defaults to `False`):
            Whether an exit's logits are the mean of all up to it ([`ensemble`]), which no model answers.
        exit_layers (`tuple[int, ...]`, *optional*):
            The layers that the exits stand behind, the head's last; by default 1, 2, …
        score (`str` or `Callable`, *optional*, defaults to `"entropy"`):
            How unsure an exit is, as of an [`ExitCriterion`]; see [`with_score`].
        patience (`int`, *optional*, defaults to 1): As of an [`ExitCriterion`].
        stored_scores (`np.ndarray` of shape `(rows, off-ramps)`, *optional*):
            Scores that [`collect_exits`] computed because they need more than logits.

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
    exit_layers: tuple[int, ...] = ()
    score: str | Score = "entropy"
    patience: int = 1
    stored_scores: np.ndarray | None = None

    def __post_init__(self) -> None:
        rows, exits, classes = check_logits(self.logits).shape
        if not self.exit_layers:
            object.__setattr__(self, "exit_layers", tuple(range(1, exits + 1)))
        if len(self.exit_layers) != exits:
            raise ValueError(f"`exit_layers` has {len(self.exit_layers)} layers for {exits} exits: give one each.")
        if self.stored_scores is None:
            ExitCriterion(self.score, 0.0, self.patience)  # refuses unknown scores
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
        """Of the model, whether an exit stands behind each or not."""
        return self.exit_layers[-1]

    @property
    def num_labels(self) -> int:
        return self.logits.shape[2]

    @property
    def score_name(self) -> str:
        return score_name(self.score)

    @property
    def largest_score(self) -> float | None:
        """The largest finite score that there can be, ln(labels) nats of entropy; `None` for one of the user's own."""
        return largest_score(self.score, self.num_labels)

    @property
    def max_entropy(self) -> float:
        """ln(labels), nats."""
        return SCORES["entropy"].largest(self.num_labels)

    @property
    def has_independent_scores(self) -> bool:
        """Whether what an off-ramp decides depends on it alone, and not on the exits evaluated before it."""
        return has_independent_scores(self.score, self.patience)

    @cached_property
    def scores(self) -> np.ndarray:
        """`(rows, off-ramps)`, float64, all of them evaluated; infinite where a logit or score is not finite."""
        if self.stored_scores is not None:
            return np.where(np.isfinite(self.stored_scores), self.stored_scores, np.inf).astype(np.float64)
        layers = self.exit_layers[:-1]
        if not layers:
            return np.zeros((len(self), 0))
        return self._by_rows(lambda logits: exit_scores(logits[:, :-1], self.score, layers))

    @cached_property
    def entropies(self) -> np.ndarray:
        """Nats, `(rows, exits)`, whatever the table's score; infinite where a logit is not finite."""
        return self._by_rows(exit_scores)

    @cached_property
    def deciding_scores(self) -> np.ndarray:
        """
        `(rows, off-ramps)`: what one threshold for all off-ramps is compared with. With patience t that is the largest
        of the last t scores, infinite at the first t - 1 off-ramps.
        """
        scores = self.scores
        for _ in range(self.patience - 1):
            before = np.concatenate([np.full((len(self), 1), np.inf), scores[:, :-1]], axis=1)[:, : scores.shape[1]]
            scores = np.maximum(self.scores, before)
        return scores

    @cached_property
    def answers(self) -> np.ndarray:
        """Predicted classes, `(rows, exits)`, int64."""
        return self._by_rows(lambda logits: logits.argmax(-1))

    def _by_rows(self, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        step = max(1, CELLS // (self.logits.shape[1] * self.logits.shape[2]))
        return np.concatenate([function(self.logits[at : at + step]) for at in range(0, len(self), step)])

    def places_at(self, threshold: Threshold) -> np.ndarray:
        """Which exit each row takes at a threshold, `(rows,)`, as its place in `exit_layers`."""
        values = check_threshold(threshold, len(self.exit_layers) - 1)
        if values.ndim == 0:
            return first_exits(self.deciding_scores, values if values > 0 else -np.inf)
        if self.has_independent_scores or self.stored_scores is not None or (values > 0).all():
            return first_exits(self.scores, values, self.patience)
        # Which off-ramps are switched on makes a difference to the scores of the others.
        layers = self.exit_layers[:-1]
        scores = self._by_rows(lambda logits: scores_of_evaluated(logits, values, self.score, layers))
        return first_exits(scores, values, self.patience)

    def exits_at(self, threshold: Threshold) -> tuple[np.ndarray, np.ndarray]:
        """Exit layers and predicted classes at a threshold, each of shape `(rows,)`."""
        places = self.places_at(threshold)
        return np.asarray(self.exit_layers)[places], self.answers[np.arange(len(places)), places]

    def with_score(self, score: str | Score, patience: int = 1) -> "ExitTable":
        """
        The table of the same answers under another exit criterion.

        Args:
            score (`str` or `Callable`): As of an [`ExitCriterion`]; a function sees logits, memory and layer.
            patience (`int`, *optional*, defaults to 1): As of an [`ExitCriterion`].

        Raises:
            ValueError: for an unknown score or a patience below 1.
        """
        table = replace(self, score=score, patience=patience, stored_scores=None)
        if "answers" in vars(self):
            vars(table)["answers"] = self.answers
        return table

    def with_temperatures(self, temperatures: Sequence[float] | None) -> "ExitTable":
        """The table that a model with other `off_ramp_temperatures` gives."""
        ones = np.ones(len(self.exit_layers) - 1)
        old, new = (ones if given is None else np.asarray(given) for given in (self.temperatures, temperatures))
        if new.shape != old.shape or not np.isfinite(new).all() or (new <= 0).any():
            raise ValueError(
                f"`temperatures` must hold {len(old)} numbers above 0, one for each off-ramp, got {temperatures!r}."
            )
        if self.stored_scores is not None and not np.array_equal(old, new):
            raise ValueError(
                f"`temperatures` cannot be changed: the scores {self.score_name!r} of this table were collected with "
                f"{self.temperatures}. Collect the exits again, or choose a score with `with_score`."
            )
        factors = np.append(old / new, 1.0).astype(np.float32)
        chosen = None if temperatures is None else tuple(new.tolist())
        return replace(self, logits=self.logits * factors[:, None], temperatures=chosen)

    def without_off_ramp(self, layer: int) -> "ExitTable":
        """The table of a model without the off-ramp behind `layer`."""
        place = self.exit_layers.index(layer)
        keep = [index for index in range(len(self.exit_layers)) if index != place]
        temperatures, stored = self.temperatures, self.stored_scores
        table = replace(
            self,
            logits=self.logits[:, keep],
            exit_layers=tuple(self.exit_layers[index] for index in keep),
            temperatures=None if temperatures is None else tuple(temperatures[index] for index in keep[:-1]),
            stored_scores=None if stored is None else stored[:, keep[:-1]],
        )
        vars(table)["answers"] = self.answers[:, keep]
        if self.has_independent_scores:
            vars(table)["scores"] = self.scores[:, keep[:-1]]
        return table

    def against_full_depth(self) -> "ExitTable":
        """The table with the answers at full depth as labels: accuracy is then agreement with the full model."""
        return replace(self, labels=self.answers[:, -1])

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
        stored = None if self.stored_scores is None else self.stored_scores[rows]
        table = replace(self, **parts, stored_scores=stored)
        # What was computed of all rows need not be computed of some again.
        for name in ("scores", "deciding_scores", "answers"):
            if name in vars(self):
                vars(table)[name] = vars(self)[name][rows]
        return table

    def split(self, seed: int = 0) -> "tuple[ExitTable, ExitTable]":
        """Two random halves: one to select on, one to evaluate on."""
        order = np.random.default_rng(seed).permutation(len(self))
        half = len(self) // 2
        return self.select(np.sort(order[:half])), self.select(np.sort(order[half:]))

    def save(self, folder: str | Path) -> None:
        """
        Writes the table to a folder, as Arrow, in place of one that is there; a save that fails leaves that as it is.

        Raises:
            ValueError: for the table of an ensemble, which is computed again from that of the exits, or with a
                function as score ([`with_score`]), which is given again.
        """
        if self.is_ensemble:
            raise ValueError("This is the table of an `ensemble()`: save the table that it was made of.")
        if self.stored_scores is None and not isinstance(self.score, str):
            raise ValueError(
                f"`score` of this table is a function ({self.score_name}), which no file can hold: save the table "
                "without it, and call `with_score` behind `load`."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"logits": self.logits, "labels": self.labels, "lengths": self.lengths, "ids": self.ids}
        if self.stored_scores is not None:
            columns["scores"] = self.stored_scores
        new = folder / "new.arrow"
        write_windows(new, [columns])
        remove_table(folder)
        write_facts(
            folder,
            self.exit_layers,
            self.label_names,
            self.temperatures,
            score=self.score_name,
            patience=self.patience,
        )
        os.replace(new, folder / ARROW_FILE)

    def check_alike(self, other: "ExitTable") -> None:
        """Raises `ValueError` unless another table can be of the same model, with the same temperatures."""
        mine, others = (
            (one.exit_layers, one.num_labels, one.temperatures, one.is_ensemble, one.score_name, one.patience)
            for one in (self, other)
        )
        if mine != others:
            raise ValueError(
                "`evaluate_on` is of another model, of other temperatures or of another score than `table`: collect "
                "both alike."
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
        exit_layers = tuple(facts.get("exit_layers") or range(1, facts["layers"] + 1))
        columns["logits"] = columns["logits"].reshape(-1, len(exit_layers), len(facts["labels"]))
        temperatures = facts.get("temperatures")
        return cls(
            columns["logits"],
            columns["labels"],
            columns["lengths"],
            columns["ids"],
            label_names=tuple(facts["labels"]),
            temperatures=None if temperatures is None else tuple(temperatures),
            exit_layers=exit_layers,
            score=facts.get("score", "entropy"),
            patience=facts.get("patience", 1),
            stored_scores=columns.get("scores"),
        )


def has_independent_scores(score: str | Score, patience: int) -> bool:
    """Whether a score with this patience decides about each exit by that exit alone."""
    built_in = SCORES.get(score) if isinstance(score, str) else None
    return patience == 1 and built_in is not None and built_in.of_one_exit


def write_facts(
    folder: Path,
    exit_layers: Sequence[int],
    label_names: Sequence[str],
    temperatures: Sequence[float] | None = None,
    score: str = "entropy",
    patience: int = 1,
) -> None:
    facts = {
        "exit_layers": list(exit_layers),
        "labels": list(label_names),
        "temperatures": temperatures and list(temperatures),
        "score": score,
        "patience": patience,
    }
    (folder / FACTS_FILE).write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")


def table_files(folder: Path) -> list[Path]:
    """The files of a table: one, or one for each process that wrote it."""
    return sorted(path for path in folder.glob("exits*.arrow") if FILES.fullmatch(path.name))


def remove_table(folder: Path) -> None:
    for path in table_files(folder):
        path.unlink()
