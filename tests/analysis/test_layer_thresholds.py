"""A threshold for each off-ramp: exact for one, a local optimum of all, and never worse than one for all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_model
from hypothesis import given, settings
from hypothesis import strategies as st
from made_tables import class_table, cuts
from test_exit_table import collate, make_rows, tables

from transformers_deebert import ExitTable, collect_exits, pick_threshold
from transformers_deebert.analysis import LatencyProfile, layer_thresholds, search_layer_thresholds
from transformers_deebert.analysis.decisions import first_exits
from transformers_deebert.analysis.layer_thresholds import best_threshold


PROFILE = LatencyProfile((3, 40), np.array([[1.0, 1.5, 5, 6, 7, 8], [2, 4, 6, 12, 18, 30]]), 1, {"device": "cpu"})


def total(entropy, values, thresholds):
    """Sum of the rows' values where they leave; `entropy` of the off-ramps alone."""
    with_head = np.concatenate([entropy, np.zeros((len(entropy), 1))], 1)
    exits = first_exits(with_head[:, :-1], np.asarray(thresholds, dtype=float)) + 1
    return values[np.arange(len(values)), exits - 1].sum()


def others(thresholds, layer, entropy):
    """The same thresholds but for one off-ramp, which gets every one that makes a difference."""
    for cut in cuts(entropy[:, layer]):
        yield [*thresholds[:layer], cut, *thresholds[layer + 1 :]]


