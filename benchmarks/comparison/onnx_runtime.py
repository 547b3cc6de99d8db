"""Contenders in ONNX Runtime: the stock class, the segments, and the single file with the exits inside."""

import inspect
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx_exits import StockLogits
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from transformers_deebert import OnnxEarlyExitModel, export_onnx
from transformers_deebert.inference.onnx_model import session_options
from transformers_deebert.inference.onnx_segments import export_module

from .contender import NO_LAYERS, ONNX, STOCK, Contender, Point, exits_of_outputs
from .eager import Batches, run_model, with_token_types


INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


@dataclass(frozen=True)
class OnnxModels:
    """
    One model in ONNX Runtime, in all forms.

    Args:
        dtype (`str`): `"float32"` or `"int8"`.
        stock, bare (`onnxruntime.InferenceSession`): The stock class at full depth, and without its layers.
        segments ([`OnnxEarlyExitModel`], *optional*): A file for each layer; `None` where they cannot be written.
        single (`onnxruntime.InferenceSession`, *optional*): One file with the exits inside, for one row at a time.
    """

    dtype: str
    stock: Any
    bare: Any
    segments: Any
    single: Any


def knows_int8() -> bool:
    """Whether this version of the library writes int8."""
    return "dtype" in inspect.signature(export_onnx).parameters


def make_onnx(model: Any, stock: Any, bare: Any, folder: Path, threads: int, dtype: str = "float32") -> OnnxModels:
    """Exports the models to `folder` and loads them, each with `threads` threads that never wait awake."""
    files = {}
    for name, one in {"stock": stock, "bare": bare}.items():
        files[name] = folder / f"{name}_{dtype}.onnx"
        export_whole(one, files[name], dtype)
    segments = single = None
    if dtype == "float32" or knows_int8():
        exits = export_onnx(model, folder / dtype, **({} if dtype == "float32" else {"dtype": dtype}))
        segments = OnnxEarlyExitModel.from_pretrained(exits, num_threads=threads)
        single = make_session(exits / "model.onnx", threads)
    return OnnxModels(
        dtype, make_session(files["stock"], threads), make_session(files["bare"], threads), segments, single
    )


def export_whole(model: Any, path: Path, dtype: str) -> None:
    """A stock model for any number of rows and any width, by the exporter that writes the exits."""
    mask = torch.ones(2, 8, dtype=torch.long)
    mask[1, 5:] = 0
    inputs = [torch.ones_like(mask), mask, torch.zeros_like(mask)]
    graph = export_module(StockLogits(model), inputs, INPUTS, ["logits"], {0: "rows", 1: "width"}, 20)
    if dtype == "int8":
        quantize(graph, path)
    else:
        onnx.save(graph, path)


def quantize(graph: onnx.ModelProto, path: Path) -> None:
    """Weights in int8, a scale for each channel; activations are quantized as they come."""
    del graph.graph.value_info[:]  # ONNX Runtime infers shapes anew, and those noted here confuse it
    add_pre_process_metadata(graph)  # or it advises to prepare the graph, which the exporter has done
    quantize_dynamic(graph, path, per_channel=True, weight_type=QuantType.QInt8)


def make_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    # On the CPU the fused operator is slower than its parts, for the stock model too.
    return onnxruntime.InferenceSession(
        os.fspath(path), session_options(threads), disabled_optimizers=["SkipLayerNormFusion"]
    )


def run_session(session: Any, arrays: list[dict[str, np.ndarray]], **settings: np.ndarray) -> list[list[np.ndarray]]:
    names = {value.name for value in session.get_inputs()}
    return [
        session.run(None, {name: array for name, array in (batch | settings).items() if name in names})
        for batch in arrays
    ]


def to_arrays(batches: Batches) -> list[dict[str, np.ndarray]]:
    return [{name: tensor.numpy() for name, tensor in batch.items()} for batch in with_token_types(batches)]


def threshold_array(point: Point) -> np.ndarray:
    return np.atleast_1d(np.asarray(point.argument, dtype=np.float32))


def stock_contenders(models: OnnxModels, batches: Batches, accuracy: float | None = None) -> list[Contender]:
    arrays = to_arrays(batches)
    return [
        Contender(STOCK, ONNX[models.dtype], partial(run_session, models.stock, arrays), accuracy=accuracy),
        Contender(NO_LAYERS, ONNX[models.dtype], partial(run_session, models.bare, arrays)),
    ]


def segment_contenders(models: OnnxModels, batches: Batches, points: list[Point]) -> list[Contender]:
    return [
        Contender(
            f"segments, {point.name}",
            ONNX[models.dtype],
            partial(run_model, models.segments, batches, early_exit_entropy=point.argument),
            exits_of_outputs,
            point.threshold,
            point.saving,
            point.accuracy,
        )
        for point in points
    ]


def single_file_contenders(models: OnnxModels, batches: Batches, points: list[Point]) -> list[Contender]:
    """For batches of one row."""
    arrays = to_arrays(batches)
    return [
        Contender(
            f"single file, {point.name}",
            ONNX[models.dtype],
            partial(run_session, models.single, arrays, early_exit_entropy=threshold_array(point)),
            exits_of_single_file,
            point.threshold,
            point.saving,
            point.accuracy,
        )
        for point in points
    ]


def exits_of_single_file(outputs: list[list[np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([layer for _, layer in outputs]))
