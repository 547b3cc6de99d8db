"""Kinds of off-ramps fitted on pooled states and compared on rows held out."""

import numpy as np
import pytest
import torch
from tiny_task import TRAIN, collate, make_rows, make_tiny

from transformers_deebert import ExitTable, collect_exits
from transformers_deebert.analysis.exit_curve import exit_curve, mean_saving
from transformers_deebert.training.off_ramp_search import (
    FitSettings,
    PooledRows,
    fit_kind,
    kinds_of,
    pool_rows,
    search_off_ramps,
    table_of,
)


pytestmark = pytest.mark.gradients
QUICK = FitSettings(epochs=3, held_out=0.25)


def without_labels(items):
    return {name: tensor for name, tensor in collate(items).items() if name != "labels"}


def test_the_best_kind_is_kept_and_the_rest_of_the_model_stays():
    model = make_tiny(off_ramp_pooling="mean")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "off_ramps" not in name}
    found = search_off_ramps(model, TRAIN, collate, QUICK, progress=False)
    assert sorted(kind.name for kind in found) == ["linear", "linear past", "mlp", "mlp past"]
    assert [kind.mean_saving for kind in found] == sorted((kind.mean_saving for kind in found), reverse=True)
    best = found[0]
    assert (model.config.off_ramp_head, model.config.off_ramp_context) == tuple(
        best.fields[name] for name in ("off_ramp_head", "off_ramp_context")
    )
    assert model.exit_layers == (0, 1, 2, 3, 4)
    assert model.config.off_ramps_trained
    for name, tensor in before.items():
        assert torch.equal(model.state_dict()[name], tensor), name
    # What it was compared by is what the model then does.
    _, held_out = pool_rows(model, TRAIN, collate, progress=False).split(QUICK.held_out, QUICK.seed)
    model.base_model.set_off_ramps(**best.fields)
    model.base_model.off_ramps.load_state_dict(best.state)
    assert mean_saving(table_of(model, held_out)) == pytest.approx(best.mean_saving)


@pytest.mark.parametrize("kind", kinds_of(4).values(), ids=kinds_of(4))
def test_pooled_rows_give_the_table_of_the_tokens(kind):
    model = make_tiny(off_ramp_pooling="mean")
    rows = pool_rows(model, TRAIN, collate, batch_size=5, progress=False)
    assert rows.vectors.shape == (len(TRAIN), 4, 32)
    model.base_model.set_off_ramps(**kind)
    expected = collect_exits(model, TRAIN, collate, progress=False)
    found = table_of(model, rows)
    assert found.exit_layers == expected.exit_layers
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)


def test_an_off_ramp_keeps_its_best_epoch():
    """With a far too high learning rate the first epochs are the best; fitting ends soon after."""
    model = make_tiny(off_ramp_pooling="mean")
    rows, held_out = pool_rows(model, make_rows(400, 3), collate, progress=False).split(0.25, 0)
    settings = FitSettings(epochs=40, learning_rate=0.5, batch_size=8, patience=3)
    kind = fit_kind(model, "mlp", kinds_of(4)["mlp"], rows, held_out, settings)
    assert 1 <= min(kind.epochs) <= max(kind.epochs) < 37
    assert len(kind.epochs) == 4


def test_without_labels_the_head_teaches():
    model = make_tiny()
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # a head that has something to teach
    settings = FitSettings(epochs=20, learning_rate=1e-2, distillation_weight=1.0)
    found = search_off_ramps(model, make_rows(400, 5), without_labels, settings, progress=False)
    rows = pool_rows(model, make_rows(100, 6), without_labels, progress=False)
    assert rows.labels.tolist() == rows.head.argmax(-1).tolist()
    model.base_model.set_off_ramps(**found[0].fields)
    model.base_model.off_ramps.load_state_dict(found[0].state)
    table = table_of(model, rows)
    assert (table.answers[:, -1] == table.labels).all()
    head, off_ramp = (torch.from_numpy(table.logits[:, place]).softmax(-1) for place in (-1, -2))

    def divergence(prediction):
        return float((head * (head / prediction).log()).sum(-1).mean())

    assert divergence(off_ramp) < 0.7 * divergence(head.mean(0))  # nearer to the head than its mean prediction


def test_mean_saving_is_that_of_the_curve():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 4, 2)) * np.arange(1, 5)[:, None]
    table = ExitTable.from_logits(logits, logits[:, -1].argmax(-1))
    curve = exit_curve(table)
    savings = []
    for drop in np.linspace(0, 0.02, 5):
        savings.append(max(s for s, a in zip(curve.layer_saving, curve.accuracy, strict=True) if a >= 1 - drop - 1e-9))
    assert mean_saving(table, 0.02, 5) == pytest.approx(np.mean(savings))
    assert 0 < mean_saving(table) < mean_saving(table, 0.1)


def test_attention_pooling_is_refused():
    with pytest.raises(ValueError, match="`off_ramp_pooling` is 'attention'"):
        search_off_ramps(make_tiny(off_ramp_pooling="attention"), TRAIN, collate, QUICK, progress=False)


def test_more_rows_than_fit_are_sampled(monkeypatch):
    from transformers_deebert.training import off_ramp_search

    monkeypatch.setattr(off_ramp_search, "LARGEST", 10 * 4 * 4 * 32)
    model = make_tiny(off_ramp_pooling="mean")
    rows = pool_rows(model, TRAIN, collate, progress=False)
    assert isinstance(rows, PooledRows)
    assert len(rows) == 10
    every = pool_rows(make_tiny(off_ramp_pooling="mean"), [TRAIN[0]], collate, progress=False)
    assert len(every) == 1
