"""Joint training: losses as written out, conflicts, skipped layers, the three stages and how they resume."""

import json
import logging
import shutil

import pytest
import torch
from conftest import ENCODERS, make_batch, make_model
from tiny_task import DATA, PLAIN_SGD, TRAIN, collate, make_args, make_tiny
from torch.nn import functional
from transformers import TrainerCallback

from transformers_deebert import JointTrainer, TwoStageTrainer


pytestmark = pytest.mark.gradients
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def start(**settings):
    return make_tiny(**NO_DROPOUT | settings)


def exits_of(model):
    batch = collate(TRAIN)
    labels = batch.pop("labels")
    return model.eval()(**batch, output_off_ramp_logits=True).off_ramp_logits, labels


def train(folder, strategy, model=None, **settings):
    settings = {"per_device_train_batch_size": 64, "num_train_epochs": 1} | settings
    args = make_args(folder, joint_strategy=strategy, **settings)
    trainer = JointTrainer(start() if model is None else model, args, train_dataset=TRAIN, data_collator=collate)
    trainer.train()
    return trainer, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def divergence(logits, head, temperature):
    teacher = (head / temperature).softmax(-1)
    return (teacher * (teacher.log() - (logits / temperature).log_softmax(-1))).sum(-1).mean()


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_losses_are_as_written_out(tmp_path, layers):
    with torch.no_grad():
        exits, labels = exits_of(start(off_ramp_layers=layers))
    *off_ramps, head = exits
    losses = [functional.cross_entropy(logits, labels) for logits in exits]
    weights = [1, 2, 3, 4] if layers is None else [1, 2, 4]
    expected = {
        "weighted": sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights),
        "alternating": losses[-1],
        "distilled": losses[-1]
        + sum(0.1 * loss + 0.9 * 9 * divergence(one, head, 3) for loss, one in zip(losses, off_ramps, strict=False)),
    }
    for strategy, loss in expected.items():
        _, found = train(tmp_path, strategy, start(off_ramp_layers=layers))
        assert found == pytest.approx([float(loss)], rel=1e-4), strategy
    _, found = train(
        tmp_path, "distilled", start(off_ramp_layers=layers), distillation_weight=0.5, distillation_temperature=1.0
    )
    loss = losses[-1] + sum(
        0.5 * loss + 0.5 * divergence(one, head, 1) for loss, one in zip(losses, off_ramps, strict=False)
    )
    assert found == pytest.approx([float(loss)], rel=1e-4)


def test_alternating_steps(tmp_path):
    """The first step moves no off-ramp, the second everything; with the loss of all exits."""

    class Watch(TrainerCallback):
        moved: list = []

        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.moved.append(
                {
                    name.split(".")[1] == "off_ramps"
                    for name, one in model.named_parameters()
                    if not torch.equal(one, self.before[name])
                }
            )
            self.before = {name: one.detach().clone() for name, one in model.named_parameters()}

        def on_train_begin(self, args, state, control, model=None, **kwargs):
            self.before = {name: one.detach().clone() for name, one in model.named_parameters()}

    watch = Watch()
    args = make_args(tmp_path, joint_strategy="alternating", per_device_train_batch_size=64, optim="sgd")
    JointTrainer(start(), args, train_dataset=TRAIN, data_collator=collate, callbacks=[watch]).train()
    assert watch.moved == [{False}, {False, True}]


@pytest.mark.parametrize("strategy", ["weighted", "alternating", "distilled"])
def test_gradient_accumulation(tmp_path, strategy):
    """1 x 32 and 4 x 8 under plain SGD without clipping."""
    states = []
    for batch, steps in ((32, 1), (8, 4)):
        settings = PLAIN_SGD | {"gradient_accumulation_steps": steps}
        trainer, _ = train(tmp_path, strategy, per_device_train_batch_size=batch, num_train_epochs=2, **settings)
        states.append(trainer.model.state_dict())
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], atol=5e-6, rtol=1e-4)


