"""`deebert add-exits`, `sweep`, `pick`, `report` and `bench`, as a user runs them, on a tiny model that has learnt."""

import csv
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertTokenizer,
    pipeline,
    set_seed,
)

from transformers_deebert import collect_exits, pick_threshold
from transformers_deebert.cli import main
from transformers_deebert.cli.inputs import read_inputs
from transformers_deebert.models.exit_scores_deebert import SCORES


pytestmark = pytest.mark.gradients
GOOD, BAD, OTHER = ("lovely", "warm", "superb"), ("dull", "cold", "loud"), ("the", "film", "plot", "is", "and", "very")


def write_rows(path, count, seed):
    generator = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            label = generator.randrange(2)
            words = [generator.choice(GOOD if label else BAD), *generator.choices(OTHER, k=generator.randrange(2, 12))]
            generator.shuffle(words)
            row = {"text": " ".join(words), "label": label, "source": "abc"[number % 3]}
            file.write(json.dumps(row) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A stock classifier that was fine-tuned, with data; and what `add-exits` makes of it."""
    folder = tmp_path_factory.mktemp("commands")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *GOOD, *BAD, *OTHER]))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    set_seed(0)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.1,
            id2label={0: "negative", 1: "positive"},
            label2id={"negative": 0, "positive": 1},
        )
    )
    train, validation = write_rows(folder / "train.jsonl", 300, 0), write_rows(folder / "validation.jsonl", 120, 1)
    rows = [json.loads(line) for line in Path(train).read_text().splitlines()] * 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    with torch.enable_grad():
        for start in range(0, len(rows), 20):
            batch = rows[start : start + 20]
            inputs = tokenizer([row["text"] for row in batch], padding=True, return_tensors="pt")
            model(**inputs, labels=torch.tensor([row["label"] for row in batch])).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder / "plain")
    tokenizer.save_pretrained(folder / "plain")
    with torch.enable_grad():
        command = ["add-exits", f"{folder}/plain", train, "--validation", validation, "-o", f"{folder}/exits"]
        assert main([*command, "--target-saving", "0.4", "--epochs", "15", "--off-ramps", "pooler"]) == 0
    return folder


@pytest.fixture
def command(place, tmp_path):
    """Runs a command on a copy of the model and the validation rows."""
    shutil.copytree(place / "exits", tmp_path / "exits")

    def run(name, *options):
        return main([name, f"{tmp_path}/exits", f"{place}/validation.jsonl", *map(str, options)])

    return run


def expected_table(place, tmp_path):
    from transformers import DataCollatorWithPadding

    from transformers_deebert.cli.options import DataOptions

    inputs = read_inputs(DataOptions(checkpoint=f"{tmp_path}/exits", data=f"{place}/validation.jsonl"))
    return collect_exits(inputs.model, inputs.encoded, DataCollatorWithPadding(inputs.tokenizer), progress=False)


def test_add_exits_leaves_the_model_as_it_is(place):
    plain = BertForSequenceClassification.from_pretrained(place / "plain")
    model = AutoModelForSequenceClassification.from_pretrained(place / "exits")
    for name, tensor in plain.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    assert model.config.off_ramps_trained
    assert model.config.off_ramp_pooling == "mean"
    assert 0 < model.config.early_exit_entropy < 0.7
    card = (place / "exits" / "README.md").read_text()
    assert "that saves 40.0% of the layers" in card
    assert "By class" in (place / "exits" / "report.html").read_text()
    answers = pipeline("text-classification", model=str(place / "exits"))(["the film is superb", "the plot is dull"])
    assert [answer["label"] for answer in answers] == ["positive", "negative"]
    assert min(answer["exit_layer"] for answer in answers) < 4


def test_add_exits_refuses(place, tmp_path, capsys):
    train = f"{place}/train.jsonl"
    BertForSequenceClassification.from_pretrained(place / "plain").bert.save_pretrained(tmp_path / "base")
    shutil.copy(place / "plain" / "tokenizer.json", tmp_path / "base")
    shutil.copy(place / "plain" / "tokenizer_config.json", tmp_path / "base")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("do not touch")
    few = write_rows(tmp_path / "few.jsonl", 30, 3)
    cases = [
        ([f"{place}/exits", train, "-o", f"{tmp_path}/a"], "has trained off-ramps already"),
        ([f"{tmp_path}/base", train, "-o", f"{tmp_path}/b"], "is no fine-tuned classifier"),
        ([f"{place}/plain", train, "-o", f"{tmp_path}/full"], f"`--output` ('{tmp_path}/full') is not empty"),
        ([f"{place}/plain", train, "-o", "/proc/out"], "`--output` ('/proc/out') cannot be written"),
        ([f"{place}/plain", few, "-o", f"{tmp_path}/c"], "and it takes 40"),
        ([f"{place}/plain", f"{tmp_path}/none.jsonl", "-o", f"{tmp_path}/d"], "does not exist"),
    ]
    for arguments, message in cases:
        assert main(["add-exits", *arguments]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("deebert: ")
        assert message in error
    assert (tmp_path / "full" / "precious").read_text() == "do not touch"


def test_add_exits_with_a_target_that_cannot_be_met(place, tmp_path, capsys):
    with torch.enable_grad():
        code = main(
            ["add-exits", f"{place}/plain", f"{place}/train.jsonl", "-o", f"{tmp_path}/out", "--epochs", "1"]
            + ["--target-saving", "0.9", "--off-ramps", "linear"]  # one layer of four always runs
        )
    assert code == 1
    assert "No threshold saves 90.0%" in capsys.readouterr().out
    assert "The recommended threshold" not in (tmp_path / "out" / "README.md").read_text()
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config.early_exit_entropy is None


def test_add_exits_with_texts_alone(place, tmp_path, capsys):
    """Off-ramps learn the model's own answers, and the threshold bounds the disagreement with them."""
    texts = tmp_path / "texts.txt"
    rows = [json.loads(line)["text"] for line in (place / "train.jsonl").read_text().splitlines()]
    texts.write_text("\n\n".join(rows) + "\n")
    base = ["add-exits", f"{place}/plain", str(texts), "-o", f"{tmp_path}/out"]
    with torch.enable_grad():
        assert main([*base, "--max-score-drop", "0.01"]) == 2
        assert "`--max-score-drop` needs labels" in capsys.readouterr().err
        assert main([*base, "--max-disagreement", "0.2", "--confidence", "0.9", "--hold-out", "0.5"]) == 0
    shown = capsys.readouterr()
    assert "300 rows; texts: text; labels: none" in shown.err
    assert "keeps the off-ramps of the kind" in shown.err
    assert "With 90% confidence the agreement on new rows" in shown.out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.exit_layers == (0, 1, 2, 3, 4)
    inputs = BertTokenizer.from_pretrained(tmp_path / "out")(rows, padding=True, return_tensors="pt")
    early, full = model(**inputs), model(**inputs, early_exit_entropy=0)
    assert early.exit_layers.float().mean() < 3.5
    assert (early.logits.argmax(-1) == full.logits.argmax(-1)).float().mean() > 0.8
    page = (tmp_path / "out" / "report.html").read_text()
    assert "accuracy is agreement with them" in page


def test_the_report_is_about_the_model_that_was_made(place, tmp_path):
    rows = Dataset.from_json(f"{place}/train.jsonl")
    data = DatasetDict({"train": rows, "validation": Dataset.from_json(f"{place}/validation.jsonl")})
    data.save_to_disk(tmp_path / "data")
    with torch.enable_grad():
        code = main(
            ["add-exits", f"{place}/plain", f"{tmp_path}/data", "-o", f"{tmp_path}/out", "--epochs", "15"]
            + ["--target-saving", "0.3", "--per-layer", "--temperatures", "--hold-out", "0.4"]
        )
    assert code == 0
    page = (tmp_path / "out" / "report.html").read_text()
    numbers = json.loads(page.partition('id="numbers">')[2].partition("</script>")[0])
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").config
    assert numbers["choice"]["threshold"] == config.early_exit_entropy
    assert numbers["choice"]["temperatures"] == config.off_ramp_temperatures
    kept = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert kept["off_ramp_temperatures"] == config.off_ramp_temperatures
    assert len(kept["trade_off"]) > 1
    assert numbers["rows"] == 120  # of the 300 for training, which is the split that is taken


def test_sweep(command, place, tmp_path, capsys):
    assert command("sweep", "--json") == 0
    points = json.loads(capsys.readouterr().out)["points"]
    table = expected_table(place, tmp_path)
    capsys.readouterr()
    assert points[0]["exit_counts"] == [0, 0, 0, 120]
    assert max(sum(count > 0 for count in point["exit_counts"]) for point in points) >= 3
    for point in points:
        exits, answers = table.exits_at(point["threshold"])
        assert point["exit_counts"] == [int((exits == layer).sum()) for layer in range(1, 5)]
        assert point["scores"]["accuracy"] == pytest.approx((answers == table.labels).mean())
    assert command("sweep", "--thresholds", 0.1, 0.6, "--json") == 0
    assert [point["threshold"] for point in json.loads(capsys.readouterr().out)["points"]] == [0.1, 0.6]
    assert command("sweep", "--fractions", 0, 0.5) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:2] == ["0.3465736", "50.0%"]
    assert command("sweep", "--quantiles", "--metric", "f1", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["points"]) > 50


