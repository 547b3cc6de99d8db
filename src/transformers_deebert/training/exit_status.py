"""The state of the off-ramps in the configuration, kept up to date while a stage trains."""

from transformers import TrainerCallback
from transformers.utils import logging


logger = logging.get_logger(__name__)


class ExitStatusCallback(TrainerCallback):
    """
    Marks off-ramps as untrained once the backbone below them changes, and as trained once they have made a step.
    Temperatures belong to the off-ramps that they were fitted to, and are dropped.

    Args:
        trainer ([`StageTrainer`]): Trains the model.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    @property
    def config(self):
        return self.trainer.early_exit_model.config

    def on_train_begin(self, args, state, control, **kwargs):
        self.trainer.freeze()  # again, for trainers with a `get_train_dataloader` of their own
        temperatures = self.config.off_ramp_temperatures
        if self.trainer.trained_part == "backbone" or temperatures is None:
            return
        logger.warning(
            f"`off_ramp_temperatures` ({temperatures}) were fitted to off-ramps that are now trained on, and are "
            "dropped: fit them again after training."
        )
        self.config.off_ramp_temperatures = None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.trainer.trained_part == "backbone":
            self.config.forget_off_ramps()

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.trained_part != "backbone":
            self.config.off_ramps_trained = True

    def on_train_end(self, args, state, control, **kwargs):
        if state.global_step:  # also where a resumed run had nothing left to do
            self.on_step_end(args, state, control)
