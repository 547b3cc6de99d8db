"""The stock model that an early-exit model is measured against."""

from typing import Any

from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from ..checks import check_in_pytorch
from ..models.configuration_early_exit_deebert import EarlyExitConfigMixin
from ..models.exit_loop_deebert import has_exits


def stock_model(model: PreTrainedModel) -> PreTrainedModel:
    """
    The stock class of the family with the same weights, to time against: same device, dtype, mode and attention
    implementation.

    It shares the model's tensors, so that neither of the two has the better place in memory or cache, and so that a
    second model takes no second memory: to train one of them, make a deep copy first.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier.

    Returns:
        `PreTrainedModel`: such as `BertForSequenceClassification`; its logits are those of `model` at full depth.

    Raises:
        `ValueError`: for a model without off-ramps, a base model without a head, or an exported one.
    """
    check_off_ramps(model)
    check_in_pytorch("model", model)
    stock_config = CONFIG_MAPPING[model.config.backbone_type]
    own = {*EarlyExitConfigMixin.__dataclass_fields__, "auto_map", "custom_pipelines", "architectures"}
    settings = {name: value for name, value in model.config.to_dict().items() if name not in own}
    config = stock_config.from_dict(settings | {"model_type": stock_config.model_type})
    stock = AutoModelForSequenceClassification.from_config(
        config, attn_implementation=model.config._attn_implementation
    )
    weights = {name: tensor for name, tensor in model.state_dict().items() if "off_ramps." not in name}
    stock.load_state_dict(weights, assign=True)
    # Buffers that are not saved, such as rotary frequencies, may have another dtype than the weights.
    for name, _ in list(stock.named_buffers()):
        place, _, leaf = name.rpartition(".")
        setattr(stock.get_submodule(place), leaf, model.get_buffer(name))
    return stock.train(model.training)


def check_off_ramps(model: PreTrainedModel) -> None:
    """Raises `ValueError` for anything but a classifier with off-ramps."""
    if not hasattr(model, "exit_layers"):
        raise ValueError(f"`model` is a `{type(model).__name__}`, which has no off-ramps: see `from_backbone`.")
    if not has_exits(model):
        raise ValueError(
            f"`model` is a `{type(model).__name__}`, a base model without a head: pass the family's "
            "`Dee…ForSequenceClassification`."
        )


def token_limit(model: Any) -> int | None:
    """Number of tokens that a classifier's position table holds, `None` without such a table."""
    return model.max_tokens()
