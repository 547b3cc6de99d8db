"""The classification tasks of GLUE: texts, label names, scores and submission files. Used by run_glue.py."""

import csv
import json
import logging
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import evaluate
import numpy as np
from datasets import Dataset, load_dataset
from huggingface_hub import constants
from sklearn.metrics import f1_score, matthews_corrcoef


logger = logging.getLogger(__name__)

Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]

SCORES = {
    "accuracy": lambda answers, labels: float((answers == labels).mean()),
    "f1": lambda answers, labels: float(f1_score(labels, answers, zero_division=0.0)),
    "matthews_correlation": lambda answers, labels: float(matthews_corrcoef(labels, answers)),
}


@dataclass(frozen=True)
class GlueTask:
    """
    One task.

    Args:
        name (`str`): Its name on the Hub.
        columns (`tuple[str, ...]`): The Hub's names of its one or two texts.
        labels (`tuple[str, ...]`): Class names in GLUE's own order, which is the Hub's.
        metrics (`tuple[str, ...]`): Keys of its score; the first is the one that the paper reports.
        files (`dict[str, str]`): Set to predict to the name of its submission file, without suffix.
        answers_by_name (`bool`): Whether submissions hold class names instead of indices.
    """

    name: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    files: dict[str, str]
    answers_by_name: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the texts here and in files of one's own."""
        return ("text",) if len(self.columns) == 1 else ("sentence1", "sentence2")

    @property
    def label_maps(self) -> dict[str, dict]:
        """The label names for a model's configuration."""
        return {"id2label": dict(enumerate(self.labels)), "label2id": {name: i for i, name in enumerate(self.labels)}}

    def encode(self, rows: Dataset, tokenizer, max_length: int) -> Dataset:
        """Token ids in place of the texts, cut to `max_length` and not padded."""
        longest = min(max_length, tokenizer.model_max_length)
        return rows.map(
            lambda batch: tokenizer(*(batch[text] for text in self.texts), truncation=True, max_length=longest),
            batched=True,
            remove_columns=list(self.texts),
            desc="Tokenizing",
        )

    def score(self, answers: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Scores of predicted classes against true ones, computed here: fractions, or a correlation from -1 to 1."""
        return {name: SCORES[name](answers, labels) for name in self.metrics}


TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), ("matthews_correlation",), {"test": "CoLA"}),
        GlueTask("sst2", ("sentence",), ("negative", "positive"), ("accuracy",), {"test": "SST-2"}),
        GlueTask(
            "mrpc", ("sentence1", "sentence2"), ("not_equivalent", "equivalent"), ("f1", "accuracy"), {"test": "MRPC"}
        ),
        GlueTask(
            "qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), ("f1", "accuracy"), {"test": "QQP"}
        ),
        GlueTask(
            "mnli",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            ("accuracy",),
            {"matched": "MNLI-m", "mismatched": "MNLI-mm"},
            answers_by_name=True,
        ),
        GlueTask(
            "qnli", ("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), {"test": "QNLI"}, True
        ),
        GlueTask(
            "rte", ("sentence1", "sentence2"), ("entailment", "not_entailment"), ("accuracy",), {"test": "RTE"}, True
        ),
        GlueTask(
            "wnli", ("sentence1", "sentence2"), ("not_entailment", "entailment"), ("accuracy",), {"test": "WNLI"}
        ),
    )
}


def get_task(name: str) -> GlueTask:
    """The task of that name, in any case and with or without a hyphen."""
    plain = name.lower().replace("-", "")
    if plain == "stsb":
        raise ValueError(
            f"`task_name` {name!r} is a regression task, and early exit by entropy needs classes: choose one of "
            f"{sorted(TASKS)}."
        )
    if plain not in TASKS:
        raise ValueError(f"`task_name` must be one of {sorted(TASKS)}, got {name!r}.")
    return TASKS[plain]


def get_score(task: GlueTask) -> tuple[Score, str]:
    """The score function of `evaluate` where the Hub can be reached, else ours; and the name of what it is."""
    if hub_answers():
        try:
            metric = evaluate.load("glue", task.name)
        except (ImportError, OSError) as error:
            logger.warning("evaluate's metric could not be loaded (%s).", error)
        else:
            logger.info("Scores come from evaluate's GLUE metric.")
            return lambda answers, labels: metric.compute(predictions=answers, references=labels), "evaluate"
    logger.info("Scores are computed locally (scikit-learn): evaluate's GLUE metric cannot be reached.")
    return task.score, "scikit-learn"


def hub_answers(seconds: float = 3.0) -> bool:
    """Whether the Hub answers soon; asked once, as its client would try again for minutes."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        urllib.request.urlopen(constants.ENDPOINT, timeout=seconds).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def read_file(path: str, task: GlueTask, with_labels: bool = True) -> Dataset:
    """Rows of a .jsonl or .csv file: `text` or `sentence1` and `sentence2`, and `label` (an index) where asked for."""
    suffix = Path(path).suffix
    if suffix not in (".jsonl", ".csv"):
        raise ValueError(f"{path!r} must be a .jsonl or a .csv file, got suffix {suffix!r}. Convert it first.")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file) if suffix == ".csv" else (json.loads(line) for line in file if line.strip()))
    if not rows:
        raise ValueError(f"{path!r} must hold at least one row, got none.")
    columns = [*task.texts, "label"] if with_labels else list(task.texts)
    for number, row in enumerate(rows, start=1):
        if any(row.get(column) is None for column in columns):
            raise ValueError(f"Row {number} of {path!r} must have the keys {columns}, got {row}. Rename or add them.")
        if with_labels and str(row["label"]) not in map(str, range(len(task.labels))):
            raise ValueError(
                f"`label` in row {number} of {path!r} must be an index from 0 to {len(task.labels) - 1} "
                f"({', '.join(task.labels)}), got {row['label']!r}. Map the names to indices first."
            )
    return Dataset.from_list(
        [{column: int(row[column]) if column == "label" else row[column] for column in columns} for row in rows]
    )


