"""Classifiers with off-ramps as ONNX files."""

import json
import os
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import logging

from ...checks import has_vocabulary
from ...families import find_family_of
from ...folders import check_new_folder, whole_folder
from ...models.configuration_early_exit_deebert import class_names
from ...models.exit_criteria_deebert import is_single_label
from ...models.exit_loop_deebert import has_exits
from .folder import NOTES_FILE, SINGLE_FILE, segment_file
from .graph import nest_exits, skip_exit, use_value_tensors
from .quantization import quantize_layers
from .segments import export_every_exit, export_segment, exportable


logger = logging.get_logger(__name__)

OPSETS = range(18, 24)
DTYPES = ("float32", "int8")
LARGEST_FILE = 2**31 - 1  # bytes that a protocol buffer may have


def export_onnx(
    model_or_checkpoint: PreTrainedModel | str | os.PathLike,
    folder: str | os.PathLike,
    single_file: bool = True,
    segments: bool = True,
    opset: int = 20,
    tokenizer: Any = None,
    dtype: str = "float32",
) -> Path:
    """
    Writes a classifier with off-ramps as ONNX files, with its configuration and, from a checkpoint, its
    tokenizer. `folder` appears whole or not at all.

    - `segment_01.onnx` … `segment_LL.onnx`: a layer and the exit behind it each, for any number of rows and tokens.
      [`OnnxEarlyExitModel`] runs them, and drops rows that left in between. The first takes `input_ids`,
      `attention_mask` and, where the family has them, `token_type_ids`, `(rows, width)` and int64; the others take
      `hidden`, float32 `(rows, width, hidden)`, the `states` that the one before gave, and `attention_mask`. They give
      `states`, `logits` `(rows, labels)` and `entropy` `(rows,)`, in nats, NaN where a logit is not finite. All but
      the last take `consult`, bool `(1,)`: where it is false the exit is not computed, and `logits` and `entropy` are
      of no rows. Each row's first attended token must be in column 0.
    - `model.onnx`: all layers, and the exits as nested `If`, for one row of any length, padded or not. Takes
      `input_ids`, `attention_mask`, `token_type_ids` as above, `(1, width)`, and `early_exit_entropy`: thresholds in
      nats, float32 of shape `(1,)`, or `(L-1,)` with one for each off-ramp; 0 is the full depth. Gives `logits`
      `(1, labels)` and `exit_layer`, int64 `(1,)`: 1 … L. Layers behind the exit are not computed, nor are off-ramps
      whose threshold is 0. Any ONNX Runtime can run it; nothing of this library is needed.
    - `onnx.json`: the files, their inputs, opset and versions, number of layers, labels.

    The configuration's `off_ramp_temperatures` are part of the graphs; its default thresholds are not.

    Args:
        model_or_checkpoint (`PreTrainedModel`, `str` or `os.PathLike`):
            An early-exit classifier, or its folder or repository on the Hub. It stays as it is: a copy is exported.
        folder (`str` or `os.PathLike`):
            To write; must not exist, or be empty.
        single_file (`bool`, *optional*, defaults to `True`): Whether to write `model.onnx`.
        segments (`bool`, *optional*, defaults to `True`): Whether to write the segments.
        opset (`int`, *optional*, defaults to 20):
            Version of the ONNX operators, 18 … 23; ONNX Runtime 1.22 knows them up to 22.
        tokenizer (`PreTrainedTokenizer`, *optional*): To save beside; by default that of the checkpoint.
        dtype (`str`, *optional*, defaults to `"float32"`):
            `"int8"`: the layers' weights are 8-bit integers, one scale for each output channel, and states become so
            where they meet them (ONNX Runtime's dynamic quantisation); embedding tables, off-ramps and head stay in
            float32. States, and so entropies, are other ones then: choose the threshold again, by [`collect_exits`] of
            the [`OnnxEarlyExitModel`] (`batch_size=1`) and [`pick_threshold`]; a default in the configuration is
            warned of. The states of a batch share their scales, so a row's entropy depends a little on its batch
            mates.

    Returns:
        `Path` of the folder.

    Raises:
        ValueError: for a model that is no classifier with off-ramps; an opset out of range; another dtype; a folder
            that holds files; nothing to write; for `single_file`, a model that does not choose one of several classes,
            or whose weights exceed the 2 GB that one file can have.
    """
    if isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS:
        raise ValueError(f"`opset` must be an integer from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be {' or '.join(repr(name) for name in DTYPES)}, got {dtype!r}.")
    if not (single_file or segments):
        raise ValueError("`single_file` and `segments` are both False: nothing would be written, set one to True.")
    folder = Path(folder).absolute()
    check_new_folder("folder", folder)
    model, own_tokenizer = load(model_or_checkpoint)
    tokenizer = own_tokenizer if tokenizer is None else tokenizer
    if single_file:
        check_single_file(model)
    if dtype == "int8":
        tell_of_defaults(model.config)
    model = exportable(model)
    with whole_folder(folder) as whole:
        graphs = make_graphs(model, single_file, segments, opset, dtype)
        notes = [write_graph(graph, whole / name) for name, graph in graphs]
        write_notes(model, notes, opset, dtype, whole)
        model.config.to_json_file(whole / "config.json")  # without the code that `save_pretrained` takes along
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
    return folder


