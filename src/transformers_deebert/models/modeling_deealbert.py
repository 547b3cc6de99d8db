"""ALBERT with off-ramps, one behind each pass through its shared layers."""

import torch
from huggingface_hub.dataclasses import strict
from transformers import AlbertConfig, AlbertForSequenceClassification, AlbertModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import OffRampPooler


@strict
class DeeAlbertConfig(EarlyExitConfigMixin, AlbertConfig):
    """
    Configuration of ALBERT with off-ramps: that of [`~transformers.AlbertConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deealbert"
    backbone_type = "albert"
    other_layouts = True


class DeeAlbertModel(EarlyExitBackbone, AlbertModel):
    """ALBERT with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeAlbertConfig
    checkpoints_in_loop = True
    gradient_checkpointing = False
    supports_gradient_checkpointing = True
    _no_split_modules = ["AlbertLayerGroup"]

    def off_ramp_parts(self, config):
        return OffRampPooler(config.hidden_size, torch.tanh), config.classifier_dropout_prob

    def pooler_dense(self):
        return self.pooler

    def pool_last(self, hidden):
        return None if self.pooler is None else self.pooler_activation(self.pooler(hidden[:, 0]))

    def embed(self, mask, **inputs):
        return self.encoder.embedding_hidden_mapping_in(self.embeddings(**inputs))

    def apply_layer(self, index, state):
        # As the stock model computes it, rounding included.
        group = int(index / (self.config.num_hidden_layers / self.config.num_hidden_groups))
        return self.encoder.albert_layer_groups[group](state.hidden, **state.context)


class DeeAlbertForSequenceClassification(EarlyExitClassifier, AlbertForSequenceClassification):
    """ALBERT with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeAlbertConfig
    backbone_class = DeeAlbertModel
    supports_gradient_checkpointing = True

    def classify(self, hidden, mask):
        return self.classifier(self.dropout(self.albert.pool_last(hidden)))
