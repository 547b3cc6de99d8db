"""
Many texts with early exit: the predictor against loops over batches and the stock pipeline.

    python benchmarks/predictor.py --model FOLDER --file sst2/validation.jsonl [--thresholds 0.1 0.3] [--rows 872]

All contenders take turns, pass by pass, in an order that moves on; medians are compared. `stock loop` is the stock
class over batches of rows sorted by length, encoded and padded before the clock starts; `exits, loop` the early-exit
model over the same batches; `predictor` is given the encoded rows, or the texts, in the order of the file. The
efficiency is (t0 + r (T - t0)) / t with T the stock loop, t0 the same without layers and r the share of layers run.
FOLDER holds a model trained in both stages on other rows. The file has one JSON object a line with `sentence1` and
`sentence2`, or `text`.
"""

import argparse
import json
import statistics
import time

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from transformers_deebert import EarlyExitPredictor, describe_machine, stock_model
from transformers_deebert.analysis.timing import without_layers


def read(path, rows):
    with open(path, encoding="utf-8") as file:
        items = [json.loads(line) for line in file][:rows]
    return [
        {"text": item["text"]} if "text" in item else {"text": item["sentence1"], "text_pair": item["sentence2"]}
        for item in items
    ]


def run_loop(model, batches, **settings):
    with torch.inference_mode():
        return [model(**batch, **settings) for batch in batches]


def take_turns(contenders, repeats):
    """Seconds of each contender's passes."""
    seconds = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats + 1):
        for place in range(len(names)):
            name = names[(place + repeat) % len(names)]
            begin = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(passes[1:]) for name, passes in seconds.items()}  # the first one warms up


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--windows", type=int, nargs="+", default=[256], help="batches sorted together")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(describe_machine(args.device), flush=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).to(args.device).eval()
    stock = stock_model(model)
    pipe = pipeline("text-classification", model=stock, tokenizer=tokenizer, device=args.device)

    texts = read(args.file, args.rows)
    rows = [dict(tokenizer(**text, truncation=True, max_length=args.max_length)) for text in texts]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    groups = [order[start : start + args.batch_size] for start in range(0, len(order), args.batch_size)]
    collate = DataCollatorWithPadding(tokenizer)
    batches = [collate([rows[row] for row in group]).to(args.device) for group in groups]
    alone = [collate([row]).to(args.device) for row in rows]

    def pipe_over(items):
        return lambda: pipe(items, batch_size=args.batch_size, truncation=True, max_length=args.max_length)

    bare = without_layers(stock)
    stocks = {
        "stock pipeline": pipe_over(texts),
        "stock pipeline, sorted": pipe_over([texts[row] for row in order]),
        "stock loop": lambda: run_loop(stock, batches),
        "no layers": lambda: run_loop(bare, batches),
    }
    exiting = {}
    for threshold in [0.0, *args.thresholds]:
        settings = {"early_exit_entropy": threshold}
        exiting[f"S={threshold:g}: exits, loop"] = threshold, lambda kept=settings: run_loop(model, batches, **kept)
        for window in args.windows:
            predictor = EarlyExitPredictor(
                model, tokenizer, batch_size=args.batch_size, window=window, max_length=args.max_length
            )
            for name, items in (("encoded", rows), ("texts", texts)):
                exiting[f"S={threshold:g}: predictor, window {window}, {name}"] = (
                    threshold,
                    lambda predict=predictor.predict, items=items, kept=settings: predict(items, **kept),
                )
    seconds = take_turns(stocks | {name: run for name, (_, run) in exiting.items()}, args.repeats)

    without, full, pipe_seconds = (seconds[name] for name in ("no layers", "stock loop", "stock pipeline, sorted"))
    shares = {}
    predictor = EarlyExitPredictor(model, tokenizer, batch_size=args.batch_size)
    for threshold in [0.0, *args.thresholds]:
        exits = torch.cat(
            [output.exit_layers for output in run_loop(model, alone, early_exit_entropy=threshold)]
        ).cpu()
        differ = (predictor.predict(rows, early_exit_entropy=threshold).exit_layers != exits).sum()
        shares[threshold] = exits.double().mean().item() / model.config.num_hidden_layers
        print(
            f"S={threshold:g}: {100 * (1 - shares[threshold]):.1f} % of the layers saved; {differ} of {len(rows):,} "
            "exit layers differ from those of the rows alone"
        )
    for name, here in seconds.items():
        line = f"{name:42} {len(rows) / here:8.0f} rows/s, {full / here:5.2f} x stock loop, {pipe_seconds / here:5.2f}"
        line += " x sorted stock pipeline"
        if name in exiting:
            line += f", efficiency {(without + shares[exiting[name][0]] * (full - without)) / here:.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
