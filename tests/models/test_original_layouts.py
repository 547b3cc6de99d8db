"""
Checkpoints of the original DeeBERT, BERxiT, PABEE and ElasticBERT: written here in their layouts, loaded, converted,
and compared with what those models answer.
"""

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, make_stock, off_ramp_answers, spread_thresholds
from safetensors.torch import load_file, save_file
from tiny_task import DATA, VALIDATION, collate, make_args, make_tiny
from transformers import AutoModelForSequenceClassification, BertTokenizer

from transformers_deebert import (
    DeeBertConfig,
    DeeBertForSequenceClassification,
    DeeRobertaForSequenceClassification,
    TwoStageTrainer,
    convert_checkpoint,
    from_backbone,
)
from transformers_deebert.analysis import entropy
from transformers_deebert.cli import main
from transformers_deebert.families import find_family


# ---- what the other codes wrote


def head_of(tensors, prefix):
    """The model's own head as those codes have it: a pooler in the backbone and one linear layer."""
    if prefix == "roberta":
        for kind in ("weight", "bias"):
            tensors[f"roberta.pooler.dense.{kind}"] = tensors.pop(f"classifier.dense.{kind}")
            tensors[f"classifier.{kind}"] = tensors.pop(f"classifier.out_proj.{kind}")
    return tensors


