"""
Ways to train exits against shallower models: kinds of off-ramps on a frozen encoder, distillation, joint training.

    python benchmarks/strategies.py [--tasks movie_reviews] [--seeds 3] [--output benchmarks/results/strategies.jsonl]
    python benchmarks/strategies.py --report benchmarks/results/*.jsonl

One JSON line for each cell (task, seed, encoder, kind of off-ramps), written when it is there; what a file holds is
not computed again. Tasks but movie_reviews are read from `--data_folder`, as `TASK/train.jsonl` and
`TASK/validation.jsonl`. Every cell is evaluated on rows that no training saw:

- optimistic: largest layer saving at most 0.2, 0.5 and 1 points below full depth, the threshold the best on these rows
- honest: the threshold selected on one half, saving and loss on the other, mean over 20 random splits
- at the cost of a model of k layers (k/L of the layers): its accuracy beside that of the exits, whose threshold is the
  lowest that saves as much, with the paired 95 % bootstrap interval of the difference

Rivals have the first k layers of the same pre-trained encoder, trained like stage 1; or that with half of the loss
from the answers of the full model.
"""

import argparse
import base64
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
from datasets import Dataset, concatenate_datasets, disable_progress_bars
from json_lines import read_lines
from torch.nn import functional
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    set_seed,
)

from transformers_deebert import (
    BackboneTrainer,
    DeeBertTrainingArguments,
    ExitTable,
    JointTrainer,
    OffRampTrainer,
    from_backbone,
)
from transformers_deebert.analysis import exit_curve, format_table, layer_scores
from transformers_deebert.training.off_ramp_search import FitSettings, fit_kind, kinds_of, pool_rows, table_of


sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

DROPS, SPLITS, RESAMPLES = (0.002, 0.005, 0.01), 20, 2000
# Rows to train on at most, and epochs of stage 1; joint training takes one epoch more.
TASKS = {
    "movie_reviews": (8000, 2),
    "sst2": (8000, 2),
    "mrpc": (8000, 5),
    "qnli": (4000, 3),
    "rte": (8000, 5),
}
JOINT = {
    "weighted": {"joint_strategy": "weighted"},
    "alternating": {"joint_strategy": "alternating"},
    "distilled": {"joint_strategy": "distilled"},
    "distilled, no conflicts": {"joint_strategy": "distilled", "project_conflicts": True},
}
WEIGHTS = {"labels": 0.0, "half distilled": 0.5, "no labels": 1.0}