def test_the_off_ramps_gradient_does_not_oppose_the_heads(tmp_path):
    """One step of plain SGD on the shared parameters, from a model whose gradients are in conflict."""
    flipped = start(seed=1)
    with torch.no_grad():  # the off-ramps have learnt the opposite of the head
        for off_ramp in flipped.base_model.off_ramps:
            off_ramp.classifier.weight.copy_(-20 * flipped.classifier.weight)
    state = {name: one.clone() for name, one in flipped.state_dict().items()}
    exits, labels = exits_of(flipped)
    own = functional.cross_entropy(exits[-1], labels)
    others = sum(
        0.1 * functional.cross_entropy(one, labels) + 0.9 * 9 * divergence(one, exits[-1].detach(), 3)
        for one in exits[:-1]
    )
    names = [name for name, _ in flipped.base_model.named_parameters() if "off_ramps" not in name]
    shared = [flipped.base_model.get_parameter(name) for name in names]
    g_own, g_others = (
        [
            torch.zeros_like(p) if g is None else g
            for g, p in zip(
                torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True), shared, strict=True
            )
        ]
        for loss in (own, others)
    )
    (g_head,) = torch.autograd.grad(own, flipped.classifier.weight, retain_graph=True)
    product = sum((a * b).sum() for a, b in zip(g_own, g_others, strict=True))
    norm = sum((a * a).sum() for a, b in zip(g_own, g_others, strict=True) if b.any())  # of what both reach
    conflict = max(0.0, float(-product / norm))
    for project in (False, True):
        model = start()
        model.load_state_dict(state)
        settings = {"optim": "sgd", "learning_rate": 0.01, "max_grad_norm": 0.0, "lr_scheduler_type": "constant"}
        trainer, found_loss = train(tmp_path, "distilled", model, project_conflicts=project, **settings)
        step = [
            (state[f"bert.{name}"] - trainer.model.base_model.get_parameter(name).detach()) / 0.01 for name in names
        ]
        for found, a, b in zip(step, g_own, g_others, strict=True):
            factor = 1 + conflict if project and b.any() else 1  # the head's own parameters move as ever
            torch.testing.assert_close(found, factor * a + b, atol=2e-4, rtol=1e-3)
        head = (state["classifier.weight"] - trainer.model.classifier.weight.detach()) / 0.01
        torch.testing.assert_close(head, g_head, atol=2e-4, rtol=1e-3)
        assert found_loss == pytest.approx([float((own + others).detach())], rel=1e-4)
    assert conflict > 0.1


def test_layers_are_skipped_in_training_alone(tmp_path):
    model = start()
    ran = []
    apply = model.base_model.apply_layer
    model.base_model.apply_layer = lambda index, state: ran.append((model.training, index)) or apply(index, state)
    settings = {"per_device_train_batch_size": 1, "layer_dropout": 0.8, "num_train_epochs": 3}
    trainer, _ = train(tmp_path, "weighted", model, **settings)
    counts = [ran.count((True, layer)) / (3 * len(TRAIN)) for layer in range(4)]
    assert counts == pytest.approx([0.8, 0.6, 0.4, 0.2], abs=0.12)
    ran.clear()
    exits_of(trainer.model)
    model.train()(**{name: tensor[:2] for name, tensor in collate(TRAIN).items()})
    assert ran == [(mode, layer) for mode in (False, True) for layer in range(4)]


def test_layers_of_a_model_made_by_model_init_are_skipped(tmp_path):
    args = make_args(tmp_path, joint_strategy="weighted", layer_dropout=0.5, max_steps=1)
    seen = []

    class Watch(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen.append(model.base_model.layer_dropout)

    trainer = JointTrainer(model_init=lambda: start(), args=args, callbacks=[Watch()], **DATA)
    trainer.train()
    assert (seen, trainer.model.base_model.layer_dropout) == ([0.5], 0.0)


@pytest.mark.parametrize("family", ENCODERS)
def test_every_family_can_skip_layers(family):
    model = make_model(family).train()
    ran, apply = [], model.base_model.apply_layer
    model.base_model.apply_layer = lambda index, state: ran.append(index) or apply(index, state)
    model.base_model.layer_dropout = 1 - 1e-9
    model.base_model.skips = lambda layer: layer != 2
    batch = make_batch(family)
    model(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
    assert ran == [1]
    ran.clear()
    model.eval()(**batch)
    assert ran == [*range(model.config.num_hidden_layers)]


@pytest.mark.parametrize("strategy", ["alternating", "distilled"])
def test_going_on_from_a_checkpoint(tmp_path, strategy):
    """With layers skipped by chance, and an odd step to go on with."""
    settings = {"num_train_epochs": 2, "per_device_train_batch_size": 8, "layer_dropout": 0.3}
    settings |= {"save_strategy": "steps", "save_steps": 5}
    whole, _ = train(tmp_path, strategy, **settings)
    for step in (10, 15, 16):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    args = make_args(tmp_path, joint_strategy=strategy, **settings)
    again = JointTrainer(start(), args, train_dataset=TRAIN, data_collator=collate)
    again.train(resume_from_checkpoint=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"joint_strategy": "sum"}, "`joint_strategy` must be one of"),
        ({"joint_strategy": None}, "`joint_strategy` is not set"),
        ({"joint_strategy": "weighted", "project_conflicts": True}, "`project_conflicts` needs"),
        ({"joint_strategy": "weighted", "layer_dropout": 1.0}, "`layer_dropout`"),
    ],
)
def test_arguments_that_are_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        JointTrainer(start(), make_args(tmp_path, **settings), **DATA)


