"""Stage 1."""

from .stage_trainer import StageTrainer, is_peft


class BackboneTrainer(StageTrainer):
    """
    Stage 1 (DeeBERT, section 3.1): fine-tunes everything but the off-ramps, with the cross-entropy of the model's own
    head. The off-ramps are not computed and stay as they are; those trained on an earlier backbone count as untrained
    again. Takes what [`~transformers.Trainer`] takes.

    Parameters of the backbone and head that were frozen before are trained again. Of a PEFT model, nothing is
    unfrozen: its own choice stands, and the off-ramps are frozen.
    """

    trained_part = "backbone"

    def freeze(self):
        if is_peft(self.model):
            self.early_exit_model.base_model.off_ramps.requires_grad_(False)
        else:
            super().freeze()

    def training_step(self, *args, **kwargs):
        self.early_exit_model.config.forget_off_ramps()
        return super().training_step(*args, **kwargs)
