"""ModernBERT with off-ramps."""

import torch
from huggingface_hub.dataclasses import strict
from transformers import ModernBertConfig, ModernBertForSequenceClassification, ModernBertModel
from transformers.masking_utils import create_bidirectional_mask, create_bidirectional_sliding_window_mask
from transformers.models.modernbert.modeling_modernbert import ModernBertPredictionHead

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import mean_pool


@strict
class DeeModernBertConfig(EarlyExitConfigMixin, ModernBertConfig):
    """
    Configuration of ModernBERT with off-ramps: that of [`~transformers.ModernBertConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deemodernbert"
    backbone_type = "modernbert"


class DeeModernBertModel(EarlyExitBackbone, ModernBertModel):
    """
    ModernBERT with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]. It has no segments:
    `token_type_ids` are ignored, as in the stock model. Off-ramps see what its head sees, states behind `final_norm`.
    """

    config: DeeModernBertConfig
    embedding_inputs = ("input_ids", "inputs_embeds")
    layer_inputs = ("position_ids",)
    pooler = None

    def off_ramp_parts(self, config):
        return ModernBertPredictionHead(config), config.classifier_dropout

    def max_tokens(self):
        return None  # rotary positions

    def layer_context(self, state):
        positions = state.tokens.get("position_ids")
        if positions is None:
            positions = torch.arange(state.mask.shape[1], device=state.mask.device)[None]
        arguments = self.mask_arguments(state)
        masks = {
            "full_attention": create_bidirectional_mask(**arguments),
            "sliding_attention": create_bidirectional_sliding_window_mask(**arguments),
        }
        return {
            kind: {
                "attention_mask": masks[kind],
                "position_embeddings": self.rotary_emb(state.hidden, positions, kind),
            }
            for kind in dict.fromkeys(self.config.layer_types)
        }

    def apply_layer(self, index, state):
        layer = self.layers[index]
        return layer(state.hidden, **state.context[layer.attention_type])

    def readout(self, hidden):
        return self.final_norm(hidden)


class DeeModernBertForSequenceClassification(EarlyExitClassifier, ModernBertForSequenceClassification):
    """ModernBERT with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeModernBertConfig
    backbone_class = DeeModernBertModel

    def classify(self, hidden, mask):
        pooled = hidden[:, 0] if self.config.classifier_pooling == "cls" else mean_pool(hidden, mask)
        return self.classifier(self.drop(self.head(pooled)))
