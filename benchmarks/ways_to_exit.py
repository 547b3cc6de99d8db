"""
What temperatures, thresholds per layer and an ensemble of the exits gain over one threshold.

    python benchmarks/ways_to_exit.py --tables sst2=FOLDER mrpc=FOLDER [--max_score_drop 0.01] [--splits 20]

Each folder holds the exit table of a model on rows that it was not trained on (`collect_exits(…, output_dir=FOLDER)`
or `deebert sweep CHECKPOINT DATA --table FOLDER`). For each of several random splits everything is fitted and chosen
on one half, for the same target, and read on the other; means over the splits, and the standard deviation of the
paired difference from one threshold. Splits of one table share rows, so the deviation says how much a split matters,
not how much another data set would.
"""

import argparse

import numpy as np

from transformers_deebert import ExitTable, fit_temperatures, pick_threshold


WAYS = ("one threshold", "temperatures", "per layer", "temperatures, per layer", "ensemble")


def choices(table, seed, target):
    """Saving and change of accuracy for each way, read on the other half."""
    chosen_on, read_on = table.split(seed)
    fit = fit_temperatures(chosen_on, evaluate_on=read_on)
    scaled = [half.with_temperatures(fit.temperatures) for half in (chosen_on, read_on)]
    ensemble = [half.ensemble() for half in (chosen_on, read_on)]
    halves = {
        "one threshold": ((chosen_on, read_on), False),
        "temperatures": (scaled, False),
        "per layer": ((chosen_on, read_on), True),
        "temperatures, per layer": (scaled, True),
        "ensemble": (ensemble, False),
    }
    found = {}
    for way, ((choosing, reading), per_layer) in halves.items():
        choice = pick_threshold(choosing, evaluate_on=reading, per_layer=per_layer, **target)
        found[way] = (choice.layer_saving, choice.score_change)
    errors = (np.mean(fit.error_before), np.mean(fit.error_after))
    return found, errors, fit.temperatures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--max_score_drop", type=float, default=0.01)
    parser.add_argument("--target_saving", type=float)
    parser.add_argument("--splits", type=int, default=20)
    args = parser.parse_args()
    target = {"max_metric_drop": args.max_score_drop}
    if args.target_saving is not None:
        target = {"target_saving": args.target_saving}
    print(f"target: {target}; {args.splits} splits")
    for name, folder in (one.split("=", 1) for one in args.tables):
        table = ExitTable.load(folder)
        results, errors, temperatures = zip(
            *(choices(table, seed, target) for seed in range(args.splits)), strict=True
        )
        before, after = 100 * np.mean(errors, axis=0)
        print(f"\n{name}, {len(table):,} rows; calibration error of the off-ramps {before:.1f} -> {after:.1f} %")
        print("temperatures:", " ".join(f"{value:.2f}" for value in np.mean(temperatures, axis=0)))
        base = np.array([result["one threshold"] for result in results])
        for way in WAYS:
            found = np.array([result[way] for result in results])
            saving, change = 100 * found.mean(0)
            gain, spread = 100 * (found - base)[:, 0].mean(), 100 * (found - base)[:, 0].std(ddof=1)
            score, score_spread = 100 * (found - base)[:, 1].mean(), 100 * (found - base)[:, 1].std(ddof=1)
            print(
                f"  {way:24} {saving:5.1f} % saved at {change:+5.2f} points; against one threshold "
                f"{gain:+5.1f} ± {spread:.1f} % of the layers, {score:+5.2f} ± {score_spread:.2f} points",
                flush=True,
            )


if __name__ == "__main__":
    main()
