"""PEFT adapters around or inside a model."""

import sys
from typing import Any

from torch import nn


def has_adapters(model: nn.Module) -> bool:
    """Whether PEFT wraps `model` (`get_peft_model`) or has put adapters into it (`add_adapter`)."""
    if "peft" not in sys.modules:
        return False
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, (PeftModel, BaseTunerLayer)) for module in model.modules())


def refuse_adapters(model: nn.Module) -> None:
    """Raises `ValueError` for adapters in a model whose off-ramps are to be trained."""
    if has_adapters(model):
        raise ValueError(
            "`model` has PEFT adapters, and a checkpoint of those would not hold the off-ramps: train it with "
            "`BackboneTrainer`, then `model.merge_and_unload()` with `OffRampTrainer` (after `add_adapter`: save the "
            "adapter, load it into the model as it was before with `PeftModel.from_pretrained`, and merge that)."
        )


def check_adapters_hold_all(model: Any) -> None:
    """Raises `ValueError` for parameters that train but are not saved: a checkpoint holds the adapters alone."""
    from peft import get_peft_model_state_dict

    adapters = [*model.peft_config]
    saved = {
        tensor.data_ptr()
        for adapter in adapters
        for tensor in get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False).values()
    }
    for name, parameter in model.named_parameters():
        in_adapter = any(f".{adapter}." in f"{name}." for adapter in adapters) or parameter.data_ptr() in saved
        if parameter.requires_grad and not in_adapter:
            raise ValueError(
                f"`model` has adapters, and its checkpoints hold nothing else, but {name!r} requires a gradient and "
                "would be lost: name its module in the `modules_to_save` of the adapter's configuration, or freeze it."
            )
