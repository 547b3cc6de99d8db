"""Many texts at full batch size: the answers of each row alone, in any order, from any source."""

import itertools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import pyarrow
import pytest
import torch
from conftest import (
    LENGTHS,
    NUM_LAYERS,
    layers_of,
    make_batch,
    make_model,
    off_ramp_answers,
    spread_thresholds,
)
from datasets import Dataset
from predictor_task import SIZES, make_rows
from test_pipeline import WORDS
from transformers import BertTokenizer, pipeline

from transformers_deebert import EarlyExitPredictor, ExitCriterion
from transformers_deebert.inference.scheduler import Scheduler


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizer(str(path), model_max_length=20)


def make_texts(count, longest=12, seed=3):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [
        " ".join(f"word{number}" for number in torch.randint(5, 100, (length,), generator=generator).tolist())
        for length in lengths
    ]


TEXTS = make_texts(60)


def alone(model, rows, **settings):
    """Logits and exit layers of rows that run one by one."""
    outputs = [
        model(**{name: torch.tensor([values]) for name, values in row.items()}, **settings, return_dict=True)
        for row in rows
    ]
    return torch.cat([output.logits for output in outputs]), torch.cat([output.exit_layers for output in outputs])


def spread(model, rows):
    """Thresholds at which rows leave everywhere; no entropy is near one."""
    batch = {"input_ids": [], "attention_mask": []}
    width = max(len(row["input_ids"]) for row in rows)
    for row in rows:
        missing = width - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [model.config.pad_token_id] * missing)
        batch["attention_mask"].append(row.get("attention_mask", [1] * len(row["input_ids"])) + [0] * missing)
    return spread_thresholds(off_ramp_answers(model, **{name: torch.tensor(rows) for name, rows in batch.items()})[1])


def assert_same(answers, expected):
    logits, exit_layers = expected
    torch.testing.assert_close(answers.logits, logits, atol=1e-4, rtol=1e-4)
    assert answers.exit_layers.tolist() == exit_layers.tolist()


@pytest.fixture
def case(tokenizer):
    """A model, its predictor, encoded texts, thresholds at which they leave everywhere, and what they get alone."""
    model = make_model(off_ramp_pooling="mean")
    rows = [dict(tokenizer(text)) for text in TEXTS]
    thresholds = spread(model, rows)
    expected = alone(model, rows, early_exit_entropy=thresholds)
    assert len(expected[1].unique()) == NUM_LAYERS
    return model, EarlyExitPredictor(model, tokenizer, batch_size=8, window=3), rows, thresholds, expected


# ---- the answers


@pytest.mark.slow_but_for("albert", "bert", "deberta-v2", "modernbert")
def test_every_family(family):
    """Rows of all lengths, padded on either side or not at all, at every way to set exits."""
    model = make_model(family, off_ramp_pooling="mean")
    rows = []
    for number, side in enumerate(("right", "left", "right")):
        batch = make_batch(family, LENGTHS, width=14, side=side, seed=number)
        rows += [{name: values[row].tolist() for name, values in batch.items()} for row in range(len(LENGTHS))]
    rows[-12:] = [{"input_ids": row["input_ids"][: sum(row["attention_mask"])]} for row in rows[-12:]]
    tight = [
        {"input_ids": [token for token, kept in zip(row["input_ids"], row["attention_mask"], strict=True) if kept]}
        if "attention_mask" in row
        else row
        for row in rows
    ]
    thresholds = spread(model, tight)
    predictor = EarlyExitPredictor(model, batch_size=5, window=2)
    for settings in (
        {"early_exit_entropy": thresholds},
        {"early_exit_entropy": 0.0},
        {"early_exit_entropy": 99.0},
        {"early_exit_entropy": [0.0, thresholds[1], 0.0]},
        {"exit_layer": 1},
        {"exit_layer": 3},
        {},
    ):
        assert_same(predictor.predict(rows, **settings), alone(model, rows, **settings))
    answers = predictor.predict(rows, early_exit_entropy=thresholds)
    assert len(answers.exit_layers.unique()) >= 3


