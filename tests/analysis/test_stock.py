"""The stock model that early exit is timed against."""

import copy

import pytest
import torch
from conftest import make_batch, make_model, stock_class
from torch import nn

from transformers_deebert import DeeModernBertForSequenceClassification, analysis, stock_model


def test_it_is_the_stock_class_with_the_same_answers(family_and_attention):
    family, attention = family_and_attention
    model = make_model(family)
    model.set_attn_implementation(attention)
    stock = stock_model(model)
    assert type(stock) is stock_class(model)
    assert type(stock.config) is type(stock).config_class
    assert stock.config.model_type == family
    assert stock.config._attn_implementation == attention
    assert not stock.training
    batch = make_batch(family)
    assert torch.equal(stock(**batch).logits, model(**batch, early_exit_entropy=0.0).logits)


@pytest.mark.parametrize("settings", [{"early_exit_entropy": 5.0}, {"exit_layer": 1}, {"problem_type": "regression"}])
def test_defaults_of_exits_do_not_matter(settings):
    model = make_model(**settings)
    expected = model(**make_batch(), early_exit_entropy=0.0).logits
    assert torch.equal(stock_model(model)(**make_batch()).logits, expected)


def test_it_keeps_mode_and_dtype_and_shares_the_weights(family):
    model = make_model(family).train().bfloat16()
    stock = stock_model(model)
    assert stock.training
    assert stock.dtype == torch.bfloat16
    for name, tensor in [*stock.named_parameters(), *stock.named_buffers()]:
        own = model.get_parameter(name) if isinstance(tensor, nn.Parameter) else model.get_buffer(name)
        assert (tensor.dtype, tensor.device, tensor.data_ptr()) == (own.dtype, own.device, own.data_ptr()), name


def test_rotary_frequencies_stay_in_float32(tmp_path):
    make_model("modernbert").save_pretrained(tmp_path)
    model = DeeModernBertForSequenceClassification.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    batch = make_batch("modernbert")
    assert torch.equal(stock_model(model)(**batch).logits, model(**batch, early_exit_entropy=0.0).logits)


def test_other_models_are_refused():
    model = make_model()
    assert stock_model is analysis.stock_model
    with pytest.raises(ValueError, match="`BertForSequenceClassification`, which has no off-ramps: see `from_back"):
        stock_model(stock_model(model))
    with pytest.raises(ValueError, match="`DeeBertModel`, a base model without a head"):
        stock_model(copy.deepcopy(model.base_model))
    with pytest.raises(ValueError, match="`Linear`, which has no off-ramps"):
        stock_model(nn.Linear(2, 2))
