"""
Part A: a trained model on text that it has not seen.

One half of the unseen rows is there to choose thresholds on, by the share of the layers that they save; accuracy and
saving are evaluated on the other half, and times on some rows of that one, which save about as much as all of it does:
sorted by length, in the same batches for all.
"""

import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from json_lines import read_lines
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from transformers_deebert import ExitTable, collect_exits, pick_threshold, stock_model
from transformers_deebert.analysis.timing import without_layers

from . import eager, from_texts, onnx_runtime, openvino_runtime
from .contender import ONNX, PYTORCH, TEXTS, Contender, Point
from .results import compare


SAVINGS = (0.25, 0.5, 0.65)
ALL_OFF_RAMPS = 1e-12  # nats, below any entropy: every off-ramp is evaluated


@dataclass(frozen=True)
class Subject:
    """
    What is measured, and on what.

    Args:
        name (`str`): Of the model, for the table.
        model, stock, bare (`PreTrainedModel`): Ours, the stock class, and the stock class without its layers.
        tokenizer (`PreTrainedTokenizerBase`): Of the model.
        select_on, evaluate_on (`list[dict]`): Rows `{"text", "label"}` to choose thresholds on, and others.
        max_length (`int`): Texts are cut to so many tokens.
    """

    name: str
    model: Any
    stock: Any
    bare: Any
    tokenizer: Any
    select_on: list[dict[str, Any]]
    evaluate_on: list[dict[str, Any]]
    max_length: int

    def encode(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        encoded = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=self.max_length)
        return [
            {name: values[index] for name, values in encoded.items()} | {"labels": row["label"]}
            for index, row in enumerate(rows)
        ]

    def collect(self, model: Any, batch_size: int = 32) -> tuple[ExitTable, ExitTable]:
        """What every exit says of the rows to choose on, and of the others."""
        collate = DataCollatorWithPadding(self.tokenizer)
        return tuple(
            collect_exits(model, self.encode(rows), collate, batch_size, progress=False)
            for rows in (self.select_on, self.evaluate_on)
        )

    def batches(self, places: Sequence[int], batch_size: int) -> eager.Batches:
        """The rows to read at these places, padded batch by batch, without their labels."""
        rows = self.encode([self.evaluate_on[place] for place in places])
        for row in rows:
            del row["labels"]
        collate = DataCollatorWithPadding(self.tokenizer)
        return [dict(collate(rows[start : start + batch_size])) for start in range(0, len(rows), batch_size)]


def load_subject(folder: str, file: str | None, quickstart: Path) -> Subject:
    """
    A trained checkpoint, and rows that it was not trained on.

    Args:
        folder (`str`): The checkpoint.
        file (`str`, *optional*):
            JSON lines with `text` and `label`, cut into random halves. Without it the checkpoint is the quickstart's,
            and the rows are those that it was validated and tested on.
        quickstart (`Path`): Folder of the quickstart's code.
    """
    max_length = 128
    if file is None:
        select_on, evaluate_on, max_length = quickstart_rows(Path(folder), quickstart)
    else:
        rows = read_lines(file)
        random.Random(0).shuffle(rows)
        select_on, evaluate_on = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    stock = stock_model(model)
    return Subject(
        name=Path(folder).name,
        model=model,
        stock=stock,
        bare=without_layers(stock).eval(),
        tokenizer=AutoTokenizer.from_pretrained(folder),
        select_on=select_on,
        evaluate_on=evaluate_on,
        max_length=max_length,
    )


def quickstart_rows(folder: Path, quickstart: Path) -> tuple[list[dict], list[dict], int]:
    """Validation and test rows of the quickstart that wrote `folder`, and how long they may be."""
    sys.path.insert(0, str(quickstart))
    import quickstart_data

    if not (folder / "numbers.json").is_file():
        raise ValueError(f"`model` ({str(folder)!r}) is no output of the quickstart: name rows with --file.")
    numbers = json.loads((folder / "numbers.json").read_text(encoding="utf-8"))
    splits = quickstart_data.split_reviews(quickstart_data.fetch_reviews(), numbers["seed"])
    return splits["validation"], splits["test"], numbers["max_length"]