def test_a_scalar_threshold(case):
    model, predictor, rows, thresholds, _ = case
    settings = {"early_exit_entropy": thresholds[0]}
    expected = alone(model, rows, **settings)
    assert len(expected[1].unique()) >= 3
    assert_same(predictor.predict(TEXTS, **settings), expected)


def test_defaults_of_the_configuration(case):
    model, predictor, rows, thresholds, expected = case
    model.config.output_off_ramp_logits = True  # answers are the same, and rows leave all the same
    model.config.early_exit_entropy = thresholds
    assert_same(predictor.predict(TEXTS), expected)
    assert_same(predictor.predict(TEXTS, exit_layer=2), alone(model, rows, exit_layer=2))
    model.config.off_ramp_temperatures = [0.5, 2.0, 0.7]
    scaled = alone(model, rows)
    assert not torch.equal(scaled[1], expected[1])
    assert_same(predictor.predict(TEXTS), scaled)
    model.config.early_exit_entropy, model.config.exit_layer = None, 2
    assert_same(predictor.predict(TEXTS), alone(model, rows))


@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("window", [1, 5])
def test_batch_sizes_and_windows(case, batch_size, window):
    model, predictor, _, thresholds, expected = case
    predictor = EarlyExitPredictor(model, predictor.tokenizer, batch_size=batch_size, window=window)
    assert_same(predictor.predict(TEXTS, early_exit_entropy=thresholds), expected)
    assert_same(predictor.predict(TEXTS, batch_size=3, early_exit_entropy=thresholds), expected)


def test_masks_with_holes(case):
    model, predictor, rows, _, _ = case
    rows = [dict(row, attention_mask=[*row["attention_mask"]]) for row in rows]
    for number, row in enumerate(rows):
        row["attention_mask"][1 + number % (len(row["input_ids"]) - 2)] = 0
    settings = {"early_exit_entropy": 0.6}
    expected = alone(model, rows, **settings)
    assert len(expected[1].unique()) >= 3
    assert not torch.allclose(expected[0], alone(model, [{"input_ids": r["input_ids"]} for r in rows], **settings)[0])
    assert_same(predictor.predict(rows, **settings), expected)


def test_positions_go_with_their_rows():
    model = make_model("modernbert", off_ramp_pooling="mean")
    batch = make_batch("modernbert", side="left")
    rows = [{name: values[row].tolist() for name, values in batch.items()} for row in range(len(LENGTHS))]
    for row in rows:
        row["position_ids"] = [2 * place for place in range(len(row["input_ids"]))]
    settings = {"early_exit_entropy": 0.05}
    expected = alone(model, rows, **settings)
    assert len(expected[1].unique()) >= 2
    assert_same(EarlyExitPredictor(model, batch_size=4).predict(rows, **settings), expected)


def agreement(candidate):
    """0 where two exits in a row agree: needs a memory that stays with its row."""
    answers = candidate.logits.argmax(-1)
    agrees = answers == candidate.memory.get("answers", torch.full_like(answers, -1))
    candidate.memory["answers"] = answers
    return 1.0 - agrees.float()


def test_the_memory_of_a_score_travels(case):
    model, predictor, rows, *_ = case
    answers = [
        alone(model, rows, exit_layer=layer)[0].argmax(-1).tolist() for layer in range(1, NUM_LAYERS + 1)
    ]  # (layers, rows)
    expected = [
        next((layer for layer in range(2, NUM_LAYERS) if said[layer - 1] == said[layer - 2]), NUM_LAYERS)
        for said in zip(*answers, strict=True)
    ]
    assert len(set(expected)) == 3
    for score in (agreement, "disagreement"):
        criterion = ExitCriterion(score, 0.5)
        assert predictor.predict(TEXTS, exit_criterion=criterion).exit_layers.tolist() == expected


