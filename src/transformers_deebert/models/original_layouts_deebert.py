"""Checkpoints that other early-exit implementations wrote, read as checkpoints of this one."""

import re

import torch
from transformers import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME, cached_file, logging


logger = logging.get_logger(__name__)

# Arguments of `from_pretrained` that say where a checkpoint is.
PLACE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
# DeeBERT, and BERxiT, whose encoders call off-ramps highways: L of them, of which the last was never consulted.
HIGHWAY = re.compile(r"\.encoder\.highway\.(\d+)\.(pooler\.dense|classifier)\.(weight|bias)$")
# PABEE and ElasticBERT: one linear layer for each of the L layers; the last is the model's own head.
CLASSIFIERS = re.compile(r"^classifiers\.(\d+)\.(weight|bias)$")
# ElasticBERT: a pooler for each layer.
POOLERS = re.compile(r"\.encoder\.pooler\.(\d+)\.dense\.(weight|bias)$")
ELASTIC = "elasticbert."
# BERxiT: every tensor of the backbone a second time, and a classifier that learned when to exit.
DUPLICATES, LEARNED_EXIT = "core.", ".lte_classifier."


def find_original_tensors(name, model_type: str, **kwargs) -> dict[str, torch.Tensor] | None:
    """
    The tensors of a checkpoint in one of the layouts that [`modern_tensors`] knows; `None` for any other checkpoint.
    A pickled file is read with `weights_only=True`.

    Args:
        name (`str` or `os.PathLike`): Repository on the Hub or folder.
        model_type (`str`): The early-exit type; a checkpoint of that type is none of the others.
        kwargs: Those of `from_pretrained` that say where the repository is.
    """
    try:
        config, _ = PreTrainedConfig.get_config_dict(name, **kwargs)
    except OSError:
        return None  # loading goes on and says what is missing
    if config.get("model_type") == model_type:
        return None
    place = {key: kwargs[key] for key in PLACE if kwargs.get(key) is not None}
    for file in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        try:
            path = cached_file(name, file, **place)
        except OSError:
            continue
        names = load_state_dict(path, map_location="meta", weights_only=True)
        return load_state_dict(path, weights_only=True) if is_original(names) else None
    return None


def is_original(names) -> bool:
    """Whether a checkpoint with tensors of these names has one of the known layouts."""
    return any(name.startswith(ELASTIC) or HIGHWAY.search(name) or CLASSIFIERS.search(name) for name in names)


def modern_tensors(tensors: dict[str, torch.Tensor], prefix: str, num_layers: int) -> dict[str, torch.Tensor]:
    """
    Renames the tensors of DeeBERT (Xin et al., 2020), BERxiT (Xin et al., 2021), PABEE (Zhou et al., 2020) and
    ElasticBERT (Liu et al., 2022) checkpoints as this library names them.

    Args:
        tensors (`dict[str, torch.Tensor]`): As [`find_original_tensors`] found them.
        prefix (`str`): `base_model_prefix` of the model.
        num_layers (`int`): Number of its layers, L.

    Returns:
        `dict[str, torch.Tensor]`, without what has no place here: the L-th, never trained off-ramp of DeeBERT, the
        learned exit rule of BERxiT, position indices and duplicates.
    """
    modern = {}
    left_out = set()
    for name, tensor in tensors.items():
        if name.startswith(ELASTIC):
            name = f"{prefix}.{name.removeprefix(ELASTIC)}"
        if name.startswith(DUPLICATES) or name.endswith("position_ids"):
            continue
        if LEARNED_EXIT in name:
            left_out.add((logging.WARNING, "its learned exit rule: here rows leave by entropy"))
        elif match := HIGHWAY.search(name):
            layer, part, kind = int(match[1]), match[2], match[3]
            if layer < num_layers - 1:
                modern[f"{prefix}.off_ramps.{layer}.{part}.{kind}"] = tensor
            else:
                reason = "the model's own head answers there"
                left_out.add((logging.INFO, f"the off-ramp behind layer {layer + 1}: {reason}"))
        elif match := POOLERS.search(name):
            layer, kind = int(match[1]), match[2]
            place = f"off_ramps.{layer}.pooler" if layer < num_layers - 1 else "pooler"
            modern[f"{prefix}.{place}.dense.{kind}"] = tensor
        elif match := CLASSIFIERS.search(name):
            layer, kind = int(match[1]), match[2]
            last = layer == num_layers - 1
            modern[f"classifier.{kind}" if last else f"{prefix}.off_ramps.{layer}.classifier.{kind}"] = tensor
        else:
            modern[name] = tensor
    share_pooler(modern, prefix)
    if any(HIGHWAY.search(name) for name in tensors):
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
    if prefix != "roberta" or "classifier.weight" not in tensors:
        return
    for kind in ("weight", "bias"):
        tensors[f"classifier.dense.{kind}"] = tensors.pop(f"{prefix}.pooler.dense.{kind}")
        tensors[f"classifier.out_proj.{kind}"] = tensors.pop(f"classifier.{kind}")