def deebert_tensors(model):
    """DeeBERT: highways, the last of which nobody trained."""
    prefix, size = model.base_model_prefix, model.config.hidden_size
    tensors = head_of(dict(model.state_dict()), prefix)
    tensors = {name.replace(".off_ramps.", ".encoder.highway."): tensor for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(7)
    last = f"{prefix}.encoder.highway.{model.config.num_hidden_layers - 1}"
    for name, shape in (("pooler.dense", (size, size)), ("classifier", (model.config.num_labels, size))):
        tensors[f"{last}.{name}.weight"] = torch.randn(shape, generator=generator)
        tensors[f"{last}.{name}.bias"] = torch.zeros(shape[0])
    tensors[f"{prefix}.embeddings.position_ids"] = torch.arange(20)[None]
    return tensors


def berxit_tensors(model):
    """BERxiT: the same, the backbone twice, and a learned exit rule."""
    tensors = deebert_tensors(model)
    prefix = f"{model.base_model_prefix}."
    tensors |= {f"core.{name.removeprefix(prefix)}": tensors[name] for name in tensors if name.startswith(prefix)}
    for place in (prefix, "core."):
        tensors[f"{place}encoder.lte_classifier.weight"] = torch.ones(1, 32)
        tensors[f"{place}encoder.lte_classifier.bias"] = torch.ones(1)
    return tensors


def pabee_tensors(model):
    """PABEE: one pooler for all exits, a list of linear layers, the last of which is the head."""
    tensors = dict(model.state_dict())
    prefix, last = model.base_model_prefix, model.config.num_hidden_layers - 1
    for name in list(tensors):
        if ".off_ramps." in name:
            tensor = tensors.pop(name)
            layer, part = name.split(".off_ramps.")[1].split(".", 1)
            if part.startswith("classifier"):
                tensors[f"classifiers.{layer}.{part.split('.')[1]}"] = tensor
    for kind in ("weight", "bias"):
        tensors[f"classifiers.{last}.{kind}"] = tensors.pop(f"classifier.{kind}")
        pooler = tensors.get(f"{prefix}.pooler.{kind}", tensors.get(f"{prefix}.pooler.dense.{kind}"))
        for off_ramp in model.base_model.off_ramps:  # the model must say the same
            getattr(off_ramp.pooler.dense, kind).data.copy_(pooler)
    return tensors


def elasticbert_tensors(model, classifiers=True):
    """ElasticBERT: a list of poolers in the encoder; the pre-trained backbone has no classifiers yet."""
    tensors, last = {}, model.config.num_hidden_layers - 1
    for name, tensor in model.state_dict().items():
        if ".off_ramps." in name:
            layer, part = name.split(".off_ramps.")[1].split(".", 1)
            kind = part.split(".")[-1]
            name = f"bert.encoder.pooler.{layer}.dense.{kind}" if "pooler" in part else f"classifiers.{layer}.{kind}"
        name = name.replace("bert.pooler.dense", f"bert.encoder.pooler.{last}.dense")
        name = f"classifiers.{last}.{name.split('.')[1]}" if name.startswith("classifier.") else name
        if classifiers or not name.startswith("classifiers."):
            tensors[f"elastic{name}" if name.startswith("bert.") else name] = tensor
    if not classifiers:
        tensors["cls.0.predictions.bias"] = torch.zeros(100)
    return tensors


def write(folder, model, tensors, model_type="bert", pickled=True):
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    if pickled:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    ours = ("off_ramp", "exit", "model_type", "architectures", "dtype", "transformers_version")
    config = {key: value for key, value in model.config.to_dict().items() if not any(name in key for name in ours)}
    config |= {"num_labels": model.config.num_labels}
    (folder / "config.json").write_text(json.dumps(config | ({"model_type": model_type} if model_type else {})))
    return folder


LAYOUTS = {
    "deebert": ("bert", deebert_tensors, "bert"),
    "deebert without a type": ("bert", deebert_tensors, None),
    "deebert of roberta": ("roberta", deebert_tensors, "roberta"),
    "berxit": ("bert", berxit_tensors, "bert"),
    "berxit of roberta": ("roberta", berxit_tensors, "roberta"),
    "pabee": ("bert", pabee_tensors, "bert"),
    "pabee of albert": ("albert", pabee_tensors, "albert"),
    "elasticbert": ("bert", elasticbert_tensors, "elasticbert"),
}


@pytest.fixture(params=LAYOUTS)
def old(request, tmp_path):
    """A model, its family, and a folder with the same model in the layout of another implementation."""
    family, tensors_of, model_type = LAYOUTS[request.param]
    model = make_model(family)
    tensors = tensors_of(model)
    pickled = request.param not in ("elasticbert", "deebert of roberta")
    return model, family, write(tmp_path / "old", model, tensors, model_type, pickled)


def test_they_load(old):
    model, family, folder = old
    loaded, info = find_family(family, family).classifier.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.off_ramps_trained
    assert not loaded.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    batch = make_batch(family)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    output, expected = (part(**batch, early_exit_entropy=thresholds) for part in (loaded, model))
    assert len(expected.exit_layers.unique()) >= 3
    torch.testing.assert_close(output.logits, expected.logits)
    assert torch.equal(output.exit_layers, expected.exit_layers)


def test_saved_they_are_in_the_modern_form(old, tmp_path):
    """transformers would write back the keys it read."""
    model, family, folder = old
    find_family(family, family).classifier.from_pretrained(folder).save_pretrained(tmp_path / "new")
    assert set(load_file(tmp_path / "new" / "model.safetensors")) == set(model.state_dict())
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert again.config.off_ramps_trained
    assert "elasticbert" not in (tmp_path / "new" / "config.json").read_text()


def test_they_convert(old, tmp_path, capsys):
    model, family, folder = old
    assert main(["convert", str(folder), str(tmp_path / "new")]) == 0
    assert f"{NUM_LAYERS - 1} trained off-ramps" in capsys.readouterr().out
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "new")
    assert type(again) is type(model)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    stock = make_stock(again)
    torch.testing.assert_close(stock(**make_batch(family)).logits, model(**make_batch(family)).logits)


# ---- DeeBERT's answers


