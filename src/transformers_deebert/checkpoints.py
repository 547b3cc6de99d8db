"""A checkpoint's model and tokenizer."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from .checks import check_single_label, has_vocabulary
from .families import from_backbone
from .messages import first_line, listed
from .models.configuration_early_exit_deebert import EarlyExitConfigMixin


def load_model(checkpoint: str, revision: str | None = None, device: str | None = None) -> tuple[Any, Any]:
    """
    An early-exit classifier with trained off-ramps, and its tokenizer. Code of the checkpoint is never run.

    Args:
        checkpoint (`str`): Repository on the Hub or folder.
        revision (`str`, *optional*): Branch, tag or commit on the Hub.
        device (`str`, *optional*, defaults to the CPU): Such as `cuda`, `cuda:1` or `mps`.

    Returns:
        `tuple`: the model, in eval mode on the device; the tokenizer.

    Raises:
        ValueError: in one line, for a checkpoint that is not there, is damaged, has no off-ramps or untrained ones, no
            classes to choose from, or no tokenizer; for a device that is not there.
    """
    place = check_device("cpu" if device is None else device)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    arguments = {"revision": revision or "main", "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(checkpoint, **arguments)
        check_config(config, checkpoint)
        tokenizer = load_tokenizer(checkpoint, config=config, **arguments)
        model = AutoModelForSequenceClassification.from_pretrained(checkpoint, config=config, **arguments)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {checkpoint!r} cannot be loaded: {first_line(error)}") from error
    # The file may lack what its configuration promises.
    check_config(model.config, checkpoint)
    check_tokenizer(tokenizer, checkpoint)
    return model.eval().to(place), tokenizer


def load_backbone(
    checkpoint: str, revision: str | None = None, device: str | None = None, **settings: Any
) -> tuple[Any, Any]:
    """
    A fine-tuned classifier with untrained off-ramps, and its tokenizer.

    Args:
        checkpoint, revision, device: As for [`load_model`].
        settings: Fields of the configuration, such as `off_ramp_pooling`.

    Raises:
        ValueError: in one line, for a checkpoint that is not there, is damaged, is of another family, has no trained
            head, has trained off-ramps already, no classes to choose from, or no tokenizer.
    """
    place = check_device("cpu" if device is None else device)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that off-ramps are new is no news
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    arguments = {"revision": revision or "main"}
    try:
        stored = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False, **arguments)
        # A stock configuration may keep our fields without the off-ramps.
        if isinstance(stored, EarlyExitConfigMixin) and stored.off_ramps_trained:
            raise ValueError(f"The checkpoint {checkpoint!r} has trained off-ramps already: see `deebert pick`.")
        tokenizer = load_tokenizer(checkpoint, trust_remote_code=False, **arguments)
        model, info = from_backbone(checkpoint, output_loading_info=True, **arguments, **settings)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"The checkpoint {checkpoint!r} cannot be loaded: {first_line(error)}") from error
    finally:
        logging.set_verbosity(verbosity)
    untrained = sorted(key for key in info["missing_keys"] if ".off_ramps." not in key)
    if untrained:
        raise ValueError(
            f"The checkpoint {checkpoint!r} is no fine-tuned classifier ({listed(untrained, 3)} are missing): "
            "fine-tune it first, or run both stages with `TwoStageTrainer`."
        )
    check_single_label(f"The checkpoint {checkpoint!r}", model.config)
    check_tokenizer(tokenizer, checkpoint)
    return model.to(place), tokenizer


def load_tokenizer(checkpoint: str, **arguments: Any) -> Any:
    """The tokenizer; what its parsers raise for a damaged file is of any type, and names no file."""
    try:
        return AutoTokenizer.from_pretrained(checkpoint, **arguments)
    except OSError:
        raise
    except Exception as error:
        damaged = [path.name for path in sorted(Path(checkpoint).glob("*.json")) if not is_json(path)]
        raise ValueError(
            f"The tokenizer of {checkpoint!r} cannot be loaded: {listed(damaged) or 'a file'} is damaged "
            f"({first_line(error)}); copy it from the original again."
        ) from error


def is_json(path: Path) -> bool:
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True


def check_config(config: Any, checkpoint: str) -> None:
    """Raises `ValueError` for a model whose rows cannot exit early."""
    if not isinstance(config, EarlyExitConfigMixin):
        raise ValueError(
            f"The checkpoint {checkpoint!r} ({config.model_type}) has no off-ramps: add exits first with "
            "`deebert add-exits` (checkpoints of other early-exit codes: `deebert convert`)."
        )
    if not config.off_ramps_trained:
        raise ValueError(
            f"The off-ramps of the checkpoint {checkpoint!r} are untrained: add exits first with `deebert add-exits`."
        )
    check_single_label(f"The checkpoint {checkpoint!r}", config)


def check_tokenizer(tokenizer: Any, checkpoint: str) -> None:
    """Raises `ValueError` for what transformers makes without a vocabulary: it knows its special tokens only."""
    if not has_vocabulary(tokenizer):
        raise ValueError(f"The checkpoint {checkpoint!r} has no tokenizer: save one in the same place.")


def check_device(name: str) -> torch.device:
    """The device of that name; raises `ValueError` for one that is not there."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device` must be cpu, cuda, cuda:1 and so on, or mps, got {name!r}.") from error
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (device.index or 0) >= counts.get(device.type, 0):
        raise ValueError(f"`device` {name!r} is not there: choose cpu, or a device that this machine has.")
    return device
