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

from ...checks import check_in_pytorch, has_vocabulary
from ...families import find_family_of
from ...folders import check_new_folder, whole_folder
from ...models.configuration_early_exit_deebert import class_names
from ...models.exit_criteria_deebert import is_single_label
from ...models.exit_scores_deebert import find_score
from ..exported_folder import write_config
from .graph import skip_exit
from .quantization import quantize_layers
from .segments import export_segment, exportable, first_segment
from .single_file import THRESHOLD, SingleFile
from .thresholds import SINGLE_FILE, criterion_of, default_thresholds


logger = logging.get_logger(__name__)

OPSETS = range(18, 24)
DTYPES = ("float32", "int8")
LARGEST_FILE = 2**31 - 2**24  # bytes of weights; a protocol buffer may have 2 GB


def export_onnx(
    model_or_checkpoint: PreTrainedModel | str | os.PathLike,
    folder: str | os.PathLike,
    single_file: bool = True,
    segments: bool | None = None,
    opset: int = 20,
    tokenizer: Any = None,
    dtype: str = "float32",
) -> Path:
    """
    Writes a classifier with off-ramps as ONNX files, with its configuration and, from a checkpoint, its
    tokenizer. `folder` appears whole or not at all.

    - `segment_01.onnx` … `segment_LL.onnx`: a layer and the exit behind it each, for any number of rows and tokens.
      [`OnnxEarlyExitModel`] runs them, with every exit criterion, and drops exited rows in between. The first takes
      `input_ids`, `attention_mask` and, where the family has them, `token_type_ids`, `(rows, width)` and int64; the
      others take `hidden`, float32 `(rows, width, hidden)`, the `states` that the one before gave, and
      `attention_mask`. They give `states` (but for the last) and, where there is an exit, `logits` `(rows, labels)`
      and `entropy` `(rows,)`, in nats, NaN where a logit is not finite. Those with an off-ramp take `evaluate`,
      bool `(1,)`: where it is false the exit is not computed, and `logits` and `entropy` are of no rows. Each row's
      first attended token must be in column 0. With an exit behind the embeddings these are `segment_00.onnx`.
    - `model.onnx`: all layers with the exits inside, for any number of rows and tokens, padded on either side. Takes
      `input_ids`, `attention_mask`, `token_type_ids` as above, `(rows, width)`, and `exit_threshold`, float32 of shape
      `(1,)`, or `(off-ramps,)` with one for each; 0 switches an off-ramp off. That input is optional: its default is
      the configuration's threshold, 0 (the full depth) without one. Gives `logits` `(rows, labels)` and `exit_layer`,
      int64 `(rows,)`. Exited rows are dropped, and so is padding that no active row needs; layers behind the last exit
      are not computed, nor are off-ramps whose threshold is 0. Thresholds are of the score of the configuration's
      `exit_criterion`, with its patience, or of the entropy. Any ONNX Runtime can run it; nothing of this library is
      needed.
    - `onnx.json`: the files, their inputs, opset and versions, exit layers, labels, score and patience of
      `model.onnx`.
    - `config.json`, with the stock `model_type`, which other libraries know, and the exits' fields besides.

    The configuration's `off_ramp_temperatures` are part of the graphs. Weights above 2 GB are in a file
    of their own, `model.onnx.data`.

    Args:
        model_or_checkpoint (`PreTrainedModel`, `str` or `os.PathLike`):
            An early-exit classifier, or its folder or repository on the Hub. It stays as it is: a copy is exported.
        folder (`str` or `os.PathLike`):
            To write; must not exist, or be empty.
        single_file (`bool`, *optional*, defaults to `True`): Whether to write `model.onnx`.
        segments (`bool`, *optional*):
            Whether to write the segments; by default where off-ramps read their own layer alone, which all kinds but
            `off_ramp_context="past"` do.
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
            that holds files; nothing to write; for `single_file`, a model that does not choose one of several classes;
            for `segments`, a model with `off_ramp_context="past"`.
    """
    if isinstance(opset, bool) or not isinstance(opset, int) or opset not in OPSETS:
        raise ValueError(f"`opset` must be an integer from {OPSETS[0]} to {OPSETS[-1]}, got {opset!r}.")
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be {' or '.join(repr(name) for name in DTYPES)}, got {dtype!r}.")
    if not (single_file or segments is not False):
        raise ValueError("`single_file` and `segments` are both False: nothing would be written, set one to True.")
    folder = Path(folder).absolute()
    check_new_folder("folder", folder)
    model, own_tokenizer = load(model_or_checkpoint)
    tokenizer = own_tokenizer if tokenizer is None else tokenizer
    if single_file:
        check_single_file(model)
    if segments is None and model.config.off_ramp_context == "past" and single_file:
        logger.warning(
            "Off-ramps read vectors of earlier layers (`off_ramp_context` is 'past'): no segments are written."
        )
        segments = False
    segments = segments is not False
    if segments and model.config.off_ramp_context == "past":
        raise ValueError(
            "`segments` cannot be written: with `off_ramp_context` 'past' off-ramps read vectors of earlier layers, "
            "which segments do not hand on: write `model.onnx` alone (`segments=False`)."
        )
    if dtype == "int8":
        warn_of_defaults(model.config)
    model = exportable(model)
    with whole_folder(folder) as whole:
        graphs = make_graphs(model, single_file, segments, opset, dtype)
        notes = [write_graph(graph, whole / name) for name, graph in graphs]
        write_notes(model, notes, opset, dtype, whole)
        write_config(model.config, whole)
        if tokenizer is not None:
            tokenizer.save_pretrained(whole)
    return folder