def test_pick_and_apply(command, place, tmp_path, capsys):
    assert command("pick", "--target-saving", 0.5, "--apply", "--json") == 0
    choice = json.loads(capsys.readouterr().out)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exits")
    assert model.config.early_exit_entropy == choice["threshold"]
    assert choice["threshold"] == pytest.approx(
        pick_threshold(expected_table(place, tmp_path), target_saving=0.5).threshold
    )
    assert choice["reason"] in (tmp_path / "exits" / "README.md").read_text()
    capsys.readouterr()
    assert command("pick", "--target-saving", 0.3, "--per-layer", "--temperatures", "--apply", "--json") == 0
    choice = json.loads(capsys.readouterr().out)
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exits").config
    assert config.early_exit_entropy == choice["threshold"]
    assert config.off_ramp_temperatures == choice["temperatures"]
    assert len(choice["temperatures"]) == 3


def test_pick_says_when_a_target_cannot_be_met(command, tmp_path, capsys):
    assert command("pick", "--target-saving", 0.9, "--apply") == 1
    assert "No threshold saves 90.0%" in capsys.readouterr().out
    assert command("pick", "--max-score-drop", 0.001, "--confidence", 0.95) == 1
    assert "it takes 2,995 rows" in capsys.readouterr().out
    assert command("pick", "--target-latency-ms", 1e-6) == 1
    assert "No threshold takes at most 1e-06 ms" in capsys.readouterr().out


