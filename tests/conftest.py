"""Tiny random models whose rows exit at different layers, and batches for them."""

import copy
import functools
import gc
import itertools
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from torch.nn.functional import gelu, layer_norm, linear

from transformers_deebert.families import FAMILIES, find_family


@dataclass(frozen=True)
class Encoder:
    """
    What the tests know of a family, besides its classes.

    Args:
        settings (`dict`): Of its tiny configuration, besides those that all share.
        pad (`int`): Padding token.
        limit (`int`, *optional*): Tokens that its position table holds.
        layers (`str`): Where its layers are in the base model.
        attentions (`tuple[str, ...]`): Attention implementations of the stock class.
        dropouts (`tuple[str, ...]`): Fields of its configuration that are dropout rates.
        segments (`bool`): Whether the stock model knows `token_type_ids`.
        activation (`Callable`): Of its off-ramps' poolers.
        final_norm (`bool`): Whether its head sees states behind a final norm.
        exact (`bool`): Whether gradients are bit-equal to stock (or sums are in another order).
    """

    settings: dict = field(default_factory=dict)
    pad: int = 0
    limit: int | None = 20
    layers: str = "encoder.layer"
    attentions: tuple[str, ...] = ("sdpa", "eager")
    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    segments: bool = True
    activation: Callable = torch.tanh
    final_norm: bool = False
    exact: bool = True


ROBERTA = Encoder({"max_position_embeddings": 22}, pad=1)  # positions start behind the padding index
DEBERTA_V2 = Encoder(
    {
        "relative_attention": True,
        "position_buckets": 4,
        "norm_rel_ebd": "layer_norm",
        "pos_att_type": ["p2c", "c2p"],
        "share_att_key": True,
        "position_biased_input": False,
        "conv_kernel_size": 3,
        "conv_act": "gelu",
    },
    limit=None,
    attentions=("eager",),
    activation=gelu,
)
MODERNBERT = Encoder(
    # Every second layer attends to two tokens on either side.
    {"local_attention": 4, "layer_types": ["full_attention", "sliding_attention"] * 2, "hidden_activation": "gelu"},
    limit=None,
    layers="layers",
    dropouts=("attention_dropout", "embedding_dropout", "mlp_dropout", "classifier_dropout"),
    segments=False,
    activation=gelu,
    final_norm=True,
)
ENCODERS = {
    "albert": Encoder(
        {"embedding_size": 16, "num_hidden_groups": 2},
        layers="encoder.albert_layer_groups",
        dropouts=("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout_prob"),
    ),
    "bert": Encoder(),
    "camembert": ROBERTA,
    "deberta-v2": DEBERTA_V2,
    "distilbert": Encoder(
        {"hidden_dim": 64},
        layers="transformer.layer",
        dropouts=("dropout", "attention_dropout", "seq_classif_dropout"),
        segments=False,
        activation=torch.relu,
    ),
    "electra": Encoder({"embedding_size": 16}, activation=gelu),
    "modernbert": MODERNBERT,
    "mpnet": Encoder({"max_position_embeddings": 22}, pad=1, attentions=("eager",), segments=False, exact=False),
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA,
}
# Configurations of the same classes that take other ways through them.
VARIANTS = {
    "albert with inner layers": ("albert", {"inner_group_num": 2, "num_hidden_groups": 1}),
    "deberta-v2 without convolution": ("deberta-v2", {"conv_kernel_size": 0, "norm_rel_ebd": "none"}),
    "deberta-v2 with absolute positions": ("deberta-v2", {"position_biased_input": True}),
    "deberta-v2 without relative positions": (
        "deberta-v2",
        {"relative_attention": False, "position_biased_input": True, "pos_att_type": None},
    ),
    "electra of one size": ("electra", {"embedding_size": 32}),
    "modernbert with a mean head": ("modernbert", {"classifier_pooling": "mean", "norm_bias": True}),
    "modernbert of local layers": ("modernbert", {"layer_types": ["sliding_attention"] * 4}),
}
NUM_LAYERS = 4
NUM_LABELS = 3
MANY = 20  # combinations of parameters that the fast tests take in full
EXPORTED = {"off_ramp_pooling": "mean", "off_ramp_temperatures": [1.5, 0.5, 2.0]}
LENGTHS = (3, 12, 7, 5, 12, 4, 9, 6, 8, 11, 3, 10)


