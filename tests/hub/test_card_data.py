"""What a card shows: from a configuration, a choice and JSON, and of a criterion other than the entropy."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_model

from transformers_deebert import ExitTable, apply_threshold, pick_threshold, sweep_thresholds
from transformers_deebert.hub.card_data import CardData


FIXTURE = Path(__file__).parents[1] / "fixtures" / "release_0_1" / "numbers.json"


def test_nothing_is_lost_on_the_way_through_json(tmp_path):
    numbers = json.loads(FIXTURE.read_text()) | {"something else": [1, 2]}
    card = CardData.from_dict(numbers)
    assert card.metric == numbers["metric"]
    card.write(tmp_path / "numbers.json")
    assert CardData.read(tmp_path / "numbers.json") == card
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers
    assert (CardData(metric="f1", seed=1) | CardData(metric="accuracy", layers=4)).to_dict() == {
        "metric": "accuracy",
        "seed": 1,
        "layers": 4,
    }


def test_a_field_with_another_name_is_refused():
    with pytest.raises(TypeError, match="layer_score"):
        CardData(layer_score=[0.5])


def test_the_card_of_another_criterion(tmp_path):
    logits = np.random.default_rng(0).normal(size=(200, 4, 3)) * np.arange(1, 5)[:, None]
    table = ExitTable.from_logits(logits, logits[:, -1].argmax(-1)).with_score("margin", patience=2)
    choice = pick_threshold(table, target_saving=0.2)
    assert choice.met
    make_model(early_exit_entropy=0.25).save_pretrained(tmp_path)
    apply_threshold(tmp_path, choice)
    text = (tmp_path / "README.md").read_text()
    criterion = json.loads((tmp_path / "config.json").read_text())["exit_criterion"]
    assert f"exits at the score margin below {choice.threshold:.7g} at 2 consecutive exits unless" in text
    assert f"exit_criterion={criterion!r}" in text
    assert "early_exit_entropy=0." not in text
    assert "S =" not in text
    assert "entropy in nats" not in text


def test_the_ideal_speed_up_where_every_row_exits_behind_the_embeddings():
    """It has no bound, and JSON has no word for that."""
    logits = np.tile([5.0, 0.0], (8, 3, 1))
    table = dataclasses.replace(ExitTable.from_logits(logits, np.zeros(8, dtype=int)), exit_layers=(0, 1, 2))
    figure = SimpleNamespace(runtime_saving=0.9, speed_up=10.0)
    rows = CardData.from_table(table, points=sweep_thresholds(table, [0.0, 0.5]), figures=[figure]).trade_off
    assert [row["layer_saving"] for row in rows] == [0.0, 1.0]
    assert rows[0]["ideal_speed_up"] == 1.0
    assert "ideal_speed_up" not in rows[1]


def test_layers_are_those_of_the_exits(tmp_path):
    make_model(off_ramp_layers=[0, 2]).save_pretrained(tmp_path)
    card = CardData.from_config(json.loads((tmp_path / "config.json").read_text()))
    assert card.exit_layers == [0, 2, 4]
    from transformers_deebert import write_model_card

    text = str(write_model_card(tmp_path, CardData(metric="accuracy", layer_scores=[0.5, 0.6, 0.7])))
    assert "- exits behind the layers: 0, 2, 4" in text
    for layer, score in ((0, "50.0%"), (2, "60.0%"), (4, "70.0%")):
        assert f"|     {layer} |" in text
        assert score in text
