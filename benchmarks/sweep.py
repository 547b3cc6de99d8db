"""
Seconds that the analysis of one exit table takes, without any model.

    python benchmarks/sweep.py [--rows 10000] [--layers 12] [--labels 2] [--repeats 3]

Logits are random; each layer knows more than the one before. Every figure is the median of some runs, each on a new
table, so that entropies and answers are computed again: `sweep` is `sweep_thresholds` with its own 202 thresholds,
`curve` is `exit_curve`, the rest is `pick_threshold` with one target each, bootstrap included.
"""

import argparse
import statistics
import time
from dataclasses import replace

import numpy as np

from transformers_deebert import ExitTable, pick_threshold, sweep_thresholds
from transformers_deebert.analysis import describe_machine, exit_curve


CALLS = {
    "sweep": sweep_thresholds,
    "curve": exit_curve,
    "saving": lambda table: pick_threshold(table, target_saving=0.4),
    "drop": lambda table: pick_threshold(table, max_metric_drop=0.01),
    "guarantee": lambda table: pick_threshold(table, max_metric_drop=0.01, confidence=0.95),
    "per layer": lambda table: pick_threshold(table, max_metric_drop=0.01, per_layer=True),
}


def make_table(rows, layers, labels, seed=0):
    """Random logits of which more and more points to the true class."""
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, labels, rows)
    hardness = generator.normal(size=(rows, 1))
    strength = np.linspace(0.5, 3.5, layers) + hardness + 0.4 * generator.normal(size=(rows, layers))
    logits = generator.normal(size=(rows, layers, labels)) + 2 * strength[..., None] * np.eye(labels)[truth][:, None]
    return ExitTable.from_logits(logits.astype(np.float32), truth)


def seconds(call, table):
    fresh = replace(table)  # without what has been computed of it
    start = time.perf_counter()
    call(fresh)
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(describe_machine(), flush=True)
    print(f"{args.rows:,} rows, {args.layers} layers, {args.labels} labels")
    table = make_table(args.rows, args.layers, args.labels)
    for name, call in CALLS.items():
        seconds(call, table)  # imports
        taken = statistics.median(seconds(call, table) for _ in range(args.repeats))
        print(f"{name:9} {taken:7.2f} s", flush=True)


if __name__ == "__main__":
    main()
