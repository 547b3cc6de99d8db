"""Off-ramps at a list of layers, the embeddings among them."""

import pytest
import torch
from conftest import LENGTHS, NUM_LAYERS, make_batch, make_model, make_stock
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModelForSequenceClassification

from transformers_deebert import EarlyExitPredictor


SPARSE = [0, 2]


def pick(layers, every):
    """The off-ramps of `every`, a model with one at each of 0 … L-1, in a model with some of them."""
    model = make_model(every.config.backbone_type, off_ramp_layers=layers, off_ramp_pooling="mean")
    state = every.state_dict()
    prefix = every.base_model_prefix
    for place, layer in enumerate(layers):
        for name, tensor in every.base_model.off_ramps[layer].state_dict().items():
            state[f"{prefix}.off_ramps.{place}.{name}"] = tensor
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    return model


def make_every(family="bert"):
    return make_model(family, off_ramp_layers=list(range(NUM_LAYERS)), off_ramp_pooling="mean")


def middle(logits):
    """A threshold of the margin that about half of the samples are below."""
    ordered = logits.softmax(-1).sort(-1, descending=True).values
    return float((1 - (ordered[:, 0] - ordered[:, 1])).median()) + 1e-4


def test_an_exit_at_the_embeddings_reads_what_layer_1_reads(family):
    model, batch = make_every(family), make_batch(family)
    output = model(**batch, exit_layer=0)
    assert output.exit_layers.tolist() == [0] * len(LENGTHS)
    state, _ = model.begin(**batch)
    assert state.layer == 0
    off_ramp = model.base_model.off_ramps[0]
    for row, length in enumerate(LENGTHS):
        hidden = model.base_model.readout(state.hidden[row : row + 1, :length])
        _, expected = off_ramp(hidden.mean(1))
        torch.testing.assert_close(output.logits[row], expected[0], atol=1e-5, rtol=0)


def test_no_layer_runs_for_the_embeddings_alone(family):
    model, batch = make_every(family), make_batch(family)
    ran = []
    model.base_model.apply_layer = lambda index, state: ran.append(index)
    model(**batch, exit_layer=0)
    assert not ran


def test_a_sparse_list_gives_the_answers_of_the_same_off_ramps(family):
    every, batch = make_every(family), make_batch(family)
    model = pick(SPARSE, every)
    full = every(**batch, output_off_ramp_logits=True).off_ramp_logits
    sparse = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert len(sparse) == 3
    for place, layer in enumerate([*SPARSE, NUM_LAYERS]):
        assert torch.equal(sparse[place], full[layer])
    thresholds = [middle(full[layer]) for layer in SPARSE]
    output = model(**batch, exit_criterion={"score": "margin", "threshold": thresholds})
    assert len(output.exit_layers.unique()) == 3
    same = every(**batch, exit_criterion={"score": "margin", "threshold": [thresholds[0], 0, thresholds[1], 0]})
    assert torch.equal(output.exit_layers, same.exit_layers)
    torch.testing.assert_close(output.logits, same.logits, atol=1e-5, rtol=0)
    assert torch.equal(model(**batch, early_exit_entropy=0).logits, make_stock(model)(**batch).logits)


def test_exit_layer_is_a_member_of_the_list():
    model, batch = make_model(off_ramp_layers=SPARSE), make_batch()
    for layer in (0, 2, NUM_LAYERS):
        assert model(**batch, exit_layer=layer).exit_layers.eq(layer).all()
    with pytest.raises(ValueError, match="one of the layers 0, 2, 4"):
        model(**batch, exit_layer=1)
    model.config.exit_layer = 0
    assert model(**batch).exit_layers.eq(0).all()


@pytest.mark.parametrize("layers", [[2, 1], [1, 1], [4], [-1], [0.5], [True], "12"])
def test_lists_that_are_refused(layers):
    with pytest.raises((ValueError, StrictDataclassError), match="off_ramp_layers"):
        make_model(off_ramp_layers=layers)


