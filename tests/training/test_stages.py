"""What each stage trains and leaves alone, and the Trainer features that users rely on."""

import logging
from functools import partial

import pytest
import torch
from tiny_task import DATA, PLAIN_SGD, TRAIN, VALIDATION, collate, make_args, make_rows, make_tiny
from torch import nn
from transformers import (
    BertForSequenceClassification,
    EarlyStoppingCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from transformers_deebert import BackboneTrainer, DeeBertTrainingArguments, OffRampTrainer


pytestmark = pytest.mark.gradients
MODES = ["cached", "through_backbone"]


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def test_changed_defaults(tmp_path):
    ours, stock = DeeBertTrainingArguments(output_dir=tmp_path), TrainingArguments(output_dir=tmp_path)
    different = {name for name in vars(stock) if getattr(ours, name) != getattr(stock, name)}
    assert different - {"output_dir", "logging_dir"} <= {
        "learning_rate",
        "ddp_find_unused_parameters",
        "distributed_state",
        "hub_strategy",
    }
    assert ours.learning_rate == 2e-5
    assert ours.ddp_find_unused_parameters is False
    with pytest.raises(ValueError, match="`off_ramp_mode`.*'fast'"):
        DeeBertTrainingArguments(output_dir=tmp_path, off_ramp_mode="fast")


def test_stage_1_leaves_the_off_ramps(tmp_path):
    model = make_tiny(off_ramps_trained=True)
    before = snapshot(model)
    calls = []
    for off_ramp in model.bert.off_ramps:
        off_ramp.register_forward_hook(lambda *args: calls.append(1))
    output = BackboneTrainer(model, make_args(tmp_path), **DATA).train()
    expected = {name for name in before if "off_ramps" not in name}
    # BERT's key biases cancel in the softmax; they and unused embeddings may stay.
    assert {name for name in expected if ".key.bias" not in name} <= changed(model, before) <= expected
    assert not calls
    assert not model.config.off_ramps_trained
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    share = sum(size for name, size in sizes.items() if "off_ramps" in name) / sum(sizes.values())
    assert output.metrics["off_ramp_parameter_share"] == pytest.approx(share)


@pytest.mark.parametrize(
    "kind", [("pooler", "own"), ("linear", "own"), ("mlp", "own"), ("linear", "past"), ("mlp", "past")]
)
@pytest.mark.parametrize(
    ("mode", "pooling"),
    [("cached", "cls"), ("cached", "mean"), *(("through_backbone", p) for p in ("cls", "attention"))],
)
def test_stage_2_leaves_all_the_rest(tmp_path, mode, pooling, kind):
    model = make_tiny(off_ramp_pooling=pooling, off_ramp_head=kind[0], off_ramp_context=kind[1])
    before = snapshot(model)
    OffRampTrainer(model, make_args(tmp_path, off_ramp_mode=mode), **DATA).train()
    assert changed(model, before) == {name for name in before if "off_ramps" in name}
    assert model.config.off_ramps_trained
    assert not any(tmp_path.iterdir())  # the cache is gone


def test_stage_1_is_stock_fine_tuning(tmp_path):
    """Same weights, seed and data: the same losses and weights as the stock Trainer on the stock class."""
    model = make_tiny()
    stock = BertForSequenceClassification(model.config)
    stock.load_state_dict(model.state_dict(), strict=False)
    args = make_args(tmp_path, seed=3)
    a = BackboneTrainer(model, args, **DATA).train().training_loss
    b = Trainer(stock, args, **DATA).train().training_loss
    assert a == pytest.approx(b, abs=1e-6)
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-6, rtol=1e-5)


def test_stage_2_loss_is_the_sum_of_cross_entropies(tmp_path):
    model = make_tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    trainer = OffRampTrainer(model, make_args(tmp_path), **DATA)
    batch = collate(VALIDATION)
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model.eval()(**batch, output_off_ramp_logits=True).off_ramp_logits
    expected = sum(nn.functional.cross_entropy(layer, labels) for layer in logits[:-1])
    # Trainer averages over batches of 8, 8, 8 and 7 rows.
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(expected), abs=0.02)
    one_batch = make_args(tmp_path, per_device_eval_batch_size=31)
    metrics = OffRampTrainer(model, one_batch, **DATA).evaluate()
    assert metrics["eval_loss"] == pytest.approx(float(expected), abs=1e-5)


