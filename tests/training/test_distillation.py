"""Stage 2 that learns from the model's own head: its loss, rows without labels, accumulation."""

import pytest
import torch
from tiny_task import DATA, PLAIN_SGD, TRAIN, collate, make_args, make_tiny
from torch.nn import functional

from transformers_deebert import DeeBertTrainingArguments, OffRampTrainer


pytestmark = pytest.mark.gradients
MODES = ["cached", "through_backbone"]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def without_labels(items):
    batch = collate(items)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def train(folder, collator=collate, model_settings=None, **settings):
    model = make_tiny(**NO_DROPOUT | (model_settings or {}))
    trainer = OffRampTrainer(model, make_args(folder, **settings), train_dataset=TRAIN, data_collator=collator)
    trainer.train()
    return model, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def written_out(weight, temperature):
    """The loss before the first step, of all rows at once, in float64."""
    batch = collate(TRAIN)
    labels = batch.pop("labels")
    with torch.no_grad():
        *off_ramps, head = (
            make_tiny(**NO_DROPOUT).eval().double()(**batch, output_off_ramp_logits=True).off_ramp_logits
        )
    teacher = (head / temperature).softmax(-1)
    loss = 0.0
    for logits in off_ramps:
        student = (logits / temperature).softmax(-1)
        divergence = (teacher * (teacher / student).log()).sum(-1).mean()
        loss += (1 - weight) * functional.cross_entropy(logits, labels) + weight * temperature**2 * divergence
    return float(loss)


@pytest.mark.parametrize(("weight", "temperature"), [(0.0, 1.0), (0.5, 1.0), (0.3, 4.0), (1.0, 2.0)])
@pytest.mark.parametrize("mode", MODES)
def test_the_loss_is_as_written_out(tmp_path, mode, weight, temperature):
    settings = {"distillation_weight": weight, "distillation_temperature": temperature, "off_ramp_mode": mode}
    _, losses = train(tmp_path, per_device_train_batch_size=64, num_train_epochs=1, **settings)
    assert losses == pytest.approx([written_out(weight, temperature)], rel=1e-5)


@pytest.mark.parametrize("kind", [{}, {"off_ramp_head": "mlp", "off_ramp_context": "past", "off_ramp_layers": [0, 2]}])
def test_both_modes_train_alike(tmp_path, kind):
    settings = {"distillation_weight": 0.5, "per_device_train_batch_size": 64}  # no order of rows
    runs = [train(tmp_path, model_settings=kind, off_ramp_mode=mode, **settings) for mode in MODES]
    (one, first), (other, second) = runs
    assert first == pytest.approx(second, rel=1e-4)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("mode", MODES)
def test_without_labels_it_learns_what_the_head_says(tmp_path, mode):
    settings = {"off_ramp_mode": mode, "distillation_weight": 1.0, "num_train_epochs": 3}
    model, losses = train(tmp_path, without_labels, **settings)
    labelled, same = train(tmp_path, **settings)
    assert losses == pytest.approx(same, rel=1e-5)  # labels do not matter
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, labelled.state_dict()[name], atol=1e-6, rtol=1e-4)
    with pytest.raises(ValueError, match="`train_dataset` must give integer `labels`"):
        train(tmp_path, without_labels, off_ramp_mode=mode, distillation_weight=0.9)


@pytest.mark.parametrize("mode", MODES)
def test_rows_marked_as_without_labels(tmp_path, mode):
    """-100 is a row's way to have none: such rows teach as others do."""

    def marked(items):
        batch = collate(items)
        batch["labels"][::2] = -100
        return batch

    settings = {"off_ramp_mode": mode, "distillation_weight": 1.0, "per_device_train_batch_size": 64}
    (one, losses), (other, same) = (train(tmp_path, collator, **settings) for collator in (marked, without_labels))
    assert losses == pytest.approx(same, rel=1e-6)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, other.state_dict()[name])


def test_agreement_with_the_head_without_labels(tmp_path):
    data = {"train_dataset": TRAIN, "eval_dataset": TRAIN, "data_collator": without_labels}
    args = make_args(tmp_path, distillation_weight=1.0, eval_strategy="epoch", num_train_epochs=8)
    trainer = OffRampTrainer(make_tiny(), args, **data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    *off_ramps, head = trainer.predict(TRAIN).predictions
    for layer, logits in enumerate(off_ramps, 1):
        share = (logits.argmax(-1) == head.argmax(-1)).mean()
        assert after[f"eval_layer_{layer}_agreement"] == pytest.approx(share)
    assert after["eval_layer_4_agreement"] == 1
    assert after["eval_layer_3_agreement"] > before["eval_layer_3_agreement"]
    trainer.args.distillation_weight = 0.5
    assert not any("agreement" in name for name in trainer.evaluate())


@pytest.mark.parametrize("collator", [collate, without_labels])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_accumulation(tmp_path, mode, collator):
    """1 x 32 and 4 x 8 under plain SGD without clipping; nobody counts labels where there are none."""
    states = []
    for batch, steps in ((32, 1), (8, 4)):
        model, _ = train(
            tmp_path,
            collator,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            off_ramp_mode=mode,
            distillation_weight=1.0 if collator is without_labels else 0.5,
            **PLAIN_SGD,
        )
        states.append(model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-6, rtol=1e-4)
    name = "bert.off_ramps.0.classifier.weight"
    assert not torch.equal(states[0][name], make_tiny().state_dict()[name])


def test_weight_0_is_plain_stage_2(tmp_path):
    states = []
    for settings in ({}, {"distillation_weight": 0.0, "distillation_temperature": 7.0}):
        states.append(train(tmp_path, **settings)[0].state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())


@pytest.mark.parametrize(
    "settings",
    [
        {"distillation_weight": -0.1},
        {"distillation_weight": 1.5},
        {"distillation_weight": float("nan")},
        {"distillation_temperature": 0.0},
        {"distillation_temperature": float("inf")},
    ],
)
def test_values_out_of_range(tmp_path, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"`{name}`"):
        DeeBertTrainingArguments(output_dir=str(tmp_path), **settings)
    args = make_args(tmp_path)
    setattr(args, name, value)  # as a hyper-parameter search does
    with pytest.raises(ValueError, match=f"`{name}`"):
        OffRampTrainer(make_tiny(), args, **DATA).train()
