import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import ENCODERS, LENGTHS, NUM_LABELS, make_batch, make_model
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from transformers_deebert.analysis import describe_machine, rotation, stock_model, time_models, time_thresholds, timing


class Clock:
    """Stands still unless a model runs: timings become a hand count."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now


class OnCpu(nn.Module):
    device = torch.device("cpu")


class CountingModel(OnCpu):
    """Takes 1 tick and 2 a layer. The first token says at which of four layers a row leaves when S > 0."""

    def __init__(self, clock, log):
        super().__init__()
        self.config = SimpleNamespace(num_hidden_layers=4, exit_layers=(1, 2, 3, 4))
        self.clock, self.log = clock, log

    def forward(self, input_ids, early_exit_entropy, output_off_ramp_logits, attention_mask=None):
        assert not self.training
        assert output_off_ramp_logits is False  # which would have all layers run
        layers = input_ids[:, 0] if early_exit_entropy else torch.full((len(input_ids),), 4)
        self.clock.now += 1 + 2 * layers.max().item()
        self.log.append(early_exit_entropy)
        return SimpleNamespace(exit_layers=layers)


class StockModel(OnCpu):
    def __init__(self, clock, layers=4):
        super().__init__()
        self.clock, self.layers = clock, layers

    def forward(self, input_ids):
        self.clock.now += 1 + 2 * self.layers


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rotation, "time", SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def test_figures_equal_the_hand_count(clock):
    model = CountingModel(clock, []).train()
    rows = [{"input_ids": [layer, 7], "label": 1} for layer in (1, 1, 2, 4)]
    full, early = time_thresholds(model, rows, [0, 0.3], repeats=3)

    assert (full.seconds_median, full.speed_up, full.runtime_saving, full.layer_saving) == (36, 1, 0, 0)
    assert early.seconds == (20, 20, 20)  # 4 rows: 4 * 1 + 2 * (1 + 1 + 2 + 4)
    assert early.full_seconds == 36
    assert early.speed_up == pytest.approx(36 / 20)
    assert early.runtime_saving == pytest.approx(16 / 36)
    assert early.layer_cost_ratio == pytest.approx(8 / 16)
    assert early.control_gap == 0
    assert early.machine_was_quiet
    assert (early.stock_seconds, early.efficiency) == (None, None)
    assert model.training
    assert json.loads(json.dumps(early.to_dict()))["seconds"] == [20, 20, 20]


def test_against_a_stock_model_every_saved_layer_is_saved_time(clock, monkeypatch):
    monkeypatch.setattr(timing, "without_layers", lambda stock: StockModel(clock, layers=0))
    rows = [{"input_ids": [layer, 7]} for layer in (1, 2, 3, 4)]
    (figure,) = time_thresholds(CountingModel(clock, []), rows, [0.3], stock_model=StockModel(clock))
    assert figure.stock_seconds == 36
    assert figure.stock_speed_up == pytest.approx(36 / 24)
    # t0 = 4, r = 10/16, T = 36: 4 + 20 = 24 is the ideal, and the time taken.
    assert figure.efficiency == pytest.approx(1.0)


def test_contenders_take_turns_in_blocks_and_the_order_moves_on(clock):
    log = []
    rows = [{"input_ids": [1]}] * (2 * timing.BLOCK)
    time_thresholds(CountingModel(clock, log), rows, [0.5], repeats=1, warm_up=1)
    counted = log[3 : 3 + 3 * len(rows)]  # after the warm-up of three contenders, before layers are counted
    blocks = [counted[start : start + timing.BLOCK] for start in range(0, len(counted), timing.BLOCK)]
    assert all(len(set(block)) == 1 for block in blocks)
    assert [block[0] for block in blocks] == [0.0, 0.5, 0.0, 0.5, 0.0, 0.0]


def test_batches_hold_the_rows_in_order(clock):
    def data_collator(rows):
        width = max(len(row["input_ids"]) for row in rows)
        return {"input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])}

    rows = [{"input_ids": ids} for ids in ([1], [3, 9], [2, 9, 9])]
    settings = {"batch_size": 2, "repeats": 1}
    (figure,) = time_thresholds(CountingModel(clock, []), rows, [0.3], data_collator=data_collator, **settings)
    with pytest.warns(FutureWarning, match="`collate` of time_thresholds is now called `data_collator`"):
        assert time_thresholds(CountingModel(clock, []), rows, [0.3], collate=data_collator, **settings) == [figure]
    assert figure.seconds == (7 + 5,)  # rows 1 and 2 run three layers together, row 3 two
    assert figure.layer_cost_ratio == pytest.approx(6 / 12)


def test_a_median_ignores_one_bad_pass(clock):
    class Hiccup(CountingModel):
        def forward(self, *args, **kwargs):
            if len(self.log) == 4:  # after the warm-up of three contenders, and full depth
                self.clock.now += 1000
            return super().forward(*args, **kwargs)

    (figure,) = time_thresholds(Hiccup(clock, []), [{"input_ids": [2]}], [0.3], repeats=3)
    assert max(figure.seconds) == 1005
    assert figure.seconds_median == 5
    assert figure.spread == pytest.approx(1000 / 5)


def test_a_model_returns_to_its_mode_after_an_error(clock):
    class Broken(CountingModel):
        def forward(self, *args, **kwargs):
            raise RuntimeError("broken")

    model = Broken(clock, []).train()
    with pytest.raises(RuntimeError, match="broken"):
        time_thresholds(model, [{"input_ids": [1]}], [0.3])
    assert model.training


def test_models_run_each_on_its_own_rows(clock):
    log = []
    seconds = time_models(
        [
            (
                CountingModel(clock, log),
                [{"input_ids": [1]}, {"input_ids": [3]}],
                {"early_exit_entropy": 0.5, "output_off_ramp_logits": False},
            ),
            (StockModel(clock, layers=2), [{"input_ids": [5, 5]}, {"input_ids": [6]}], {}),
        ],
        repeats=2,
    )
    assert seconds == [(3 + 7, 3 + 7), (5 + 5, 5 + 5)]


def test_the_stock_class_of_every_family_runs_without_layers(family):
    stock = stock_model(make_model(family))
    empty = timing.without_layers(stock).eval()
    ran = {stock: [], empty: []}
    for model, names in ran.items():
        for name, module in model.base_model.named_modules():
            module.register_forward_hook(lambda *_, name=name, names=names: names.append(name))
        assert model(**make_batch(family)).logits.shape == (len(LENGTHS), NUM_LABELS)
    inside = f"{ENCODERS[family].layers}.0."
    assert "embeddings" in ran[empty]
    assert [name for name in ran[stock] if name.startswith(inside)]
    assert not [name for name in ran[empty] if name.startswith(inside)]
    assert stock.config.num_hidden_layers == 4


def test_the_stock_class_without_layers_has_none():
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=37, num_labels=3
    )
    stock = BertForSequenceClassification(config)
    empty = timing.without_layers(stock).eval()
    assert len(empty.bert.encoder.layer) == 0
    assert stock.config.num_hidden_layers == 2
    assert empty(input_ids=torch.tensor([[1, 2, 3]])).logits.shape == (1, 3)


def test_a_real_clock_runs():
    class Model(CountingModel):
        def forward(self, input_ids, early_exit_entropy, **others):
            time.sleep(0.002 if early_exit_entropy else 0.006)
            return super().forward(input_ids, early_exit_entropy, **others)

    (figure,) = time_thresholds(Model(Clock(), []), [{"input_ids": [1]}] * 4, [0.3], repeats=3)
    assert figure.speed_up > 1.5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rows": []}, r"`rows` must not be empty, got \[\]"),
        ({"thresholds": []}, r"`thresholds` must not be empty"),
        ({"thresholds": 0.1}, r"`thresholds` must be a list of thresholds, got 0\.1"),
        ({"thresholds": [0.1, math.nan]}, r"`threshold` must be finite and >= 0, got nan"),
        ({"thresholds": [[0.1, 0.1]]}, r"`threshold` has shape \(2,\) for 3 off-ramps"),
        ({"thresholds": ["low"]}, r"`threshold` must be a number"),
        ({"batch_size": 1.5}, r"`batch_size` must be a whole number >= 1, got 1\.5"),
        ({"warm_up": -1}, r"`warm_up` must be a whole number >= 0, got -1"),
        ({"batch_size": 0}, r"`batch_size` must be a whole number >= 1, got 0"),
        ({"repeats": 0}, r"`repeats` must be a whole number >= 1, got 0"),
        ({"batch_size": 2}, r"`rows` of lengths \[1, 2\] meet in one batch\. Pass data_collator="),
    ],
)
def test_malformed_input_names_argument_value_and_remedy(clock, changed, message):
    arguments = {"rows": [{"input_ids": [1]}, {"input_ids": [1, 2]}], "thresholds": [0.1]} | changed
    with pytest.raises(ValueError, match=message):
        time_thresholds(CountingModel(clock, []), **arguments)


def test_the_machine_is_described_without_naming_it():
    machine = describe_machine()
    assert list(machine) == [
        "device",
        "processor",
        "cores",
        "threads",
        "system",
        "python",
        "torch",
        "transformers",
    ]
    assert machine["device"] == "cpu"
    assert machine["threads"] == torch.get_num_threads()
