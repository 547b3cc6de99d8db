"""The comparison's controlled exits, on a tiny model, and its tables."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest


BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
sys.path.insert(0, BENCHMARKS)
try:
    import compare
    from comparison import real_text, results, schedule, shapes
    from comparison.contender import NO_LAYERS, PYTORCH, STOCK, Contender
    from comparison.markdown import NO_VERDICT, make_tables
finally:
    sys.path.remove(BENCHMARKS)

from transformers_deebert import ExitTable, stock_model  # noqa: E402
from transformers_deebert.analysis.timing import without_layers  # noqa: E402


SAVINGS = [0.0, 0.25, 0.5, 0.65]
LAYERS = 5


@pytest.fixture(scope="module")
def model():
    return shapes.make_model(LAYERS, 24, vocab_size=200)


def measure(model, batch_size):
    stock = stock_model(model)
    batches = shapes.make_batches(model, batch_size, length=6, rows=24)
    points = shapes.make_points(model, batches, SAVINGS)
    contenders = shapes.make_contenders(model, stock, without_layers(stock).eval(), None, batches, points)
    return {
        "part": "shapes",
        "shape": "tiny",
        "layers": LAYERS,
        "width": 24,
        "length": 6,
        "batch_size": batch_size,
    } | (results.compare(contenders, rows=24, layers=LAYERS, seconds=0))


@pytest.fixture(scope="module")
def groups(model):
    return [measure(model, batch_size) for batch_size in (1, 8, 24)]


def test_rows_leave_by_the_schedule_at_every_batch_size(groups):
    for group in groups:
        lines = [line for line in group["contenders"] if line["threshold"] is not None]
        assert len(lines) == len(SAVINGS)
        for line, target in zip(lines, SAVINGS, strict=True):
            assert line["timed_saving"] == pytest.approx(line["saving"])
            assert line["saving"] == pytest.approx(target, abs=0.02)


def test_a_schedule_lets_rows_leave_at_many_layers():
    counts = schedule.scheduled_exits(rows=64, layers=12, saving=0.5)
    assert counts.sum() == 64
    assert (counts > 0).sum() >= 10
    entropies = np.random.default_rng(0).random((64, 11))
    thresholds = schedule.thresholds_for(entropies, counts)
    below = np.append(entropies < thresholds, np.ones((64, 1), bool), axis=1)
    np.testing.assert_array_equal(np.bincount(below.argmax(1), minlength=12), counts)


def test_ratios_are_taken_round_by_round(model):
    group = measure(model, 24)
    found = {line["name"]: line for line in group["contenders"]}
    stock, ours = found["stock"]["seconds"], found["early exit, 50% saved"]["seconds"]
    assert len(stock) == len(ours) == group["rounds"] >= 3
    ratio = found["early exit, 50% saved"]["faster_than_stock"]
    assert ratio == pytest.approx(np.median(np.array(stock) / ours))
    assert found["stock"]["faster_than_stock"] == 1


def test_tables_print_what_the_file_has(groups, tmp_path):
    path = tmp_path / "results" / "compare.json"
    verdicts = [{**group, "verdict": group["batch_size"] != 8} for group in groups]
    left_out = {**groups[0], "batch_size": 99, "contenders": [], "left_out": "one stock pass takes 9.0 s"}
    text = {**verdicts[0], "part": "text", "model": "reviews", "rows_read": 1000}
    file = {"machine": {"processor": "abacus"}, "threads": 3, "groups": [*verdicts, left_out, text]}
    results.write(path, file)
    assert [file.name for file in path.parent.iterdir()] == ["compare.json"]
    printed = make_tables(json.loads(path.read_text())).splitlines()
    assert printed[0] == "processor abacus. Threads: 3."
    (line,) = [line for line in printed if line.startswith("|      6 |    24 |")]
    found = {one["name"]: one for one in groups[2]["contenders"]}
    assert f"| {found['stock']['ms_per_row']:.3f} " in line
    ours = found["early exit, 65% saved"]
    assert f"{ours['faster_than_stock']:.2f} ({ours['efficiency']:.2f})" in line
    (line,) = [line for line in printed if line.startswith("|      6 |     8 |")]
    assert line.count(NO_VERDICT) == len(SAVINGS)
    assert any("left out: one stock pass takes 9.0 s" in line for line in printed)
    (line,) = [line for line in printed if line.startswith("| early exit, 65% saved")]
    first = next(one for one in groups[0]["contenders"] if one["name"] == "early exit, 65% saved")
    assert f" {first['ms_per_row']:.3f} |" in line
    assert f" {first['timed_saving']:.1%} |" in line


def test_timed_rows_save_about_as_much_as_all():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 500)
    strength = np.linspace(1, 6, LAYERS) + generator.normal(size=(500, 1))
    logits = generator.normal(size=(500, LAYERS, 2)) + strength[..., None] * np.eye(2)[labels][:, None]
    table = ExitTable.from_logits(logits.astype(np.float32), labels, generator.integers(5, 50, 500))
    points = real_text.make_points(table, table)
    places = real_text.timed_places(table, points, rows=127, largest_batch=20)
    assert len(set(places)) == len(places) == 120
    assert sorted(table.lengths[places]) == table.lengths[places].tolist()
    for point in points:
        of_timed = 1 - table.exits_at(point.threshold)[0][places].mean() / LAYERS
        assert of_timed == pytest.approx(point.saving, abs=0.03)
    with pytest.raises(ValueError, match="`rows` is 10"):
        real_text.timed_places(table, points, rows=10, largest_batch=20)


def test_a_resumed_run_goes_on_with_the_same_settings(groups, tmp_path):
    path, run = tmp_path / "compare.json", {"machine": {"processor": "abacus"}, "threads": 1, "settings": {"rows": 9}}
    assert compare.earlier_groups(path, run, resume=False) == []
    results.write(path, run | {"groups": groups})
    found = compare.earlier_groups(path, run, resume=True)
    assert [compare.place_of(group) for group in found] == [("tiny", 6, 1), ("tiny", 6, 8), ("tiny", 6, 24)]
    with pytest.raises(SystemExit, match="exists"):
        compare.earlier_groups(path, run, resume=False)
    for other in ({"threads": 2}, {"machine": {}}, {"settings": {"rows": 8}}):
        with pytest.raises(SystemExit, match=f"has {next(iter(other))}"):
            compare.earlier_groups(path, run | other, resume=True)


def test_the_efficiency_is_of_the_layers_alone():
    """Half of the layers' time, and all of the rest."""
    stock, none = (PYTORCH, STOCK), (PYTORCH, NO_LAYERS)
    ours = Contender("early exit", PYTORCH, lambda: None)
    taken = {stock: [5.0, 5.0, 10.0], none: [1.0, 1.0, 2.0], ours.key: [3.0, 6.0, 6.0]}
    line = results.line(ours, taken, share=0.5, rows=100)
    assert line["efficiency"] == 1.0  # of 1, 0.5 and 1
    assert line["timed_saving"] == 0.5
    assert line["ms_per_row"] == 60
    assert line["faster_than_stock"] == line["faster_than_same_runtime"] == pytest.approx(5 / 3)
    assert results.line(Contender(STOCK, PYTORCH, lambda: None), taken, 1.0, 100)["efficiency"] is None
