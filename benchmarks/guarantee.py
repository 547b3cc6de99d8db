"""
Whether a guaranteed threshold keeps its promise: violations and saving over many calibration draws.

    python benchmarks/guarantee.py --model FOLDER --file qnli/validation.jsonl [--rows 1000 4000] [--bound 0.01]

The rows of the file are the whole population: a calibration set is drawn from them with replacement, a threshold is
picked on it, and the true drop of accuracy is read on the population. `guaranteed` is
`pick_threshold(max_metric_drop=…, confidence=…)`; `empirical` the threshold that saves most while the drawn rows lose
no more than the bound; `oracle` the same on the population itself. FOLDER holds a model trained in both stages on
other rows. The file has one JSON object a line with `sentence1` and `sentence2`, or `text`, and `label`.
"""

import argparse

import numpy as np
import transformers
from json_lines import read_lines
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

from transformers_deebert import collect_exits
from transformers_deebert.analysis import exit_curve
from transformers_deebert.analysis.guarantee import guaranteed_threshold
from transformers_deebert.analysis.timing import describe_machine


def read(path, tokenizer):
    rows = []
    for item in read_lines(path):
        texts = [item["text"]] if "text" in item else [item["sentence1"], item["sentence2"]]
        rows.append({**tokenizer(*texts, truncation=True, max_length=128), "labels": item["label"]})
    return rows


def empirical_threshold(table, bound):
    """What a user would take without a guarantee."""
    curve = exit_curve(table)
    allowed = np.nonzero(curve.accuracy >= curve.accuracy[0] - bound - 1e-12)[0]
    return float(curve.thresholds[allowed[curve.layer_saving[allowed].argmax()]])


def true_values(population, thresholds):
    """True drop and saving of each threshold."""
    full = (population.answers[:, -1] == population.labels).mean()
    known = {}
    for threshold in thresholds:
        if threshold not in known:
            exits, answers = population.exits_at(threshold)
            drop = full - (answers == population.labels).mean()
            known[threshold] = drop, 1 - exits.mean() / population.num_layers
    drops, savings = zip(*(known[threshold] for threshold in thresholds), strict=True)
    return np.array(drops), np.array(savings)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--bound", type=float, default=0.01)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--table", help="folder to keep the exit table in")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(describe_machine(), flush=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model)
    rows = read(args.file, tokenizer)
    population = collect_exits(model, rows, DataCollatorWithPadding(tokenizer), output_dir=args.table)
    full = 100 * (population.answers[:, -1] == population.labels).mean()
    _, (saving,) = true_values(population, [empirical_threshold(population, args.bound)])
    print(
        f"population of {len(population):,} rows, {full:.2f} % at full depth; oracle at a drop of "
        f"{100 * args.bound:g} points: {100 * saving:.1f} % of the layers saved",
        flush=True,
    )
    generator = np.random.default_rng(0)
    for number in args.rows:
        tables = (population.select(generator.integers(0, len(population), number)) for _ in range(args.draws))
        chosen = [
            (guaranteed_threshold(table, args.bound, args.confidence)[0], empirical_threshold(table, args.bound))
            for table in tables
        ]
        for name, thresholds in zip(("guaranteed", "empirical"), zip(*chosen, strict=True), strict=True):
            drops, savings = true_values(population, thresholds)
            print(
                f"n = {number:5}, {name:10}: {100 * (drops > args.bound).mean():5.1f} % of {args.draws} draws over "
                f"the bound; mean saving {100 * savings.mean():.1f} % ({savings.mean() / saving:.2f} of the "
                f"oracle's), mean true drop {100 * drops.mean():+.2f} points",
                flush=True,
            )


if __name__ == "__main__":
    main()
