"""Exported models with other criteria and exit layers, on a Hub, and what a call leaves alone."""

import functools
import json
import logging

import numpy as np
import onnxruntime
import pytest
import torch
from conftest import make_batch, make_model, spread_thresholds, take_rows

from transformers_deebert import EarlyExitPredictor, ExitCriterion, OnnxEarlyExitModel, collect_exits, export_onnx
from transformers_deebert.models.exit_scores_deebert import SCORES, ExitCandidate


# Fewer layers than elsewhere: exporting takes most of the time. An exit behind the embeddings, none behind layer 1.
SETTINGS = {
    "num_layers": 3,
    "off_ramp_layers": [0, 2],
    "off_ramp_pooling": "mean",
    "off_ramp_temperatures": [0.5, 2.0],
}


@functools.cache
def thresholds_of(score):
    """Thresholds at which samples exit everywhere."""
    logits = make_model(**SETTINGS)(**make_batch(), output_off_ramp_logits=True).off_ramp_logits
    values = [SCORES[score].function(ExitCandidate(one)) for one in logits]
    return spread_thresholds(torch.stack(values, 1))


def make_bert(**criterion):
    model = make_model(**SETTINGS)
    model.config.exit_criterion = criterion or {"score": "margin", "threshold": thresholds_of("margin")}
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export_onnx(make_bert(), tmp_path_factory.mktemp("exits") / "bert")


@pytest.fixture
def models(folder):
    """The exported model and the PyTorch model."""
    return OnnxEarlyExitModel.from_pretrained(folder, num_threads=1), make_bert()


def check_same(output, expected):
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits, expected.logits, atol=1e-4, rtol=1e-4)


def own_score(candidate):
    return SCORES["entropy"].function(candidate)


def settings_of(name):
    """Arguments of a call."""
    if name in ("entropy", "least_confidence"):
        return {"exit_criterion": {"score": name, "threshold": thresholds_of(name)}}
    return {
        "default": {},
        "one switched off": {"exit_criterion": {"score": "margin", "threshold": [0.0, thresholds_of("margin")[1]]}},
        "disagreement": {"exit_criterion": {"score": "disagreement", "threshold": 1.5}},
        "patience": {"exit_criterion": {"score": "margin", "threshold": 0.9, "patience": 2}},
        "own score": {"exit_criterion": ExitCriterion(own_score, thresholds_of("entropy"))},
        "full depth": {"early_exit_entropy": 0.0},
        "embeddings": {"exit_layer": 0},
        "layer": {"exit_layer": 2},
        "all exits": {"early_exit_entropy": thresholds_of("entropy"), "output_off_ramp_logits": True},
    }[name]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("name", "exits"),
    [
        *((name, {0, 2, 3}) for name in ("default", "entropy", "least_confidence", "own score", "all exits")),
        ("one switched off", {2, 3}),
        ("patience", {2, 3}),
        ("disagreement", {2}),  # infinite at the first exit, at most 1 at the second
        ("full depth", {3}),
        ("embeddings", {0}),
        ("layer", {2}),
    ],
)
def test_calls_have_every_criterion(models, name, exits, side):
    exported, reference = models
    batch, settings = make_batch(side=side, width=14), settings_of(name)
    output, expected = exported(**batch, **settings), reference(**batch, **settings)
    assert set(expected.exit_layers.tolist()) == exits
    check_same(output, expected)
    if expected.off_ramp_logits is not None:
        torch.testing.assert_close(output.off_ramp_logits, expected.off_ramp_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["default", "one switched off", "embeddings", "patience"])
