"""CamemBERT with off-ramps."""

from huggingface_hub.dataclasses import strict
from transformers import CamembertConfig, CamembertForSequenceClassification, CamembertModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone


@strict
class DeeCamembertConfig(EarlyExitConfigMixin, CamembertConfig):
    """
    Configuration of CamemBERT with off-ramps: that of [`~transformers.CamembertConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deecamembert"
    backbone_type = "camembert"


class DeeCamembertModel(EarlyExitBackbone, CamembertModel):
    """CamemBERT with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeCamembertConfig


class DeeCamembertForSequenceClassification(EarlyExitClassifier, CamembertForSequenceClassification):
    """CamemBERT with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeCamembertConfig
    backbone_class = DeeCamembertModel
    backbone_kwargs = {"add_pooling_layer": False}
