"""At full depth the model is the stock model: logits, states, attentions, gradients, other arguments of `forward`."""

import pickle

import pytest
import torch
from conftest import ENCODERS, NUM_LAYERS, VARIANTS, layers_of, make_batch, make_model, make_stock


@pytest.fixture
def family(family_and_attention):
    return family_and_attention[0]


@pytest.fixture
def models(family_and_attention):
    family, attention = family_and_attention
    model = make_model(family, attn_implementation=attention)
    return model, make_stock(model)


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
    segments = torch.arange(12).ge(6).long()[None]
    variants = {
        "no mask": {"input_ids": ids},
        "segments": batch | {"token_type_ids": segments.expand(12, -1)},
        "one row of segments": batch | {"token_type_ids": segments},
        "positions": batch | {"position_ids": torch.arange(12).flip(0)[None] + model.config.pad_token_id + 1},
        "embeddings": {
            "inputs_embeds": model.get_input_embeddings()(ids),
            "attention_mask": batch["attention_mask"],
        },
        "bool mask": {"input_ids": ids, "attention_mask": batch["attention_mask"].bool()},
        "float mask": {"input_ids": ids, "attention_mask": batch["attention_mask"].float()},
    }
    for name, inputs in variants.items():
        known = dict(inputs)
        if not ENCODERS[family].segments:
            known.pop("token_type_ids", None)
        if name == "bool mask":
            known["attention_mask"] = batch["attention_mask"]  # which some stock models do not take
        torch.testing.assert_close(model(**inputs).logits, stock(**known).logits, msg=f"{family}: {name}")


@pytest.mark.parametrize(("wanted", "there"), [(2, {2}), ([0, -1], {0, NUM_LAYERS}), ([1, 99], {1}), (0, {0})])
def test_chosen_hidden_states(models, family, wanted, there):
    model, _ = models
    output = model(**make_batch(family), output_hidden_states=wanted)
    full = model(**make_batch(family), output_hidden_states=True)
    assert {index for index, states in enumerate(output.hidden_states) if states is not None} == there
    assert all(torch.equal(output.hidden_states[index], full.hidden_states[index]) for index in there)


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant):
    family, settings = VARIANTS[variant]
    model = make_model(family, **settings)
    expected = make_stock(model)(**make_batch(family, width=15), output_hidden_states=True)
    output = model(**make_batch(family, width=15), output_hidden_states=True)
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-6, rtol=1e-6)
    # A pass through several inner layers is one layer here, several states there.
    step = (len(expected.hidden_states) - 1) // NUM_LAYERS
    assert len(expected.hidden_states) == step * NUM_LAYERS + 1
    for states, stock_states in zip(output.hidden_states, expected.hidden_states[::step], strict=True):
        assert torch.equal(states, stock_states)


def test_groups_of_albert_that_do_not_divide_its_layers():
    model = make_model("albert", num_layers=18, num_hidden_groups=14)
    torch.testing.assert_close(model(**make_batch()).logits, make_stock(model)(**make_batch()).logits)


def enable_checkpointing(model, **kwargs):
    """Under the name that this version of transformers has for it."""
    name = "activation_checkpointing_enable"
    getattr(model, name if hasattr(model, name) else "gradient_checkpointing_enable")(**kwargs)


def same(actual, expected, exact):
    return torch.equal(actual, expected) if exact else torch.allclose(actual, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.gradients
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients(family_and_attention, checkpointing):
    """In training mode, without dropout; checkpointing changes nothing but the memory."""
    family, attention = family_and_attention
    encoder = ENCODERS[family]
    model = make_model(family, attn_implementation=attention, **dict.fromkeys(encoder.dropouts, 0.0)).train()
    stock = make_stock(model).train()
    applied = []
    for layer in layers_of(model):
        # Inside a layer, because its own hooks are not called when it is computed again.
        first = next(module for module in layer.modules() if isinstance(module, torch.nn.Linear))
        first.register_forward_pre_hook(lambda *args: applied.append(1))
    if checkpointing:
        enable_checkpointing(model)
    labels = torch.arange(12) % 3
    expected, output = stock(**make_batch(family), labels=labels), model(**make_batch(family), labels=labels)
    assert same(output.loss, expected.loss, encoder.exact)
    once = len(applied)
    assert once >= NUM_LAYERS
    expected.loss.backward()
    output.loss.backward()
    assert len(applied) == once * (2 if checkpointing else 1)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in stock.named_parameters():
        if parameter.grad is not None:
            assert same(gradients.pop(name), parameter.grad, encoder.exact), name
    assert all(gradient is None for name, gradient in gradients.items() if "off_ramps" in name)


@pytest.mark.gradients
@pytest.mark.parametrize("family", ["albert", "mpnet"])
def test_reentrant_checkpointing(family):
    """Of the families that the loop checkpoints; DeBERTa's stock model cannot do it."""
    gradients = []
    for checkpointing in (None, {"use_reentrant": True}):
        model = make_model(family, **dict.fromkeys(ENCODERS[family].dropouts, 0.0)).train()
        if checkpointing:
            enable_checkpointing(model, **{checkpointing_argument(model): checkpointing})
        model(**make_batch(family), labels=torch.arange(12) % 3).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-5)


def checkpointing_argument(model):
    new = hasattr(model, "activation_checkpointing_enable")
    return "activation_checkpointing_kwargs" if new else "gradient_checkpointing_kwargs"


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