def test_predictor_and_table(models, name):
    exported, reference = models
    batch, settings = make_batch(), settings_of(name)
    rows = [{"input_ids": ids[mask == 1].tolist()} for ids, mask in zip(*batch.values(), strict=True)]
    answers = EarlyExitPredictor(exported, batch_size=3).predict(rows, **settings)
    check_same(answers, reference(**batch, **settings))
    labelled = [{"input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(0)} for row in rows]
    tables = [collect_exits(model, labelled, batch_size=1, progress=False) for model in models]
    assert tables[0].exit_layers == (0, 2, 3)
    np.testing.assert_allclose(tables[0].logits, tables[1].logits, atol=1e-4, rtol=1e-4)


def test_no_rows(models):
    output = models[0](**take_rows(make_batch(), slice(0)))
    assert output.logits.shape == (0, 3)


@pytest.mark.parametrize("switched_on", [(1, 1), (0, 1), (1, 0), (0,), (9,)])
def test_the_single_file_compares_the_score_of_the_configuration(folder, switched_on):
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    batch = make_batch()
    limits = np.array(switched_on, np.float32) * thresholds_of("margin")[: len(switched_on)]
    limits = limits.astype(np.float32)
    criterion = {"score": "margin", "threshold": limits if len(limits) > 1 else limits[0]}
    expected = make_bert()(**batch, exit_criterion=criterion)
    for row, exit_layer in enumerate(expected.exit_layers.tolist()):
        arrays = {name: tensor[row : row + 1].numpy() for name, tensor in batch.items()}
        feeds = arrays | {"token_type_ids": np.zeros_like(arrays["input_ids"]), "exit_threshold": limits}
        logits, layer = session.run(["logits", "exit_layer"], feeds)
        assert layer.tolist() == [exit_layer]
        np.testing.assert_allclose(logits[0], expected.logits[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("head", ["mlp", pytest.param("linear", marks=pytest.mark.slow)])
def test_off_ramps_that_read_earlier_layers(tmp_path, caplog, head):
    """In one file, whichever of them are switched on; segments are refused before anything is written."""
    settings = SETTINGS | {"off_ramp_layers": [0, 1, 2], "off_ramp_temperatures": [0.5, 1.5, 2.0]}
    model, batch = make_model(**settings, off_ramp_head=head, off_ramp_context="past"), make_batch()
    for single_file in (True, False):
        with pytest.raises(ValueError, match=r"`segments` cannot be written.*'past'.*`segments=False`"):
            export_onnx(model, tmp_path / "past", single_file=single_file, segments=True if single_file else None)
    with caplog.at_level(logging.WARNING):
        export_onnx(model, tmp_path / "past")
    assert "no segments are written" in caplog.text
    assert not list((tmp_path / "past").glob("segment*"))
    session = onnxruntime.InferenceSession(tmp_path / "past" / "model.onnx")
    every = torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits, 1)
    entropies = SCORES["entropy"].function(ExitCandidate(every.flatten(0, 1))).view(len(every), -1)
    limits = spread_thresholds(entropies)
    for thresholds in (limits, [0.0, *limits[1:]], [0.0, 0.0, limits[2]], [0.0] * 3):
        expected = model(**batch, early_exit_entropy=thresholds)
        for row, exit_layer in enumerate(expected.exit_layers.tolist()):
            feeds = {name: tensor[row : row + 1].numpy() for name, tensor in batch.items()}
            feeds |= {"token_type_ids": np.zeros_like(feeds["input_ids"])}
            feeds |= {"early_exit_entropy": np.array(thresholds, np.float32)}
            logits, layer = session.run(["logits", "exit_layer"], feeds)
            assert layer.tolist() == [exit_layer]
            np.testing.assert_allclose(logits[0], expected.logits[row], atol=1e-4, rtol=1e-4)
        assert len(expected.exit_layers.unique()) == 1 + sum(limit > 0 for limit in thresholds)


def test_notes(folder):
    notes = json.loads((folder / "onnx.json").read_text())
    assert notes["exit_layers"] == [0, 2, 3]
    assert notes["single_file"]["score"] == "margin"
    assert [entry["file"] for entry in notes["segments"]] == [f"segment_0{layer}.onnx" for layer in range(4)]
    assert [entry["outputs"] for entry in notes["segments"]] == [
        ["states", "logits", "entropy"],
        ["states"],
        ["states", "logits", "entropy"],
        ["logits", "entropy"],
    ]


@pytest.mark.parametrize(
    "criterion",
    [{"score": "disagreement", "threshold": 0.5}, {"score": "margin", "threshold": 0.5, "patience": 2}],
)
def test_criteria_over_several_exits_are_refused_for_the_single_file(tmp_path, criterion):
    with pytest.raises(ValueError, match=rf"`single_file` is True.*exit_criterion.*{criterion['score']}.*set it to F"):
        export_onnx(make_bert(**criterion), tmp_path / "out", segments=False)
    assert not (tmp_path / "out").exists()


def test_a_call_leaves_the_configuration_alone(models):
    exported, _ = models
    before = exported.config.to_dict()
    output = exported(**make_batch(), labels=torch.zeros(12, dtype=torch.long))
    assert output.loss > 0
    assert exported.config.to_dict() == before
    assert exported.config.problem_type is None


def test_an_exported_model_is_no_module(models):
    exported, reference = models
    assert not isinstance(exported, torch.nn.Module)
    assert exported.eval().to("cpu") is exported.train(False)
    with pytest.raises(ValueError, match="cannot be trained: train the checkpoint"):
        exported.train()
    with pytest.raises(ValueError, match="`token_type_ids` lie between 2 and 2"):
        exported(**make_batch(), token_type_ids=torch.full_like(make_batch()["input_ids"], 2))
