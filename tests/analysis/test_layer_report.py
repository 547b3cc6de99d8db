"""What each off-ramp is worth: by hand, and when one would not be missed."""

import json
from dataclasses import replace

import numpy as np
import pytest
from made_tables import class_table, table_of
from sklearn.metrics import f1_score

from transformers_deebert import ExitTable
from transformers_deebert.analysis import exit_curve, expected_calibration_error, layer_report


def test_by_hand():
    # At S = 0.4 what is .95 or .05 leaves.
    table = table_of(
        [[0.95, 0.9, 0.9], [0.05, 0.9, 0.9], [0.6, 0.95, 0.1], [0.6, 0.05, 0.9], [0.6, 0.6, 0.9]],
        [1, 1, 0, 0, 1],
    )
    first, second, head = layer_report(table, 0.4)
    assert [one.layer for one in (first, second, head)] == [1, 2, 3]
    # Answers: 1 0 1 1 1; 1 1 1 0 1; 1 1 0 1 1.
    assert (first.score, second.score, head.score) == pytest.approx((2 / 5, 4 / 5, 4 / 5))
    assert (first.agreement, second.agreement, head.agreement) == pytest.approx((3 / 5, 3 / 5, 1))
    assert (first.evaluated, second.evaluated, head.evaluated) == pytest.approx((1, 3 / 5, 1 / 5))
    assert (first.exited, second.exited, head.exited) == pytest.approx((2 / 5, 2 / 5, 1 / 5))
    assert (first.correct_when_exited, second.correct_when_exited, head.correct_when_exited) == (0.5, 0.5, 1.0)
    assert first.calibration_error == expected_calibration_error(table, 1)
    assert (head.curve_change, head.redundant) == (None, False)
    assert json.loads(json.dumps(first.to_dict()))["evaluated"] == 1.0


def test_an_off_ramp_with_threshold_0_is_not_consulted():
    table = class_table(rows=200, layers=4)
    report = layer_report(table, [0.0, 0.4, 0.0])
    assert [one.evaluated for one in report][::2] == [0, 0]
    assert report[1].evaluated == 1
    assert report[3].evaluated == pytest.approx(1 - report[1].exited)
    assert (report[0].exited, report[0].correct_when_exited) == (0, None)
    nothing = layer_report(table, 0.0)
    assert [one.evaluated for one in nothing] == [0, 0, 0, 1]
    assert nothing[-1].exited == 1


def test_a_duplicate_would_not_be_missed_and_what_carries_everything_would():
    """Off-ramp 1 says nothing, off-ramp 3 says what off-ramp 2 said, and off-ramp 4 says nothing again."""
    table = class_table(rows=800, layers=5, strength=(2.0, 3.5))
    logits = table.logits.copy()
    logits[:, 0] = logits[:, 3] = 0
    logits[:, 2] = logits[:, 1]
    table = replace(table, logits=logits)
    report = layer_report(table, 0.2)
    assert [one.redundant for one in report] == [True, False, True, True, False]
    assert report[1].curve_change > 0
    # Nobody who was asked by off-ramp 2 leaves at off-ramp 3.
    assert (report[1].exited > 0.2, report[2].exited, report[3].exited) == (True, 0, 0)


def test_the_only_off_ramp_is_missed():
    (ramp, _) = layer_report(class_table(rows=100, layers=2), 0.3)
    assert ramp.exited > 0
    assert not ramp.redundant


def test_what_leaving_out_changes():
    """Against the best score at savings in steps of a point, from the curves with and without the off-ramp."""
    table = class_table(rows=300, layers=4, seed=3)
    for metric in ("accuracy", "f1"):
        report = layer_report(table, 0.3, metric)
        for layer in (1, 2, 3):
            logits = table.logits.copy()
            logits[:, layer - 1] = np.nan  # nobody leaves there
            full, without = exit_curve(table), exit_curve(ExitTable.from_logits(logits, table.labels))
            falls = [
                max(getattr(full, metric)[full.layer_saving >= saving - 1e-9])
                - max(getattr(without, metric)[without.layer_saving >= saving - 1e-9])
                for saving in np.arange(0, without.layer_saving.max(), 0.01)
            ]
            assert report[layer - 1].curve_change == pytest.approx(max(*falls, 0), abs=1e-9)


def test_other_metrics_and_tolerances():
    table = class_table(rows=300, layers=4, classes=2)
    report = layer_report(table, 0.2, "f1")
    for one in report:
        assert one.score == pytest.approx(f1_score(table.labels, table.answers[:, one.layer - 1]))
    own = layer_report(table, 0.2, "score", lambda answers, labels: 0.25)
    assert {one.score for one in own} == {0.25}
    assert all(one.redundant for one in layer_report(table, 0.0)[:-1])  # nothing is saved, so nothing is lost
    strict, lax = layer_report(table, 0.2, tolerance=0.0), layer_report(table, 0.2, tolerance=1.0)
    assert not any(one.redundant for one in strict)
    assert sum(one.redundant for one in lax) >= 2


def test_broken_rows_and_bad_input():
    table = class_table(rows=60, layers=3)
    logits = table.logits.copy()
    logits[:30, 0] = np.nan
    report = layer_report(replace(table, logits=logits), 9.0)
    assert (report[0].exited, report[1].exited) == (0.5, 0.5)
    with pytest.raises(ValueError, match="`threshold` has shape"):
        layer_report(table, [0.1])
    with pytest.raises(ValueError, match="`metric` must be one of"):
        layer_report(table, 0.1, metric="f2")
