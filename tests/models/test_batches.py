"""A row's answer is its own: batch mates, order, padding, side and kernels do not matter."""

import threading

import pytest
import torch
from conftest import (
    LENGTHS,
    NUM_LAYERS,
    expected_exits,
    make_batch,
    make_model,
    off_ramp_answers,
    spread_thresholds,
    take_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st


SETTINGS = settings(max_examples=15, deadline=None)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.fixture
def family(family_and_attention):
    return family_and_attention[0]


@pytest.fixture
def case(family_and_attention, pooling):
    family, attention = family_and_attention
    model = make_model(family, off_ramp_pooling=pooling, attn_implementation=attention)
    batch = make_batch(family)
    _, entropies = off_ramp_answers(model, **batch)
    thresholds = spread_thresholds(entropies)
    assert len(expected_exits(entropies, thresholds).unique()) == NUM_LAYERS
    return model, batch, thresholds, model(**batch, early_exit_entropy=thresholds)


def test_each_row_as_if_alone(case):
    model, batch, thresholds, output = case
    for row, length in enumerate(LENGTHS):
        alone = model(input_ids=batch["input_ids"][row : row + 1, :length], early_exit_entropy=thresholds)
        close(alone.logits[0], output.logits[row])
        assert alone.exit_layers[0] == output.exit_layers[row]


@pytest.mark.parametrize(("side", "width"), [("right", 20), ("left", 12), ("left", 20)])
def test_padding(case, family, side, width):
    model, batch, thresholds, output = case
    padded = model(**make_batch(family, width=width, side=side), early_exit_entropy=thresholds)
    close(padded.logits, output.logits)
    assert padded.exit_layers.tolist() == output.exit_layers.tolist()
    # At full depth, and with all layers asked for, as well.
    close(model(**make_batch(family, width=width, side=side)).logits, model(**batch).logits)


def test_states_of_left_padded_rows_are_where_their_tokens_are(case, family):
    model, batch, thresholds, _ = case
    left = make_batch(family, width=15, side="left")
    eager = model.config._attn_implementation == "eager"
    asked = {"output_hidden_states": True, "output_attentions": eager}
    a, b = model(**batch, **asked), model(**left, **asked)
    base_a, base_b = (model.base_model(**x, early_exit_entropy=thresholds).last_hidden_state for x in (batch, left))
    for row, length in enumerate(LENGTHS):
        for right, turned in [*zip(a.hidden_states, b.hidden_states, strict=True), (base_a, base_b)]:
            close(turned[row, 15 - length :], right[row, :length])
        if eager:
            for right, turned in zip(a.attentions, b.attentions, strict=True):
                close(turned[row, :, 15 - length :, 15 - length :], right[row, :, :length, :length])


@given(order=st.permutations(range(len(LENGTHS))))
@SETTINGS
def test_order(order):
    model, batch = make_model(off_ramp_pooling="mean"), make_batch()
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    order = torch.tensor(order)
    output = model(**take_rows(batch, order), early_exit_entropy=thresholds)
    close(output.logits, expected.logits[order])
    assert output.exit_layers.tolist() == expected.exit_layers[order].tolist()


@given(rows=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=40))
@SETTINGS
def test_company(rows):
    """Any rows, some of them several times, more of them than an idle share is tolerated for."""
    model, batch = make_model("roberta"), make_batch("roberta")
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    output = model(**take_rows(batch, torch.tensor(rows)), early_exit_entropy=thresholds)
    close(output.logits, expected.logits[rows])
    assert output.exit_layers.tolist() == expected.exit_layers[rows].tolist()


@given(threshold=st.floats(0, 1.2), more=st.floats(0, 0.5))
@SETTINGS
def test_a_higher_threshold_never_exits_later(threshold, more):
    model, batch = make_model("roberta", off_ramp_pooling="mean"), make_batch("roberta")
    low = model(**batch, early_exit_entropy=threshold).exit_layers
    high = model(**batch, early_exit_entropy=threshold + more).exit_layers
    assert (high <= low).all()


def test_few_idle_rows_are_carried_along_and_still_answered_once():
    """In a big batch a single leaver does not pay a copy of all others; its answer must not be written again."""
    model, batch = make_model(), make_batch()
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    exits = model(**batch, early_exit_entropy=thresholds).exit_layers
    first, later = int(exits.eq(1).nonzero()[0]), exits.gt(1).nonzero()[:, 0]
    rows = torch.cat([torch.tensor([first]), later.repeat(20)])
    seen = []
    for layer in model.bert.encoder.layer:
        layer.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    output = model(**take_rows(batch, rows), early_exit_entropy=thresholds)
    assert seen[1] == len(rows)  # the leaver was carried along
    assert output.exit_layers.tolist() == exits[rows].tolist()
    close(output.logits, model(**batch, early_exit_entropy=thresholds).logits[rows])


