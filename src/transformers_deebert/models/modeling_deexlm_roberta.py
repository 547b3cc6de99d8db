"""XLM-RoBERTa with off-ramps."""

from huggingface_hub.dataclasses import strict
from transformers import XLMRobertaConfig, XLMRobertaForSequenceClassification, XLMRobertaModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone


@strict
class DeeXLMRobertaConfig(EarlyExitConfigMixin, XLMRobertaConfig):
    """
    Configuration of XLM-RoBERTa with off-ramps: that of [`~transformers.XLMRobertaConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deexlm-roberta"
    backbone_type = "xlm-roberta"


class DeeXLMRobertaModel(EarlyExitBackbone, XLMRobertaModel):
    """XLM-RoBERTa with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeXLMRobertaConfig


class DeeXLMRobertaForSequenceClassification(EarlyExitClassifier, XLMRobertaForSequenceClassification):
    """XLM-RoBERTa with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeXLMRobertaConfig
    backbone_class = DeeXLMRobertaModel
    backbone_kwargs = {"add_pooling_layer": False}
