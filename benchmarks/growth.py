"""
How time and memory grow with the number of texts: `EarlyExitPredictor.predict` and `stream` over more and more rows.

    python benchmarks/growth.py [--rows 1000 10000 100000] [--model FOLDER --file ROWS.jsonl] [--threshold 0.3]

Every run has a process of its own, so that its peak memory is its own: the highest resident size, and by how much it
rose (`MiB more`) above its highest while the model was loaded and classified three windows of texts. `stream` reads a
generator and keeps no answer; `predict` is given a list, which counts as well, and returns all answers. Without
`--model`: random weights, 2 layers of 64, about half of the rows leave early, a tokenizer made on the spot, and texts
of 1 to 20 words. With one: the texts of the file, over and over; one JSON object a line with `text`.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from json_lines import read_lines
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification, EarlyExitPredictor
from transformers_deebert.analysis import describe_machine


WORDS = 2000
RANDOM_THRESHOLD = 0.686  # about half of the rows leave the random model early
MIB = 2**20


def write_model(folder):
    """A small model of random weights, and its tokenizer."""
    torch.manual_seed(0)
    config = DeeBertConfig(
        vocab_size=WORDS + 5,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=256,
        off_ramp_pooling="mean",
        off_ramps_trained=True,
        initializer_range=0.1,
    )
    DeeBertForSequenceClassification(config).save_pretrained(folder)
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(WORDS))]
    (folder / "vocab.txt").write_text("\n".join(names))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)


def texts(file, rows):
    """So many texts, one after another."""
    if file:
        known = [row["text"] for row in read_lines(file)]
        yield from itertools.islice(itertools.cycle(known), rows)
        return
    draw = random.Random(0)
    for _ in range(rows):
        yield " ".join(f"word{draw.randrange(WORDS)}" for _ in range(draw.randint(1, 20)))


def peak_bytes():
    """The highest resident size of this process so far."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB


def run(how, rows, args):
    """One run, in this process. Returns seconds, bytes and the mean exit layer."""
    torch.set_num_threads(args.threads)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    predictor = EarlyExitPredictor(model, tokenizer, args.batch_size, window=args.window, max_length=128)
    settings = {"early_exit_entropy": args.threshold}
    for _ in predictor.stream(texts(args.file, 3 * args.window * args.batch_size), **settings):
        pass  # warms up: what the libraries keep for ever is there
    predictor.exit_counts(reset=True)
    before = peak_bytes()
    begin = time.perf_counter()
    if how == "predict":
        predictor.predict(list(texts(args.file, rows)), **settings)
    else:
        for _ in predictor.stream(texts(args.file, rows), **settings):
            pass
    seconds = time.perf_counter() - begin
    layers = sum(layer * count for layer, count in enumerate(predictor.exit_counts(), start=1))
    return {"seconds": seconds, "bytes": peak_bytes() - before, "base": before, "layers": layers / rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--model", help="folder of a checkpoint with off-ramps, and its tokenizer")
    parser.add_argument("--file", help="its texts")
    parser.add_argument("--threshold", type=float, help=f"0.3 with a model, {RANDOM_THRESHOLD} for random weights")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--window", type=int, default=32, help="batches sorted together")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--run", choices=("predict", "stream"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if args.run:
        print(json.dumps(run(args.run, args.rows[0], args)))
        return
    if (args.model is None) != (args.file is None):
        parser.error("`--model` and `--file` go together.")
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.model is None:
            write_model(Path(folder))
        options = {
            "--model": args.model or folder,
            "--file": args.file,
            "--threshold": args.threshold if args.threshold is not None else (0.3 if args.model else RANDOM_THRESHOLD),
            "--batch_size": args.batch_size,
            "--window": args.window,
            "--threads": args.threads,
        }
        given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
        print(f"{'rows':>9} {'':8} {'s':>7} {'ms a row':>9} {'MiB more':>9} {'of MiB':>7} {'layers a row':>13}")
        for rows, how in itertools.product(args.rows, ("predict", "stream")):
            command = [sys.executable, __file__, "--run", how, "--rows", str(rows), *given]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr)
            seen = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{rows:>9,} {how:8} {seen['seconds']:7.1f} {1e3 * seen['seconds'] / rows:9.3f} "
                f"{seen['bytes'] / MIB:9.1f} {seen['base'] / MIB:7.0f} {seen['layers']:13.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
