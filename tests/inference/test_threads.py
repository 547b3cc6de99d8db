"""One loaded model that many threads call at once, each with its own exits: the answers of calls one by one."""

import copy
import itertools
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import EXPORTED, NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds
from test_pipeline import WORDS
from transformers import BertTokenizer, pipeline

from transformers_deebert import EarlyExitPredictor
from transformers_deebert.models.exit_scores_deebert import entropy


WORKERS = 8
CALLS = 12
LENGTHS = ((3, 12, 7, 5), (9,), (4, 4, 11, 6, 8, 3, 10), (2, 13), (5, 7, 5), (14, 1, 6, 9, 12))
CLOSE = {"atol": 1e-5, "rtol": 1e-5}


@pytest.fixture(autouse=True)
def threads_take_turns_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def at_once(functions):
    """The results of functions without arguments that run in threads of their own, all of which begin together."""
    barrier = threading.Barrier(len(functions), timeout=60)

    def work(function):
        barrier.wait()
        with torch.no_grad():  # a setting of the thread
            return function()

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(work, function) for function in functions]]


def ways_to_exit(thresholds):
    """Settings of eight callers that say different things."""
    return [
        {},
        {"early_exit_entropy": thresholds},
        {"early_exit_entropy": 0.0},
        {"early_exit_entropy": thresholds[0]},
        {"exit_layer": 1},
        {"early_exit_entropy": [0.0, thresholds[1], 0.0]},
        {"exit_layer": NUM_LAYERS - 1},
        {"early_exit_entropy": 99.0},
    ]


@pytest.fixture
def batches():
    return [make_batch(lengths=lengths, seed=number) for number, lengths in enumerate(LENGTHS)]


@pytest.fixture
def model():
    return make_model(off_ramp_pooling="mean")


@pytest.fixture
def thresholds(model, batches):
    """At which the rows of the batches leave everywhere."""
    return spread_thresholds(torch.cat([off_ramp_answers(model, **batch)[1] for batch in batches]))


def check_calls(model, reference, batches, thresholds, **further):
    """Many calls in threads against those of another copy of the model, one after another."""
    settings = [{**exits, **further} for exits in ways_to_exit(thresholds)]
    expected = [[reference(**batch, **one) for batch in batches] for one in settings]
    layers = [tuple(torch.cat([output.exit_layers for output in outputs]).tolist()) for outputs in expected]
    assert len(set(layers[1])) == NUM_LAYERS
    assert len(set(layers)) >= 6  # who answers with another caller's settings is found out

    def calls(number):
        # Nobody begins with the same batch as the neighbour.
        order = itertools.islice(itertools.cycle(range(len(batches))), number, number + CALLS)
        return [(place, model(**batches[place], **settings[number])) for place in order]

    for number, outputs in enumerate(at_once([lambda number=number: calls(number) for number in range(WORKERS)])):
        assert len(outputs) == CALLS
        for place, output in outputs:
            wanted = expected[number][place]
            assert output.exit_layers.tolist() == wanted.exit_layers.tolist()
            torch.testing.assert_close(output.logits, wanted.logits, **CLOSE)
            yield output, wanted


def test_a_model(model, batches, thresholds):
    """The first calls that the model ever gets, too."""
    assert len(list(check_calls(model, copy.deepcopy(model), batches, thresholds))) == WORKERS * CALLS


@pytest.mark.parametrize("name", ["albert", "deberta-v2", "modernbert"])
def test_families_that_keep_more_than_a_mask(name):
    model = make_model(name, off_ramp_pooling="mean")
    batches = [make_batch(name, lengths=lengths, seed=number) for number, lengths in enumerate(LENGTHS)]
    thresholds = spread_thresholds(torch.cat([off_ramp_answers(model, **batch)[1] for batch in batches]))
    assert len(list(check_calls(model, copy.deepcopy(model), batches, thresholds))) == WORKERS * CALLS


def test_all_outputs(batches):
    """States and attentions, which transformers collects with hooks on the modules, are those of the call."""
    model = make_model(off_ramp_pooling="mean", attn_implementation="eager")
    thresholds = spread_thresholds(torch.cat([off_ramp_answers(model, **batch)[1] for batch in batches]))
    wanted = dict.fromkeys(("output_off_ramp_logits", "output_hidden_states", "output_attentions"), True)
    for output, expected in check_calls(model, copy.deepcopy(model), batches, thresholds, **wanted):
        for name in ("off_ramp_logits", "hidden_states", "attentions"):
            assert len(output[name]) == len(expected[name]) >= NUM_LAYERS
            torch.testing.assert_close(output[name], expected[name], **CLOSE)