def test_both_modes_agree_without_dropout(tmp_path):
    """Then they compute the same thing: the same losses and off-ramps."""
    states, logs = [], []
    for mode in MODES:
        model = make_tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, off_ramp_pooling="mean")
        trainer = OffRampTrainer(model, make_args(tmp_path, off_ramp_mode=mode, seed=5), **DATA)
        trainer.train()
        states.append(model.state_dict())
        logs.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(logs[0]) == 16
    assert logs[0] == pytest.approx(logs[1], abs=1e-4)
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer])
@pytest.mark.parametrize("mode", MODES)
def test_gradient_accumulation(tmp_path, trainer_class, mode):
    """1 x 32 and 4 x 8 under plain SGD without clipping, which hide nothing."""
    states = []
    for batch, steps in ((32, 1), (8, 4)):
        model = make_tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        args = make_args(
            tmp_path,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=steps,
            off_ramp_mode=mode,
            **PLAIN_SGD,
        )
        trainer_class(model, args, **DATA).train()
        states.append(model.state_dict())
    start = make_tiny().state_dict()
    moved = 0.0
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=2e-6, rtol=1e-4)
        moved = max(moved, float((tensor - start[name]).abs().max()))
    assert moved > 1e-3


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer])
def test_class_weights(tmp_path, trainer_class):
    calls = []

    def weighted(outputs, labels, num_items_in_batch=None):
        calls.append(outputs.logits.shape)
        weights = torch.tensor([0.0, 1.0])
        return (
            nn.functional.cross_entropy(outputs.logits, labels, weight=weights, reduction="sum") / num_items_in_batch
        )

    model = make_tiny()
    trainer_class(model, make_args(tmp_path, learning_rate=1e-2), compute_loss_func=weighted, **DATA).train()
    assert len(calls) >= 16 * (3 if trainer_class is OffRampTrainer else 1)
    model.eval()
    batch = collate(VALIDATION)
    batch.pop("labels")
    kwargs = {"exit_layer": 1} if trainer_class is OffRampTrainer else {}
    with torch.no_grad():
        assert (model(**batch, **kwargs).logits.argmax(-1) == 1).all()  # the other class costs nothing


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_label_smoothing_reaches_stage_2(tmp_path, smoothing):
    args = make_args(tmp_path, label_smoothing_factor=smoothing, num_train_epochs=1)
    loss = OffRampTrainer(make_tiny(), args, **DATA).train().training_loss
    assert loss > 0
    reference = OffRampTrainer(make_tiny(), make_args(tmp_path, num_train_epochs=1), **DATA).train().training_loss
    assert (loss == pytest.approx(reference, abs=1e-6)) == (smoothing == 0.0)


def test_evaluation_reports_every_layer_at_full_depth(tmp_path):
    model = make_tiny()
    model.config.early_exit_entropy = 99.0  # must not matter
    trainer = OffRampTrainer(model, make_args(tmp_path), **DATA)
    trainer.train()
    metrics = trainer.evaluate()
    prediction = trainer.predict(VALIDATION)
    assert [logits.shape for logits in prediction.predictions] == [(31, 2)] * 4
    labels = [row["labels"] for row in VALIDATION]
    for layer, logits in enumerate(prediction.predictions, start=1):
        accuracy = (logits.argmax(-1) == labels).mean()
        assert metrics[f"eval_layer_{layer}_accuracy"] == pytest.approx(accuracy)
    assert metrics["eval_accuracy"] == metrics["eval_layer_4_accuracy"]
    batch = collate(VALIDATION)
    batch.pop("labels")
    with torch.no_grad():
        full = model.eval()(**batch, early_exit_entropy=0.0).logits
    torch.testing.assert_close(torch.tensor(prediction.predictions[-1]), full, atol=1e-5, rtol=1e-5)
    # Without labels, and in stage 1.
    unlabelled = [{name: row[name] for name in ("input_ids", "attention_mask")} for row in VALIDATION]
    trainer.data_collator = lambda items: {
        name: tensor for name, tensor in collate([item | {"labels": 0} for item in items]).items() if name != "labels"
    }
    assert len(trainer.predict(unlabelled).predictions) == 4
    backbone = BackboneTrainer(model, make_args(tmp_path), **DATA)
    torch.testing.assert_close(torch.tensor(backbone.predict(VALIDATION).predictions), full, atol=1e-5, rtol=1e-5)


