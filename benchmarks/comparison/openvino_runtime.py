"""Contenders in OpenVINO, where it is installed: the stock class in float32 and int8, and the single file."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from stock_onnx import export_stock

from transformers_deebert.inference.onnx.thresholds import set_default_threshold

from .contender import NO_LAYERS, OPENVINO, STOCK, Contender, Point
from .eager import Batches
from .onnx_runtime import exits_of_single_file, to_arrays


CALIBRATED_ON = 300  # rows


def is_installed() -> bool:
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False
    return True


def compile_model(model: Any, threads: int) -> Any:
    """A model, or an ONNX file, for the CPU, computed in float32 where it is not int8."""
    import openvino

    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
    }
    return openvino.Core().compile_model(model, "CPU", settings)


def run_compiled(compiled: Any, arrays: list[dict[str, np.ndarray]]) -> list[list[np.ndarray]]:
    """What a compiled model answers to each batch; inputs that it does not take are left out."""
    names = {next(iter(port.names)) for port in compiled.inputs}
    request = compiled.create_infer_request()
    answers = []
    for batch in arrays:
        found = request.infer({name: array for name, array in batch.items() if name in names})
        answers.append([found[port].copy() for port in compiled.outputs])
    return answers


def quantized(path: Path, rows: Sequence[dict[str, np.ndarray]]) -> Any:
    """The stock class in int8: NNCF's static quantisation for transformers, calibrated on rows."""
    import nncf
    import openvino

    model = openvino.Core().read_model(path)
    names = {next(iter(port.names)) for port in model.inputs}
    data = nncf.Dataset(rows, lambda batch: {name: array for name, array in batch.items() if name in names})
    return nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))


def stock_contenders(
    stock: Any, bare: Any, calibration: Batches, batches: Batches, folder: Path, threads: int, accuracy: Any
) -> list[Contender]:
    """
    The stock class in float32 and, where NNCF is installed, in int8.

    Args:
        stock, bare (`PreTrainedModel`): The stock class, and the same without its layers.
        calibration (`list[dict]`): Batches that int8 is calibrated on.
        accuracy (`Callable`): From a compiled model to its accuracy.
    """
    files = {name: folder / f"{name}_openvino.onnx" for name in ("stock", "bare")}
    for path, model in zip(files.values(), (stock, bare), strict=True):
        if not path.is_file():
            export_stock(model, path)
    arrays = to_arrays(batches)
    models = {"float32": files["stock"]}
    try:
        models["int8"] = quantized(files["stock"], to_arrays(calibration)[:CALIBRATED_ON])
    except ImportError:
        print("NNCF is not installed: no int8 in OpenVINO.", flush=True)
    contenders = []
    for dtype, model in models.items():
        compiled = compile_model(model, threads)
        contenders += [
            Contender(STOCK, OPENVINO[dtype], partial(run_compiled, compiled, arrays), accuracy=accuracy(compiled)),
            Contender(
                NO_LAYERS, OPENVINO[dtype], partial(run_compiled, compile_model(files["bare"], threads), arrays)
            ),
        ]
    return contenders


def single_file_contenders(path: Path, batches: Batches, points: list[Point], threads: int) -> list[Contender]:
    """OpenVINO takes the initializer of `exit_threshold` as a constant: one model a threshold."""
    arrays, contenders = to_arrays(batches), []
    for place, point in enumerate(points):
        own = path.with_name(f"model_{place}.onnx")
        own.write_bytes(path.read_bytes())
        set_default_threshold(own, np.atleast_1d(point.argument).tolist())
        run = partial(run_compiled, compile_model(own, threads), arrays)
        contenders.append(Contender.at(point, "single file", OPENVINO["float32"], run, exits_of_single_file))
    return contenders
