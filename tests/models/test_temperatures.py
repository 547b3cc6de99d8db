"""Temperature scaling of the off-ramps, and thresholds as a share of the largest entropy."""

import json
import math
import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import (
    ENCODERS,
    NUM_LAYERS,
    expected_exits,
    make_batch,
    make_model,
    off_ramp_answers,
    spread_thresholds,
    stock_class,
)
from huggingface_hub.errors import StrictDataclassError

from transformers_deebert import DeeBertConfig, DeeBertForSequenceClassification
from transformers_deebert.families import find_family
from transformers_deebert.models.configuration_early_exit_deebert import check_temperatures


TEMPERATURES = [0.5, 3.0, 1.7]
BAD = [
    1.5,
    "1.5",
    [],
    [1.0, 1.0],
    [1.0] * 4,
    [1.0, 0, 1.0],
    [1.0, 1.0, -2.0],
    [math.nan, 1.0, 1.0],
    [1.0, math.inf, 1.0],
    [1.0, True, 1.0],
    [1.0, "2", 1.0],
    [1.0, None, 1.0],
    [1.0, 1.0, 1e-300],
    [1.0, 1.0, 10**400],
    {"1": 1.0, "2": 1.0, "3": 1.0},
    True,
]


def entropies_of(logits):
    probabilities = logits.softmax(-1)
    return -(probabilities * probabilities.log()).sum(-1)


@pytest.fixture
def case(family):
    """
    Model with temperatures, batch, each row's own scaled logits in float64, thresholds, and the exits they mean, which
    are others than those without temperatures.
    """
    model, batch = make_model(family), make_batch(family)
    raw, raw_entropies = off_ramp_answers(model, **batch)
    scaled = raw / torch.tensor([*TEMPERATURES, 1.0], dtype=torch.float64).view(-1, 1)
    entropies = entropies_of(scaled)
    thresholds = spread_thresholds(entropies)
    exits = expected_exits(entropies, thresholds)
    assert len(exits.unique()) >= 3
    assert exits.tolist() != expected_exits(raw_entropies, thresholds).tolist()
    model.config.off_ramp_temperatures = list(TEMPERATURES)
    return model, batch, scaled, thresholds, exits


def without(model, batch, **kwargs):
    """What the model says without its temperatures."""
    temperatures, model.config.off_ramp_temperatures = model.config.off_ramp_temperatures, None
    output = model(**batch, **kwargs)
    model.config.off_ramp_temperatures = temperatures
    return output


def close(actual, expected):
    torch.testing.assert_close(actual, expected.to(actual.dtype), atol=1e-5, rtol=1e-5)


def test_off_ramp_logits_are_divided_and_keep_their_order(case):
    model, batch, scaled, *_ = case
    raw = without(model, batch, output_off_ramp_logits=True).off_ramp_logits
    output = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    base = model.base_model(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert len(base) == len(TEMPERATURES)
    for layer, temperature in enumerate(TEMPERATURES):
        assert torch.equal(output[layer], raw[layer] / temperature)
        assert torch.equal(base[layer], output[layer])
        assert torch.equal(output[layer].argmax(-1), raw[layer].argmax(-1))
    assert torch.equal(output[-1], raw[-1])
    close(torch.stack(output, 1), scaled)


def test_rows_leave_where_the_scaled_entropies_say(case):
    model, batch, scaled, thresholds, exits = case
    expected = scaled[torch.arange(len(exits)), exits - 1]
    for asked in ({}, {"output_off_ramp_logits": True}, {"output_hidden_states": True}):
        output = model(**batch, early_exit_entropy=thresholds, **asked)
        assert output.exit_layers.tolist() == exits.tolist()
        close(output.logits, expected)
    assert model.base_model(**batch, early_exit_entropy=thresholds).exit_layers.tolist() == exits.tolist()


@pytest.mark.parametrize("layer", range(1, NUM_LAYERS + 1))
def test_exit_layer(case, layer):
    model, batch, scaled, *_ = case
    close(model(**batch, exit_layer=layer).logits, scaled[:, layer - 1])


def test_off_ramp_inputs(case):
    model, batch, scaled, *_ = case
    inputs = model.base_model.compute_off_ramp_inputs(**batch)
    close(torch.stack(model(off_ramp_inputs=inputs).off_ramp_logits, 1), scaled[:, :-1])


def test_the_full_depth_is_that_of_the_stock_model(case):
    model, batch, *_ = case
    full = without(model, batch).logits
    assert torch.equal(model(**batch).logits, full)
    assert torch.equal(model(**batch, early_exit_entropy=0.0).logits, full)


def test_training_mode_sees_the_logits_themselves(family):
    model, batch = make_model(family, **dict.fromkeys(ENCODERS[family].dropouts, 0.0)), make_batch(family)
    inputs = model.base_model.compute_off_ramp_inputs(**batch)
    raw = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    model.config.off_ramp_temperatures = list(TEMPERATURES)
    model.train()
    close(torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits), torch.stack(raw))
    close(torch.stack(model(off_ramp_inputs=inputs).off_ramp_logits), torch.stack(raw[:-1]))


