"""`deebert add-exits`: off-ramps for a model that is fine-tuned already."""

import sys
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

from typer import BadParameter

from .options import (
    DISAGREEMENT,
    GUARANTEE,
    SOURCES,
    DataOptions,
    TargetOptions,
    above_zero,
    of_data,
    of_exits,
    one_of,
    option,
    place,
    positive,
    share,
    share_or_zero,
)
from .pick import describe


SPLITS = ("train", "validation", "test")
VALIDATION = "rows to pick the threshold on, best ones that CHECKPOINT was not fine-tuned on"
of_training = partial(option, panel="Training")
OFF_RAMPS = "auto (the default: the best of several kinds), or pooler, linear or mlp"
pooling, kind = one_of(lambda: ("mean", "cls")), one_of(lambda: ("auto", "pooler", "linear", "mlp"))


@dataclass(kw_only=True)
class AddExits(TargetOptions, DataOptions):
    """
    Train off-ramps for a fine-tuned classifier, pick a threshold, write model, card and report.

    The classifier itself stays as it is: off-ramps behind its layers are trained on its states (stage 2), a
    threshold is picked on rows held out, and the early-exit model is written with its card and a report. Exit code 1
    where the target cannot be met: the model is written without a default threshold.
    """

    RENAMED: ClassVar = DataOptions.RENAMED | {"output_dir": "--output", "held_out": "--validation"}
    TARGETS: ClassVar = ("target_saving", "max_score_drop", "max_disagreement")

    checkpoint: Annotated[str, place("CHECKPOINT", "fine-tuned classifier: repository on the Hub or folder")]
    data: Annotated[str, place("DATA", f"rows, labelled or not: {SOURCES}")]
    split: Annotated[str | None, of_data(f"of DATA; default: the first of {', '.join(SPLITS)}")] = None
    output: Annotated[str, option("must not exist, or be empty", None, "FOLDER", "-o --output")]
    validation: Annotated[str | None, of_data(VALIDATION, None, "DATA")] = None
    max_disagreement: Annotated[float | None, of_exits(DISAGREEMENT, share_or_zero, "F")] = None
    confidence: Annotated[float | None, of_exits(GUARANTEE, share, "F")] = None
    hold_out: Annotated[float, of_data("share of DATA to pick on, without --validation (0.2)", share, "F")] = 0.2
    off_ramps: Annotated[str, of_training(OFF_RAMPS, kind, "KIND")] = "auto"
    off_ramp_pooling: Annotated[str | None, of_training("of one kind: mean (the default) or cls", pooling, "KIND")] = (
        None
    )
    epochs: Annotated[float, of_training("of stage 2 (10), for auto at most", above_zero)] = 10
    learning_rate: Annotated[float, of_training("of stage 2 (1e-3)", above_zero)] = 1e-3
    train_batch_size: Annotated[int, of_training("of stage 2 (32)", positive)] = 32

    @property
    def fields(self) -> str | dict[str, str]:
        """What `off_ramps` of [`add_exits`] is to be."""
        if self.off_ramps == "auto" and self.off_ramp_pooling is None:
            return "auto"
        if self.off_ramps == "auto":
            raise BadParameter("--off-ramp-pooling is for one kind: name that with --off-ramps")
        return {"off_ramp_head": self.off_ramps, "off_ramp_pooling": self.off_ramp_pooling or "mean"}

    def run(self) -> int:
        from ..workflow import add_exits
        from .data import load_rows

        named = [*(self.text_columns or ()), self.label_column]
        rows = load_rows(self.data, self.split, self.max_rows, self.seed, splits=SPLITS, needed=named)
        # `--split` and `--max-rows` are about DATA.
        held_out = None if self.validation is None else load_rows(self.validation, needed=named)
        added = add_exits(
            self.checkpoint,
            rows,
            self.output,
            held_out=held_out,
            hold_out=self.hold_out,
            target_saving=self.target_saving,
            max_metric_drop=self.max_score_drop,
            max_disagreement=self.max_disagreement,
            confidence=self.confidence,
            per_layer=self.per_layer,
            temperatures=self.temperatures,
            criterion=self.asked,
            text_columns=self.text_columns,
            label_column=self.label_column,
            max_length=self.max_length,
            skip_invalid=self.skip_invalid,
            off_ramps=self.fields,
            training={
                "num_train_epochs": self.epochs,
                "learning_rate": self.learning_rate,
                "per_device_train_batch_size": self.train_batch_size,
            },
            batch_size=self.batch_size,
            device=self.device,
            revision=self.revision,
            seed=self.seed,
        )
        pages = "the model, README.md (its card), report.html"
        sys.stdout.write(f"{describe(added.choice)}\n{self.output}: {pages}\n")
        return 0 if added.choice.met else 1
