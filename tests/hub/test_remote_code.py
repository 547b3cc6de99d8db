"""Saved models of every family load and exit early where the library is not installed."""

import json
import os
import subprocess
import sys

import pytest
import torch
from conftest import ENCODERS, make_batch, make_model, make_stock, off_ramp_answers, spread_thresholds
from transformers import AutoConfig


CODE = """
import json, sys
sys.modules["transformers_deebert"] = None
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
answers = {}
for family, (folder, batch, thresholds) in json.load(sys.stdin).items():
    batch = {name: torch.tensor(values) for name, values in batch.items()}
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
    base = AutoModel.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules.") and isinstance(model.config, type(config))
    with torch.no_grad():
        output = model(**batch, early_exit_entropy=thresholds)
        exits = base(**batch, early_exit_entropy=thresholds).exit_layers
    answers[family] = output.logits.tolist(), output.exit_layers.tolist(), exits.tolist()
print(json.dumps(answers))
"""


@pytest.mark.parametrize(
    "families", [("bert", "modernbert"), pytest.param(tuple(ENCODERS), id="all", marks=pytest.mark.slow)]
)
def test_every_family(tmp_path, families):
    inputs, expected = {}, {}
    for family in families:
        model, batch = make_model(family), make_batch(family)
        thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
        expected[family] = model(**batch, early_exit_entropy=thresholds)
        assert len(expected[family].exit_layers.unique()) >= 3
        # Names with characters that a Python module cannot have, and the same name twice, must not matter.
        folder = tmp_path / family / "my-model.v1"
        model.save_pretrained(folder)
        inputs[family] = str(folder), {name: tensor.tolist() for name, tensor in batch.items()}, thresholds
    process = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(inputs),
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    answers = json.loads(process.stdout.splitlines()[-1])
    for family, (logits, exits, base_exits) in answers.items():
        torch.testing.assert_close(torch.tensor(logits), expected[family].logits, atol=1e-5, rtol=1e-5)
        assert exits == base_exits == expected[family].exit_layers.tolist(), family
    assert set(answers) == set(families)


def test_with_the_library_the_installed_code_runs(family, tmp_path):
    model = make_model(family)
    model.save_pretrained(tmp_path)
    (tmp_path / "pipeline_deebert.py").write_text("raise RuntimeError('code of the checkpoint was run')")
    for path in tmp_path.glob("modeling_*.py"):
        path.write_text("raise RuntimeError('code of the checkpoint was run')")
    for kwargs in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        assert type(AutoConfig.from_pretrained(tmp_path, **kwargs)) is type(model.config)


def test_a_configuration_keeps_its_pipelines_and_shows_none(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.custom_pipelines == {}
    config.save_pretrained(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["custom_pipelines"]["text-classification"]["impl"].startswith("pipeline_deebert.")


@pytest.mark.parametrize("what", ["base", "classifier"])
def test_the_base_model_and_the_classifier_name_the_same_code(what, tmp_path):
    model = make_model("deberta-v2")
    (model if what == "classifier" else model.base_model).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["auto_map"] == {
        "AutoConfig": "modeling_deedeberta_v2.DeeDebertaV2Config",
        "AutoModel": "modeling_deedeberta_v2.DeeDebertaV2Model",
        "AutoModelForSequenceClassification": "modeling_deedeberta_v2.DeeDebertaV2ForSequenceClassification",
    }
    code = {path.name for path in tmp_path.glob("*.py")}
    assert {"modeling_deedeberta_v2.py", "pipeline_deebert.py", "early_exit_deebert.py"} <= code


def test_the_stock_class_takes_a_checkpoint_with_code(tmp_path):
    model = make_model("mpnet")
    model.save_pretrained(tmp_path)
    stock = type(make_stock(model)).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(stock(**make_batch("mpnet")).logits, model(**make_batch("mpnet")).logits)
