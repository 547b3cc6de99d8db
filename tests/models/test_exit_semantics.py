"""What leaves where, against the answers of each row alone, computed without the layer loop."""

import functools
import math

import pytest
import torch
from conftest import (
    NUM_LAYERS,
    expected_exits,
    layers_of,
    make_batch,
    make_model,
    off_ramp_answers,
    spread_thresholds,
    vector_of,
)


@pytest.fixture(params=["pooler", "linear"])
def head(request):
    return request.param


@functools.cache
def expected(family, settings):
    """Each row's own logits, thresholds that spread the exits, the exits they mean."""
    logits, entropies = off_ramp_answers(make_model(family, **dict(settings)), **make_batch(family))
    thresholds = spread_thresholds(entropies)
    exits = expected_exits(entropies, thresholds)
    assert len(exits.unique()) == NUM_LAYERS
    return logits, thresholds, exits


@pytest.fixture
def case(family, pooling, head):
    """Model, batch, and what is expected."""
    settings = {"off_ramp_pooling": pooling, "off_ramp_head": head}
    return make_model(family, **settings), make_batch(family), *expected(family, tuple(settings.items()))


def test_rows_leave_where_algorithm_1_says(case):
    model, batch, logits, thresholds, exits = case
    output = model(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.dtype == torch.int64
    assert output.exit_layers.tolist() == exits.tolist()
    expected = logits[torch.arange(len(exits)), exits - 1].float()
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)


def test_rows_that_left_are_not_computed(case):
    model, batch, _, thresholds, exits = case
    rows = []
    for layer in layers_of(model):
        layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[:2]))
    model(**batch, early_exit_entropy=thresholds)
    lengths = batch["attention_mask"].sum(1)
    for layer, (count, width) in enumerate(rows, start=1):
        waiting = exits >= layer
        assert count == waiting.sum()
        assert width == lengths[waiting].max()


def test_s_0_is_the_full_model(case):
    model, batch, *_ = case
    full = model(**batch)
    output = model(**batch, early_exit_entropy=0.0)
    assert torch.equal(output.logits, full.logits)
    assert output.exit_layers.tolist() == [NUM_LAYERS] * len(full.logits)
    assert full.exit_layers.tolist() == [NUM_LAYERS] * len(full.logits)


