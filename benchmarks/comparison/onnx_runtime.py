"""Contenders in ONNX Runtime: the stock class, the segments, and the single file with the exits inside."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stock_onnx import export_stock, open_session, run_session

from transformers_deebert import OnnxEarlyExitModel, export_onnx

from .contender import NO_LAYERS, ONNX, STOCK, Contender, Point, exits_of_outputs
from .eager import Batches, run_model, with_token_types


@dataclass(frozen=True)
class OnnxModels:
    """
    One model in ONNX Runtime, in all forms.

    Args:
        dtype (`str`): `"float32"` or `"int8"`.
        stock, bare (`onnxruntime.InferenceSession`): The stock class at full depth, and without its layers.
        segments ([`OnnxEarlyExitModel`], *optional*): A file for each layer; `None` with off-ramps that read `past`.
        single (`onnxruntime.InferenceSession`): One file with the exits inside.
    """

    dtype: str
    stock: Any
    bare: Any
    segments: Any
    single: Any


def make_onnx(model: Any, stock: Any, bare: Any, folder: Path, threads: int, dtype: str = "float32") -> OnnxModels:
    """Exports the models to `folder` and loads them, each with `threads` threads that never wait awake."""
    files = {}
    for name, one in {"stock": stock, "bare": bare}.items():
        files[name] = folder / f"{name}_{dtype}.onnx"
        export_stock(one, files[name], dtype)
    exits = export_onnx(model, folder / dtype, dtype=dtype)
    segments = None
    if model.config.off_ramp_context == "own":
        segments = OnnxEarlyExitModel.from_pretrained(exits, num_threads=threads)
        segments.single_file = None  # or calls would run it
    return OnnxModels(
        dtype=dtype,
        stock=open_session(files["stock"], threads),
        bare=open_session(files["bare"], threads),
        segments=segments,
        single=open_session(exits / "model.onnx", threads),
    )


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
    if models.segments is None:
        return []
    runs = [partial(run_model, models.segments, batches, early_exit_entropy=point.argument) for point in points]
    return [
        Contender.at(point, "segments", ONNX[models.dtype], run, exits_of_outputs)
        for point, run in zip(points, runs, strict=True)
    ]


def single_file_contenders(models: OnnxModels, batches: Batches, points: list[Point]) -> list[Contender]:
    arrays = to_arrays(batches)
    runs = [partial(run_session, models.single, arrays, exit_threshold=threshold_array(point)) for point in points]
    return [
        Contender.at(point, "single file", ONNX[models.dtype], run, exits_of_single_file)
        for point, run in zip(points, runs, strict=True)
    ]


def exits_of_single_file(outputs: list[list[np.ndarray]]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate([layer for _, layer in outputs]))
