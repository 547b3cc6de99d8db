"""A chosen threshold becomes the checkpoint's default, and the card says why."""

import json

import numpy as np
import pytest
from conftest import make_model
from transformers import AutoModelForSequenceClassification

from transformers_deebert import ExitTable, apply_threshold, pick_threshold, write_model_card


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
        f"exits at S = {choice.threshold:.4g} unless",
        f"{choice.layer_saving:.0%} of the layers saved: accuracy {choice.score:.1%}",
    ):
        assert expected in card
    assert json.loads((tmp_path / "numbers.json").read_text())["threshold_choice"] == choice.to_dict()


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
