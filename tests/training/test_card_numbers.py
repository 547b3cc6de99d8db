"""What a run writes into the card of its model."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetInfo
from tiny_task import DATA, VALIDATION, make_args, make_tiny
from transformers import EvalPrediction

from transformers_deebert import TwoStageTrainer
from transformers_deebert.training.card_numbers import hub_dataset


pytestmark = pytest.mark.gradients


def train(folder, **kwargs):
    settings = kwargs.pop("settings", {})
    args = make_args(folder, num_train_epochs=4, learning_rate=2e-3, **settings)
    trainer = TwoStageTrainer(make_tiny(), args, args, **DATA | kwargs)
    trainer.train()
    return trainer


def stored(folder):
    return json.loads((folder / "numbers.json").read_text())


def test_the_numbers_are_those_of_the_model(tmp_path):
    """Scores, the trade-off and the recommended threshold, against the model itself."""
    trainer = train(tmp_path)
    numbers, metrics = stored(tmp_path), trainer.evaluate()
    assert numbers["metric"] == "accuracy"
    assert numbers["rows_scored"] == len(VALIDATION)
    assert numbers["full_depth"] == metrics["eval_accuracy"]
    assert numbers["layer_scores"] == [metrics[f"eval_layer_{layer}_accuracy"] for layer in range(1, 5)]
    labels = np.array([row["labels"] for row in VALIDATION])
    model = trainer.model.eval()
    assert len(numbers["trade_off"]) >= 5
    for row in numbers["trade_off"]:
        outputs = [
            model(input_ids=torch.tensor([item["input_ids"]]), early_exit_entropy=row["threshold"])
            for item in VALIDATION
        ]
        answers = np.array([output.logits.argmax(-1).item() for output in outputs])
        layers = np.array([output.exit_layers.item() for output in outputs])
        assert row["score"] == pytest.approx((answers == labels).mean())
        assert row["layer_saving"] == pytest.approx(1 - layers.mean() / 4)
    assert "one random half" in numbers["chosen"]["how"]
    assert set(numbers["training"]["backbone"]) >= {"epochs", "learning_rate", "batch_size", "optimizer", "seconds"}
    assert numbers["training"]["off_ramps"]["off_ramp_mode"] == "cached"
    card = (tmp_path / "README.md").read_text()
    assert "### The recommended threshold, and how it was chosen" in card
    assert str(tmp_path) not in card  # whose folders are nobody's business


def f1(prediction: EvalPrediction):
    answers = prediction.predictions.argmax(-1)
    hits = int(((answers == 1) & (prediction.label_ids == 1)).sum())
    wrong = int((answers != prediction.label_ids).sum())
    return {"loss_like": 12.5, "f1": 2 * hits / max(2 * hits + wrong, 1)}


def test_another_metric(tmp_path):
    train(tmp_path, compute_metrics=f1, settings={"metric_for_best_model": "f1"})
    numbers = stored(tmp_path)
    assert numbers["metric"] == "f1"
    assert numbers["trade_off"][0]["score"] == numbers["full_depth"]


def test_a_metric_that_is_no_share(tmp_path):
    """Percentages of it would be nonsense: the card has none."""
    train(tmp_path, compute_metrics=f1)
    assert {"metric", "trade_off", "chosen"}.isdisjoint(stored(tmp_path))


def confidence(prediction: EvalPrediction):
    powers = np.exp(prediction.predictions)
    return {"confidence": float((powers.max(-1) / powers.sum(-1)).mean())}


def picky(prediction: EvalPrediction):
    if prediction.predictions.dtype != np.float32:
        raise TypeError("logits are float32")
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


@pytest.mark.parametrize("metrics", [confidence, picky])
def test_a_metric_of_more_than_the_predicted_classes(tmp_path, caplog, metrics):
    """There is no trade-off to tell, and the model is saved all the same."""
    with caplog.at_level(logging.WARNING):
        train(tmp_path, compute_metrics=metrics)
    numbers = stored(tmp_path)
    assert len(numbers["layer_scores"]) == 4
    assert "trade_off" not in numbers
    assert (tmp_path / "model.safetensors").exists()
    assert ("cannot score predicted classes" in caplog.text) == (metrics is picky)


def test_rows_without_labels_do_not_count(tmp_path):
    rows = [row | {"labels": -100 if index % 3 == 0 else row["labels"]} for index, row in enumerate(VALIDATION)]
    train(tmp_path, eval_dataset=rows)
    assert stored(tmp_path)["rows_scored"] == sum(row["labels"] >= 0 for row in rows)


@pytest.mark.parametrize("rows", [None, {"a": VALIDATION}])
def test_without_one_evaluation_set(tmp_path, rows):
    train(tmp_path, eval_dataset=rows)
    numbers = stored(tmp_path)
    assert "full_depth" not in numbers
    assert set(numbers["training"]) == {"backbone", "off_ramps"}


def test_the_data_set_is_named_where_it_is_known():
    rows = Dataset.from_dict({"a": [1]})
    assert hub_dataset(rows) is None
    assert hub_dataset(VALIDATION) is None
    checksums = dict.fromkeys(("hf://datasets/nyu-mll/glue@abc/sst2/a.parquet", "hf://datasets/nyu-mll/glue@abc/b"))
    rows = Dataset.from_dict({"a": [1]}, info=DatasetInfo(download_checksums=checksums))
    assert hub_dataset(rows) == "nyu-mll/glue"


def test_what_the_user_says(tmp_path):
    trainer = train(tmp_path)
    trainer.save_model(
        tmp_path / "again", license="mit", language="en", tags="small", dataset="Tiny", dataset_tags="org/tiny"
    )
    card = (tmp_path / "again" / "README.md").read_text()
    for expected in ("license: mit", "language: en", "- small", "org/tiny", "name: Tiny"):
        assert expected in card
    with pytest.raises(TypeError, match="colour"):
        trainer.save_model(tmp_path / "never", colour="red")


def test_one_repository(tmp_path):
    a, b = (make_args(tmp_path, hub_model_id=name) for name in ("org/a", "org/b"))
    with pytest.raises(ValueError, match=r"`hub_model_id`.*org/a.*org/b"):
        TwoStageTrainer(make_tiny(), a, b, **DATA)
