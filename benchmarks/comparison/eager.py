"""Contenders in PyTorch: the stock class, compiled or not, fixed depths, and early exit."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from stock_onnx import StockLogits

from .contender import AHEAD, COMPILED, CONTROL, NO_LAYERS, PYTORCH, STOCK, Contender, Point, exits_of_outputs


Batches = list[dict[str, torch.Tensor]]


def run_model(model: Any, batches: Batches, **settings: Any) -> list[Any]:
    with torch.inference_mode():
        return [model(**batch, **settings) for batch in batches]


def stock_contenders(stock: Any, bare: Any, batches: Batches, accuracy: float | None = None) -> list[Contender]:
    """The stock class twice, as control, and without its layers."""
    run = partial(run_model, stock, batches)
    return [
        Contender(STOCK, PYTORCH, run, accuracy=accuracy),
        Contender(CONTROL, PYTORCH, run, accuracy=accuracy),
        Contender(NO_LAYERS, PYTORCH, partial(run_model, bare, batches)),
    ]


def exit_contenders(model: Any, batches: Batches, points: list[Point]) -> list[Contender]:
    runs = [partial(run_model, model, batches, early_exit_entropy=point.argument) for point in points]
    return [
        Contender.at(point, "early exit", PYTORCH, run, exits_of_outputs)
        for point, run in zip(points, runs, strict=True)
    ]


def truncated_contenders(model: Any, batches: Batches, accuracies: list[float]) -> list[Contender]:
    """Every row leaves at the same layer: what a shorter model, trained layer by layer, would be."""
    layers = model.config.num_hidden_layers
    return [
        Contender(
            f"first {layer} layers for every row" if layer > 1 else "first layer for every row",
            PYTORCH,
            partial(run_model, model, batches, exit_layer=layer),
            exits_of_outputs,
            saving=1 - layer / layers,
            accuracy=accuracies[layer - 1],
        )
        for layer in range(1, layers)
    ]


def compiled_contenders(stock: Any, batches: Batches, accuracy: float | None = None) -> list[Contender]:
    """`torch.compile` for batches of any width; the first pass compiles."""
    torch._dynamo.reset()
    return [
        Contender(
            STOCK, COMPILED, partial(run_model, torch.compile(stock, dynamic=True), batches), None, None, 0.0, accuracy
        )
    ]


def ahead_contenders(stock: Any, batches: Batches, folder: Path, accuracy: float | None = None) -> list[Contender]:
    """The stock class compiled to a shared library for this number of rows and any width."""
    path = folder / f"stock_{len(batches[0]['input_ids'])}.pt2"
    batches = with_token_types(batches)
    widths = {name: {1: torch.export.Dim.DYNAMIC} for name in batches[0]}
    with torch.no_grad():
        program = torch.export.export(StockLogits(stock), (), batches[0], dynamic_shapes=widths)
        torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded = torch._inductor.aoti_load_package(str(path))
    return [Contender(STOCK, AHEAD, partial(run_model, loaded, batches), accuracy=accuracy)]


def with_token_types(batches: Batches) -> Batches:
    """Batches of families that know no `token_type_ids` get some, which [`StockLogits`] leaves out again."""
    return [{"token_type_ids": torch.zeros_like(batch["input_ids"])} | batch for batch in batches]
