"""
The exits in ONNX Runtime against those in PyTorch, one row at a time, in one alternating rotation.

    python benchmarks/onnx_exits.py --model FOLDER --data ROWS.jsonl [--threshold 0.3] [--rows 100] [--threads 1]
        [--spinning] [--int8]

Measured are the stock class and ours in PyTorch; the stock class, exported by the same exporter, in ONNX Runtime; the
segments (`OnnxEarlyExitModel`); and the single file with its nested `If`, each of the latter at S = 0 and at the
threshold. All with the same number of threads, whose pools wait awake with `--spinning` only. A round of the rotation
is all rows. `--int8` adds all of ONNX Runtime with 8-bit layers, at S = 0 and at a threshold that was picked again on
the exported model, and prints on all rows of the file what becomes of accuracy and entropies.
"""

import argparse
import json
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rotation import ratio, time_rotation
from stock_onnx import export_stock, open_session, run_session
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from transformers_deebert import (
    OnnxEarlyExitModel,
    collect_exits,
    export_onnx,
    pick_threshold,
    stock_model,
    sweep_thresholds,
)
from transformers_deebert.analysis.timing import describe_machine


class Exported:
    """The segments, the single file and the stock class of a dtype."""

    def __init__(self, model, dtype, args):
        with tempfile.TemporaryDirectory() as temporary:
            folder = export_onnx(model, Path(temporary) / "onnx", dtype=dtype)
            export_stock(stock_model(model), folder / "stock.onnx", dtype, one_row=True)
            self.segments = OnnxEarlyExitModel.from_pretrained(folder, num_threads=args.threads)
            names = [f"segment_{layer:02d}.onnx" for layer in range(1, model.config.num_hidden_layers + 1)]
            self.segments.sessions = [open_session(folder / name, args.threads, args.spinning) for name in names]
            self.single, self.stock = (
                open_session(folder / name, args.threads, args.spinning) for name in ("model.onnx", "stock.onnx")
            )


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


def exits_of(model, path, tokenizer):
    """The exit table of all rows of a file, one at a time: int8's scales depend on all tokens of a batch."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    encoded = [
        dict(tokenizer(row["text"], truncation=True, max_length=128)) | {"labels": row["label"]} for row in rows
    ]
    return collect_exits(model, encoded, DataCollatorWithPadding(tokenizer), batch_size=1, progress=False)


def compare_tables(tables, threshold):
    """Prints scores and entropies of two dtypes; returns a threshold at which int8 saves what float32 does."""
    saving = {}
    for name, table in tables.items():
        full, point = sweep_thresholds(table, [0.0, threshold])
        saving[name] = point.layer_saving
        print(
            f"{name:8} accuracy {full.scores['accuracy']:.4f} at full depth, {point.scores['accuracy']:.4f} at "
            f"S = {threshold:g}, which saves {point.layer_saving:.1%} of the layers"
        )
    difference = tables["int8"].entropies - tables["float32"].entropies
    print("entropy, int8 minus float32, by exit: mean", difference.mean(0).round(4).tolist(), end="; ")
    print("mean of the absolute", np.abs(difference).mean(0).round(4).tolist())
    agree = (tables["int8"].answers[:, -1] == tables["float32"].answers[:, -1]).mean()
    print(f"same answer at full depth: {agree:.1%} of {len(difference)} rows")
    choice = pick_threshold(tables["int8"], target_saving=saving["float32"])
    print(
        f"picked again for that saving: S = {choice.threshold:.3f} saves {choice.layer_saving:.1%}, accuracy "
        f"{choice.score:.4f}, {choice.full_score:.4f} at full depth of the {choice.rows} rows it is read on"
    )
    return choice.threshold


def contenders(exported, arrays, tensors, prefix, thresholds):
    """Functions by name: the stock class, and both forms at each threshold."""
    functions = {f"{prefix}, stock": partial(run_session, exported.stock, arrays)}
    for threshold in thresholds:
        functions[f"{prefix} segments, S = {threshold:.3g}"] = partial(
            run_model, exported.segments, tensors, early_exit_entropy=threshold
        )
        functions[f"{prefix} single file, S = {threshold:.3g}"] = partial(
            run_session, exported.single, arrays, early_exit_entropy=np.array([threshold], dtype=np.float32)
        )
    return functions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--spinning", action="store_true", help="threads of ONNX Runtime wait awake, its default")
    parser.add_argument("--int8", action="store_true", help="layers in 8-bit integers as well, with scores")
    args = parser.parse_args()
    print(describe_machine())
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    tensors, arrays = read_rows(args.data, tokenizer, args.rows)
    exported = {dtype: Exported(model, dtype, args) for dtype in ("float32", "int8")[: 1 + args.int8]}
    functions = {"PyTorch, stock": partial(run_model, stock_model(model), tensors)}
    for threshold in (0.0, args.threshold):
        functions[f"PyTorch, S = {threshold:.3g}"] = partial(run_model, model, tensors, early_exit_entropy=threshold)
    functions |= contenders(exported["float32"], arrays, tensors, "ONNX", (0.0, args.threshold))
    if args.int8:
        tables = {name: exits_of(each.segments, args.data, tokenizer) for name, each in exported.items()}
        picked = compare_tables(tables, args.threshold)
        functions |= contenders(exported["int8"], arrays, tensors, "int8", (0.0, picked))
    functions["ONNX, stock again"] = functions["ONNX, stock"]
    print(f"{args.rows} rows, {args.threads} threads, {'spinning' if args.spinning else 'asleep'} while they wait")
    shares = {"PyTorch": (model, args.threshold), "ONNX": (exported["float32"].segments, args.threshold)}
    if args.int8:
        shares["int8"] = (exported["int8"].segments, picked)
    for name, (each, threshold) in shares.items():
        layers = torch.cat([output.exit_layers for output in run_model(each, tensors, early_exit_entropy=threshold)])
        mean = layers.double().mean().item()
        share = mean / model.config.num_hidden_layers
        print(f"{name}: mean exit layer {mean:.2f} at S = {threshold:.3g}, {share:.3f} of the layers")
    seconds = time_rotation(functions, args.repeats, warmup=1)
    for name in functions:
        milliseconds = statistics.median(seconds[name]) / args.rows * 1e3
        print(
            f"{name:30} {milliseconds:7.3f} ms a row, {ratio(seconds, name, 'PyTorch, stock'):.3f}x of PyTorch stock, "
            f"{ratio(seconds, name, 'ONNX, stock'):.3f}x of ONNX stock"
        )


if __name__ == "__main__":
    main()