def test_idle_work_stays_below_a_tenth():
    model, batch = make_model("roberta"), make_batch("roberta")
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    rows = torch.randint(0, len(LENGTHS), (300,), generator=torch.Generator().manual_seed(0))
    cells = []
    for layer in model.roberta.encoder.layer:
        layer.register_forward_pre_hook(lambda module, args: cells.append(args[0].shape[0] * args[0].shape[1]))
    exits = model(**take_rows(batch, rows), early_exit_entropy=thresholds).exit_layers
    lengths = torch.tensor(LENGTHS)[rows]
    needed = [int((exits >= layer).sum() * lengths[exits >= layer].max()) for layer in range(1, NUM_LAYERS + 1)]
    assert sum(needed) <= sum(cells) <= 1.1 * sum(needed)


def test_a_mask_with_holes_is_not_cropped_before_its_last_token(family):
    model = make_model(family, off_ramp_pooling="mean")
    batch = make_batch(family, lengths=(12,) * 6)
    batch["attention_mask"][1, 3:9] = 0
    batch["attention_mask"][2, 5] = 0
    batch["attention_mask"][4, 10:] = 0
    expected = model(**batch, output_off_ramp_logits=True)
    entropies = torch.stack([-(x.softmax(-1) * x.log_softmax(-1)).sum(-1) for x in expected.off_ramp_logits], 1)
    thresholds = spread_thresholds(entropies)
    exits = expected_exits(entropies, thresholds)
    assert len(exits.unique()) >= 3
    output = model(**batch, early_exit_entropy=thresholds)
    assert output.exit_layers.tolist() == exits.tolist()
    close(output.logits, torch.stack(expected.off_ramp_logits, 1)[torch.arange(6), exits - 1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family, dtype):
    """Within the spread that the stock model itself shows between a row in a batch and the row alone."""
    model = make_model(family).to(dtype)
    batch = make_batch(family)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    output = model(**batch, early_exit_entropy=thresholds)
    assert output.logits.dtype == dtype
    full = model(**batch, output_off_ramp_logits=True)
    expected = torch.stack(full.off_ramp_logits, 1)[torch.arange(len(LENGTHS)), output.exit_layers - 1]
    torch.testing.assert_close(output.logits, expected, atol=0.15, rtol=0.05)
    assert len(output.exit_layers.unique()) >= 3


@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batches(family, rows):
    model = make_model(family, attn_implementation="eager")
    batch = take_rows(make_batch(family), slice(0, rows))
    for kwargs in ({}, {"early_exit_entropy": 0.5}, {"exit_layer": 2}):
        output = model(
            **batch,
            **kwargs,
            output_off_ramp_logits=True,
            output_hidden_states=True,
            output_attentions=True,
        )
        assert output.logits.shape == (rows, 3)
        assert output.exit_layers.shape == (rows,)
        assert [x.shape for x in output.off_ramp_logits] == [(rows, 3)] * NUM_LAYERS
        assert [x.shape for x in output.hidden_states] == [(rows, 12, 32)] * (NUM_LAYERS + 1)
        assert [len(x) for x in output.attentions] == [rows] * NUM_LAYERS
        base = model.base_model(**batch, **kwargs, output_off_ramp_logits=True)
        assert base.last_hidden_state.shape == (rows, 12, 32)
        assert [x.shape for x in base.off_ramp_logits] == [(rows, 3)] * (NUM_LAYERS - 1)
    if not rows:
        no_tokens = torch.zeros(0, 0, dtype=torch.long)
        assert model(input_ids=no_tokens, attention_mask=no_tokens, early_exit_entropy=0.5).logits.shape == (0, 3)


def test_a_row_without_any_attended_token_gives_numbers(family, pooling):
    model = make_model(family, off_ramp_pooling=pooling)
    batch = make_batch(family)
    batch["attention_mask"][3] = 0
    assert torch.isfinite(model(**batch, early_exit_entropy=0.5).logits).all()


def test_two_threads_share_one_model():
    model, batch = make_model(), make_batch()
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    calls = [{"early_exit_entropy": thresholds}, {"exit_layer": 2}, {}, {"early_exit_entropy": 99.0}]
    expected = [model(**batch, **kwargs) for kwargs in calls]
    outputs = {}

    def work(index):
        with torch.no_grad():
            outputs[index] = [model(**batch, **calls[index], output_hidden_states=index == 1) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, answer in enumerate(expected):
        for output in outputs[index]:
            assert output.exit_layers.tolist() == answer.exit_layers.tolist()
            close(output.logits, answer.logits)
