"""Both stages in one go: folders, resuming after a kill, bad input."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_task import DATA, TRAIN, VALIDATION, make_args, make_tiny
from transformers import AutoModelForSequenceClassification, TrainerCallback

from transformers_deebert import BackboneTrainer, OffRampTrainer, TwoStageTrainer
from transformers_deebert.training.stage_trainer import last_complete_checkpoint


pytestmark = pytest.mark.gradients
SCRIPT = str(Path(__file__).parents[1] / "tiny_task.py")


def test_both_stages(tmp_path):
    folder = tmp_path / "out"
    model, args = make_tiny(), make_args(folder)
    trainer = TwoStageTrainer(model, args, make_args(folder, num_train_epochs=3), **DATA)
    outputs = trainer.train()
    assert outputs["backbone"].global_step == 16
    assert outputs["off_ramps"].global_step == 24
    loaded = AutoModelForSequenceClassification.from_pretrained(folder)
    assert loaded.config.off_ramps_trained
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not list(folder.rglob("pytorch_model*"))
    metrics = trainer.evaluate()
    assert metrics["eval_layer_1_accuracy"] > 0.5
    assert len(trainer.predict(VALIDATION).predictions) == 4


def test_it_is_the_two_stages_by_hand(tmp_path):
    """The seed is set again between them, and stage 2 starts from what stage 1 left."""
    both = make_tiny()
    TwoStageTrainer(both, make_args(tmp_path / "a"), make_args(tmp_path / "a"), **DATA).train()
    one = make_tiny()
    BackboneTrainer(one, make_args(tmp_path / "b"), **DATA).train()
    torch.rand(7)
    OffRampTrainer(one, make_args(tmp_path / "b"), **DATA).train()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, both.state_dict()[name]), name


def test_model_init_and_callbacks_in_both_stages(tmp_path):
    seen = []

    class Recorder(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append(Path(args.output_dir).name)

    trainer = TwoStageTrainer(
        model_init=lambda: make_tiny(),
        backbone_args=make_args(tmp_path / "out"),
        off_ramp_args=make_args(tmp_path / "out"),
        callbacks=[Recorder()],
        **DATA,
    )
    trainer.train()
    assert seen == ["backbone", "off_ramps"]


@pytest.mark.slow
def test_resuming_a_finished_run_changes_nothing(tmp_path):
    args = make_args(tmp_path / "out", save_strategy="epoch")
    model = make_tiny()
    TwoStageTrainer(model, args, args, **DATA).train()
    TwoStageTrainer(make_tiny(seed=3), args, args, **DATA).train(resume_from_checkpoint=True)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.config.off_ramps_trained
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_evaluating_first(tmp_path):
    trainer = TwoStageTrainer(make_tiny(), make_args(tmp_path), make_args(tmp_path), **DATA)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before


def test_stage_2_refuses_before_stage_1_runs(tmp_path):
    args = make_args(tmp_path, off_ramp_mode="cached")
    with pytest.raises(ValueError, match="attention pooling"):
        TwoStageTrainer(make_tiny(off_ramp_pooling="attention"), args, args, **DATA).train()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def run(*options):
    return subprocess.run([sys.executable, SCRIPT, *map(str, options)], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["cached", "through_backbone"])
@pytest.mark.parametrize(("stage", "step"), [(1, 11), (2, 2), (2, 11)])
def test_a_killed_run_ends_with_the_same_weights(tmp_path, mode, stage, step):
    undisturbed = run("--output_dir", tmp_path / "a", "--mode", mode)
    assert undisturbed.returncode == 0, undisturbed.stderr
    killed = run("--output_dir", tmp_path / "b", "--mode", mode, "--kill", stage, step)
    assert killed.returncode == -9
    assert not (tmp_path / "b" / "model.safetensors").exists()
    again = run("--output_dir", tmp_path / "b", "--mode", mode, "--resume")
    assert again.returncode == 0, again.stderr
    expected, weights = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def test_a_checkpoint_that_was_not_finished_is_passed_over(tmp_path):
    args = make_args(tmp_path / "out", save_strategy="steps", save_steps=3)
    trainer = BackboneTrainer(make_tiny(), args, **DATA)
    trainer.train()
    assert last_complete_checkpoint(tmp_path / "out").endswith("checkpoint-16")
    (tmp_path / "out" / "checkpoint-16" / "trainer_state.json").write_text('{"epoch": ')
    (tmp_path / "out" / "checkpoint-99").mkdir()
    (tmp_path / "out" / "checkpoint-best").mkdir()
    assert last_complete_checkpoint(tmp_path / "out").endswith("checkpoint-15")
    resumed = BackboneTrainer(make_tiny(), args, **DATA)
    resumed.train(resume_from_checkpoint=True)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_resuming_without_anything_starts_afresh(tmp_path):
    trainer = TwoStageTrainer(make_tiny(), make_args(tmp_path), make_args(tmp_path), **DATA)
    assert set(trainer.train(resume_from_checkpoint=True)) == {"backbone", "off_ramps"}


def test_bad_input(tmp_path):
    args = make_args(tmp_path / "out")
    with pytest.raises(ValueError, match="`backbone_args` must be"):
        TwoStageTrainer(make_tiny(), None, args, **DATA)
    with pytest.raises(ValueError, match="one `output_dir`"):
        TwoStageTrainer(make_tiny(), args, make_args(tmp_path / "other"), **DATA)
    with pytest.raises(ValueError, match="exactly one of `model` and `model_init`"):
        TwoStageTrainer(None, args, args, **DATA)
    with pytest.raises(ValueError, match="`optimizers`"):
        TwoStageTrainer(make_tiny(), args, args, optimizers=(None, None), **DATA)
    trainer = TwoStageTrainer(make_tiny(), args, args, **DATA)
    with pytest.raises(ValueError, match="`resume_from_checkpoint`"):
        trainer.train(resume_from_checkpoint="out/checkpoint-3")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match="not empty"):
        trainer.train()
    assert (tmp_path / "out" / "notes.txt").read_text() == "precious"
    blocked = make_args(tmp_path / "out" / "notes.txt" / "below")
    with pytest.raises(ValueError, match="cannot be written"):
        TwoStageTrainer(make_tiny(), blocked, blocked, **DATA).train()
    assert TRAIN
