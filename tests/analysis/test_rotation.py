"""The timing loop."""

import gc
from types import SimpleNamespace

import pytest

from transformers_deebert.analysis import rotation
from transformers_deebert.analysis.rotation import gap_between, in_blocks, median_ratio, time_rotation


@pytest.fixture
def log(monkeypatch):
    """What was called; each call of a contender takes as many seconds as its name says."""
    log = []
    monkeypatch.setattr(rotation, "time", SimpleNamespace(perf_counter=lambda: float(sum(log))))
    return log


def contenders(log, *names):
    return {name: lambda name=name: log.append(name) for name in names}


def test_each_round_begins_with_another_one(log):
    assert time_rotation(contenders(log, 1, 2, 3), rounds=3, warm_up=2) == {1: [1] * 3, 2: [2] * 3, 3: [3] * 3}
    assert log == [1, 1, 2, 2, 3, 3, 1, 2, 3, 2, 3, 1, 3, 1, 2]


def test_a_shuffled_order_changes_and_is_the_same_in_every_run(log):
    time_rotation(contenders(log, *range(8)), rounds=3, warm_up=0, shuffle=True)
    rounds = [tuple(log[start : start + 8]) for start in (0, 8, 16)]
    assert [sorted(one) for one in rounds] == [list(range(8))] * 3
    assert len(set(rounds)) == 3
    time_rotation(contenders(log, *range(8)), rounds=3, warm_up=0, shuffle=True)
    assert log[:24] == log[24:]


@pytest.mark.parametrize(("seconds", "rounds"), [(0, 3), (15, 10), (1e6, rotation.MOST_ROUNDS)])
def test_a_budget_is_for_each_contender(log, seconds, rounds):
    taken = time_rotation(contenders(log, 1, 2), rounds=3, warm_up=0, seconds=seconds)
    assert [len(one) for one in taken.values()] == [rounds] * 2


def test_many_short_calls_run_in_blocks(log):
    call_next = in_blocks(list(contenders(log, 1, 2, 3, 4, 5).values()), warm_up=1, size=2)
    seen = []
    for _ in range(5):
        call_next()
        seen.append(log[sum(map(len, seen)) :])
    assert seen == [[1], [1, 2], [3, 4], [5], [1, 2]]


def test_ratios_are_taken_round_by_round():
    assert median_ratio([2, 8, 3], [1, 2, 3]) == 2
    assert gap_between(1.0, 1.5) == gap_between(1.5, 1.0) == 0.5


def test_garbage_collection_waits_and_goes_on_after_an_error():
    def fail():
        assert not gc.isenabled()
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        time_rotation({"one": fail}, rounds=1)
    assert gc.isenabled()
