"""Registration of the families with transformers and PEFT."""

from transformers import (
    CONFIG_MAPPING,
    TOKENIZER_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .families import FAMILIES
from .models.configuration_early_exit_deebert import EarlyExitConfigMixin
from .models.pipeline_deebert import EarlyExitTextClassificationPipeline
from .peft_tables import register_with_peft


class HiddenCustomPipelines:
    """
    The `custom_pipelines` of a configuration: kept, and saved again, but `pipeline()` sees none of them. It would
    demand trust in a checkpoint's copy of code that is installed here.
    """

    def __get__(self, config, owner=None) -> dict:
        return {}

    def __set__(self, config, value) -> None:
        vars(config)["custom_pipelines"] = value


def register() -> None:
    """Registers all families with the Auto classes and PEFT, and the pipeline; repeating it changes nothing."""
    for config, model, classifier in FAMILIES:
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoModelForSequenceClassification.register(config, classifier, exist_ok=True)
        # Old checkpoints do not name the tokenizer that they need; the family's own knows about segments.
        tokenizer = TOKENIZER_MAPPING[CONFIG_MAPPING[config.backbone_type]]
        AutoTokenizer.register(config, tokenizer_class=tokenizer, exist_ok=True)
        # Saved checkpoints carry their code.
        config.register_for_auto_class()
        model.register_for_auto_class("AutoModel")
        classifier.register_for_auto_class("AutoModelForSequenceClassification")
    EarlyExitConfigMixin.custom_pipelines = HiddenCustomPipelines()  # type: ignore[attr-defined]
    # In place of `register_pipeline`, which would announce on every import that the task was there before.
    PIPELINE_REGISTRY.supported_tasks["text-classification"]["impl"] = EarlyExitTextClassificationPipeline
    register_with_peft()
