"""At full depth the model is the stock model: logits, states, attentions, gradients, other arguments of `forward`."""

import pickle

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, make_stock


@pytest.fixture(params=["sdpa", "eager"])
def models(request, family):
    model = make_model(family, attn_implementation=request.param)
    return model, make_stock(model, family)


def test_logits_and_states(models, family):
    model, stock = models
    batch = make_batch(family, width=15)
    asked = {"output_hidden_states": True, "output_attentions": model.config._attn_implementation == "eager"}
    expected, output = stock(**batch, **asked), model(**batch, **asked)
    assert torch.equal(output.logits, expected.logits)
    for name in ("hidden_states", "attentions"):
        pairs = zip(getattr(output, name) or (), getattr(expected, name) or (), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert len(output.hidden_states) == NUM_LAYERS + 1
    base = model.base_model(**batch)
    stock_base = stock.base_model(**batch)
    assert torch.equal(base.last_hidden_state, stock_base.last_hidden_state)
    if base.pooler_output is not None:
        assert torch.equal(base.pooler_output, stock_base.pooler_output)


def test_other_arguments(models, family):
    model, stock = models
    batch = make_batch(family)
    ids = batch["input_ids"]
    pad = model.config.pad_token_id
    variants = {
        "no mask": {"input_ids": ids},
        "segments": batch | {"token_type_ids": torch.arange(12).ge(6).long().expand(12, -1)},
        "one row of segments": batch | {"token_type_ids": torch.arange(12).ge(6).long()[None]},
        "positions": batch | {"position_ids": torch.arange(12).flip(0)[None] + pad + 1},
        "embeddings": {
            "inputs_embeds": model.get_input_embeddings()(ids),
            "attention_mask": batch["attention_mask"],
        },
        "bool mask": {"input_ids": ids, "attention_mask": batch["attention_mask"].bool()},
        "float mask": {"input_ids": ids, "attention_mask": batch["attention_mask"].float()},
        "one hidden state": batch | {"output_hidden_states": [0, 2]},
    }
    for name, inputs in variants.items():
        torch.testing.assert_close(model(**inputs).logits, stock(**inputs).logits, msg=name)


def enable_checkpointing(model):
    """Under the name that this version of transformers has for it."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")()


@pytest.mark.gradients
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(models, family, checkpointing):
    model, stock = models
    if checkpointing:
        for part in (model, stock):
            enable_checkpointing(part)
            for module in part.modules():  # checkpointing works in training mode only
                module.p = 0.0 if isinstance(module, torch.nn.Dropout) else getattr(module, "p", None)
            part.train()
            for layer in part.base_model.encoder.layer:
                layer.attention.self.dropout.p = layer.attention.self.attention_dropout = 0.0
    labels = torch.arange(12) % 3
    expected, output = stock(**make_batch(family), labels=labels), model(**make_batch(family), labels=labels)
    assert torch.equal(output.loss, expected.loss)
    expected.loss.backward()
    output.loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(gradients.pop(name), parameter.grad), name
    assert all(gradient is None for name, gradient in gradients.items() if "off_ramps" in name)


@pytest.mark.gradients
def test_gradients_reach_the_embeddings(family):
    model = make_model(family)
    batch = make_batch(family)
    embeds = model.get_input_embeddings()(batch["input_ids"]).detach().requires_grad_()
    model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits.sum().backward()
    assert (embeds.grad.abs().sum((1, 2)) > 0).all()


@pytest.mark.gradients
def test_gradients_through_exits(family):
    """In eval mode with autograd on: each row's gradient is that of its own exit."""
    model, batch = make_model(family), make_batch(family)
    model(**batch, early_exit_entropy=99.0).logits.sum().backward()
    assert model.base_model.off_ramps[0].classifier.weight.grad.abs().sum() > 0
    assert model.base_model.off_ramps[1].classifier.weight.grad is None


def test_pickling(family):
    output = make_model(family)(**make_batch(family), early_exit_entropy=0.5, output_off_ramp_logits=True)
    copy = pickle.loads(pickle.dumps(output))
    assert torch.equal(copy.logits, output.logits)
    assert torch.equal(copy.exit_layers, output.exit_layers)


def test_resized_embeddings(family):
    model = make_model(family)
    expected = model(**make_batch(family)).logits
    model.resize_token_embeddings(120)
    assert torch.equal(model(**make_batch(family)).logits, expected)