def pytest_configure(config):
    # Two workers with one thread each are faster on tiny models than one with two, and repeat to the bit.
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_finish():
    """Each training ends with a full garbage collection: what is imported by now need not be searched each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """
    What the fast tests leave to the slow ones: of tests with many combinations of parameters all but a few that have
    each value once, different ones in each test of a file, so that any two values of two parameters meet somewhere in
    it; of tests marked `slow_but_for` all other families.
    """
    groups, met = defaultdict(list), defaultdict(set)
    for item in items:
        if hasattr(item, "callspec"):
            groups[item.function].append(item)
            marker = item.get_closest_marker("slow_but_for")
            if marker is not None and item.callspec.params["family"] not in marker.args:
                item.add_marker(pytest.mark.slow)
    for group in groups.values():
        if len(group) > MANY:
            for item in set(group) - cover(group, met[group[0].path]):
                item.add_marker(pytest.mark.slow)


def cover(items, met):
    """
    Few items with each value of each parameter, chosen greedily, of pairs of values that have not met yet if possible;
    those that meet in them go into `met`.
    """
    values = {item: sorted((name, repr(value)) for name, value in item.callspec.params.items()) for item in items}
    pairs = {item: set(itertools.combinations(values[item], 2)) for item in items}
    chosen, covered = set(), set()
    while True:
        best = max(items, key=lambda item: (len(set(values[item]) - covered), len(pairs[item] - met)))
        if not set(values[best]) - covered:
            return chosen
        chosen.add(best)
        covered.update(values[best])
        met |= pairs[best]


def stock_class(model):
    """The stock class of a base model or a classifier of ours."""
    return getattr(transformers, type(model).__name__.removeprefix("Dee"))


def layers_of(model):
    """The modules that are applied as layers, in order; one may be applied several times."""
    return model.base_model.get_submodule(ENCODERS[model.config.backbone_type].layers)


@functools.cache
def _model(family, num_layers, settings):
    encoder, parts = ENCODERS[family], find_family(family, family)
    torch.manual_seed(1)
    common = {
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 20,
        "pad_token_id": encoder.pad,
        "initializer_range": 0.15,
        "num_labels": NUM_LABELS,
        "off_ramps_trained": True,
    }
    # DistilBERT calls it `hidden_dim`, and the like; a field that a family has not is none.
    sizes = {"intermediate_size": 64, "type_vocab_size": 2} if family != "distilbert" else {}
    config = parts.config(**common | sizes | encoder.settings | {name: thaw(value) for name, value in settings})
    # Head and backbone are drawn such that rows exit everywhere.
    stock_config = parts.config(**config.to_dict() | {"gradient_checkpointing": False})
    head = getattr(transformers, parts.classifier.__name__.removeprefix("Dee"))(stock_config)
    model = parts.classifier(config)
    backbone = model.base_model_prefix
    head = {name: tensor for name, tensor in head.state_dict().items() if not name.startswith(backbone)}
    model.load_state_dict(head, strict=False)
    with torch.no_grad():
        for off_ramp in model.base_model.off_ramps:
            off_ramp.classifier.weight.mul_(8)
    return model.eval()


def freeze(value):
    return tuple(value) if isinstance(value, list) else value


def thaw(value):
    return list(value) if isinstance(value, tuple) else value


def make_model(family="bert", num_layers=NUM_LAYERS, **settings):
    """A classifier in eval mode that the caller may change."""
    settings = tuple(sorted((name, freeze(value)) for name, value in settings.items()))
    return copy.deepcopy(_model(family, num_layers, settings))


def make_stock(model):
    """The family's stock classifier with the same weights."""
    stock = stock_class(model)(model.config)
    missing, unexpected = stock.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    assert all("off_ramps." in key for key in unexpected)
    return stock.eval()


