"""Choosing a threshold: targets that can be met and targets that cannot, and the guarantee."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_model
from made_tables import class_table, cuts
from scipy.stats import binom
from sklearn.metrics import balanced_accuracy_score, f1_score
from test_exit_table import collate, make_rows

from transformers_deebert import ExitTable, collect_exits, pick_threshold, sweep_thresholds
from transformers_deebert.analysis import LatencyProfile
from transformers_deebert.analysis.guarantee import rows_needed


# Not all of it rises from layer to layer: as measured.
PROFILE = LatencyProfile((5, 30), np.array([[1.0, 2, 5, 4, 7, 8], [2, 4, 6, 12, 18, 17]]), 1, {"device": "cpu"})


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
    choices = [pick_threshold(table, max_metric_drop=drop) for drop in (0.005, 0.02, 0.1)]
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
    choice = pick_threshold(table, max_metric_drop=0.0001)
    assert not choice.met
    assert choice.threshold == 0
    assert "No threshold saves anything" in choice.reason


def test_the_guarantee_on_new_rows():
    """The true drop, read on a large population, is above the bound in at most 1 - confidence of the draws."""
    population = make_table(rows=20_000, seed=1, lift=0.2)
    right = population.answers[:, -1] == population.labels
    generator = np.random.default_rng(2)
    drops, savings = [], []
    for _ in range(100):
        table = population.select(generator.integers(0, len(population), 600))
        choice = pick_threshold(table, max_metric_drop=0.02, confidence=0.9)
        exits, answers = population.exits_at(choice.threshold)
        drops.append(right.mean() - (answers == population.labels).mean())
        savings.append(1 - exits.mean() / 6)
    violations = np.mean(np.array(drops) > 0.02)
    assert violations <= 0.1 + 3 * math.sqrt(0.1 * 0.9 / 100)
    assert np.mean(savings) > 0.2  # and it is no empty promise


def test_the_guarantee_is_a_test_of_negative_flips():
    table = make_table()
    choice = pick_threshold(table, max_metric_drop=0.02, confidence=0.95)
    _, answers = table.exits_at(choice.threshold)
    negative = ((table.answers[:, -1] == table.labels) & (answers != table.labels)).sum()
    assert choice.negative_flips == negative
    # P(Bin(n, bound) <= flips), summed up here.
    terms = [math.comb(2000, k) * 0.02**k * 0.98 ** (2000 - k) for k in range(negative + 1)]
    assert sum(terms) <= 0.05
    assert choice.rows == len(table)
    assert pick_threshold(table, max_metric_drop=0.02, confidence=0.999).threshold <= choice.threshold


def test_too_few_rows_for_a_guarantee():
    choice = pick_threshold(make_table(rows=200), max_metric_drop=0.01, confidence=0.95)
    assert not choice.met
    assert choice.threshold == 0
    assert "it takes 299 rows" in choice.reason  # 0.99 ** 299 < 0.05 < 0.99 ** 298
    assert choice.layer_saving == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one"),
        ({"target_saving": 0.4, "max_metric_drop": 0.01}, "exactly one"),
        ({"target_saving": 0.4, "confidence": 0.95}, "`confidence`"),
        ({"target_saving": 1.5}, "`target_saving`.*1.5"),
        ({"max_metric_drop": -0.01}, "`max_metric_drop`"),
        ({"max_metric_drop": 0, "confidence": 0.95}, "`max_metric_drop`"),
        ({"target_latency_ms": 3}, "`target_latency_ms` needs `latency`"),
        ({"target_latency_ms": float("nan")}, "`target_latency_ms` must be finite"),
        ({"max_metric_drop": 0.01, "confidence": 0.95, "metric": "f1"}, "`confidence` guarantees accuracy"),
        ({"max_metric_drop": 0.01, "confidence": 0.95, "per_layer": True}, "`confidence` guarantees accuracy"),
        ({"max_metric_drop": 0.01, "confidence": 95}, "`confidence`.*95"),
    ],
)
def test_bad_arguments(settings, message):
    with pytest.raises(ValueError, match=message):
        pick_threshold(make_table(rows=20), **settings)


def test_a_score_that_is_no_number():
    def nothing(predictions, labels):
        return {"mine": float("nan")}

    with pytest.raises(ValueError, match="`metric` 'mine' is -inf at full depth"):
        pick_threshold(make_table(rows=50), max_metric_drop=0.01, metric="mine", compute_metric=nothing)


def test_too_few_rows_at_all():
    with pytest.raises(ValueError, match="`table` has 3 rows"):
        pick_threshold(make_table(rows=3), target_saving=0.4)


def expected_ms(table, threshold):
    """Row by row."""
    exits, _ = table.exits_at(threshold)
    return np.mean(
        [
            np.interp(length, PROFILE.lengths, PROFILE.milliseconds[:, layer - 1])
            for length, layer in zip(table.lengths, exits, strict=True)
        ]
    )


def test_a_latency():
    table = class_table(rows=300)
    full = expected_ms(table, 0.0)
    choice = pick_threshold(table, target_latency_ms=0.6 * full, latency=PROFILE)
    choosing, reading = table.split(0)
    assert choice.met
    assert f"expected to take at most {0.6 * full:g} ms a row" in choice.reason
    assert choice.latency_ms == pytest.approx(expected_ms(reading, choice.threshold))
    assert choice.full_latency_ms == pytest.approx(expected_ms(reading, 0.0))
    assert choice.latency_ms_interval[0] < choice.latency_ms < choice.latency_ms_interval[1]
    lower = [cut for cut in cuts(choosing.entropies[:, :-1]) if cut < choice.threshold - 1e-9]
    assert len(lower) > 20
    assert expected_ms(choosing, choice.threshold) <= 0.6 * full
    assert all(expected_ms(choosing, cut) > 0.6 * full for cut in lower)
    # Of any other target, the times are told as well.
    assert pick_threshold(table, target_saving=0.3, latency=PROFILE).latency_ms < full
    assert pick_threshold(table, target_saving=0.3).latency_ms is None


def test_a_latency_that_is_just_reached():
    """A target that is the expected time of a threshold itself: rounding must not rule it out."""
    table = class_table(rows=200)
    for cut in cuts(table.entropies[:, :-1])[5:400:40]:
        target = expected_ms(table, cut)
        for per_layer in (False, True):
            choice = pick_threshold(
                table, target_latency_ms=target, latency=PROFILE, evaluate_on=table, per_layer=per_layer
            )
            assert choice.met
            assert choice.latency_ms <= target + 1e-9
        choice = pick_threshold(table, target_latency_ms=target, latency=PROFILE, evaluate_on=table)
        assert choice.layer_saving <= 1 - table.exits_at(cut)[0].mean() / 6 + 1e-9  # no higher threshold than this


def test_a_latency_that_cannot_be_met():
    table = class_table(rows=100)
    choice = pick_threshold(table, target_latency_ms=0.5, latency=PROFILE)
    assert not choice.met
    assert "No threshold takes at most 0.5 ms a row: this one takes least" in choice.reason
    choosing, _ = table.split(0)
    best = min(expected_ms(choosing, cut) for cut in cuts(choosing.entropies[:, :-1]))
    assert expected_ms(choosing, choice.threshold) == pytest.approx(best)


def test_profiles_that_do_not_fit():
    other = LatencyProfile((5,), np.ones((1, 12)), 1, {})
    for target in ({"target_saving": 0.3}, {"target_latency_ms": 1.0}, {"max_metric_drop": 0.01, "confidence": 0.9}):
        with pytest.raises(ValueError, match="`latency` is of a model with 12 layers .*`table` of one with 6"):
            pick_threshold(class_table(rows=50), latency=other, **target)
    with pytest.raises(ValueError, match="`latency` needs lengths, and `table` has rows of 0 tokens"):
        pick_threshold(class_table(rows=50, lengths=False), latency=PROFILE, target_latency_ms=1.0)


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_against_every_threshold(classes):
    table = class_table(rows=60, classes=classes, seed=5, strength=(0.1, 1.0))
    kind = {"average": "binary"} if classes == 2 else {"average": "macro"}

    def at(threshold):
        exits, answers = table.exits_at(threshold)
        return f1_score(table.labels, answers, **kind), 1 - exits.mean() / 6

    full, _ = at(0.0)
    for drop in (0.0, 0.02, 0.1):
        allowed = [saving for score, saving in map(at, cuts(table.entropies[:, :-1])) if score >= full - drop - 1e-12]
        choice = pick_threshold(table, max_metric_drop=drop, metric="f1", evaluate_on=table)
        assert choice.metric == "f1"
        assert (choice.score, choice.layer_saving) == pytest.approx(at(choice.threshold))
        assert choice.layer_saving == pytest.approx(max(allowed))
        assert choice.score_change >= -drop - 1e-9
    assert pick_threshold(table, max_metric_drop=0.02, metric="f1").full_score != pytest.approx(full)  # the other half


class BalancedAccuracy:
    """Called as a module of `evaluate` is."""

    def compute(self, *, predictions, references):
        right = predictions == references
        return {"balanced_accuracy": np.mean([right[references == label].mean() for label in range(3)])}


def test_a_score_of_ones_own():
    table = class_table(rows=300)
    choice = pick_threshold(
        table, max_metric_drop=0.03, metric="balanced_accuracy", compute_metric=BalancedAccuracy(), evaluate_on=table
    )
    answers = table.exits_at(choice.threshold)[1]
    assert choice.met
    assert choice.score == pytest.approx(balanced_accuracy_score(table.labels, answers))
    assert choice.full_score == pytest.approx(balanced_accuracy_score(table.labels, table.answers[:, -1]))
    assert choice.score >= choice.full_score - 0.03
    points = sweep_thresholds(table, None, BalancedAccuracy())
    allowed = [one for one in points if one.scores["balanced_accuracy"] >= choice.full_score - 0.03]
    assert choice.layer_saving == pytest.approx(max(one.layer_saving for one in allowed))
    with pytest.raises(ValueError, match="`metric` must be one of what `compute_metric` returns"):
        pick_threshold(table, max_metric_drop=0.03, metric="accuracy", compute_metric=BalancedAccuracy())


def test_other_rows_to_read_on():
    table, reading = class_table(rows=200), class_table(rows=120, seed=1)
    choice = pick_threshold(table, max_metric_drop=0.02, evaluate_on=reading)
    assert choice.rows == 120
    assert "selected on 200 rows, evaluated on 120 others" in choice.reason
    changed = replace(reading, labels=(reading.labels + 1) % 3)
    assert pick_threshold(table, max_metric_drop=0.02, evaluate_on=changed).threshold == choice.threshold
    for other in (class_table(layers=4), class_table(classes=4), reading.with_temperatures([2.0] * 5)):
        with pytest.raises(ValueError, match="`evaluate_on` is of another model, of other temperatures or"):
            pick_threshold(table, max_metric_drop=0.02, evaluate_on=other)


def test_many_classes_with_entropies_of_several_nats():
    """Every target finds a threshold well above 1 nat, where 64 classes have theirs."""
    table = class_table(rows=3000, classes=64, strength=(1.6, 2.2))
    targets = [
        {"target_saving": 0.4},
        {"max_metric_drop": 0.05},
        {"max_metric_drop": 0.05, "metric": "f1"},
        {"target_latency_ms": 5.0, "latency": PROFILE},
        {"max_metric_drop": 0.05, "confidence": 0.9},
    ]
    for target in targets:
        choice = pick_threshold(table, **target)
        assert choice.met, target
        assert 1 < choice.threshold < math.log(64)
        assert choice.fraction == pytest.approx(choice.threshold / math.log(64))
        assert choice.layer_saving > 0.05
    each = pick_threshold(table, target_saving=0.4, per_layer=True)
    assert max(each.threshold) > 1
    assert each.fraction == pytest.approx(np.array(each.threshold) / math.log(64))
    points = sweep_thresholds(table, [share * table.max_entropy for share in (0, 0.25, 0.5, 0.75, 1.01)])
    savings = [point.layer_saving for point in points]
    assert savings == sorted(set(savings))
    assert (savings[0], savings[-1]) == (0, pytest.approx(5 / 6))


def test_a_model_of_many_classes():
    model, rows = make_model(off_ramp_pooling="mean", num_labels=64), make_rows()
    with torch.no_grad():
        for off_ramp in model.base_model.off_ramps:
            off_ramp.classifier.weight.div_(4)
    table = collect_exits(model, rows, collate, progress=False)
    table = replace(table, labels=table.answers[:, -1])
    choice = pick_threshold(table, target_saving=0.4, evaluate_on=table)
    assert 1 < choice.threshold < math.log(64)
    exits, answers = table.exits_at(choice.threshold)
    assert np.abs(table.entropies[:, :-1] - choice.threshold).min() > 1e-5
    outputs = [model(input_ids=torch.tensor([row["input_ids"]]), early_exit_entropy=choice.threshold) for row in rows]
    assert [output.exit_layers.item() for output in outputs] == exits.tolist()
    assert [output.logits.argmax().item() for output in outputs] == answers.tolist()
    assert len(set(exits)) >= 3


@pytest.mark.parametrize("share", [0.0, 0.001, 0.004, 0.008, 0.0095])
@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.999])
def test_the_rows_that_are_said_to_be_enough(share, confidence):
    rows = rows_needed(share, 0.01, confidence)
    assert binom.cdf(math.ceil(share * rows), rows, 0.01) <= 1 - confidence
    fewer = int(0.8 * rows)
    assert binom.cdf(math.ceil(share * fewer), fewer, 0.01) > 1 - confidence
    assert rows_needed(0.01, 0.01, confidence) is None


def test_why_nothing_is_promised():
    table = class_table(rows=1000, layers=3)
    right = table.answers[:, -1] == table.labels
    harm = np.zeros(1000, bool)
    harm[np.nonzero(right)[0][:7]] = True  # sure and wrong, seven in a thousand
    logits = table.logits.copy()
    logits[:, 0] = 60 * np.eye(3)[np.where(harm, (table.labels + 1) % 3, table.answers[:, -1])]
    choice = pick_threshold(replace(table, logits=logits), max_metric_drop=0.01, confidence=0.95)
    assert not choice.met
    assert f"7 negative flips in 1,000 rows are too many; about {rows_needed(0.007, 0.01, 0.95):,}" in choice.reason
    assert (choice.threshold, choice.negative_flips) == (0.0, 0)
    logits[:, 0] = 60 * np.eye(3)[(table.answers[:, -1] + 1) % 3]
    choice = pick_threshold(replace(table, logits=logits), max_metric_drop=0.01, confidence=0.95)
    assert "no number of rows would be enough" in choice.reason
    logits[:, :-1] = np.nan
    choice = pick_threshold(replace(table, logits=logits), max_metric_drop=0.01, confidence=0.95)
    assert not choice.met
    assert "no off-ramp gives any of these rows a score" in choice.reason


def test_the_guarantee_with_broken_rows_and_another_table():
    table = class_table(rows=2000, strength=(1.5, 4))
    logits = table.logits.copy()
    logits[::3, :-1] = np.inf
    broken, reading = replace(table, logits=logits), class_table(rows=300, seed=8, strength=(1.5, 4))
    choice = pick_threshold(broken, max_metric_drop=0.01, confidence=0.999, evaluate_on=reading)
    assert choice.met
    assert "With 99.9% confidence" in choice.reason
    assert choice.rows == 300
    exits, answers = broken.exits_at(choice.threshold)
    assert (exits[::3] == 6).all()
    negative = ((table.answers[:, -1] == table.labels) & (answers != table.labels)).sum()
    assert choice.negative_flips == negative
    assert binom.cdf(negative, 2000, 0.01) <= 0.001
    assert choice.layer_saving == pytest.approx(1 - reading.exits_at(choice.threshold)[0].mean() / 6)


def test_earlier_names_of_arguments():
    table = make_table(rows=60)
    with pytest.warns(FutureWarning, match="`max_score_drop` of pick_threshold is now called `max_metric_drop`"):
        found = pick_threshold(table, max_score_drop=0.02)
    assert found == pick_threshold(table, max_metric_drop=0.02)
    with pytest.raises(ValueError, match="`reading` is the earlier name of `evaluate_on`"):
        pick_threshold(table, target_saving=0.2, reading=table, evaluate_on=table)