def load(model_or_checkpoint: Any) -> tuple[Any, Any]:
    """The model, and the tokenizer of a checkpoint that has one."""
    if not isinstance(model_or_checkpoint, (str, os.PathLike)):
        check_classifier(model_or_checkpoint)
        return model_or_checkpoint, None
    model = find_family_of(model_or_checkpoint).classifier.from_pretrained(model_or_checkpoint)
    try:
        tokenizer = AutoTokenizer.from_pretrained(model_or_checkpoint, config=model.config)
    except (OSError, ValueError, TypeError):
        tokenizer = None
    if tokenizer is None or not has_vocabulary(tokenizer):
        logger.warning("No tokenizer was found beside the checkpoint: add one to the exported folder.")
        tokenizer = None
    return model, tokenizer


def check_classifier(model: Any) -> None:
    """Raises `ValueError` for anything but a classifier with off-ramps in PyTorch."""
    if not has_exits(model):
        raise ValueError(
            f"`model_or_checkpoint` must be a classifier with off-ramps (`Dee…ForSequenceClassification`) or name its "
            f"checkpoint, got a `{type(model).__name__}`: see `from_backbone`."
        )
    if next(model.parameters(), None) is None:
        raise ValueError(f"`model_or_checkpoint` is a `{type(model).__name__}` without weights of its own.")
    if model.config.off_ramp_layers not in (None, list(range(1, model.config.num_hidden_layers))):
        raise ValueError(
            f"`model_or_checkpoint` has off-ramps behind the layers {model.config.off_ramp_layers} "
            "(`config.off_ramp_layers`): only models with one behind every layer can be exported."
        )


def check_single_file(model: Any) -> None:
    """Raises `ValueError` for models that cannot be one file with exits by entropy."""
    config = model.config
    if not is_single_label(config):
        raise ValueError(
            f"`single_file` is True, but its exits need a model that chooses one of several classes, this one has "
            f"num_labels={config.num_labels} and problem_type={config.problem_type!r}: set it to False."
        )
    size = 4 * sum(parameter.numel() for parameter in model.parameters())
    if size > LARGEST_FILE:
        raise ValueError(
            f"`single_file` is True, but the weights have {size / 2**30:.1f} GB in float32, and one file can have "
            "2 GB: set it to False."
        )


def tell_of_defaults(config: Any) -> None:
    """Warns of a default threshold, which int8 takes along to other entropies."""
    threshold = config.early_exit_entropy
    if any(threshold) if isinstance(threshold, (list, tuple)) else threshold:
        logger.warning(
            f"The configuration's `early_exit_entropy` ({threshold}) goes along, but layers in int8 "
            "give other entropies: if it was chosen in float32, choose it again, with `collect_exits` of the "
            "`OnnxEarlyExitModel` and `pick_threshold`."
        )


def make_graphs(
    model: Any, single_file: bool, segments: bool, opset: int, dtype: str
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """File names and graphs, one at a time."""
    layers = model.config.num_hidden_layers
    finish = quantize_layers if dtype == "int8" else lambda flat: flat
    if segments:
        for layer in range(1, layers + 1):
            flat = finish(export_segment(model, layer, opset))
            yield segment_file(layer), skip_exit(flat) if layer < layers else flat
    if single_file:
        yield SINGLE_FILE, nest_exits(finish(export_every_exit(model, opset)), layers)


def write_graph(graph: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Writes a graph and returns what is noted of it."""
    use_value_tensors(graph.graph)
    graph.producer_name, graph.producer_version = "transformers-deebert", version("transformers-deebert")
    onnx.save(graph, path)
    onnx.checker.check_model(path)
    return {
        "file": path.name,
        "inputs": [value.name for value in graph.graph.input],
        "outputs": [value.name for value in graph.graph.output],
        "ir_version": graph.ir_version,
    }


def write_notes(model: Any, files: list[dict[str, Any]], opset: int, dtype: str, folder: Path) -> None:
    """`onnx.json`: what somebody needs to know who runs the files without this library."""
    config = model.config
    notes = {
        "library": "transformers-deebert",
        "version": version("transformers-deebert"),
        "model_type": config.model_type,
        "opset": opset,
        "dtype": dtype,
        "layers": config.num_hidden_layers,
        "labels": class_names(config),
        "max_tokens": model.max_tokens(),
        "off_ramp_temperatures": config.off_ramp_temperatures,
        "segments": [entry for entry in files if entry["file"] != SINGLE_FILE],
        "single_file": next((entry for entry in files if entry["file"] == SINGLE_FILE), None),
    }
    (folder / NOTES_FILE).write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