def make_points(select_on: ExitTable, evaluate_on: ExitTable, savings: Sequence[float] = SAVINGS) -> list[Point]:
    """Thresholds chosen on some rows, and what they give on others."""
    points = []
    for saving in savings:
        choice = pick_threshold(select_on, target_saving=saving, evaluate_on=evaluate_on)
        points.append(Point(f"target {saving:.0%}", choice.threshold, choice.layer_saving, choice.score))
    return points


def accuracies(table: ExitTable) -> list[float]:
    """Of each layer's answers."""
    return (table.answers == table.labels[:, None]).mean(0).tolist()


def timed_places(table: ExitTable, points: Sequence[Point], rows: int, largest_batch: int) -> list[int]:
    """
    Whole batches of rows, sorted by length. They are spread evenly over all rows, in the order of the layers that
    these run at the points, so that they save about as much as all do.
    """
    whole = min(rows, len(table)) // largest_batch * largest_batch
    if not whole:
        raise ValueError(
            f"`rows` is {rows}, of {len(table)} there are, but the largest batch has {largest_batch}: time more rows, "
            "or leave that batch size out."
        )
    layers = sum(table.exits_at(point.threshold)[0] for point in points)
    order = np.lexsort((table.lengths, layers))
    chosen = order[((np.arange(whole) + 0.5) * len(table) / whole).astype(int)].tolist()
    return sorted(chosen, key=lambda place: (int(table.lengths[place]), place))


def run_real_text(
    subject: Subject,
    batch_sizes: list[int],
    rows: int,
    seconds: float,
    threads: int,
    ahead: bool = False,
    compiled: bool = True,
    done: frozenset[int] = frozenset(),
) -> Iterator[dict[str, Any]]:
    """Groups, one for each batch size but those that are done, as they are measured."""
    select_on, evaluate_on = subject.collect(subject.model)
    places = timed_places(evaluate_on, make_points(select_on, evaluate_on), rows, max(batch_sizes))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        models = [
            onnx_runtime.make_onnx(subject.model, subject.stock, subject.bare, folder, threads, dtype)
            for dtype in ONNX
        ]
        for batch_size in [size for size in batch_sizes if size not in done]:
            batches = subject.batches(places, batch_size)
            contenders = in_pytorch(subject, batches, places, select_on, evaluate_on, batch_size)
            full = accuracies(evaluate_on)[-1]
            if compiled:
                contenders += eager.compiled_contenders(subject.stock, batches, full)
            if ahead:
                contenders += eager.ahead_contenders(subject.stock, batches, folder, full)
            for one in models:
                contenders += in_onnx_runtime(subject, one, batches, select_on, evaluate_on, batch_size)
            if openvino_runtime.is_installed():
                contenders += in_openvino(subject, folder, batches, select_on, evaluate_on, batch_size, threads)
            yield {
                "part": "text",
                "model": subject.name,
                "batch_size": batch_size,
                "length": float(np.mean(evaluate_on.lengths[places])),
                "layers": evaluate_on.num_layers,
                "width": subject.model.config.hidden_size,
                "rows_chosen_on": len(select_on),
                "rows_read": len(evaluate_on),
            } | compare(
                contenders,
                len(places),
                evaluate_on.num_layers,
                seconds,
                expected_exits(contenders, evaluate_on, places),
            )


def in_pytorch(
    subject: Subject, batches: eager.Batches, places: list[int], select_on: Any, evaluate_on: Any, batch_size: int
) -> list[Contender]:
    right = accuracies(evaluate_on)
    points = make_points(select_on, evaluate_on)
    texts = [subject.evaluate_on[place]["text"] for place in places]
    at_ends = [Point("S = 0", 0.0, 0.0, right[-1]), Point("all off-ramps asked", ALL_OFF_RAMPS, 0.0, right[-1])]
    return [
        *eager.stock_contenders(subject.stock, subject.bare, batches, right[-1]),
        *eager.truncated_contenders(subject.model, batches, right),
        *eager.exit_contenders(subject.model, batches, at_ends + points),
        *from_texts.pipeline_contenders(subject, texts, batch_size, right[-1]),
        *from_texts.predictor_contenders(subject, texts, batch_size, [at_ends[0], *points]),
    ]


