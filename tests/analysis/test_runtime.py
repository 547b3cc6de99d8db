"""Run time on rows of one's own: batches, tokenisation, table."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import layers_of, make_batch, make_model
from torch import nn
from transformers import BertTokenizer

from transformers_deebert import analysis, benchmark_runtime, stock_model
from transformers_deebert.analysis import RUNTIME_COLUMNS, RuntimeBenchmark, format_table, rotation, runtime


ROWS = [{"input_ids": list(range(5, 5 + length)), "labels": 1} for length in (3, 6, 4, 4, 7)]
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij")


@pytest.fixture
def tokenizer(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer(str(tmp_path / "vocab.txt"))


@pytest.fixture
def clock(monkeypatch):
    """Stands still unless a hook moves it on: timings become a hand count. The stock model takes a second a pass."""
    clock = SimpleNamespace(now=0.0)

    def make_ticking(model):
        stock = stock_model(model)
        stock.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 1))
        return stock

    monkeypatch.setattr(rotation, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(runtime, "stock_model", make_ticking)
    return clock


def shapes_of(model):
    """Fills with the threshold and the shape of the mask of each call of the model."""
    calls = []

    def note(module, args, keywords):
        calls.append((keywords["early_exit_entropy"], tuple(keywords["attention_mask"].shape)))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return calls


class TickingTokenizer:
    """Takes a second a call and another a row; remembers what it was called with."""

    def __init__(self, tokenizer, clock):
        self.tokenizer, self.clock, self.calls = tokenizer, clock, []

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, first, second=None, **keywords):
        self.clock.now += 1 + len(first)
        self.calls.append((first, second))
        encoded = self.tokenizer(first, second, **keywords)
        self.width = encoded["input_ids"].shape[1]
        return encoded


def test_every_family_is_benchmarked(family):
    rows = [{"input_ids": list(range(5, 12)), "token_type_ids": [0] * 7, "label": 0}] * 4
    model = make_model(family)
    benchmark = benchmark_runtime(model, rows, [0.0, [0.1, 9.0, 0.3]], batch_sizes=[1, 2], repeats=1, warm_up=1)
    assert [(figure.batch_size, figure.threshold) for figure in benchmark.figures] == [
        (1, 0.0),
        (1, (0.1, 9.0, 0.3)),
        (2, 0.0),
        (2, (0.1, 9.0, 0.3)),
    ]
    assert benchmark.figures[0].layer_saving == 0
    assert benchmark.figures[1].layer_saving >= 0.5
    assert all(figure.stock_speed_up > 0 and figure.efficiency > 0 for figure in benchmark.figures)
    assert benchmark.rows == 4


def test_the_figures_equal_the_hand_count(clock, tokenizer):
    """A layer takes a second a token."""
    model = make_model()
    for layer in layers_of(model):
        layer.register_forward_hook(lambda _, args, __: setattr(clock, "now", clock.now + args[0].shape[1]))
    benchmark = benchmark_runtime(model, ROWS, [9.0], [1, 2], tokenizer, repeats=2)
    one, two = benchmark.figures
    # Tokens of padded batches: 3 + 6 + 4 + 4 + 7 and 6 + 4 + 7.
    assert (one.full_seconds, one.seconds) == (4 * 24, (24, 24))
    assert (two.full_seconds, two.seconds) == (4 * 17, (17, 17))
    assert (one.stock_seconds, two.stock_seconds) == (5, 3)
    assert one.layer_saving == two.layer_saving == one.runtime_saving == two.runtime_saving == 0.75
    first, second = benchmark.table()
    assert (first["milliseconds_per_row"], second["milliseconds_per_row"]) == (24_000 / 5, 17_000 / 5)
    assert (second["batch_size"], second["threshold"], second["speed_up"], second["spread"]) == (2, 9.0, 4.0, 0.0)


def test_batches_keep_the_order_and_are_padded_to_their_longest_row(tokenizer):
    rows = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in ROWS]
    model = make_model()
    calls = shapes_of(model)
    benchmark = benchmark_runtime(model, rows, [0.7], [2], tokenizer, repeats=1, warm_up=0)
    assert [shape for threshold, shape in calls if threshold == 0.0] == [(2, 6), (2, 4), (1, 7)]
    assert [shape for threshold, shape in calls if threshold == 0.7] == [(2, 6), (2, 4), (1, 7)] * 2  # timed, counted
    assert benchmark.padding == "batches in the order of the data set, each padded to its longest row"
    alone = benchmark_runtime(model, rows, [0.7], [1], repeats=1, warm_up=0)
    assert alone.padding == "batches in the order of the data set, no padding: rows of equal length"


def test_padding_changes_no_exit(tokenizer):
    batch = make_batch()
    rows = [
        {"input_ids": ids[mask == 1], "attention_mask": mask[mask == 1].numpy()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    model = make_model()
    figures = benchmark_runtime(model, rows, [0.5], [1, 3, 12], tokenizer, repeats=1, warm_up=0).figures
    expected = model(**batch, early_exit_entropy=0.5).exit_layers
    assert len(expected.unique()) >= 3
    for figure in figures:
        assert figure.layer_cost_ratio == pytest.approx(expected.double().mean().item() / 4)


@pytest.mark.parametrize("pairs", [False, True])
def test_tokenisation_is_counted_apart(clock, tokenizer, pairs):
    ticking = TickingTokenizer(tokenizer, clock)
    texts = [("a b", "c d e f g h") if pairs else "a b c d e f g h"] * 5
    model = make_model()
    for layer in layers_of(model):
        layer.register_forward_hook(lambda *_: setattr(clock, "now", clock.now + 1))
    benchmark = benchmark_runtime(model, ROWS, [9.0], [1, 2], ticking, texts, repeats=2, warm_up=1)
    assert benchmark.tokenization_ms == {1: 1000 * 10 / 5, 2: 1000 * (3 + 5) / 5}  # a second a call and one a row
    assert benchmark.figures[0].seconds == (5, 5)
    assert len(ticking.calls) == 1 + 1 + 2 * (5 + 3)  # warm-up of each batch size, then two passes
    assert [len(first) for first, _ in ticking.calls[2:10]] == [1] * 5 + [2, 2, 1]
    assert ticking.calls[0] == ((["a b"], ["c d e f g h"]) if pairs else (["a b c d e f g h"], None))
    assert ticking.width == 7  # as the longest row of the data set


@pytest.mark.parametrize("criterion", ["margin", {"score": "entropy", "patience": 2}])
def test_other_criteria(criterion):
    model, rows = make_model(), [{"input_ids": [5, 6, number]} for number in range(5, 25)]
    benchmark = benchmark_runtime(model, rows, [0.0, 9.0], [1], repeats=1, warm_up=0, criterion=criterion)
    patience = 1 if criterion == "margin" else 2
    assert [figure.layer_cost_ratio for figure in benchmark.figures] == [1.0, patience / 4]
    assert (benchmark.score, benchmark.patience) == ("margin" if patience == 1 else "entropy", patience)
    with pytest.raises(ValueError, match="`score` must be one of entropy"):
        benchmark_runtime(model, rows, [0.5], [1], criterion="best")


def test_it_can_be_written_and_laid_out():
    rows = [{"input_ids": [5, 6, 7]}] * 2
    benchmark = benchmark_runtime(make_model(), rows, [0.5, [0.1, 0.2, 0.3]], [2], repeats=2, warm_up=0)
    assert isinstance(benchmark, RuntimeBenchmark)
    fields = json.loads(json.dumps(benchmark.to_dict()))
    assert set(fields) == {"figures", "tokenization_ms", "padding", "machine", "rows", "score", "patience"}
    assert fields["figures"][1]["threshold"] == [0.1, 0.2, 0.3]
    assert fields["tokenization_ms"] == {}
    table = benchmark.table()
    assert [list(row) for row in table] == [list(RUNTIME_COLUMNS)] * 2
    assert table[1]["threshold"] == "0.1, 0.2, 0.3"
    assert not [name for row in table for name, value in row.items() if value is None]
    assert len(format_table(table, RUNTIME_COLUMNS).splitlines()) == 4
    assert analysis.benchmark_runtime is benchmark_runtime


def test_another_score_is_timed_and_named():
    rows = [{"input_ids": [5, 6, 7]}] * 2
    model = make_model()
    seen = []
    model.register_forward_pre_hook(lambda _, __, keywords: seen.append(keywords), with_kwargs=True)
    settings = {"repeats": 1, "warm_up": 0, "criterion": {"score": "least_confidence", "patience": 2}}
    benchmark = benchmark_runtime(model, rows, [0.0, 1.0, [0.1, 0.2, 0.3]], [2], **settings)
    assert seen[1]["exit_criterion"] == {"score": "least_confidence", "threshold": 0.0, "patience": 2}
    names = ["least confidence 0, patience 2", "least confidence 1, patience 2"]
    assert [row["threshold"] for row in benchmark.table()[:2]] == names
    assert benchmark.table()[2]["threshold"] == "least confidence 0.1, 0.2, 0.3, patience 2"
    assert [figure.layer_saving for figure in benchmark.figures[:2]] == [0, 0.5]
    assert (benchmark.figures[0].exit_score, benchmark.figures[0].patience) == ("least_confidence", 2)
    with pytest.raises(ValueError, match="`score` must be one of entropy"):
        benchmark_runtime(model, rows, [0.5], [1], criterion="surprise")


def test_rows_may_be_tensors_of_a_map_style_data_set():
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {"input_ids": torch.arange(5, 9), "sentence": "words", "idx": index, "label": 1}

    assert benchmark_runtime(make_model(), Rows(), [0.5], [3], repeats=1, warm_up=0).rows == 3


PADDED = [{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": nn.Linear(1, 1)}, "`Linear`, which has no off-ramps"),
        ({"model": make_model().base_model}, "a base model without a head"),
        ({"model": make_model(num_labels=1)}, "num_labels=1"),
        ({"thresholds": []}, r"`thresholds` must not be empty"),
        ({"thresholds": 0.5}, r"`thresholds` must be a list of thresholds, got 0\.5"),
        ({"thresholds": [0.1, math.nan]}, r"`threshold` must be finite and >= 0, got nan"),
        ({"thresholds": [math.inf]}, r"`threshold` must be finite"),
        ({"thresholds": [-0.1]}, r"`threshold` must be finite and >= 0, got -0\.1"),
        ({"thresholds": [[0.1, 0.2]]}, r"`threshold` has shape \(2,\) for 3 off-ramps"),
        ({"thresholds": [None]}, r"`threshold` must be a number"),
        ({"batch_sizes": []}, r"`batch_sizes` must be one or more batch sizes, got \[\]"),
        ({"batch_sizes": 2}, r"`batch_sizes` must be one or more batch sizes, got 2"),
        ({"batch_sizes": [1, 0]}, r"`batch_sizes` must be a whole number >= 1, got 0"),
        ({"batch_sizes": [math.nan]}, r"`batch_sizes` must be a whole number >= 1, got nan"),
        ({"batch_sizes": [1, 32]}, r"`batch_sizes` has 32, but `dataset` 5 rows"),
        ({"batch_sizes": [2]}, r"`tokenizer` is needed at batch size 2"),
        ({"repeats": 0}, r"`repeats` must be a whole number >= 1, got 0"),
        ({"warm_up": -1}, r"`warm_up` must be a whole number >= 0, got -1"),
        ({"dataset": []}, r"`dataset` has no rows"),
        ({"dataset": None}, r"`dataset` must be a list or map-style .* got a `NoneType`"),
        ({"dataset": {"input_ids": [[5]]}}, r"`dataset` must be a list or map-style .* got a `dict`"),
        ({"dataset": [{"ids": [5]}]}, r"`dataset` has no `input_ids` in row 0"),
        ({"dataset": ["text"]}, r"`dataset` has no `input_ids` in row 0 \('text'\)"),
        ({"dataset": [{"input_ids": []}]}, r"`dataset` has the shapes \{'input_ids': \(0,\)\} in row 0"),
        ({"dataset": [{"input_ids": [[5, 6]]}]}, r"`dataset` has the shapes \{'input_ids': \(1, 2\)\}"),
        ({"dataset": [{"input_ids": [5, 6], "attention_mask": [1]}]}, r"`dataset` has the shapes .* in row 0"),
        ({"dataset": [*ROWS, {"input_ids": [5] * 21}]}, r"`dataset` has 21 tokens in row 5, .* holds 20"),
        ({"dataset": PADDED}, r"`dataset` is padded \(`attention_mask` has zeros in row 0\)"),
        (
            {"dataset": [*ROWS, {"input_ids": [5], "attention_mask": [1]}]},
            r"\['attention_mask', 'input_ids'\] in row 5",
        ),
        ({"texts": ["a"] * 5}, r"`texts` are there to time `tokenizer`, which is None"),
    ],
)
def test_malformed_input_is_refused_before_anything_runs(changed, message):
    calls = []
    model = changed.get("model", make_model())
    model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=message):
        benchmark_runtime(**{"model": model, "dataset": ROWS, "thresholds": [0.5], "batch_sizes": [1]} | changed)
    assert not calls


@pytest.mark.parametrize(
    "texts", ["words", ["a"] * 4, [1] * 5, [("a", "b", "c")] * 5, ["a", ("a", "b")] + ["a"] * 3, 7]
)
def test_texts_must_match_the_rows(tokenizer, texts):
    with pytest.raises(ValueError, match="`texts` must"):
        benchmark_runtime(make_model(), ROWS, [0.5], [1], tokenizer, texts)


def test_full_depth_of_a_regression_can_be_timed():
    rows = [{"input_ids": np.arange(5, 9)}]
    (figure,) = benchmark_runtime(make_model(num_labels=1), rows, [0.0], [1], repeats=1, warm_up=0).figures
    assert figure.layer_saving == 0
