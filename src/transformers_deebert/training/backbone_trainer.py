"""Stage 1: fine-tuning of the backbone and head."""

from .stage_trainer import StageTrainer


class BackboneTrainer(StageTrainer):
    """
    Stage 1 (DeeBERT, section 3.1): fine-tunes everything but the off-ramps, with the cross-entropy of the model's own
    head. The off-ramps are not computed and stay as they are; those trained on an earlier backbone count as untrained
    again. Takes what [`~transformers.Trainer`] takes.

    Parameters of the backbone and head that were frozen before are trained again. Of a model with PEFT adapters
    (`get_peft_model` or `add_adapter`) nothing is unfrozen: its own choice stands, and the off-ramps are frozen.
    """

    trained_part = "backbone"
