"""Entropy, and criteria of one's own: they need no change of the loop."""

import math

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, off_ramp_answers
from hypothesis import given
from hypothesis import strategies as st

from transformers_deebert import EntropyCriterion, ExitCandidate, ExitCriterion, entropy
from transformers_deebert.models import early_exit_deebert


@given(st.lists(st.lists(st.floats(-50, 50), min_size=2, max_size=2), min_size=1, max_size=8))
def test_entropy_is_the_papers(rows):
    logits = torch.tensor(rows, dtype=torch.float64)
    expected = logits.exp().sum(-1).log() - (logits * logits.exp()).sum(-1) / logits.exp().sum(-1)
    torch.testing.assert_close(entropy(logits), expected.float(), atol=1e-5, rtol=1e-4)


def test_entropy_of_known_predictions():
    logits = torch.tensor([[0.0, 0.0, 0.0], [math.log(0.5), math.log(0.25), math.log(0.25)]])
    torch.testing.assert_close(entropy(logits), torch.tensor([math.log(3), 1.5 * math.log(2)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entropy_is_finite_and_not_negative(dtype):
    logits = torch.tensor([[1e4, -1e4], [-1e4, -1e4], [6e4, 6e4], [0.0, 1e-7]]).to(dtype)
    values = entropy(logits)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()
    assert (values >= 0).all()
    torch.testing.assert_close(values, torch.tensor([0.0, 1, 1, 1]) * math.log(2))


def test_entropy_of_logits_that_are_not_finite():
    assert entropy(torch.tensor([[float("nan"), 0], [float("inf"), 0], [-float("inf"), 0]])).isnan().all()


@given(st.floats(-30, 30), st.floats(1e-6, 1))
def test_the_criterion_compares_the_entropy(logit, threshold):
    logits = torch.tensor([[logit, 0.0]])
    leave = EntropyCriterion((threshold,))(ExitCandidate(logits, None), 1)
    assert leave.tolist() == (entropy(logits) < threshold).tolist()


class Patience(ExitCriterion):
    """Leaves when as many exits in a row agree: needs a memory that stays with its row."""

    def __init__(self, patience):
        self.patience = patience

    def __call__(self, candidate, layer):
        answers = candidate.logits.argmax(-1)
        if not candidate.memory:
            candidate.memory.update(answers=answers, count=torch.ones_like(answers))
        else:
            agrees = answers == candidate.memory["answers"]
            count = torch.where(agrees, candidate.memory["count"] + 1, 1)
            candidate.memory.update(answers=answers, count=count)
        return candidate.memory["count"] >= self.patience


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_criterion_with_a_memory(monkeypatch, family):
    """The memory follows its row through compaction."""
    model, batch = make_model(family), make_batch(family)
    answers = off_ramp_answers(model, **batch)[0].argmax(-1)
    expected = []
    for row in answers.tolist():
        agree = [layer for layer in range(2, NUM_LAYERS) if row[layer - 1] == row[layer - 2]]
        expected.append(agree[0] if agree else NUM_LAYERS)
    assert len(set(expected)) >= 3
    plan = early_exit_deebert.make_exit_plan

    def with_patience(*args, **kwargs):
        return early_exit_deebert.replace(plan(*args, **kwargs), criterion=Patience(2), compact=True)

    monkeypatch.setattr(early_exit_deebert, "make_exit_plan", with_patience)
    assert model(**batch).exit_layers.tolist() == expected


def test_a_criterion_reads_the_pooled_vector(monkeypatch):
    model, batch = make_model(off_ramp_head="linear"), make_batch()
    seen = []

    class Reader(ExitCriterion):
        def __call__(self, candidate, layer):
            seen.append((candidate.logits, model.bert.off_ramps[layer - 1].classifier(candidate.pooled)))
            return torch.zeros(len(candidate.logits), dtype=torch.bool)

    plan = early_exit_deebert.make_exit_plan
    monkeypatch.setattr(
        early_exit_deebert,
        "make_exit_plan",
        lambda *args, **kwargs: early_exit_deebert.replace(plan(*args, **kwargs), criterion=Reader(), compact=True),
    )
    assert model(**batch).exit_layers.eq(NUM_LAYERS).all()
    assert len(seen) == NUM_LAYERS - 1
    for logits, expected in seen:
        assert torch.equal(logits, expected)