def load(model_or_checkpoint: Any) -> tuple[Any, Any]:
    """The model, and the tokenizer of a checkpoint that has one."""
    if not isinstance(model_or_checkpoint, (str, os.PathLike)):
        check_in_pytorch("model_or_checkpoint", model_or_checkpoint)
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


def check_single_file(model: Any) -> None:
    """Raises `ValueError` for models that cannot be one file with the exits inside."""
    config = model.config
    if not is_single_label(config):
        raise ValueError(
            "`single_file` is True, but its exits need a model that chooses one of several classes, this one has "
            f"num_labels={config.num_labels} and problem_type={config.problem_type!r}: set it to False, segments have "
            "no such limit."
        )
    if config.exit_layer is not None:
        logger.warning(
            f"`config.exit_layer` ({config.exit_layer}) is not part of `model.onnx`, which knows thresholds: without "
            f"`{THRESHOLD}` it runs the full depth."
        )


def warn_of_defaults(config: Any) -> None:
    """Warns of a default threshold, which int8 takes along to other scores."""
    name = "early_exit_entropy" if config.exit_criterion is None else "exit_criterion"
    value = getattr(config, name)
    threshold = value["threshold"] if name == "exit_criterion" else value
    if any(threshold) if isinstance(threshold, (list, tuple)) else threshold:
        logger.warning(
            f"The configuration's `{name}` ({value}) goes along, but layers in int8 give other scores: if its "
            "threshold was chosen in float32, choose it again, with `collect_exits` of the `OnnxEarlyExitModel` and "
            "`pick_threshold`."
        )


def make_graphs(
    model: Any, single_file: bool, segments: bool, opset: int, dtype: str
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """File names and graphs, one at a time."""
    *off_ramp_layers, depth = model.exit_layers
    criterion = criterion_of(model.config.early_exit_entropy, model.config.exit_criterion)
    score = find_score(criterion.score) if single_file else None
    flats = {}
    for layer in range(first_segment(model), depth + 1):
        flat = export_segment(model, layer, opset, score)
        flats[layer] = quantize_layers(flat) if dtype == "int8" else flat
        if segments:
            segment = flats[layer]
            if single_file:
                segment = onnx.ModelProto()
                segment.CopyFrom(flats[layer])
            if layer == depth:
                del segment.graph.output[0]  # the states
            yield f"segment_{layer:02d}.onnx", skip_exit(segment) if layer in off_ramp_layers else segment
        if not single_file:
            del flats[layer]
    if single_file:
        default = default_thresholds(criterion, criterion.score, criterion.patience)
        yield SINGLE_FILE, SingleFile(flats, model.exit_layers, criterion.patience, default).make()


def write_graph(graph: onnx.ModelProto, path: Path) -> dict[str, Any]:
    """Writes a graph, weights that are too large for one file beside it, and returns what is noted of it."""
    graph.producer_name, graph.producer_version = "transformers-deebert", version("transformers-deebert")
    noted = {
        "file": path.name,
        "inputs": [value.name for value in graph.graph.input],
        "outputs": [value.name for value in graph.graph.output],
        "ir_version": graph.ir_version,
    }
    if sum(map(len, weights_of(graph.graph))) > LARGEST_FILE:
        data = f"{path.name}.data"
        onnx.save(graph, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data)
        noted["data"] = data
    else:
        onnx.save(graph, path)
    onnx.checker.check_model(path, full_check=path.name == SINGLE_FILE)
    return noted


def weights_of(graph: onnx.GraphProto) -> Iterator[bytes]:
    """The contents of all initializers, those in branches included."""
    for tensor in graph.initializer:
        yield tensor.raw_data
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from weights_of(attribute.g)


def write_notes(model: Any, files: list[dict[str, Any]], opset: int, dtype: str, folder: Path) -> None:
    """`onnx.json`: what is needed to run the files without this library."""
    config = model.config
    criterion = criterion_of(config.early_exit_entropy, config.exit_criterion)
    known = {"score": criterion.score, "patience": criterion.patience}
    single = [entry | known for entry in files if entry["file"] == SINGLE_FILE]
    notes = {
        "library": "transformers-deebert",
        "version": version("transformers-deebert"),
        "model_type": config.backbone_type,
        "opset": opset,
        "dtype": dtype,
        "layers": config.num_hidden_layers,
        "exit_layers": config.exit_layers,
        "labels": class_names(config),
        "max_tokens": model.max_tokens(),
        "off_ramp_temperatures": config.off_ramp_temperatures,
        "segments": [entry for entry in files if entry["file"] != SINGLE_FILE],
        "single_file": single[0] if single else None,
    }
    (folder / "onnx.json").write_text(json.dumps(notes, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
