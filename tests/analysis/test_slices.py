"""Parts of the rows: by hand, by what kind of values, and no alarm without a fire."""

import json
import math

import numpy as np
import pytest
from made_tables import class_table, table_of

from transformers_deebert import ExitTable
from transformers_deebert.analysis import slice_report
from transformers_deebert.analysis.slices import is_more_than_chance


def names(slices):
    return [one.name for one in slices]


def by_value(slices):
    return {one.name: one.rows for one in slices[1:]}


def test_by_hand():
    # At S = 0.4 rows with .95 or .05 leave at off-ramp 1, those with .5 go on.
    table = table_of(
        [[0.95, 0.9, 0.9], [0.05, 0.9, 0.9], [0.5, 0.5, 0.1], [0.05, 0.1, 0.1], [0.95, 0.1, 0.1], [0.5, 0.95, 0.9]],
        [1, 1, 0, 0, 0, 1],
        label_names=("no", "yes"),
    )
    everything, no, yes = slice_report(table, 0.4)
    assert (everything.name, everything.rows, everything.negative_flips, everything.worse) == ("all rows", 6, 2, False)
    assert everything.exit_layer == pytest.approx((1 + 1 + 3 + 1 + 1 + 2) / 6)
    assert everything.accuracy_change == pytest.approx(-2 / 6)
    assert (no.name, no.rows, no.negative_flips) == ("no", 3, 1)
    assert (no.accuracy, no.full_accuracy, no.accuracy_change) == pytest.approx((2 / 3, 1, -1 / 3))
    assert (yes.exit_layer, yes.layer_saving) == pytest.approx((4 / 3, 1 - 4 / 9))
    assert json.loads(json.dumps(yes.to_dict()))["negative_flips"] == 1
    late = slice_report(table, [0.0, 0.4], by="label")[0]  # off-ramp 1 is off
    assert late.exit_layer == pytest.approx((2 + 2 + 3 + 2 + 2 + 2) / 6)
    assert late.negative_flips == 0


def hurting_table(seed, share):
    """Full depth is right; off-ramp 1 lets everything out and answers a share of class 2 wrong, and 3 % of others."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, 1000)
    wrong = generator.random(1000) < np.where(labels == 2, share, 0.03)
    early = np.where(wrong, (labels + 1) % 4, labels)
    logits = 9 * np.stack([np.eye(4)[early], np.eye(4)[labels]], 1)
    return ExitTable.from_logits(logits, labels, label_names="wxyz")


def test_the_class_that_is_hurt_is_named_and_no_other():
    for seed in range(20):
        slices = slice_report(hurting_table(seed, 0.25), 0.5)
        assert [one.name for one in slices if one.worse] == ["y"]


def test_few_false_alarms():
    """Where no class is different, some part is said to be worse in hardly more than 5 % of the cases."""
    tables = (hurting_table(seed, 0.03) for seed in range(200))
    alarms = [any(one.worse for one in slice_report(table, 0.5)) for table in tables]
    assert np.mean(alarms) < 0.07


def test_chance_by_hand():
    """Of ten rows with one flip in ten each, three or more flip in 7.02 % of the cases, four or more in 1.28 %."""
    assert not is_more_than_chance(3, 10, 0.1, tests=1)
    assert is_more_than_chance(4, 10, 0.1, tests=3)
    assert not is_more_than_chance(4, 10, 0.1, tests=4)
    assert not is_more_than_chance(0, 10, 0.0, tests=1)


def test_a_part_that_gains_is_not_hurt():
    """Many negative flips, and even more that help."""
    labels = np.zeros(400, int)
    early, full = np.zeros(400, int), np.zeros(400, int)
    early[:40] = 1  # right at full depth, wrong early
    full[40:190] = 1  # the other way round
    logits = 9 * np.stack([np.eye(2)[early], np.eye(2)[full]], 1)
    part = ["first" if row < 200 else "second" for row in range(400)]
    first, second = slice_report(ExitTable.from_logits(logits, labels), 0.5, by=part)[1:]
    assert (first.negative_flips, first.worse) == (40, False)
    assert first.accuracy_change > 0
    assert not second.worse


def test_by_length_in_quarters():
    table = class_table(rows=400)
    slices = slice_report(table, 0.3, by="length")
    assert sum(one.rows for one in slices[1:]) == 400
    assert all(70 < one.rows < 130 for one in slices[1:])
    shortest = slices[1]
    low, high = (int(word) for word in shortest.name.split() if word.isdigit())
    inside = (table.lengths >= low) & (table.lengths <= high)
    assert shortest.rows == inside.sum()
    assert low == table.lengths.min()
    assert shortest.exit_layer == pytest.approx(table.exits_at(0.3)[0][inside].mean())
    one_length = slice_report(class_table(rows=40, lengths=False), 0.3, by="length")
    assert names(one_length) == ["all rows", "0 to 0 tokens"]


def test_columns_of_any_kind():
    table = class_table(rows=100)

    def report(by):
        return by_value(slice_report(table, 0.3, by=by))

    assert report(["b"] * 60 + ["a"] * 40) == {"b": 60, "a": 40}  # the most frequent first
    assert names(slice_report(table, 0.3, by=["a"] * 40 + ["b"] * 60))[1:] == ["b", "a"]
    assert names(slice_report(table, 0.3, by=["b", "a"] * 50))[1:] == ["a", "b"]  # of equally many the first by name
    assert report([1, 2] * 50) == {"1": 50, "2": 50}
    assert report(np.repeat([True, False], 50)) == {"False": 50, "True": 50}
    assert report([None, "x", 1, 2.5] * 25) == {"1": 25, "2.5": 25, "None": 25, "x": 25}
    assert report([0.5, math.nan] * 50) == {"0.5": 50, "nan": 50}
    assert report(list(range(100))) == {"0 to 24": 25, "25 to 49": 25, "50 to 74": 25, "75 to 99": 25}
    quarters = {"1 to 25": 25, "26 to 50": 25, "51 to 74": 24, "75 to 99": 25, "none": 1}
    assert report([None, *range(1, 100)]) == quarters
    assert report(np.array([math.nan, *range(1, 100)])) == quarters
    assert report([[1, 2], [3]] * 50) == {"[1, 2]": 50, "[3]": 50}


def test_many_different_values():
    table = class_table(rows=100)
    found = by_value(slice_report(table, 0.3, by=[f"word {min(row // 2, 40)}" for row in range(100)]))
    assert len(found) == 21
    assert found["word 40"] == 20
    assert found["21 others"] == 42
    assert sum(found.values()) == 100


def test_numbers_that_differ_little_stay_apart():
    times = 1.6e9 + np.arange(100)
    found = by_value(slice_report(class_table(rows=100), 0.3, by=times))
    assert sorted(found.values()) == [25] * 4
    assert "1600000000.0 to 1600000024.0" in found


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("colour", '`by` must be "label", "length" or one value for each row, got \'colour\''),
        (["a"], "`by` has 1 values for 40 rows"),
        ([], "`by` has 0 values for 40 rows"),
    ],
)
def test_bad_input(by, message):
    with pytest.raises(ValueError, match=message):
        slice_report(class_table(rows=40), 0.3, by=by)
