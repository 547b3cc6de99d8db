"""Making a threshold the default of a saved checkpoint, with its evidence."""

import json
import os
from pathlib import Path
from typing import Any

from ..analysis.choice import ThresholdChoice
from ..families import FAMILIES
from ..folders import write_text
from ..inference.exported_folder import find_notes
from ..inference.exported_model import ExportedEarlyExitModel
from ..models.configuration_early_exit_deebert import check_temperatures, layers_of_exits
from ..models.exit_criteria_deebert import check_thresholds
from ..models.exit_loop_deebert import has_exits
from ..models.exit_scores_deebert import SCORES
from .card_data import CardData
from .model_card import NUMBERS_FILE, write_model_card


def apply_threshold(model: Any, choice: ThresholdChoice) -> None:
    """
    Makes a model exit at a chosen threshold, with the temperatures that it was chosen with, unless a call sets
    others. For a saved checkpoint it also keeps the evidence in `numbers.json` and writes the model card again; for
    exported ONNX files it keeps the evidence, and there is no card.

    Args:
        model (`PreTrainedModel`, [`OnnxEarlyExitModel`], `str` or `Path`):
            A model in memory, or the folder of a saved or exported one. The default inside `model.onnx` changes as
            well, where the choice is of the file's score and patience; otherwise that becomes the full depth, with a
            warning.
        choice ([`ThresholdChoice`]): From [`pick_threshold`].

    Raises:
        ValueError: for a choice whose target is not met, that is for another number of layers or labels, or about an
            ensemble; for a folder without an early-exit checkpoint; for ONNX files with other temperatures inside than
            those of the choice.
    """
    if not choice.met:
        raise ValueError(f"`choice` does not meet its target ({choice.reason}): choose another target.")
    if not isinstance(model, (str, os.PathLike)):
        if not has_exits(model):
            raise ValueError(f"`model` is a `{type(model).__name__}`, which has no off-ramps: see `from_backbone`.")
        settings = settings_of(choice, model.config.exit_layers, model.config.num_labels)
        if isinstance(model, ExportedEarlyExitModel):
            check_exported(choice, model.exported_temperatures)
        for name, value in settings.items():
            setattr(model.config, name, value)
        return
    folder = Path(model)
    path, stored = folder / "config.json", folder / NUMBERS_FILE
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    exported = find_notes(folder)
    known = {family.config.model_type for family in FAMILIES}
    if exported is not None:  # they have the stock type
        known |= {family.config.backbone_type for family in FAMILIES}
    if config.get("model_type") not in known:
        raise ValueError(f"`model` ({str(folder)!r}) holds no early-exit checkpoint: save the model there first.")
    labels = len(config["id2label"]) if "id2label" in config else 2
    before = config.get("off_ramp_temperatures")
    depth = int(config.get("num_hidden_layers") or config["n_layers"])
    config |= settings_of(choice, layers_of_exits(config.get("off_ramp_layers"), depth), labels)
    if exported is not None:
        check_exported(choice, exported.temperatures)
    card = CardData.read(stored) if stored.is_file() else CardData()
    criterion = {"score": choice.exit_score, "patience": choice.patience}
    same_criterion = (card.trade_off_criterion or {"score": "entropy", "patience": 1}) == criterion
    if (card.off_ramp_temperatures or before) != plain(choice.temperatures) or not same_criterion:
        card.trade_off = card.trade_off_criterion = None  # its thresholds are of other scores
    if card.layer_scores is None:  # nothing but an earlier choice, if anything
        card.metric, card.full_depth, card.rows_scored = choice.metric, choice.full_score, choice.rows
    card.threshold_choice = choice.to_dict()
    card.chosen = CardData.from_choice(choice).chosen or {}
    if card.metric != choice.metric:
        # The headline is about the card's own metric.
        card.chosen = {name: card.chosen[name] for name in ("threshold", "how", "criterion") if name in card.chosen}
    card.default_threshold, card.default_criterion = (
        choice.exit_settings[name] for name in ("early_exit_entropy", "exit_criterion")
    )
    card.off_ramp_temperatures = plain(choice.temperatures)
    # The configuration last: a card that cannot be written changes nothing.
    if exported is not None:
        card.write(stored)  # a card shows how to load a checkpoint, which is not there
        if exported.single_file is not None:
            # Needs packages that other folders do not.
            from ..inference.onnx.thresholds import criterion_of, default_thresholds, set_default_threshold

            single = exported.single_file
            default = default_thresholds(
                criterion_of(card.default_threshold, card.default_criterion), single.score, single.patience
            )
            set_default_threshold(folder / single.file, default)
    else:
        write_model_card(folder, card, config=config)
    write_text(path, json.dumps(config, indent=2) + "\n")


def settings_of(choice: ThresholdChoice, exit_layers: tuple[int, ...], labels: int) -> dict[str, Any]:
    """The fields of the configuration that a choice sets, for a model with these exit layers and labels."""
    if choice.is_ensemble:
        raise ValueError("`choice` is about the answers of an `ensemble()`, which no model gives: choose without it.")
    chosen_layers = choice.exit_layers or tuple(range(1, choice.layers + 1))
    if (chosen_layers, choice.labels) != (exit_layers, labels):
        raise ValueError(
            f"`choice` is for a model of {choice.labels} labels with exits behind the layers {chosen_layers}, this "
            f"one has {labels} and {exit_layers}: choose with a table of this model."
        )
    if choice.exit_score not in SCORES:
        raise ValueError(
            f"`choice` is about the score {choice.exit_score!r}, a function that no configuration can hold: give it "
            "with each call, `exit_criterion=ExitCriterion(score, threshold, patience)`."
        )
    check_thresholds(plain(choice.threshold), len(exit_layers) - 1, "choice.threshold")
    if choice.temperatures is not None:
        check_temperatures(plain(choice.temperatures), len(exit_layers) - 1)
    return choice.exit_settings | {"off_ramp_temperatures": plain(choice.temperatures)}


def check_exported(choice: ThresholdChoice, exported: list[float] | None) -> None:
    """Raises `ValueError` where a choice is about other temperatures than those that exported graphs divide by."""
    ones = [1.0] * len(choice.temperatures or exported or ())
    if list(choice.temperatures or ones) != list(exported or ones):
        raise ValueError(
            f"`choice` is about off-ramps with the temperatures {plain(choice.temperatures)}, but those in the ONNX "
            f"files of `model` are {exported}, and stay so: apply it to the checkpoint and export that again."
        )


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
