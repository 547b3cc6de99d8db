"""Models with PEFT adapters, around or inside them."""

import peft
import pytest
import torch
from tiny_task import DATA, make_args, make_tiny

from transformers_deebert import BackboneTrainer, JointTrainer, OffRampTrainer, TwoStageTrainer


pytestmark = pytest.mark.gradients
LORA = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "dense"], r=2)
FORMS = ["PeftModel", "add_adapter"]


def make_model(form, config=LORA):
    model = make_tiny()
    if form == "PeftModel":
        return peft.get_peft_model(model, config)
    model.add_adapter(config)
    return model


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("form", FORMS)
def test_stage_1_trains_the_adapter_alone_and_saves_all_of_it(tmp_path, form):
    model = make_model(form)
    expected = {name for name in trainable(model) if "off_ramps" not in name}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = BackboneTrainer(model, make_args(tmp_path, learning_rate=1e-2), **DATA)
    trainer.train()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert expected
    assert trainable(model) == expected
    assert changed
    assert changed <= expected
    trainer.save_model()
    # The saved adapter on the model as it was before gives the same logits; merged, it trains in stage 2.
    loaded = peft.PeftModel.from_pretrained(make_tiny(), tmp_path)
    batch = {"input_ids": torch.tensor([[5, 9, 30, 71]])}
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)
    merged = loaded.merge_and_unload()
    OffRampTrainer(merged, make_args(tmp_path / "stage_2"), **DATA).train()
    assert merged.config.off_ramps_trained


@pytest.mark.parametrize("form", FORMS)
def test_what_a_checkpoint_would_not_hold_is_refused(tmp_path, form):
    model = make_model(form)
    getattr(model, "get_base_model", lambda: model)().bert.pooler.requires_grad_(True)
    with pytest.raises(ValueError, match=r"bert\.pooler.*`modules_to_save`"):
        BackboneTrainer(model, make_args(tmp_path), **DATA)
    kept = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], modules_to_save=["pooler"], bias="all")
    BackboneTrainer(make_model(form, kept), make_args(tmp_path, num_train_epochs=1), **DATA).train()


@pytest.mark.parametrize("form", FORMS)
def test_stages_that_train_off_ramps_refuse(tmp_path, form):
    args = make_args(tmp_path)
    with pytest.raises(ValueError, match="merge_and_unload"):
        OffRampTrainer(make_model(form), args, **DATA)
    with pytest.raises(ValueError, match="merge_and_unload"):
        JointTrainer(make_model(form), make_args(tmp_path, joint_strategy="weighted"), **DATA)
    with pytest.raises(ValueError, match="merge_and_unload"):
        OffRampTrainer(model_init=lambda: make_model(form), args=args, **DATA)
    with pytest.raises(ValueError, match="merge_and_unload"):
        TwoStageTrainer(make_model(form), args, args, **DATA)
    both = TwoStageTrainer(model_init=lambda: make_model(form), backbone_args=args, off_ramp_args=args, **DATA)
    with pytest.raises(ValueError, match="merge_and_unload"):
        both.train()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))
