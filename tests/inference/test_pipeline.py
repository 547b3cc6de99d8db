"""`pipeline("text-classification")`: exits for models that have off-ramps, nothing new for all others."""

import copy
import json
import pickle
import subprocess
import sys

import dill
import pytest
import torch
from conftest import NUM_LAYERS, make_model, make_stock, off_ramp_answers, spread_thresholds
from datasets import Dataset
from transformers import BertTokenizer, TextClassificationPipeline, pipeline
from transformers.pipelines.pt_utils import KeyDataset

from transformers_deebert import EarlyExitTextClassificationPipeline


WORDS = [f"[unused{number}]" for number in range(100)]
WORDS[0], WORDS[1], WORDS[2:5] = "[PAD]", "[UNK]", ["[CLS]", "[SEP]", "[MASK]"]
WORDS[5:] = [f"word{number}" for number in range(5, 100)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizer(str(path), model_max_length=20)


@pytest.fixture(scope="module")
def texts():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 12, (40,), generator=generator).tolist()
    return [
        " ".join(f"word{number}" for number in torch.randint(5, 100, (length,), generator=generator).tolist())
        for length in lengths
    ]


def encode(tokenizer, texts, pad=0):
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    return {"input_ids": torch.where(mask == 1, ids, pad), "attention_mask": mask}


@pytest.fixture
def case(tokenizer, texts):
    """A pipeline of a model, the texts, thresholds at which they leave everywhere, and the layers they leave at."""
    model = make_model(off_ramp_pooling="mean")
    batch = encode(tokenizer, texts)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    output = model(**batch, early_exit_entropy=thresholds)
    assert len(output.exit_layers.unique()) == NUM_LAYERS
    return pipeline("text-classification", model=model, tokenizer=tokenizer), texts, thresholds, output


def layers(results):
    return [result["exit_layer"] for result in results]


def test_every_family(family, tokenizer, texts):
    model = make_model(family)
    pad = model.config.pad_token_id
    pipe = pipeline("text-classification", model=model, tokenizer=tokenizer, batch_size=8)
    assert type(pipe) is EarlyExitTextClassificationPipeline
    batch = encode(tokenizer, texts, pad)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    tokenizer_pad, tokenizer.pad_token = tokenizer.pad_token, WORDS[pad]
    try:
        results = pipe(texts, early_exit_entropy=thresholds)
    finally:
        tokenizer.pad_token = tokenizer_pad
    assert layers(results) == expected.exit_layers.tolist()
    scores = torch.tensor([result["score"] for result in results])
    torch.testing.assert_close(scores, expected.logits.softmax(-1).amax(-1), atol=1e-4, rtol=1e-4)
    assert [result["label"] for result in results] == [
        model.config.id2label[index] for index in expected.logits.argmax(-1).tolist()
    ]


