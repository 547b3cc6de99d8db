"""Tables in the docs against what they speak of."""

import ast
import inspect
import re
from pathlib import Path

import pytest
from conftest import ENCODERS

from transformers_deebert.families import FAMILIES


DOCS = Path(__file__).parents[1] / "docs"


def code_lines(source):
    """Lines of code without imports, docstrings, comments and blank lines."""
    skipped = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node = node.body[0]
        elif not isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        skipped.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(number not in skipped and not re.match(r"\s*(#|$)", line) for number, line in lines)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.config.backbone_type)
def test_the_table_of_families(family):
    row = next(
        line for line in (DOCS / "families.md").read_text().splitlines() if f"(`{family.config.model_type}`)" in line
    )
    _, _, classes, lines, _, attention, _ = (cell.strip() for cell in row.split("|"))
    assert family.config.__name__.removesuffix("Config") in classes
    assert int(lines) == code_lines(inspect.getsource(inspect.getmodule(family.model)))
    assert tuple(name for name in attention.split(", ") if name in ("sdpa", "eager")) == (
        ENCODERS[family.config.backbone_type].attentions
    )
