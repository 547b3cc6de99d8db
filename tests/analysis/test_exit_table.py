"""Exits collected in one pass: what the model really does, on disk and in memory; and the exact curve."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, make_stock, off_ramp_answers, spread_thresholds
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from transformers_deebert import ExitTable, collect_exits, exit_curve, sweep_thresholds
from transformers_deebert.analysis import row_windows


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


def test_rows_without_a_label_are_left_out():
    rows = make_rows()
    for row in rows[::3]:
        row["labels"] = -100
    table = collect_exits(make_model(), rows, collate, progress=False)
    assert table.ids.tolist() == [index for index in range(len(rows)) if index % 3]


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
@settings(max_examples=150, deadline=None)
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
    for rank in (0, 1):
        table = ExitTable.load(f"{tmp_path / 'exits'}-seen-by-{rank}")
        np.testing.assert_allclose(table.logits, alone.logits, atol=1e-5, rtol=1e-5)
        assert table.ids.tolist() == alone.ids.tolist()
        assert table.labels.tolist() == alone.labels.tolist()
    with pytest.raises(ValueError, match="`dataset` has no rows"):
        collect_exits(make_model(), [], collate, output_dir=tmp_path)