def test_exits_are_kept(command, place, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    shutil.copy(place / "validation.jsonl", rows)
    base = ["sweep", f"{tmp_path}/exits", str(rows), "--table", f"{tmp_path}/table", "--json"]
    assert main(base) == 0
    first = capsys.readouterr()
    weights = tmp_path / "exits" / "model.safetensors"
    kept = weights.read_bytes()
    assert main(base) == 0
    again = capsys.readouterr()
    assert again.out == first.out
    assert "reads the exits that are kept" in again.err
    assert main([*base, "--seed", "1"]) == 2
    assert "another seed" in capsys.readouterr().err
    weights.write_bytes(kept)
    os.utime(weights, (1, 1))
    assert main(base) == 2
    assert "files that have changed since" in capsys.readouterr().err
    shutil.copy2(place / "exits" / "model.safetensors", weights)
    (tmp_path / "exits" / "vocab.txt").write_text("other")
    assert main(base) == 2
    assert "files that have changed since" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main([*base[:-2], f"{tmp_path}/other"]) == 2
    assert "holds something else" in capsys.readouterr().err


def test_exits_of_other_data_or_labels_are_not_taken(place, tmp_path, capsys):
    shutil.copytree(place / "exits", tmp_path / "exits")
    rows = Dataset.from_json(f"{place}/validation.jsonl")
    rows.save_to_disk(tmp_path / "saved")
    base = ["sweep", f"{tmp_path}/exits", f"{tmp_path}/saved", "--table", f"{tmp_path}/table", "--json"]
    assert main(base) == 0
    config = tmp_path / "exits" / "config.json"
    config.write_text(config.read_text().replace('"positive"', '"good"'))
    assert main(base) == 2
    assert "another configuration" in capsys.readouterr().err
    config.write_text(config.read_text().replace('"good"', '"positive"'))
    assert main(base) == 0
    shutil.rmtree(tmp_path / "saved")
    rows.map(lambda row: {"label": 1 - row["label"]}).save_to_disk(tmp_path / "saved")
    capsys.readouterr()
    assert main(base) == 2
    assert "files that have changed since" in capsys.readouterr().err


def test_damaged_and_unfinished_tables(place, tmp_path, capsys):
    base = ["sweep", f"{place}/exits", f"{place}/validation.jsonl", "--table", f"{tmp_path}/table", "--json"]
    assert main(base) == 0
    first = capsys.readouterr().out
    arrow = (tmp_path / "table" / "exits.arrow").read_bytes()
    zeroed = arrow[:1000] + bytes(300) + arrow[1300:]
    for name, content in (
        ("source.json", b'{"x'),
        ("source.json", b"[]"),
        ("exits.json", b"{"),
        ("exits.arrow", b"ARROW1"),
        ("exits.arrow", zeroed),
    ):
        kept = (tmp_path / "table" / name).read_bytes()
        (tmp_path / "table" / name).write_bytes(content)
        assert main(base) == 2
        assert "is damaged" in capsys.readouterr().err
        (tmp_path / "table" / name).write_bytes(kept)
    source = tmp_path / "table" / "source.json"
    source.write_text(
        json.dumps({key: value for key, value in json.loads(source.read_text()).items() if key != "sha256"})
    )
    assert main(base) == 0  # as a run leaves it that was killed
    seen = capsys.readouterr()
    assert "not finished" in seen.err
    assert seen.out == first


def test_odd_checkpoints(place, tmp_path, capsys):
    shutil.copytree(place / "exits", tmp_path / "exits")
    config, tokenizer = tmp_path / "exits" / "config.json", tmp_path / "exits" / "tokenizer.json"
    settings = json.loads(config.read_text())
    base = ["sweep", f"{tmp_path}/exits", f"{place}/validation.jsonl"]
    config.write_text(json.dumps(settings | {"label2id": None}))
    assert main(base) == 0
    capsys.readouterr()
    for change, message in (
        ({"early_exit_entropy": float("nan")}, "early_exit_entropy"),
        ({"label2id": {"positive": 0, "negative": 1}}, "contradict"),
    ):
        config.write_text(json.dumps(settings | change))
        assert main(base) == 2
        assert message in one_line(capsys.readouterr().err)
    config.write_text(json.dumps(settings))
    kept = tokenizer.read_text()
    words = json.loads(kept)
    words["model"]["vocab"]["film"] = 999
    tokenizer.write_text(json.dumps(words))
    assert main(base) == 2
    assert "use the tokenizer that belongs to the model" in one_line(capsys.readouterr().err)
    tokenizer.write_text(kept[:200])
    assert main(base) == 2
    assert "tokenizer.json is damaged" in one_line(capsys.readouterr().err)


def test_rows_that_are_skipped(place, tmp_path, capsys):
    rows = [json.loads(line) for line in Path(f"{place}/validation.jsonl").read_text().splitlines()]
    rows[3]["text"], rows[5]["label"] = None, "unknown"
    for row in rows:
        row["label"] = str(row["label"])
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = ["sweep", f"{place}/exits", f"{tmp_path}/rows.jsonl"]
    assert main(base) == 2
    assert "--skip-invalid" in capsys.readouterr().err
    assert main([*base, "--skip-invalid"]) == 0
    error = capsys.readouterr().err
    assert "1 of 120 rows are skipped: no text in text (rows 4)" in error
    assert "1 of 119 rows are skipped: their label is none of the model's (rows 5)" in error


def one_line(error):
    (line,) = [line for line in error.splitlines() if line.startswith("deebert: ") and "rows; texts" not in line]
    return line


def test_report(command, tmp_path, capsys):
    page = tmp_path / "pages" / "report.html"
    assert command("report", "-o", page, "--slice-by", "source", "--title", "A <b>title</b>", "--time") == 0
    text = page.read_text()
    for expected in ("By source", "Measured time", "A &lt;b&gt;title&lt;/b&gt;", "Calibration"):
        assert expected in text
    assert "<script src" not in text
    capsys.readouterr()
    assert command("report", "-o", page, "--slice-by", "nothing") == 2
    assert "No column 'nothing' for `--slice-by`" in capsys.readouterr().err
    assert command("report", "-o", "/proc/report.html") == 2
    assert "`--output` ('/proc/report.html') cannot be written" in capsys.readouterr().err
    assert command("report", "-o", page, "--target-saving", 0.9) == 1
    assert "The target cannot be met" in page.read_text()


def test_bench_needs_no_labels(command, place, tmp_path, capsys):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text"])
        writer.writerows([["the film is superb"], ["dull plot"]] * 4)
    options = ["--batch-sizes", "1", "4", "--repeats", "1", "--fractions", "0.5"]
    assert main(["bench", f"{tmp_path}/exits", f"{tmp_path}/rows.csv", *options, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)["figures"]
    assert [figure["batch_size"] for figure in figures] == [1, 1, 4, 4]
    assert figures[1]["threshold"] == pytest.approx(0.34657, abs=1e-4)
    assert command("bench", "--max-rows", 8, "--batch-sizes", 4, "--repeats", 1) == 0
    output = capsys.readouterr().out
    assert "Tokenisation, not counted above" in output
    assert len(output.splitlines()[2:4]) == 2  # full depth, and the checkpoint's own threshold


CRITERIA = [
    pytest.param("least_confidence", 1, marks=pytest.mark.slow),
    pytest.param("margin", 1, marks=pytest.mark.slow),
    pytest.param("disagreement", 1, marks=pytest.mark.slow),
    ("entropy", 2),
]


@pytest.mark.parametrize(("score", "patience"), CRITERIA)
def test_criteria(score, patience, command, place, tmp_path, capsys):
    chosen = ["--criterion", score, "--patience", patience]
    assert command("sweep", *chosen, "--json", "--table", tmp_path / "table") == 0
    swept = json.loads(capsys.readouterr().out)
    assert (swept["score"], swept["patience"]) == (score, patience)
    table = expected_table(place, tmp_path).with_score(score, patience)
    assert len({tuple(point["exit_counts"]) for point in swept["points"]}) > 1
    for point in swept["points"]:
        exits, _ = table.exits_at(point["threshold"])
        assert point["exit_counts"] == [int((exits == layer).sum()) for layer in range(1, 5)]
    assert command("sweep", *chosen, "--fractions", 0.5) == 0
    assert ("of ln C" if score == "entropy" else "of largest") in capsys.readouterr().out
    # What is kept serves every criterion.
    target = ["--max-score-drop", 0.05, *chosen, "--table", tmp_path / "table"]
    assert command("pick", *target, "--apply") == 0
    shown = capsys.readouterr()
    assert "reads the exits that are kept" in shown.err
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "exits")
    criterion = model.config.exit_criterion
    assert (criterion["score"], criterion["patience"]) == (score, patience)
    assert model.config.early_exit_entropy is None
    (line,) = [line for line in shown.out.splitlines() if line.startswith("in a call ")]
    inputs = read_rows_of(place, tmp_path)
    called = eval(f"dict({line.removeprefix('in a call ')})")  # runnable as it is printed
    assert model(**inputs, **called).exit_layers.tolist() == model(**inputs).exit_layers.tolist()
    assert model(**inputs).exit_layers.min() < 4
    assert f"exit_criterion={{'score': '{score}'" in (tmp_path / "exits" / "README.md").read_text()
    assert command("report", *target, "--time", "-o", tmp_path / "page.html", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["runtime"]["score"], report["runtime"]["patience"]) == (score, patience)
    # By default the checkpoint's own criterion is timed, with its threshold.
    assert command("bench", "--max-rows", 8, "--batch-sizes", 4, "--repeats", 1, "--json") == 0
    timed = json.loads(capsys.readouterr().out)
    assert (timed["score"], timed["patience"]) == (score, patience)
    assert [figure["threshold"] for figure in timed["figures"]] == [0, criterion["threshold"]]
    assert command("bench", *chosen, "--fractions", 1, "--max-rows", 8, "--batch-sizes", 4, "--repeats", 1) == 0
    assert f"S is of the score {score.replace('_', ' ')}, with patience {patience}." in capsys.readouterr().out


def read_rows_of(place, tmp_path):
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "exits")
    rows = [json.loads(line) for line in (place / "validation.jsonl").read_text().splitlines()]
    return tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")