def test_logits_that_are_not_finite_never_leave_early(case):
    model, predictor, *_ = case
    model.base_model.off_ramps[0].classifier.bias[0] = torch.nan
    model.base_model.off_ramps[1].classifier.bias[0] = torch.inf
    assert set(predictor.predict(TEXTS, early_exit_entropy=99.0).exit_layers.tolist()) == {3}


@pytest.mark.parametrize("problem", [None, "multi_label_classification", "regression"])
def test_labels_and_scores_are_the_pipelines(tokenizer, problem):
    model = make_model(problem_type=problem, num_labels=1 if problem == "regression" else 3)
    results = pipeline("text-classification", model=model, tokenizer=tokenizer)(TEXTS[:9], exit_layer=3)
    answers = EarlyExitPredictor(model, tokenizer, batch_size=4).predict(TEXTS[:9], exit_layer=3)
    assert answers.labels == [result["label"] for result in results]
    assert answers.scores.tolist() == pytest.approx([result["score"] for result in results], abs=1e-5)
    for index, answer in enumerate(answers):
        assert (answer.index, answer.label, answer.exit_layer) == (index, answers.labels[index], 3)
        assert answer.label == model.config.id2label[answer.label_id]
        assert answer.score == pytest.approx(results[index]["score"], abs=1e-5)
        assert torch.equal(answer.logits, answers.logits[index])
    assert answers[-1].index == 8
    with pytest.raises(IndexError):
        answers[9]


# ---- where they come from


def test_sources(case, tokenizer):
    model, predictor, rows, thresholds, expected = case
    dataset = Dataset.from_dict({"sentence": TEXTS, "label": [0] * len(TEXTS)})
    tensors = Dataset.from_list(rows).with_format("torch")
    for items, settings in (
        (iter(TEXTS), {}),
        (({"text": text} for text in TEXTS), {}),
        (dataset, {"text_column": "sentence"}),
        (dataset.to_iterable_dataset(), {"text_column": "sentence"}),
        (dataset["sentence"], {}),
        (rows, {}),
        ([tokenizer(text) for text in TEXTS], {}),
        (tensors, {}),
        ([dict(row, labels=3, text="not this") for row in rows], {}),
        ([text if number % 2 else row for number, (text, row) in enumerate(zip(TEXTS, rows, strict=True))], {}),
    ):
        assert_same(predictor.predict(items, early_exit_entropy=thresholds, **settings), expected)
    assert len(predictor.predict([])) == 0
    assert list(predictor.stream(iter([]))) == []


def test_pairs(case, tokenizer):
    model, predictor, *_ = case
    pairs = list(zip(make_texts(20, 5, seed=1), make_texts(20, 5, seed=2), strict=True))
    rows = [dict(tokenizer(*pair)) for pair in pairs]
    expected = alone(model, rows, early_exit_entropy=0.6)
    assert len(expected[1].unique()) >= 2
    assert max(max(row["token_type_ids"]) for row in rows) == 1
    dataset = Dataset.from_dict({"first": [pair[0] for pair in pairs], "second": [pair[1] for pair in pairs]})
    for items, settings in (
        (pairs, {}),
        ([list(pair) for pair in pairs], {}),
        ([{"text": first, "text_pair": second} for first, second in pairs], {}),
        (dataset, {"text_column": ("first", "second")}),
    ):
        assert_same(predictor.predict(items, early_exit_entropy=0.6, **settings), expected)
    # Single texts and pairs in one input.
    mixed = predictor.predict([pairs[0], TEXTS[0], pairs[1]], early_exit_entropy=0.6)
    torch.testing.assert_close(mixed.logits[[0, 2]], expected[0][:2], atol=1e-4, rtol=1e-4)


