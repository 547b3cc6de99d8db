"""The model card: what it says, what it leaves out, and that the stored one is what the stored numbers give."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard import metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from transformers import BertTokenizer

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification, write_model_card
from transformers_deebert.hub.endpoint import write_endpoint_handler
from transformers_deebert.hub.model_card import create_model_card, main


ROOT = Path(__file__).parents[2]
NUMBERS = ROOT / "docs" / "quickstart_numbers.json"
PICTURE = "docs/quickstart_trade_off.png"
MODEL = "quickstart-output"
CARD = ROOT / "MODEL_CARD.md"


@pytest.fixture
def numbers():
    return {
        "model_name": "tiny",
        "model_class": "DeeBertForSequenceClassification",
        "language": "en",
        "base_model": {"name": "a small encoder", "hub_id": "org/small"},
        "layers": 3,
        "off_ramp_pooling": "mean",
        "off_ramp_head": "linear",
        "max_length": 64,
        "labels": ["no", "yes"],
        "default_threshold": 0.25,
        "example": "Fine.",
        "seed": 7,
        "data": {
            "name": "Some Reviews",
            "description": "Reviews of things.",
            "rows": [{"name": "test", "rows": 1500, "use": "the figures"}],
        },
        "training": {
            "backbone": {"epochs": 2, "learning_rate": 1e-4, "seconds": 61.5},
            "off_ramps": {"epochs": 10, "learning_rate": 1e-3, "off_ramp_mode": "cached"},
        },
        "metric": "accuracy",
        "rows_scored": 1500,
        "full_depth": 0.8912,
        "layer_scores": [0.71, 0.82, 0.8912],
        "trade_off": [
            {"threshold": 0.0, "score": 0.8912, "score_change": 0.0, "layer_saving": 0.0, "note": "full depth"},
            {"threshold": 0.25, "score": 0.8851, "score_change": -0.0061, "layer_saving": 0.421, "speed_up": 1.62},
        ],
        "chosen": {"threshold": 0.25, "score": 0.8851, "layer_saving": 0.421, "speed_up": 1.62, "how": "On one half."},
        "timing": {"batch_size": 1, "rows": 1500, "repeats": 3, "control_gap": 0.012},
        "machine": {"processor": "A processor", "cores": 2},
        "limits": ["Small."],
        "packages": {"versions": {"torch": "2.13.0"}, "sha256": {"file.whl": "abc123"}},
    }


class TestContent:
    def test_holds_the_numbers(self, numbers):
        text = str(create_model_card(numbers, picture="curve.png", model_id="org/tiny"))
        for expected in (
            "**42% of the layers saved, 1.62 times as fast at batch size 1: accuracy 88.5%, 89.1% at full depth.**",
            "![Accuracy against layer saving, over all thresholds](curve.png)",
            'pipeline("text-classification", model="org/tiny")',
            'classify("Fine.")',
            'model="org/tiny", trust_remote_code=True)',
            'classify("Fine.", early_exit_entropy=0.25)',
            "exits at S = 0.25",
            "from 0 to 0.693 for 2 labels",
            "- base model: a small encoder",
            "- off-ramp pooling: mean",
            "| test | 1,500 | the figures |",
            "| learning rate | 0.0001  | 0.001   |",
            "| off-ramp mode | -       | cached  |",
            "Seed 7.",
            "one row is worth 0.07%",
            "|     2 |    82.0% |",
            "batch size 1, 1,500 rows, median of 3 alternating passes",
            "On one half.",
            "- processor: A processor",
            "- Small.",
            "| `file.whl` | `abc123` |",
            "2020.acl-main.204",
        ):
            assert expected in text, expected

    def test_metadata(self, numbers):
        data = create_model_card(numbers, license="apache-2.0").data
        assert data.library_name == "transformers"
        assert data.pipeline_tag == "text-classification"
        assert data.tags == ["deebert", "early-exit"]
        assert data.base_model == "org/small"
        assert data.license == "apache-2.0"
        assert [(result.metric_name, result.metric_value) for result in data.eval_results] == [
            ("accuracy (full depth)", 0.8912),
            ("accuracy (S = 0.25)", 0.8851),
        ]

    def test_the_results_are_what_the_hub_reads(self, numbers, tmp_path):
        numbers["data"]["hub_id"] = "org/reviews"
        path = tmp_path / "README.md"
        create_model_card(numbers, tags=["deebert", "small"]).save(path)
        metadata = metadata_load(path)
        assert metadata["datasets"] == "org/reviews"
        assert metadata["tags"] == ["deebert", "early-exit", "small"]
        name, results = model_index_to_eval_results(metadata["model-index"])
        assert name == "tiny"
        assert [(one.task_type, one.dataset_type, one.metric_type, one.metric_value) for one in results] == [
            ("text-classification", "org/reviews", "accuracy", 0.8912),
            ("text-classification", "org/reviews", "accuracy", 0.8851),
        ]

    def test_the_headline_compares_like_with_like(self, numbers):
        """Where the threshold was read on rows of their own, full depth is that of these rows."""
        numbers["chosen"] = {"threshold": 0.3, "score": 0.9, "score_change": 0.05, "layer_saving": 0.5}
        assert "accuracy 90.0%, 85.0% at full depth" in str(create_model_card(numbers))

    def test_thresholds_of_their_own(self, numbers):
        numbers["default_threshold"] = [0.1, 0.25]
        assert "exits at S = 0.1, 0.25 (one for each off-ramp) unless" in str(create_model_card(numbers))

    def test_any_text_is_told_as_it_is(self, numbers):
        numbers["example"] = 'He said "no".\nTwice.'
        numbers["labels"] = ["a\nb", 7]
        text = str(create_model_card(numbers))
        for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
            ast.parse(code)
        assert r'classify("He said \"no\".\nTwice.")' in text
        assert "- labels: a b, 7" in text

    def test_survives_a_round_trip(self, numbers, tmp_path):
        card = create_model_card(numbers)
        card.save(tmp_path / "README.md")
        loaded = ModelCard.load(tmp_path / "README.md")
        assert str(loaded) == str(card)
        assert loaded.data.to_dict() == card.data.to_dict()


class TestWhatIsUnknown:
    def test_nothing_known(self):
        card = create_model_card({})
        assert card.data.to_dict() == {
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "tags": ["deebert", "early-exit"],
        }
        text = re.sub(r"```.*?```", "", card.text, flags=re.DOTALL)
        headings = re.findall(r"^#+ .*", text, flags=re.MULTILINE)
        assert headings == ["# DeeBERT classifier", "## Use", "## Limits", "## Citation"]

    def test_leaving_one_thing_out_leaves_no_gap(self, numbers):
        for key in numbers:
            text = str(create_model_card({name: value for name, value in numbers.items() if name != key}))
            assert "None" not in text, key
            assert not re.search(r"\n\n\n", text), key
            assert not re.search(r"^#+ [^\n]*\n+(?=#)(?!## Results)", text.replace("## Results\n\n#", "#")), key

    def test_license_and_base_model_are_not_guessed(self, numbers):
        del numbers["base_model"]["hub_id"]
        assert create_model_card(numbers).data.to_dict().keys().isdisjoint({"license", "base_model"})

    def test_no_network(self, numbers, monkeypatch):
        def refuse(*args, **kwargs):
            raise AssertionError("the network was used")

        monkeypatch.setattr(socket, "socket", refuse)
        create_model_card(numbers, picture="curve.png", license="mit")


def test_the_usage_example_runs(numbers, tmp_path):
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fine", "."]))
    BertTokenizer(str(vocabulary)).save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = DeeBertConfig(
        vocab_size=7,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=64,
        id2label={0: "no", 1: "yes"},
        off_ramps_trained=True,
        early_exit_entropy=1.0,
    )
    DeeBertForSequenceClassification(config).save_pretrained(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", str(create_model_card(numbers)), flags=re.DOTALL)
    # With the library, exiting by the configuration and at full depth; without it, at the recommended threshold.
    for code, without, layers in (
        (codes[0], "", [1, 3]),
        (codes[1], "import sys; sys.modules['transformers_deebert'] = None\n", [3]),
    ):
        environment = {**os.environ, "HF_HOME": str(tmp_path / "cache")}
        run = subprocess.run(
            [sys.executable, "-c", without + code],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        answers = [ast.literal_eval(line) for line in run.stdout.splitlines()]
        assert [answer[0]["exit_layer"] for answer in answers] == layers, run.stderr
        assert {answer[0]["label"] for answer in answers} <= {"yes", "no"}


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        config = DeeBertConfig(num_hidden_layers=3, id2label={0: "no", 1: "yes"}, early_exit_entropy=0.2)
        config.architectures = ["DeeBertForSequenceClassification"]
        config.save_pretrained(tmp_path)
        return tmp_path

    def test_from_the_configuration_alone(self, folder):
        text = str(write_model_card(folder))
        assert text == (folder / "README.md").read_text()
        for expected in ("exits at S = 0.2", "- layers: 3", "- labels: no, yes", "from 0 to 0.693 for 2 labels"):
            assert expected in text
        assert not (folder / "trade_off.png").exists()

    def test_again_from_the_stored_numbers(self, folder, numbers):
        card = write_model_card(folder, numbers, model_id="org/tiny")
        picture = folder / "trade_off.png"
        assert "](trade_off.png)" in card.text
        assert picture.read_bytes().startswith(b"\x89PNG")
        picture.unlink()
        assert str(write_model_card(folder, model_id="org/tiny")) == str(card)
        assert picture.exists()

    def test_names_of_labels_are_not_made_up(self, folder):
        DeeBertConfig(num_hidden_layers=3).save_pretrained(folder)
        assert "LABEL" not in str(write_model_card(folder))

    @pytest.mark.parametrize(
        "text",
        ['{"a":', "[]", '{"rows_scored": 0}', '{"metric": "f1", "full_depth": "high", "trade_off": [{}, {}]}'],
    )
    def test_damaged_numbers(self, folder, text):
        (folder / "numbers.json").write_text(text)
        with pytest.raises(ValueError, match="numbers.json"):
            write_model_card(folder)

    def test_a_picture_of_earlier_numbers_goes(self, folder, numbers):
        write_model_card(folder, numbers)
        assert (folder / "trade_off.png").exists()
        write_model_card(folder, {})
        assert not (folder / "trade_off.png").exists()

    def test_numbers_that_cannot_be_shown_change_nothing(self, folder, numbers):
        write_model_card(folder, numbers)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        broken = dict(numbers) | {"trade_off": [*numbers["trade_off"][:-1], {"threshold": "high"}]}
        with pytest.raises(ValueError, match="`numbers`"):
            write_model_card(folder, broken)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_untrained_off_ramps(self, folder, numbers):
        del numbers["default_threshold"]
        card = str(write_model_card(folder, numbers | {"off_ramps_trained": False}))
        assert "**Its off-ramps have not been trained" in card
        assert "of the layers saved" not in card

    def test_no_model_there(self, tmp_path):
        for write in (write_model_card, write_endpoint_handler):
            with pytest.raises(ValueError, match="`folder`.*config.json"):
                write(tmp_path)


class TestStoredCard:
    def test_is_what_the_stored_numbers_give(self, tmp_path):
        main([str(NUMBERS), str(tmp_path / "card.md"), "--picture", PICTURE, "--model_id", MODEL])
        assert (tmp_path / "card.md").read_bytes() == CARD.read_bytes()
        assert (ROOT / PICTURE).is_file()

    @pytest.mark.slow
    def test_quickstart_repeats_it(self, tmp_path):
        """Needs the package index, and ten minutes."""
        arguments = ["--full", "--output_dir", str(tmp_path / "out"), "--numbers", str(tmp_path / "numbers.json")]
        subprocess.run([sys.executable, str(ROOT / "examples" / "quickstart.py"), *arguments], check=True)
        stored, again = (json.loads(path.read_text()) for path in (NUMBERS, tmp_path / "numbers.json"))
        assert again["packages"]["sha256"] == stored["packages"]["sha256"]
        assert again["full_depth"] == pytest.approx(stored["full_depth"], abs=0.01)
        assert again["layer_scores"] == pytest.approx(stored["layer_scores"], abs=0.01)
        assert again["chosen"]["score"] == pytest.approx(stored["chosen"]["score"], abs=0.01)
        shown = {row["threshold"]: row for row in again["trade_off"]}
        for row in stored["trade_off"]:
            if row["threshold"] in shown:
                for key in ("score", "layer_saving"):
                    assert shown[row["threshold"]][key] == pytest.approx(row[key], abs=0.01), row["threshold"]
