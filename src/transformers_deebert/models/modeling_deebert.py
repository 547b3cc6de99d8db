"""BERT with off-ramps (DeeBERT)."""

from huggingface_hub.dataclasses import strict
from transformers import BertConfig, BertForSequenceClassification, BertModel

from .configuration_early_exit_deebert import EarlyExitConfigMixin
from .early_exit_classifier_deebert import EarlyExitClassifier
from .early_exit_deebert import EarlyExitBackbone


@strict
class DeeBertConfig(EarlyExitConfigMixin, BertConfig):
    """
    Configuration of BERT with off-ramps: that of [`~transformers.BertConfig`] and the fields of
    [`EarlyExitConfigMixin`].

    ```python
    >>> from transformers_deebert import DeeBertConfig

    >>> DeeBertConfig(num_hidden_layers=6, off_ramp_pooling="mean").off_ramp_pooling
    'mean'

    ```
    """

    model_type = "deebert"
    backbone_type = "bert"
    other_layouts = True
    other_types = ("elasticbert",)


class DeeBertModel(EarlyExitBackbone, BertModel):
    """BERT with off-ramps, without a head behind the last layer. See [`EarlyExitModelOutput`]."""

    config: DeeBertConfig


class DeeBertForSequenceClassification(EarlyExitClassifier, BertForSequenceClassification):
    """BERT with off-ramps for classification (DeeBERT, Xin et al., ACL 2020). See
    [`EarlyExitSequenceClassifierOutput`]."""

    config: DeeBertConfig
    backbone_class = DeeBertModel

    def classify(self, hidden, mask):
        return self.classifier(self.dropout(self.bert.pooler(hidden)))
