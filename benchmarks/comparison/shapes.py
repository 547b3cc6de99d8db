"""
Part B: random weights of usual shapes, time alone.

Who leaves where is laid down: for each saving the same share of the rows that are left leaves at every off-ramp. The
thresholds, one for each off-ramp, lie between the entropies of those very rows, so that every runtime lets the same
rows leave, and the saving is what the table says at every batch size. At batch size 1 a pass is a list of rows that
leave at different layers. Off-ramps are as in the quickstart (`mean`, `linear`); their random classifiers are scaled
up, or the entropies would differ by rounding alone.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification, stock_model
from transformers_deebert.analysis.timing import without_layers

from . import eager, onnx_runtime
from .contender import Contender, Point
from .results import compare
from .schedule import off_ramp_entropies, scheduled_exits, thresholds_for


SHAPES = {"minilm": (6, 384), "base": (12, 768)}  # layers, width
LEAST_ROWS = 12  # of a pass, so that they can leave everywhere
SCALE = 20.0


def make_model(layers: int, width: int, **settings: Any) -> Any:
    """Random weights, with 12 heads as MiniLM and BERT-base have."""
    torch.manual_seed(0)
    shape = {"num_attention_heads": 12, "intermediate_size": 4 * width} | settings
    config = DeeBertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        off_ramp_pooling="mean",
        off_ramp_head="linear",
        off_ramps_trained=True,
        **shape,
    )
    model = DeeBertForSequenceClassification(config).eval()
    for off_ramp in model.base_model.off_ramps:
        off_ramp.classifier.weight.data.mul_(SCALE)
    return model


def make_batches(model: Any, batch_size: int, length: int, rows: int = LEAST_ROWS) -> eager.Batches:
    """Batches of random tokens without padding; as many as make `rows` rows at least."""
    generator = torch.Generator().manual_seed(length)
    shape = (-(-rows // batch_size), batch_size, length)
    ids = torch.randint(1, model.config.vocab_size, shape, generator=generator)
    return [
        {"input_ids": batch, "attention_mask": torch.ones_like(batch), "token_type_ids": torch.zeros_like(batch)}
        for batch in ids
    ]


def make_points(model: Any, batches: eager.Batches, savings: list[float]) -> list[Point]:
    """A point for each saving, with what its schedule really saves of whole rows."""
    layers = model.config.num_hidden_layers
    entropies = off_ramp_entropies(model, batches)
    points = []
    for saving in savings:
        if not saving:
            points.append(Point("S = 0", 0.0, 0.0))
            continue
        counts = scheduled_exits(len(entropies), layers, saving)
        saved = 1 - float((counts * range(1, layers + 1)).sum()) / (layers * len(entropies))
        points.append(Point(f"{saving:.0%} saved", thresholds_for(entropies, counts), saved))
    return points


def make_contenders(model: Any, stock: Any, bare: Any, onnx_models: Any, batches: Any, points: Any) -> list[Contender]:
    contenders = eager.stock_contenders(stock, bare, batches) + eager.exit_contenders(model, batches, points)
    if onnx_models is not None:
        contenders += onnx_runtime.stock_contenders(onnx_models, batches)
        contenders += onnx_runtime.segment_contenders(onnx_models, batches, points)
        contenders += onnx_runtime.single_file_contenders(onnx_models, batches, points)
    return contenders


def run_shape(
    name: str,
    cells: list[tuple[int, int]],
    savings: list[float],
    seconds: float,
    longest: float,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """
    Groups of one shape, as they are measured: one for each cell, a length and a batch size. A cell whose stock pass
    takes longer than `longest` seconds gives a group without contenders that says so.
    """
    layers, width = SHAPES[name]
    model = make_model(layers, width)
    stock = stock_model(model)
    bare = without_layers(stock).eval()
    with tempfile.TemporaryDirectory() as folder:
        onnx_models = onnx_runtime.make_onnx(model, stock, bare, Path(folder), threads)
        for length, batch_size in cells:
            batches = make_batches(model, batch_size, length)
            facts = {"part": "shapes", "shape": name, "layers": layers, "width": width}
            facts |= {"length": length, "batch_size": batch_size}
            begin = time.perf_counter()
            eager.run_model(stock, batches)
            taken = time.perf_counter() - begin
            if taken > longest:
                yield facts | {"left_out": f"one stock pass takes {taken:.1f} s", "contenders": []}
                continue
            points = make_points(model, batches, savings)
            contenders = make_contenders(model, stock, bare, onnx_models, batches, points)
            yield facts | compare(contenders, len(batches) * batch_size, layers, seconds)