def make_batch(family="bert", lengths=LENGTHS, width=None, side="right", seed=0):
    """`input_ids` and `attention_mask` of rows with these lengths; row i is the same whatever padding there is."""
    width = width or max(lengths)
    ids = torch.full((len(lengths), width), ENCODERS[family].pad)
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
    stock, past = make_stock(model).double(), model.config.off_ramp_context == "past"
    rows = []
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        output = stock(input_ids=ids[mask == 1][None], output_hidden_states=True)
        states = output.hidden_states[1 :: (len(output.hidden_states) - 1) // model.config.num_hidden_layers]
        states = [hidden[0] for hidden in states]
        logits = [
            answer_of(model, off_ramp, *(states[: place + 1] if past else states[place : place + 1]))
            for place, off_ramp in enumerate(model.base_model.off_ramps)
        ]
        rows.append(torch.stack([*logits, output.logits[0]]))
    logits = torch.stack(rows)
    probabilities = logits.softmax(-1)
    return logits, -(probabilities * probabilities.log()).sum(-1)


def pooled_of(model, off_ramp, hidden):
    """The pooled vector of the raw states of one row, `(tokens, hidden)`, written out."""
    if ENCODERS[model.config.backbone_type].final_norm:
        norm = model.base_model.final_norm
        hidden = layer_norm(hidden, (hidden.shape[-1],), norm.weight, norm.bias, norm.eps)
    if model.config.off_ramp_pooling == "cls":
        return hidden[0]
    if model.config.off_ramp_pooling == "mean":
        return hidden.mean(0)
    return (hidden @ off_ramp.attention.query / hidden.shape[-1] ** 0.5).softmax(0) @ hidden


def vector_of(model, off_ramp, *states):
    """What the classifier of one off-ramp reads of one row: raw states of the layers that the off-ramp reads."""
    encoder = ENCODERS[model.config.backbone_type]
    readers = model.base_model.off_ramps if len(states) > 1 else [off_ramp]  # each pools the states of its layer
    pooled = torch.cat([pooled_of(model, one, hidden) for one, hidden in zip(readers, states, strict=False)])
    if model.config.off_ramp_head == "linear":
        return pooled
    if model.config.off_ramp_head == "mlp":
        return gelu(linear(pooled, off_ramp.mlp.dense.weight, off_ramp.mlp.dense.bias))
    vector = encoder.activation(linear(pooled, off_ramp.pooler.dense.weight, off_ramp.pooler.dense.bias))
    if encoder.final_norm:
        norm = off_ramp.pooler.norm
        vector = layer_norm(vector, vector.shape, norm.weight, norm.bias, norm.eps)
    return vector


def answer_of(model, off_ramp, *states):
    """The logits of one off-ramp for the raw states of one row, `(tokens, hidden)` each, written out."""
    return linear(vector_of(model, off_ramp, *states), off_ramp.classifier.weight, off_ramp.classifier.bias)


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


@pytest.fixture(params=[family.config.backbone_type for family in FAMILIES])
def family(request):
    return request.param


@pytest.fixture(params=[(name, attention) for name, encoder in ENCODERS.items() for attention in encoder.attentions])
def family_and_attention(request):
    """A family's name, and an attention implementation that its stock class supports."""
    return request.param


@pytest.fixture(params=["cls", "mean", "attention"])
def pooling(request):
    return request.param


def export_all(model, place, **settings):
    """
    Exported folders of a model, by dtype. Tracing takes seconds a layer, so all are made of the same graphs.
    """
    from transformers_deebert.inference.onnx import export

    trace, traced = export.export_segment, {}

    def trace_once(model, layer, *settings):
        if layer not in traced:
            traced[layer] = trace(model, layer, *settings)
        return copy.deepcopy(traced[layer])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_segment", trace_once)
        return {dtype: export.export_onnx(model, place / dtype, dtype=dtype, **settings) for dtype in export.DTYPES}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Folders of an exported BERT, with temperatures and mean pooling, by dtype."""
    return export_all(make_model(**EXPORTED), tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="session")
def exported_bert(exported):
    return exported["float32"]


@pytest.fixture(autouse=True)
def without_gradients(request):
    """Inference tests run without autograd; mark those that need it with `gradients`."""
    with torch.set_grad_enabled(request.node.get_closest_marker("gradients") is not None):
        yield
