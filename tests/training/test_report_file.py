"""The page that an evaluation of stage 2 writes."""

import json
import re

import numpy as np
import pytest
from tiny_task import TRAIN, VALIDATION, collate, make_args, make_tiny

from transformers_deebert import ExitTable, OffRampTrainer, TwoStageTrainer, make_report


pytestmark = pytest.mark.gradients
DATA = {"train_dataset": TRAIN, "eval_dataset": VALIDATION, "data_collator": collate}


def numbers_in(page):
    text = page.read_text()
    return json.loads(re.search(r'<script type="application/json" id="numbers">(.*?)</script>', text, re.S)[1])


def test_an_evaluation_writes_the_page(tmp_path):
    model = make_tiny()
    model.config.off_ramp_temperatures = [2.0, 1.5, 1.0]
    trainer = OffRampTrainer(model, make_args(tmp_path, report_file="report.html"), **DATA)
    trainer.evaluate()
    numbers = numbers_in(tmp_path / "report.html")
    prediction = trainer.predict(VALIDATION)
    table = ExitTable.from_logits(np.stack(prediction.predictions, 1), prediction.label_ids)
    expected = make_report(table).choice
    assert numbers["rows"] == len(VALIDATION)
    assert numbers["choice"]["threshold"] == pytest.approx(expected.threshold)
    assert numbers["choice"]["temperatures"] == [2.0, 1.5, 1.0]  # the threshold is about scaled logits
    lengths = [len(row["input_ids"]) for row in VALIDATION]
    names = [one["name"] for one in numbers["slices"]["length"][1:]]
    assert names[0].startswith(f"{min(lengths)} to")
    assert str(tmp_path) not in (tmp_path / "report.html").read_text()


def test_after_both_stages_it_lies_beside_the_model(tmp_path):
    args = make_args(tmp_path, num_train_epochs=1, report_file="pages/report.html", eval_strategy="epoch")
    TwoStageTrainer(make_tiny(), args, args, **DATA).train()
    assert "step 8 of stage 2" in (tmp_path / "pages" / "report.html").read_text()
    for path in tmp_path.rglob("training_arguments.json"):
        assert "report_file" not in json.loads(path.read_text())  # where a folder was is nobody's business


def test_no_page_is_no_reason_to_lose_a_training(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    trainer = OffRampTrainer(make_tiny(), make_args(tmp_path / "out", report_file=f"{tmp_path}/file/r.html"), **DATA)
    assert "eval_accuracy" in trainer.evaluate()
    few = OffRampTrainer(make_tiny(), make_args(tmp_path / "out", report_file="r.html"), **DATA)
    few.evaluate(VALIDATION[:10])
    assert not (tmp_path / "out" / "r.html").exists()
    trainer.predict(VALIDATION)
    assert not (tmp_path / "out" / "r.html").exists()  # a prediction is no evaluation


def test_bad_name(tmp_path):
    with pytest.raises(ValueError, match=r"`report_file` must end in \.html, got 'report'"):
        make_args(tmp_path, report_file="report")
