"""The families of encoders that can have off-ramps, and the way from any of their checkpoints to a classifier."""

from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from .models.modeling_deealbert import DeeAlbertConfig, DeeAlbertForSequenceClassification, DeeAlbertModel
from .models.modeling_deebert import DeeBertConfig, DeeBertForSequenceClassification, DeeBertModel
from .models.modeling_deecamembert import (
    DeeCamembertConfig,
    DeeCamembertForSequenceClassification,
    DeeCamembertModel,
)
from .models.modeling_deedeberta_v2 import (
    DeeDebertaV2Config,
    DeeDebertaV2ForSequenceClassification,
    DeeDebertaV2Model,
)
from .models.modeling_deedistilbert import (
    DeeDistilBertConfig,
    DeeDistilBertForSequenceClassification,
    DeeDistilBertModel,
)
from .models.modeling_deeelectra import DeeElectraConfig, DeeElectraForSequenceClassification, DeeElectraModel
from .models.modeling_deemodernbert import (
    DeeModernBertConfig,
    DeeModernBertForSequenceClassification,
    DeeModernBertModel,
)
from .models.modeling_deempnet import DeeMPNetConfig, DeeMPNetForSequenceClassification, DeeMPNetModel
from .models.modeling_deeroberta import DeeRobertaConfig, DeeRobertaForSequenceClassification, DeeRobertaModel
from .models.modeling_deexlm_roberta import (
    DeeXLMRobertaConfig,
    DeeXLMRobertaForSequenceClassification,
    DeeXLMRobertaModel,
)
from .models.original_layouts_deebert import PLACE, find_original_tensors


class Family(NamedTuple):
    """The classes of one family."""

    config: type[Any]
    model: type[Any]
    classifier: type[Any]


FAMILIES = (
    Family(DeeAlbertConfig, DeeAlbertModel, DeeAlbertForSequenceClassification),
    Family(DeeBertConfig, DeeBertModel, DeeBertForSequenceClassification),
    Family(DeeCamembertConfig, DeeCamembertModel, DeeCamembertForSequenceClassification),
    Family(DeeDebertaV2Config, DeeDebertaV2Model, DeeDebertaV2ForSequenceClassification),
    Family(DeeDistilBertConfig, DeeDistilBertModel, DeeDistilBertForSequenceClassification),
    Family(DeeElectraConfig, DeeElectraModel, DeeElectraForSequenceClassification),
    Family(DeeModernBertConfig, DeeModernBertModel, DeeModernBertForSequenceClassification),
    Family(DeeMPNetConfig, DeeMPNetModel, DeeMPNetForSequenceClassification),
    Family(DeeRobertaConfig, DeeRobertaModel, DeeRobertaForSequenceClassification),
    Family(DeeXLMRobertaConfig, DeeXLMRobertaModel, DeeXLMRobertaForSequenceClassification),
)


def find_family(model_type: str | None, name: str) -> Family:
    """The family of a plain or early-exit `model_type`; raises `ValueError` for others, naming the checkpoint."""
    for family in FAMILIES:
        if model_type in (family.config.backbone_type, family.config.model_type, *family.config.other_types):
            return family
    supported = ", ".join(family.config.backbone_type for family in FAMILIES)
    raise ValueError(
        f"The checkpoint {name!r} has the model type {model_type!r}, which cannot have off-ramps: choose a checkpoint "
        f"of one of the types {supported}."
    )


def find_family_of(name, **kwargs) -> Family:
    """The family of a checkpoint on the Hub or in a folder; raises `ValueError` for other families."""
    place = {key: kwargs[key] for key in PLACE if key in kwargs}
    config, _ = PreTrainedConfig.get_config_dict(name, **place)
    if not config:
        raise ValueError(f"The checkpoint {str(name)!r} has no configuration: add its config.json.")
    model_type = config.get("model_type")
    if model_type is None:
        # The original DeeBERT code wrote configurations without a type.
        tensors = find_original_tensors(name, **kwargs) or {}
        for family in FAMILIES:
            if any(key.startswith(f"{family.classifier.base_model_prefix}.") for key in tensors):
                return family
    return find_family(model_type, str(name))


def from_backbone(pretrained_model_name_or_path, **kwargs):
    """
    Loads any checkpoint of a supported family as a sequence classifier with off-ramps, ready for stage 1 (or, from a
    fine-tuned checkpoint, for stage 2).

    Where a checkpoint of a RoBERTa-like family or of MPNet brings a pre-trained pooler, which its stock classifier
    does not use, the off-ramps start from it, as those of BERT and ALBERT do.

    Args:
        pretrained_model_name_or_path (`str` or `os.PathLike`):
            Repository on the Hub or folder of a plain or an early-exit checkpoint.
        kwargs:
            As for `PreTrainedModel.from_pretrained`, above all `num_labels` and fields of the configuration such as
            `off_ramp_pooling="mean"`.

    Returns:
        The family's `Dee…ForSequenceClassification`.

    Raises:
        ValueError: for a checkpoint of another family, naming the supported ones.

    ```python
    >>> from transformers_deebert import from_backbone

    >>> model = from_backbone("microsoft/deberta-v3-small", num_labels=3, off_ramp_pooling="mean")  # doctest: +SKIP

    ```
    """
    family = find_family_of(pretrained_model_name_or_path, **kwargs)
    want_info = kwargs.pop("output_loading_info", False)
    model, info = family.classifier.from_pretrained(pretrained_model_name_or_path, output_loading_info=True, **kwargs)
    starts = any(key.endswith("pooler.dense.weight") for key in info["unexpected_keys"])
    if starts and not model.config.off_ramps_trained:
        backbone = family.model.from_pretrained(pretrained_model_name_or_path, **kwargs)
        model.base_model.off_ramps.load_state_dict(backbone.off_ramps.state_dict())
    return (model, info) if want_info else model