def original_answers(tensors, stock, ids, threshold):
    """
    DeeBERT (Algorithm 1), one sample at a time: after each layer its highway is asked, and answers if the entropy of
    what it says is below the threshold; if none does, the model's own head answers. Written from the paper.

    Returns:
        Exit layer, logits, entropies of all highways that were asked, and whether the never trained last one answered.
    """
    states = stock.base_model(input_ids=ids[None], output_hidden_states=True).hidden_states[1:]
    prefix, asked = stock.base_model_prefix, []
    for layer, state in enumerate(states):
        name = f"{prefix}.encoder.highway.{layer}"
        pooled = torch.tanh(
            tensors[f"{name}.pooler.dense.weight"] @ state[0, 0] + tensors[f"{name}.pooler.dense.bias"]
        )
        logits = tensors[f"{name}.classifier.weight"] @ pooled + tensors[f"{name}.classifier.bias"]
        powers = logits.double().exp()
        asked.append(float(powers.sum().log() - (logits * powers).sum() / powers.sum()))
        if asked[-1] < threshold:
            return layer + 1, logits, asked, layer + 1 == len(states)
    pooled = tensors[f"{prefix}.pooler.dense.weight"] @ states[-1][0, 0] + tensors[f"{prefix}.pooler.dense.bias"]
    return len(states), tensors["classifier.weight"] @ pooled.tanh() + tensors["classifier.bias"], asked, False


def trained_model(tmp_path):
    model = make_tiny()
    args = make_args(tmp_path / "trained", num_train_epochs=6, learning_rate=2e-3)
    with torch.enable_grad():
        TwoStageTrainer(model, args, args, **DATA).train()
    return model.eval()


@pytest.mark.parametrize("what", ["bert", "roberta", "trained"])
def test_parity(what, tmp_path):
    """Logits, entropies and exit layers, for thresholds from 0 to 1, at batch size 1 and in one batch."""
    model = trained_model(tmp_path) if what == "trained" else make_model(what)
    family = model.config.backbone_type
    batch = make_batch(family, lengths=(3, 12, 7, 5, 12, 4, 9, 6, 8, 11))
    if what == "trained":
        batch = {name: tensor for name, tensor in collate(VALIDATION).items() if name != "labels"}
    tensors = deebert_tensors(model)
    loaded = find_family(family, family).classifier.from_pretrained(write(tmp_path / "old", model, tensors, family))
    stock = make_stock(model)
    exits, untrained = set(), 0
    for threshold in (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 1.0):
        output = loaded(**batch, early_exit_entropy=threshold)
        for row, (ids, mask) in enumerate(zip(*batch.values(), strict=True)):
            exit_layer, logits, asked, by_the_last = original_answers(tensors, stock, ids[mask == 1], threshold)
            assert output.exit_layers[row] == exit_layer
            exits.add(exit_layer)
            untrained += by_the_last
            if by_the_last:
                # The one deliberate difference: the original asks its last highway, which was never trained.
                _, logits, _, _ = original_answers(tensors, stock, ids[mask == 1], 0.0)
            torch.testing.assert_close(output.logits[row], logits, atol=1e-4, rtol=1e-4)
            if exit_layer < NUM_LAYERS:
                assert float(entropy(output.logits[row])) == pytest.approx(asked[-1], abs=1e-4)
    assert len(exits) >= 3
    assert untrained