def load_hub_splits(task: GlueTask) -> dict[str, Dataset]:
    """GLUE's own splits from the Hub, their texts under our names."""
    if not hub_answers():
        raise ValueError(
            f"GLUE's {task.name} cannot be fetched from {constants.ENDPOINT}: pass `--train_file` and "
            "`--validation_file`, or go online."
        )
    splits = load_dataset("nyu-mll/glue", task.name)
    return {
        name: split.select_columns([*task.columns, "label"]).rename_columns(
            {theirs: ours for theirs, ours in zip(task.columns, task.texts, strict=True) if theirs != ours}
        )
        for name, split in splits.items()
    }


def load_data(
    task: GlueTask,
    train_file: str | None = None,
    validation_files: tuple[str | None, str | None] = (None, None),
    test_files: tuple[str | None, str | None] = (None, None),
    with_test: bool = False,
) -> tuple[Dataset, dict[str, Dataset], dict[str, Dataset]]:
    """
    Training rows, and the sets to evaluate on and to predict by name: MNLI's are `matched` and `mismatched`, those of
    other tasks `validation` and `test`. Files of one's own come before the Hub's splits; only MNLI takes second files.
    """
    evaluated = ("matched", "mismatched") if task.name == "mnli" else ("validation",)
    for name, files in (("validation_mismatched_file", validation_files), ("test_mismatched_file", test_files)):
        if files[1] and task.name != "mnli":
            raise ValueError(f"`{name}` is for MNLI alone, got {files[1]!r} for {task.name}. Leave it out.")
    if (train_file is None) != (validation_files[0] is None):
        raise ValueError(
            f"`train_file` ({train_file!r}) and `validation_file` ({validation_files[0]!r}) must be given together."
        )
    if validation_files[1] and not validation_files[0]:
        raise ValueError("`validation_mismatched_file` needs `validation_file` for the matched set beside it.")
    if any(test_files) and not with_test:
        raise ValueError(f"`test_file` ({test_files[0]!r}) is for predictions: add `--do_predict`, or leave it out.")
    from_hub = train_file is None or (with_test and not any(test_files))
    hub = load_hub_splits(task) if from_hub else {}

    def named(split: str, files: tuple[str | None, str | None], names: tuple[str, ...], labelled: bool):
        if any(files):
            return {name: read_file(file, task, labelled) for name, file in zip(names, files, strict=False) if file}
        found = {name: hub[name if name == split else f"{split}_{name}"] for name in names}
        return found if labelled else {name: rows.remove_columns("label") for name, rows in found.items()}

    train = read_file(train_file, task) if train_file else hub["train"]
    tests = named("test", test_files, tuple(task.files), labelled=False) if with_test else {}
    return train, named("validation", validation_files, evaluated, labelled=True), tests


def write_submission(folder: Path, task: GlueTask, name: str, answers: np.ndarray) -> Path:
    """Writes the answers to a set as GLUE's server wants them; returns the file."""
    path = folder / f"{task.files[name]}.tsv"
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{index}\t{task.labels[answer] if task.answers_by_name else answer}" for index, answer in enumerate(answers)
    ]
    path.write_text("\n".join(["index\tprediction", *lines]) + "\n", encoding="utf-8")
    return path
