"""A chosen threshold becomes the checkpoint's default, and the card says why."""

import json

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from transformers_deebert import (
    ExitTable,
    ThresholdChoice,
    apply_threshold,
    fit_temperatures,
    pick_threshold,
    write_model_card,
)
from transformers_deebert.hub.card_data import CardData


@pytest.fixture
def table():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    logits = generator.normal(size=(400, 4, 3)) + 3 * np.eye(3)[labels][:, None] * np.arange(1, 5)[:, None] / 4
    index = np.arange(400)
    return ExitTable(logits.astype(np.float32), labels, index, index, ("a", "b", "c"))


def test_the_checkpoint_exits_there(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    choice = pick_threshold(table, target_saving=0.3)
    apply_threshold(tmp_path, choice)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert model.config.early_exit_entropy == choice.threshold
    card = (tmp_path / "README.md").read_text()
    for expected in (
        choice.reason,
        f"exits at S = {choice.threshold:.7g} unless",
        f"{choice.layer_saving:.0%} of the layers saved: accuracy {choice.score:.1%}",
    ):
        assert expected in card
    assert json.loads((tmp_path / "numbers.json").read_text())["threshold_choice"] == choice.to_dict()


def test_temperatures_and_thresholds_per_layer(tmp_path, table):
    """What the choice was made with is what the checkpoint then does, until a choice without them."""
    make_model().save_pretrained(tmp_path)
    fit = fit_temperatures(table)
    choice = pick_threshold(table.with_temperatures(fit.temperatures), target_saving=0.3, per_layer=True)
    assert len(choice.threshold) == 3
    assert choice.temperatures == fit.temperatures
    apply_threshold(tmp_path, choice)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert tuple(model.config.early_exit_entropy) == choice.threshold
    assert tuple(model.config.off_ramp_temperatures) == fit.temperatures
    batch = make_batch()
    found, wanted = model(**batch), make_model(off_ramp_temperatures=list(fit.temperatures))
    wanted = wanted(**batch, early_exit_entropy=list(choice.threshold))
    assert torch.equal(found.exit_layers, wanted.exit_layers)
    assert torch.equal(found.logits, wanted.logits)
    assert len(found.exit_layers.unique()) >= 3
    card = (tmp_path / "README.md").read_text()
    assert f"({', '.join(format(one, '.7g') for one in choice.threshold)})" in card
    assert choice.reason in card
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["threshold_choice"]["temperatures"] == list(fit.temperatures)
    assert numbers["default_threshold"] == list(choice.threshold)

    apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert config.off_ramp_temperatures is None
    assert isinstance(config.early_exit_entropy, float)


def test_a_choice_for_another_number_of_layers(tmp_path, table):
    make_model(num_layers=6).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="for a model of 3 labels with exits behind .* .1, 2, 3, 4.,"):
        apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3, per_layer=True))
    with pytest.raises(ValueError, match="for a model of 3 labels with exits behind"):
        apply_threshold(tmp_path, pick_threshold(table.with_temperatures([2.0] * 3), target_saving=0.3))
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert (config.early_exit_entropy, config.off_ramp_temperatures) == (None, None)


def test_what_no_model_answers(tmp_path, table):
    model = make_model()
    model.save_pretrained(tmp_path)
    choice = pick_threshold(table.ensemble(), target_saving=0.3)
    for place in (tmp_path, model):
        with pytest.raises(ValueError, match=r"`ensemble\(\)`, which no model gives"):
            apply_threshold(place, choice)
    with pytest.raises(ValueError, match="ensemble"):
        table.ensemble().save(tmp_path / "table")
    # A stock class that re-saves our checkpoint keeps the fields of its configuration.
    BertForSequenceClassification.from_pretrained(tmp_path).save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="holds no early-exit checkpoint"):
        apply_threshold(tmp_path / "stock", pick_threshold(table, target_saving=0.3))


def test_a_choice_that_was_kept_as_json(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    choice = pick_threshold(table.with_temperatures([2.0, 1.5, 1.0]), target_saving=0.3, per_layer=True)
    again = ThresholdChoice.from_dict(json.loads(json.dumps(choice.to_dict())))
    assert again == choice
    apply_threshold(tmp_path, again)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path).config
    assert tuple(config.off_ramp_temperatures) == (2.0, 1.5, 1.0)
    assert "divided by its temperature: 2, 1.5, 1" in (tmp_path / "README.md").read_text()


def test_a_trade_off_of_other_temperatures_is_not_told_any_more(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    rows = [
        {"threshold": 0.1, "score": 0.9, "layer_saving": 0.2},
        {"threshold": 0.3, "score": 0.8, "layer_saving": 0.4},
    ]
    numbers = {"metric": "accuracy", "full_depth": 0.9, "layer_scores": [0.1, 0.2, 0.3, 0.9], "trade_off": rows}
    write_model_card(tmp_path, numbers)
    apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    assert json.loads((tmp_path / "numbers.json").read_text())["trade_off"] == rows
    apply_threshold(tmp_path, pick_threshold(table.with_temperatures([2.0, 1.5, 1.0]), target_saving=0.3))
    assert "trade_off" not in json.loads((tmp_path / "numbers.json").read_text())
    assert not (tmp_path / "trade_off.png").exists()


def test_a_trade_off_of_another_score_goes(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    margins = table.with_score("margin")
    write_model_card(tmp_path, CardData.from_table(margins))
    apply_threshold(tmp_path, pick_threshold(margins, target_saving=0.3))
    assert json.loads((tmp_path / "numbers.json").read_text())["trade_off"]
    apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    assert "trade_off" not in json.loads((tmp_path / "numbers.json").read_text())
    assert "against saving" not in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "trade_off.png").exists()


def test_a_card_that_cannot_be_written_changes_nothing(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    (tmp_path / "README.md").mkdir()
    with pytest.raises(OSError, match="README"):
        apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    assert not (tmp_path / "numbers.json").exists()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.early_exit_entropy is None


def test_other_numbers_stay(tmp_path, table):
    make_model().save_pretrained(tmp_path)
    write_model_card(tmp_path, {"metric": "f1", "full_depth": 0.8, "layer_scores": [0.1, 0.2, 0.3, 0.8], "seed": 3})
    apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["seed"] == 3
    assert "score" not in numbers["chosen"]  # an accuracy is no f1
    assert "of the layers saved:" not in (tmp_path / "README.md").read_text()


def test_what_cannot_be_applied(tmp_path, table):
    with pytest.raises(ValueError, match="`model`.*no early-exit checkpoint"):
        apply_threshold(tmp_path, pick_threshold(table, target_saving=0.3))
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`choice` does not meet its target.*No threshold"):
        apply_threshold(tmp_path, pick_threshold(table, target_saving=0.95))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path).config.early_exit_entropy is None
