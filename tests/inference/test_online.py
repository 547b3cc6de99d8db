"""Requests from many threads: the answers of each text alone, whatever else is in the encoder."""

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import NUM_LAYERS, make_model
from test_predictor import TEXTS, alone, spread
from test_predictor import tokenizer as tokenizer  # a fixture

from transformers_deebert import OnlinePredictor


@pytest.fixture
def case(tokenizer):
    """A model, thresholds at which texts exit everywhere, and what each gets alone."""
    model = make_model(off_ramp_pooling="mean")
    rows = [dict(tokenizer(text)) for text in TEXTS]
    thresholds = spread(model, rows)
    logits, exits = alone(model, rows, early_exit_entropy=thresholds)
    assert len(exits.unique()) == NUM_LAYERS
    return model, thresholds, logits, exits.tolist()


@pytest.fixture
def held(case):
    """The model does not embed anything before the event is set; sizes of the batches that it then embeds."""
    model, *_ = case
    release, sizes, embed = threading.Event(), [], model.base_model.embed

    def waiting(mask, **inputs):
        assert release.wait(60)
        sizes.append(len(mask))
        return embed(mask, **inputs)

    model.base_model.embed = waiting
    yield release, sizes
    release.set()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_answers_are_those_of_each_text_alone(case, tokenizer, batch_size):
    model, thresholds, logits, exits = case
    with (
        OnlinePredictor(model, tokenizer, batch_size, early_exit_entropy=thresholds) as predictor,
        ThreadPoolExecutor(6) as threads,
    ):
        answers = [future.result(60) for future in threads.map(predictor.submit, TEXTS)]
        counts = predictor.exit_counts()
    assert [answer.exit_layer for answer in answers] == exits
    torch.testing.assert_close(torch.stack([answer.logits for answer in answers]), logits, atol=1e-4, rtol=1e-4)
    assert [answer.label for answer in answers] == [model.config.id2label[row.argmax().item()] for row in logits]
    assert counts == tuple(exits.count(layer) for layer in model.exit_layers)


def test_pairs_and_what_the_configuration_sets(case, tokenizer):
    model, thresholds, *_ = case
    model.config.early_exit_entropy = thresholds
    with OnlinePredictor(model, tokenizer) as predictor:
        answer = predictor.submit("word5 word6", "word7").result(60)
    expected = model(**tokenizer("word5 word6", "word7", return_tensors="pt"))
    assert answer.exit_layer == expected.exit_layers.item()
    torch.testing.assert_close(answer.logits, expected.logits[0], atol=1e-4, rtol=1e-4)


def test_new_requests_begin_between_the_layers_of_others(case, tokenizer, held):
    """The first is in layer 2 when others come; they begin before it is in layer 3, and join where it is."""
    model, *_ = case
    release, sizes = held
    log, apply = [], model.base_model.apply_layer
    with OnlinePredictor(model, tokenizer, exit_layer=4) as predictor:

        def logged(index, state):
            log.append((index, len(state.hidden)))
            if log == [(0, 1), (1, 1)]:
                futures.extend(predictor.submit(text) for text in TEXTS[1:4])
            return apply(index, state)

        model.base_model.apply_layer = logged
        futures = [predictor.submit(TEXTS[0])]
        release.set()
        futures[0].result(60)
        assert [future.result(60).exit_layer for future in futures] == [4] * 4
    assert sizes == [1, 3]
    assert log == [(0, 1), (1, 1), (0, 3), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3)]


def test_an_endless_stream_of_easy_texts_does_not_hold_up_a_hard_one(case, tokenizer):
    model, thresholds, _, exits = case
    easy, hard = TEXTS[exits.index(1)], TEXTS[exits.index(4)]
    stop = threading.Event()
    with OnlinePredictor(model, tokenizer, 1, early_exit_entropy=thresholds) as predictor:

        def flood():
            while not stop.is_set():
                if predictor.requests.qsize() < 50:
                    predictor.submit(easy)
                time.sleep(0)

        thread = threading.Thread(target=flood)
        thread.start()
        try:
            assert predictor.submit(hard).result(60).exit_layer == 4
        finally:
            stop.set()
            thread.join()


def test_refusals(case, tokenizer, held):
    model, *_ = case
    release, _ = held
    predictor = OnlinePredictor(model, tokenizer, batch_size=1, capacity=2, early_exit_entropy=0.0)
    with pytest.raises(ValueError, match="`text` must be a str, got 3"):
        predictor.submit(3)
    with pytest.raises(ValueError, match="`text_pair` must be a str"):
        predictor.submit("word5", ["word6"])
    first = predictor.submit("word5")
    while predictor.requests.qsize():
        time.sleep(0.01)
    cancelled, last = predictor.submit("word6"), predictor.submit("word7")
    with pytest.raises(queue.Full):
        predictor.submit("word8")
    assert cancelled.cancel()
    release.set()
    predictor.close()
    predictor.close()
    assert first.result(0).exit_layer == last.result(0).exit_layer == NUM_LAYERS  # close() answers what was submitted
    with pytest.raises(RuntimeError, match="closed"):
        predictor.submit("word5")
    with pytest.raises(ValueError, match="`capacity`"):
        OnlinePredictor(model, tokenizer, capacity=0)
    with pytest.raises(ValueError, match="`early_exit_entropy`"):
        OnlinePredictor(model, tokenizer, early_exit_entropy=-1)


def test_a_failure_is_the_answer_of_its_requests_alone(case, tokenizer):
    model, *_ = case
    embed = model.base_model.embed

    def picky(mask, **inputs):
        if 99 in inputs["input_ids"]:
            raise RuntimeError("no memory")
        return embed(mask, **inputs)

    model.base_model.embed = picky
    with OnlinePredictor(model, tokenizer, batch_size=1) as predictor:
        bad, long, good = (predictor.submit(text) for text in ("word99", "word5 " * 30, "word5"))
        with pytest.raises(RuntimeError, match="no memory"):
            bad.result(60)
        with pytest.raises(ValueError, match="has 32 tokens, but the position table"):
            long.result(60)
        assert good.result(60).exit_layer == NUM_LAYERS
