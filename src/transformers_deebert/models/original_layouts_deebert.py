"""Checkpoints that other early-exit implementations wrote, read as checkpoints of this one."""

import json
import re

import torch
from transformers.modeling_utils import load_state_dict
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where a checkpoint is.
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# DeeBERT, and BERxiT, whose encoders call off-ramps highways: L of them, of which the last was never evaluated.
HIGHWAY = re.compile(r"^(.*\.)?encoder\.highway\.(\d+)\.(pooler\.dense|classifier)\.(weight|bias)$")
# PABEE and ElasticBERT: one linear layer for each of the L layers; the last is the model's own head.
CLASSIFIERS = re.compile(r"^classifiers\.(\d+)\.(weight|bias)$")
# ElasticBERT: a pooler for each layer.
POOLERS = re.compile(r"^(.*\.)?encoder\.pooler\.(\d+)\.dense\.(weight|bias)$")
ELASTIC = "elasticbert."
# BERxiT: every tensor of the backbone a second time, and a classifier that learned when to exit.
DUPLICATE, LEARNED_EXIT = "core.", "encoder.lte_classifier."


def find_original_tensors(
    name, variant: str | None = None, use_safetensors: bool | None = None, **kwargs
) -> dict[str, torch.Tensor] | None:
    """
    The tensors of a checkpoint in one of the layouts that [`modern_tensors`] knows; `None` for any other checkpoint.
    A pickled file is read with `weights_only=True`.

    Args:
        name (`str` or `os.PathLike`): Repository on the Hub or folder.
        variant, use_safetensors: As for `from_pretrained`.
        kwargs: Those of `from_pretrained` that say where the repository is; others are ignored.

    Raises:
        ValueError: for a file that cannot be read.
    """
    place = {key: kwargs[key] for key in PLACE if kwargs.get(key) is not None}
    files = [] if use_safetensors is False else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]
    files += [] if use_safetensors else [WEIGHTS_NAME, WEIGHTS_INDEX_NAME]
    for file in files:
        if variant is not None:
            stem, ending = file.rsplit(".", 1)
            file = f"{stem}.{variant}.{ending}"
        try:
            path = cached_file(name, file, **place)
        except OSError:
            continue
        if not path.endswith(".json"):
            return read_tensors(path) if is_original(read_tensors(path, "meta")) else None
        with open(path, encoding="utf-8") as index:
            shards = json.load(index)["weight_map"]
        if not is_original(shards):
            return None
        parts = [read_tensors(cached_file(name, shard, **place)) for shard in sorted(set(shards.values()))]
        return {key: tensor for part in parts for key, tensor in part.items()}
    return None


def read_tensors(path: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of one file; of a pickled one, nothing but tensors."""
    try:
        tensors = load_state_dict(path, map_location=device, weights_only=True)
        return {key: tensor for key, tensor in tensors.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:  # whatever readers of damaged files raise
        raise ValueError(
            f"The weights in {path!r} cannot be read ({type(error).__name__}): the file is damaged, or holds more "
            "than tensors by name, which is all that is read from a pickled file (`weights_only=True`)."
        ) from error


def is_original(names) -> bool:
    """Whether a checkpoint with tensors of these names has one of the known layouts."""
    return any(name.startswith(ELASTIC) or HIGHWAY.search(name) or CLASSIFIERS.search(name) for name in names)


def modern_tensors(
    tensors: dict[str, torch.Tensor], prefix: str, num_layers: int, has_head: bool
) -> dict[str, torch.Tensor]:
    """
    Renames the tensors of DeeBERT (Xin et al., 2020), BERxiT (Xin et al., 2021), PABEE (Zhou et al., 2020) and
    ElasticBERT (Liu et al., 2022) checkpoints as this library names them.

    Args:
        tensors (`dict[str, torch.Tensor]`): As [`find_original_tensors`] found them.
        prefix (`str`): `base_model_prefix` of the model.
        num_layers (`int`): Number of its layers, L. PABEE and ElasticBERT trained every layer to be the last: fewer
            than theirs cut the model.
        has_head (`bool`): Whether the model is a classifier, not a base model.

    Returns:
        `dict[str, torch.Tensor]`, without what has no place here: the L-th, never trained off-ramp of DeeBERT, the
        learned exit rule of BERxiT, position indices and duplicates.
    """
    modern = {}
    left_out = set()
    for name, tensor in tensors.items():
        if name.startswith(ELASTIC):
            name = f"{prefix}.{name.removeprefix(ELASTIC)}"
        if name.startswith(DUPLICATE):
            name = f"{prefix}.{name.removeprefix(DUPLICATE)}"
        if name.endswith("position_ids"):
            continue
        if LEARNED_EXIT in name:
            left_out.add((logging.WARNING, "its learned exit rule: here rows leave by entropy"))
        elif match := HIGHWAY.search(name):
            place, layer, part, kind = match[1] or "", int(match[2]), match[3], match[4]
            if layer == num_layers - 1:
                reason = "the model's own head answers there"
                left_out.add((logging.INFO, f"the off-ramp behind layer {layer + 1}: {reason}"))
            else:  # one that is too many shows as superfluous
                modern[f"{place}off_ramps.{layer}.{part}.{kind}"] = tensor
        elif match := POOLERS.search(name):
            place, layer, kind = match[1] or "", int(match[2]), match[3]
            if layer < num_layers:
                owner = "pooler" if layer == num_layers - 1 else f"off_ramps.{layer}.pooler"
                modern[f"{place}{owner}.dense.{kind}"] = tensor
        elif match := CLASSIFIERS.search(name):
            layer, kind = int(match[1]), match[2]
            if layer < num_layers:
                owner = "classifier" if layer == num_layers - 1 else f"{prefix}.off_ramps.{layer}.classifier"
                modern[f"{owner}.{kind}"] = tensor
        else:
            modern[name] = tensor
    share_pooler(modern, prefix)
    if prefix == "roberta" and has_head:
        split_head(modern, prefix)
    for level, what in sorted(left_out):
        logger.log(level, "Of a checkpoint of another early-exit implementation was left out %s.", what)
    return modern


def share_pooler(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """PABEE's off-ramps read the one pooler of the model: here each gets a copy."""
    for name in [name for name in tensors if name.startswith(f"{prefix}.off_ramps.") and ".classifier." in name]:
        off_ramp, kind = name.split(".classifier.")
        # ALBERT's pooler is the dense layer itself.
        for pooler in (f"{prefix}.pooler.dense.{kind}", f"{prefix}.pooler.{kind}"):
            if pooler in tensors:
                tensors.setdefault(f"{off_ramp}.pooler.dense.{kind}", tensors[pooler].clone())


def split_head(tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """
    DeeBERT's RoBERTa has BERT's head: a pooler in the backbone and one linear layer. RoBERTa's own head is the same
    two layers in one module (and one more dropout in training).
    """
    for kind in ("weight", "bias"):
        for old, new in ((f"{prefix}.pooler.dense", "dense"), ("classifier", "out_proj")):
            if f"{old}.{kind}" in tensors:
                tensors[f"classifier.{new}.{kind}"] = tensors.pop(f"{old}.{kind}")
