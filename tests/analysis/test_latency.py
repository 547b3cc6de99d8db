"""What a row costs that leaves at each layer."""

import json
import math
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import layers_of, make_model
from torch import nn

from transformers_deebert import measure_latency
from transformers_deebert.analysis import LatencyProfile, rotation, timing


MACHINE = {"device": "cpu", "cores": 2}
PROFILE = LatencyProfile((10, 20), np.array([[1.0, 3.0, 5.0], [2.0, 6.0, 4.0]]), 1, MACHINE)


def calls_of(model):
    """Fills with the length and the exit layer of each call of the model."""
    calls = []

    def note(module, args, keywords, output):
        calls.append((keywords["input_ids"].shape[1], int(output.exit_layers[0])))

    model.register_forward_hook(note, with_kwargs=True)
    return calls


@pytest.fixture
def clock(monkeypatch):
    """Stands still unless a hook moves it on: timings become a hand count."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(rotation, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.mark.parametrize(
    "settings", [{}, {"early_exit_entropy": 9.0}, {"exit_layer": 1}, {"output_off_ramp_logits": True}]
)
def test_the_profile_equals_the_hand_count(clock, settings):
    """A layer takes a second a token, an off-ramp half a second, whatever the configuration asks for."""
    model = make_model(**settings)
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _, args, __: setattr(clock, "now", clock.now + args[0].shape[1]))
    for off_ramp in model.base_model.off_ramps:
        off_ramp.classifier.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 0.5))
    profile = measure_latency(model, lengths=[3, 8], batch_size=2, repeats=2, warm_up=0)
    layers, off_ramps = np.array([1, 2, 3, 4]), np.array([1, 2, 3, 3])
    expected = [1000 * (length * layers + 0.5 * off_ramps) / 2 for length in (3, 8)]
    np.testing.assert_allclose(profile.milliseconds, expected)
    assert (profile.lengths, profile.batch_size, profile.num_layers) == ((3, 8), 2, 4)
    assert profile.machine == timing.describe_machine("cpu")


def test_every_family_is_measured(family):
    model = make_model(family).train()
    ran, widths = [], []
    for off_ramp in model.base_model.off_ramps:
        off_ramp.classifier.register_forward_hook(lambda _, args, __: widths.append(len(args[0])))
    model.register_forward_hook(lambda _, __, output: ran.append(output.exit_layers.tolist()))
    profile = measure_latency(model, lengths=(4, 20), batch_size=3, repeats=1, warm_up=0)
    assert profile.milliseconds.shape == (2, 4)
    assert (profile.milliseconds > 0).all()
    assert ran[:8] == [[layer] * 3 for layer in (1, 2, 3, 4)] * 2  # as they are checked, before they are timed
    assert sorted(ran) == sorted(2 * ran[:8])
    assert widths == [3] * (2 * 2 * (1 + 2 + 3 + 3))
    assert model.training


def test_the_step_is_at_the_slow_layer():
    model = make_model()

    def sleep(module, args, output):
        if args[0].shape[1] == 6:
            time.sleep(0.02)

    layers_of(model)[2].register_forward_hook(sleep)
    profile = measure_latency(model, lengths=(5, 6), repeats=3, warm_up=1)
    steps = np.diff(profile.milliseconds, axis=1)
    assert np.unravel_index(steps.argmax(), steps.shape) == (1, 1)  # 6 tokens, from layer 2 to layer 3
    assert (profile.milliseconds[1, 2:] >= 20).all()


def test_lengths_and_layers_take_turns_in_changing_order():
    model = make_model()
    calls = calls_of(model)
    measure_latency(model, lengths=(4, 7), repeats=3, warm_up=2)
    everything = [(length, layer) for length in (4, 7) for layer in (1, 2, 3, 4)]
    checked, timed = calls[: 3 * 8], calls[3 * 8 :]
    assert checked == everything + [turn for turn in everything for _ in range(2)]
    rounds = [timed[start : start + 8] for start in range(0, len(timed), 8)]
    assert [sorted(one) for one in rounds] == [everything] * 3
    assert len({tuple(one) for one in rounds}) == 3


def test_tokens_are_valid_and_no_padding():
    model = make_model("roberta")
    seen = []
    model.register_forward_pre_hook(lambda _, __, keywords: seen.append(keywords), with_kwargs=True)
    measure_latency(model, lengths=(20,), batch_size=64, repeats=1, warm_up=0)
    ids = torch.cat([keywords["input_ids"] for keywords in seen])
    assert set(ids.unique().tolist()) == set(range(100)) - {model.config.pad_token_id}
    assert all(keywords["attention_mask"].all() for keywords in seen)


def test_a_model_of_one_layer_has_no_off_ramps_to_evaluate():
    assert measure_latency(make_model(num_layers=1), lengths=[4], repeats=1).milliseconds.shape == (1, 1)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": []}, r"`lengths` must be one or more lengths, got \[\]"),
        ({"lengths": 16}, r"`lengths` must be one or more lengths, got 16"),
        ({"lengths": [0, 4]}, r"`lengths` must be a whole number >= 1, got 0"),
        ({"lengths": [4.5]}, r"`lengths` must be a whole number >= 1, got 4\.5"),
        ({"lengths": [math.nan]}, r"`lengths` must be a whole number >= 1, got nan"),
        ({"lengths": [8, 4]}, r"`lengths` must rise, got \[8, 4\]"),
        ({"lengths": [4, 4]}, r"`lengths` must rise"),
        ({"lengths": [4, 21]}, r"`lengths` must not exceed the 20 tokens .* got \(4, 21\)\. Leave the longer"),
        ({"batch_size": 0}, r"`batch_size` must be a whole number >= 1, got 0"),
        ({"repeats": True}, r"`repeats` must be a whole number >= 1, got True"),
        ({"warm_up": -1}, r"`warm_up` must be a whole number >= 0, got -1"),
        ({"model": make_model().base_model}, r"`DeeBertModel`, a base model without a head"),
        ({"model": nn.Linear(1, 1)}, r"`Linear`, which has no off-ramps"),
        ({"model": make_model(num_labels=1)}, r"num_labels=1 and problem_type=None"),
        ({"model": make_model(problem_type="regression")}, r"problem_type='regression'"),
    ],
)
def test_malformed_input_names_argument_value_and_remedy(changed, message):
    calls = []
    model = changed.get("model", make_model("roberta"))
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        measure_latency(**{"model": model, "lengths": [4], "repeats": 1} | changed)
    assert not calls


def test_rows_that_do_not_exit_where_they_should_are_refused():
    model = make_model().train()
    with torch.no_grad():
        model.base_model.off_ramps[1].classifier.bias.fill_(math.nan)  # nobody leaves at layer 2
    with pytest.raises(ValueError, match=r"exit at layers \[4\] that should exit at layer 2"):
        measure_latency(model, lengths=[4])
    assert model.training


def own(candidate):
    return candidate.pooled[:, 0].abs()


@pytest.mark.parametrize("score", ["entropy", "margin", "disagreement", own])
def test_rows_exit_where_they_should_whatever_the_score_and_the_weights(score):
    model = make_model()
    with torch.no_grad():
        model.base_model.off_ramps[1].classifier.bias.copy_(torch.tensor([1e6, 0, 0]))  # everybody does
    calls = calls_of(model)
    criterion = {"score": score, "patience": 2}
    assert measure_latency(model, [4], repeats=1, warm_up=0, criterion=criterion).milliseconds.shape == (1, 4)
    assert sorted(layer for _, layer in calls) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_between_lengths_it_is_linear_and_beyond_them_constant():
    np.testing.assert_allclose(
        PROFILE.at(np.array([20, 10, 15, 12, 1, 500])),
        [[2, 6, 4], [1, 3, 5], [1.5, 4.5, 4.5], [1.2, 3.6, 4.8], [1, 3, 5], [2, 6, 4]],
    )
    assert PROFILE.at(np.array([], dtype=int)).shape == (0, 3)
    one_length = LatencyProfile((10,), np.array([[1.0, 2.0]]), 1, MACHINE)
    np.testing.assert_array_equal(one_length.at(np.array([3, 10, 99])), [[1, 2]] * 3)


@pytest.mark.parametrize("lengths", [5, [[5]], [0], [-1], [math.nan], [math.inf], ["a"], [None], [True]])
def test_lengths_to_look_up_are_checked(lengths):
    with pytest.raises(ValueError, match="`lengths` must be"):
        PROFILE.at(lengths)


def test_it_survives_json():
    again = LatencyProfile.from_dict(json.loads(json.dumps(PROFILE.to_dict())))
    np.testing.assert_array_equal(again.milliseconds, PROFILE.milliseconds)
    assert again.milliseconds.dtype == np.float64
    assert (again.lengths, again.batch_size, again.machine) == (PROFILE.lengths, 1, MACHINE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lengths": None}, "`fields` lacks \\['lengths'\\]"),
        ({"lengths": [20, 10]}, "`lengths` must rise"),
        (
            {"lengths": [10]},
            r"`milliseconds` must be an array of shape \(lengths, layers\) with 1 lengths, got \(2, 3\)",
        ),
        ({"milliseconds": [[1, 2], [1]]}, "one number for each length and layer"),
        ({"milliseconds": [[1, None], [1, 2]]}, "must be finite and >= 0"),  # what `write_json` makes of NaN
        ({"milliseconds": [[1, -1], [1, 2]]}, "must be finite and >= 0"),
        ({"milliseconds": [[], []]}, "one layer or more"),
        ({"milliseconds": [1, 2]}, r"got \(2,\)"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1"),
    ],
)
def test_malformed_fields_are_refused(changed, message):
    fields = {name: value for name, value in (PROFILE.to_dict() | changed).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        LatencyProfile.from_dict(fields)
