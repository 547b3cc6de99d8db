"""Files that version 0.1.0 wrote load and give the answers that it gave."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from transformers_deebert import ExitTable, OnnxEarlyExitModel, ThresholdChoice
from transformers_deebert.hub.model_card import create_model_card


FOLDER = Path(__file__).parent / "fixtures" / "release_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def load_onnx(folder):
    return OnnxEarlyExitModel.from_pretrained(folder, num_threads=1)


@pytest.mark.parametrize(
    ("load", "name"), [(AutoModelForSequenceClassification.from_pretrained, "checkpoint"), (load_onnx, "onnx")]
)
def test_a_model(load, name):
    expected = EXPECTED["checkpoint"]
    model = load(FOLDER / name)
    output = model(**{name: torch.tensor(expected[name]) for name in ("input_ids", "attention_mask")})
    assert len(set(expected["exit_layers"])) == 3
    assert output.exit_layers.tolist() == expected["exit_layers"]
    torch.testing.assert_close(output.logits, torch.tensor(expected["logits"]), atol=1e-5, rtol=0)


def test_an_exit_table():
    table = ExitTable.load(FOLDER / "exit_table")
    exits, _ = table.exits_at(EXPECTED["exit_table"]["threshold"])
    assert exits.tolist() == EXPECTED["exit_table"]["exit_layers"]
    assert len(set(exits)) == 3


def test_a_choice():
    values = json.loads((FOLDER / "choice.json").read_text(encoding="utf-8"))
    choice = ThresholdChoice.from_dict(values)
    assert choice.threshold == EXPECTED["choice"]["threshold"]
    assert choice.layer_saving == EXPECTED["choice"]["layer_saving"]


def test_a_numbers_file():
    numbers = json.loads((FOLDER / "numbers.json").read_text(encoding="utf-8"))
    card = str(create_model_card(numbers))
    assert f"{numbers['full_depth']:.1%}" in card.replace(" %", "%")
