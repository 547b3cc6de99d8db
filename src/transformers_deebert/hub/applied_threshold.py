"""Making a threshold the default of a saved checkpoint, with its evidence."""

import json
from pathlib import Path

from ..analysis.threshold_choice import ThresholdChoice
from .model_card import NUMBERS_FILE, write_model_card


def apply_threshold(folder: str | Path, choice: ThresholdChoice) -> None:
    """
    Makes a checkpoint exit at a chosen threshold unless a call says otherwise, keeps the evidence in `numbers.json`
    and writes the model card again.

    Args:
        folder (`str` or `Path`): Holds the saved checkpoint.
        choice ([`ThresholdChoice`]): From [`pick_threshold`].

    Raises:
        ValueError: for a choice whose target is not met, or a folder without an early-exit checkpoint.
    """
    if not choice.met:
        raise ValueError(f"`choice` does not meet its target ({choice.reason}): choose another target.")
    folder = Path(folder)
    path, stored = folder / "config.json", folder / NUMBERS_FILE
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "off_ramp_pooling" not in config:
        raise ValueError(f"`folder` ({str(folder)!r}) holds no early-exit checkpoint: save the model there first.")
    numbers = json.loads(stored.read_text(encoding="utf-8")) if stored.is_file() else {}
    low, high = (100 * change for change in choice.accuracy_change_interval)
    if "metric" not in numbers:
        numbers |= {"metric": "accuracy", "full_depth": choice.full_accuracy, "rows_scored": choice.rows}
    numbers["threshold_choice"] = choice.to_dict()
    numbers["chosen"] = {
        "threshold": choice.threshold,
        "score": choice.accuracy,
        "score_change": choice.accuracy_change,
        "layer_saving": choice.layer_saving,
        "how": (
            f"{choice.reason} There S = {choice.threshold:.4g} saves {choice.layer_saving:.1%} of the layers and "
            f"changes accuracy by {100 * choice.accuracy_change:+.1f} points (95 % bootstrap interval {low:+.1f} to "
            f"{high:+.1f})."
        ),
    }
    numbers["default_threshold"] = choice.threshold
    if numbers["metric"] != "accuracy":
        # The headline is about the card's own metric.
        numbers["chosen"] = {"threshold": choice.threshold, "how": numbers["chosen"]["how"]}
    path.write_text(json.dumps(config | {"early_exit_entropy": choice.threshold}, indent=2) + "\n", encoding="utf-8")
    write_model_card(folder, numbers)