@pytest.mark.skipif("DEEBERT_PARITY" not in os.environ, reason="DEEBERT_PARITY names no folder")
def test_parity_with_the_original_code():
    """`DEEBERT_PARITY`: a checkpoint of the original code, and in expected.safetensors what it answered."""
    folder = Path(os.environ["DEEBERT_PARITY"])
    model = DeeBertForSequenceClassification.from_pretrained(folder)
    expected = load_file(folder / "expected.safetensors")
    ids = expected["ids"]
    mask = torch.arange(ids.shape[1]) < expected["lens"][:, None]
    output = model(input_ids=ids, attention_mask=mask, output_off_ramp_logits=True)
    ramps = torch.stack(output.off_ramp_logits[:-1], 1)
    torch.testing.assert_close(ramps, expected["ramps"][:, :-1], atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(entropy(ramps), expected["entropy"][:, :-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, expected["final"], atol=2e-5, rtol=1e-5)
    exits = set()
    for name in (name for name in expected if name.startswith("exit_")):
        threshold = name.removeprefix("exit_")
        output = model(input_ids=ids, attention_mask=mask, early_exit_entropy=float(threshold))
        assert output.exit_layers.tolist() == expected[name].tolist()
        torch.testing.assert_close(output.logits, expected[f"logits_{threshold}"], atol=2e-5, rtol=1e-5)
        exits |= set(expected[name].tolist())
    assert len(exits) >= 3


# ---- the small print


def test_the_last_highway_is_dropped_with_a_message(tmp_path, caplog):
    model = make_model()
    write(tmp_path, model, berxit_tensors(model))
    with caplog.at_level(logging.INFO):
        DeeBertForSequenceClassification.from_pretrained(tmp_path)
    messages = {
        record.levelname: record.getMessage() for record in caplog.records if "left out" in record.getMessage()
    }
    assert f"off-ramp behind layer {NUM_LAYERS}" in messages["INFO"]
    assert "learned exit rule" in messages["WARNING"]


def test_the_base_model_loads_too(tmp_path):
    model = make_model("roberta")
    write(tmp_path, model, deebert_tensors(model), "roberta")
    base = find_family("roberta", "").model.from_pretrained(tmp_path, add_pooling_layer=False)
    expected = model.base_model(**make_batch("roberta"), exit_layer=2)
    assert torch.equal(base(**make_batch("roberta"), exit_layer=2).last_hidden_state, expected.last_hidden_state)


def test_pretrained_poolers_of_elasticbert_are_a_start(tmp_path):
    model = make_model()
    write(tmp_path, model, elasticbert_tensors(model, classifiers=False), "elasticbert")
    loaded = from_backbone(tmp_path, num_labels=5)
    assert not loaded.config.off_ramps_trained
    for ours, theirs in zip(loaded.bert.off_ramps, model.bert.off_ramps, strict=True):
        assert torch.equal(ours.pooler.dense.weight, theirs.pooler.dense.weight)
        assert ours.classifier.weight.std() == pytest.approx(model.config.initializer_range, rel=0.5)
    assert loaded(**make_batch()).logits.shape == (12, 5)


def test_another_pooling_makes_them_untrained(tmp_path):
    model = make_model()
    write(tmp_path, model, deebert_tensors(model))
    loaded = DeeBertForSequenceClassification.from_pretrained(tmp_path, off_ramp_pooling="mean")
    assert not loaded.config.off_ramps_trained
    with pytest.raises(ValueError, match="off_ramp_head"):
        DeeBertForSequenceClassification.from_pretrained(tmp_path, off_ramp_head="linear")


def test_a_damaged_checkpoint_is_refused(tmp_path):
    model = make_model()
    tensors = deebert_tensors(model)
    tensors.pop("bert.encoder.highway.1.classifier.weight")
    write(tmp_path, model, tensors)
    with pytest.raises(ValueError, match=r"missing: bert\.off_ramps\.1\.classifier\.weight"):
        DeeBertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("damage", ["pickle", "empty", "cut", "list", "safetensors"])
def test_files_that_cannot_be_read(damage, tmp_path, capsys):
    """A pickled file is read as tensors by name, and as nothing else whatever the user asks for."""
    model, old = make_model(), tmp_path / "old"
    write(old, model, deebert_tensors(model))
    path = old / "pytorch_model.bin"
    if damage == "pickle":
        path.write_bytes(pickle.dumps({"bert.encoder.highway.0.classifier.bias": print}, protocol=2))
    elif damage == "list":
        torch.save([torch.zeros(1)], path)
    elif damage == "safetensors":
        (old / "model.safetensors").write_bytes(b"")
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else 1000])
    name = "model.safetensors" if damage == "safetensors" else "pytorch_model.bin"
    for kwargs in ({}, {"weights_only": False}):
        with pytest.raises(ValueError, match=rf"{name}' cannot be read"):
            DeeBertForSequenceClassification.from_pretrained(old, **kwargs)
    assert main(["convert", str(old), str(tmp_path / "new")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_file_that_the_user_names(tmp_path):
    """`variant`, `use_safetensors`, shards and a state dict, as for any checkpoint."""
    model = make_model()
    zero = make_model()
    zero.classifier.weight.data.zero_()
    write(tmp_path, model, deebert_tensors(model))
    torch.save(deebert_tensors(zero), tmp_path / "pytorch_model.fp16.bin")
    load = DeeBertForSequenceClassification.from_pretrained
    assert load(tmp_path, variant="fp16").classifier.weight.eq(0).all()
    write(tmp_path, zero, deebert_tensors(zero), pickled=False)
    assert load(tmp_path).classifier.weight.eq(0).all()
    assert torch.equal(load(tmp_path, use_safetensors=False).classifier.weight, model.classifier.weight)
    loaded = load(None, config=load(tmp_path).config, state_dict=deebert_tensors(model))
    assert torch.equal(loaded.bert.off_ramps[1].classifier.weight, model.bert.off_ramps[1].classifier.weight)


def test_shards(tmp_path):
    model = make_model()
    tensors = deebert_tensors(model)
    write(tmp_path, model, {})
    (tmp_path / "pytorch_model.bin").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / file)
        weight_map |= dict.fromkeys(part, file)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    loaded = DeeBertForSequenceClassification.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_a_bare_backbone_and_a_lone_duplicate(tmp_path):
    model = make_model()
    tensors = {
        name.removeprefix("bert."): tensor
        for name, tensor in deebert_tensors(model).items()
        if name.startswith("bert.")
    }
    write(tmp_path / "bare", model, tensors)
    tensors = {name: t for name, t in berxit_tensors(model).items() if not name.startswith("bert.")}
    write(tmp_path / "core", model, tensors)
    for folder in ("bare", "core"):
        base = find_family("bert", "").model.from_pretrained(tmp_path / folder)
        for name, tensor in model.bert.state_dict().items():
            assert torch.equal(base.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match=r"lacks parts of .*classifier\.bias"):
        DeeBertForSequenceClassification.from_pretrained(tmp_path / "bare")


def test_fewer_layers(tmp_path):
    """DeeBERT trained one layer to be the last; PABEE and ElasticBERT all of them."""
    model = make_model()
    load = DeeBertForSequenceClassification.from_pretrained
    with pytest.raises(ValueError, match=r"not in this model: .*off_ramps\.2"):
        load(write(tmp_path / "deebert", model, deebert_tensors(model)), num_hidden_layers=2)
    cut = load(write(tmp_path / "elastic", model, elasticbert_tensors(model), "elasticbert"), num_hidden_layers=2)
    expected = model(**make_batch(), output_off_ramp_logits=True).off_ramp_logits
    logits = cut(**make_batch(), output_off_ramp_logits=True).off_ramp_logits
    for ours, theirs in zip(logits, expected[:2], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("what", ["head", "pooler", "roberta"])
def test_parts_that_are_missing(what, tmp_path, capsys):
    model = make_model("roberta" if what == "roberta" else "bert")
    start = {"head": "classifier", "pooler": "bert.pooler", "roberta": "roberta.pooler"}[what]
    tensors = {name: tensor for name, tensor in deebert_tensors(model).items() if not name.startswith(start)}
    write(tmp_path / "old", model, tensors, model.config.backbone_type)
    assert main(["convert", str(tmp_path / "old"), str(tmp_path / "new")]) == 2
    assert "lacks parts" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_arguments_of_from_pretrained(tmp_path):
    model = make_model()
    folder = write(tmp_path / "old", model, deebert_tensors(model))
    load = DeeBertForSequenceClassification.from_pretrained
    config = DeeBertConfig.from_pretrained(folder)
    loaded = load(folder, config=config)
    assert loaded.config.off_ramps_trained
    assert not config.off_ramps_trained  # the user's own
    assert loaded.name_or_path == loaded.config.name_or_path == str(folder)
    assert not load(folder, off_ramps_trained=False).config.off_ramps_trained
    assert load(folder, config=str(folder)).config.off_ramps_trained
    assert load(folder, dtype="auto").dtype == torch.float32
    assert load(folder, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert type(from_backbone(write(tmp_path / "old", model, deebert_tensors(model), None))) is type(model)


def test_a_plain_pickled_checkpoint_is_a_start_as_before(tmp_path):
    model = make_model()
    plain = {name: tensor for name, tensor in model.state_dict().items() if "off_ramps" not in name}
    write(tmp_path, model, plain)
    loaded = DeeBertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    assert not loaded.config.off_ramps_trained


def test_swapped_labels(tmp_path, caplog):
    """RoBERTa on MNLI: offered, not guessed."""
    model = make_model("roberta")
    folder = write(tmp_path / "old", model, deebert_tensors(model), "roberta")
    batch = make_batch("roberta")
    expected = torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits)
    with caplog.at_level(logging.WARNING):
        kept = convert_checkpoint(folder, tmp_path / "kept")
    assert "--swap-labels 1 2" in caplog.text
    assert torch.equal(torch.stack(kept(**batch, output_off_ramp_logits=True).off_ramp_logits), expected)
    assert main(["convert", str(folder), str(tmp_path / "swapped"), "--swap-labels", "1", "2"]) == 0
    swapped = DeeRobertaForSequenceClassification.from_pretrained(tmp_path / "swapped")
    logits = torch.stack(swapped(**batch, output_off_ramp_logits=True).off_ramp_logits)
    torch.testing.assert_close(logits, expected[..., [0, 2, 1]])
    for labels in ((1, 1), (0, 3), (-1, 0)):
        with pytest.raises(ValueError, match="`swap_labels`"):
            convert_checkpoint(folder, tmp_path / "never", swap_labels=labels)
    assert not (tmp_path / "never").exists()


def test_the_tokenizer_comes_along(tmp_path):
    model = make_model()
    folder = write(tmp_path / "old", model, deebert_tensors(model))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]))
    convert_checkpoint(folder, tmp_path / "new")
    assert BertTokenizer.from_pretrained(tmp_path / "new")("good bad")["input_ids"] == [2, 5, 6, 3]


