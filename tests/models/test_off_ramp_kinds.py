"""Off-ramps with a hidden layer of their own, and such that read the layers before theirs as well."""

import pytest
import torch
from conftest import (
    LENGTHS,
    NUM_LAYERS,
    expected_exits,
    make_batch,
    make_model,
    make_stock,
    off_ramp_answers,
    spread_thresholds,
    take_rows,
)
from transformers import AutoModelForSequenceClassification

from transformers_deebert import EarlyExitPredictor, collect_exits


KINDS = {
    "mlp": {"off_ramp_head": "mlp"},
    "past": {"off_ramp_head": "linear", "off_ramp_context": "past"},
    "past mlp": {"off_ramp_head": "mlp", "off_ramp_context": "past"},
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def case(family="bert", **settings):
    """A model, a batch, thresholds at which rows exit everywhere, and the logits and exits of Algorithm 1."""
    model, batch = make_model(family, **settings), make_batch(family)
    logits, entropies = off_ramp_answers(model, **batch)
    thresholds = spread_thresholds(entropies)
    exits = expected_exits(entropies, thresholds)
    assert len(exits.unique()) >= 3
    return model, batch, thresholds, logits, exits


def check_answers(output, logits, exits):
    assert output.exit_layers.tolist() == exits.tolist()
    expected = logits[torch.arange(len(exits)), exits - 1].float()
    torch.testing.assert_close(output.logits, expected, atol=1e-5, rtol=1e-5)


def test_every_family_answers_as_written_out(family, kind, pooling):
    model, batch, thresholds, logits, exits = case(family, off_ramp_pooling=pooling, **kind)
    check_answers(model(**batch, early_exit_entropy=thresholds), logits, exits)
    full = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    torch.testing.assert_close(torch.stack(full, 1), logits.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(model(**batch, early_exit_entropy=0).logits, make_stock(model)(**batch).logits)


@pytest.mark.parametrize("batch_size", [1, 5])
def test_rows_of_the_predictor_keep_their_vectors(kind, batch_size):
    model, batch, thresholds, logits, exits = case(off_ramp_pooling="mean", **kind)
    rows = [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    check_answers(
        EarlyExitPredictor(model, batch_size=batch_size).predict(rows, early_exit_entropy=thresholds), logits, exits
    )


@pytest.mark.parametrize("off", [0, 1])
def test_an_exit_that_is_switched_off_is_read_by_later_ones(kind, off):
    """As in the exit table, which evaluates all of them; in the predictor as well."""
    model, batch, thresholds, logits, _ = case(off_ramp_pooling="mean", **kind)
    thresholds[off] = 0.0
    _, entropies = off_ramp_answers(model, **batch)
    exits = expected_exits(entropies, thresholds)
    check_answers(model(**batch, early_exit_entropy=thresholds), logits, exits)
    rows = [{"input_ids": ids[mask == 1]} for ids, mask in zip(*batch.values(), strict=True)]
    check_answers(EarlyExitPredictor(model, batch_size=4).predict(rows, early_exit_entropy=thresholds), logits, exits)
    labelled = [row | {"labels": 0} for row in rows]
    table = collect_exits(model, labelled, stacked, batch_size=1, progress=False)
    assert table.exits_at(thresholds)[0].tolist() == exits.tolist()
    for layer in range(1, NUM_LAYERS):
        found = model(**batch, exit_layer=layer)
        torch.testing.assert_close(found.logits, logits[:, layer - 1].float(), atol=1e-5, rtol=1e-5)


def stacked(items):
    return {name: torch.stack([torch.as_tensor(item[name]) for item in items]) for name in items[0]}


def test_nothing_is_pooled_that_no_exit_reads(kind):
    model, batch = make_model(off_ramp_pooling="mean", **kind), make_batch()
    pooled = []
    vector = model.base_model.pooled_vector
    model.base_model.pooled_vector = lambda state, *args: pooled.append(state.layer) or vector(state, *args)
    model(**batch, early_exit_entropy=0)
    assert not pooled
    model(**batch, early_exit_entropy=[0.0, 1e-9, 0.0])
    assert pooled == ([1, 2] if "off_ramp_context" in kind else [2])


def test_the_embeddings_are_read_as_well():
    settings = KINDS["past"] | {"off_ramp_layers": [0, 2], "off_ramp_pooling": "mean"}
    model, batch = make_model(**settings), make_batch()
    state, _ = model.begin(**batch)
    first = model.base_model.pooled_vector(state)
    model.advance(state)
    model.advance(state)
    expected = model.base_model.off_ramps[1].classifier(torch.cat([first, model.base_model.pooled_vector(state)], 1))
    torch.testing.assert_close(model(**batch, exit_layer=2).logits, expected, atol=1e-6, rtol=1e-6)


def test_saved_and_loaded_also_with_other_layers(tmp_path, kind):
    model, batch = make_model(off_ramp_pooling="mean", **kind), make_batch()
    model.config.off_ramp_temperatures = [1.5, 2.0, 2.5]
    model.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    expected = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    found = again(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    # Off-ramps that read what they read before are kept, with their temperatures.
    fewer = AutoModelForSequenceClassification.from_pretrained(tmp_path, off_ramp_layers=[1, 2])
    assert fewer.config.off_ramps_trained
    assert fewer.config.off_ramp_temperatures == [1.5, 2.0]
    assert torch.equal(fewer(**batch, exit_layer=2).logits, expected[1])
    without_first = AutoModelForSequenceClassification.from_pretrained(tmp_path, off_ramp_layers=[2, 3])
    past = "off_ramp_context" in kind
    assert without_first.config.off_ramps_trained == (not past)
    assert without_first.config.off_ramp_temperatures == ([1.0, 1.0] if past else [2.0, 2.5])


def test_cached_inputs_give_the_answers_of_the_tokens(kind):
    model, batch = make_model(off_ramp_pooling="mean", **kind), make_batch()
    inputs = model.base_model.compute_off_ramp_inputs(**batch)
    assert inputs.shape == (len(LENGTHS), NUM_LAYERS - 1, model.config.hidden_size)
    found = model(off_ramp_inputs=inputs).off_ramp_logits
    expected = model(**batch, output_off_ramp_logits=True).off_ramp_logits[:-1]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_a_row_does_not_depend_on_its_batch_mates(kind):
    model, batch, thresholds, logits, exits = case(off_ramp_pooling="mean", **kind)
    order = torch.randperm(len(LENGTHS), generator=torch.Generator().manual_seed(0))
    check_answers(model(**take_rows(batch, order), early_exit_entropy=thresholds), logits[order], exits[order])
