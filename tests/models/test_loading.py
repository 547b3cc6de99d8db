"""Saving and loading: plain checkpoints, stock classes, Auto classes, damaged files."""

import json
import logging

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, make_stock, stock_class
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertConfig

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification
from transformers_deebert.families import find_family


@pytest.fixture
def warnings_of_transformers(caplog):
    logger = logging.getLogger("transformers")
    logger.propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog
    logger.propagate = False


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_auto_classes(family, pooling, tmp_path):
    parts = find_family(family, family)
    model = make_model(family, off_ramp_pooling=pooling)
    model.config.early_exit_entropy = [0.1, 0.2, 0.3]
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} == {"config.json", "model.safetensors"}
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is parts.config
    assert config.model_type == f"dee{family}"
    assert (config.early_exit_entropy, config.off_ramp_pooling) == ([0.1, 0.2, 0.3], pooling)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is parts.classifier
    assert loaded.config.off_ramps_trained
    expected, output = model(**make_batch(family)), loaded.eval()(**make_batch(family))
    torch.testing.assert_close(output.logits, expected.logits)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    base = AutoModel.from_pretrained(tmp_path).eval()
    assert type(base) is parts.model
    assert torch.equal(base(**make_batch(family)).exit_layers, expected.exit_layers)


def test_the_stock_class_loads_our_checkpoint(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    stock = stock_class(model).from_pretrained(tmp_path).eval()
    assert torch.equal(stock(**make_batch(family)).logits, model(**make_batch(family)).logits)
    assert set(stock.state_dict()) <= set(model.state_dict())


@pytest.mark.parametrize("what", ["base", "classifier"])
def test_a_plain_checkpoint_is_a_start(family, what, tmp_path, warnings_of_transformers):
    model = make_model(family)
    stock = make_stock(model) if what == "classifier" else stock_class(model.base_model)(model.config)
    stock.config.model_type = family  # as its own configuration would say
    stock.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    extra = [key for key in config if "off_ramp" in key or "exit" in key]
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in extra}))
    model = find_family(family, family).classifier.from_pretrained(tmp_path, num_labels=3).eval()
    assert "You are using a model of type" not in warnings_of_transformers.text
    assert model.config.model_type == f"dee{family}"
    assert not model.config.off_ramps_trained
    if what == "classifier":
        assert torch.equal(model(**make_batch(family)).logits, stock.eval()(**make_batch(family)).logits)
    if family in ("bert", "albert"):
        pooler = (stock if what == "base" else stock.base_model).pooler
        pooler = pooler.dense if family == "bert" else pooler
        for off_ramp in model.base_model.off_ramps:
            assert torch.equal(off_ramp.pooler.dense.weight, pooler.weight)
            assert torch.equal(off_ramp.pooler.dense.bias, pooler.bias)
    weights = [off_ramp.classifier.weight for off_ramp in model.base_model.off_ramps]
    assert all(0.1 < weight.std() / model.config.initializer_range < 2 for weight in weights)
    assert not torch.equal(weights[0], weights[1])


def test_new_attention_queries_are_initialised(tmp_path):
    stock = make_stock(make_model())
    stock.config.model_type = "bert"
    stock.save_pretrained(tmp_path)
    model = DeeBertForSequenceClassification.from_pretrained(
        tmp_path, off_ramp_pooling="attention", off_ramps_trained=False
    )
    stds = torch.stack([off_ramp.attention.query.std() for off_ramp in model.bert.off_ramps])
    assert ((stds > 0.05) & (stds < 0.3)).all()


def test_trained_off_ramps_survive(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = DeeBertForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    _, info = DeeBertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]


@pytest.fixture
def saved(tmp_path):
    make_model().save_pretrained(tmp_path)
    return tmp_path


