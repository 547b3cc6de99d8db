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
from rotation import ratio, time_rotation

from transformers_deebert import ExitCriterion
from transformers_deebert.analysis.timing import describe_machine
from transformers_deebert.models import early_exit_deebert, exit_answers_deebert


class RandomCriterion(ExitCriterion):
    """Lets a share of the rows leave, the same rows in every run."""

    def __init__(self, share):
        self.share = share

    def __call__(self, candidate, layer):
        generator = torch.Generator().manual_seed(layer)
        return torch.rand(len(candidate.logits), generator=generator) < self.share


def run(model, batch, idle):
    exit_answers_deebert.MAX_IDLE_SHARE = idle
    model(**batch, early_exit_entropy=1.0)


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
    plan = early_exit_deebert.make_exit_plan
    for rows in args.batch_sizes:
        batch = make_batch(rows, model.config.vocab_size)
        for share in args.leave:
            criterion = RandomCriterion(share)
            early_exit_deebert.make_exit_plan = lambda *a, criterion=criterion, **k: early_exit_deebert.replace(
                plan(*a, **k), criterion=criterion, compact=True
            )
            functions = {f"{idle:.3f}": partial(run, model, batch, idle) for idle in args.idle}
            seconds = time_rotation(functions, args.repeats)
            first = next(iter(functions))
            base = statistics.median(seconds[first]) * 1e3
            print(
                f"batch {rows:3}, {share:.0%} leave at each off-ramp, {base:.0f} ms: "
                + ", ".join(f"{name} {ratio(seconds, name, first):.3f}x" for name in functions),
                flush=True,
            )


if __name__ == "__main__":
    main()
