"""What both stages share."""

import json
import os
from pathlib import Path

from transformers import Trainer, TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.utils import is_peft_available, logging

from ..hub.model_card import write_model_card
from .card_numbers import card_arguments, hub_id, run_numbers
from .training_arguments import DeeBertTrainingArguments


if is_peft_available():
    from peft import PeftModel

logger = logging.get_logger(__name__)

TRAINING_ARGUMENTS_FILE = "training_arguments.json"
# Arguments that say where something is on this machine, or who pushes.
OWN = (
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "hub_token",
    "report_file",
)


def is_peft(model) -> bool:
    return is_peft_available() and isinstance(model, PeftModel)


def last_complete_checkpoint(folder) -> str | None:
    """
    The newest checkpoint of `folder` whose writing was finished, `None` if there is none. Trainer writes
    `trainer_state.json` last, so a run killed while saving leaves a folder without a readable one.
    """
    checkpoints = [path for path in Path(folder).glob("checkpoint-*") if path.name.rsplit("-", 1)[-1].isdigit()]
    for path in sorted(checkpoints, key=lambda path: int(path.name.rsplit("-", 1)[-1]), reverse=True):
        if has_trainer_state(path):
            return str(path)
    return None


def has_trainer_state(folder) -> bool:
    """Whether `folder` holds a complete `trainer_state.json`."""
    try:
        TrainerState.load_from_json(os.path.join(folder, "trainer_state.json"))
    except (OSError, ValueError):
        return False
    return True


class StageTrainer(Trainer):
    """
    A [`~transformers.Trainer`] for one stage. It freezes what the stage does not train when training starts, resumes
    from the last checkpoint that was written completely, and evaluates at full depth whatever exit the configuration
    asks for.
    """

    trained_part: str  # what `set_trainable` is given

    def __init__(self, model=None, args=None, **kwargs):
        args = DeeBertTrainingArguments(output_dir="tmp_trainer") if args is None else args
        super().__init__(model, args, **kwargs)
        if not callable(getattr(self.early_exit_model, "set_trainable", None)):
            raise ValueError(
                f"`model` is a `{type(self.early_exit_model).__name__}`, which has no off-ramps: load it with "
                "`DeeBertForSequenceClassification` or the class of its family."
            )
        # Before a folder that the model came from can be gone and look like a repository.
        self.base_model_id = hub_id(self.early_exit_model.name_or_path)
        self.freeze()

    @property
    def early_exit_model(self):
        """The classifier inside whatever wraps it."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if is_peft(model) else model

    def freeze(self) -> None:
        """Sets `requires_grad` of every parameter."""
        self.early_exit_model.set_trainable(self.trained_part)

    def call_model_init(self, trial=None):
        self.model = super().call_model_init(trial)
        self.freeze()
        return self.model

    def train(self, resume_from_checkpoint=None, **kwargs):
        """
        As `Trainer.train`. The metrics it returns also hold `off_ramp_parameter_share`, the share of the model's
        parameters that are off-ramps.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir) or True
        self.freeze()
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        share = self.off_ramp_parameter_share()
        logger.info(f"{share:.2%} of the parameters are off-ramps.")
        output.metrics["off_ramp_parameter_share"] = share
        return output

    def off_ramp_parameter_share(self) -> float:
        """Number of the off-ramps' parameters divided by that of all."""
        model = self.early_exit_model
        off_ramps = sum(parameter.numel() for parameter in model.base_model.off_ramps.parameters())
        return off_ramps / sum(parameter.numel() for parameter in model.parameters())

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return  # every process comes here, one of them saves
        # A checkpoint that is shared holds nothing pickled, and nobody's folders.
        folder = Path(output_dir or self.args.output_dir)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        arguments = {name: value for name, value in json.loads(self.args.to_json_string()).items() if name not in OWN}
        (folder / TRAINING_ARGUMENTS_FILE).write_text(json.dumps(arguments, indent=2), encoding="utf-8")

    def create_model_card(self, language=None, license=None, tags=None, model_name=None, **kwargs):
        """
        Writes the card of this stage's model to `output_dir`, from what the run knows; nothing is looked up.

        Args:
            language, license, model_name (`str`, *optional*): As for `Trainer`.
            tags (`str` or `list[str]`, *optional*): Tags besides `deebert` and `early-exit`.
            kwargs: `dataset`, `dataset_tags` (its id on the Hub) and `finetuned_from`, as for `Trainer`.
        """
        if not self.is_world_process_zero():
            return
        numbers = run_numbers({self.trained_part: self}) | card_arguments(language, model_name, **kwargs)
        model_id = getattr(self, "hub_model_id", None)
        write_model_card(self.args.output_dir, numbers, model_id=model_id, license=license, tags=tags)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = {**inputs, "early_exit_entropy": 0.0}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