def test_s_above_ln_c_leaves_at_the_first_off_ramp(case):
    model, batch, logits, *_ = case
    output = model(**batch, early_exit_entropy=math.log(3) + 1e-3)
    assert output.exit_layers.eq(1).all()
    torch.testing.assert_close(output.logits, logits[:, 0].float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", range(1, NUM_LAYERS + 1))
def test_exit_layer_answers_from_there_and_runs_no_later_layer(case, layer):
    model, batch, logits, *_ = case
    ran = []
    for module in layers_of(model):
        module.register_forward_hook(lambda *args: ran.append(1))
    output = model(**batch, exit_layer=layer)
    assert len(ran) == layer
    assert output.exit_layers.eq(layer).all()
    torch.testing.assert_close(output.logits, logits[:, layer - 1].float(), atol=1e-5, rtol=1e-5)


def test_all_off_ramp_logits_and_the_answer_unchanged(case):
    model, batch, logits, thresholds, exits = case
    alone = model(**batch, early_exit_entropy=thresholds)
    output = model(**batch, early_exit_entropy=thresholds, output_off_ramp_logits=True)
    assert len(output.off_ramp_logits) == NUM_LAYERS
    torch.testing.assert_close(torch.stack(output.off_ramp_logits, 1), logits.float(), atol=1e-5, rtol=1e-5)
    assert output.exit_layers.tolist() == exits.tolist()
    torch.testing.assert_close(output.logits, alone.logits, atol=1e-5, rtol=1e-5)


def test_asking_for_states_runs_all_layers_and_keeps_the_answer(case):
    model, batch, _, thresholds, exits = case
    alone = model(**batch, early_exit_entropy=thresholds)
    output = model(**batch, early_exit_entropy=thresholds, output_hidden_states=True)
    full = model(**batch, output_hidden_states=True)
    assert len(output.hidden_states) == NUM_LAYERS + 1
    for states, expected in zip(output.hidden_states, full.hidden_states, strict=True):
        assert torch.equal(states, expected)
    assert output.exit_layers.tolist() == exits.tolist()
    torch.testing.assert_close(output.logits, alone.logits, atol=1e-5, rtol=1e-5)


def test_the_base_model_gives_states_and_vectors_of_the_exit_layer(case):
    model, batch, _, thresholds, exits = case
    base = model.base_model
    full = base(**batch, output_hidden_states=True)
    output = base(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == exits.tolist()
    assert output.last_hidden_state.shape == full.last_hidden_state.shape
    mask = batch["attention_mask"]
    assert output.last_hidden_state[mask == 0].eq(0).all()
    for row, layer in enumerate(exits.tolist()):
        attended = mask[row] == 1
        expected = full.hidden_states[layer][row, attended]
        seen = base.readout(expected) if layer < NUM_LAYERS else expected  # the last one is read out in stock models
        torch.testing.assert_close(output.last_hidden_state[row, attended], seen, atol=1e-5, rtol=1e-5)
        if base.pooler is not None and layer < NUM_LAYERS:
            vector = vector_of(model, base.off_ramps[layer - 1], expected)
            torch.testing.assert_close(output.pooler_output[row], vector, atol=1e-5, rtol=1e-5)
        elif base.pooler is not None:
            torch.testing.assert_close(output.pooler_output[row], full.pooler_output[row], atol=1e-5, rtol=1e-5)
    if base.pooler is None:
        assert output.pooler_output is None
    assert len(base(**batch, output_off_ramp_logits=True).off_ramp_logits) == NUM_LAYERS - 1


def test_a_threshold_of_0_in_a_list_skips_that_off_ramp(case):
    model, batch, *_ = case
    calls = []
    for off_ramp in model.base_model.off_ramps:
        off_ramp.register_forward_hook(lambda module, *args: calls.append(module))
    output = model(**batch, early_exit_entropy=[0, 99, 0])
    assert calls == [model.base_model.off_ramps[1]]
    assert output.exit_layers.eq(2).all()


def test_entropy_must_be_strictly_below_the_threshold():
    model = make_model()
    batch = make_batch()
    with torch.no_grad():
        for off_ramp in model.bert.off_ramps:
            off_ramp.classifier.weight.zero_()
            off_ramp.classifier.bias.copy_(torch.tensor([0.0, 0.0, -1e4]))  # entropy ln 2 in float32
    assert model(**batch, early_exit_entropy=float(torch.tensor(2.0).log())).exit_layers.eq(NUM_LAYERS).all()
    assert model(**batch, early_exit_entropy=math.log(2) + 1e-4).exit_layers.eq(1).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_row_whose_logits_are_not_finite_runs_to_full_depth(value):
    model = make_model()
    with torch.no_grad():
        for off_ramp in model.bert.off_ramps:
            off_ramp.classifier.bias[1] = value
    output = model(**make_batch(), early_exit_entropy=99.0)
    assert output.exit_layers.eq(NUM_LAYERS).all()
    assert torch.isfinite(output.logits).all()


def test_config_holds_the_defaults_and_the_call_overrides_them(case):
    model, batch, _, thresholds, exits = case
    model.config.early_exit_entropy = thresholds
    assert model(**batch).exit_layers.tolist() == exits.tolist()
    assert model(**batch, early_exit_entropy=0).exit_layers.eq(NUM_LAYERS).all()
    assert model(**batch, exit_layer=2).exit_layers.eq(2).all()
    model.config.early_exit_entropy, model.config.exit_layer = None, 3
    assert model(**batch).exit_layers.eq(3).all()
    assert model(**batch, early_exit_entropy=thresholds).exit_layers.tolist() == exits.tolist()
    model.config.output_off_ramp_logits = True
    assert len(model(**batch).off_ramp_logits) == NUM_LAYERS
    assert model(**batch, output_off_ramp_logits=False).off_ramp_logits is None


def test_loss_is_of_the_answer(case):
    model, batch, _, thresholds, _ = case
    labels = torch.arange(len(batch["input_ids"])) % 3
    output = model(**batch, labels=labels, early_exit_entropy=thresholds)
    torch.testing.assert_close(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))


def test_tuples_hold_what_is_there(case):
    model, batch, _, thresholds, _ = case
    logits, exit_layers = model(**batch, early_exit_entropy=thresholds, return_dict=False)
    assert logits.shape == (12, 3)
    assert exit_layers.shape == (12,)
