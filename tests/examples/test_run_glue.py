"""The GLUE experiment on a tiny random model and made-up sentences, without the network."""

import csv
import importlib
import json
import logging
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    RobertaConfig,
    RobertaModel,
)


pytestmark = pytest.mark.gradients
EXAMPLES = Path(__file__).parents[2] / "examples"
SIDES = (("lovely", "warm", "superb"), ("dull", "stale", "clumsy"))
FILLERS = ("the", "film", "is", "a", "plot", "and", "cast", "with", "music")
GRID = [0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


@pytest.fixture
def glue_tasks(monkeypatch):
    module = importlib.import_module("glue_tasks")
    monkeypatch.setattr(module, "hub_answers", lambda: False)
    return module


@pytest.fixture
def run_glue(glue_tasks):
    return importlib.import_module("run_glue")


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Folders with tiny random models that share a tokenizer, by model type."""
    folder = tmp_path_factory.mktemp("models")
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SIDES[0], *SIDES[1], *FILLERS)
    (folder / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), model_max_length=32)
    shape = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    models = {
        "bert": BertModel(BertConfig(**shape)),
        "roberta": RobertaModel(RobertaConfig(**shape, type_vocab_size=2)),
        "gpt2": GPT2Model(GPT2Config(vocab_size=len(words), n_embd=32, n_layer=1, n_head=2)),
        "distilbert": DistilBertModel(
            DistilBertConfig(vocab_size=len(words), dim=32, n_layers=2, n_heads=2, hidden_dim=64)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return {name: str(folder / name) for name in models}


def sentence(generator, side):
    words = [*generator.choices(FILLERS, k=generator.randint(2, 9)), generator.choice(SIDES[side])]
    generator.shuffle(words)
    return " ".join(words)


def write_rows(path, rows, seed, classes=None):
    """Single sentences of two sides, or pairs whose class is a function of the two sides."""
    generator = random.Random(seed)
    lines = []
    for _ in range(rows):
        sides = generator.randrange(2), generator.randrange(2)
        if classes is None:
            line = {"text": sentence(generator, sides[0]), "label": sides[0]}
        else:
            texts = {f"sentence{i + 1}": sentence(generator, side) for i, side in enumerate(sides)}
            line = {**texts, "label": (2 * sides[0] + sides[1]) % classes}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_sst2_from_start_to_finish(run_glue, tiny_models, tmp_path, capsys, caplog):
    out = tmp_path / "out"
    validation = write_rows(tmp_path / "validation.jsonl", 60, seed=1)
    with caplog.at_level(logging.INFO, logger="glue_tasks"):
        run_glue.main(
            [
                *("--model_name_or_path", tiny_models["bert"], "--task_name", "SST-2", "--output_dir", str(out)),
                *("--train_file", write_rows(tmp_path / "train.jsonl", 200, seed=0), "--validation_file", validation),
                *("--max_train_samples", "160", "--seeds", "2", "--seed", "7", "--learning_rate", "3e-3"),
                *("--timing_rows", "10", "--timing_repeats", "1", "--off_ramp_pooling", "mean"),
                *("--baseline_model_name_or_path", tiny_models["distilbert"]),
                *("--do_predict", "--test_file", validation, "--use_cpu"),
            ]
        )
    assert "Scores are computed locally (scikit-learn)" in caplog.text
    printed = capsys.readouterr().out
    for heading in ("score of each layer", "trade-off", "operating points chosen on one half", "Timed on 10 rows"):
        assert heading in printed

    results = json.loads((out / "results.json").read_text())
    assert results["scores_from"] == "scikit-learn"
    assert results["train_rows"] == 160
    assert results["training"]["num_train_epochs"] == 3
    numbers = results["sets"]["validation"]
    assert (numbers["metric"], numbers["rows"], numbers["seeds"]) == ("accuracy", 60, [7, 8])

    # The table holds the whole grid of thresholds, and is what both seeds' logits say.
    table = read_csv(out / "table.csv")
    exits = {float(row["threshold"]): row for row in table if row["model"] == "early exit"}
    assert set(GRID) <= set(exits)
    full = exits[0.0]
    assert float(full["score_change"]) == float(full["layer_saving"]) == 0
    assert (float(full["runtime_saving"]), float(full["speed_up"])) == (0, 1)
    assert float(exits[0.7]["layer_saving"]) == pytest.approx(2 / 3)
    savings = [float(exits[threshold]["layer_saving"]) for threshold in sorted(exits)]
    assert savings == sorted(savings)
    layers = read_csv(out / "layers.csv")
    assert [row["layer"] for row in layers] == ["1", "2", "3"]
    assert layers[0]["accuracy"] == exits[0.7]["accuracy"]
    assert layers[2]["accuracy"] == full["accuracy"]
    assert float(full["accuracy"]) > 0.8  # the sentences are easy
    by_hand = [seed["trade_off"][0]["scores"]["accuracy"] for seed in numbers["each_seed"]]
    assert float(full["accuracy"]) == pytest.approx(np.mean(by_hand))
    assert float(full["accuracy_std"]) == pytest.approx(np.std(by_hand, ddof=1))
    counts = [sum(np.array(seed["trade_off"][0]["exit_counts"])[:2]) for seed in numbers["each_seed"]]
    assert counts == [0, 0]

    # Chosen thresholds and those asked for are timed, others are not.
    timed = {threshold for threshold, row in exits.items() if row["runtime_saving"]}
    chosen = {point["threshold"] for point in numbers["each_seed"][0]["operating_points"]}
    assert timed == {0.0, 0.1, 0.4} | chosen
    assert all(0 < float(exits[threshold]["speed_up"]) < 20 for threshold in timed)

    baseline = table[-1]
    assert (baseline["model"], baseline["threshold"], baseline["layer_saving"]) == ("distilbert", "", "")
    assert 0 <= float(baseline["accuracy"]) <= 1
    assert float(baseline["speed_up"]) > 0

    operating = read_csv(out / "operating_points.csv")
    assert [float(row["max_drop"]) for row in operating] == [0, 0.01, 0.03]
    assert float(operating[0]["row_worth"]) == pytest.approx(1 / 30)
    assert all(float(row["score_change_low"]) <= float(row["score_change_high"]) for row in operating)

    assert (out / "trade_off_validation.png").read_bytes().startswith(b"\x89PNG")

    # The saved model gives the scores of the table, and the submission its answers.
    model = AutoModelForSequenceClassification.from_pretrained(out / "seed_7").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "seed_7")
    rows = [json.loads(line) for line in Path(validation).read_text().splitlines()]
    with torch.no_grad():
        logits = model(**tokenizer([row["text"] for row in rows], padding=True, return_tensors="pt")).logits
    answers = logits.argmax(-1).tolist()
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert model.config.off_ramp_pooling == "mean"
    assert np.mean([a == row["label"] for a, row in zip(answers, rows, strict=True)]) == pytest.approx(by_hand[0])
    submitted = (out / "submission" / "S_0" / "SST-2.tsv").read_text().splitlines()
    assert submitted[0] == "index\tprediction"
    assert submitted[1:] == [f"{index}\t{answer}" for index, answer in enumerate(answers)]


@pytest.mark.parametrize(
    "recipe",
    [
        "joint_distilled",
        pytest.param("two_stage_distilled", marks=pytest.mark.slow),
        pytest.param("joint_weighted", marks=pytest.mark.slow),
        pytest.param("joint_alternating", marks=pytest.mark.slow),
    ],
)
def test_recipes_and_shallower_models(run_glue, tiny_models, tmp_path, recipe):
    out = tmp_path / "out"
    command = [
        *("--model_name_or_path", tiny_models["bert"], "--task_name", "sst2", "--output_dir", str(out), "--use_cpu"),
        *("--train_file", write_rows(tmp_path / "train.jsonl", 160, 0), "--learning_rate", "3e-3", "--seeds", "2"),
        *("--validation_file", write_rows(tmp_path / "validation.jsonl", 40, 1), "--timing_rows", "0"),
        *("--recipe", recipe, "--shallow", "1", "2", "--num_train_epochs", "2"),
    ]
    run_glue.main(command)
    results = json.loads((out / "results.json").read_text())
    assert results["experiment"]["recipe"] == recipe
    rows = results["sets"]["validation"]["trade_off"]
    assert rows[0]["model"] == "early exit"
    assert [(row["model"], row["layer_saving"]) for row in rows[-2:]] == [
        ("1 layer", pytest.approx(2 / 3)),
        ("2 layers", pytest.approx(1 / 3)),
    ]
    assert all("accuracy_std" in row and row["accuracy"] > 0.5 for row in rows[-2:])
    model = AutoModelForSequenceClassification.from_pretrained(out / "layers_2_seed_42")
    assert (type(model).__name__, model.config.num_hidden_layers) == ("BertForSequenceClassification", 2)
    stages = json.loads((out / "seed_42" / "numbers.json").read_text())["training"]
    strategy = recipe.removeprefix("joint_")
    assert stages.get("joint", {}).get("strategy") == (None if strategy == recipe else strategy)
    arguments = json.loads((out / "seed_42" / "off_ramps" / "training_arguments.json").read_text())
    expected = {"two_stage_distilled": 0.5, "joint_distilled": 0.0}
    assert arguments["distillation_weight"] == expected.get(recipe)
    assert arguments["joint_strategy"] is None


def test_too_many_shallow_layers(run_glue, tiny_models, tmp_path):
    command = ["--model_name_or_path", tiny_models["bert"], "--task_name", "sst2", "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match="`shallow` must be numbers of layers from 1 to 2, got \\[3\\]"):
        run_glue.main([*command, "--shallow", "3"])


def test_mnli_keeps_matched_and_mismatched_apart(run_glue, tiny_models, tmp_path):
    out = tmp_path / "out"
    run_glue.main(
        [
            *("--model_name_or_path", tiny_models["roberta"], "--task_name", "mnli", "--output_dir", str(out)),
            *("--train_file", write_rows(tmp_path / "train.jsonl", 24, 0, classes=3), "--num_train_epochs", "1"),
            *("--validation_file", write_rows(tmp_path / "matched.jsonl", 20, 1, classes=3)),
            *("--validation_mismatched_file", write_rows(tmp_path / "mismatched.jsonl", 30, 2, classes=3)),
            *("--do_predict", "--test_file", write_rows(tmp_path / "test.jsonl", 5, 3, classes=3)),
            *("--test_mismatched_file", write_rows(tmp_path / "test_mm.jsonl", 6, 4, classes=3)),
            *("--max_eval_samples", "24", "--timing_rows", "0", "--use_cpu"),
        ]
    )
    sets = json.loads((out / "results.json").read_text())["sets"]
    assert {name: one["rows"] for name, one in sets.items()} == {"matched": 20, "mismatched": 24}
    assert {row["set"] for row in read_csv(out / "table.csv")} == {"matched", "mismatched"}
    assert {path.name for path in out.glob("*.png")} == {"trade_off_matched.png", "trade_off_mismatched.png"}
    for name, rows in (("MNLI-m", 5), ("MNLI-mm", 6)):
        lines = (out / "submission" / "S_0" / f"{name}.tsv").read_text().splitlines()
        assert len(lines) == 1 + rows
        assert {line.split("\t")[1] for line in lines[1:]} <= {"entailment", "neutral", "contradiction"}


@pytest.mark.parametrize(("family", "epochs"), [("bert", 3.0), ("roberta", 10.0)])
def test_the_paper_hyper_parameters_are_the_defaults(run_glue, tiny_models, tmp_path, monkeypatch, family, epochs):
    seen = []

    def stop(experiment, training, task, data, seed):
        seen.append((experiment, training))
        raise KeyboardInterrupt

    monkeypatch.setattr(run_glue, "train_early_exit", stop)
    files = [write_rows(tmp_path / f"{name}.jsonl", 4, 0) for name in ("train", "validation")]
    with pytest.raises(KeyboardInterrupt):
        run_glue.main(
            [
                *("--model_name_or_path", tiny_models[family], "--task_name", "sst2", "--output_dir", str(tmp_path)),
                *("--train_file", files[0], "--validation_file", files[1]),
            ]
        )
    experiment, training = seen[0]
    assert training.num_train_epochs == epochs
    assert (training.learning_rate, training.per_device_train_batch_size, experiment.max_length) == (2e-5, 8, 128)
    assert (training.warmup_steps, training.weight_decay, training.adam_epsilon, training.max_grad_norm) == (
        0,
        0,
        1e-8,
        1,
    )
    assert training.lr_scheduler_type == "linear"
    assert (experiment.off_ramp_pooling, experiment.off_ramp_head) == (None, None)  # the model's: cls and pooler


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_name": "stsb"}, r"`task_name` 'stsb' is a regression task.*choose one of \['cola'"),
        ({"task_name": "STS-B"}, r"`task_name` 'STS-B' is a regression task"),
        ({"task_name": "imdb"}, r"`task_name` must be one of .*got 'imdb'"),
        ({"seeds": "0"}, r"`seeds` must be 1 or more, got 0"),
        ({"timing_thresholds": "-0.1"}, r"`timing_thresholds` must be finite and >= 0, got \[-0\.1\]"),
        ({"model_name_or_path": "gpt2"}, r"type 'gpt2'.*albert, bert, "),
        ({}, r"GLUE's sst2 cannot be fetched from .*: pass `--train_file` and `--validation_file`"),
        (
            {"train_file": "x.jsonl"},
            r"`train_file` \('x\.jsonl'\) and `validation_file` \(None\) must be given together",
        ),
        ({"test_file": "x.jsonl"}, r"`test_file` \('x\.jsonl'\) is for predictions: add `--do_predict`"),
        ({"test_mismatched_file": "x.jsonl"}, r"`test_mismatched_file` is for MNLI alone, got 'x\.jsonl' for sst2"),
    ],
)
def test_wrong_arguments_are_refused_before_any_training(run_glue, tiny_models, tmp_path, options, message):
    options = {"model_name_or_path": "bert", "task_name": "sst2", "output_dir": str(tmp_path / "out")} | options
    options["model_name_or_path"] = tiny_models[options["model_name_or_path"]]
    with pytest.raises(ValueError, match=message):
        run_glue.main([word for name, value in options.items() for word in (f"--{name}", value)])
    assert not (tmp_path / "out").exists()


# ---- glue_tasks


def test_the_tasks_are_those_of_glue(glue_tasks):
    assert set(glue_tasks.TASKS) == {"cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli"}
    assert glue_tasks.TASKS["mnli"].labels == ("entailment", "neutral", "contradiction")
    assert glue_tasks.TASKS["rte"].labels == glue_tasks.TASKS["qnli"].labels == ("entailment", "not_entailment")
    assert glue_tasks.TASKS["wnli"].labels == ("not_entailment", "entailment")


def test_scores_equal_the_hand_count(glue_tasks):
    answers, labels = np.array([1, 1, 1, 0, 0, 0]), np.array([1, 1, 0, 1, 0, 0])
    assert glue_tasks.TASKS["mrpc"].score(answers, labels) == pytest.approx({"f1": 4 / 6, "accuracy": 4 / 6})
    # 2 true and 1 false positive, 2 true and 1 false negative: (2*2 - 1*1) / sqrt(3*3*3*3)
    assert glue_tasks.TASKS["cola"].score(answers, labels) == pytest.approx({"matthews_correlation": 3 / 9})
    assert glue_tasks.TASKS["sst2"].score(answers, labels) == pytest.approx({"accuracy": 4 / 6})
    assert glue_tasks.TASKS["mrpc"].score(0 * answers, labels)["f1"] == 0


def test_scores_come_from_evaluate_where_the_hub_answers(glue_tasks, monkeypatch, caplog):
    calls = []

    def load(name, configuration):
        calls.append((name, configuration))
        return SimpleNamespace(compute=lambda predictions, references: {"accuracy": 0.25})

    monkeypatch.setattr(glue_tasks, "hub_answers", lambda: True)
    monkeypatch.setattr(glue_tasks.evaluate, "load", load)
    with caplog.at_level(logging.INFO, logger="glue_tasks"):
        score, source = glue_tasks.get_score(glue_tasks.TASKS["rte"])
    assert source == "evaluate"
    assert score(np.array([1]), np.array([0])) == {"accuracy": 0.25}
    assert calls == [("glue", "rte")]
    assert "Scores come from evaluate's GLUE metric" in caplog.text


def test_scores_are_computed_locally_when_evaluate_fails(glue_tasks, monkeypatch):
    def fail(name, configuration):
        raise FileNotFoundError("Couldn't find a module script")

    monkeypatch.setattr(glue_tasks, "hub_answers", lambda: True)
    monkeypatch.setattr(glue_tasks.evaluate, "load", fail)
    score, source = glue_tasks.get_score(glue_tasks.TASKS["rte"])
    assert source == "scikit-learn"
    assert score(np.array([1, 0]), np.array([0, 0])) == {"accuracy": 0.5}


def test_a_hub_that_does_not_answer_costs_little_time(monkeypatch):
    import glue_tasks

    monkeypatch.setattr(glue_tasks.constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and says nothing
        monkeypatch.setattr(glue_tasks.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.perf_counter()
        assert not glue_tasks.hub_answers(seconds=0.3)
        assert time.perf_counter() - start < 3


@pytest.mark.parametrize(("name", "sets"), [("qqp", {"validation"}), ("mnli", {"matched", "mismatched"})])
def test_the_hub_splits_come_under_our_names(glue_tasks, monkeypatch, name, sets):
    task = glue_tasks.TASKS[name]
    splits = ["train"]
    for split in ("validation", "test"):
        splits += [f"{split}_matched", f"{split}_mismatched"] if name == "mnli" else [split]

    def load(repository, configuration):
        assert (repository, configuration) == ("nyu-mll/glue", name)
        return DatasetDict(
            {
                split: Dataset.from_list(
                    [{**dict.fromkeys(task.columns, split), "label": -1 if "test" in split else 1, "idx": 0}]
                )
                for split in splits
            }
        )

    monkeypatch.setattr(glue_tasks, "hub_answers", lambda: True)
    monkeypatch.setattr(glue_tasks, "load_dataset", load)
    train, evaluated, tests = glue_tasks.load_data(task, with_test=True)
    assert train[0] == {"sentence1": "train", "sentence2": "train", "label": 1}
    assert set(evaluated) == sets
    assert set(tests) == set(task.files)
    for one in tests.values():
        assert set(one.column_names) == {"sentence1", "sentence2"}
    if name == "mnli":
        assert evaluated["mismatched"][0]["sentence1"] == "validation_mismatched"
        assert tests["matched"][0]["sentence1"] == "test_matched"


def test_csv_and_jsonl_read_alike(glue_tasks, tmp_path):
    task = glue_tasks.TASKS["sst2"]
    (tmp_path / "rows.csv").write_text('text,label\n"good, NA",1\nNA,0\n', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"text": "good, NA", "label": 1}\n\n{"text": "NA", "label": 0}\n')
    expected = [{"text": "good, NA", "label": 1}, {"text": "NA", "label": 0}]
    assert glue_tasks.read_file(str(tmp_path / "rows.csv"), task).to_list() == expected
    assert glue_tasks.read_file(str(tmp_path / "rows.jsonl"), task).to_list() == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("rows.tsv", "text\tlabel\n", r"rows\.tsv' must be a \.jsonl or a \.csv file, got suffix '\.tsv'"),
        ("rows.jsonl", "", r"must hold at least one row, got none"),
        ("rows.jsonl", '{"sentence": "a", "label": 0}', r"Row 1 of .* must have the keys \['text', 'label'\], got"),
        ("rows.jsonl", '{"text": "a", "label": 0}\n{"text": "b"}', r"Row 2 of .* must have the keys"),
        ("rows.csv", "text,label\na,2\n", r"`label` in row 1 of .* from 0 to 1 \(negative, positive\), got '2'"),
        ("rows.jsonl", '{"text": "a", "label": "positive"}', r"`label` in row 1.*got 'positive'\. Map the names"),
        ("rows.jsonl", '{"text": "a", "label": -1}', r"`label` in row 1.*got -1"),
    ],
)
def test_bad_files_name_row_value_and_remedy(glue_tasks, tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        glue_tasks.read_file(str(tmp_path / name), glue_tasks.TASKS["sst2"])


@pytest.mark.parametrize(
    ("name", "set_name", "file", "words"),
    [
        ("sst2", "test", "SST-2.tsv", ("0", "1")),
        ("cola", "test", "CoLA.tsv", ("0", "1")),
        ("mrpc", "test", "MRPC.tsv", ("0", "1")),
        ("qqp", "test", "QQP.tsv", ("0", "1")),
        ("wnli", "test", "WNLI.tsv", ("0", "1")),
        ("rte", "test", "RTE.tsv", ("entailment", "not_entailment")),
        ("qnli", "test", "QNLI.tsv", ("entailment", "not_entailment")),
        ("mnli", "matched", "MNLI-m.tsv", ("entailment", "neutral")),
        ("mnli", "mismatched", "MNLI-mm.tsv", ("entailment", "neutral")),
    ],
)
def test_submissions_are_what_the_server_wants(glue_tasks, tmp_path, name, set_name, file, words):
    path = glue_tasks.write_submission(tmp_path / "new", glue_tasks.TASKS[name], set_name, np.array([0, 1]))
    assert path.name == file
    assert path.read_text() == f"index\tprediction\n0\t{words[0]}\n1\t{words[1]}\n"


@pytest.mark.slow
def test_two_processes_print_one_table(tiny_models, tmp_path):
    """And the model does not depend on their number but for rounding, at one global batch and without dropout."""
    model = tmp_path / "model"
    shutil.copytree(tiny_models["bert"], model)
    config = json.loads((model / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (model / "config.json").write_text(json.dumps(config))
    files = write_rows(tmp_path / "train.jsonl", 64, seed=0), write_rows(tmp_path / "validation.jsonl", 30, seed=1)
    tables = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        # accelerate starts several processes under this name alone; `--use_cpu` makes the script use none of the GPUs.
        launcher = ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"] if processes > 1 else ["--cpu"]
        launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes), *launcher]
        arguments = [
            *("--model_name_or_path", str(model), "--task_name", "sst2", "--output_dir", str(out), "--use_cpu"),
            *("--train_file", files[0], "--validation_file", files[1], "--learning_rate", "1e-3"),
            *("--per_device_train_batch_size", str(8 // processes), "--timing_rows", "5", "--timing_repeats", "1"),
        ]
        done = subprocess.run(
            [*launch, str(EXAMPLES / "run_glue.py"), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert done.stdout.count("trade-off, all rows") == 1
        results = json.loads((out / "results.json").read_text())
        assert results["training"]["world_size"] == processes
        tables.append([row for row in read_csv(out / "table.csv") if float(row["threshold"]) in GRID])
    for one, two in zip(*tables, strict=True):
        assert float(one["accuracy"]) == pytest.approx(float(two["accuracy"]), abs=1 / 30 + 1e-9)
        assert float(one["layer_saving"]) == pytest.approx(float(two["layer_saving"]), abs=0.03)
