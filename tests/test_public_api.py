"""What users import."""

import doctest
import importlib
import pkgutil
import subprocess
import sys

import pytest

import transformers_deebert


MODULES = [
    module.name
    for module in pkgutil.walk_packages(transformers_deebert.__path__, "transformers_deebert.")
    if not module.ispkg
]


def test_all_public_names_import_from_the_top():
    assert transformers_deebert.__all__ == sorted(transformers_deebert.__all__, key=str)
    for name in transformers_deebert.__all__:
        assert getattr(transformers_deebert, name) is not None
    assert set(transformers_deebert._LAZY) <= set(transformers_deebert.__all__) <= set(dir(transformers_deebert))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transformers_deebert.nothing  # noqa: B018


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


BARE = """
import sys, warnings
for name in ("accelerate", "datasets", "evaluate", "matplotlib", "peft", "pyarrow", "scipy", "sklearn"):
    sys.modules[name] = None
warnings.simplefilter("error")
# DeBERTa's stock module in older versions of transformers, which Python does not show by default.
warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", DeprecationWarning)
import logging
before = (logging.root.handlers[:], logging.root.level)
import transformers_deebert, torch
assert before == (logging.root.handlers[:], logging.root.level)
config = transformers_deebert.DeeBertConfig(
    vocab_size=9,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=8,
    off_ramps_trained=True,
)
model = transformers_deebert.DeeBertForSequenceClassification(config).eval()
output = model(input_ids=torch.ones(2, 3, dtype=torch.long), early_exit_entropy=9.0)
assert output.exit_layers.tolist() == [1, 1]
try:
    transformers_deebert.OffRampTrainer
except ImportError as error:
    assert "transformers-deebert[train]" in str(error), error
else:
    raise AssertionError
try:
    from transformers_deebert import nothing
except ImportError:
    print("fine")
"""


def test_import_and_inference_need_torch_and_transformers_only():
    result = subprocess.run([sys.executable, "-c", BARE], capture_output=True, text=True)
    assert result.stdout.strip() == "fine", result.stderr
