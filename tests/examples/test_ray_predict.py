"""The Ray example: its checks, and, where Ray is installed, a run with two actors on a tiny random model."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from conftest import make_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertTokenizer

from transformers_deebert import EarlyExitPredictor


EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = [f"word{number}" for number in range(95)]
THRESHOLD = 0.6


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def ray_predict():
    return importlib.import_module("ray_predict")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    make_model(off_ramp_pooling="mean").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 20, (300,), generator=generator).tolist()
    drawn = [torch.randint(0, 95, (length,), generator=generator).tolist() for length in lengths]
    texts = [" ".join(WORDS[number] for number in numbers) for numbers in drawn]
    return [{"id": number, "sentence": text, "label": number % 2} for number, text in enumerate(texts)]


def write_rows(rows, path):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def run(*options):
    """The script in a process of its own; Ray gets no more cores than it is given, and tells nobody."""
    return subprocess.run(
        [sys.executable, EXAMPLES / "ray_predict.py", *map(str, options)],
        env={**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_two_actors_answer_as_one_process(checkpoint, rows, tmp_path, kind):
    pytest.importorskip("ray")
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    rows = [*rows[:77], {**rows[77], "sentence": None}, *rows[78:]]
    source = tmp_path / "rows"
    source.mkdir()
    for part in range(3):
        some = rows[100 * part : 100 * part + 100]
        if kind == "jsonl":
            write_rows(some, source / f"{part}.jsonl")
        else:
            parquet.write_table(pa.Table.from_pylist(some), source / f"{part}.parquet")
    options = ["--model_name_or_path", checkpoint, "--input", source, "--output_dir", tmp_path / "answers"]
    options += ["--text_column", "sentence", "--keep", "id", "--early_exit_entropy", THRESHOLD, "--max_length", 16]
    done = run(*options, "--actors", 2, "--batch_size", 2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "300 rows" in done.stdout
    assert "without an answer: 1," in done.stdout

    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    predictor = EarlyExitPredictor(model, AutoTokenizer.from_pretrained(checkpoint), max_length=16)
    expected = predictor.predict([row["sentence"] for row in rows], early_exit_entropy=THRESHOLD, errors="return")
    assert len(expected.exit_layers.unique()) >= 4  # at least three, and -1
    table = parquet.read_table(tmp_path / "answers")
    assert table.column_names == ["sentence", "id", "label", "score", "exit_layer", "error"]
    answers = sorted(table.to_pylist(), key=lambda row: row["id"])
    assert [row["id"] for row in answers] == list(range(300))
    assert [row["sentence"] for row in answers] == [row["sentence"] for row in rows]
    assert [row["label"] for row in answers] == expected.labels
    assert [row["exit_layer"] for row in answers] == expected.exit_layers.tolist()
    assert [row["score"] for row in answers] == pytest.approx(expected.scores.tolist(), abs=1e-5, nan_ok=True)
    assert [row["id"] for row in answers if row["error"]] == [77]

    again = run(*options)
    assert again.returncode == 1
    assert again.stderr.endswith("is not empty: name a new folder.\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text_column", "text"], "`--text_column` is 'text', but the columns of the input are ['id', 'sentence',"),
        (["--keep", "label"], "`--keep` is 'label', which is the name of an answer"),
        (["--actors", "1000"], "take 1000 cores, but there is room for"),
        (["--gpus_per_actor", "1000"], "need 1000 GPUs, but Ray has"),
        (["--actors", "0"], "`--actors` must be 1 or more, got 0"),
        (["--early_exit_entropy", "nan"], "`early_exit_entropy` must be finite"),
        (["--model_name_or_path", "/nowhere/at/all"], "/nowhere/at/all"),
    ],
)
def test_bad_settings_fail_before_any_actor_starts(checkpoint, rows, tmp_path, options, message):
    pytest.importorskip("ray")
    source = write_rows(rows, tmp_path / "rows.jsonl")
    required = ["--model_name_or_path", checkpoint, "--max_length", "16", "--input", source]
    required += ["--output_dir", tmp_path / "answers"]
    done = run(*required, "--text_column", "sentence", *options)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr
    assert not (tmp_path / "answers").exists()


# ---- without Ray


def test_without_ray(rows, checkpoint, tmp_path):
    try:
        import ray  # noqa: F401
    except ModuleNotFoundError:
        source = write_rows(rows, tmp_path / "rows.jsonl")
        done = run("--model_name_or_path", checkpoint, "--input", source, "--output_dir", tmp_path / "answers")
        assert (done.returncode, done.stderr.splitlines()[-1]) == (1, 'This needs Ray: pip install "ray[data]"')
    else:
        pytest.skip("Ray is installed")


def test_input(ray_predict, rows, tmp_path):
    jsonl = write_rows(rows, tmp_path / "b.jsonl")
    (tmp_path / "notes.txt").touch()
    assert ray_predict.find_input([str(tmp_path)]) == ([jsonl], ".jsonl")
    assert ray_predict.find_input(["s3://bucket/a.parquet"]) == (["s3://bucket/a.parquet"], ".parquet")
    (tmp_path / "empty").mkdir()
    for given, message in (
        ([str(tmp_path / "none.jsonl")], "`--input` .*none.jsonl' does not exist"),
        ([str(tmp_path / "empty")], r"`--input` .* is a folder without \.jsonl or \.parquet files"),
        ([str(tmp_path / "notes.txt")], r"files that end in \['\.txt'\]"),
        ([jsonl, "s3://bucket/a.parquet"], r"files that end in \['\.jsonl', '\.parquet'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ray_predict.find_input(given)


def test_model(ray_predict, checkpoint, monkeypatch):
    monkeypatch.chdir(checkpoint.parent)
    assert ray_predict.find_model(checkpoint.name) == str(checkpoint)
    assert ray_predict.find_model("org/name") == "org/name"


def test_output(ray_predict, tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for new in ("new", str(tmp_path / "new")):
        assert ray_predict.find_output(new) == str(tmp_path / "new")
    for new in (f"file://{tmp_path}/new", "mock:///bucket/answers", "unknown://bucket/answers"):
        assert ray_predict.find_output(new) == new
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    ray_predict.find_output(str(tmp_path / "empty"))
    for taken in (tmp_path, tmp_path / "file", f"file://{tmp_path}", f"file://{tmp_path}/file", "file"):
        with pytest.raises(ValueError, match="is not empty: name a new folder"):
            ray_predict.find_output(str(taken))


def test_settings_are_checked_on_the_cpu(ray_predict, checkpoint, monkeypatch):
    """The driver has no GPU, where Ray lends them to actors."""
    settings = {"early_exit_entropy": THRESHOLD, "batch_size": 4, "max_length": 16, "actors": 1, "cpus_per_actor": 1}
    args = Namespace(model_name_or_path=str(checkpoint), text_column="sentence", gpus_per_actor=0.5, **settings)
    moved = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, place: moved.append(place) or module)
    ray_predict.check_settings(args)
    assert moved == ["cpu"]
    assert args.gpus_per_actor == 0.5


def test_an_actor_answers_a_table(ray_predict, checkpoint, rows):
    """What Ray calls, in this process."""
    pa = pytest.importorskip("pyarrow")
    args = Namespace(
        model_name_or_path=str(checkpoint),
        text_column="sentence",
        early_exit_entropy=THRESHOLD,
        batch_size=4,
        max_length=16,
        cpus_per_actor=1,
        gpus_per_actor=0.0,
    )
    actor = ray_predict.Classifier(args)
    expected = actor.predictor.predict([row["sentence"] for row in rows], early_exit_entropy=THRESHOLD)
    assert len(expected.exit_layers.unique()) >= 3
    table = actor(pa.table({"sentence": [row["sentence"] for row in rows]}))
    assert table["label"].to_pylist() == expected.labels
    assert table["exit_layer"].to_pylist() == expected.exit_layers.tolist()
    assert table["error"].null_count == len(rows)
    # Blocks without a single answer, or without rows, have the same columns.
    for texts in ([None, None], []):
        assert actor(pa.table({"sentence": pa.array(texts, pa.string())})).schema == table.schema