def edit(folder, function):
    tensors = load_file(folder / "model.safetensors")
    function(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_with_some_off_ramps_missing_is_refused(saved):
    edit(saved, lambda tensors: tensors.pop("bert.off_ramps.1.classifier.weight"))
    with pytest.raises(ValueError, match=r"missing: bert\.off_ramps\.1\.classifier\.weight"):
        DeeBertForSequenceClassification.from_pretrained(saved)


def test_a_checkpoint_with_an_off_ramp_of_another_shape_is_refused(saved):
    edit(saved, lambda tensors: tensors.update({"bert.off_ramps.2.classifier.bias": torch.zeros(7)}))
    with pytest.raises(ValueError, match=r"off_ramps"):
        DeeBertForSequenceClassification.from_pretrained(saved)


def test_a_checkpoint_with_other_off_ramps_is_refused(saved):
    with pytest.raises(ValueError, match=r"not in this model: .*pooler\.dense"):
        DeeBertForSequenceClassification.from_pretrained(saved, off_ramp_head="linear")
    with pytest.raises(ValueError, match=r"not in this model: .*off_ramps\.2"):
        DeeBertForSequenceClassification.from_pretrained(saved, num_hidden_layers=NUM_LAYERS - 1)


def test_another_pooling_makes_off_ramps_untrained(saved):
    assert not DeeBertForSequenceClassification.from_pretrained(
        saved, off_ramp_pooling="mean"
    ).config.off_ramps_trained
    assert DeeBertForSequenceClassification.from_pretrained(saved, off_ramp_pooling="cls").config.off_ramps_trained


def test_another_pooling_in_a_configuration_object_does_too(saved):
    config = DeeBertConfig.from_pretrained(saved)
    config.off_ramp_pooling = "mean"
    assert not DeeBertForSequenceClassification.from_pretrained(saved, config=config).config.off_ramps_trained
    assert config.off_ramps_trained  # the user's own
    config.off_ramp_pooling = "cls"
    assert DeeBertForSequenceClassification.from_pretrained(saved, config=config).config.off_ramps_trained


def test_another_number_of_labels_needs_consent(saved):
    with pytest.raises(ValueError, match="ignore_mismatched_sizes"):
        DeeBertForSequenceClassification.from_pretrained(saved, num_labels=5)
    model = DeeBertForSequenceClassification.from_pretrained(saved, num_labels=5, ignore_mismatched_sizes=True)
    assert model(**make_batch()).logits.shape == (12, 5)
    assert not model.config.off_ramps_trained


@pytest.mark.parametrize(
    "settings",
    [
        {"off_ramp_pooling": "max"},
        {"off_ramp_head": "mlps"},
        {"off_ramp_context": "future"},
        {"off_ramp_context": "past", "off_ramp_head": "pooler"},
        {"early_exit_entropy": -1.0},
        {"early_exit_entropy": [0.1]},
        {"early_exit_entropy": float("nan")},
        {"exit_layer": 5},
        {"exit_layer": 0},
        {"exit_layer": 2, "early_exit_entropy": 0.1},
        {"early_exit_entropy": True},
        {"early_exit_entropy": "0.1"},
    ],
)
def test_bad_configurations(settings):
    with pytest.raises(Exception, match=next(iter(settings))):
        DeeBertConfig(num_hidden_layers=4, **settings)


@pytest.mark.parametrize("settings", [{"off_ramp_pooling": "max"}, {"off_ramp_head": "mlp"}, {"exit_layer": 9}])
def test_bad_overrides(saved, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        DeeBertForSequenceClassification.from_pretrained(saved, **settings)


def test_a_stock_configuration_is_taken(tmp_path):
    make_stock(make_model()).save_pretrained(tmp_path)
    change(tmp_path, model_type="bert")
    config = BertConfig.from_pretrained(tmp_path)
    model = DeeBertForSequenceClassification.from_pretrained(tmp_path, config=config)
    assert type(model.config) is DeeBertConfig


@pytest.mark.parametrize("threshold", [None, 0, 0.5, [0.1, 0, 1]])
def test_configurations_round_trip(threshold, tmp_path):
    config = DeeBertConfig(num_hidden_layers=4, hidden_size=48, early_exit_entropy=threshold, off_ramp_pooling="mean")
    assert config.hidden_size == 48
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "deebert"
    assert saved["off_ramp_pooling"] == "mean"
    assert DeeBertConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    assert "DeeBertConfig {" in repr(config)


def test_tokenizers(tmp_path):
    """Also where tokenizer_config.json names no class."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    DeeBertConfig().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    encoded = tokenizer("good", "bad")
    assert encoded["token_type_ids"] == [0, 0, 0, 1, 1]
    tokenizer.save_pretrained(tmp_path / "saved")
    DeeBertConfig().save_pretrained(tmp_path / "saved")
    change_tokenizer = tmp_path / "saved" / "tokenizer_config.json"
    settings = json.loads(change_tokenizer.read_text())
    settings.pop("tokenizer_class", None)
    change_tokenizer.write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(tmp_path / "saved")("good", "bad")["token_type_ids"] == [0, 0, 0, 1, 1]
