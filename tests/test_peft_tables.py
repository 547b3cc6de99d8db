"""PEFT finds its default target modules in every family."""

import subprocess
import sys

import peft
import pytest
from conftest import make_batch, make_model, make_stock
from peft.tuners.tuners_utils import BaseTunerLayer

from transformers_deebert.families import FAMILIES


pytestmark = pytest.mark.gradients


def adapted(model):
    return {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}


def test_lora_without_target_modules(family):
    model = make_model(family)
    layers = model.config.num_hidden_layers
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS"))
    names = adapted(wrapped)
    assert len(names) in (1, 2, layers, 2 * layers)  # ALBERT's layers share their weights
    assert not [name for name in names if "off_ramps" in name]
    wrapped(**make_batch(family), labels=None).logits.sum().backward()
    trained = [name for name, one in wrapped.named_parameters() if one.grad is not None and one.grad.abs().sum() > 0]
    assert [name for name in trained if "lora_B" in name]


@pytest.mark.parametrize("config", [peft.LoraConfig, peft.IA3Config, peft.LoHaConfig])
@pytest.mark.parametrize("family", ["bert", "roberta", "deberta-v2"])
def test_the_same_modules_as_in_the_stock_model(family, config):
    model = make_model(family)
    stock = make_stock(model)
    ours = adapted(peft.get_peft_model(model, config(task_type="SEQ_CLS")))
    assert {name for name in ours if "off_ramps" not in name} == adapted(
        peft.get_peft_model(stock, config(task_type="SEQ_CLS"))
    )


@pytest.mark.slow
def test_peft_imported_later():
    script = """
import sys
import transformers_deebert
assert "peft" not in sys.modules
import transformers_deebert.registration as registration
registration.register()
import peft.utils.constants as constants
table = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
print(sorted(name for name in table if name in sys.argv[1:]))
"""
    types = sorted(family.config.model_type for family in FAMILIES)
    result = subprocess.run([sys.executable, "-c", script, *types], capture_output=True, text=True, timeout=120)
    assert result.stdout.strip() == str(types), result.stderr
