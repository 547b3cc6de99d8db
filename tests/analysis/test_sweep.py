import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from transformers_deebert import pick_threshold
from transformers_deebert.analysis import ExitTable, entropies, exit_layers, layer_scores, sweep_thresholds
from transformers_deebert.analysis.metrics import make_metric, make_metrics, row_worth


def accuracy(answers, labels):
    return {"accuracy": float((answers == labels).mean())}


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
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)  # float32, as in the models
    assert found.dtype == np.float64


def test_entropies_are_finite_for_huge_logits_and_infinite_for_broken_ones():
    logits = np.array([[[1e4, -1e4]], [[-1e4, -1e4]], [[np.nan, 0]], [[np.inf, 0]], [[-np.inf, 0]]])
    assert entropies(logits)[:2, 0].tolist() == pytest.approx([0.0, math.log(2)])
    assert np.isposinf(entropies(logits)[2:]).all()


def test_sweep_equals_the_hand_count(hand_made):
    full, strict, loose, all_out = sweep_thresholds(ExitTable.from_logits(*hand_made), [0, 0.1, 0.4, 0.7], accuracy)

    assert full.exit_counts == (0, 0, 4)
    assert (full.layer_cost_ratio, full.layer_saving, full.scores) == (1.0, 0.0, {"accuracy": 1.0})

    assert strict.exit_counts == (2, 0, 2)  # rows 1 and 4 at layer 1; 1 + 3 + 3 + 1 layers of 12
    assert strict.layer_cost_ratio == pytest.approx(8 / 12)
    assert strict.scores == {"accuracy": 0.75}

    assert loose.exit_counts == (2, 1, 1)  # 1 + 2 + 3 + 1 layers
    assert loose.layer_saving == pytest.approx(5 / 12)
    assert loose.expected_speed_up == pytest.approx(12 / 7)

    assert all_out.exit_counts == (4, 0, 0)
    assert all_out.layer_saving == pytest.approx(2 / 3)
    assert json.loads(json.dumps(all_out.to_dict()))["exit_counts"] == [4, 0, 0]


def test_one_threshold_for_each_off_ramp(hand_made):
    (point,) = sweep_thresholds(ExitTable.from_logits(*hand_made), [[0, 0.4]], accuracy)
    assert point.exit_counts == (0, 3, 1)  # nobody at layer 1; rows 1, 2 and 4 at layer 2
    assert point.threshold == (0.0, 0.4)
    assert point.to_dict()["threshold"] == [0.0, 0.4]


def test_layer_scores_equal_the_hand_count(hand_made):
    # Of equal logits the first class is the answer: layer 1 says 1 0 0 1, layer 2 says 1 1 0 1, layer 3 says 1 1 0 0.
    assert [scores["accuracy"] for scores in layer_scores(ExitTable.from_logits(*hand_made))] == [0.5, 0.75, 1.0]


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
    table = ExitTable.from_logits(logits, np.zeros(len(logits), dtype=int))
    points = sweep_thresholds(table, sorted(thresholds), accuracy)
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
    assert row_worth(labels, labels, make_metric("accuracy", None, 2), 2) == pytest.approx(1 / 8)
    assert row_worth(labels, labels, make_metric("f1", None, 2), 2) == 1.0  # the only positive row lost


@given(st.integers(2, 5), st.integers(1, 30), st.integers(0, 1000))
def test_scores_without_a_score_are_those_of_scikit_learn(classes, rows, seed):
    generator = np.random.default_rng(seed)
    predictions, labels = generator.integers(0, classes, (2, rows))
    options = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
    expected = {
        "accuracy": accuracy_score(labels, predictions),
        "f1": f1_score(labels, predictions, zero_division=0, **options),
    }
    assert make_metrics(None, classes)(predictions, labels) == pytest.approx(expected)


class Matthews:
    """Called as a module of `evaluate` is."""

    def compute(self, *, predictions, references):
        return {"matthews_correlation": matthews_corrcoef(references, predictions), "name": "Matthews"}


def test_scores_of_ones_own(hand_made):
    table = ExitTable.from_logits(*hand_made)
    (full,) = sweep_thresholds(table, [0], Matthews())
    assert full.scores == {"matthews_correlation": 1.0}
    (half,) = sweep_thresholds(table, [0], lambda predictions, labels: 0.5)
    assert half.scores == {"score": 0.5}
    with pytest.raises(ValueError, match="`compute_metric` must return numbers"):
        sweep_thresholds(table, [0], lambda predictions, labels: {"report": "good"})


def test_thresholds_by_default_are_quantiles_and_both_ends():
    generator = np.random.default_rng(0)
    table = ExitTable.from_logits(3 * generator.normal(size=(500, 6, 4)), generator.integers(0, 4, 500))
    points = sweep_thresholds(table)
    thresholds = np.array([point.threshold for point in points])
    assert len(points) == 202
    assert (points[0].threshold, points[0].layer_saving) == (0, 0)
    assert points[-1].exit_counts == (500, 0, 0, 0, 0, 0)
    below = [(table.entropies[:, :-1] < threshold).mean() for threshold in thresholds[1:-1]]
    np.testing.assert_allclose(below, np.linspace(0, 1, 200), atol=1e-3)


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
        (lambda logits, labels: ExitTable.from_logits(logits, labels[:2]), r"`labels` must have shape.*\(2,\)"),
        (lambda logits, labels: ExitTable.from_logits(logits, labels + 1), r"`labels` must be integers from 0 to 1"),
        (lambda logits, labels: ExitTable.from_logits(logits, labels * 1.0), r"`labels` must be integers.*float64"),
        (
            lambda logits, labels: sweep_thresholds(ExitTable.from_logits(logits, labels), []),
            r"`thresholds` must be a list of at least one",
        ),
        (
            lambda logits, labels: ExitTable.from_logits(logits[:0], labels[:0]),
            r"`labels` must.*rows = 0 >= 1",
        ),
        (
            lambda logits, labels: pick_threshold(
                ExitTable.from_logits(logits, labels), max_metric_drop=0, metric="f2"
            ),
            r"`metric` must be one of .*\['accuracy', 'f1'\].*got 'f2'",
        ),
        (
            lambda logits, labels: ExitTable.from_logits(logits, labels, lengths=[1, 2]),
            r"`lengths` must be whole numbers >= 0 of shape \(4,\)",
        ),
        (
            lambda logits, labels: ExitTable.from_logits(logits, labels, label_names=["one"]),
            r"`label_names` has 1 names for 2 classes",
        ),
        (
            lambda logits, labels: ExitTable.from_logits(logits, labels).with_temperatures([1.0]),
            r"`temperatures` must hold 2 numbers above 0.*got \[1\.0\]",
        ),
    ],
)
def test_malformed_input_names_argument_value_and_remedy(hand_made, call, message):
    with pytest.raises(ValueError, match=message):
        call(*hand_made)
