"""Training arguments of one stage."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy


OFF_RAMP_MODES = ("cached", "through_backbone")
JOINT_STRATEGIES = ("weighted", "alternating", "distilled")


@dataclass
class DeeBertTrainingArguments(TrainingArguments):
    """
    Arguments of one stage: [`~transformers.TrainingArguments`] with seven more fields and three other defaults. With
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
        distillation_weight (`float`, *optional*):
            g, from 0 to 1: the loss of off-ramp i is (1 - g) CE_i + g T² KL(p_L ‖ p_i), p the softmax of logits / T, L
            the model's own head (Hinton et al., 2015). By default 0 in stage 2, 0.9 in joint training. With 1
            stage 2 reads no labels, and its rows need none.
        distillation_temperature (`float`, *optional*): T, above 0; by default 1 in stage 2, 3 in joint training.
        joint_strategy (`str`, *optional*):
            Loss of [`JointTrainer`], which needs it: `"weighted"` (PABEE), `"alternating"` (BERxiT) or `"distilled"`
            (RomeBERT).
        project_conflicts (`bool`, *optional*, defaults to `False`):
            In joint training with `"distilled"`: whether the off-ramps' gradient is projected onto the normal plane of
            the head's where it opposes that (PCGrad, Yu et al., 2020), for the parameters that both depend on.
        layer_dropout (`float`, *optional*, defaults to 0.0):
            In joint training, the probability to skip the last layer; it rises linearly from 0 in front of the first
            (LayerDrop, Fan et al., 2020). Evaluation runs all layers.
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
    distillation_weight: float | None = field(
        default=None,
        metadata={"help": "Weight of the head's answers in the off-ramps' loss; 1: no labels needed."},
    )
    distillation_temperature: float | None = field(
        default=None, metadata={"help": "Temperature of both predictions in that part of the loss."}
    )
    joint_strategy: str | None = field(
        default=None, metadata={"help": "Loss of joint training.", "choices": [None, *JOINT_STRATEGIES]}
    )
    project_conflicts: bool = field(
        default=False, metadata={"help": "Whether the off-ramps' gradient may not oppose the head's (distilled)."}
    )
    layer_dropout: float = field(
        default=0.0, metadata={"help": "Probability to skip the last layer in joint training; rises to the top."}
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
        self.check_joint()

    def check_distillation(self) -> None:
        """Raises `ValueError` for values out of range; a hyper-parameter search sets fields unchecked."""
        weight, temperature = self.distillation_weight, self.distillation_temperature
        if weight is not None and not 0 <= weight <= 1:
            raise ValueError(
                f"`distillation_weight` must lie between 0 and 1, got {weight!r}: 0 learns from labels alone, 1 from "
                "the model's own head alone."
            )
        if temperature is not None and not 0 < temperature < math.inf:
            raise ValueError(
                f"`distillation_temperature` must be finite and above 0, got {temperature!r}: 1 changes no prediction."
            )

    def check_joint(self) -> None:
        """Raises `ValueError` for what joint training cannot do."""
        self.check_distillation()
        strategy = self.joint_strategy
        if strategy not in (None, *JOINT_STRATEGIES):
            raise ValueError(f"`joint_strategy` must be one of {JOINT_STRATEGIES} or None, got {strategy!r}.")
        if self.project_conflicts and strategy not in (None, "distilled"):
            raise ValueError(
                f"`project_conflicts` needs `joint_strategy` 'distilled', got {strategy!r}: leave it out."
            )
        if not 0 <= self.layer_dropout < 1:
            raise ValueError(
                f"`layer_dropout` must be at least 0 and below 1, got {self.layer_dropout!r}: 0 skips no layer."
            )
