"""
What every family can do besides the tests of this folder, which run over all families too: both training stages,
LoRA, data types, devices, and the way from any checkpoint to a classifier.
"""

import dataclasses
import json

import pytest
import torch
from conftest import ENCODERS, NUM_LAYERS, layers_of, make_batch, make_model, make_stock, stock_class
from tiny_task import DATA, make_args
from transformers import AutoModelForSequenceClassification, AutoTokenizer, GPT2Config
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING

import transformers_deebert
from transformers_deebert import (
    BackboneTrainer,
    DeeBertTrainingArguments,
    OffRampTrainer,
    TwoStageTrainer,
    from_backbone,
)
from transformers_deebert.families import FAMILIES, find_family


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def plain_folder(model, folder, what="classifier"):
    """The checkpoint that the stock class of a model would have written."""
    stock = make_stock(model) if what == "classifier" else stock_class(model.base_model)(model.config)
    stock.save_pretrained(folder)
    path = folder / "config.json"
    ours = ("off_ramp", "exit")
    config = {key: value for key, value in json.loads(path.read_text()).items() if not any(k in key for k in ours)}
    path.write_text(json.dumps(config | {"model_type": model.config.backbone_type}))
    return stock.eval()


@pytest.mark.slow_but_for("albert", "deberta-v2", "modernbert", "roberta")
@pytest.mark.gradients
def test_both_stages(family, tmp_path):
    """Each trains its part and leaves the other bit for bit; what comes out loads and exits."""
    model = make_model(family, num_labels=2, off_ramps_trained=False)
    off_ramps = {name for name in model.state_dict() if "off_ramps." in name}
    before = snapshot(model)
    BackboneTrainer(model, make_args(tmp_path / "1", num_train_epochs=1), **DATA).train()
    trained = changed(model, before)
    assert not trained & off_ramps
    assert len(trained) > 0.7 * (len(before) - len(off_ramps))
    before = snapshot(model)
    OffRampTrainer(model, make_args(tmp_path / "2", num_train_epochs=1), **DATA).train()
    assert changed(model, before) == off_ramps
    model.eval().save_pretrained(tmp_path / "3")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "3")
    assert loaded.config.off_ramps_trained
    assert loaded(**make_batch(family), early_exit_entropy=99.0).exit_layers.eq(1).all()


@pytest.mark.slow_but_for("bert", "deberta-v2")
@pytest.mark.gradients
def test_stage_2_is_the_same_on_cached_inputs(family, tmp_path):
    encoder, losses = ENCODERS[family], []
    for mode in ("cached", "through_backbone"):
        model = make_model(family, num_labels=2, off_ramp_pooling="mean", **dict.fromkeys(encoder.dropouts, 0.0))
        trainer = OffRampTrainer(model, make_args(tmp_path / mode, off_ramp_mode=mode, num_train_epochs=1), **DATA)
        trainer.train()
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert len(losses[0]) == 8
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.slow_but_for("albert", "modernbert")
@pytest.mark.gradients
def test_both_stages_with_checkpointing(family, tmp_path):
    model = make_model(family, num_labels=2)
    names = {field.name for field in dataclasses.fields(DeeBertTrainingArguments)}
    checkpointing = {
        next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in names): True
    }
    args = make_args(tmp_path, num_train_epochs=1, max_steps=2, **checkpointing)
    TwoStageTrainer(model, args, args, **DATA).train()
    assert model.config.off_ramps_trained


def test_the_configuration_switches_checkpointing_on(family):
    model = make_model(family, gradient_checkpointing=True)
    new = hasattr(model, "is_activation_checkpointing")
    assert model.is_activation_checkpointing if new else model.is_gradient_checkpointing
    assert not hasattr(model.config, "gradient_checkpointing")  # as in stock models: it is not saved


def test_one_backbone_is_initialised(family, monkeypatch):
    config, parts, devices = make_model(family).config, find_family(family, family), []
    reset = torch.nn.Linear.reset_parameters

    def counted(linear):
        devices.append(linear.weight.device.type)
        reset(linear)

    monkeypatch.setattr(torch.nn.Linear, "reset_parameters", counted)
    model = parts.classifier(config)
    assert 0 < devices.count("cpu") <= sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.slow_but_for("bert", "mpnet")