def test_texts_are_cut(case, tokenizer):
    model, *_ = case
    long = make_texts(9, 60, seed=5)
    rows = [dict(tokenizer(text, truncation=True, max_length=10)) for text in long]
    tokenizer(TEXTS)
    predictor = EarlyExitPredictor(model, tokenizer, max_length=10)
    assert_same(predictor.predict(long, early_exit_entropy=0.6), alone(model, rows, early_exit_entropy=0.6))
    assert tokenizer.backend_tokenizer.truncation is None  # the state of the tokenizer itself is as it was


def test_tokenizers_that_pad_on_the_left(case, tokenizer):
    model, predictor, _, thresholds, expected = case
    predictor.tokenizer.padding_side = "left"
    assert_same(predictor.predict(TEXTS, early_exit_entropy=thresholds), expected)


def test_other_embeddings(case):
    """What the model knows is what its embeddings hold, whatever the configuration says."""
    model, predictor, rows, thresholds, expected = case
    table = model.get_input_embeddings()
    larger = torch.nn.Embedding(120, table.embedding_dim, padding_idx=table.padding_idx)
    larger.weight[:100] = table.weight
    model.set_input_embeddings(larger)
    assert model.config.vocab_size == 100
    assert_same(predictor.predict(TEXTS, early_exit_entropy=thresholds), expected)
    unseen = [{"input_ids": [2, 119, 3]}]
    assert_same(predictor.predict(unseen, exit_layer=1), alone(model, unseen, exit_layer=1))
    with pytest.raises(ValueError, match=r"between 2 and 120, but the model knows 0 … 119"):
        predictor.predict([{"input_ids": [2, 120, 3]}])
    answers = predictor.predict(
        [{"input_ids": [2, 9, 3], "token_type_ids": [0, 1, kind]} for kind in (1, 2)], errors="return"
    )
    assert [answer.error is None for answer in answers] == [True, False]
    assert "its `token_type_ids` lie between 0 and 2" in str(answers[1].error)
    model.set_input_embeddings(torch.nn.Embedding(50, table.embedding_dim))
    with pytest.raises(ValueError, match=r"knows 0 … 49"):
        predictor.predict([{"input_ids": [2, 99, 3]}])


def test_a_peft_model(case):
    peft = pytest.importorskip("peft")
    model, predictor, _, thresholds, expected = case
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2)).eval()
    predictor = EarlyExitPredictor(wrapped, predictor.tokenizer)
    assert_same(predictor.predict(TEXTS, early_exit_entropy=thresholds), expected)


# ---- the order of work


class Rows:
    """Counts the rows of each batch that each layer runs."""

    def __init__(self, model, seen=None):
        self.batches = [[] for _ in layers_of(model)]
        for number, layer in enumerate(layers_of(model)):
            layer.register_forward_pre_hook(self.hook(number, seen))

    def hook(self, number, seen):
        def count(module, inputs):
            self.batches[number].append(len(inputs[0]))
            if seen is not None:
                seen(len(inputs[0]))

        return count