def test_an_onnx_model(batches, exported_bert):
    """Each caller's settings run in the single file or in segments, which the first that needs them loads."""
    pytest.importorskip("onnxruntime")
    from transformers_deebert import OnnxEarlyExitModel

    model, temperatures = make_model(**EXPORTED), torch.tensor([*EXPORTED["off_ramp_temperatures"], 1.0])
    logits = torch.cat([off_ramp_answers(model, **batch)[0] for batch in batches])
    thresholds = spread_thresholds(entropy(logits / temperatures[:, None]))
    shared, alone = (OnnxEarlyExitModel.from_pretrained(exported_bert, num_threads=1) for _ in range(2))
    assert len(list(check_calls(shared, alone, batches, thresholds))) == WORKERS * CALLS


# ---- texts


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "vocab.txt"
    path.write_text("\n".join(WORDS))
    return BertTokenizer(str(path), model_max_length=20)


@pytest.fixture
def texts():
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 16, (40,), generator=generator).tolist()
    return [
        " ".join(f"word{number}" for number in torch.randint(5, 100, (length,), generator=generator).tolist())
        for length in lengths
    ]


@pytest.fixture
def text_settings(model, texts, tokenizer):
    """Settings of eight callers at which the texts leave everywhere."""
    return ways_to_exit(
        spread_thresholds(off_ramp_answers(model, **tokenizer(texts, padding=True, return_tensors="pt"))[1])
    )


def test_predictors(model, texts, text_settings, tokenizer):
    """A predictor each, with its own exits, batch size and cut."""

    def make(model, number):
        return EarlyExitPredictor(model, tokenizer, batch_size=2 + number, window=2, max_length=8 + number)

    reference = copy.deepcopy(model)
    expected = [make(reference, number).predict(texts, **one) for number, one in enumerate(text_settings)]
    assert len(expected[1].exit_layers.unique()) == NUM_LAYERS
    assert len({tuple(answers.exit_layers.tolist()) for answers in expected}) >= 6

    def work(number):
        predictor = make(model, number)
        answers = [predictor.predict(texts, **text_settings[number]) for _ in range(3)]
        streamed = [answer.exit_layer for answer in predictor.stream(iter(texts), **text_settings[number])]
        return answers, streamed, predictor.exit_counts()

    for (answers, streamed, counts), wanted in zip(
        at_once([lambda number=number: work(number) for number in range(WORKERS)]), expected, strict=True
    ):
        for answer in answers:
            assert answer.exit_layers.tolist() == wanted.exit_layers.tolist()
            torch.testing.assert_close(answer.logits, wanted.logits, **CLOSE)
        assert streamed == wanted.exit_layers.tolist()
        assert counts == tuple(4 * wanted.exit_layers.bincount(minlength=NUM_LAYERS + 1)[1:])


def test_a_pipeline(model, texts, text_settings, tokenizer):
    """One pipeline, thresholds with each call."""
    expected = [
        pipeline("text-classification", model=copy.deepcopy(model), tokenizer=tokenizer)(texts, **one)
        for one in text_settings
    ]
    assert len({tuple(answer["exit_layer"] for answer in answers) for answers in expected}) >= 6
    shared = pipeline("text-classification", model=model, tokenizer=tokenizer)

    def work(number):
        return [shared(texts, batch_size=size, **text_settings[number]) for size in (1, 1 + number)]

    for results, wanted in zip(
        at_once([lambda number=number: work(number) for number in range(WORKERS)]), expected, strict=True
    ):
        for answers in results:
            for answer, one in zip(answers, wanted, strict=True):
                assert (answer["label"], answer["exit_layer"]) == (one["label"], one["exit_layer"])
                assert answer["score"] == pytest.approx(one["score"], abs=1e-5)


def test_a_pipeline_that_truncates_otherwise_in_each_thread(model, tokenizer):
    text = " ".join(f"word{5 + 7 * place % 90}" for place in range(40))
    shared = pipeline("text-classification", model=model, tokenizer=tokenizer)
    settings = [{"truncation": True, "max_length": length, "early_exit_entropy": 0.9} for length in range(4, 20, 2)]
    expected = [shared(text, **one) for one in settings]
    assert len({str(answer) for answer in expected}) >= 6

    def work(one):
        return [shared(text, **one) for _ in range(20)]

    for answers, wanted in zip(at_once([lambda one=one: work(one) for one in settings]), expected, strict=True):
        assert answers == [wanted] * 20
