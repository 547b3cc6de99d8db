"""From checkpoints of other early-exit implementations to checkpoints of this one."""

import logging
import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedConfig

from ..checks import has_vocabulary
from ..families import find_family_of
from ..folders import whole_folder
from ..models.original_layouts_deebert import find_original_tensors


logger = logging.getLogger(__name__)


def convert_checkpoint(
    old: str | os.PathLike, new: str | os.PathLike, swap_labels: tuple[int, int] | None = None, **kwargs: Any
) -> Any:
    """
    Writes a checkpoint of DeeBERT (Xin et al., 2020; also Hugging Face's former research project), BERxiT, PABEE or
    ElasticBERT in this library's form, with its tokenizer. `new` appears whole or not at all.

    Args:
        old (`str` or `os.PathLike`):
            Repository on the Hub or folder.
        new (`str` or `os.PathLike`):
            Folder to write; must not exist, or be empty.
        swap_labels (`tuple[int, int]`, *optional*):
            Two class indices to exchange in all exits. The original code trained RoBERTa on MNLI with labels 1 and 2
            exchanged.
        kwargs:
            As for `PreTrainedModel.from_pretrained`, for example `revision`.

    Returns:
        The converted model.

    Raises:
        ValueError: for a checkpoint in none of these layouts, a folder that holds files, labels out of range.
    """
    new = Path(new)
    check_destination(new)
    family = find_family_of(old, **kwargs)
    if find_original_tensors(old, **kwargs) is None:
        raise ValueError(
            f"`old` ({str(old)!r}) is in none of the layouts that can be converted (DeeBERT, BERxiT, PABEE, "
            "ElasticBERT): `from_backbone` loads plain checkpoints, and those of this library need no conversion."
        )
    model = family.classifier.from_pretrained(old, **kwargs)
    if swap_labels is not None:
        exchange_labels(model, *swap_labels)
    elif family.config.backbone_type == "roberta" and model.config.num_labels == 3:
        logger.warning(
            "The original DeeBERT code trained RoBERTa on MNLI with labels 1 and 2 exchanged. If this is such a "
            "model, convert it with `swap_labels=(1, 2)` (`--swap-labels 1 2`)."
        )
    save_whole(new, model, load_tokenizer(old, model.config, **kwargs))
    return model


def check_destination(new: Path) -> None:
    """Raises `ValueError` for a place where no new folder can appear."""
    if new.is_symlink():
        raise ValueError(f"`new` ({str(new)!r}) is a link: name the folder itself.")
    if new.exists() and (not new.is_dir() or any(new.iterdir()) or new.samefile(Path.cwd())):
        raise ValueError(
            f"`new` ({str(new)!r}) exists and is not an empty folder, or is the current one: choose another place."
        )
    if ".." in new.parts:
        raise ValueError(f"`new` ({str(new)!r}) goes through '..': name the place directly.")


@torch.no_grad()
def exchange_labels(model: Any, first: int, second: int) -> None:
    """Exchanges two classes in what every exit says."""
    labels = range(model.config.num_labels)
    if first not in labels or second not in labels or first == second:
        raise ValueError(f"`swap_labels` must be two of the class indices 0 … {labels[-1]}, got {first} and {second}.")
    head = model.classifier if isinstance(model.classifier, torch.nn.Linear) else model.classifier.out_proj
    for linear in (head, *(off_ramp.classifier for off_ramp in model.base_model.off_ramps)):
        for parameter in (linear.weight, linear.bias):
            parameter[[first, second]] = parameter[[second, first]]


def load_tokenizer(old: str | os.PathLike, config: PreTrainedConfig, **kwargs: Any) -> Any:
    """The checkpoint's tokenizer, `None` where it has none."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(old, config=config, **kwargs)
    except (OSError, ValueError, TypeError):
        tokenizer = None
    if tokenizer is None or not has_vocabulary(tokenizer):
        logger.warning("No tokenizer was found beside the checkpoint: add one to the converted folder.")
        return None
    return tokenizer


def save_whole(folder: Path, *parts: Any) -> None:
    """Saves what is not `None` into a folder that appears when all is written."""
    with whole_folder(folder) as whole:
        for part in parts:
            if part is not None:
                part.save_pretrained(whole)
