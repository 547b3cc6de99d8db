"""What users import."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import transformers_deebert


MODULES = [
    module.name
    for module in pkgutil.walk_packages(transformers_deebert.__path__, "transformers_deebert.")
    if not module.ispkg
]


def test_all_public_names_import_from_the_top():
    names = transformers_deebert.__all__
    assert len(set(names)) == len(names)
    assert len([name for name in names if not name.startswith("Dee")]) <= 30
    for name in names:
        assert getattr(transformers_deebert, name) is not None
    assert set(names) <= set(dir(transformers_deebert))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        transformers_deebert.nothing  # noqa: B018


@pytest.mark.parametrize(
    ("name", "module"), [(name, module) for module, names in transformers_deebert._MOVED.items() for name in names]
)
def test_names_that_moved(name, module):
    with pytest.warns(
        FutureWarning, match=rf"{name}` will be removed: import it from `transformers_deebert.{module}`"
    ):
        old = getattr(transformers_deebert, name)
    assert old is getattr(importlib.import_module(f"transformers_deebert.{module}"), name)


ROOMS = ("models", "inference", "analysis", "hub", "training", "workflow", "cli")  # imports go to the left


def test_imports_go_one_way():
    root = Path(transformers_deebert.__path__[0])
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text())):  # inside functions as well
            if not isinstance(node, ast.ImportFrom) or not node.level or room not in ROOMS:
                continue
            package = path.relative_to(root).parts[:-1]
            target = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            if target[0] in ROOMS:
                assert ROOMS.index(target[0]) <= ROOMS.index(room), f"{path} imports {'.'.join(target)}"


def test_extras_bring_what_is_imported():
    """Packages that a room imports are among those of the extras that its names ask for, and each of these is used."""
    root = Path(transformers_deebert.__path__[0])
    extras = {
        requirement.split(";")[0].strip().partition(">")[0]
        for requirement in metadata.requires("transformers-deebert")
        if "extra == 'analysis'" in requirement.replace('"', "'")
    }
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
            found |= {name.split(".")[0] for name in names}
    assert extras <= found


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
