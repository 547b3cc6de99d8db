"""Model types of the early-exit families in PEFT's tables of default target modules."""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .families import FAMILIES


TABLES = "peft.utils.constants"
# Attention's query and value, PEFT's usual choice, in the families that its tables leave out.
QUERY_AND_VALUE = {
    "albert": ["query", "value"],
    "camembert": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "electra": ["query", "value"],
    "modernbert": ["Wqkv"],
    "mpnet": ["q", "v"],
    "xlm-roberta": ["query", "value"],
}


def add_model_types(constants: Any) -> None:
    """
    Gives each early-exit family, in every table, what its stock family has there. Where that is missing and BERT has
    query and value, so has the family.
    """
    tables = [table for name, table in vars(constants).items() if name.endswith("_MODULES_MAPPING")]
    for config, _, _ in FAMILIES:
        for table in tables:
            usual = QUERY_AND_VALUE.get(config.backbone_type) if table.get("bert") == ["query", "value"] else None
            modules = table.get(config.backbone_type, usual)
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
