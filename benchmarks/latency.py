"""
Latency of single requests: the distribution over the rows, not the mean alone.

    python benchmarks/latency.py [--model FOLDER --file ROWS.jsonl] [--threshold 0.3] [--rows 300] [--repeats 5]

Row by row at batch size 1, in one rotation: the stock class, the same class again (the control), ours at S = 0 and at
a threshold. The time of a row is its median over the repeats, so that the percentiles are those of the rows and not of
the machine's moods; `p99 of calls` has the moods in it. Rows are encoded before the clock starts. Without `--model`:
random weights of MiniLM-L6's shape, and rows of 5 to 45 tokens, of which half leave at every off-ramp. The file has
one JSON object a line with `text`.
"""

import argparse
import gc
import statistics

import numpy as np
import torch
import transformers
from full_depth import make_batch, make_models
from json_lines import read_lines
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from transformers_deebert import stock_model
from transformers_deebert.analysis import describe_machine
from transformers_deebert.analysis.rotation import time_rotation
from transformers_deebert.analysis.tables import threshold_text


STOCK, CONTROL, FULL = "stock", "stock again", "ours, S = 0"
FIGURES = ("mean", "p50", "p95", "p99")


def read(file, tokenizer, rows):
    texts = [row["text"] for row in read_lines(file)[:rows]]
    return [dict(tokenizer(text, truncation=True, max_length=128, return_tensors="pt")) for text in texts]


def random_rows(rows, vocabulary):
    batch = make_batch(rows, vocabulary)
    return [
        {"input_ids": ids[mask == 1][None], "attention_mask": mask[mask == 1][None]}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


def halving_thresholds(model, rows):
    """One threshold an off-ramp, at which half of the rows that are still there leave."""
    logits = torch.stack(
        [torch.cat(model(**row, output_off_ramp_logits=True).off_ramp_logits[:-1]) for row in rows]
    )  # (rows, off-ramps, labels)
    entropies = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    waiting = torch.ones(len(rows), dtype=torch.bool)
    thresholds = []
    for layer in range(entropies.shape[1]):
        thresholds.append(float(entropies[waiting, layer].median()) if waiting.any() else 0.0)
        waiting &= entropies[:, layer] >= thresholds[-1]
    return thresholds


def figures_of(milliseconds):
    """`FIGURES`."""
    return np.array([milliseconds.mean(), *np.percentile(milliseconds, [50, 95, 99])])


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a checkpoint with off-ramps, and its tokenizer")
    parser.add_argument("--file", help="its texts")
    parser.add_argument("--threshold", type=float, help="0.3 with a model; half leave at each off-ramp without one")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5, help="calls of each contender for each row")
    parser.add_argument("--threads", type=int, help="PyTorch's own choice by default")
    args = parser.parse_args()
    if (args.model is None) != (args.file is None):
        parser.error("`--model` and `--file` go together.")
    transformers.logging.set_verbosity_error()
    if args.threads:
        torch.set_num_threads(args.threads)
    print(describe_machine(), flush=True)
    if args.model:
        model = AutoModelForSequenceClassification.from_pretrained(args.model).eval()
        stock = stock_model(model)
        rows = read(args.file, AutoTokenizer.from_pretrained(args.model), args.rows)
        threshold = 0.3 if args.threshold is None else args.threshold
    else:
        model, stock = make_models(None, "mean")
        rows = random_rows(args.rows, model.config.vocab_size)
        threshold = halving_thresholds(model, rows) if args.threshold is None else args.threshold
    early = f"ours, S = {threshold_text(threshold)}" if isinstance(threshold, float) else "ours, S by layer"

    layers = [int(model(**row, early_exit_entropy=threshold).exit_layers) for row in rows]
    gc.freeze()  # each rotation begins with a collection, which need not look at the libraries
    milliseconds = {name: [] for name in (STOCK, CONTROL, FULL, early)}  # for each row, those of its calls
    for number, row in enumerate(rows):
        contenders = {
            STOCK: lambda row=row: stock(**row),
            FULL: lambda row=row: model(**row, early_exit_entropy=0.0),
            CONTROL: lambda row=row: stock(**row),
            early: lambda row=row: model(**row, early_exit_entropy=threshold),
        }
        # Each is first, second, … equally often: what comes behind an early exit finds other caches.
        names = list(contenders)
        names = names[number % 4 :] + names[: number % 4]
        turns = {name: contenders[name] for name in names}
        seconds = time_rotation(turns, args.repeats, warm_up=1 if number else 20, progress=False)
        for name, calls in seconds.items():
            milliseconds[name].append([1e3 * call for call in calls])

    print(f"{len(rows)} rows, {args.repeats} calls each, in ms:")
    print(f"{'':20} {'mean':>7} {'p50':>7} {'p95':>7} {'p99':>7} {'p99 of calls':>13} {'rows/s':>8}  against stock")
    of_rows = {name: np.array([statistics.median(calls) for calls in rows_]) for name, rows_ in milliseconds.items()}
    base = figures_of(of_rows[STOCK])
    for name, here in of_rows.items():
        figures = figures_of(here)
        print(
            f"{name:20} "
            + " ".join(f"{figure:7.2f}" for figure in figures)
            + f" {np.percentile(milliseconds[name], 99):13.2f} {1e3 / here.mean():8.1f}  "
            + ", ".join(f"{word} {share:.2f}x" for word, share in zip(FIGURES, figures / base, strict=True))
        )
    print_tail(of_rows, early, np.array(layers) == model.config.num_hidden_layers)
    print(f"{np.mean(layers):.2f} of {model.config.num_hidden_layers} layers a row")


def print_tail(of_rows, early, stayed):
    """
    What early exit does to the `FIGURES`, and to the rows that ran all layers, `stayed`. What is no further from 1
    than the control, or than 5 %, counts as unchanged.
    """
    base = figures_of(of_rows[STOCK])
    shares = figures_of(of_rows[early]) / base
    noise = np.maximum(abs(figures_of(of_rows[CONTROL]) / base - 1), 0.05)
    words = [
        "is lower" if share < 1 - margin else "is higher" if share > 1 + margin else "stays"
        for share, margin in zip(shares, noise, strict=True)
    ]
    print(
        "With early exit "
        + ", ".join(f"{name} {word} ({share:.2f}x)" for name, word, share in zip(FIGURES, words, shares, strict=True))
        + "."
    )
    if stayed.any():
        slower = np.median(of_rows[early][stayed] / of_rows[STOCK][stayed])
        print(
            f"{stayed.sum()} rows ({stayed.mean():.1%}) ran all layers, in {slower:.2f}x the stock class's time: "
            "promise no less than that."
        )


if __name__ == "__main__":
    main()