class Cells:
    """The cells of a file, which each new one is appended to."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.keys = {tuple(cell["cell"]) for cell in read_lines(path)} if path.is_file() else set()

    def missing(self, *cell) -> bool:
        return cell not in self.keys

    def add(self, cell: Sequence, numbers: dict) -> None:
        self.keys.add(tuple(cell))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": list(cell)} | numbers) + "\n")
        print(
            *cell, {name: numbers[name] for name in ("full", "optimistic", "accuracy") if name in numbers}, flush=True
        )


class Task:
    """Encoded rows of one task and seed."""

    def __init__(self, name: str, seed: int, model: str, folder: Path, rows: int | None):
        self.name, self.seed, self.model = name, seed, model
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.collator = DataCollatorWithPadding(self.tokenizer)
        most, self.epochs = TASKS[name]
        most = min(most, rows or most)
        train, unseen = read_rows(name, folder)
        self.train = self.encode(train.shuffle(seed=seed).select(range(min(most, len(train)))))
        self.unseen = self.encode(unseen)

    def encode(self, rows: Dataset) -> Dataset:
        texts = [name for name in ("text", "sentence1", "sentence2") if name in rows.column_names]
        return rows.map(
            lambda batch: (
                self.tokenizer(*(batch[name] for name in texts), truncation=True, max_length=128)
                | {"labels": batch["label"]}
            ),
            batched=True,
            remove_columns=rows.column_names,
        )

    def train_with(self, trainer_class, model, epochs: float, rate: float, **settings):
        """A model, trained."""
        with tempfile.TemporaryDirectory() as folder:
            args = DeeBertTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=32,
                num_train_epochs=epochs,
                learning_rate=rate,
                warmup_steps=0.1,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
                seed=self.seed,
                dataloader_pin_memory=torch.cuda.is_available(),
                **settings,
            )
            data = {"train_dataset": self.train, "data_collator": self.collator, "processing_class": self.tokenizer}
            trainer_class(model, args, **data).train()
        return model.eval()


def read_rows(name: str, folder: Path) -> tuple[Dataset, Dataset]:
    """Rows to train on and unseen ones."""
    parts = [folder / name / f"{part}.jsonl" for part in ("train", "validation")]
    if name == "movie_reviews" and not parts[0].is_file():
        import quickstart_data

        splits = quickstart_data.split_reviews(quickstart_data.fetch_reviews(), 42)
        return Dataset.from_list(splits["train"]), concatenate_datasets(
            [Dataset.from_list(splits[part]) for part in ("validation", "test")]
        )
    train, unseen = (Dataset.from_list(read_lines(part)) for part in parts)
    return train, unseen


def run_task(task: Task, cells: Cells) -> None:
    """All cells of one task and seed."""
    every = "layer dropout" if (task.name, task.seed) == ("movie_reviews", 0) else None
    encoders = ["stage 1", *JOINT, *([every] if every else [])]
    labels = task.train.unique("labels")
    set_seed(task.seed)
    start = partial(from_backbone, task.model, num_labels=len(labels), dtype=torch.float32)
    model = start(off_ramp_pooling="mean", off_ramp_head="linear")
    begin = time.perf_counter()
    model = task.train_with(BackboneTrainer, model, task.epochs, 1e-4, train_sampling_strategy="group_by_length")
    finished = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    print(f"{task.name} {task.seed}: stage 1 took {time.perf_counter() - begin:.0f} s", flush=True)
    frozen(task, cells, model, "stage 1", WEIGHTS)
    rivals(task, cells, model, len(labels))
    for encoder in encoders[1:]:
        if all(not cells.missing(task.name, task.seed, encoder, kind, "labels") for kind in kinds_of(1)):
            continue
        set_seed(task.seed)
        model = start(off_ramp_pooling="mean", off_ramp_head="linear")
        if encoder == "layer dropout":
            model.base_model.layer_dropout = 0.2
            model = task.train_with(BackboneTrainer, model, task.epochs, 1e-4)
            model.base_model.layer_dropout = 0.0
        else:
            model.load_state_dict(finished)
            model = task.train_with(JointTrainer, model, 1, 5e-5, **JOINT[encoder])
        frozen(task, cells, model, encoder, {"labels": 0.0, "no labels": 1.0})


def frozen(task: Task, cells: Cells, model, encoder: str, weights: dict[str, float]) -> None:
    """Kinds of off-ramps on a frozen encoder."""
    depth = model.config.num_hidden_layers
    cell = (task.name, task.seed, encoder, "as before", "labels")
    if encoder == "stage 1" and cells.missing(*cell):  # the fixed recipe: linear, ten epochs, all rows
        begin = time.perf_counter()
        model = task.train_with(OffRampTrainer, model, 10, 1e-3)
        seconds = time.perf_counter() - begin
        state = {name: tensor.clone() for name, tensor in model.base_model.off_ramps.state_dict().items()}
        rows = pool_rows(model, task.unseen, task.collator, progress=False)
        model.base_model.set_off_ramps(off_ramp_layers=None)
        model.base_model.off_ramps.load_state_dict(state)
        cells.add(cell, evaluate(table_of(model, rows), task.seed) | {"seconds": seconds})
    kinds = {"linear, no embeddings": {"off_ramp_head": "linear", "off_ramp_context": "own", "off_ramp_layers": None}}
    kinds |= kinds_of(depth)
    fitted = None
    for words, weight in weights.items():
        settings = FitSettings(distillation_weight=weight, seed=task.seed)
        for kind, fields in kinds.items():
            cell = (task.name, task.seed, encoder, kind, words)
            if not cells.missing(*cell):
                continue
            if fitted is None:
                fitted = pool_rows(model, task.train, task.collator, progress=False).split(
                    settings.held_out, task.seed
                )
                unseen = pool_rows(model, task.unseen, task.collator, progress=False)
            found = fit_kind(model, kind, fields, *fitted, settings)
            numbers = {"seconds": found.seconds, "epochs": found.epochs, "held_out": found.mean_saving}
            cells.add(cell, evaluate(table_of(model, unseen), task.seed) | numbers)


def rivals(task: Task, cells: Cells, teacher, labels: int) -> None:
    """Models of fewer layers, trained directly or with the answers of the full model."""
    depth = teacher.config.num_hidden_layers
    for layers in (round(depth / 3), round(depth / 2), round(2 * depth / 3)):
        for kind in ("directly", "distilled"):
            cell = (task.name, task.seed, f"{layers} layers", kind, "labels")
            if not cells.missing(*cell):
                continue
            set_seed(task.seed)
            model = AutoModelForSequenceClassification.from_pretrained(
                task.model, num_hidden_layers=layers, num_labels=labels, dtype=torch.float32
            )
            trainer = Trainer if kind == "directly" else partial(Taught, teacher=teacher)
            task.train_with(trainer, model, task.epochs, 1e-4, train_sampling_strategy="group_by_length")
            logits = predict(model, task)
            correct = logits.argmax(-1) == np.array(task.unseen["labels"])
            cells.add(cell, {"accuracy": float(correct.mean()), "layers": layers, "correct": pack(correct)})


class Taught(Trainer):
    """Half of the loss is the cross-entropy, half the divergence from the full model's answers (T = 2)."""

    def __init__(self, *args, teacher, **kwargs):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        output = model(**inputs)
        with torch.no_grad():
            teacher = self.teacher(**inputs, early_exit_entropy=0.0).logits / 2
        divergence = functional.kl_div(
            (output.logits / 2).log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
        )
        loss = 0.5 * functional.cross_entropy(output.logits, labels) + 0.5 * 4 * divergence
        return (loss, output) if return_outputs else loss


