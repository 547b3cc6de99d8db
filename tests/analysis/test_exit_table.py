"""Exits collected in one pass: what the model really does, on disk and in memory; and the exact curve."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, make_stock, off_ramp_answers, spread_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from transformers_deebert import ExitTable, collect_exits, sweep_thresholds
from transformers_deebert.analysis import LatencyProfile, exit_curve, row_windows, thresholds_by_saving


LENGTHS = tuple(int(length) for length in np.random.default_rng(0).integers(3, 13, 50))


def collate(items):
    width = max(len(item["input_ids"]) for item in items)
    ids = torch.zeros(len(items), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, item in enumerate(items):
        ids[row, : len(item["input_ids"])] = torch.tensor(item["input_ids"])
        mask[row, : len(item["input_ids"])] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([item["labels"] for item in items])}


def make_rows():
    batch = make_batch(lengths=LENGTHS)
    labels = np.random.default_rng(1).integers(0, 3, len(LENGTHS)).tolist()
    return [
        {"input_ids": ids[mask == 1].tolist(), "labels": label}
        for ids, mask, label in zip(*batch.values(), labels, strict=True)
    ]


@pytest.fixture(params=["memory", "disk"])
def case(request, tmp_path, monkeypatch):
    monkeypatch.setattr(row_windows, "WINDOW", 16)
    model, rows = make_model(off_ramp_pooling="mean"), make_rows()
    model.train()
    folder = tmp_path / "table" if request.param == "disk" else None
    table = collect_exits(model, rows, collate, batch_size=7, output_dir=folder, progress=False)
    assert model.training  # as it was
    return model.eval(), rows, table


def test_decisions_are_the_models(case):
    """Sample by sample, one at a time."""
    model, rows, table = case
    thresholds = spread_thresholds(torch.tensor(table.entropies))
    for threshold in (thresholds, 0.0, 0.4, 99.0):
        exits, answers = table.exits_at(threshold)
        outputs = [model(input_ids=torch.tensor([row["input_ids"]]), early_exit_entropy=threshold) for row in rows]
        assert exits.tolist() == [output.exit_layers.item() for output in outputs]
        assert answers.tolist() == [output.logits.argmax().item() for output in outputs]
    assert len(set(table.exits_at(thresholds)[0])) == NUM_LAYERS


def test_what_it_holds(case):
    model, rows, table = case
    batch = {name: tensor for name, tensor in collate(rows).items() if name != "labels"}
    logits, entropies = off_ramp_answers(model, **batch)
    np.testing.assert_allclose(table.logits, logits.numpy(), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(table.entropies, entropies.numpy(), atol=1e-5)
    assert table.labels.tolist() == [row["labels"] for row in rows]
    assert table.lengths.tolist() == list(LENGTHS)
    assert table.ids.tolist() == list(range(len(rows)))
    assert table.label_names == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_saved_and_loaded(case, tmp_path):
    _, _, table = case
    table.save(tmp_path / "again")
    again = ExitTable.load(tmp_path / "again")
    for name in ("logits", "labels", "lengths", "ids"):
        assert np.array_equal(getattr(again, name), getattr(table, name))
    with pytest.raises(ValueError, match="`folder`.*no exit table"):
        ExitTable.load(tmp_path)


def test_halves(case):
    _, _, table = case
    table.entropies  # noqa: B018  what was computed is taken along
    a, b = table.split(seed=3)
    assert sorted([*a.ids, *b.ids]) == list(range(len(table)))
    assert abs(len(a) - len(b)) <= 1
    assert np.array_equal(a.entropies, table.entropies[a.ids])
    assert np.array_equal(a.answers, table.logits[a.ids].argmax(-1))


def test_rows_without_a_label_are_left_out(tmp_path):
    rows = make_rows()
    for row in rows[::3]:
        row["labels"] = -100
    table = collect_exits(make_model(), rows, collate, output_dir=tmp_path, progress=False)
    assert table.ids.tolist() == [index for index in range(len(rows)) if index % 3]
    assert ExitTable.load(tmp_path).ids.tolist() == table.ids.tolist()


def test_columns_that_the_model_does_not_take_are_dropped():
    rows = [{**row, "sentence": "words", "idx": index} for index, row in enumerate(make_rows())]
    table = collect_exits(make_model(), rows, collate, progress=False)
    expected = collect_exits(make_model(), make_rows(), collate, progress=False)
    assert np.array_equal(table.logits, expected.logits)
    with pytest.raises(ValueError, match=r"`labels` of a batch must have the shape \(rows,\), got \(32, 1\)"):
        collect_exits(
            make_model(),
            rows,
            lambda items: collate(items) | {"labels": collate(items)["labels"][:, None]},
            progress=False,
        )


def test_a_save_replaces_what_was_there(tmp_path):
    table = collect_exits(make_model(), make_rows(), collate, progress=False)
    table.save(tmp_path)
    for rank in range(2):
        shutil.copy(tmp_path / "exits.arrow", tmp_path / f"exits-{rank:05d}-of-00002.arrow")
    (tmp_path / "exits_backup.arrow").touch()
    table.select(np.arange(10)).save(tmp_path)
    assert len(ExitTable.load(tmp_path)) == 10
    assert (tmp_path / "exits_backup.arrow").exists()
    broken = table.select(np.arange(5))
    vars(broken)["labels"] = np.arange(3)  # no table would take them
    with pytest.raises((ValueError, pa.ArrowInvalid)):
        broken.save(tmp_path)
    assert len(ExitTable.load(tmp_path)) == 10


@pytest.mark.parametrize("source", ["memory", "disk"])
def test_batches_of_a_loader(source, tmp_path):
    """As they come, whatever they hold besides; the table is that of the same rows."""
    model, rows = make_model(off_ramp_pooling="mean"), make_rows()
    loader = torch.utils.data.DataLoader(
        rows, batch_size=7, collate_fn=lambda items: {**collate(items), "text": ["x"]}
    )
    folder = tmp_path / "table" if source == "disk" else None
    table = collect_exits(model, loader, output_dir=folder, progress=False)
    expected = collect_exits(model, rows, collate, progress=False)
    np.testing.assert_allclose(table.logits, expected.logits, atol=1e-5, rtol=1e-5)
    for name in ("labels", "lengths", "ids"):
        assert np.array_equal(getattr(table, name), getattr(expected, name))
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        collect_exits(model, torch.utils.data.DataLoader([], batch_size=7), progress=False)


def test_temperatures_of_the_model_are_kept(tmp_path):
    model, rows = make_model(off_ramp_temperatures=[2.0, 0.5, 1.0]), make_rows()
    table = collect_exits(model, rows, collate, output_dir=tmp_path, progress=False)
    plain = collect_exits(make_model(), rows, collate, progress=False)
    assert ExitTable.load(tmp_path).temperatures == table.temperatures == (2.0, 0.5, 1.0)
    table.save(tmp_path / "again")
    assert ExitTable.load(tmp_path / "again").temperatures == (2.0, 0.5, 1.0)
    scaled = plain.logits / np.array([2.0, 0.5, 1.0, 1.0])[:, None]
    np.testing.assert_allclose(table.logits, scaled, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, True])
def test_the_batch_size(batch_size):
    with pytest.raises(ValueError, match=f"`batch_size` must be a whole number >= 1, got {batch_size}"):
        collect_exits(make_model(), make_rows(), collate, batch_size=batch_size, progress=False)


def test_labels_that_are_no_classes():
    rows = make_rows()
    rows[4]["labels"] = 3
    with pytest.raises(ValueError, match="`labels` must be integers from 0 to 2, got int64 values from 0 to 3"):
        collect_exits(make_model(), rows, collate, progress=False)


def test_tables_of_ones_own():
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(90, 3, 64)), generator.integers(0, 64, 90)
    table = ExitTable.from_logits(logits, labels.astype(np.uint8), np.arange(90), [f"{one}!" for one in range(64)])
    assert (table.num_layers, table.num_labels, len(table)) == (3, 64, 90)
    assert table.label_names[63] == "63!"
    assert ExitTable.from_logits(logits, labels).label_names[63] == "63"
    assert not ExitTable.from_logits(logits, labels).lengths.any()
    # Counts of (true, predicted) pairs do not fit into eight bits.
    (full,) = sweep_thresholds(table, [0])
    assert full.scores["accuracy"] == pytest.approx((logits[:, -1].argmax(-1) == labels).mean())
    for lengths in (np.ones(89, int), -np.ones(90, int), np.full(90, np.nan), np.array(["a"] * 90)):
        with pytest.raises(ValueError, match="`lengths` must"):
            ExitTable.from_logits(logits, labels, lengths)


def test_without_an_off_ramp(case):
    model, rows, table = case
    without = table.without_off_ramp(2)
    thresholds = spread_thresholds(torch.tensor(table.entropies))
    expected = table.exits_at([thresholds[0], 0.0, thresholds[2]])
    assert without.exit_layers == (1, 3, 4)
    for found, wanted in zip(without.exits_at([thresholds[0], thresholds[2]]), expected, strict=True):
        assert np.array_equal(found, wanted)
    assert 2 in table.exits_at(thresholds)[0]  # the table itself is as it was
    half, _ = without.split(0)
    assert 2 not in half.exits_at(9.0 * np.ones(2))[0]


def test_the_ensemble_by_hand():
    logits = np.log(np.array([[[0.9, 0.1], [0.2, 0.8], [0.1, 0.9]], [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]]))
    logits[1, 0] = np.nan
    logits[1, 1, 0] = np.log(3) + np.log(0.5)
    ensemble = ExitTable.from_logits(logits, np.array([0, 0])).ensemble()
    probabilities = np.exp(ensemble.logits)
    np.testing.assert_allclose(probabilities[0, :, 0], [0.9, 0.55, 0.4], atol=1e-12)
    np.testing.assert_allclose(probabilities.sum(-1)[0], 1, atol=1e-12)
    # What is broken has no part in the mean.
    assert np.isnan(ensemble.logits[1, 0]).all()
    np.testing.assert_allclose(probabilities[1, 1:, 0], [0.75, 0.625], atol=1e-12)
    assert ensemble.exits_at(9.0)[0].tolist() == [1, 2]


@pytest.mark.parametrize("what", ["stock", "regression", "no rows", "no labels", "floats", "unlabelled"])
def test_bad_input(what):
    model, rows = make_model(), make_rows()
    if what == "stock":
        model = make_stock(model)
    if what == "regression":
        model.config.problem_type = "regression"
    rows = [] if what == "no rows" else rows

    def other(items):
        batch = collate(items)
        if what == "no labels":
            batch.pop("labels")
        if what == "floats":
            batch["labels"] = batch["labels"].float()
        if what == "unlabelled":
            batch["labels"].fill_(-100)
        return batch

    name = "`model`" if what in ("stock", "regression") else "`dataset`"
    with pytest.raises(ValueError, match=name):
        collect_exits(model, rows, other, progress=False)


@st.composite
def tables(draw):
    rows, layers, classes = draw(st.integers(1, 12)), draw(st.integers(2, 5)), draw(st.integers(2, 4))
    # Few different numbers, so that entropies coincide.
    cells = st.sampled_from([-2.0, 0.0, 0.5, 3.0, float("nan")])
    logits = draw(st.lists(cells, min_size=rows * layers * classes, max_size=rows * layers * classes))
    logits = np.array(logits, np.float32).reshape(rows, layers, classes)
    logits[:, -1] = np.nan_to_num(logits[:, -1])
    labels = np.array(draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    index = np.arange(rows)
    return ExitTable(logits, labels, index, index, tuple("abcd"[:classes]))


@given(table=tables())
@settings(max_examples=50, deadline=None)
def test_the_curve_is_exact(table):
    """At each of its thresholds, and at every one in between, against the plain sweep."""
    curve = exit_curve(table)
    classes = table.logits.shape[2]

    def score(answers, labels):
        options = {"average": "binary"} if classes == 2 else {"average": "macro", "labels": range(classes)}
        return {"accuracy": (answers == labels).mean(), "f1": f1_score(labels, answers, zero_division=0, **options)}

    assert curve.thresholds[0] == 0
    assert (np.diff(curve.thresholds) > 0).all()
    for between in (False, True):
        thresholds = curve.thresholds
        if between:
            thresholds = thresholds + np.append(np.diff(thresholds), 1.0) * 1e-6
        points = sweep_thresholds(table, thresholds.tolist(), score)
        np.testing.assert_allclose(curve.layer_saving, [point.layer_saving for point in points], atol=1e-12)
        np.testing.assert_allclose(curve.accuracy, [point.scores["accuracy"] for point in points], atol=1e-12)
        np.testing.assert_allclose(curve.f1, [point.scores["f1"] for point in points], atol=1e-12)
    assert len({tuple(table.exits_at(threshold)[0]) for threshold in curve.thresholds}) == len(curve)
    assert (np.diff(curve.layer_saving) > 0).all()


@given(table=tables(), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_expected_times_of_the_curve(table, seed):
    generator = np.random.default_rng(seed)
    table = replace(table, lengths=generator.integers(1, 30, len(table)))
    latency = LatencyProfile((4, 9, 20), generator.uniform(0, 9, (3, table.num_layers)), 1, {})
    curve = exit_curve(table, latency)
    points = sweep_thresholds(table, curve.thresholds.tolist(), latency=latency)
    np.testing.assert_allclose(curve.latency_ms, [point.latency_ms for point in points], atol=1e-9)
    for point in points:
        exits, _ = table.exits_at(point.threshold)
        by_row = [
            np.interp(length, latency.lengths, latency.milliseconds[:, layer - 1])
            for length, layer in zip(table.lengths, exits, strict=True)
        ]
        assert point.latency_ms == pytest.approx(np.mean(by_row))
        assert point.expected_speed_up == pytest.approx(points[0].latency_ms / point.latency_ms)
    assert exit_curve(table).latency_ms is None
    wrong = LatencyProfile((4,), np.ones((1, table.num_layers + 1)), 1, {})
    for call in (lambda: exit_curve(table, wrong), lambda: sweep_thresholds(table, [0.0], latency=wrong)):
        with pytest.raises(ValueError, match="`latency` is of"):
            call()


def test_thresholds_by_saving():
    """Ten rows whose entropies rise one by one: every tenth of a saving is reached by one row more."""
    of_one = np.linspace(0.99, 0.6, 10)
    logits = np.log(np.stack([1 - of_one, of_one], -1))[:, None].repeat(2, 1)
    table = ExitTable.from_logits(logits, np.ones(10, int))
    found = thresholds_by_saving(table, (0.1, 0.3, 0.31, 0.35, 0.5, 0.6))
    # Half the layers of one row of ten are a twentieth.
    assert [(table.entropies[:, 0] < threshold).sum() for threshold in found] == [2, 6, 7, 10]
    assert thresholds_by_saving(table, ()) == []


@pytest.mark.slow
def test_two_processes_share_the_rows(tmp_path):
    """Both get the whole table, in the order of the data."""
    here = Path(__file__).parent
    folders = os.pathsep.join([str(here), str(here.parent), str(here.parent / "training")])
    subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc_per_node=2",
            here / "exit_task.py",
            tmp_path / "exits",
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([folders, os.environ.get("PYTHONPATH", "")])},
        check=True,
    )
    alone = collect_exits(make_model(off_ramp_pooling="mean"), make_rows(), collate, progress=False)
    assert len(list((tmp_path / "exits").glob("*-of-00002.arrow"))) == 2
    for rank in (0, 1):
        table = ExitTable.load(f"{tmp_path / 'exits'}-seen-by-{rank}")
        np.testing.assert_allclose(table.logits, alone.logits, atol=1e-5, rtol=1e-5)
        assert table.ids.tolist() == alone.ids.tolist()
        assert table.labels.tolist() == alone.labels.tolist()
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        collect_exits(make_model(), [], collate, output_dir=tmp_path)
