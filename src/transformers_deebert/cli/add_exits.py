"""`deebert add-exits`: off-ramps for a model that is fine-tuned already."""

import argparse
import sys

from .choosing import above_zero, add_criterion_arguments, add_target_arguments, asked_criterion, share
from .inputs import add_model_and_data_arguments, positive
from .pick import add_way_arguments, describe


# Arguments of `add_exits` whose options have other names.
RENAMED = {"output_dir": "--output", "held_out": "--validation", "max_metric_drop": "--max-score-drop"}


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
    add_criterion_arguments(parser)
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
    parser.set_defaults(run=run, renamed=RENAMED)


def run(options: argparse.Namespace) -> int:
    from ..workflow import add_exits
    from .data import load_rows

    named = [*(options.text_columns or ()), options.label_column]
    splits = ("train", "validation", "test")
    rows = load_rows(options.data, options.split, options.max_rows, options.seed, splits=splits, needed=named)
    # `--split` and `--max-rows` are about DATA.
    held_out = None if options.validation is None else load_rows(options.validation, needed=named)
    added = add_exits(
        options.checkpoint,
        rows,
        options.output,
        held_out=held_out,
        hold_out=options.hold_out,
        target_saving=options.target_saving,
        max_metric_drop=options.max_score_drop,
        per_layer=options.per_layer,
        temperatures=options.temperatures,
        criterion=asked_criterion(options),
        text_columns=options.text_columns,
        label_column=options.label_column,
        max_length=options.max_length,
        skip_invalid=options.skip_invalid,
        model_settings={"off_ramp_pooling": options.off_ramp_pooling, "off_ramp_head": options.off_ramp_head},
        training={
            "num_train_epochs": options.epochs,
            "learning_rate": options.learning_rate,
            "per_device_train_batch_size": options.train_batch_size,
        },
        batch_size=options.batch_size,
        device=options.device,
        revision=options.revision,
        seed=options.seed,
    )
    pages = "the model, README.md (its card), report.html"
    sys.stdout.write(f"{describe(added.choice)}\n{options.output}: {pages}\n")
    return 0 if added.choice.met else 1