def test_no_off_ramp_at_all():
    model, batch = make_model(off_ramp_layers=[]), make_batch()
    assert model(**batch, early_exit_entropy=9.0).exit_layers.eq(NUM_LAYERS).all()


def test_the_base_model():
    every, batch = make_every(), make_batch()
    output = every.base_model(**batch, exit_layer=0)
    state, _ = every.begin(**batch)
    mask = batch["attention_mask"][..., None]
    torch.testing.assert_close(output.last_hidden_state * mask, state.hidden * mask)
    assert len(every.base_model(**batch, output_off_ramp_logits=True).off_ramp_logits) == NUM_LAYERS


def test_inputs_of_the_off_ramps_are_those_of_their_layers():
    every, batch = make_every(), make_batch()
    model = pick(SPARSE, every)
    inputs = model.base_model.compute_off_ramp_inputs(**batch)
    assert torch.equal(inputs, every.base_model.compute_off_ramp_inputs(**batch)[:, SPARSE])
    logits = model(off_ramp_inputs=inputs).off_ramp_logits
    full = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert all(torch.equal(one, other) for one, other in zip(logits, full[:-1], strict=True))


def test_the_predictor():
    model, batch = pick(SPARSE, make_every()), make_batch()
    rows = [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    full = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    criterion = {"score": "margin", "threshold": [middle(logits) for logits in full[:-1]]}
    expected = model(**batch, exit_criterion=criterion)
    assert len(expected.exit_layers.unique()) == 3
    for batch_size in (1, 3, 12):
        predictor = EarlyExitPredictor(model, batch_size=batch_size)
        answers = predictor.predict(rows, exit_criterion=criterion)
        assert answers.exit_layers.tolist() == expected.exit_layers.tolist()
        torch.testing.assert_close(answers.logits, expected.logits, atol=1e-5, rtol=0)
        counts = [int((expected.exit_layers == layer).sum()) for layer in (0, 2, NUM_LAYERS)]
        assert list(predictor.exit_counts()) == counts


def test_loading_with_another_list_keeps_what_both_name(tmp_path, family):
    model, batch = pick([0, 2, 3], make_every(family)), make_batch(family)
    model.config.exit_criterion = {"score": "margin", "threshold": [0.1, 0.2, 0.3], "patience": 1}
    model.config.off_ramp_temperatures = [1.5, 2.0, 2.5]
    model.save_pretrained(tmp_path)
    fewer = AutoModelForSequenceClassification.from_pretrained(tmp_path, off_ramp_layers=[0, 3])
    assert fewer.config.off_ramps_trained
    assert fewer.config.exit_criterion["threshold"] == [0.1, 0.3]
    assert fewer.config.off_ramp_temperatures == [1.5, 2.5]
    expected = model(**batch, output_off_ramp_logits=True).off_ramp_logits
    found = fewer(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert [torch.equal(one, expected[place]) for one, place in zip(found, (0, 2, 3), strict=True)] == [True] * 3
    more = type(model).from_pretrained(tmp_path, off_ramp_layers=[1, 2, 3])
    assert not more.config.off_ramps_trained
    assert more.config.exit_criterion["threshold"] == [0.0, 0.2, 0.3]
    assert more.config.off_ramp_temperatures == [1.0, 2.0, 2.5]
    found = more(**batch, output_off_ramp_logits=True).off_ramp_logits
    assert torch.equal(found[1], expected[1])
    assert torch.equal(found[2], expected[2])
    more.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in more.state_dict().items())


def test_a_plain_checkpoint_starts_with_any_list(tmp_path):
    make_stock(make_model()).save_pretrained(tmp_path)
    model = type(make_model()).from_pretrained(tmp_path, off_ramp_layers=SPARSE)
    assert len(model.bert.off_ramps) == 2
    assert not model.config.off_ramps_trained