@pytest.mark.parametrize("batch_size", [1, 7, 40])
def test_rows_of_a_batch_exit_on_their_own(case, batch_size):
    pipe, texts, thresholds, output = case
    results = pipe(texts, batch_size=batch_size, early_exit_entropy=thresholds)
    assert layers(results) == output.exit_layers.tolist()
    scores = torch.tensor([result["score"] for result in results])
    torch.testing.assert_close(scores, output.logits.softmax(-1).amax(-1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("task", ["text-classification", "sentiment-analysis"])
def test_when_it_is_made_and_per_call(case, task):
    pipe, texts, thresholds, output = case
    pipe = pipeline(task, model=pipe.model, tokenizer=pipe.tokenizer, early_exit_entropy=thresholds)
    assert layers(pipe(texts)) == output.exit_layers.tolist()
    assert set(layers(pipe(texts, early_exit_entropy=0.0))) == {NUM_LAYERS}
    assert set(layers(pipe(texts, early_exit_entropy=99))) == {1}
    assert set(layers(pipe(texts, exit_layer=3))) == {3}  # in place of the threshold
    assert layers(pipe(texts)) == output.exit_layers.tolist()


def test_the_configuration_decides_otherwise(case):
    pipe, texts, thresholds, output = case
    assert set(layers(pipe(texts))) == {NUM_LAYERS}
    pipe.model.config.early_exit_entropy = thresholds
    pipe.model.config.output_off_ramp_logits = True
    assert layers(pipe(texts, batch_size=7)) == output.exit_layers.tolist()


def test_kinds_of_input(case):
    pipe, texts, thresholds, output = case
    expected = output.exit_layers.tolist()
    settings = {"early_exit_entropy": thresholds, "batch_size": 8}
    rows = Dataset.from_dict({"text": texts})
    assert layers(pipe(KeyDataset(rows, "text"), **settings)) == expected
    assert layers(pipe((text for text in texts), **settings)) == expected
    mapped = rows.map(lambda batch: {"answer": pipe(batch["text"], **settings)}, batched=True)
    assert layers(mapped["answer"]) == expected
    (one,) = pipe(texts[0], early_exit_entropy=thresholds)
    assert one["exit_layer"] == expected[0]


def test_pairs(case, tokenizer):
    pipe, texts, _, _ = case
    model = pipe.model
    pairs = [{"text": a, "text_pair": b} for a, b in zip(texts[:20:2], texts[1:20:2], strict=True)]
    encoded = tokenizer(texts[:20:2], texts[1:20:2], padding=True, truncation=True, return_tensors="pt")
    full = torch.stack(model(**encoded, output_off_ramp_logits=True).off_ramp_logits, 1)
    thresholds = spread_thresholds(-(full.softmax(-1) * full.log_softmax(-1)).sum(-1))
    expected = model(**encoded, early_exit_entropy=thresholds).exit_layers.tolist()
    assert len(set(expected)) >= 3
    settings = {"early_exit_entropy": thresholds, "truncation": True}
    assert [pipe(pair, **settings)["exit_layer"] for pair in pairs] == expected
    assert layers(pipe(pairs, **settings)) == expected


def test_top_k_and_functions(case):
    pipe, texts, thresholds, output = case
    for top_k, count in ((None, 3), (2, 2), (1, 1)):
        results = pipe(texts, early_exit_entropy=thresholds, top_k=top_k)
        assert [len(result) for result in results] == [count] * len(texts)
        assert [{one["exit_layer"] for one in result} for result in results] == [
            {layer} for layer in output.exit_layers.tolist()
        ]
    for name, function in (("none", lambda x: x), ("sigmoid", torch.sigmoid), ("softmax", lambda x: x.softmax(-1))):
        results = pipe(texts, early_exit_entropy=thresholds, function_to_apply=name)
        scores = torch.tensor([result["score"] for result in results])
        torch.testing.assert_close(scores, function(output.logits).amax(-1), atol=1e-4, rtol=1e-4)


def test_tokenizer_arguments_reach_the_tokenizer(case):
    pipe, texts, _, _ = case
    long = " ".join(texts)
    with pytest.raises(ValueError, match="position table"):
        pipe(long, early_exit_entropy=99)
    assert pipe(long, early_exit_entropy=99, truncation=True, max_length=10)[0]["exit_layer"] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_exit_entropy": -1.0}, "`early_exit_entropy`"),
        ({"early_exit_entropy": float("nan")}, "`early_exit_entropy`"),
        ({"early_exit_entropy": "0.4"}, "`early_exit_entropy`"),
        ({"early_exit_entropy": [0.1]}, "1 thresholds.*3 off-ramps"),
        ({"exit_layer": 9}, "`exit_layer`"),
        ({"exit_layer": 2, "early_exit_entropy": 0.4}, "exclude each other"),
        ({"early_exit_threshold": 9.0}, "`early_exit_threshold`.*`early_exit_entropy`"),
        ({"truncate": True}, "`truncate`.*`truncation`"),
        ({"whatever": 1}, "`whatever`.*leave it out"),
        ({"kwargs": {}}, "`kwargs`.*no argument"),
    ],
)
def test_bad_arguments(case, settings, message):
    pipe, texts, _, _ = case
    with pytest.raises(ValueError, match=message):
        pipe(texts, **settings)
    with pytest.raises(ValueError, match=message):
        pipeline("text-classification", model=pipe.model, tokenizer=pipe.tokenizer, **settings)


def test_other_models_options_are_the_tokenizers(case):
    """As in the stock pipeline: a tokenizer may know what its signature does not name."""
    pipe, texts, _, _ = case
    stock = make_stock(pipe.model)
    other = pipeline("text-classification", model=stock, tokenizer=pipe.tokenizer)
    assert type(other) is EarlyExitTextClassificationPipeline
    unknown = {"whatever": 1}
    assert other._sanitize_parameters(**unknown)[0] == unknown
    assert [set(one) for one in other(texts[:1])] == [{"label", "score"}]


@pytest.mark.parametrize("settings", [{"early_exit_entropy": 0.4}, {"exit_layer": 2}, {"early_exit_entropy": 0}])
def test_models_without_off_ramps_refuse(case, settings):
    pipe, texts, _, _ = case
    stock = make_stock(pipe.model)
    with pytest.raises(ValueError, match=rf"`{next(iter(settings))}`.*BertForSequenceClassification has no off-ramps"):
        pipeline("text-classification", model=stock, tokenizer=pipe.tokenizer, **settings)
    with pytest.raises(ValueError, match="no off-ramps"):
        pipeline("text-classification", model=stock, tokenizer=pipe.tokenizer)(texts, **settings)


STOCK = """
import json, sys, warnings
warnings.simplefilter("error", FutureWarning)
if sys.argv[2] == "with":
    import transformers_deebert
from transformers import pipeline, AutoTokenizer, BertForSequenceClassification
model = BertForSequenceClassification.from_pretrained(sys.argv[1])
pipe = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(sys.argv[1]))
texts = json.loads(sys.argv[3])
print(json.dumps([
    pipe(texts), pipe(texts, batch_size=4), pipe(texts[0]), pipe(texts[:3], top_k=None), pipe(texts[:2], top_k=1),
    pipe({"text": texts[0], "text_pair": texts[1]}, truncation=True), pipe(texts[:3], function_to_apply="none"),
]))
"""


