"""Tiny random models whose rows exit at different layers, and batches for them."""

import copy
import functools
import os

import pytest
import torch
from transformers import (
    BertForSequenceClassification,
    BertModel,
    RobertaForSequenceClassification,
    RobertaModel,
)

from transformers_deebert import (
    DeeBertConfig,
    DeeBertForSequenceClassification,
    DeeBertModel,
    DeeRobertaConfig,
    DeeRobertaForSequenceClassification,
    DeeRobertaModel,
)


FAMILIES = {
    "bert": {
        "config": DeeBertConfig,
        "base": DeeBertModel,
        "classifier": DeeBertForSequenceClassification,
        "stock_base": BertModel,
        "stock_classifier": BertForSequenceClassification,
        "pad": 0,
        "positions": 20,
    },
    "roberta": {
        "config": DeeRobertaConfig,
        "base": DeeRobertaModel,
        "classifier": DeeRobertaForSequenceClassification,
        "stock_base": RobertaModel,
        "stock_classifier": RobertaForSequenceClassification,
        "pad": 1,
        "positions": 22,  # positions start behind the padding index
    },
}
NUM_LAYERS = 4
NUM_LABELS = 3
LENGTHS = (3, 12, 7, 5, 12, 4, 9, 6, 8, 11, 3, 10)


def pytest_configure(config):
    # Two workers with one thread each are faster on tiny models than one with two, and repeat to the bit.
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@functools.cache
def _model(family, num_layers, settings):
    parts = FAMILIES[family]
    torch.manual_seed(1)
    config = parts["config"](
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=parts["positions"],
        pad_token_id=parts["pad"],
        type_vocab_size=2,
        initializer_range=0.15,
        num_labels=NUM_LABELS,
        off_ramps_trained=True,
        **dict(settings),
    )
    model = parts["classifier"](config)
    with torch.no_grad():
        for off_ramp in model.base_model.off_ramps:
            off_ramp.classifier.weight.mul_(8)
    return model.eval()


def make_model(family="bert", num_layers=NUM_LAYERS, **settings):
    """A classifier in eval mode that the caller may change."""
    return copy.deepcopy(_model(family, num_layers, tuple(sorted(settings.items()))))


def make_stock(model, family):
    """The family's stock classifier with the same weights."""
    stock = FAMILIES[family]["stock_classifier"](model.config)
    missing, unexpected = stock.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all(".off_ramps." in key for key in unexpected)
    return stock.eval()


def make_batch(family="bert", lengths=LENGTHS, width=None, side="right", seed=0):
    """`input_ids` and `attention_mask` of rows with these lengths; row i is the same whatever padding there is."""
    width = width or max(lengths)
    ids = torch.full((len(lengths), width), FAMILIES[family]["pad"])
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(1000 * seed + row)
        place = slice(0, length) if side == "right" else slice(width - length, width)
        ids[row, place] = torch.randint(5, 100, (length,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def off_ramp_answers(model, **batch):
    """
    Logits and entropies of every exit for every row, `(rows, layers, …)`: each row alone, from the states of the stock
    encoder and the off-ramps' parameters, without the layer loop. In float64.
    """
    model = copy.deepcopy(model).double()
    base, config = model.base_model, model.config
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        ids = ids[mask == 1][None]
        stock = make_stock(model, config.backbone_type).double()
        output = stock(input_ids=ids, output_hidden_states=True)
        logits = [
            answer_of(off_ramp, hidden[0], config.off_ramp_pooling)
            for off_ramp, hidden in zip(base.off_ramps, output.hidden_states[1:], strict=False)
        ]
        rows.append(torch.stack([*logits, output.logits[0]]))
    logits = torch.stack(rows)
    probabilities = logits.softmax(-1)
    return logits, -(probabilities * probabilities.log()).sum(-1)


def answer_of(off_ramp, hidden, pooling):
    """What one off-ramp says of the states of one row, `(tokens, hidden)`, written out."""
    if pooling == "cls":
        pooled = hidden[0]
    elif pooling == "mean":
        pooled = hidden.mean(0)
    else:
        weights = (hidden @ off_ramp.attention.query / hidden.shape[-1] ** 0.5).softmax(0)
        pooled = weights @ hidden
    if off_ramp.pooler is not None:
        pooled = torch.tanh(off_ramp.pooler.dense.weight @ pooled + off_ramp.pooler.dense.bias)
    return off_ramp.classifier.weight @ pooled + off_ramp.classifier.bias


def spread_thresholds(entropies, share=0.3):
    """
    One threshold an off-ramp so that about `share` of the rows still there leave at each, and no entropy is close to
    it: what the exits are then does not hang on rounding.
    """
    waiting = torch.ones(len(entropies), dtype=torch.bool)
    thresholds = []
    for layer in range(entropies.shape[1] - 1):
        left = entropies[waiting, layer].sort().values
        if len(left) < 2:
            thresholds.append(0.0)
            continue
        # Between `few` and `many` rows leave; the widest gap between two neighbours is the safest place.
        few = max(1, int(share * len(left)) - 1)
        many = max(few, min(len(left) - 1, few + 3))
        gaps = left[few : many + 1] - left[few - 1 : many]
        place = few - 1 + int(gaps.argmax())
        thresholds.append(float(left[place : place + 2].mean()))
        waiting &= entropies[:, layer] >= thresholds[-1]
    return thresholds


def expected_exits(entropies, thresholds):
    """Exit layers of Algorithm 1, row by row."""
    exits = []
    for row in entropies:
        early = [layer for layer, threshold in enumerate(thresholds, start=1) if row[layer - 1] < threshold]
        exits.append(early[0] if early else entropies.shape[1])
    return torch.tensor(exits)


def take_rows(batch, rows):
    return {name: tensor[rows] for name, tensor in batch.items()}


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return request.param


@pytest.fixture(params=["cls", "mean", "attention"])
def pooling(request):
    return request.param


@pytest.fixture(autouse=True)
def without_gradients(request):
    """Inference tests run without autograd; mark those that need it with `gradients`."""
    with torch.set_grad_enabled(request.node.get_closest_marker("gradients") is not None):
        yield