@pytest.mark.gradients
def test_lora_in_stage_1(family, tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        task_type="SEQ_CLS", target_modules="all-linear", exclude_modules=".*(off_ramps|pre_classifier).*", r=2
    )
    model = peft.get_peft_model(make_model(family, num_labels=2), config)
    before = snapshot(model)
    BackboneTrainer(model, make_args(tmp_path, num_train_epochs=1, learning_rate=1e-2), **DATA).train()
    trained = changed(model, before)
    assert any("lora" in name for name in trained)
    assert not any("off_ramps" in name for name in trained)
    merged = model.merge_and_unload()
    before = snapshot(merged)
    OffRampTrainer(merged, make_args(tmp_path, num_train_epochs=1), **DATA).train()
    assert changed(merged, before) == {name for name in before if "off_ramps." in name}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_data_types(family, dtype, tmp_path):
    model = make_model(family)
    model.to(torch.bfloat16 if dtype == "auto" else torch.float32).save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=dtype)
    expected = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {expected}
    assert loaded(**make_batch(family), early_exit_entropy=0.5).logits.dtype == expected


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_device_map(family, device_map, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map=device_map)
    output, expected = (part(**make_batch(family), early_exit_entropy=0.5) for part in (loaded, model))
    torch.testing.assert_close(output.logits, expected.logits)
    assert torch.equal(output.exit_layers, expected.exit_layers)
    # What accelerate must keep on one device: whole layers.
    layer_class = type(layers_of(loaded)[0]).__name__
    assert layer_class in loaded._no_split_modules


@pytest.mark.parametrize("family", [name for name in ENCODERS if name != "deberta-v2"])
def test_layers_on_disk(family, tmp_path):
    """Layers that accelerate brings in only when they are applied. (DeBERTa's stock model cannot do that either.)"""
    accelerate = pytest.importorskip("accelerate")
    model = make_model(family)
    expected = model(**make_batch(family), early_exit_entropy=0.5)
    devices = {name: "cpu" for name, _ in model.named_children()} | {model.base_model_prefix: "disk"}
    accelerate.dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path)
    assert next(layers_of(model).parameters()).device.type == "meta"
    output = model(**make_batch(family), early_exit_entropy=0.5)
    torch.testing.assert_close(output.logits, expected.logits)
    assert torch.equal(output.exit_layers, expected.exit_layers)


@pytest.mark.parametrize("what", ["base", "classifier"])
def test_from_backbone(family, what, tmp_path):
    model = make_model(family)
    stock = plain_folder(model, tmp_path, what)
    loaded = from_backbone(tmp_path, num_labels=NUM_LAYERS if what == "base" else 3, off_ramp_pooling="mean").eval()
    assert type(loaded) is find_family(family, "").classifier
    assert loaded.config.off_ramp_pooling == "mean"
    assert not loaded.config.off_ramps_trained
    backbone = stock if what == "base" else stock.base_model
    for name, tensor in backbone.state_dict().items():
        if "pooler" not in name:
            assert torch.equal(loaded.base_model.state_dict()[name], tensor)
    # A pre-trained pooler, where there is one, is what the off-ramps start from.
    if what == "base" and getattr(backbone, "pooler", None) is not None:
        dense = getattr(backbone.pooler, "dense", backbone.pooler)
        for off_ramp in loaded.base_model.off_ramps:
            assert torch.equal(off_ramp.pooler.dense.weight, dense.weight)
    elif family not in ("bert", "albert"):
        weights = [off_ramp.pooler.dense.weight for off_ramp in loaded.base_model.off_ramps]
        assert not torch.equal(weights[0], weights[1])


def test_from_backbone_of_an_early_exit_checkpoint(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    loaded = from_backbone(tmp_path)
    assert loaded.config.off_ramps_trained
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)


def test_from_backbone_names_the_families(tmp_path):
    GPT2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'gpt2'.*albert, bert, .*xlm-roberta") as error:
        from_backbone(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_names_and_tokenizers():
    """`Dee` + the stock prefix, `dee` + the stock type; the stock tokenizer; everything public."""
    assert sorted(family.config.backbone_type for family in FAMILIES) == sorted(ENCODERS)
    for family in FAMILIES:
        assert family.config.model_type == f"dee{family.config.backbone_type}"
        for part in family:
            assert part is getattr(transformers_deebert, part.__name__)
            assert part.__name__ in transformers_deebert.__all__
        stock_config = family.config.__mro__[2]
        assert stock_config.model_type == family.config.backbone_type
        assert TOKENIZER_MAPPING[family.config] is TOKENIZER_MAPPING[stock_config]


def test_segments_are_ignored_where_the_family_has_none(family):
    model, batch = make_model(family), make_batch(family)
    segments = torch.arange(12).ge(6).long().expand(12, -1)
    same = torch.equal(model(**batch, token_type_ids=segments).logits, model(**batch).logits)
    assert same != ENCODERS[family].segments


def test_old_folders_without_a_tokenizer_class(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    make_model("electra").save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)("good", "bad")["token_type_ids"] == [0, 0, 0, 1, 1]
