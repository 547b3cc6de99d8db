"""Losses over several exits that are not the library's own, each a subclass with one method; lists of exit layers."""

import json
import logging

import numpy as np
import pytest
import torch
from tiny_task import DATA, TRAIN, VALIDATION, collate, make_args, make_tiny
from torch.nn import functional

from transformers_deebert import OffRampTrainer, TwoStageTrainer, collect_exits
from transformers_deebert.training.multi_exit_trainer import MultiExitTrainer


pytestmark = pytest.mark.gradients
MODES = ["cached", "through_backbone"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Distilled(OffRampTrainer):
    """The head teaches the off-ramps; labels are not read."""

    reads_head = True
    needs_labels = False

    def combined_loss(self, off_ramps, head, labels, num_items_in_batch=None):
        teacher = head.detach().softmax(-1)
        losses = [functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean") for logits in off_ramps]
        return torch.stack(losses).sum()


class Weighted(MultiExitTrainer):
    """All exits and the backbone at once, later exits counting more."""

    trained_part = "all"

    def combined_loss(self, off_ramps, head, labels, num_items_in_batch=None):
        exits = [*off_ramps, head]
        losses = [place * self.exit_loss(logits, labels, num_items_in_batch) for place, logits in enumerate(exits, 1)]
        return torch.stack(losses).sum() / sum(range(1, len(exits) + 1))


def all_logits(model, rows):
    batch = collate(rows)
    labels = batch.pop("labels")
    with torch.no_grad():
        return model.eval()(**batch, output_off_ramp_logits=True).off_ramp_logits, labels


@pytest.mark.parametrize("labelled", [True, False])
def test_the_head_as_teacher_in_both_modes(tmp_path, labelled):
    def without_labels(items):
        batch = collate(items)
        return batch if labelled else {name: batch[name] for name in ("input_ids", "attention_mask")}

    states, losses = [], []
    for mode in MODES:
        model = make_tiny(**NO_DROPOUT)
        *off_ramps, head = all_logits(model, TRAIN)[0]
        args = make_args(tmp_path, off_ramp_mode=mode, per_device_train_batch_size=64, num_train_epochs=3)
        data = {"train_dataset": TRAIN, "data_collator": without_labels}
        trainer = Distilled(model, args, **data)
        trainer.train()
        expected = sum(
            functional.kl_div(logits.log_softmax(-1), head.softmax(-1), reduction="batchmean") for logits in off_ramps
        )
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
        assert losses[-1][0] == pytest.approx(float(expected), rel=1e-4)
        states.append(model.state_dict())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][2] < losses[0][0]
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=1e-3)


def test_joint_training(tmp_path):
    model = make_tiny(**NO_DROPOUT, off_ramp_temperatures=[2.0, 2.0, 2.0])
    model.config.off_ramp_temperatures = None
    exits, labels = all_logits(model, TRAIN)
    losses = [functional.cross_entropy(logits, labels) for logits in exits]
    expected = sum(place * loss for place, loss in enumerate(losses, 1)) / 10
    model.config.off_ramp_temperatures = [2.0, 2.0, 2.0]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Weighted(model, make_args(tmp_path, per_device_train_batch_size=64), **DATA)
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), rel=1e-4)
    for name in (
        "bert.off_ramps.0.classifier.weight",
        "classifier.weight",
        "bert.encoder.layer.0.output.dense.weight",
    ):
        assert not torch.equal(model.state_dict()[name], before[name]), name
    assert model.config.off_ramps_trained
    assert model.config.off_ramp_temperatures is None
    assert len(trainer.predict(VALIDATION).predictions) == 4


