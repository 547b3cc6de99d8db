import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from transformers_deebert.analysis import (
    entropies,
    exit_layers,
    layer_scores,
    pick_operating_points,
    row_worth,
    sweep_thresholds,
)


def accuracy(answers, labels):
    return {"accuracy": float((answers == labels).mean())}


def f1(answers, labels):
    hits = ((answers == 1) & (labels == 1)).sum()
    return {"f1": float(2 * hits / max(1, (answers == 1).sum() + (labels == 1).sum()))}


def logits_of(probabilities):
    return np.log(np.asarray(probabilities, dtype=np.float64))


@pytest.fixture
def hand_made():
    """Four rows, three layers, two labels. The entropies of the probabilities .5 .9 .99 are .693 .325 .056."""
    of_one = np.array(
        [
            [0.99, 0.99, 0.99],  # sure at once, right
            [0.50, 0.90, 0.99],  # sure at the second layer, right
            [0.50, 0.50, 0.01],  # unsure until the end, right
            [0.99, 0.90, 0.01],  # sure at once and wrong; the last layer is right
        ]
    )
    return logits_of(np.stack([1 - of_one, of_one], axis=-1)), np.array([1, 1, 0, 0])


three_layers = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 8), st.integers(1, 4), st.integers(2, 4)),
    elements=st.floats(-30, 30, width=32),
)


def test_entropies_of_known_distributions():
    found = entropies(logits_of([[[0.5, 0.5], [0.25, 0.75]], [[0.1, 0.9], [0.99, 0.01]]]))
    by_hand = [
        [math.log(2), -0.25 * math.log(0.25) - 0.75 * math.log(0.75)],
        [-0.1 * math.log(0.1) - 0.9 * math.log(0.9), -0.99 * math.log(0.99) - 0.01 * math.log(0.01)],
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-12)
    assert found.dtype == np.float64


def test_entropies_are_finite_for_huge_logits_and_infinite_for_broken_ones():
    logits = np.array([[[1e4, -1e4]], [[-1e4, -1e4]], [[np.nan, 0]], [[np.inf, 0]], [[-np.inf, 0]]])
    assert entropies(logits)[:2, 0].tolist() == pytest.approx([0.0, math.log(2)])
    assert np.isposinf(entropies(logits)[2:]).all()


def test_sweep_equals_the_hand_count(hand_made):
    logits, labels = hand_made
    full, strict, loose, all_out = sweep_thresholds(logits, labels, [0, 0.1, 0.4, 0.7], accuracy)

    assert full.exit_counts == (0, 0, 4)
    assert (full.layer_cost_ratio, full.layer_saving, full.scores) == (1.0, 0.0, {"accuracy": 1.0})

    assert strict.exit_counts == (2, 0, 2)  # rows 1 and 4 at layer 1; 1 + 3 + 3 + 1 layers of 12
    assert strict.layer_cost_ratio == pytest.approx(8 / 12)
    assert strict.scores == {"accuracy": 0.75}

    assert loose.exit_counts == (2, 1, 1)  # 1 + 2 + 3 + 1 layers
    assert loose.layer_saving == pytest.approx(5 / 12)

    assert all_out.exit_counts == (4, 0, 0)
    assert all_out.layer_saving == pytest.approx(2 / 3)
    assert json.loads(json.dumps(all_out.to_dict()))["exit_counts"] == [4, 0, 0]


def test_one_threshold_for_each_off_ramp(hand_made):
    logits, labels = hand_made
    (point,) = sweep_thresholds(logits, labels, [[0, 0.4]], accuracy)
    assert point.exit_counts == (0, 3, 1)  # nobody at layer 1; rows 1, 2 and 4 at layer 2
    assert point.threshold == (0.0, 0.4)
    assert point.to_dict()["threshold"] == [0.0, 0.4]


def test_layer_scores_equal_the_hand_count(hand_made):
    logits, labels = hand_made
    # Of equal logits the first class is the answer: layer 1 says 1 0 0 1, layer 2 says 1 1 0 1, layer 3 says 1 1 0 0.
    assert [scores["accuracy"] for scores in layer_scores(logits, labels, accuracy)] == [0.5, 0.75, 1.0]


