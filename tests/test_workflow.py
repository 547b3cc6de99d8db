"""`add_exits`: from a fine-tuned classifier and rows to a model with card and report, whole or not at all."""

import json
import os

import pandas
import pytest
import torch
from conftest import make_model, make_stock
from test_folders import files_of_at_most
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer, pipeline

from transformers_deebert import OffRampTrainer, add_exits, from_backbone, pick_threshold, workflow


pytestmark = pytest.mark.gradients
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(5, 100))]


def make_rows(count):
    generator = torch.Generator().manual_seed(count)
    rows = []
    for _ in range(count):
        words = torch.randint(5, 100, (8,), generator=generator)
        rows.append({"text": " ".join(f"word{word}" for word in words), "label": f"label_{int(words[0]) % 3}"})
    return rows


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "plain"
    make_stock(make_model()).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    plain = {name: value for name, value in config.items() if "off_ramp" not in name and "exit" not in name}
    (folder / "config.json").write_text(json.dumps(plain | {"model_type": "bert"}))
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=20).save_pretrained(folder)
    return folder


SETTINGS = {"training": {"num_train_epochs": 1}, "target_saving": 0.3}


def test_from_rows_to_a_pipeline(checkpoint, tmp_path):
    plain = AutoModelForSequenceClassification.from_pretrained(checkpoint)
    added = add_exits(checkpoint, pandas.DataFrame(make_rows(200)), tmp_path / "out", temperatures=True, **SETTINGS)
    assert {"model.safetensors", "README.md", "report.html", "numbers.json"} <= set(os.listdir(added.folder))
    assert added.choice.met
    assert len(added.table) == 40
    assert added.choice.temperatures is not None
    pipe = pipeline("text-classification", model=str(added.folder))
    assert pipe.model.config.early_exit_entropy == added.choice.threshold
    assert pipe.model.config.off_ramp_pooling == "mean"
    assert 0 <= pipe("word5 word6")[0]["exit_layer"] <= 4
    assert pipe.model.exit_layers == (0, 1, 2, 3, 4)
    kind = json.loads((added.folder / "numbers.json").read_text())["training"]["off_ramps"]["kind"]
    assert "saved between 0 and 1 point lost, on 20% of the training rows (" in kind
    for page in ("README.md", "report.html"):
        assert kind in (added.folder / page).read_text()
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, pipe.model.state_dict()[name])
    assert sorted(os.listdir(tmp_path)) == ["out", "plain", "vocab.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "best"}, "`score` must be one of entropy"),
        ({"criterion": lambda candidate: candidate.logits[:, 0]}, "`score` is a function"),
        ({"criterion": {"score": "entropy", "patience": 2}, "per_layer": True}, "`per_layer` searches for the thresh"),
    ],
)
def test_criteria_that_the_model_cannot_have(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        add_exits("no-model", [], tmp_path / "out", **arguments)


@pytest.mark.parametrize("labelled", [True, False])
def test_disagreement_is_bounded_without_labels(checkpoint, tmp_path, labelled):
    """Labels of the held-out rows do not matter."""
    rows, held_out = make_rows(150), make_rows(60)
    if not labelled:
        rows, held_out = ([{"text": row["text"]} for row in part] for part in (rows, held_out))
        with pytest.raises(ValueError, match="`max_metric_drop` needs labels"):
            add_exits(checkpoint, rows, tmp_path / "out", held_out=held_out, max_metric_drop=0.1)
    added = add_exits(checkpoint, rows, tmp_path / "out", held_out=held_out, max_disagreement=0.3)
    choice, table = added.choice, added.table.against_full_depth()
    assert (choice.metric, choice.full_score) == ("agreement", 1.0)
    assert choice.threshold == pick_threshold(table, max_metric_drop=0.3).threshold
    assert "of agreement" in choice.reason
    card = (added.folder / "README.md").read_text()
    assert ("| agreement" in card) == (not labelled)  # otherwise the card's metric is accuracy


def test_one_kind_of_off_ramps(checkpoint, tmp_path):
    fields = {"off_ramp_head": "linear", "off_ramp_layers": [0, 2]}
    added = add_exits(checkpoint, make_rows(200), tmp_path / "out", off_ramps=fields, **SETTINGS)
    config = AutoModelForSequenceClassification.from_pretrained(added.folder).config
    assert (config.off_ramp_head, config.off_ramp_layers, config.off_ramp_pooling) == ("linear", [0, 2], "mean")


def test_encoded_rows_have_labels_by_either_name(checkpoint, tmp_path):
    tokenizer, rows = AutoTokenizer.from_pretrained(checkpoint), make_rows(200)
    encoded = [dict(tokenizer(row["text"])) | {"label": int(row["label"][-1])} for row in rows]
    added = add_exits(checkpoint, encoded, tmp_path / "out", off_ramps={"off_ramp_layers": [2]}, **SETTINGS)
    assert added.choice.metric == "accuracy"
    assert sorted(set(added.table.labels.tolist())) == [0, 1, 2]


def test_a_failure_behind_the_training_loses_nothing(checkpoint, tmp_path, monkeypatch):
    call = {"held_out": make_rows(60), "off_ramps": {"off_ramp_head": "pooler"}, **SETTINGS}
    with files_of_at_most(250_000), pytest.raises(OSError, match="out"):  # of all files the report alone is longer
        add_exits(checkpoint, make_rows(100), tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()
    kept = AutoModelForSequenceClassification.from_pretrained(tmp_path / ".out.unfinished" / "model").state_dict()
    monkeypatch.setattr(OffRampTrainer, "train", lambda self: pytest.fail("trained again"))
    added = add_exits(checkpoint, make_rows(100), tmp_path / "out", **call)
    for name, tensor in AutoModelForSequenceClassification.from_pretrained(added.folder).state_dict().items():
        assert torch.equal(tensor, kept[name])
    assert not (tmp_path / ".out.unfinished").exists()


def test_what_is_left_of_another_call_is_not_taken(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(workflow, "make_report", lambda *args, **kwargs: 1 / 0)
    for training in ({"num_train_epochs": 1}, {"num_train_epochs": 2}):
        with pytest.raises(ZeroDivisionError):
            add_exits(checkpoint, make_rows(220), tmp_path / "out", training=training)
        run = json.loads((tmp_path / ".out.unfinished" / "run.json").read_text())
        assert run["training"]["off_ramps"]["epochs"] == training["num_train_epochs"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_saving": 2.0}, "`target_saving`"),
        ({"hold_out": 0.0}, "`hold_out`"),
        ({"off_ramps": "best"}, "`off_ramps` must be 'auto'"),
        ({"off_ramps": {"off_ramp_head": "best"}}, "`off_ramp_head`"),
        ({"training": {"weight_decay": 0.1}}, "`training` has weight_decay, which `off_ramps` 'auto' has no use for"),
        ({"max_disagreement": 2.0}, "`max_disagreement`"),
        ({"confidence": 0.9}, "`confidence`|exactly one"),
        ({"rows": make_rows(60)}, "12 rows to pick a threshold on, and it takes 40"),
        ({"label_column": "stars"}, "No column 'stars' for `label_column`"),
        ({"rows": [{"text": "word5", "label": "unknown"}] * 300}, "label in row 1 is 'unknown'"),
        ({"output_dir": "full"}, "`output_dir` .* is not empty"),
        ({"model": "stock"}, "`model` is a `BertForSequenceClassification`, which has no off-ramps"),
        ({"model": "ours"}, "`tokenizer` is missing"),
    ],
)
def test_bad_arguments_before_anything_is_written(checkpoint, tmp_path, change, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    models = {
        "stock": AutoModelForSequenceClassification.from_pretrained(checkpoint),
        "ours": from_backbone(checkpoint),
    }
    given = {"model": checkpoint, "rows": make_rows(220), "output_dir": "out"} | change
    given |= {"output_dir": tmp_path / given["output_dir"], "model": models.get(given["model"], given["model"])}
    with pytest.raises(ValueError, match=message):
        add_exits(**given)
    assert sorted(os.listdir(tmp_path)) == ["full", "plain", "vocab.txt"]
