"""
When dropping rows pays: time of a batch whose rows leave little by little, for several shares of idle cells that are
tolerated before the rest is copied (`MAX_IDLE_SHARE`).

    python benchmarks/compaction.py [--batch_sizes 32 128] [--leave 0.02 0.1]

Random weights of MiniLM-L6's shape; rows of 5 to 45 tokens. At every off-ramp a share `--leave` of the rows leaves,
drawn at random. 0 drops at once; 1 never does, so that every row runs to full depth. In one rotation; times are
relative to 0.
"""

import argparse
import statistics
from functools import partial

import torch
from full_depth import make_batch, make_models

from transformers_deebert import ExitCriterion
from transformers_deebert.analysis.rotation import median_ratio, time_rotation
from transformers_deebert.analysis.timing import describe_machine
from transformers_deebert.models import exit_answers_deebert


def random_score(candidate):
    """Independent of the texts, and the same in every run."""
    generator = torch.Generator().manual_seed(candidate.layer)
    return torch.rand(len(candidate.logits), generator=generator)


def run(model, batch, criterion, idle):
    exit_answers_deebert.MAX_IDLE_SHARE = idle
    model(**batch, exit_criterion=criterion)


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--leave", type=float, nargs="+", default=[0.02, 0.1])
    parser.add_argument("--idle", type=float, nargs="+", default=[0, 1 / 64, 1 / 32, 1 / 16, 1 / 8, 1])
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    print(describe_machine())
    model, _ = make_models(None, "mean")
    for rows in args.batch_sizes:
        batch = make_batch(rows, model.config.vocab_size)
        for share in args.leave:
            criterion = ExitCriterion(random_score, share)
            functions = {f"{idle:.3f}": partial(run, model, batch, criterion, idle) for idle in args.idle}
            seconds = time_rotation(functions, args.repeats, warm_up=3)
            first = next(iter(functions))
            base = statistics.median(seconds[first]) * 1e3
            print(
                f"batch {rows:3}, {share:.0%} leave at each off-ramp, {base:.0f} ms: "
                + ", ".join(f"{name} {median_ratio(seconds[name], seconds[first]):.3f}x" for name in functions),
                flush=True,
            )


if __name__ == "__main__":
    main()
