"""RoBERTa with off-ramps."""

from huggingface_hub.dataclasses import strict
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone


@strict
class DeeRobertaConfig(EarlyExitConfigMixin, RobertaConfig):
    """
    Configuration of RoBERTa with off-ramps: that of [`~transformers.RobertaConfig`] and the fields of
    [`EarlyExitConfigMixin`].
    """

    model_type = "deeroberta"
    backbone_type = "roberta"
    other_layouts = True


class DeeRobertaModel(EarlyExitBackbone, RobertaModel):
    """RoBERTa with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeRobertaConfig


class DeeRobertaForSequenceClassification(EarlyExitClassifier, RobertaForSequenceClassification):
    """RoBERTa with off-ramps for classification. See [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeRobertaConfig
    backbone_class = DeeRobertaModel
    backbone_kwargs = {"add_pooling_layer": False}
