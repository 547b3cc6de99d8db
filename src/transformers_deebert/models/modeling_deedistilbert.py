"""DistilBERT with off-ramps."""

import torch
from huggingface_hub.dataclasses import strict
from transformers import DistilBertConfig, DistilBertForSequenceClassification, DistilBertModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import OffRampPooler


@strict
class DeeDistilBertConfig(EarlyExitConfigMixin, DistilBertConfig):
    """
    Configuration of DistilBERT with off-ramps: that of [`~transformers.DistilBertConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deedistilbert"
    backbone_type = "distilbert"


class DeeDistilBertModel(EarlyExitBackbone, DistilBertModel):
    """
    DistilBERT with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]. It has no segments:
    `token_type_ids` are ignored, as in the stock model.
    """

    config: DeeDistilBertConfig
    embedding_inputs = ("input_ids", "position_ids", "inputs_embeds")
    pooler = None
    _no_split_modules = ["TransformerBlock"]

    def off_ramp_parts(self, config):
        return OffRampPooler(config.dim, torch.relu), config.seq_classif_dropout

    def apply_layer(self, index, state):
        return self.transformer.layer[index](state.hidden, **state.context)


class DeeDistilBertForSequenceClassification(EarlyExitClassifier, DistilBertForSequenceClassification):
    """DistilBERT with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeDistilBertConfig
    backbone_class = DeeDistilBertModel

    def classify(self, hidden, mask):
        return self.classifier(self.dropout(self.pre_classifier(hidden[:, 0]).relu()))