@pytest.mark.parametrize("mode", ["cached", pytest.param("through_backbone", marks=pytest.mark.slow)])
def test_lists_of_exit_layers(tmp_path, mode):
    """Metrics, page and card go by layer; both modes compute the same."""
    args = make_args(tmp_path, off_ramp_mode=mode, report_file="report.html", eval_strategy="epoch")
    model = make_tiny(off_ramp_layers=[0, 2], **NO_DROPOUT)
    trainer = TwoStageTrainer(model, args, args, **DATA)
    trainer.train()
    metrics = trainer.evaluate()
    assert {name for name in metrics if "accuracy" in name} == {
        "eval_accuracy",
        *(f"eval_layer_{layer}_accuracy" for layer in (0, 2, 4)),
    }
    assert len(trainer.predict(VALIDATION).predictions) == 3
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert len(numbers["layer_scores"]) == 3
    assert any(row["layer_saving"] > 0.75 for row in numbers["trade_off"])  # exits at the embeddings
    (tmp_path / "numbers.json").unlink()
    trainer.off_ramp_trainer.create_model_card()  # from the log
    logged = json.loads((tmp_path / "off_ramps" / "numbers.json").read_text())
    assert logged["layer_scores"] == pytest.approx(numbers["layer_scores"])
    assert (tmp_path / "report.html").exists()
    only_head = make_tiny(off_ramp_layers=[])
    with pytest.raises(ValueError, match=r"exit layers \(4,\)"):
        OffRampTrainer(only_head, args, **DATA)


@pytest.mark.parametrize("option", ["bf16_full_eval", "fp16_full_eval"])
def test_an_evaluation_does_not_round_the_model(tmp_path, option):
    model = make_tiny()
    model.register_buffer("scale", torch.tensor(1 / 3))
    trainer = OffRampTrainer(model, make_args(tmp_path, **{option: True}), **DATA)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = list(model.parameters())
    dtypes = set()
    hook = model.classifier.register_forward_hook(lambda module, args, output: dtypes.add(output.dtype))
    trainer.evaluate()
    hook.remove()
    assert dtypes == {torch.bfloat16 if option == "bf16_full_eval" else torch.float16}
    assert all(one is other for one, other in zip(parameters, model.parameters(), strict=True))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name
    args = make_args(tmp_path / "both", **{option: True})
    TwoStageTrainer(model, args, args, **DATA).train()
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
    weights = [parameter.detach() for parameter in model.bert.off_ramps[0].parameters()]
    assert any((weight.bfloat16().float() != weight).any() for weight in weights)


def test_columns_named_like_settings(tmp_path):
    """A data set that the pipeline's own keys went into; it trains as without them."""
    import datasets

    columns = {"exit_layer": 3, "early_exit_entropy": 0.1, "exit_criterion": "x", "output_off_ramp_logits": 1}

    def pad(items):
        width = max(len(item["input_ids"]) for item in items)
        padded = {name: [item[name] for item in items] for name in items[0]}
        for name in ("input_ids", "attention_mask"):
            padded[name] = [row + [0] * (width - len(row)) for row in padded[name]]
        return {name: torch.tensor(values) for name, values in padded.items()}

    states, tables = [], []
    for extra in ({}, columns):
        data = {
            "train_dataset": datasets.Dataset.from_list([row | extra for row in TRAIN]),
            "eval_dataset": [row | extra for row in VALIDATION],
        }
        model, args = make_tiny(), make_args(tmp_path / str(len(states)), eval_strategy="epoch", num_train_epochs=1)
        TwoStageTrainer(model, args, args, data_collator=pad, **data).train()
        states.append(model.state_dict())
        tables.append(collect_exits(model, data["eval_dataset"], pad).logits)
    assert np.array_equal(*tables)
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_options_without_a_meaning_in_cached_steps(tmp_path, caplog):
    options = {
        "neftune_noise_alpha": 5.0,
        "include_num_input_tokens_seen": "all",
        "train_sampling_strategy": "group_by_length",
    }
    states = []
    for settings in ({}, options):
        caplog.clear()
        model = make_tiny()
        args = make_args(tmp_path, off_ramp_mode="cached", eval_strategy="epoch", **settings)
        trainer = OffRampTrainer(model, args, **DATA)
        with caplog.at_level(logging.WARNING):
            trainer.train()
        for name in options:
            assert caplog.text.count(f"`{name}`") == len(settings) / 3, name
        assert "track the number of tokens" not in caplog.text
        assert trainer.args is args
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        args = make_args(tmp_path, off_ramp_mode="through_backbone", neftune_noise_alpha=5.0)
        OffRampTrainer(make_tiny(), args, **DATA).train()
    assert "has no effect" not in caplog.text