def test_saved_and_loaded(case, tmp_path):
    model, batch, _, thresholds, exits = case
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["off_ramp_temperatures"] == TEMPERATURES
    expected = model(**batch, early_exit_entropy=thresholds)
    loaded = type(model).from_pretrained(tmp_path).eval()
    assert loaded.config.off_ramp_temperatures == TEMPERATURES
    output = loaded(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == exits.tolist()
    close(output.logits, expected.logits)
    stock = stock_class(model).from_pretrained(tmp_path).eval()
    close(stock(**batch).logits, model(**batch).logits)


def test_assigned_after_loading(family, tmp_path):
    model, batch = make_model(family), make_batch(family)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["off_ramp_temperatures"] is None
    assert "max_entropy" not in saved
    loaded = find_family(family, family).classifier.from_pretrained(tmp_path).eval()
    raw = loaded(**batch, exit_layer=2).logits
    loaded.config.off_ramp_temperatures = [1, 4, 1]
    assert torch.equal(loaded(**batch, exit_layer=2).logits, raw / 4)
    loaded.config.off_ramp_temperatures[1] = 8.0  # the list is read at each call
    assert torch.equal(loaded(**batch, exit_layer=2).logits, raw / 8)
    overridden = type(loaded).from_pretrained(tmp_path, off_ramp_temperatures=[1, 4, 1]).eval()
    close(overridden(**batch, exit_layer=2).logits, raw / 4)


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:24])
def test_bad_temperatures(value):
    with pytest.raises(ValueError, match="`off_ramp_temperatures`"):
        check_temperatures(value, 3)
    # What is not even a list of numbers, the configuration refuses with the error of its own fields.
    with pytest.raises((ValueError, StrictDataclassError), match="off_ramp_temperatures"):
        DeeBertConfig(num_hidden_layers=4, off_ramp_temperatures=value)
    model = make_model()
    try:
        model.config.off_ramp_temperatures = value
    except StrictDataclassError:
        return
    for asked in ({}, {"early_exit_entropy": 0.3}, {"exit_layer": 4}):
        with pytest.raises(ValueError, match="`off_ramp_temperatures`"):
            model(**make_batch(), **asked)
    with pytest.raises(ValueError, match="`off_ramp_temperatures`"):
        model(off_ramp_inputs=torch.zeros(2, 3, 32))
    with pytest.raises(ValueError, match="`off_ramp_temperatures`"):
        DeeBertForSequenceClassification(model.config)


@pytest.mark.parametrize("value", [(1, 2, 3), [1.0, 1e-30, 1e30], [np.float32(1), np.float64(2), Fraction(1, 3)]])
def test_good_temperatures(value):
    checked = check_temperatures(value, 3)
    assert checked == tuple(float(temperature) for temperature in value)
    assert all(type(temperature) is float for temperature in checked)


def test_a_model_of_one_layer_has_no_temperatures():
    model = make_model(num_layers=1, off_ramp_temperatures=[])
    assert model(**make_batch()).exit_layers.eq(1).all()


