"""Training arguments of one stage."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy


OFF_RAMP_MODES = ("cached", "through_backbone")


@dataclass
class DeeBertTrainingArguments(TrainingArguments):
    """
    Arguments of one stage: [`~transformers.TrainingArguments`] with four more fields and three other defaults. With
    them the defaults are the paper's hyper-parameters (section 4.1): batch 8 a device, 3 epochs, AdamW with eps 1e-8,
    linear decay without warm-up, no weight decay, gradients clipped to norm 1.

    Changed defaults: `learning_rate` 2e-5 (stock: 5e-5); `ddp_find_unused_parameters` `False` (stock: `None`, which
    searches the graph at every step), because each stage uses every parameter that it trains; `hub_strategy` `"end"`
    (stock: `"every_save"`), because what `Trainer` pushes in between has pickled files in it.

    Args:
        off_ramp_mode (`str`, *optional*):
            How stage 2 gets what the off-ramps read. `"cached"`: the frozen backbone runs once, without dropout, and
            its pooled states are kept on disk under `output_dir`; every epoch then costs only the off-ramps.
            `"through_backbone"`: every step runs the backbone, with dropout, as in the original implementation. `None`
            (the default) is `"cached"`, or `"through_backbone"` with attention pooling, which learns what it reads.
        distillation_weight (`float`, *optional*, defaults to 0.0):
            g of stage 2, from 0 to 1: the loss of off-ramp i is (1 - g) CE_i + g T² KL(p_L ‖ p_i), p the softmax of
            logits / T, L the model's own head (Hinton et al., 2015). With 1 the rows need no labels.
        distillation_temperature (`float`, *optional*, defaults to 1.0): T, above 0.
        report_file (`str`, *optional*):
            Page that each evaluation of stage 2 on `eval_dataset` writes (see [`make_report`]), such as
            `"report.html"`; relative to `output_dir`. Of several named evaluation sets each has its own,
            `"report_NAME.html"`. Needs the extra `analysis`.
    """

    learning_rate: float = field(default=2e-5, metadata={"help": "The initial learning rate for AdamW."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DistributedDataParallel searches for parameters without gradients."}
    )
    hub_strategy: HubStrategy | str = field(
        default="end", metadata={"help": "When to push to the Hub, with --push_to_hub."}
    )
    off_ramp_mode: str | None = field(
        default=None,
        metadata={
            "help": "Stage 2 on pooled states computed once (cached) or through the frozen backbone at every step "
            "(through_backbone). Default: cached, or through_backbone with attention pooling.",
            "choices": [None, *OFF_RAMP_MODES],
        },
    )
    distillation_weight: float = field(
        default=0.0, metadata={"help": "Weight of the own head's answers in the loss of stage 2; 1: no labels needed."}
    )
    distillation_temperature: float = field(
        default=1.0, metadata={"help": "Temperature of both predictions in that part of the loss."}
    )
    report_file: str | None = field(
        default=None,
        metadata={"help": "HTML page that each evaluation of stage 2 writes, relative to --output_dir."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.report_file is not None and Path(self.report_file).suffix != ".html":
            raise ValueError(f"`report_file` must end in .html, got {self.report_file!r}.")
        if self.off_ramp_mode not in (None, *OFF_RAMP_MODES):
            raise ValueError(f"`off_ramp_mode` must be one of {OFF_RAMP_MODES} or None, got {self.off_ramp_mode!r}.")
        self.check_distillation()

    def check_distillation(self) -> None:
        """Raises `ValueError` for values out of range; a hyper-parameter search sets fields unchecked."""
        if not 0 <= self.distillation_weight <= 1:
            raise ValueError(f"`distillation_weight` must lie between 0 and 1, got {self.distillation_weight!r}.")
        if not 0 < self.distillation_temperature < math.inf:
            raise ValueError(
                f"`distillation_temperature` must be finite and above 0, got {self.distillation_temperature!r}: 1 "
                "leaves the predictions as they are."
            )
