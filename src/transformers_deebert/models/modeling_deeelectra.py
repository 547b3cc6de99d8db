"""ELECTRA with off-ramps."""

from huggingface_hub.dataclasses import strict
from torch.nn.functional import gelu
from transformers import ElectraConfig, ElectraForSequenceClassification, ElectraModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone
from .off_ramps_deebert import OffRampPooler


@strict
class DeeElectraConfig(EarlyExitConfigMixin, ElectraConfig):
    """
    Configuration of ELECTRA with off-ramps: that of [`~transformers.ElectraConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deeelectra"
    backbone_type = "electra"


class DeeElectraModel(EarlyExitBackbone, ElectraModel):
    """ELECTRA with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeElectraConfig
    pooler = None
    _no_split_modules = ["ElectraLayer"]

    def off_ramp_parts(self, config):
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        return OffRampPooler(config.hidden_size, gelu), dropout

    def embed(self, mask, **inputs):
        hidden = self.embeddings(**inputs)
        # Small models embed in fewer dimensions than their layers have.
        same_size = self.config.embedding_size == self.config.hidden_size
        return hidden if same_size else self.embeddings_project(hidden)


class DeeElectraForSequenceClassification(EarlyExitClassifier, ElectraForSequenceClassification):
    """ELECTRA with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeElectraConfig
    backbone_class = DeeElectraModel
