"""MPNet with off-ramps."""

import torch
from huggingface_hub.dataclasses import strict
from transformers import MPNetConfig, MPNetForSequenceClassification, MPNetModel
from transformers.models.mpnet.modeling_mpnet import MPNetSelfAttention

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import OffRampPooler


@strict
class DeeMPNetConfig(EarlyExitConfigMixin, MPNetConfig):
    """
    Configuration of MPNet with off-ramps: that of [`~transformers.MPNetConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deempnet"
    backbone_type = "mpnet"


class DeeMPNetModel(EarlyExitBackbone, MPNetModel):
    """
    MPNet with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]. It has no segments:
    `token_type_ids` are ignored, as in the stock model.
    """

    config: DeeMPNetConfig
    embedding_inputs = ("input_ids", "position_ids", "inputs_embeds")
    checkpoints_in_loop = True
    gradient_checkpointing = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["MPNetLayer"]
    _can_record_outputs = {"attentions": MPNetSelfAttention}

    def off_ramp_parts(self, config):
        return OffRampPooler(config.hidden_size, torch.tanh), config.hidden_dropout_prob

    def layer_context(self, state):
        # The bias depends on the distance of two tokens only: one row of it serves all.
        bias = self.encoder.compute_position_bias(state.hidden[:1])
        return super().layer_context(state) | {"position_bias": bias}

    def apply_layer(self, index, state):
        # The attentions are there anyway; whether anybody keeps them is decided elsewhere.
        return self.encoder.layer[index](state.hidden, **state.context, output_attentions=True)[0]


class DeeMPNetForSequenceClassification(EarlyExitClassifier, MPNetForSequenceClassification):
    """MPNet with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeMPNetConfig
    backbone_class = DeeMPNetModel
    backbone_kwargs = {"add_pooling_layer": False}
    supports_gradient_checkpointing = True