def test_without_a_tokenizer_none_is_made_up(tmp_path, caplog):
    model = make_model()
    folder = write(tmp_path / "old", model, deebert_tensors(model))
    convert_checkpoint(folder, tmp_path / "new")
    assert "No tokenizer" in caplog.text
    files = {path.name for path in (tmp_path / "new").iterdir() if path.suffix != ".py"}
    assert files == {"config.json", "model.safetensors"}


def test_where_it_is_written(tmp_path, monkeypatch):
    model = make_model()
    folder = write(tmp_path / "old", model, deebert_tensors(model))
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    for new in (".", "../link", "x/..", "../here"):
        with pytest.raises(ValueError, match="`new`"):
            convert_checkpoint(folder, new)
    convert_checkpoint(folder, "there")  # relative, and in a place that is not there yet
    convert_checkpoint(folder, tmp_path / "a" / "b" / "c")
    (tmp_path / "empty").mkdir()
    convert_checkpoint(folder, tmp_path / "empty")
    for new in (tmp_path / "here" / "there", tmp_path / "a" / "b" / "c", tmp_path / "empty"):
        assert (new / "model.safetensors").exists()
        assert [path for path in new.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("what", ["plain", "modern", "nothing", "no config", "used", "other"])
def test_what_cannot_be_converted(what, tmp_path, capsys):
    model, old, new = make_model(), tmp_path / "old", tmp_path / "new"
    if what == "plain":
        make_stock(model).save_pretrained(old)
    elif what == "modern":
        model.save_pretrained(old)
    elif what != "nothing":
        write(old, model, deebert_tensors(model), "gpt2" if what == "other" else "bert")
    if what == "no config":
        (old / "config.json").unlink()
    if what == "used":
        new.mkdir()
        (new / "notes.txt").write_text("mine")
    assert main(["convert", str(old), str(new)]) == 2
    message = capsys.readouterr().err
    expected = {"used": "`new`", "nothing": str(old), "other": "gpt2", "no config": "config.json"}
    expected = expected.get(what, "none of the layouts")
    assert expected in message
    assert {path.name for path in tmp_path.iterdir()} <= {"old", "new"}
    assert [path.name for path in new.glob("*")] == (["notes.txt"] if what == "used" else [])
