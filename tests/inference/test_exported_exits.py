"""Exported models with other criteria and exit layers, on a Hub, and what a call leaves alone."""

import functools
import json
import logging

import numpy as np
import pytest
import torch
from conftest import make_batch, make_model, spread_thresholds, take_rows
from random_batches import FEW, check_random_batches, open_file, run_file

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
    exported.single_file = None  # in segments
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


def test_the_single_file_compares_the_score_of_the_configuration(folder, models):
    exported, reference = models
    assert check_random_batches(folder / "model.onnx", reference, FEW, score="margin") == {0, 2, 3}
    batch = make_batch(side="left", width=14)
    expected = reference(**batch)
    logits, layers = run_file(open_file(folder / "model.onnx"), batch)  # the default
    assert layers.tolist() == expected.exit_layers.tolist()
    np.testing.assert_allclose(logits, expected.logits, atol=1e-4, rtol=1e-4)
    check_same(exported(**batch), expected)
    assert exported.loaded_segments is None


PABEE = {"score": "disagreement", "threshold": 0.5, "patience": 2}


@pytest.mark.parametrize(
    ("head", "criterion"),
    [
        ("mlp", PABEE),
        pytest.param("linear", None, marks=pytest.mark.slow),
        pytest.param("mlp", PABEE | {"patience": 1}, marks=pytest.mark.slow),
        pytest.param("linear", {"score": "least_confidence", "threshold": 0.2, "patience": 3}, marks=pytest.mark.slow),
    ],
)
def test_off_ramps_and_criteria_that_read_earlier_layers(tmp_path, caplog, head, criterion):
    """
    In one file, whichever of them are switched on; segments are refused before anything is written. The model that is
    exported stays as it is.
    """
    settings = {"off_ramp_layers": [0, 1, 2, 3], "off_ramp_temperatures": [0.5, 1.5, 2.0, 1.0]}
    settings |= {"off_ramp_pooling": "mean", "off_ramp_head": head, "off_ramp_context": "past"}
    model, folder = make_model(**settings).bfloat16().train(), tmp_path / "past"
    model.config.exit_criterion = criterion
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for single_file in (True, False):
        with pytest.raises(ValueError, match=r"`segments` cannot be written.*'past'.*`segments=False`"):
            export_onnx(model, folder, single_file=single_file, segments=True if single_file else None)
    with caplog.at_level(logging.WARNING):
        export_onnx(model, folder)
    assert "no segments are written" in caplog.text
    assert not list(folder.glob("segment*"))
    assert (model.training, model.dtype) == (True, torch.bfloat16)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    model.eval().float()
    criterion = criterion or {"score": "entropy", "patience": 1}
    known = {"score": criterion["score"], "patience": criterion["patience"]}
    assert len(check_random_batches(folder / "model.onnx", model, FEW, **known)) >= 3
    exported, batch = OnnxEarlyExitModel.from_pretrained(folder, num_threads=1), make_batch()
    for on in ((1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 1), (0, 0, 1, 0), (0, 0, 0, 0)):
        thresholds = [0.6 * flag for flag in on]
        setting = {"exit_criterion": known | {"threshold": thresholds}}
        check_same(exported(**batch, **setting), model(**batch, **setting))
    check_same(exported(**batch), model(**batch))
    with pytest.raises(ValueError, match="has no segments, which other exit criteria"):
        exported(**batch, exit_layer=1)


def test_notes(folder):
    notes = json.loads((folder / "onnx.json").read_text())
    assert notes["exit_layers"] == [0, 2, 3]
    assert (notes["single_file"]["score"], notes["single_file"]["patience"]) == ("margin", 1)
    assert [entry["file"] for entry in notes["segments"]] == [f"segment_0{layer}.onnx" for layer in range(4)]
    assert [entry["outputs"] for entry in notes["segments"]] == [
        ["states", "logits", "entropy"],
        ["states"],
        ["states", "logits", "entropy"],
        ["logits", "entropy"],
    ]


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
