"""
Many texts with early exit: the predictor against loops over batches and the stock pipeline.

    python benchmarks/predictor.py --model FOLDER --file sst2/validation.jsonl [--thresholds 0 0.1 0.3] [--rows 872]
        [--trained_on sst2/train.jsonl --trained_rows 8000 --seed 42]

All contenders take turns, pass by pass, in an order that moves on; medians are compared. `stock loop` is the stock
class over batches of rows sorted by length, encoded and padded before the clock starts, and runs twice, as a control;
`exits, loop` is the early-exit model over the same batches; `predictor` is given the texts, in the order of the file.
The efficiency is (t0 + r (T - t0)) / t with T the stock loop, t0 the same without layers and r the share of layers
run; where long rows stay longer than short ones, their tokens run a larger share, which is printed too.

FOLDER holds a model trained in both stages on other rows, because rows that were trained on exit early: `--trained_on`
leaves out the texts of the rows that `run_glue.py --max_train_samples --seed` draws from that file. Equal texts count
once. The file has one JSON object a line with `sentence1` and `sentence2`, or `text`, and perhaps `label`.
"""

import argparse
import json
import random
import statistics
import time

import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, pipeline

from transformers_deebert import EarlyExitPredictor, stock_model
from transformers_deebert.analysis import describe_machine
from transformers_deebert.analysis.timing import QUIET, without_layers


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def text_of(item):
    return {"text": item["text"]} if "text" in item else {"text": item["sentence1"], "text_pair": item["sentence2"]}


def key_of(item):
    return tuple(text.strip().lower() for text in text_of(item).values())


def select(args):
    """Rows of the file with distinct texts that no training saw, in random order."""
    seen = set()
    if args.trained_on:
        rows = Dataset.from_list(read(args.trained_on)).shuffle(seed=args.seed)
        seen = {key_of(item) for item in rows.select(range(min(args.trained_rows or len(rows), len(rows))))}
    items = list({key_of(item): item for item in read(args.file) if key_of(item) not in seen}.values())
    random.Random(0).shuffle(items)
    return items[: args.rows]


def run_loop(model, batches, **settings):
    with torch.inference_mode():
        return [model(**batch, **settings) for batch in batches]


def take_turns(contenders, repeats):
    """Median seconds of each contender's passes."""
    seconds = {name: [] for name in contenders}
    names = list(contenders)
    for repeat in range(repeats):
        for place in range(len(names)):
            name = names[(place + repeat) % len(names)]
            begin = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begin)
            print(f"  pass {repeat + 1}: {name} {seconds[name][-1]:.2f} s", flush=True)
    return {name: statistics.median(passes) for name, passes in seconds.items()}


def accuracy(model, answers, items):
    if "label" not in items[0]:
        return ""
    right = [model.config.label2id[label] == item["label"] for label, item in zip(answers.labels, items, strict=True)]
    return f", accuracy {100 * statistics.mean(right):.2f} %"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--file", required=True)
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.0, 0.1, 0.3])
    parser.add_argument("--rows", type=int)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--windows", type=int, nargs="+", default=[256], help="batches sorted together")
    parser.add_argument("--max_length", type=int, default=128)
    parser.add_argument("--trained_on", help="file that the model was trained on")
    parser.add_argument("--trained_rows", type=int, help="number of its rows that were drawn; all by default")
    parser.add_argument("--seed", type=int, default=42, help="that they were drawn with")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    print(describe_machine(args.device), flush=True)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForSequenceClassification.from_pretrained(args.model).to(args.device).eval()
    stock = stock_model(model)
    pipe = pipeline("text-classification", model=stock, tokenizer=tokenizer, device=args.device)

    items = select(args)
    texts = [text_of(item) for item in items]
    rows = [dict(tokenizer(**text, truncation=True, max_length=args.max_length)) for text in texts]
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
    groups = [order[start : start + args.batch_size] for start in range(0, len(order), args.batch_size)]
    collate = DataCollatorWithPadding(tokenizer)
    batches = [collate([rows[row] for row in group]).to(args.device) for group in groups]
    alone = [collate([row]).to(args.device) for row in rows]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])

    def pipe_over(items):
        return lambda: pipe(items, batch_size=args.batch_size, truncation=True, max_length=args.max_length)

    bare = without_layers(stock)
    stocks = {
        "stock pipeline": pipe_over(texts),
        "stock pipeline, sorted": pipe_over([texts[row] for row in order]),
        "stock loop": lambda: run_loop(stock, batches),
        "no layers": lambda: run_loop(bare, batches),
        "stock loop again": lambda: run_loop(stock, batches),
    }
    exiting = {}
    for threshold in args.thresholds:
        settings = {"early_exit_entropy": threshold}
        exiting[f"S={threshold:g}: exits, loop"] = threshold, lambda kept=settings: run_loop(model, batches, **kept)
        for window in args.windows:
            predictor = EarlyExitPredictor(
                model, tokenizer, batch_size=args.batch_size, window=window, max_length=args.max_length
            )
            exiting[f"S={threshold:g}: predictor, window {window}"] = (
                threshold,
                lambda predict=predictor.predict, kept=settings: predict(texts, **kept),
            )
    for warm in (stock, model):
        run_loop(warm, batches[::-1][:8])
    pipe(texts[:64], batch_size=args.batch_size, truncation=True, max_length=args.max_length)
    seconds = take_turns(stocks | {name: run for name, (_, run) in exiting.items()}, args.repeats)
    gap = abs(seconds["stock loop again"] / seconds["stock loop"] - 1)
    print(f"control: {gap:.1%} apart{', no verdict' if gap > QUIET else ''}")

    without, full, pipe_seconds = (seconds[name] for name in ("no layers", "stock loop", "stock pipeline, sorted"))
    shares = {}
    predictor = EarlyExitPredictor(model, tokenizer, batch_size=args.batch_size)
    for threshold in dict.fromkeys([0.0, *args.thresholds]):
        exits = torch.cat(
            [output.exit_layers for output in run_loop(model, alone, early_exit_entropy=threshold)]
        ).cpu()
        answers = predictor.predict(rows, early_exit_entropy=threshold)
        differ = (answers.exit_layers != exits).sum()
        tokens = (exits * lengths).sum() / (model.config.num_hidden_layers * lengths.sum())
        shares[threshold] = exits.double().mean().item() / model.config.num_hidden_layers
        print(
            f"S={threshold:g}: {100 * (1 - shares[threshold]):.1f} % of the layers saved, {100 * (1 - tokens):.1f} % "
            f"of the tokens' layers{accuracy(model, answers, items)}; {differ} of {len(rows):,} exit layers differ "
            "from those of the rows alone"
        )
    for name, here in seconds.items():
        line = f"{name:42} {len(rows) / here:8.0f} rows/s, {full / here:5.2f} x stock loop, {pipe_seconds / here:5.2f}"
        line += " x sorted stock pipeline"
        if name in exiting:
            line += f", efficiency {(without + shares[exiting[name][0]] * (full - without)) / here:.2f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