def arguments(folder, **settings):
    args = make_args(folder, save_strategy="epoch", eval_strategy="epoch", **settings)
    return args, make_args(folder, joint_strategy="weighted", save_strategy="epoch", **settings)


def test_three_stages(tmp_path, caplog):
    args, joint = arguments(tmp_path)
    trainer = TwoStageTrainer(start(), args, args, second_stage="joint", joint_args=joint, **DATA)
    with caplog.at_level(logging.WARNING):
        outputs = trainer.train()
    assert list(outputs) == ["backbone", "joint", "off_ramps"]
    assert {"full_depth_before", "full_depth_after"} <= set(outputs["joint"].metrics)
    assert "accuracy at full depth on `eval_dataset`:" in caplog.text
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["training"]["joint"]["strategy"] == "weighted"
    assert numbers["training"]["joint"]["full_depth_after"] == outputs["joint"].metrics["full_depth_after"]
    card = (tmp_path / "README.md").read_text()
    assert "full depth after" in card
    assert "everything is trained at once" in card
    joint_model = type(trainer.model).from_pretrained(tmp_path / "joint").state_dict()
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, joint_model[name]) == ("off_ramps" not in name), name  # stage 2 on the new encoder


@pytest.mark.parametrize(
    "gone", [pytest.param(("off_ramps",), marks=pytest.mark.slow), ("joint", "off_ramps")], ids="+".join
)
def test_going_on_behind_a_finished_stage(tmp_path, gone):
    args, joint = arguments(tmp_path)
    whole = TwoStageTrainer(start(), args, args, second_stage="joint", joint_args=joint, **DATA)
    whole.train()
    for stage in gone:
        shutil.rmtree(tmp_path / stage)
    again = TwoStageTrainer(start(seed=5), args, args, second_stage="joint", joint_args=joint, **DATA)
    outputs = again.train(resume_from_checkpoint=True)
    assert list(outputs) == list(gone)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_going_on_within_joint_training(tmp_path):
    """Weights and the full depth before it are those of a run that nobody interrupted."""
    args, joint = arguments(tmp_path)
    whole = TwoStageTrainer(start(), args, args, second_stage="joint", joint_args=joint, **DATA)
    expected = whole.train()["joint"].metrics
    shutil.rmtree(tmp_path / "off_ramps")
    shutil.rmtree(tmp_path / "joint" / "checkpoint-16")
    (tmp_path / "joint" / "trainer_state.json").unlink()  # as a kill behind the first epoch leaves it
    again = TwoStageTrainer(start(seed=5), args, args, second_stage="joint", joint_args=joint, **DATA)
    outputs = again.train(resume_from_checkpoint=True)
    assert list(outputs) == ["joint", "off_ramps"]
    for name in ("full_depth_before", "full_depth_after"):
        assert outputs["joint"].metrics[name] == expected[name]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_joint_arguments_belong_to_joint_training(tmp_path):
    args, joint = arguments(tmp_path)
    for settings in ({"second_stage": "joint"}, {"joint_args": joint}):
        with pytest.raises(ValueError, match="`joint_args` belong to"):
            TwoStageTrainer(start(), args, args, **settings, **DATA)
    with pytest.raises(ValueError, match="`second_stage` must be one of"):
        TwoStageTrainer(start(), args, args, second_stage="both", **DATA)