def test_deep_layers_run_full_batches(tokenizer):
    texts = make_texts(200, seed=7)
    model = make_model(off_ramp_pooling="mean")
    rows = [dict(tokenizer(text)) for text in texts]
    thresholds = spread(model, rows)
    exits = alone(model, rows, early_exit_entropy=thresholds)[1]
    counts = Rows(model)
    predictor = EarlyExitPredictor(model, tokenizer, batch_size=16)
    predictor.predict(texts, early_exit_entropy=thresholds)
    for layer, batches in enumerate(counts.batches):
        assert sum(batches) == (exits > layer).sum()  # every row once, none after it left
        assert all(rows == 16 for rows in batches[:-1])
        assert len(batches) == -(-sum(batches) // 16)  # as few as can be
    assert len(counts.batches[-1]) >= 3

    loop = Rows(model)
    for start in range(0, 200, 16):
        batch = tokenizer(texts[start : start + 16], padding=True, return_tensors="pt")
        model(**batch, early_exit_entropy=thresholds)
    assert sum(loop.batches[-1]) / len(loop.batches[-1]) < 0.6 * 16


def scheduler_and_batches(case, batch_size, rows):
    model, predictor, _, thresholds, _ = case
    plan, _, reader = predictor.make_settings(TEXTS, None, {"early_exit_entropy": thresholds}, None, "raise")
    windows = reader.windows(enumerate(rows), batch_size, 4, lambda: False)
    return Scheduler(model, plan, batch_size, 10**9), (batch for window in windows for batch in window.batches)


@pytest.mark.parametrize(("window", "sizes"), [(16, [4, 32, 32, 12]), (3, [2, 6, 6, 6]), (1, [2, 2, 2, 2])])
def test_the_first_window_is_small(case, window, sizes):
    """It is read while the model waits; the others are read while it works."""
    _, predictor, rows, *_ = case
    *_, reader = predictor.make_settings(TEXTS, None, {}, None, "raise")
    items = enumerate((rows * 2)[:80])
    windows = itertools.islice(reader.windows(items, 2, window, lambda: False), 4)
    assert [sum(len(batch) for batch in read.batches) for read in windows] == sizes


def test_rows_active_are_bounded(case):
    scheduler, batches = scheduler_and_batches(case, 8, TEXTS * 5)
    most = []
    Rows(case[0], lambda rows: most.append(scheduler.active + rows))
    answered = [index for part in scheduler.run(batches) for index in part.indices]
    assert sorted(answered) == list(range(300))
    assert 2 * 8 < max(most) <= NUM_LAYERS * 8
    assert scheduler.active == 0


def test_neighbours_are_alike(case):
    """Also where two windows meet, so that joined rows need little padding."""
    _, batches = scheduler_and_batches(case, 8, make_texts(320, 17))
    lengths = [row.length for batch in batches for row in batch]
    assert max(lengths) - min(lengths) > 10
    assert max(abs(one - other) for one, other in itertools.pairwise(lengths)) <= 3


def test_nobody_waits_for_ever(case):
    """One row goes on where no other does: its answer, and all behind it, come while the input goes on."""
    model, predictor, rows, _, _ = case
    _, entropies = off_ramp_answers(
        model, **{name: torch.tensor(values) for name, values in predictor.tokenizer(TEXTS, padding=True).items()}
    )
    stubborn, easy = int(entropies[:, 0].argmax()), int(entropies[:, 0].argmin())
    thresholds = [float(entropies[:, 0].max()) - 1e-4, 0.0, 0.0]
    read = itertools.count()
    items = (TEXTS[easy if next(read) else stubborn] for _ in range(100_000))
    first = next(iter(predictor.stream(items, early_exit_entropy=thresholds)))
    assert (first.index, first.exit_layer) == (0, NUM_LAYERS)
    assert next(read) <= (NUM_LAYERS + 3) * predictor.window * predictor.batch_size


# ---- streams


def test_streams(case):
    _, predictor, _, thresholds, expected = case
    endless = itertools.cycle(TEXTS)
    answers = list(itertools.islice(predictor.stream(endless, early_exit_entropy=thresholds), 300))
    assert [answer.index for answer in answers] == list(range(300))
    assert [answer.exit_layer for answer in answers] == (expected[1].tolist() * 5)[:300]
    found = list(predictor.stream(iter(TEXTS), in_order=False, early_exit_entropy=thresholds))
    indices = [answer.index for answer in found]
    assert sorted(indices) == list(range(len(TEXTS))) != indices
    assert [answer.exit_layer for answer in found] == expected[1][indices].tolist()


def readers():
    return [thread for thread in threading.enumerate() if thread.name == "early-exit-tokenizing"]


def test_leaving_a_stream_ends_its_thread(case):
    _, predictor, _, thresholds, _ = case
    assert not readers()
    stream = predictor.stream(itertools.cycle(TEXTS), early_exit_entropy=thresholds)
    assert not readers()  # nothing begins before the first answer is asked for
    next(stream)
    assert len(readers()) == 1
    stream.close()
    assert not readers()
    for _ in predictor.stream(itertools.cycle(TEXTS), early_exit_entropy=thresholds):
        break
    assert not readers()
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        for _ in predictor.stream(itertools.cycle(TEXTS), early_exit_entropy=thresholds):
            raise KeyboardInterrupt
    assert not readers()
    bad = [*TEXTS[:30], None]
    with pytest.raises(ValueError, match="Sample 30") as of_predict:
        predictor.predict(itertools.chain(bad, itertools.cycle(TEXTS)))
    with pytest.raises(ValueError, match="Sample 30") as of_stream:
        list(predictor.stream(itertools.chain(bad, itertools.cycle(TEXTS))))
    assert not readers()  # although the errors hold the frames that they came through
    assert of_predict.value
    assert of_stream.value
    assert not torch.is_grad_enabled()


@pytest.mark.gradients
def test_autograd_is_as_it_was(case):
    _, predictor, _, thresholds, _ = case
    for answer in predictor.stream(TEXTS, early_exit_entropy=thresholds):
        assert torch.is_grad_enabled()
        assert not answer.logits.requires_grad


def test_an_iterator_that_waits_does_not_hold_up_who_leaves(case):
    _, predictor, _, thresholds, _ = case
    waiting, gate = threading.Event(), threading.Event()

    def items():
        yield from TEXTS
        waiting.set()
        gate.wait()

    stream = predictor.stream(items(), early_exit_entropy=thresholds)
    next(stream)
    assert waiting.wait(60)
    stream.close()
    assert len(readers()) == 1  # in the iterator, where nobody can reach it
    gate.set()
    readers_left = readers()
    for thread in readers_left:
        thread.join()
    assert not readers()


def test_threads_share_a_model(case):
    model, predictor, rows, thresholds, expected = case
    settings = [{"early_exit_entropy": value} for value in (thresholds, 0.0, 99.0, 0.6)]
    wanted = [expected, *(alone(model, rows, **one) for one in settings[1:])]

    def work(one):
        # Each with its own cut, too: the tokenizer's state is not shared.
        mine = EarlyExitPredictor(model, predictor.tokenizer, batch_size=4, max_length=one)
        return [mine.predict(TEXTS, **settings[one - 17]) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(work, range(17, 21)))
    for answers, one in zip(results, wanted, strict=True):
        for answer in answers:
            assert_same(answer, one)


def test_exit_counts(case):
    _, predictor, _, thresholds, expected = case
    assert predictor.exit_counts() == (0,) * NUM_LAYERS
    counts = torch.bincount(expected[1], minlength=NUM_LAYERS + 1)[1:]
    predictor.predict(TEXTS, early_exit_entropy=thresholds)
    assert predictor.exit_counts() == tuple(counts.tolist())
    list(predictor.stream([*TEXTS, None], early_exit_entropy=thresholds, errors="return"))
    assert predictor.exit_counts(reset=True) == tuple((2 * counts).tolist())
    assert predictor.exit_counts() == (0,) * NUM_LAYERS


# ---- what goes wrong

BAD = {
    "None": None,
    "a number": 3,
    "NaN": float("nan"),
    "bytes": b"text",
    "a triple": ("a", "b", "c"),
    "a list of one": ["word7"],
    "a pair with None": ("a", None),
    "a mapping without text": {"sentence": "word7"},
    "a mapping with None": {"text": None},
    "too long": "word7 " * 19,
    "half a character": "\ud800",
    "no tokens": {"input_ids": []},
    "an unknown token": {"input_ids": [5, 100]},
    "a negative token": {"input_ids": [5, -1]},
    "fractions": {"input_ids": [5.0, 7.0]},
    "NaN tokens": {"input_ids": [float("nan")]},
    "a batch": {"input_ids": [[5, 7]]},
    "a missing token": {"input_ids": [5, None]},
    "a short mask": {"input_ids": [5, 7], "attention_mask": [1]},
    "an empty mask": {"input_ids": [5, 7], "attention_mask": [0, 0]},
    "a mask that is added": {"input_ids": [5, 7], "attention_mask": [0.0, -1e9]},
    "other columns": {"input_ids": [5, 7], "position_ids": [0, 1]},
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_bad_samples_are_named_and_cost_no_other(case, bad):
    _, predictor, _, thresholds, expected = case
    items = [*TEXTS[:37], bad, *TEXTS[37:]]
    others = [*range(37), *range(38, 61)]
    with pytest.raises(ValueError, match=r"^Sample 37 of the input cannot be classified: "):
        predictor.predict(items, early_exit_entropy=thresholds)
    answers = predictor.predict(items, early_exit_entropy=thresholds, errors="return")
    assert list(answers.errors) == [37]
    assert answers[37].error is answers.errors[37]
    assert (answers[37].label, answers[37].label_id, answers[37].exit_layer) == (None, -1, -1)
    assert answers[37].logits.isnan().all()
    assert answers.labels[37] is None
    torch.testing.assert_close(answers.logits[others], expected[0], atol=1e-4, rtol=1e-4)
    assert answers.exit_layers[others].tolist() == expected[1].tolist()
    before = []
    with pytest.raises(ValueError, match="Sample 37"):  # noqa: PT012
        for answer in predictor.stream(iter(items), early_exit_entropy=thresholds):
            before.append(answer.index)
    assert before == list(range(37))


def test_an_error_of_the_iterator_comes_last(case):
    _, predictor, _, thresholds, _ = case

    def items():
        yield from TEXTS
        raise OSError("the disk is gone")

    seen = []
    with pytest.raises(OSError, match="the disk is gone"):  # noqa: PT012
        for answer in predictor.stream(items(), early_exit_entropy=thresholds):
            seen.append(answer.index)
    assert seen == list(range(len(TEXTS)))


def test_a_failure_of_the_model_names_its_batch(case):
    model, predictor, _, thresholds, expected = case
    calls = itertools.count()

    def fail(module, inputs):
        if next(calls) == 1:
            raise MemoryError("no room")

    handle = layers_of(model)[2].register_forward_pre_hook(fail)
    answers = predictor.predict(TEXTS, early_exit_entropy=thresholds, errors="return")
    failed = list(answers.errors)
    assert 0 < len(failed) <= 8
    assert (expected[1][failed] > 2).all()
    assert {str(error) for error in answers.errors.values()} == {
        f"The model failed in layer 3 on the samples {failed} of the input: no room"
    }
    others = [index for index in range(len(TEXTS)) if index not in failed]
    assert answers.exit_layers[others].tolist() == expected[1][others].tolist()
    calls = itertools.count()
    with pytest.raises(RuntimeError, match=r"layer 3 on the samples \[.*no room"):
        predictor.predict(TEXTS, early_exit_entropy=thresholds)
    handle.remove()
    assert_same(predictor.predict(TEXTS, early_exit_entropy=thresholds), expected)


def test_a_model_in_training_mode(case):
    model, predictor, *_ = case
    model.train()
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        predictor.predict(TEXTS)
    with pytest.raises(ValueError, match=r"training mode.*model\.eval\(\)"):
        predictor.stream(TEXTS)
    assert model.training


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": "one text"}, "`items` must be a list.*'one text'"),
        ({"items": {"text": TEXTS}}, "`items` must be a list"),
        ({"items": None}, "`items` must be a list.*None"),
        ({"items": 3}, "`items` must be a list"),
        ({"batch_size": 0}, "`batch_size` must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, "`batch_size`"),
        ({"batch_size": float("nan")}, "`batch_size`"),
        ({"early_exit_entropy": float("nan")}, "`early_exit_entropy` must be finite"),
        ({"early_exit_entropy": [0.1]}, "`early_exit_entropy` has 1 thresholds"),
        ({"exit_layer": 9}, "`exit_layer`"),
        ({"exit_layer": 2, "early_exit_entropy": 0.1}, "exclude each other"),
        ({"text_column": ()}, "`text_column`"),
        ({"text_column": 3}, "`text_column`"),
        ({"errors": "ignore"}, '`errors` must be "raise" or "return"'),
    ],
)
def test_bad_arguments(case, settings, message):
    _, predictor, *_ = case
    for call in (predictor.predict, predictor.stream):
        with pytest.raises(ValueError, match=message):
            call(**{"items": TEXTS} | settings)


def test_tables(case):
    _, predictor, *_ = case
    expected = predictor.predict(TEXTS)
    table = pandas.DataFrame({"number": range(len(TEXTS)), "text": TEXTS})
    assert torch.equal(predictor.predict(table).logits, expected.logits)
    assert [one.label for one in predictor.stream(table)] == expected.labels
    with pytest.raises(ValueError, match="`items` is a table.*to_pylist"):
        predictor.predict(pyarrow.table({"text": TEXTS}))
    with pytest.raises(ValueError, match=r"mapping of \['sentence'\].*`text_column`"):
        predictor.predict(pandas.DataFrame({"sentence": TEXTS}))


def test_bad_predictors(case, tokenizer):
    model, *_ = case
    for settings, message in (
        ({"batch_size": 0}, "`batch_size`"),
        ({"window": 0}, "`window`"),
        ({"max_length": -1}, "`max_length`"),
        ({"max_length": 21}, "`max_length` is 21, but the position table of this model holds 20"),
    ):
        with pytest.raises(ValueError, match=message):
            EarlyExitPredictor(model, tokenizer, **settings)
    for other in (model.base_model, torch.nn.Linear(2, 2), None):
        with pytest.raises(ValueError, match="`model` is a .* needs a classifier with off-ramps"):
            EarlyExitPredictor(other, tokenizer)
    with pytest.raises(ValueError, match="there is no tokenizer"):
        EarlyExitPredictor(model).predict(TEXTS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "device"),
    [(2, "any"), (3, "cpu")],
)
def test_processes_share_the_rows(tmp_path, processes, device):
    """All get all answers in order, however few rows there are, and all raise what goes wrong in one of them."""
    here = Path(__file__).parent
    folders = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    subprocess.run(
        [*launch, here / "predictor_task.py", tmp_path, device],
        env={**os.environ, "PYTHONPATH": folders},
        check=True,
        timeout=300,
    )
    model = make_model(off_ramp_pooling="mean")
    logits, exit_layers = alone(model, make_rows(), early_exit_entropy=0.6)
    assert len(exit_layers.unique()) >= 3
    seen = [torch.load(tmp_path / f"seen-by-{rank}") for rank in range(processes)]
    for one in seen:
        for place, size in enumerate(SIZES):
            assert one["logits"][place].shape == (size, 3)
            torch.testing.assert_close(one["logits"][place], logits[:size], atol=1e-4, rtol=1e-4)
            assert one["exit_layers"][place].tolist() == exit_layers[:size].tolist()
            assert one["labels"][place] == [
                model.config.id2label[label] for label in logits[:size].argmax(-1).tolist()
            ]
        assert one["bad"].startswith("ValueError: Sample 30 of the input")
        assert one["all bad"].startswith("ValueError: Sample 0 of the input")
        assert one["unreadable"] == (
            f"RuntimeError: Process {processes - 1} could not read its share of `items`: OSError: the disk is gone"
        )
        assert one["endless"].startswith(f"ValueError: `items` is a `list_iterator`, which {processes} processes")
        assert one["failed"] == [30]
        assert one["others"].tolist() == [*exit_layers[:30].tolist(), -1, *exit_layers[31:].tolist()]
    # Every row ran in one process alone.
    everything = torch.cat([exit_layers[:size] for size in SIZES])
    counts = torch.tensor([one["counts"] for one in seen])
    assert counts.sum(0).tolist() == everything.bincount(minlength=NUM_LAYERS + 1)[1:].tolist()
    assert (counts.sum(1) >= 37 // processes).all()
