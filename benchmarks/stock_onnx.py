"""The stock class in ONNX Runtime, with every advantage that the export of the early-exit models has."""

import copy
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

from transformers_deebert.inference.onnx.model import session_options
from transformers_deebert.inference.onnx.quantization import quantize_layers
from transformers_deebert.inference.onnx.segments import export_module


INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class StockLogits(torch.nn.Module):
    """
    A stock classifier with the same arguments in every family.

    Args:
        model (`PreTrainedModel`): Of a stock class.
        additive (`bool`, *optional*, defaults to `False`): Whether to make the mask to add to the scores here.
    """

    def __init__(self, model: Any, additive: bool = False):
        super().__init__()
        self.model = model
        self.additive = additive
        self.takes_segments = "token_type_ids" in model.forward.__code__.co_varnames

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        mask = attention_mask
        if self.additive:
            mask = (1.0 - mask[:, None, None].float()) * torch.finfo(torch.float32).min
        segments = {"token_type_ids": token_type_ids} if self.takes_segments else {}
        return self.model(input_ids=input_ids, attention_mask=mask, **segments).logits


def export_stock(stock: Any, path: Path, dtype: str = "float32", one_row: bool = False) -> None:
    """
    Writes the stock class at full depth, by the exporter, attention, mask and quantisation that write the exits.

    Args:
        stock (`PreTrainedModel`): Of a stock class; it stays as it is.
        path (`Path`): The file.
        dtype (`str`): `"float32"` or `"int8"`.
        one_row (`bool`): For one row of any width, instead of any number of rows.
    """
    stock = copy.deepcopy(stock)
    stock.set_attn_implementation("eager")
    takes_masks = hasattr(sys.modules[type(stock).__module__], "create_bidirectional_mask")
    module = StockLogits(stock, additive=takes_masks and "layer_types" not in stock.config)
    mask = torch.ones(1 if one_row else 2, 8, dtype=torch.long)
    mask[-1, 5:] = 0
    inputs = dict(zip(INPUTS, [torch.ones_like(mask), mask, torch.zeros_like(mask)], strict=True))
    dynamic = {1: "width"} if one_row else {0: "rows", 1: "width"}
    graph = export_module(module, inputs, INPUTS, ["logits"], dict.fromkeys(INPUTS, dynamic), 20)
    onnx.save(quantize_layers(graph, "logits") if dtype == "int8" else graph, path)


def open_session(path: Path, threads: int, spinning: bool = False) -> onnxruntime.InferenceSession:
    """A session whose threads sleep while they wait, unless they are to spin, ONNX Runtime's default."""
    options = session_options(threads)
    if spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    # On the CPU the fused operator is slower than its parts, for the stock model too.
    return onnxruntime.InferenceSession(os.fspath(path), options, disabled_optimizers=["SkipLayerNormFusion"])


def run_session(session: Any, arrays: list[dict[str, np.ndarray]], **settings: np.ndarray) -> list[list[np.ndarray]]:
    """What a session answers to each batch; inputs that it does not take are left out."""
    names = {value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())}
    return [
        session.run(None, {name: array for name, array in (batch | settings).items() if name in names})
        for batch in arrays
    ]
