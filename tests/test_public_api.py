"""What users import."""

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
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
ROOT = Path(transformers_deebert.__path__[0])


def imports_of(path: Path) -> set[str]:
    """Packages and, with a leading dot, modules of the library that a file imports, inside functions as well."""
    found, package = set(), path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name.split(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            start = ["", *package[: len(package) - node.level + 1], *filter(None, [node.module])]
            found |= {".".join([*start, name.name]) for name in node.names} | {".".join(start)}
    return found


def test_imports_go_one_way_without_circles():
    files = {
        ".".join(["", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__"): path
        for path in ROOT.rglob("*.py")
    }
    reached = {name: imports_of(path) & files.keys() - {name} for name, path in files.items()}
    for middle in files:  # whatever a module imports, and what that imports
        for name in files:
            if middle in reached[name]:
                reached[name] = reached[name] | reached[middle]
    for name, others in reached.items():
        assert name not in others, f"{name} imports itself through {[one for one in others if name in reached[one]]}"
        room = name.split(".")[1] if name else ""
        later = ROOMS[ROOMS.index(room) + 1 :] if room in ROOMS else ()
        assert not [one for one in others if one and one.split(".")[1] in later], f"{name} reaches {others}"


def test_extras_bring_what_is_imported():
    """Each package of an extra is imported, and each package that is imported comes with an extra or transformers."""
    tomllib = pytest.importorskip("tomllib")  # Python 3.11; the installed metadata may be those of an older checkout
    project = tomllib.loads(Path(__file__).parents[1].joinpath("pyproject.toml").read_text())["project"]
    extras = {
        extra: {requirement.partition(">")[0] for requirement in project["optional-dependencies"][extra]}
        for extra in ("train", "analysis", "onnx")
    }
    found = set().union(*(imports_of(path) for path in ROOT.rglob("*.py")))
    brought = set().union(*extras.values()) - {"onnxscript"}  # torch's exporter imports it
    assert brought <= found
    others = {name for name in found if name and name[0] != "."} - sys.stdlib_module_names - brought
    of_these = {"huggingface_hub", "numpy", "pyarrow", "safetensors", "torch", "tqdm", "transformers", "typer"}
    assert others <= {*of_these, "evaluate", "peft"}  # where they are installed


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