def test_entropy_is_the_default_of_bench_where_thresholds_are_given(command, tmp_path, capsys):
    config = tmp_path / "exits" / "config.json"
    settings = json.loads(config.read_text())
    own = {"score": "margin", "threshold": 0.3, "patience": 2}
    config.write_text(json.dumps(settings | {"early_exit_entropy": None, "exit_criterion": own}))
    timing = ["--max-rows", 4, "--batch-sizes", 2, "--repeats", 1, "--json"]
    expected = {(): ("margin", 2), ("--thresholds", 0.2): ("entropy", 1), ("--patience", 3): ("entropy", 3)}
    for options, criterion in expected.items():
        assert command("bench", *options, *timing) == 0
        timed = json.loads(capsys.readouterr().out)
        assert (timed["score"], timed["patience"]) == criterion


@pytest.mark.parametrize("options", [["--criterion", "disagreement"], ["--patience", "2"]])
def test_what_has_no_threshold_per_layer_is_said_before_the_model_runs(options, tmp_path, capsys):
    for name, *others in (["pick", "--target-saving", "0.4"], ["report", "-o", str(tmp_path / "page.html")]):
        assert main([name, "no-model", "no-data.jsonl", *others, "--per-layer", *options]) == 2
        assert "`--per-layer` searches for the threshold of one exit at a time" in capsys.readouterr().err


