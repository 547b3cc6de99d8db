"""Model types of the early-exit families in PEFT's tables of default target modules."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from itertools import product
from types import ModuleType
from typing import Any

from .families import FAMILIES


TABLES = "peft.utils.constants"
# The projections of query and value, PEFT's usual choice, where they have other names than in BERT.
QUERY_AND_VALUE = {"distilbert": ["q_lin", "v_lin"], "modernbert": ["Wqkv"], "mpnet": ["q", "v"]}


def add_model_types(constants: Any) -> None:
    """
    Gives each early-exit family, in every table, what its stock family has there. Where that is missing and BERT has
    query and value, so has the family.
    """
    tables = [table for name, table in vars(constants).items() if name.endswith("_MODULES_MAPPING")]
    for table, (config, _, _) in product(tables, FAMILIES):
        modules = table.get(config.backbone_type)
        if modules is None and table.get("bert") == ["query", "value"]:
            modules = QUERY_AND_VALUE.get(config.backbone_type, ["query", "value"])
        if modules is not None:
            table.setdefault(config.model_type, modules)


class PeftTablesFinder(MetaPathFinder):
    """Extends PEFT's tables when PEFT is imported, so that neither import has to be the first."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != TABLES:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target))), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            add_model_types(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def register_with_peft() -> None:
    """Extends the tables now or, without importing it, once PEFT is imported; repeating it changes nothing."""
    if TABLES in sys.modules:
        add_model_types(sys.modules[TABLES])
    elif not any(isinstance(finder, PeftTablesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, PeftTablesFinder())
