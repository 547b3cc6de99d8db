"""What a run writes into the card of its model."""

import json
import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetInfo
from tiny_task import DATA, VALIDATION, make_args, make_tiny
from transformers import EarlyStoppingCallback, EvalPrediction

from transformers_deebert import BackboneTrainer, OffRampTrainer, TwoStageTrainer
from transformers_deebert.training.card_numbers import hub_dataset, hub_id, run_numbers


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


def error_rate(prediction: EvalPrediction):
    return {"error_rate": float((prediction.predictions.argmax(-1) != prediction.label_ids).mean())}


def test_a_metric_of_which_less_is_better_recommends_nothing(tmp_path):
    settings = {"metric_for_best_model": "error_rate", "greater_is_better": False}
    train(tmp_path, compute_metrics=error_rate, settings=settings)
    assert len(stored(tmp_path)["layer_scores"]) == 4
    assert {"trade_off", "chosen"}.isdisjoint(stored(tmp_path))


def several(prediction: EvalPrediction):
    hits = prediction.predictions.argmax(-1) == prediction.label_ids
    return {"per_class": [0.5, 0.5], "note": "fine", "accuracy": torch.tensor(float(hits.mean()))}


def inputs_too(prediction: EvalPrediction):
    return {"accuracy": float(prediction.inputs[0].mean() > 0)}


@pytest.mark.parametrize(
    ("kwargs", "scored"),
    [
        ({"compute_metrics": several}, True),
        ({"compute_metrics": inputs_too, "settings": {"include_for_metrics": ["inputs"]}}, False),
        ({"eval_dataset": []}, False),
        ({"preprocess_logits_for_metrics": lambda logits, labels: logits.softmax(-1)}, False),
    ],
)
def test_a_card_never_costs_the_model(tmp_path, kwargs, scored):
    train(tmp_path, **kwargs)
    assert ("full_depth" in stored(tmp_path)) == scored
    assert (tmp_path / "model.safetensors").exists()
    assert (tmp_path / "README.md").exists()


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

    with pytest.raises(ValueError, match="`finetuned_from`.*no repository"):
        trainer.save_model(tmp_path / "never", finetuned_from=str(tmp_path))
    trainer.save_model()  # what was said stays said
    assert "license: mit" in (tmp_path / "README.md").read_text()


def test_one_repository(tmp_path):
    """What only one stage says of it holds for both; what both say must agree."""
    for name, values in {"hub_model_id": ("org/a", "org/b"), "hub_revision": ("x", "y")}.items():
        a, b = (make_args(tmp_path, **{name: value}) for value in values)
        with pytest.raises(ValueError, match=rf"`{name}`.*{values[0]}.*{values[1]}"):
            TwoStageTrainer(make_tiny(), a, b, **DATA)
    one = make_args(tmp_path, hub_model_id="org/a", hub_private_repo=True, hub_token="hf_x", hub_revision="dev")
    for stages in ((one, make_args(tmp_path)), (make_args(tmp_path), one)):
        hub = TwoStageTrainer(make_tiny(), *stages, **DATA).hub
        assert hub == {"hub_model_id": "org/a", "hub_private_repo": True, "hub_token": "hf_x", "hub_revision": "dev"}


def test_another_model_in_an_old_folder(tmp_path):
    """The numbers of one model are not told of another."""
    train(tmp_path)
    assert "full_depth" in stored(tmp_path)
    args = make_args(tmp_path)
    TwoStageTrainer(make_tiny(seed=5), args, args, **DATA).save_model()
    card = (tmp_path / "README.md").read_text()
    assert stored(tmp_path) == {}
    assert "% of the layers saved" not in card
    assert "**Its off-ramps have not been trained" in card
    assert not (tmp_path / "trade_off.png").exists()


def test_a_resumed_run_knows_both_stages(tmp_path):
    first = train(tmp_path)
    before = stored(tmp_path)["training"]
    args = make_args(tmp_path, num_train_epochs=4, learning_rate=2e-3)
    again = TwoStageTrainer(make_tiny(), args, args, **DATA)
    again.train(resume_from_checkpoint=True)
    after = stored(tmp_path)["training"]
    assert after["backbone"] == before["backbone"]
    assert after["off_ramps"]["learning_rate"] == before["off_ramps"]["learning_rate"]
    assert first.card_data.training["backbone"]["seed"] == 42


def test_the_epochs_that_were_run(tmp_path):
    args = make_args(tmp_path, num_train_epochs=10, eval_strategy="epoch", save_strategy="epoch", **LEAST_LOSS)
    callbacks = [EarlyStoppingCallback(early_stopping_patience=1, early_stopping_threshold=1.0)]
    TwoStageTrainer(make_tiny(), args, args, callbacks=callbacks, **DATA).train()
    assert stored(tmp_path)["training"]["backbone"]["epochs"] == 2.0


LEAST_LOSS = {"load_best_model_at_end": True, "metric_for_best_model": "loss"}


def test_a_stage_tells_the_scores_of_the_weights_it_has(tmp_path):
    settings = {"num_train_epochs": 4, "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 1e-2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "layer_1_accuracy"}
    trainer = OffRampTrainer(make_tiny(initializer_range=0.3), make_args(tmp_path, **settings | best), **DATA)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card()
    numbers = stored(tmp_path)
    logged = {entry["epoch"]: entry for entry in trainer.state.log_history if "eval_layer_1_accuracy" in entry}
    assert len({entry["eval_layer_1_accuracy"] for entry in logged.values()}) > 1
    metrics = trainer.evaluate()
    assert numbers["layer_scores"] == [metrics[f"eval_layer_{layer}_accuracy"] for layer in range(1, 5)]
    trainer.evaluate(VALIDATION[:2])  # another set of rows, which the card is not about
    trainer.create_model_card()
    assert stored(tmp_path)["layer_scores"] == numbers["layer_scores"]


def test_a_stage_1_model_says_so(tmp_path):
    trainer = BackboneTrainer(make_tiny(), make_args(tmp_path, num_train_epochs=1), **DATA)
    trainer.train()
    trainer.save_model()
    trainer.create_model_card(tasks="text-classification", dataset="Tiny", dataset_args="first")
    card = (tmp_path / "README.md").read_text()
    assert "**Its off-ramps have not been trained" in card
    assert "Stage 2 has not been run." in card
    assert "early_exit_entropy=0." not in card


def test_the_base_model_is_a_repository_or_untold(tmp_path, monkeypatch):
    for name, expected in {"org/base": "org/base", "bert-base": "bert-base", str(tmp_path): None, "": None}.items():
        model = make_tiny()
        model.name_or_path = model.config.name_or_path = name
        trainer = OffRampTrainer(model, make_args(tmp_path), **DATA)
        assert trainer.base_model_id == expected
        assert (run_numbers({"off_ramps": trainer}).base_model or {}).get("hub_id") == expected
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-base").mkdir()
    assert hub_id("bert-base") is None
