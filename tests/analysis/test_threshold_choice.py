"""Choosing a threshold: targets that can be met and targets that cannot, and the guarantee."""

import math

import numpy as np
import pytest

from transformers_deebert import ExitTable, pick_threshold


def make_table(rows=2000, layers=6, seed=0, lift=0.35):
    """Two classes; each layer knows more than the one before."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    hardness = generator.normal(size=(rows, 1))
    strength = 0.6 + lift * np.arange(layers) + 0.8 * hardness + 0.3 * generator.normal(size=(rows, layers))
    margin = 2.5 * strength * np.where(labels == 1, 1, -1)[:, None]
    logits = np.stack([-margin / 2, margin / 2], -1).astype(np.float32)
    index = np.arange(rows)
    return ExitTable(logits, labels, index, index, ("no", "yes"))


def test_a_saving():
    table = make_table()
    choice = pick_threshold(table, target_saving=0.4)
    assert choice.met
    choosing, reading = table.split(0)
    exits, answers = reading.exits_at(choice.threshold)
    assert 1 - choosing.exits_at(choice.threshold)[0].mean() / 6 >= 0.4
    assert choice.layer_saving == pytest.approx(1 - exits.mean() / 6)
    assert choice.layer_saving == pytest.approx(0.4, abs=0.03)
    assert choice.score == pytest.approx((answers == reading.labels).mean())
    assert choice.full_score == pytest.approx((reading.answers[:, -1] == reading.labels).mean())
    assert choice.score_change == pytest.approx(choice.score - choice.full_score)
    assert choice.layer_saving_interval[0] < choice.layer_saving < choice.layer_saving_interval[1]
    assert choice.rows == len(reading)
    assert choice.to_dict()["threshold"] == choice.threshold


def test_a_drop():
    table = make_table()
    choices = [pick_threshold(table, max_score_drop=drop) for drop in (0.005, 0.02, 0.1)]
    choosing, _ = table.split(0)
    full = (choosing.answers[:, -1] == choosing.labels).mean()
    for choice, drop in zip(choices, (0.005, 0.02, 0.1), strict=True):
        _, answers = choosing.exits_at(choice.threshold)
        assert (answers == choosing.labels).mean() >= full - drop - 1e-9
        assert choice.met
    assert choices[0].layer_saving < choices[1].layer_saving < choices[2].layer_saving


def test_targets_that_cannot_be_met():
    choice = pick_threshold(make_table(), target_saving=0.9)  # one layer of six always runs
    assert not choice.met
    assert "No threshold saves 90.0%" in choice.reason
    assert choice.layer_saving == pytest.approx(5 / 6)
    table = make_table(lift=0.0)
    flat = table.logits.copy()
    flat[:, :-1] = -flat[:, :-1]  # every off-ramp is sure and wrong
    table = ExitTable(flat, table.labels, table.lengths, table.ids, table.label_names)
    choice = pick_threshold(table, max_score_drop=0.0001)
    assert not choice.met
    assert choice.threshold == 0
    assert "No threshold saves anything" in choice.reason


def test_the_guarantee_on_new_rows():
    """The true drop, read on a large population, is above the bound in at most 1 - confidence of the draws."""
    population = make_table(rows=50_000, seed=1, lift=0.2)
    right = population.answers[:, -1] == population.labels
    generator = np.random.default_rng(2)
    drops, savings = [], []
    for _ in range(200):
        table = population.select(generator.integers(0, len(population), 600))
        choice = pick_threshold(table, max_score_drop=0.02, confidence=0.9)
        exits, answers = population.exits_at(choice.threshold)
        drops.append(right.mean() - (answers == population.labels).mean())
        savings.append(1 - exits.mean() / 6)
    violations = np.mean(np.array(drops) > 0.02)
    assert violations <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 200)
    assert np.mean(savings) > 0.2  # and it is no empty promise


def test_the_guarantee_is_a_test_of_harmful_flips():
    table = make_table()
    choice = pick_threshold(table, max_score_drop=0.02, confidence=0.95)
    _, answers = table.exits_at(choice.threshold)
    harmful = ((table.answers[:, -1] == table.labels) & (answers != table.labels)).sum()
    assert choice.harmful_flips == harmful
    # P(Bin(n, bound) <= flips), summed up here.
    terms = [math.comb(2000, k) * 0.02**k * 0.98 ** (2000 - k) for k in range(harmful + 1)]
    assert sum(terms) <= 0.05
    assert choice.rows == len(table)
    assert pick_threshold(table, max_score_drop=0.02, confidence=0.999).threshold <= choice.threshold


def test_too_few_rows_for_a_guarantee():
    choice = pick_threshold(make_table(rows=200), max_score_drop=0.01, confidence=0.95)
    assert not choice.met
    assert choice.threshold == 0
    assert "it takes 299 rows" in choice.reason  # 0.99 ** 299 < 0.05 < 0.99 ** 298
    assert choice.layer_saving == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"target_saving": 0.4, "max_score_drop": 0.01}, "exactly one"),
        ({"target_saving": 0.4, "confidence": 0.95}, "`confidence`"),
        ({"target_saving": 1.5}, "`target_saving`.*1.5"),
        ({"max_score_drop": -0.01}, "`max_score_drop`"),
        ({"max_score_drop": 0, "confidence": 0.95}, "`max_score_drop`"),
        ({"target_latency_ms": 3}, "`target_latency_ms` needs `latency`"),
        ({"target_latency_ms": float("nan")}, "`target_latency_ms` must be finite"),
        ({"max_score_drop": 0.01, "confidence": 0.95, "metric": "f1"}, "`confidence` guarantees accuracy"),
        ({"max_score_drop": 0.01, "confidence": 0.95, "per_layer": True}, "`confidence` guarantees accuracy"),
        ({"max_score_drop": 0.01, "confidence": 95}, "`confidence`.*95"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        pick_threshold(make_table(rows=20), **settings)


def test_too_few_rows_at_all():
    with pytest.raises(ValueError, match="`table` has 3 rows"):
        pick_threshold(make_table(rows=3), target_saving=0.4)
