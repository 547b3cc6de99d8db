"""What travels to the Hub with a checkpoint can be read there: files of one folder that import only each other."""

import ast
import sys
from pathlib import Path

import pytest

from transformers_deebert import models


FILES = sorted(path for path in Path(models.__file__).parent.glob("*.py") if path.name != "__init__.py")
THIRD_PARTY = {"torch", "transformers", "huggingface_hub"}
STANDARD = sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports(path):
    text = path.read_text()
    assert path.stem.endswith("deebert") or path.stem.startswith("modeling_dee")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1
            assert node.module, "`from . import name` does not travel"
            assert "." not in node.module
            assert node.col_offset == 0
            assert (path.parent / f"{node.module}.py").exists()
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] in THIRD_PARTY | STANDARD
        elif isinstance(node, ast.Import):
            assert all(name.name.split(".")[0] in THIRD_PARTY | STANDARD for name in node.names)
    assert "from __future__" not in text
    assert not any(line.strip().startswith("from .") and not line.startswith("from .") for line in text.splitlines())