@torch.no_grad()
def predict(model, task: Task) -> np.ndarray:
    logits = []
    for begin in range(0, len(task.unseen), 64):
        rows = task.unseen.select(range(begin, min(begin + 64, len(task.unseen)))).remove_columns("labels")
        batch = task.collator(rows.to_list()).to(model.device)
        logits.append(model(**batch).logits.float().cpu())
    return torch.cat(logits).numpy()


def evaluate(table: ExitTable, seed: int) -> dict:
    """The numbers of a cell."""
    curve = exit_curve(table)
    accuracies = [scores["accuracy"] for scores in layer_scores(table)]
    cost = {}
    for layers in (round(table.num_layers / 3), round(table.num_layers / 2), round(2 * table.num_layers / 3)):
        reached = np.nonzero(curve.layer_saving >= 1 - layers / table.num_layers - 1e-12)[0]
        if len(reached):
            _, answers = table.exits_at(float(curve.thresholds[reached[0]]))
            cost[layers] = {"correct": pack(answers == table.labels), "saving": float(curve.layer_saving[reached[0]])}
    return {
        "full": accuracies[-1],
        "exits": accuracies,
        "exit_layers": list(table.exit_layers),
        "optimistic": [best_saving(curve, drop)[0] for drop in DROPS],
        "honest": [honest_saving(table, drop, seed) for drop in DROPS],
        "at_cost": cost,
    }


def best_saving(curve, drop: float) -> tuple[float, float]:
    """The largest saving within a drop, and its threshold."""
    allowed = np.nonzero(curve.accuracy >= curve.accuracy[0] - drop - 1e-12)[0]
    best = allowed[curve.layer_saving[allowed].argmax()]
    return float(curve.layer_saving[best]), float(curve.thresholds[best])


def honest_saving(table: ExitTable, drop: float, seed: int) -> dict[str, float]:
    """Selected on one half and evaluated on the other."""
    savings, losses = [], []
    for split in range(SPLITS):
        select_on, evaluate_on = table.split(1000 * seed + split)
        _, threshold = best_saving(exit_curve(select_on), drop)
        exits, answers = evaluate_on.exits_at(threshold)
        savings.append(1 - exits.mean() / table.num_layers)
        losses.append(
            np.mean(evaluate_on.answers[:, -1] == evaluate_on.labels) - np.mean(answers == evaluate_on.labels)
        )
    return {"saving": float(np.mean(savings)), "spread": float(np.std(savings)), "loss": float(np.mean(losses))}


def pack(flags: np.ndarray) -> str:
    return f"{len(flags)}:{base64.b64encode(np.packbits(flags)).decode()}"


def unpack(text: str) -> np.ndarray:
    number, packed = text.split(":")
    return np.unpackbits(np.frombuffer(base64.b64decode(packed), np.uint8))[: int(number)].astype(float)


# ---- report


def report(paths: Sequence[Path]) -> None:
    """Prints the tables of all cells in some files."""
    cells: dict[str, dict[tuple, dict[int, dict]]] = defaultdict(lambda: defaultdict(dict))
    for path in paths:
        for numbers in read_lines(path):
            task, seed, *rest = numbers["cell"]
            cells[task][tuple(rest)][seed] = numbers
    for task, of_task in cells.items():
        seeds = sorted({seed for found in of_task.values() for seed in found})
        print(f"\n## {task}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}\n")
        add_auto(of_task)
        rows = [exit_row(cell, found) for cell, found in of_task.items() if "optimistic" in first(found)]
        print(format_table(rows, markdown=True))
        print()
        print(format_table(list(rival_rows(of_task)), markdown=True))