@given(table=tables(), seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_one_off_ramp_is_exact(table, seed):
    """Against every threshold that makes a difference; with equal entropies and broken logits among the rows."""
    generator = np.random.default_rng(seed)
    entropy = table.entropies[:, :-1]
    values = generator.normal(size=(len(table), table.num_layers))
    orders = np.argsort(entropy, axis=0, kind="stable")
    for layer in range(table.num_layers - 1):
        thresholds = np.array([generator.choice(cuts(entropy[:, one])) for one in range(table.num_layers - 1)])
        best = max(total(entropy, values, other) for other in others(thresholds.tolist(), layer, entropy))
        found = thresholds.copy()
        found[layer] = best_threshold(entropy, orders[:, layer], values, thresholds, layer)
        assert total(entropy, values, found) == pytest.approx(best, abs=1e-9)


@given(table=tables(), worth=st.sampled_from([0.01, 0.2, 0.6, 1.5, 3.0]), costly=st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_search_ends_where_no_off_ramp_gains(table, worth, costly):
    layers = table.num_layers
    costs = np.broadcast_to(np.arange(1, layers + 1) / layers, (len(table), layers))
    given_costs = None
    if costly:
        given_costs = np.cumsum(np.random.default_rng(len(table)).uniform(1, 9, (len(table), layers)), 1)
        costs = given_costs / given_costs[:, -1].mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layer_thresholds, "WORTHS", np.array([worth]))
        (found,) = search_layer_thresholds(table, given_costs)
    entropy = table.entropies[:, :-1]
    values = (table.answers == table.labels[:, None]) - worth * costs
    reached = total(entropy, values, found)
    for layer in range(layers - 1):
        assert all(total(entropy, values, other) <= reached + 1e-9 for other in others(list(found), layer, entropy))


def test_small_tables_against_every_vector():
    """The best of all vectors is found for most prices, and never by much missed."""
    shares = []
    for seed in range(30):
        table = class_table(rows=6, layers=3, seed=seed)
        entropy = table.entropies[:, :-1]
        for worth in (0.1, 0.5, 1.5):
            values = (table.answers == table.labels[:, None]) - worth * np.arange(1, 4) / 3
            grid = [(a, b) for a in cuts(entropy[:, 0]) for b in cuts(entropy[:, 1])]
            best = max(total(entropy, values, one) for one in grid)
            found = max(total(entropy, values, one) for one in search_layer_thresholds(table))
            assert found <= best + 1e-9
            shares.append(found >= best - 1e-9)
    assert np.mean(shares) > 0.9


def test_vectors_go_from_saving_little_to_saving_nearly_all():
    table = class_table(rows=500, layers=5)
    found = search_layer_thresholds(table)
    assert len(set(found)) == len(found) <= 40
    assert all(len(one) == 4 and min(one) >= 0 for one in found)
    savings = [1 - table.exits_at(one)[0].mean() / 5 for one in found]
    assert savings == sorted(savings)
    assert savings[0] < 0.5 < 0.75 < savings[-1]


def test_costs_in_any_unit():
    """What matters is a row's cost in full passes: seven units a layer are the layers run."""
    table = class_table(rows=200, layers=4)
    expected = search_layer_thresholds(table)
    found = search_layer_thresholds(table, np.tile(7.0 * np.arange(1, 5), (200, 1)))
    savings = [[table.exits_at(one)[0].mean() for one in vectors] for vectors in (found, expected)]
    assert savings[0] == pytest.approx(savings[1])
    # Where all layers but the last cost nothing, nobody goes on for a price.
    free = search_layer_thresholds(table, np.tile([0.0, 0, 0, 1], (200, 1)))
    assert (table.exits_at(free[-1])[0] < 4).all()


def test_one_off_ramp_only():
    table = class_table(rows=60, layers=2)
    choice = pick_threshold(table, target_saving=0.2, per_layer=True, evaluate_on=table)
    single = pick_threshold(table, target_saving=0.2, evaluate_on=table)
    assert choice.score >= single.score
    assert choice.layer_saving >= 0.2
    assert all(len(one) == 1 for one in search_layer_thresholds(table))


def over_confident(rows=4000, seed=0):
    """Off-ramp 1 is always sure and right by chance; what the others say can be trusted."""
    table = class_table(rows, layers=5, seed=seed)
    logits, generator = table.logits.copy(), np.random.default_rng(seed + 1)
    logits[:, 0] = 12 * np.eye(3)[generator.integers(0, 3, rows)] + generator.normal(size=(rows, 3))
    return replace(table, logits=logits)


def test_an_off_ramp_that_is_sure_and_wrong_is_switched_off():
    table = over_confident()
    single = pick_threshold(table, max_metric_drop=0.01)
    each = pick_threshold(table, max_metric_drop=0.01, per_layer=True)
    assert single.layer_saving < 0.05
    assert each.met
    assert len(each.threshold) == len(each.fraction) == 4
    assert each.threshold[0] < 1e-3 < min(each.threshold[1:])
    assert each.layer_saving > 0.2  # read on the other half
    assert each.score_change > -0.03
    assert each.fraction == pytest.approx(np.array(each.threshold) / np.log(3))
    assert "vectors of thresholds" in each.reason
    assert each.to_dict()["threshold"] == list(each.threshold)


@pytest.mark.parametrize(
    "target", [{"target_saving": 0.3}, {"target_saving": 0.6}, {"max_metric_drop": 0.01}, {"target_latency_ms": 9.0}]
)
@pytest.mark.parametrize("metric", ["accuracy", "f1"])
def test_never_worse_where_it_was_chosen(target, metric):
    for seed in range(4):
        table = class_table(rows=150, layers=6, seed=seed)
        options = {**target, "metric": metric, "latency": PROFILE, "evaluate_on": table}
        one, each = pick_threshold(table, **options), pick_threshold(table, per_layer=True, **options)
        assert one.met
        assert each.met
        if "max_metric_drop" in target:
            assert each.layer_saving >= one.layer_saving - 1e-12
            assert each.score >= each.full_score - 0.01 - 1e-9
        else:
            assert each.score >= one.score - 1e-12
            assert each.layer_saving >= target.get("target_saving", 0) - 1e-9
            assert each.latency_ms <= target.get("target_latency_ms", 99) + 1e-6


def test_a_target_that_no_vector_meets():
    choice = pick_threshold(class_table(rows=50), target_saving=0.9, per_layer=True)
    assert not choice.met
    assert "No threshold saves 90.0% of the layers: this one saves most" in choice.reason


def test_broken_rows_run_to_the_end():
    table = class_table(rows=200, layers=4)
    logits = table.logits.copy()
    logits[::4, :-1] = np.nan
    table = ExitTable.from_logits(logits, table.labels)
    for found in search_layer_thresholds(table):
        assert (table.exits_at(found)[0][::4] == 4).all()
        assert np.isfinite(found).all()
    logits[:, :-1] = np.nan
    assert search_layer_thresholds(ExitTable.from_logits(logits, table.labels)) == [(0.0, 0.0, 0.0)]


def test_the_model_exits_as_the_choice_says():
    model, rows = make_model(off_ramp_pooling="mean"), make_rows()
    table = collect_exits(model, rows, collate, progress=False)
    table = replace(table, labels=table.answers[:, -1])
    choice = pick_threshold(table, max_metric_drop=0.2, per_layer=True, evaluate_on=table)
    assert len(choice.threshold) == 3
    assert np.abs(table.entropies[:, :-1] - choice.threshold).min() > 1e-5  # no decision hangs on rounding
    exits, answers = table.exits_at(choice.threshold)
    thresholds = list(choice.threshold)
    outputs = [model(input_ids=torch.tensor([row["input_ids"]]), early_exit_entropy=thresholds) for row in rows]
    assert [output.exit_layers.item() for output in outputs] == exits.tolist()
    assert [output.logits.argmax().item() for output in outputs] == answers.tolist()
    assert len(set(exits)) >= 3
    assert choice.layer_saving == pytest.approx(1 - exits.mean() / 4)
