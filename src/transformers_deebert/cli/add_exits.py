"""`deebert add-exits`: off-ramps for a model that is fine-tuned already."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .choosing import above_zero, add_target_arguments, share
from .inputs import add_model_and_data_arguments, encode, positive
from .messages import note
from .pick import add_way_arguments, describe, pick


if TYPE_CHECKING:
    from datasets import Dataset

LEAST_ROWS = 40  # held out: a report needs as many


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "add-exits",
        help="train off-ramps for a fine-tuned classifier, pick a threshold, write model, card and report",
        description="Trains off-ramps behind the layers of a fine-tuned classifier, which itself stays as it is "
        "(stage 2 on cached states), picks a threshold on rows held out, and writes the early-exit model with its "
        "card and a report. Exit code 1 where the target cannot be met: the model is written without a default "
        "threshold.",
    )
    add_model_and_data_arguments(
        parser,
        checkpoint="fine-tuned classifier without trained off-ramps",
        split="the first that exists of train, validation, test",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="must not exist, or be empty")
    add_target_arguments(parser)
    add_way_arguments(parser)
    parser.add_argument(
        "--validation",
        metavar="DATA",
        help="labelled rows to pick the threshold on, best ones that CHECKPOINT was not fine-tuned on",
    )
    parser.add_argument(
        "--hold-out", type=share, default=0.2, metavar="F", help="without --validation: share of DATA to pick on (0.2)"
    )
    parser.add_argument("--off-ramp-pooling", choices=("mean", "cls"), default="mean", help="default: mean")
    parser.add_argument("--off-ramp-head", choices=("pooler", "linear"), default="pooler", help="default: pooler")
    parser.add_argument("--epochs", type=above_zero, default=10, metavar="N", help="of stage 2 (10)")
    parser.add_argument("--learning-rate", type=above_zero, default=1e-3, metavar="X", help="of stage 2 (1e-3)")
    parser.add_argument("--train-batch-size", type=positive, default=32, metavar="N", help="of stage 2 (32)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from transformers import DataCollatorWithPadding

    from ..analysis.collect import collect_exits
    from ..analysis.report import check_report_packages, make_report
    from ..hub.applied_threshold import apply_threshold
    from ..hub.model_card import write_model_card
    from .model import load_backbone

    check_report_packages()
    output = Path(options.output)
    check_folder(output)
    try:
        model, tokenizer = load_backbone(
            options.checkpoint,
            options.revision,
            options.device,
            off_ramp_pooling=options.off_ramp_pooling,
            off_ramp_head=options.off_ramp_head,
        )
        train, held_out = read_halves(options, model, tokenizer)
        note(f"trains {len(model.base_model.off_ramps)} off-ramps on {len(train):,} rows.")
        trainer = train_off_ramps(model, tokenizer, train, options)
        trainer.save_model(str(output))  # before anything else can fail
    finally:
        if not any(output.iterdir()):  # nothing has come of it
            output.rmdir()
    table = collect_exits(model, held_out, DataCollatorWithPadding(tokenizer), options.batch_size, progress=False)
    if options.target_saving is None and options.max_score_drop is None:
        options.max_score_drop = 0.01
    choice, chosen_on, read_on = pick(table, options)
    # The card tells of the model that is written, temperatures and all.
    table = table.with_temperatures(choice.temperatures if choice.met else None)
    write_model_card(output, card_numbers(trainer, table))
    if choice.met:
        apply_threshold(output, choice)
    report = make_report(
        chosen_on,
        reading=read_on,
        choice=choice,
        title=f"Early exit: {output.name}",
        facts={"model": output.name, "rows": f"{len(table):,} held out"},
        target_saving=options.target_saving,
        max_score_drop=options.max_score_drop,
        seed=options.seed,
    )
    report.save(output / "report.html")
    sys.stdout.write(f"{describe(choice)}\n{output}: the model, README.md (its card), report.html\n")
    return 0 if choice.met else 1


def check_folder(path: Path) -> None:
    """Raises `ValueError` unless the folder can be written and is empty, before anything is trained for it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        # A run that was stopped leaves its cache, which the next one begins anew.
        empty = not any(one.name != "_off_ramp_inputs" for one in path.iterdir())
        if empty:
            (path / ".writable").touch()
            (path / ".writable").unlink()
    except OSError as error:
        raise ValueError(f"`--output` ({str(path)!r}) cannot be written ({error.strerror}): name another.") from error
    if not empty:
        raise ValueError(f"`--output` ({str(path)!r}) is not empty, and nothing is overwritten: name another folder.")


def read_halves(options: argparse.Namespace, model: Any, tokenizer: Any) -> "tuple[Dataset, Dataset]":
    """Rows to train on, and others to pick the threshold on."""
    rows = labelled(encode(options, model, tokenizer, splits=("train", "validation", "test")))
    if options.validation is not None:
        # `--split` and `--max-rows` are about DATA.
        others = {"data": options.validation, "split": None, "max_rows": None}
        held_out = labelled(encode(argparse.Namespace(**vars(options) | others), model, tokenizer))
    else:
        parts = rows.train_test_split(test_size=options.hold_out, seed=options.seed)
        rows, held_out = parts["train"], parts["test"]
        note(
            f"holds {len(held_out):,} rows out. If CHECKPOINT was fine-tuned on them, they exit earlier than others "
            "will: give others with `--validation`."
        )
    if len(held_out) < LEAST_ROWS:
        raise ValueError(
            f"There are {len(held_out)} rows to pick a threshold on, and it takes {LEAST_ROWS}: give more."
        )
    return rows, held_out


def labelled(rows: "Dataset") -> "Dataset":
    return rows.filter(lambda labels: labels != -100, input_columns="labels", keep_in_memory=True)


def train_off_ramps(model: Any, tokenizer: Any, rows: "Dataset", options: argparse.Namespace) -> Any:
    from transformers import DataCollatorWithPadding, PrinterCallback, set_seed

    from ..training.off_ramp_trainer import OffRampTrainer
    from ..training.training_arguments import DeeBertTrainingArguments
    from .exits import is_a_terminal

    set_seed(options.seed)
    arguments = DeeBertTrainingArguments(
        output_dir=options.output,
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        per_device_train_batch_size=options.train_batch_size,
        per_device_eval_batch_size=options.batch_size,
        warmup_steps=0.1,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        seed=options.seed,
        disable_tqdm=not is_a_terminal(),
        use_cpu=options.device == "cpu",
        dataloader_pin_memory=options.device != "cpu",
    )
    trainer = OffRampTrainer(
        model,
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )
    trainer.remove_callback(PrinterCallback)  # stdout is for the answer
    trainer.train()
    return trainer


def card_numbers(trainer: Any, table: Any) -> dict[str, Any]:
    """What the card tells beside the choice."""
    from ..analysis.sweep import layer_scores
    from ..training.card_numbers import run_numbers, trade_off_numbers

    scores = [score["accuracy"] for score in layer_scores(table)]
    return run_numbers({"off_ramps": trainer}) | {
        "metric": "accuracy",
        "rows_scored": len(table),
        "full_depth": scores[-1],
        "layer_scores": scores,
        "trade_off": trade_off_numbers(table, None, "accuracy")["trade_off"],
        "off_ramp_temperatures": None if table.temperatures is None else list(table.temperatures),
    }