def in_onnx_runtime(
    subject: Subject, models: Any, batches: eager.Batches, select_on: Any, evaluate_on: Any, batch_size: int
) -> list[Contender]:
    """
    In int8 answers and entropies are others, and depend on the batch: thresholds are chosen anew where there are
    segments to collect exits with, and otherwise are those of float32.
    """
    if models.dtype == "float32":
        stock_accuracy = accuracies(evaluate_on)[-1]
    else:
        stock_accuracy = session_accuracy(subject, models.stock, batch_size)
    contenders = onnx_runtime.stock_contenders(models, batches, stock_accuracy)
    if models.dtype != "float32" and models.segments is not None:
        select_on, evaluate_on = subject.collect(models.segments, batch_size)
    points = [Point("S = 0", 0.0, 0.0, accuracies(evaluate_on)[-1]), *make_points(select_on, evaluate_on)]
    contenders += onnx_runtime.segment_contenders(models, batches, points)
    if models.dtype != "float32":
        points = [read_single_file(subject, models.single, point, batch_size) for point in points]
    return contenders + onnx_runtime.single_file_contenders(models, batches, points)


def in_openvino(
    subject: Subject,
    folder: Path,
    batches: eager.Batches,
    select_on: Any,
    evaluate_on: Any,
    batch_size: int,
    threads: int,
) -> list[Contender]:
    encoded = subject.encode(subject.select_on[: openvino_runtime.CALIBRATED_ON])
    calibration = [dict(DataCollatorWithPadding(subject.tokenizer)([row])) for row in encoded]
    for batch in calibration:
        del batch["labels"]

    def accuracy(compiled: Any) -> float:
        return accuracy_of(subject, lambda arrays: openvino_runtime.run_compiled(compiled, arrays), batch_size)

    points = [Point("S = 0", 0.0, 0.0, accuracies(evaluate_on)[-1]), *make_points(select_on, evaluate_on)]
    return [
        *openvino_runtime.stock_contenders(
            subject.stock, subject.bare, calibration, batches, folder, threads, accuracy
        ),
        *openvino_runtime.single_file_contenders(folder / "float32" / "model.onnx", batches, points, threads),
    ]


def read_single_file(subject: Subject, session: Any, point: Point, batch_size: int) -> Point:
    """A threshold, and what the single file gives with it on the rows to evaluate on, sorted into batches."""
    places = sorted(range(len(subject.evaluate_on)), key=lambda place: len(subject.evaluate_on[place]["text"]))
    arrays = onnx_runtime.to_arrays(subject.batches(places, batch_size))
    outputs = onnx_runtime.run_session(session, arrays, exit_threshold=onnx_runtime.threshold_array(point))
    exits = onnx_runtime.exits_of_single_file(outputs)
    answers = np.concatenate([logits.argmax(-1) for logits, _ in outputs])
    right = answers == [subject.evaluate_on[place]["label"] for place in places]
    saving = 1 - exits.double().mean().item() / subject.model.config.num_hidden_layers
    return replace(point, saving=saving, accuracy=float(np.mean(right)))


def session_accuracy(subject: Subject, session: Any, batch_size: int) -> float:
    return accuracy_of(subject, partial(onnx_runtime.run_session, session), batch_size)


def accuracy_of(subject: Subject, run: Any, batch_size: int) -> float:
    """Of a stock model on another runtime, on the rows to evaluate on, sorted by length into batches."""
    places = sorted(range(len(subject.evaluate_on)), key=lambda place: len(subject.evaluate_on[place]["text"]))
    arrays = onnx_runtime.to_arrays(subject.batches(places, batch_size))
    answers = np.concatenate([logits.argmax(-1) for (logits,) in run(arrays)])
    return float((answers == [subject.evaluate_on[place]["label"] for place in places]).mean())


def expected_exits(contenders: list[Contender], evaluate_on: ExitTable, places: list[int]) -> dict[Any, np.ndarray]:
    """Exit layers of the timed rows by the table, for those in float32 that have a threshold."""
    runtimes = (PYTORCH, TEXTS, ONNX["float32"])
    return {
        contender.key: evaluate_on.exits_at(contender.threshold)[0][places]
        for contender in contenders
        if contender.runtime in runtimes and contender.threshold is not None
    }