def test_add_exits_with_another_criterion(place, tmp_path, capsys):
    with torch.enable_grad():
        code = main(
            ["add-exits", f"{place}/plain", f"{place}/train.jsonl", "-o", f"{tmp_path}/out", "--epochs", "15"]
            + ["--target-saving", "0.3", "--criterion", "least_confidence", "--patience", "2"]
        )
    assert code == 0
    assert 'exit_criterion={"score": "least_confidence", "threshold": ' in capsys.readouterr().out
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.early_exit_entropy is None
    assert model.config.exit_criterion["score"] == "least_confidence"
    assert model.config.exit_criterion["patience"] == 2
    kept = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert kept["trade_off_criterion"] == {"score": "least_confidence", "patience": 2}
    assert len(kept["trade_off"]) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["pick"],
            "one of the arguments --target-saving --max-score-drop --max-disagreement --target-latency-ms is required",
        ),
        (["pick", "--target-saving", "40"], "must lie between 0 and 1, got 40"),
        (["pick", "--max-score-drop", "nan"], "must lie between 0 and 1"),
        (["pick", "--target-saving", "0.4", "--max-score-drop", "0.01"], "not allowed with"),
        (["sweep", "--thresholds", "-0.1"], "must be finite and not negative"),
        (["sweep", "--thresholds", "low"], "must be a number, got 'low'"),
        (["pick", "--target-latency-ms", "0"], "must be finite and above 0"),
        (["sweep", "--seed", "-1"], "must be a whole number from 0 to 4294967295, got '-1'"),
        (["sweep", "--batch-size", "abc"], "must be a whole number of 1 or more, got 'abc'"),
        (["bench", "--patience", "0"], "must be a whole number of 1 or more, got '0'"),
        (["pick", "--target-saving", "0.4", "--criterion", "best"], f"must be one of {', '.join(SCORES)}, got 'best'"),
    ],
)
def test_usage_errors(command, options, message, capsys):
    with pytest.raises(SystemExit) as error:
        command(*options)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target-saving", "0.4"], "`--confidence` guarantees a bound: give `--max-score-drop`"),
        (["--max-score-drop", "0.01", "--metric", "f1"], "leave out `--metric` and `--per-layer`"),
        (["--max-score-drop", "0.01", "--per-layer"], "`--confidence`"),
    ],
)
def test_what_a_guarantee_cannot_be_had_with_is_said_before_the_model_runs(options, message, capsys):
    assert main(["pick", "no-model", "no-data.jsonl", "--confidence", "0.9", *options]) == 2
    assert message in capsys.readouterr().err


def test_options_in_messages_are_spelt_as_options(command, capsys):
    assert command("bench", "--batch-sizes", 1000) == 2
    assert "`--batch-sizes`" in capsys.readouterr().err


def test_a_metric_that_cannot_be_had(command, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_EVALUATE_OFFLINE", "1")
    assert command("sweep", "--metric", "no-such-metric") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "`--metric` 'no-such-metric' cannot be loaded" in error
