"""
Early exit against everything that one would take instead, in one process.

    python benchmarks/compare.py --parts text [--model quickstart-output] [--file ROWS.jsonl]
    python benchmarks/compare.py --parts shapes [--shapes minilm base] [--lengths 16 32 64 128]
    python benchmarks/compare.py --table benchmarks/results/compare.json

Part `text` measures a trained model on text that it has not seen, with its accuracy: by default the model that
`make quickstart` leaves, on its own validation and test sentences. Part `shapes` measures time alone, of random
weights. Contenders: the stock class in PyTorch eager (twice, as control), compiled, in the pipeline and in ONNX
Runtime, in float32 and int8; fixed depths; and early exit in PyTorch, in the predictor, and in both forms of ONNX
Runtime. Where OpenVINO (and NNCF) are installed, part `text` also has the stock class there, in float32 and int8, and
the single file.

All of a group take turns, round by round, after a warm-up; the first of a round moves on. Times are medians, the
spread is the interquartile range over the median, and ratios are taken within each round before their median. The
efficiency is (t0 + r (T - t0)) / t, with T the stock model on the same runtime, t0 the same without its layers, r
the share of layers that the timed rows run and t the time measured. Where the stock model against itself is more than
3 % apart, there is no verdict. All compute with the same number of threads, and those of ONNX Runtime sleep while
others run; the predictor alone tokenizes in a thread besides. The stock class is exported to ONNX with the same
exporter, attention, mask and quantisation as early exit.

Results go to a JSON file, after each group: a run that is killed keeps what it has, and `--resume` measures the rest,
and again what got no verdict.
"""

import argparse
import json
import os
import sys
import time
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch
import transformers
from comparison.markdown import make_tables
from comparison.real_text import load_subject, run_real_text
from comparison.results import write
from comparison.shapes import SHAPES, run_shape

from transformers_deebert.analysis.timing import describe_machine


QUICKSTART = Path(__file__).parents[1] / "examples"
RESULTS = Path(__file__).parent / "results" / "compare.json"


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["text", "shapes"], default=["text", "shapes"])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", default=str(RESULTS), help="the JSON file")
    parser.add_argument("--table", metavar="JSON", help="print the tables of a results file, and measure nothing")
    parser.add_argument("--resume", action="store_true", help="keep the groups of --output that have a verdict")
    text = parser.add_argument_group("part text")
    text.add_argument("--model", default="quickstart-output")
    text.add_argument("--file", help="rows that the model was not trained on; default: the quickstart's")
    text.add_argument("--rows", type=int, default=128, help="that are timed")
    text.add_argument("--seconds", type=float, default=4.0, help="for a contender at a batch size")
    text.add_argument("--aot", action="store_true", help="AOTInductor too (needs a C++ compiler)")
    text.add_argument("--no_compile", action="store_true", help="without torch.compile")
    shapes = parser.add_argument_group("part shapes")
    shapes.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    shapes.add_argument("--lengths", type=int, nargs="+", default=[16, 32, 64, 128])
    shapes.add_argument("--savings", type=float, nargs="+", default=[0.0, 0.25, 0.5, 0.65])
    shapes.add_argument("--shape_seconds", type=float, default=1.0, help="for a contender of a cell")
    shapes.add_argument("--longest", type=float, default=4.0, help="seconds of a stock pass; longer ones are left out")
    return parser


def place_of(group):
    """What a group is about: the model or the shape, the length where it is given, and the batch size."""
    if group["part"] == "text":
        return group["model"], None, group["batch_size"]
    return group["shape"], group["length"], group["batch_size"]


def earlier_groups(path, results, resume):
    """Those of an earlier run that this one goes on with, which must have been measured in the same way."""
    if not path.exists():
        return []
    if not resume:
        sys.exit(f"{path} exists: go on with it by --resume, remove it, or name another --output.")
    earlier = json.loads(path.read_text(encoding="utf-8"))
    for name, value in results.items():
        if earlier.get(name) != value:
            sys.exit(f"{path} has {name} {earlier.get(name)}, not {value}: remove it, or name another --output.")
    return earlier["groups"]


def groups(args, done):
    """All that were asked for and are not done, as they are measured."""
    name = Path(args.model).name
    done_sizes = frozenset(size for size in args.batch_sizes if (name, None, size) in done)
    if "text" in args.parts and len(done_sizes) < len(args.batch_sizes):
        subject = load_subject(args.model, args.file, QUICKSTART)
        yield from run_real_text(
            subject,
            args.batch_sizes,
            args.rows,
            args.seconds,
            args.threads,
            ahead=args.aot,
            compiled=not args.no_compile,
            done=done_sizes,
        )
    if "shapes" in args.parts:
        for name in args.shapes:
            cells = [cell for cell in product(args.lengths, args.batch_sizes) if (name, *cell) not in done]
            if cells:
                yield from run_shape(name, cells, args.savings, args.shape_seconds, args.longest, args.threads)


def main():
    parser = make_parser()
    args = parser.parse_args()
    if any(max(args.batch_sizes) % size for size in args.batch_sizes):
        parser.error(f"--batch_sizes {args.batch_sizes}: each has to divide the largest, so that batches are whole.")
    if args.table:
        print(make_tables(json.loads(Path(args.table).read_text(encoding="utf-8"))))
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # it would take threads of its own
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    torch.set_num_threads(args.threads)
    machine = describe_machine() | {"onnxruntime": version("onnxruntime")}
    settings = {name: getattr(args, name) for name in ("model", "file", "rows", "seconds", "savings", "shape_seconds")}
    results = {"machine": machine, "threads": args.threads, "settings": settings}
    measured = {place_of(group): group for group in earlier_groups(Path(args.output), results, args.resume)}
    print(machine, flush=True)
    begin = time.perf_counter()
    for group in groups(args, {place for place, group in measured.items() if group.get("verdict", True)}):
        measured[place_of(group)] = group
        results["groups"] = list(measured.values())
        write(Path(args.output), results)
        print(make_tables({**results, "groups": [group]}).split("\n\n", 1)[1], end="\n\n", flush=True)
    print(f"{(time.perf_counter() - begin) / 60:.1f} minutes; all of it is in {args.output}.")


if __name__ == "__main__":
    main()
