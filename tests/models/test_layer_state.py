"""The algebra of the state: rows selected and joined are rows computed alone."""

from dataclasses import replace

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_deebert.models.layer_state_deebert import (
    LayerState,
    resize_columns,
    rotate_columns,
    rotation,
    rotation_back,
)


def states_after(model, layers, **batch):
    state, _ = model.base_model.begin(**batch)
    for _ in range(layers):
        model.base_model.advance(state)
    return state


@pytest.mark.parametrize("layer", range(NUM_LAYERS))
def test_states_of_two_batches_continue_together(family, layer):
    """A wide and a narrow batch, joined in front of layer `layer + 1`."""
    model = make_model(family)
    wide, narrow = make_batch(family, lengths=(12, 5, 9)), make_batch(family, lengths=(4, 7), seed=1)
    first, second = states_after(model, layer, **wide), states_after(model, layer, **narrow)
    joined = LayerState.cat([first, replace(second, rows=second.rows + 3)])
    assert joined.rows.tolist() == [0, 1, 2, 3, 4]
    assert joined.mask.shape == (5, 12)
    for _ in range(layer, NUM_LAYERS):
        model.base_model.advance(joined)
    for state, rows in (
        (states_after(model, NUM_LAYERS, **wide), [0, 1, 2]),
        (states_after(model, NUM_LAYERS, **narrow), [3, 4]),
    ):
        width = state.mask.shape[1]
        attended = state.mask.unsqueeze(-1)
        torch.testing.assert_close(
            joined.hidden[rows, :width] * attended, state.hidden * attended, atol=1e-5, rtol=1e-5
        )


def test_states_at_different_layers_are_not_joined():
    model = make_model()
    with pytest.raises(ValueError, match=r"`states` are at layers \[1, 2\]"):
        LayerState.cat([states_after(model, layer, **make_batch()) for layer in (1, 2)])


def some_state():
    hidden = torch.arange(24.0).reshape(3, 4, 2)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0]])
    state = LayerState.begin(hidden, mask, position=torch.arange(12).reshape(3, 4))
    state.memory = {"count": torch.tensor([5, 6, 7])}
    state.context = {"attention_mask": "derived"}
    return state


@given(st.lists(st.integers(0, 2), max_size=5))
def test_select_takes_everything_along(index):
    state = some_state().select(torch.tensor(index, dtype=torch.long))
    assert state.rows.tolist() == index
    assert state.hidden[:, 0, 0].tolist() == [8.0 * row for row in index]
    assert state.tokens["position"][:, 0].tolist() == [4 * row for row in index]
    assert state.memory["count"].tolist() == [5 + row for row in index]
    assert state.context is None


@given(st.integers(1, 7))
def test_resize(width):
    state = some_state().resize(width)
    assert state.mask.shape == (3, width)
    assert state.hidden.shape == (3, width, 2)
    assert state.tokens["position"].shape == (3, width)
    assert (state.mask[:, 4:] == 0).all()
    assert torch.equal(state.mask[:, : min(width, 4)], some_state().mask[:, :width])


def test_select_and_cat_are_inverse():
    state = some_state()
    parts = [state.select(torch.tensor([row])) for row in range(3)]
    joined = LayerState.cat(parts)
    for name in ("hidden", "mask", "rows"):
        assert torch.equal(getattr(joined, name), getattr(state, name))
    assert torch.equal(joined.memory["count"], state.memory["count"])
    assert joined.active.all()


@given(
    st.integers(1, 6).flatmap(
        lambda width: st.lists(st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=4)
    )
)
@settings(deadline=None)
def test_rotations(rows):
    mask = torch.tensor(rows)
    columns = rotation(mask)
    turned = rotate_columns(mask, columns)
    has_tokens = mask.any(1)
    assert (turned[has_tokens, 0] == 1).all()
    assert torch.equal(turned.sum(1), mask.sum(1))
    assert torch.equal(rotate_columns(turned, rotation_back(columns)), mask)


def test_resize_columns_keeps_what_fits():
    tensor = torch.arange(6).reshape(2, 3)
    assert resize_columns(tensor, 2).tolist() == [[0, 1], [3, 4]]
    assert resize_columns(tensor, 4).tolist() == [[0, 1, 2, 0], [3, 4, 5, 0]]


def test_tokens_of_the_layers_go_with_their_rows():
    """ModernBERT's positions; states with and without them are not joined."""
    model = make_model("modernbert")
    batch = make_batch("modernbert", lengths=(12, 5, 9), side="left")
    positions = (batch["attention_mask"].cumsum(1) * 2).clamp(min=1)  # every second place
    expected = model(**batch, position_ids=positions)
    assert not torch.allclose(expected.logits, model(**batch).logits, atol=1e-3)
    with_positions, _ = model.base_model.begin(**batch, position_ids=positions)
    narrow = with_positions.select(torch.tensor([1])).resize(5)
    assert narrow.tokens["position_ids"].tolist() == [[2, 4, 6, 8, 10]]
    joined = LayerState.cat([narrow, with_positions.select(torch.tensor([0, 2]))])
    for _ in range(NUM_LAYERS):
        model.base_model.advance(joined)
    logits = model.classify(model.base_model.readout(joined.hidden), joined.mask)
    torch.testing.assert_close(logits, expected.logits[[1, 0, 2]], atol=1e-5, rtol=1e-5)
    without, _ = model.base_model.begin(**batch)
    with pytest.raises(ValueError, match="`states` were begun with different arguments"):
        LayerState.cat([with_positions, without])
