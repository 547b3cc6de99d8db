"""
Early exit on a CUDA device: milliseconds a batch and efficiency, against the stock class and the compiled stock class.

    python benchmarks/gpu.py [--shapes minilm base] [--batch_sizes 1 8 32 64 256] [--dtype float16] [--tokens 0 128]

Random weights of MiniLM-L6's or BERT-base's shape. `--tokens 0`: rows of 5 to 45 tokens, padded to the longest; else
all rows have that many. At every off-ramp each row exits with the same probability, drawn anew in every call, such
that about half of the layers are saved; entropies are computed but not used. Means over all rounds of one rotation.

Efficiency is (t0 + r (T - t0)) / t: T the stock class, t0 the same without layers, r the layer cost ratio that came
out, t the time with exits. 1 means that the time saved is the layers saved.
"""

import argparse
import statistics
from functools import partial

import torch
from full_depth import make_batch

from transformers_deebert import (
    DeeBertConfig,
    DeeBertForSequenceClassification,
    EarlyExitPredictor,
    ExitCriterion,
    stock_model,
)
from transformers_deebert.analysis import entropy
from transformers_deebert.analysis.rotation import time_rotation
from transformers_deebert.analysis.timing import describe_machine, without_layers


SHAPES = {
    "minilm": {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
}


class RandomScore:
    """Uniform in [0, 1), independent of the texts; the exit entropy is computed as well, to pay for it."""

    def __init__(self, device):
        self.generator = torch.Generator(device).manual_seed(0)

    def __call__(self, candidate):
        return torch.rand(len(entropy(candidate.logits)), generator=self.generator, device=candidate.logits.device)


def exit_probability(layers: int, saving: float) -> float:
    """At each off-ramp, such that `saving` of all layers is saved on average."""
    low, high = 0.0, 1.0
    for _ in range(50):
        exits = (low + high) / 2
        cost = sum((1 - exits) ** layer for layer in range(layers)) / layers
        low, high = (low, exits) if cost < 1 - saving else (exits, high)
    return exits


def make_batch_on(device, rows, tokens, vocabulary):
    batch = make_batch(rows, vocabulary)
    if tokens:
        ids = torch.randint(1000, vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(rows))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {name: tensor.to(device) for name, tensor in batch.items()}


def count_launches(function):
    """Kernels launched, and waits of the host for the device, in one call."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        function()
    names = [event.name for event in profile.events()]
    return (
        sum("LaunchKernel" in name for name in names),
        sum(name in ("cudaStreamSynchronize", "cudaDeviceSynchronize") for name in names),
    )


def time_batches(model, stock, bare, batch, share, args):
    """Seconds of every contender and the layer cost ratio that the exits came to."""
    exit_layers = []
    criterion = ExitCriterion(RandomScore(args.device), share)

    def with_exits():
        exit_layers.append(model(**batch, exit_criterion=criterion).exit_layers)

    functions = {
        "stock": partial(stock, **batch),
        "no layers": partial(bare, **batch),
        "threshold 0": partial(model, **batch, early_exit_entropy=0.0),
        "all exits": partial(model, **batch, early_exit_entropy=1e-12),
        "half saved": with_exits,
        "stock again": partial(stock, **batch),
    }
    if len(batch["input_ids"]) in args.compiled:
        compiled = torch.compile(stock, mode="reduce-overhead", dynamic=False)
        functions["compiled"] = partial(compiled, **batch)

    def finished(function):
        function()
        if args.device == "cuda":
            torch.cuda.synchronize()

    seconds = time_rotation({name: partial(finished, run) for name, run in functions.items()}, args.repeats, 5)
    ratio = torch.cat(exit_layers[5:]).float().mean().item() / model.config.num_hidden_layers
    launches = {name: count_launches(functions[name]) for name in ("stock", "half saved")} if args.launches else {}
    return {name: statistics.fmean(values) * 1e3 for name, values in seconds.items()}, ratio, launches


def time_predictor(model, stock, share, args):
    """Rows a second of the predictor with exits, and of the stock model on batches sorted by length."""
    batch = make_batch_on("cpu", args.rows, 0, model.config.vocab_size)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)]
    criterion = ExitCriterion(RandomScore(args.device), share)

    def sorted_batches(size):
        for start in range(0, len(rows), size):
            part = sorted(rows, key=len)[start : start + size]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in part], batch_first=True)
            stock(ids.to(args.device), attention_mask=(ids > 0).long().to(args.device)).logits.cpu()

    for size in (32, 256):
        predictor = EarlyExitPredictor(model, batch_size=size, window=max(256, size))
        items = [{"input_ids": row} for row in rows]
        functions = {
            "stock": partial(sorted_batches, size),
            "full depth": partial(predictor.predict, items, early_exit_entropy=0.0),
            "half saved": partial(predictor.predict, items, exit_criterion=criterion),
            "stock again": partial(sorted_batches, size),
        }
        seconds = {name: statistics.median(values) for name, values in time_rotation(functions, 3, 1).items()}
        print(
            f"  predictor, batch {size:3}: "
            + ", ".join(f"{name} {len(rows) / value:,.0f} rows/s" for name, value in seconds.items()),
            flush=True,
        )


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--compiled", type=int, nargs="*", default=[], help="batch sizes at which to compile as well")
    parser.add_argument("--tokens", type=int, nargs="+", default=[0, 128])
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--saving", type=float, default=0.5)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--rows", type=int, default=0, help="rows for the predictor; 0: leave it out")
    parser.add_argument("--launches", action="store_true", help="count kernel launches and waits for the device")
    args = parser.parse_args()
    print(describe_machine(args.device), args.dtype, flush=True)
    for shape in args.shapes:
        torch.manual_seed(0)
        config = DeeBertConfig(**SHAPES[shape], off_ramp_pooling="mean", off_ramp_head="linear")
        config.off_ramps_trained = True
        model = DeeBertForSequenceClassification(config).to(args.device, getattr(torch, args.dtype)).eval()
        stock = stock_model(model)
        bare = without_layers(stock)
        share = exit_probability(config.num_hidden_layers, args.saving)
        for tokens in args.tokens:
            print(f"{shape}, {f'{tokens} tokens' if tokens else '5 to 45 tokens'}", flush=True)
            for rows in args.batch_sizes:
                batch = make_batch_on(args.device, rows, tokens, config.vocab_size)
                times, ratio, launches = time_batches(model, stock, bare, batch, share, args)
                ideal = times["no layers"] + ratio * (times["stock"] - times["no layers"])
                print(
                    f"  batch {rows:3}: "
                    + ", ".join(f"{name} {value:.2f} ms" for name, value in times.items())
                    + f"; layer cost ratio {ratio:.3f}, efficiency {ideal / times['half saved']:.2f}"
                    + "".join(
                        f"; {name}: {kernels} launches, {waits} waits" for name, (kernels, waits) in launches.items()
                    ),
                    flush=True,
                )
        if args.rows:
            time_predictor(model, stock, share, args)


if __name__ == "__main__":
    main()
