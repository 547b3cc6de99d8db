"""DeBERTa-v2 and v3 with off-ramps."""

from huggingface_hub.dataclasses import strict
from transformers import DebertaV2Config, DebertaV2ForSequenceClassification, DebertaV2Model
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import OffRampPooler


@strict
class DeeDebertaV2Config(EarlyExitConfigMixin, DebertaV2Config):
    """
    Configuration of DeBERTa-v2 with off-ramps: that of [`~transformers.DebertaV2Config`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deedeberta-v2"
    backbone_type = "deberta-v2"


class DeeDebertaV2Model(EarlyExitBackbone, DebertaV2Model):
    """DeBERTa-v2 with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeDebertaV2Config
    pooler = None
    _no_split_modules = ["DebertaV2Layer"]
    _can_record_outputs = {"attentions": DisentangledSelfAttention}

    def off_ramp_parts(self, config):
        # A field that only some checkpoints' configurations have.
        dropout = getattr(config, "cls_dropout", None)
        dropout = config.hidden_dropout_prob if dropout is None else dropout
        return OffRampPooler(config.hidden_size, ACT2FN[config.pooler_hidden_act]), dropout

    def max_tokens(self):
        return None if self.embeddings.position_embeddings is None else super().max_tokens()

    def embed(self, mask, **inputs):
        return self.embeddings(mask=mask, **inputs)

    def layer_context(self, state):
        return {
            "attention_mask": self.encoder.get_attention_mask(state.mask),
            "relative_pos": self.encoder.get_rel_pos(state.hidden),
            "rel_embeddings": self.encoder.get_rel_embedding(),
            "output_attentions": True,  # they are there anyway; whether anybody keeps them is decided elsewhere
        }

    def apply_layer(self, index, state):
        hidden, _ = self.encoder.layer[index](state.hidden, **state.context)
        if index == 0 and self.encoder.conv is not None:
            hidden = self.encoder.conv(state.hidden, hidden, state.mask)
        return hidden


class DeeDebertaV2ForSequenceClassification(EarlyExitClassifier, DebertaV2ForSequenceClassification):
    """DeBERTa-v2 with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeDebertaV2Config
    backbone_class = DeeDebertaV2Model

    def classify(self, hidden, mask):
        return self.classifier(self.dropout(self.pooler(hidden)))