def test_an_entropy_equal_to_the_threshold_stays():
    logits = np.zeros((1, 2, 2))
    entropy = float(entropies(logits)[0, 0])
    assert exit_layers(logits, entropy).tolist() == [2]
    assert exit_layers(logits, np.nextafter(entropy, 1)).tolist() == [1]


def test_rows_do_not_leave_where_their_logits_are_not_finite():
    logits = np.tile(np.array([9.0, 0.0]), (2, 3, 1))
    logits[0, 0, 1] = np.nan
    logits[1, :, 0] = np.inf
    assert exit_layers(logits, 10.0).tolist() == [2, 3]


@given(three_layers, st.floats(0, 2))
def test_exit_layers_agree_with_a_loop(logits, threshold):
    expected = []
    for row in logits.astype(np.float64):
        leaves_at = len(row)
        for layer, scores in enumerate(row[:-1], start=1):
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            positive = probabilities[probabilities > 0]
            if -(positive * np.log(positive)).sum() < threshold - 1e-9:
                leaves_at = layer
                break
        expected.append(leaves_at)
    found = exit_layers(logits, threshold)
    near = (np.abs(entropies(logits)[:, :-1] - threshold) < 1e-6).any(axis=1)  # rounding decides there
    assert found.dtype == np.int64
    assert (found == expected)[~near].all()


@given(three_layers, st.lists(st.floats(0, 3), min_size=2, max_size=6))
def test_saving_grows_with_the_threshold(logits, thresholds):
    points = sweep_thresholds(logits, np.zeros(len(logits), dtype=int), sorted(thresholds), accuracy)
    savings = [point.layer_saving for point in points]
    assert savings == sorted(savings)
    assert all(sum(point.exit_counts) == len(logits) for point in points)


@given(three_layers)
def test_zero_exits_nowhere_and_more_than_the_largest_entropy_everywhere(logits):
    rows, layers, classes = logits.shape
    assert (exit_layers(logits, 0) == layers).all()
    assert (exit_layers(logits, math.log(classes) + 1e-6) == 1).all()


@given(three_layers, st.floats(0, 2), st.integers(0, 100))
def test_rows_are_independent(logits, threshold, seed):
    order = np.random.default_rng(seed).permutation(len(logits))
    assert (exit_layers(logits[order], threshold) == exit_layers(logits, threshold)[order]).all()


def test_a_row_is_worth_its_share_of_the_accuracy_and_more_of_f1():
    labels = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    assert row_worth(labels, labels, accuracy, "accuracy", 2) == pytest.approx(1 / 8)
    assert row_worth(labels, labels, f1, "f1", 2) == 1.0  # the only positive row lost


