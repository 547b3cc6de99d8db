"""
What early exit costs where no row exits: the model against the stock class with the same weights, in one rotation.

    python benchmarks/full_depth.py [--model FOLDER] [--batch_sizes 1 8 32] [--compile]
        [--pooling cls mean] [--head pooler linear] [--context own]

Random weights of MiniLM-L6's shape unless `--model` names a BERT checkpoint; rows of 5 to 45 tokens, 25 on average.
`S = 0` skips the off-ramps; `all off-ramps` evaluates every one of them at S = 1e-12, below any entropy.
`--compile` compares the compiled models at full depth, and counts graph breaks there and with exits.
"""

import argparse
import itertools
import statistics
from functools import partial

import torch

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification, stock_model
from transformers_deebert.analysis.rotation import median_ratio, time_rotation
from transformers_deebert.analysis.timing import describe_machine


def make_models(folder, pooling, head="pooler", context="own"):
    """Ours, and the stock class with the same weights."""
    off_ramps = {"off_ramp_pooling": pooling, "off_ramp_head": head, "off_ramp_context": context}
    if folder:
        model = DeeBertForSequenceClassification.from_pretrained(folder, num_labels=2, **off_ramps)
    else:
        torch.manual_seed(0)
        config = DeeBertConfig(
            hidden_size=384,
            num_hidden_layers=6,
            num_attention_heads=12,
            intermediate_size=1536,
            **off_ramps,
        )
        model = DeeBertForSequenceClassification(config)
    model.config.off_ramps_trained = True
    model.eval()
    return model, stock_model(model)


def make_batch(rows, vocabulary):
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.randint(5, 46, (rows,), generator=generator) if rows > 1 else torch.tensor([25])
    width = int(lengths.max())
    mask = (torch.arange(width) < lengths[:, None]).long()
    ids = torch.randint(1000, vocabulary, (rows, width), generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask}


def count_graph_breaks(compiled, batch, threshold):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled(**batch, early_exit_entropy=threshold)
    return sum(torch._dynamo.utils.counters["graph_break"].values())


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--pooling", nargs="+", default=["cls", "mean"])
    parser.add_argument("--head", nargs="+", default=["pooler", "linear"])
    parser.add_argument("--context", choices=["own", "past"], default="own")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    print(describe_machine())
    for pooling, head in itertools.product(args.pooling, args.head):
        model, stock = make_models(args.model, pooling, head, args.context)
        if args.compile:
            model, stock = torch.compile(model), torch.compile(stock)
        for rows in args.batch_sizes:
            batch = make_batch(rows, stock.config.vocab_size)
            functions = {
                "stock": partial(stock, **batch),
                "S = 0": partial(model, **batch, early_exit_entropy=0.0),
                "stock again": partial(stock, **batch),
            }
            if not args.compile:
                functions["all off-ramps"] = partial(model, **batch, early_exit_entropy=1e-12)
            seconds = time_rotation(functions, args.repeats, warm_up=3)
            figures = [
                f"{name} {median_ratio(seconds[name], seconds['stock']):.3f}x" for name in functions if name != "stock"
            ]
            base = statistics.median(seconds["stock"]) * 1e3
            if args.compile:
                figures += [
                    f"graph breaks: {count_graph_breaks(model, batch, threshold)} at S = {threshold}"
                    for threshold in (0.0, 0.5)
                ]
            print(f"{pooling:5} {head:6} batch {rows:3}: stock {base:7.2f} ms; " + ", ".join(figures), flush=True)


if __name__ == "__main__":
    main()