@pytest.mark.slow
def test_a_stock_model_before_and_after_the_import(case, tmp_path):
    """Equal results, and not a word more on the way."""
    pipe, texts, _, _ = case
    make_stock(pipe.model).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    pipe.tokenizer.save_pretrained(tmp_path)
    answers = [
        subprocess.run(
            [sys.executable, "-c", STOCK, str(tmp_path), how, json.dumps(texts)], capture_output=True, text=True
        )
        for how in ("without", "with")
    ]
    assert answers[0].stdout.startswith("[[{"), answers[0].stderr
    assert answers[0].stdout == answers[1].stdout

    def words(text):
        return [line for line in text.splitlines() if "Loading weights" not in line]

    assert words(answers[0].stderr) == words(answers[1].stderr)


def test_evaluator(case, tmp_path):
    """evaluate takes a model or a path, which exit at the configuration's threshold."""
    evaluate = pytest.importorskip("evaluate")
    pipe, texts, thresholds, output = case
    model = pipe.model
    model.config.early_exit_entropy = thresholds
    answers = output.logits.argmax(-1)
    labels = torch.where(torch.arange(len(texts)) % 4 == 0, (answers + 1) % 3, answers)
    rows = Dataset.from_dict({"text": texts, "label": labels.tolist()})
    model.save_pretrained(tmp_path)
    pipe.tokenizer.save_pretrained(tmp_path)
    judge = evaluate.evaluator("text-classification")
    metric = Accuracy()
    mapping = {f"LABEL_{index}": index for index in range(3)}
    for what in ({"model_or_pipeline": model, "tokenizer": pipe.tokenizer}, {"model_or_pipeline": str(tmp_path)}):
        result = judge.compute(data=rows, metric=metric, label_mapping=mapping, **what)
        assert result["accuracy"] == pytest.approx(0.75)


def Accuracy():  # noqa: N802
    """evaluate's own metrics are fetched from the Hub; this one is of its classes all the same."""
    import datasets
    import evaluate

    class _Accuracy(evaluate.EvaluationModule):
        def _info(self):
            features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("int32")))
            return evaluate.MetricInfo(description="", citation="", features=features)

        def _compute(self, predictions, references):
            return {"accuracy": sum(a == b for a, b in zip(predictions, references, strict=True)) / len(references)}

    return _Accuracy()


@pytest.mark.parametrize("what", ["early exit", "stock"])
def test_gradio(case, what):
    """Built, not served: gradio 6.31 looks for a module that transformers 5 has no more when it calls any pipeline."""
    gradio = pytest.importorskip("gradio")
    pipe, *_ = case
    if what == "stock":
        pipe = pipeline("text-classification", model=make_stock(pipe.model), tokenizer=pipe.tokenizer)
    interface = gradio.Interface.from_pipeline(pipe)
    assert [type(part).__name__ for part in interface.input_components] == ["Textbox"]
    assert [type(part).__name__ for part in interface.output_components] == ["Label"]


@pytest.mark.parametrize(
    "module", [pytest.param(pickle, id="pickle"), pytest.param(dill, id="dill", marks=pytest.mark.slow)]
)
def test_pickling(case, module):
    """In a process that has imported nothing yet, too."""
    pipe, texts, thresholds, output = case
    text = module.dumps(pipe)
    assert layers(module.loads(text)(texts, early_exit_entropy=thresholds)) == output.exit_layers.tolist()
    code = f"""
import {module.__name__}, sys
pipe = {module.__name__}.load(sys.stdin.buffer)
print([row["exit_layer"] for row in pipe({texts!r}, early_exit_entropy={thresholds!r})])
"""
    process = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True)
    assert process.stdout.decode().splitlines()[-1] == str(output.exit_layers.tolist()), process.stderr.decode()


class Mine(EarlyExitTextClassificationPipeline):
    def postprocess(self, *args, **kwargs):
        return "mine"


def test_a_class_of_ones_own_stays_what_it_is(case):
    pipe, texts, *_ = case
    mine = Mine(model=pipe.model, tokenizer=pipe.tokenizer)
    for copied in (copy.deepcopy(mine), pickle.loads(pickle.dumps(mine))):
        assert type(copied) is Mine
        assert copied(texts[0]) == ["mine"]


def test_a_model_that_was_just_trained(case):
    pipe, texts, thresholds, output = case
    pipe = pipeline("text-classification", model=pipe.model.train(), tokenizer=pipe.tokenizer)
    assert layers(pipe(texts, early_exit_entropy=thresholds)) == output.exit_layers.tolist()
    pipe.model.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        pipe(texts)


def test_a_peft_model(case):
    peft = pytest.importorskip("peft")
    pipe, texts, thresholds, output = case
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)
    wrapped = peft.get_peft_model(pipe.model, config)
    pipe = pipeline("text-classification", model=wrapped, tokenizer=pipe.tokenizer, early_exit_entropy=thresholds)
    assert layers(pipe(texts)) == output.exit_layers.tolist()


def test_it_is_a_text_classification_pipeline(case):
    pipe, *_ = case
    assert isinstance(pipe, TextClassificationPipeline)
    assert pipe.task == "text-classification"