def test_metrics_of_ones_own_and_early_stopping(tmp_path):
    def metrics(prediction):
        return {"share_of_ones": float(prediction.predictions.argmax(-1).mean())}

    args = make_args(
        tmp_path,
        num_train_epochs=20,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="layer_2_share_of_ones",
        learning_rate=0.0,
    )
    stopping = [EarlyStoppingCallback(early_stopping_patience=2)]
    trainer = OffRampTrainer(make_tiny(), args, compute_metrics=metrics, callbacks=stopping, **DATA)
    trainer.train()
    assert trainer.state.epoch == 3
    assert {f"eval_layer_{layer}_share_of_ones" for layer in range(1, 5)} <= set(trainer.state.log_history[-2])


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer])
def test_model_init_and_callbacks(tmp_path, trainer_class):
    seen = []

    class Recorder(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append({name for name, parameter in model.named_parameters() if parameter.requires_grad})

    trainer = trainer_class(model_init=lambda: make_tiny(), args=make_args(tmp_path), callbacks=[Recorder()], **DATA)
    trainer.train()
    assert len(seen) == 16
    off_ramps = {name for name, _ in make_tiny().named_parameters() if "off_ramps" in name}
    everything = {name for name, _ in make_tiny().named_parameters()}
    assert seen[0] == (off_ramps if trainer_class is OffRampTrainer else everything - off_ramps)


@pytest.mark.parametrize("mode", MODES)
def test_a_subclass_with_a_data_loader_of_its_own(tmp_path, mode):
    class Balanced(OffRampTrainer):
        def get_train_dataloader(self):
            return torch.utils.data.DataLoader(self.train_dataset, batch_size=8, collate_fn=self.data_collator)

    before = snapshot(make_tiny())
    trainer = Balanced(model_init=lambda: make_tiny(), args=make_args(tmp_path, off_ramp_mode=mode), **DATA)
    trainer.train()
    assert changed(trainer.model, before) == {name for name in before if "off_ramps" in name}


@pytest.mark.parametrize("trainer_class", [BackboneTrainer, OffRampTrainer])
@pytest.mark.parametrize("mode", MODES)
def test_bf16_and_checkpointing(tmp_path, trainer_class, mode):
    args = make_args(tmp_path, bf16=True, off_ramp_mode=mode, num_train_epochs=1)
    model = make_tiny()
    if trainer_class is BackboneTrainer:
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable()
    before = snapshot(model)
    output = trainer_class(model, args, **DATA).train()
    assert torch.isfinite(torch.tensor(output.training_loss))
    assert changed(model, before)


def test_data_sets(tmp_path):
    """A data set of the `datasets` library with further columns, a torch data set, rows without a length."""
    import datasets

    rows = datasets.Dataset.from_list([row | {"text": "never read"} for row in TRAIN])

    class Torch(torch.utils.data.Dataset):
        def __len__(self):
            return len(TRAIN)

        def __getitem__(self, index):
            return TRAIN[index]

    results = []
    for data in (TRAIN, rows, Torch()):
        model = make_tiny()
        OffRampTrainer(model, make_args(tmp_path), **DATA | {"train_dataset": data}).train()
        results.append(model.bert.off_ramps[0].classifier.weight.clone())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_cached_inputs_are_the_backbones(tmp_path, monkeypatch):
    """Windows smaller than the data: rows stay in order, and equal the pooled states of each row alone."""
    from transformers_deebert.analysis import row_windows

    monkeypatch.setattr(row_windows, "WINDOW", 10)
    model = make_tiny(off_ramp_pooling="mean")
    trainer = OffRampTrainer(model, make_args(tmp_path), **DATA)
    inputs = trainer.compute_cached_inputs()
    assert len(inputs) == len(TRAIN)
    model.eval()
    for index in (0, 9, 10, 63):
        row = collate([TRAIN[index]])
        label = row.pop("labels")
        with torch.no_grad():
            states = model(**row, output_hidden_states=True).hidden_states[1:-1]
        expected = torch.cat([hidden.mean(1) for hidden in states])
        torch.testing.assert_close(inputs[index]["off_ramp_inputs"], expected, atol=1e-5, rtol=1e-5)
        assert inputs[index]["labels"] == label


def test_bad_input(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="attention pooling"):
        OffRampTrainer(make_tiny(off_ramp_pooling="attention"), make_args(tmp_path, off_ramp_mode="cached"), **DATA)
    with pytest.raises(ValueError, match="`args` must be `DeeBertTrainingArguments`"):
        OffRampTrainer(make_tiny(), TrainingArguments(output_dir=str(tmp_path), use_cpu=True), **DATA)
    model = make_tiny()
    model.config.problem_type = "multi_label_classification"
    with pytest.raises(ValueError, match="multi_label_classification"):
        OffRampTrainer(model, make_args(tmp_path), **DATA)
    with pytest.raises(ValueError, match="one layer"):
        OffRampTrainer(make_tiny(num_hidden_layers=1), make_args(tmp_path), **DATA)
    with pytest.raises(ValueError, match="BertForSequenceClassification.*no off-ramps"):
        BackboneTrainer(BertForSequenceClassification(make_tiny().config), make_args(tmp_path), **DATA)
    with pytest.raises(ValueError, match="`train_dataset` .list. has no rows"):
        OffRampTrainer(make_tiny(), make_args(tmp_path), **DATA | {"train_dataset": []}).train()
    real = [row | {"labels": 0.7} for row in TRAIN]
    with pytest.raises(ValueError, match="integer `labels`"):
        OffRampTrainer(make_tiny(), make_args(tmp_path), **DATA | {"train_dataset": real}).train()
    with pytest.raises(ValueError, match="`batch_eval_metrics`"):
        OffRampTrainer(make_tiny(), make_args(tmp_path, batch_eval_metrics=True), **DATA)
    wrong = [row | {"labels": 7} for row in make_rows(8, 2)]
    with pytest.raises(ValueError, match="`labels` contains 7"):
        BackboneTrainer(make_tiny(), make_args(tmp_path), **DATA | {"train_dataset": wrong}).train()
    for mode in MODES:
        with pytest.raises(ValueError, match="`labels` contains 7"):
            OffRampTrainer(
                make_tiny(), make_args(tmp_path, off_ramp_mode=mode), **DATA | {"train_dataset": wrong}
            ).train()

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(TRAIN)

    with pytest.raises(ValueError, match="`train_dataset` .Stream. has no rows or no length"):
        OffRampTrainer(make_tiny(), make_args(tmp_path, max_steps=2), **DATA | {"train_dataset": Stream()}).train()
    streamed = make_args(tmp_path, max_steps=2, off_ramp_mode="through_backbone")
    OffRampTrainer(make_tiny(), streamed, **DATA | {"train_dataset": Stream()}).train()

    from transformers_deebert.training import off_ramp_cache

    usage = off_ramp_cache.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(off_ramp_cache.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="`output_dir`.*GiB free"):
        OffRampTrainer(make_tiny(), make_args(tmp_path, off_ramp_mode="cached"), **DATA).train()


@pytest.mark.parametrize("mode", MODES)
def test_bf16_weights(tmp_path, mode):
    model = make_tiny().to(torch.bfloat16)
    before = snapshot(model)
    OffRampTrainer(model, make_args(tmp_path, off_ramp_mode=mode), **DATA).train()
    assert {name.split(".")[1] for name in changed(model, before)} == {"off_ramps"}


@pytest.mark.parametrize(
    "settings", [{"remove_unused_columns": False}, {"train_sampling_strategy": "group_by_length"}]
)
def test_other_trainer_options_with_the_cache(tmp_path, settings):
    model = make_tiny()
    OffRampTrainer(model, make_args(tmp_path, off_ramp_mode="cached", **settings), **DATA).train()
    assert model.config.off_ramps_trained


def test_rows_without_a_label_do_not_count(tmp_path):
    half = [row | {"labels": row["labels"] if index % 2 else -100} for index, row in enumerate(VALIDATION)]
    trainer = OffRampTrainer(make_tiny(), make_args(tmp_path), **DATA)
    expected = trainer.evaluate([row for row in half if row["labels"] != -100])
    assert trainer.evaluate(half)["eval_layer_2_accuracy"] == pytest.approx(expected["eval_layer_2_accuracy"])
    reduced = OffRampTrainer(
        make_tiny(), make_args(tmp_path), preprocess_logits_for_metrics=lambda logits, _: logits.argmax(-1), **DATA
    )
    with pytest.raises(ValueError, match="`compute_metrics`"):
        reduced.evaluate()


def test_tuples_as_the_configured_output(tmp_path):
    model = make_tiny()
    model.config.return_dict = False
    trainer = OffRampTrainer(model, make_args(tmp_path, off_ramp_mode="through_backbone"), **DATA)
    trainer.train()
    assert "eval_layer_1_accuracy" in trainer.evaluate()


@pytest.mark.parametrize("mode", MODES)
def test_stage_2_drops_temperatures_fitted_before(tmp_path, mode, caplog):
    """Also those of a model that `model_init` makes; losses are those of a model without."""
    states = []
    for temperatures in (None, [0.1, 5.0, 2.0]):
        args = make_args(tmp_path, off_ramp_mode=mode, eval_strategy="epoch")
        make = partial(make_tiny, 0, off_ramp_temperatures=temperatures)
        trainer = OffRampTrainer(model_init=make, args=args, **DATA)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            trainer.train()
        assert caplog.text.count("`off_ramp_temperatures` ([0.1, 5.0, 2.0])") == (temperatures is not None)
        assert trainer.model.config.off_ramp_temperatures is None
        states.append([entry.get("loss", entry.get("eval_loss")) for entry in trainer.state.log_history])
    assert len(states[0]) == 16 + 2 + 1
    assert states[0] == states[1]


def test_stage_1_drops_temperatures_of_off_ramps_it_makes_untrained(tmp_path):
    model = make_tiny(off_ramps_trained=True, off_ramp_temperatures=[0.1, 5.0, 2.0])
    trainer = BackboneTrainer(model, make_args(tmp_path), **DATA)
    trainer.evaluate()
    assert model.config.off_ramp_temperatures == [0.1, 5.0, 2.0]
    trainer.train()
    assert model.config.off_ramp_temperatures is None


def test_evaluation_uses_temperatures(tmp_path):
    model = make_tiny()
    raw = OffRampTrainer(model, make_args(tmp_path), **DATA).predict(VALIDATION).predictions
    model.config.off_ramp_temperatures = [0.1, 5.0, 2.0]
    scaled = OffRampTrainer(model, make_args(tmp_path), **DATA).predict(VALIDATION)
    for logits, expected, temperature in zip(scaled.predictions, raw, [0.1, 5.0, 2.0, 1.0], strict=True):
        torch.testing.assert_close(torch.tensor(logits), torch.tensor(expected) / temperature)
    labels = torch.tensor([row["labels"] for row in VALIDATION])
    losses = [nn.functional.cross_entropy(torch.tensor(logits), labels) for logits in scaled.predictions[:-1]]
    assert scaled.metrics["test_loss"] == pytest.approx(float(sum(losses)), rel=0.02)
    assert model.config.off_ramp_temperatures == [0.1, 5.0, 2.0]