def first(found: dict[int, dict]) -> dict:
    return next(iter(found.values()))


def add_auto(cells: dict) -> None:
    """
    What `add_exits` keeps: for each encoder and seed the kind of largest saving on rows held out from training, of
    those that learn from the head where there are such.
    """
    kinds = [cell for cell in cells if cell[1] in kinds_of(1) and "held_out" in first(cells[cell])]
    for encoder in dict.fromkeys(cell[0] for cell in kinds):
        taught = [cell for cell in kinds if cell[0] == encoder and cell[2] == "no labels"]
        chosen = taught or [cell for cell in kinds if cell[0] == encoder and cell[2] == "labels"]
        for seed in cells[chosen[0]]:
            found = [cells[cell][seed] for cell in chosen if seed in cells[cell]]
            cells.setdefault((encoder, "auto", chosen[0][2]), {})[seed] = max(found, key=lambda one: one["held_out"])


def exit_row(cell: tuple, found: dict[int, dict]) -> dict[str, str]:
    def mean(values) -> str:
        return f"{100 * np.mean(list(values)):.1f}"

    every = list(found.values())
    row = {
        "encoder": cell[0],
        "off-ramps": cell[1],
        "learn from": cell[2],
        "full depth": mean(c["full"] for c in every),
    }
    for place, drop in enumerate(DROPS):
        row[f"optimistic {100 * drop:g}"] = mean(c["optimistic"][place] for c in every)
    for place, drop in enumerate(DROPS):
        saving = mean(c["honest"][place]["saving"] for c in every)
        spread = mean(c["honest"][place]["spread"] for c in every)
        row[f"honest {100 * drop:g}"] = f"{saving} ± {spread} (−{mean(c['honest'][place]['loss'] for c in every)})"
    return row


def rival_rows(cells: dict) -> Iterator[dict[str, str]]:
    """Exits against models of k layers, at their cost."""
    for (encoder, kind, _), rival in cells.items():
        if "layers" not in first(rival):
            continue
        layers = first(rival)["layers"]
        row = {
            "rival": f"{encoder}, {kind}",
            "its accuracy": f"{100 * np.mean([c['accuracy'] for c in rival.values()]):.1f}",
        }
        for ours in [("stage 1", "as before"), ("stage 1", "auto"), *((joint, "auto") for joint in JOINT)]:
            exits = next((found for cell, found in cells.items() if cell[:2] == ours), {})
            row[", ".join(ours)] = compared(exits, rival, layers)
        yield row


def compared(exits: dict[int, dict], rival: dict[int, dict], layers: int) -> str:
    """Accuracy of the exits at the rival's cost, and the paired 95 % interval of the difference, seeds together."""
    pairs = [
        (unpack(exits[seed]["at_cost"][str(layers)]["correct"]), unpack(rival[seed]["correct"]))
        for seed in exits.keys() & rival.keys()
        if str(layers) in exits[seed]["at_cost"]
    ]
    if not pairs:
        return "-"
    difference = np.mean([ours - theirs for ours, theirs in pairs], axis=0)  # a row's mean over the seeds
    generator = np.random.default_rng(0)
    draws = [difference[generator.integers(0, len(difference), len(difference))].mean() for _ in range(RESAMPLES)]
    low, high = 100 * np.quantile(draws, [0.025, 0.975])
    return f"{100 * np.mean([ours.mean() for ours, _ in pairs]):.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["movie_reviews"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", help="pre-trained encoder; the quickstart's by default")
    parser.add_argument("--data_folder", type=Path, default=Path("data"))
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/strategies.jsonl"))
    parser.add_argument("--rows", type=int, help="train on so many at most, to see that it runs")
    parser.add_argument("--report", type=Path, nargs="+", help="print the tables of these files instead")
    options = parser.parse_args()
    if options.report:
        report(options.report)
        return
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    if options.model is None:
        import quickstart_data

        options.model = str(quickstart_data.fetch_model())
    cells = Cells(options.output)
    for name in options.tasks:
        for seed in options.seeds:
            run_task(Task(name, seed, options.model, options.data_folder, options.rows), cells)


if __name__ == "__main__":
    main()