def easy_and_hard(rows, seed):
    """Rows of six layers: half are right and sure from layer 1 on, half are wrong and fairly sure until layer 6."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    hard = generator.random(rows) < 0.5
    of_label = np.where(hard[:, None], 0.1 * np.ones((rows, 6)), 0.999)
    of_label[:, -1] = 0.99
    probabilities = np.stack([1 - of_label, of_label], axis=-1)
    probabilities = np.where(labels[:, None, None] == 1, probabilities, probabilities[..., ::-1])
    return logits_of(probabilities), labels


def test_points_are_chosen_on_one_half_and_read_on_the_other():
    logits, labels = easy_and_hard(400, seed=0)
    free, cheap = pick_operating_points(logits, labels, accuracy, "accuracy", max_drops=(0.0, 0.6), resamples=200)
    # Entropies are .0079 (easy) and .325 (hard): without a loss only the easy half leaves, at layer 1.
    assert 0.0079 <= free.threshold <= 0.3251
    assert free.score_change == 0
    assert free.score_change_interval == (0.0, 0.0)
    assert free.read.layer_saving == pytest.approx(5 / 6 * free.read.exit_counts[0] / 200)
    assert free.layer_saving_interval[0] < free.read.layer_saving < free.layer_saving_interval[1]
    assert free.rows == 200
    assert free.row_worth == pytest.approx(1 / 200)
    assert sum(free.chosen.exit_counts) + sum(free.read.exit_counts) == 400
    # The largest candidate is the largest entropy itself, which does not leave: nothing more is saved by the loss.
    assert cheap.read.layer_saving >= free.read.layer_saving
    assert free.to_dict()["read"]["scores"] == {"accuracy": 1.0}


def test_a_wide_enough_loss_takes_every_layer():
    logits, labels = easy_and_hard(400, seed=1)
    (point,) = pick_operating_points(
        logits, labels, accuracy, "accuracy", max_drops=(1.0,), thresholds=[0, 0.1, 1.0], resamples=200
    )
    assert point.threshold == 1.0
    assert point.read.layer_saving == pytest.approx(5 / 6)
    low, high = point.score_change_interval
    assert low < point.score_change < high < 0


def test_the_choice_does_not_read_the_other_half():
    logits, labels = easy_and_hard(400, seed=2)
    before = pick_operating_points(logits, labels, accuracy, "accuracy", resamples=1)
    reading = np.sort(np.random.default_rng(0).permutation(400)[200:])
    labels[reading] = 1 - labels[reading]
    after = pick_operating_points(logits, labels, accuracy, "accuracy", resamples=1)
    assert [point.chosen for point in before] == [point.chosen for point in after]
    assert [point.full for point in before] != [point.full for point in after]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(4, 40))
def test_a_larger_loss_never_saves_less_on_the_choosing_half(seed, rows):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(rows, 4, 3)) * 3, generator.integers(0, 3, rows)
    points = pick_operating_points(logits, labels, accuracy, "accuracy", seed=seed, resamples=5)
    savings = [point.chosen.layer_saving for point in points]
    assert savings == sorted(savings)
    for point in points:
        assert point.chosen.scores["accuracy"] >= points[0].chosen.scores["accuracy"] - point.max_drop - 1e-8
        assert point.row_worth == pytest.approx(1 / point.rows)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda logits, labels: exit_layers(logits, -0.1),
            r"`threshold` must be finite and >= 0, got -0\.1\. Pass one",
        ),
        (lambda logits, labels: exit_layers(logits, float("nan")), r"`threshold` must be finite and >= 0, got nan"),
        (lambda logits, labels: exit_layers(logits, True), r"`threshold` must be a number or a list.*got True"),
        (lambda logits, labels: exit_layers(logits, "low"), r"`threshold` must be a number or a list.*got 'low'"),
        (lambda logits, labels: exit_layers(logits, [0.1]), r"for 2 off-ramps, got \[0\.1\]\. Pass one number"),
        (lambda logits, labels: entropies(logits[0]), r"`logits` must have shape.*got \(3, 2\).*np\.stack"),
        (lambda logits, labels: entropies(logits[..., :1]), r"`logits` must have at least 1 layer and 2 labels"),
        (lambda logits, labels: layer_scores(logits, labels[:2], accuracy), r"`labels` must have shape.*\(2,\)"),
        (lambda logits, labels: layer_scores(logits, labels + 1, accuracy), r"`labels` must be integers from 0 to 1"),
        (lambda logits, labels: layer_scores(logits, labels * 1.0, accuracy), r"`labels` must be integers.*float64"),
        (
            lambda logits, labels: sweep_thresholds(logits, labels, [], accuracy),
            r"`thresholds` must hold at least one",
        ),
        (
            lambda logits, labels: sweep_thresholds(logits[:0], labels[:0], [0], accuracy),
            r"`labels` must.*rows = 0 >= 1",
        ),
        (
            lambda logits, labels: pick_operating_points(logits, labels, accuracy, "f1"),
            r"`metric` must be a key.*\['accuracy'\].*got 'f1'",
        ),
        (
            lambda logits, labels: pick_operating_points(logits[:3], labels[:3], accuracy, "accuracy"),
            r"`logits` must hold at least 4 rows.*got 3",
        ),
        (
            lambda logits, labels: pick_operating_points(logits, labels, accuracy, "accuracy", max_drops=(-1,)),
            r"`max_drops` must hold finite numbers >= 0, got \(-1,\)",
        ),
        (
            lambda logits, labels: pick_operating_points(logits, labels, accuracy, "accuracy", resamples=0),
            r"`resamples` must be >= 1, got 0",
        ),
        (
            lambda logits, labels: pick_operating_points(logits, labels, accuracy, "accuracy", confidence=95),
            r"`confidence` must lie between 0 and 1, got 95",
        ),
    ],
)
def test_malformed_input_names_argument_value_and_remedy(hand_made, call, message):
    with pytest.raises(ValueError, match=message):
        call(*hand_made)