@pytest.fixture
def saved(tmp_path):
    model = make_model()
    model.config.off_ramp_temperatures = list(TEMPERATURES)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_untrained_off_ramps_lose_their_temperatures(saved):
    load = DeeBertForSequenceClassification.from_pretrained
    assert load(saved, off_ramp_pooling="cls").config.off_ramp_temperatures == TEMPERATURES
    assert load(saved, off_ramp_pooling="mean").config.off_ramp_temperatures is None
    assert DeeBertConfig.from_pretrained(saved, off_ramp_head="linear").off_ramp_temperatures is None
    assert load(saved, num_labels=5, ignore_mismatched_sizes=True).config.off_ramp_temperatures is None
    config = DeeBertConfig.from_pretrained(saved)
    config.off_ramp_pooling = "mean"
    assert load(saved, config=config).config.off_ramp_temperatures is None
    assert config.off_ramp_temperatures == TEMPERATURES  # the user's own


def test_two_threads_share_a_model_with_temperatures():
    model, batch = make_model(off_ramp_temperatures=TEMPERATURES), make_batch()
    expected = {layer: model(**batch, exit_layer=layer).logits for layer in (1, 2)}
    outputs = {}

    def work(layer):
        with torch.no_grad():
            outputs[layer] = [model(**batch, exit_layer=layer).logits for _ in range(20)]

    threads = [threading.Thread(target=work, args=(layer,)) for layer in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for layer, logits in expected.items():
        assert len(outputs[layer]) == 20
        for output in outputs[layer]:
            torch.testing.assert_close(output, logits, atol=1e-6, rtol=1e-6)


def test_export_with_temperatures(case):
    model, batch, _, thresholds, exits = case
    asked = {"early_exit_entropy": thresholds, "output_off_ramp_logits": True}
    output = torch.export.export(model, (), batch | asked, strict=False).module()(**batch, **asked)
    assert output.exit_layers.tolist() == exits.tolist()
    close(output.logits, model(**batch, **asked).logits)


@pytest.mark.slow
def test_compiled_with_temperatures_and_with_others():
    """No graph break, and what is compiled follows the configuration."""
    torch.compiler.reset()
    model, batch = make_model(), make_batch()
    compiled = torch.compile(model, fullgraph=True)
    for temperatures in (None, TEMPERATURES, [2.0, 0.25, 9.0], [1, 2, 3], [7.0, 3.0, 1.1]):
        model.config.off_ramp_temperatures = temperatures
        close(compiled(**batch).logits, model(**batch).logits)
        output = compiled(**batch, output_off_ramp_logits=True).off_ramp_logits
        close(torch.stack(output), torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits))


def test_max_entropy_is_ln_c_and_thresholds_are_shares_of_it():
    model, batch = make_model(num_labels=64), make_batch()
    most = model.config.max_entropy
    assert most == pytest.approx(math.log(64), abs=1e-12)
    for temperature in (1.0, 50.0):
        model.config.off_ramp_temperatures = [temperature] * 3
        assert model(**batch, early_exit_entropy=0.0 * most).exit_layers.eq(NUM_LAYERS).all()
        assert model(**batch, early_exit_entropy=(1 + 1e-5) * most).exit_layers.eq(1).all()
    model.config.off_ramp_temperatures = None
    shares = off_ramp_answers(model, **batch)[1] / math.log(64)
    thresholds = spread_thresholds(shares)
    exits = expected_exits(shares, thresholds)
    assert len(exits.unique()) >= 3
    output = model(**batch, early_exit_entropy=[share * most for share in thresholds])
    assert output.exit_layers.tolist() == exits.tolist()


def test_max_entropy_is_no_field_of_the_configuration(family):
    make = find_family(family, family).config
    config = make(num_labels=5)
    before = config.to_dict()
    assert config.max_entropy == math.log(5)
    assert config.to_dict() == before
    assert "max_entropy" not in before | config.to_diff_dict()
    assert make.from_dict(before).to_dict() == before
    assert make(num_labels=5) == config
    assert config != make(num_labels=5, off_ramp_temperatures=[1.0] * (config.num_hidden_layers - 1))
    with pytest.raises(AttributeError):
        config.max_entropy = 1.0
    one = make(num_labels=1)
    assert "max_entropy" not in one.to_dict() | one.to_diff_dict()
    assert make(num_labels=1) == one
    with pytest.raises(ValueError, match="`max_entropy`.*num_labels=1"):
        one.max_entropy  # noqa: B018
