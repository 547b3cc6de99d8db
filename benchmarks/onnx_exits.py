"""
The exits in ONNX Runtime against those in PyTorch, one row at a time, in one alternating rotation.

    python benchmarks/onnx_exits.py --model FOLDER --data ROWS.jsonl [--threshold 0.3] [--rows 100] [--threads 1]

Measured are the stock class and ours in PyTorch; the stock class, exported by the same exporter, in ONNX Runtime; the
segments (`OnnxEarlyExitModel`); and the single file with its nested `If`, each of the latter at S = 0 and at the
threshold. All with the same number of threads, whose pools never wait awake. A round of the rotation is all rows.
"""

import argparse
import json
import os
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from rotation import ratio, time_rotation
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transformers_deebert import OnnxEarlyExitModel, export_onnx, stock_model
from transformers_deebert.analysis.timing import describe_machine
from transformers_deebert.inference.onnx_model import session_options
from transformers_deebert.inference.onnx_segments import export_module


class StockLogits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        tokens = {"token_type_ids": token_type_ids} if takes_segments(self.model) else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **tokens).logits


def takes_segments(model):
    return "token_type_ids" in model.forward.__code__.co_varnames


def export_stock(stock, path):
    """The stock class at full depth, for any width."""
    mask = torch.ones(1, 8, dtype=torch.long)
    mask[:, 5:] = 0
    inputs = [torch.ones_like(mask), mask, torch.zeros_like(mask)]
    names = ["input_ids", "attention_mask", "token_type_ids"]
    onnx.save(export_module(StockLogits(stock), inputs, names, ["logits"], {1: "width"}, 20), path)


def run_session(session, rows, **settings):
    names = [value.name for value in session.get_inputs()]
    return [
        session.run(None, {name: array for name, array in (row | settings).items() if name in names}) for row in rows
    ]


@torch.inference_mode()
def run_model(model, rows, **settings):
    return [model(**row, **settings) for row in rows]


def read_rows(path, tokenizer, number):
    """Tensors and arrays of single rows."""
    with open(path, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:number].tolist()
    tensors = [dict(tokenizer(texts[index], truncation=True, max_length=128, return_tensors="pt")) for index in order]
    arrays = [
        {"token_type_ids": np.zeros_like(row["input_ids"].numpy())}
        | {name: tensor.numpy() for name, tensor in row.items()}
        for row in tensors
    ]
    return tensors, arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    args = parser.parse_args()
    print(describe_machine())
    torch.set_num_threads(args.threads)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    stock = stock_model(model)
    tensors, arrays = read_rows(args.data, AutoTokenizer.from_pretrained(args.model), args.rows)
    with tempfile.TemporaryDirectory() as temporary:
        folder = export_onnx(model, Path(temporary) / "onnx")
        export_stock(stock, folder / "stock.onnx")
        segments = OnnxEarlyExitModel.from_pretrained(folder, num_threads=args.threads)
        single, whole = (
            onnxruntime.InferenceSession(
                os.fspath(folder / name), session_options(args.threads), disabled_optimizers=["SkipLayerNormFusion"]
            )
            for name in ("model.onnx", "stock.onnx")
        )
    limits = {f"S = {threshold:g}": threshold for threshold in (0.0, args.threshold)}
    thresholds = {name: np.array([threshold], dtype=np.float32) for name, threshold in limits.items()}
    functions = {
        "PyTorch, stock": partial(run_model, stock, tensors),
        **{f"PyTorch, {name}": partial(run_model, model, tensors, early_exit_entropy=limits[name]) for name in limits},
        "ONNX, stock": partial(run_session, whole, arrays),
        **{
            f"ONNX segments, {name}": partial(run_model, segments, tensors, early_exit_entropy=limits[name])
            for name in limits
        },
        **{
            f"ONNX single file, {name}": partial(run_session, single, arrays, early_exit_entropy=thresholds[name])
            for name in limits
        },
        "ONNX, stock again": partial(run_session, whole, arrays),
    }
    layers = torch.cat([output.exit_layers for output in run_model(model, tensors, early_exit_entropy=args.threshold)])
    print(
        f"{args.rows} rows, {args.threads} threads; mean exit layer {layers.double().mean():.2f} at {args.threshold}"
    )
    seconds = time_rotation(functions, args.repeats, warmup=1)
    for name in functions:
        milliseconds = statistics.median(seconds[name]) / args.rows * 1e3
        print(
            f"{name:28} {milliseconds:7.3f} ms a row, {ratio(seconds, name, 'PyTorch, stock'):.3f}x of PyTorch stock, "
            f"{ratio(seconds, name, 'ONNX, stock'):.3f}x of ONNX stock"
        )


if __name__ == "__main__":
    main()
