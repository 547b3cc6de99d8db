"""Scores, exit criteria, and scores of one's own: they need no change of the library."""

import math

import pytest
import torch
from conftest import NUM_LAYERS, make_batch, make_model, off_ramp_answers
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given
from hypothesis import strategies as st

from transformers_deebert import DeeBertConfig, ExitCandidate, ExitCriterion
from transformers_deebert.analysis import entropy
from transformers_deebert.models.exit_scores_deebert import (
    SCORES,
    checked_score,
    disagreement,
    find_score,
    least_confidence,
    margin,
)


REFUSED = (ValueError, StrictDataclassError)  # of a configuration


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


@given(st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=8))
def test_least_confidence_and_margin(rows):
    logits = torch.tensor(rows)
    ordered = logits.double().softmax(-1).sort(-1, descending=True).values
    candidate = ExitCandidate(logits)
    torch.testing.assert_close(least_confidence(candidate).double(), 1 - ordered[:, 0], atol=1e-5, rtol=0)
    torch.testing.assert_close(margin(candidate).double(), 1 - (ordered[:, 0] - ordered[:, 1]), atol=1e-5, rtol=0)


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=2), st.floats(0.01, 0.6))
def test_with_two_labels_three_scores_are_one_rule(logits, threshold):
    """Each is a decreasing function of max p, so thresholds translate into each other."""
    candidate = ExitCandidate(torch.tensor([logits], dtype=torch.float64))
    p = torch.tensor(logits, dtype=torch.float64).softmax(-1).max().item()
    bound = 1 - threshold  # exits where max p is above this
    if abs(p - bound) < 1e-4 or bound <= 0.5:
        return
    limits = {
        "least_confidence": threshold,
        "margin": 1 - (2 * bound - 1),
        "entropy": -(bound * math.log(bound) + (1 - bound) * math.log(1 - bound)),
    }
    exits = {name: bool(SCORES[name].function(candidate) < limit) for name, limit in limits.items()}
    assert set(exits.values()) == {p > bound}


def test_disagreement():
    memory = {}
    logits = [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]]
    scores = [disagreement(ExitCandidate(torch.tensor(one), memory=memory)).tolist() for one in logits]
    assert scores == [[math.inf, math.inf], [0, 1], [1, 0]]


@pytest.mark.parametrize("score", [*SCORES, lambda candidate: candidate.logits[:, 0] * 0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_does_not_exit(score, value):
    candidate = ExitCandidate(torch.tensor([[9.0, value], [9.0, -9.0]]), memory={"previous_label": torch.zeros(2)})
    assert checked_score(find_score(score), candidate).isinf().tolist() == [True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_does_not_exit(value):
    candidate = ExitCandidate(torch.zeros(1, 2))
    assert checked_score(lambda candidate: torch.tensor([value]), candidate).tolist() == [math.inf]


def expected_with_patience(below, patience):
    """Exit layers from `(rows, off-ramps)` flags, off-ramps behind layers 1 …, row by row."""
    exits = []
    for row in below.tolist():
        run, found = 0, NUM_LAYERS
        for layer, confident in enumerate(row, start=1):
            run = run + 1 if confident else 0
            if run == patience:
                found = layer
                break
        exits.append(found)
    return exits


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("patience", [1, 2])
@pytest.mark.parametrize("name", ["entropy", "least_confidence", "margin"])
def test_patience(family, name, patience):
    """The run of confident exits follows its row through compaction."""
    model, batch = make_model(family), make_batch(family)
    logits, _ = off_ramp_answers(model, **batch)
    scores = SCORES[name].function(ExitCandidate(logits.flatten(0, 1).float())).view(logits.shape[:2])[:, :-1]
    threshold = float(scores.median()) + 1e-4
    expected = expected_with_patience(scores < threshold, patience)
    assert len(set(expected)) >= 3
    criterion = {"score": name, "threshold": threshold, "patience": patience}
    assert model(**batch, exit_criterion=criterion).exit_layers.tolist() == expected


def test_disagreement_with_patience_is_the_rule_of_pabee():
    model, batch = make_model(num_layers=6), make_batch()
    answers = torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits, 1).argmax(-1)
    for patience in (1, 2):
        expected = []
        for row in answers.tolist():
            agree = [a == b for a, b in zip(row[1:-1], row[:-2], strict=True)]  # from layer 2 on
            runs = [all(agree[place - patience + 1 : place + 1]) for place in range(patience - 1, len(agree))]
            expected.append(runs.index(True) + patience + 1 if True in runs else 6)
        assert len(set(expected)) >= 3
        criterion = ExitCriterion("disagreement", 0.5, patience)
        assert model(**batch, exit_criterion=criterion).exit_layers.tolist() == expected


def test_an_exit_that_is_switched_off_neither_continues_nor_breaks_a_run():
    model, batch = make_model(num_layers=6), make_batch()
    answers = torch.stack(model(**batch, output_off_ramp_logits=True).off_ramp_logits, 1).argmax(-1)
    # Only the exits behind layers 1, 3 and 5 are evaluated: the previous exit of 3 is 1.
    expected = [3 if row[2] == row[0] else 5 if row[4] == row[2] else 6 for row in answers.tolist()]
    assert len(set(expected)) >= 3
    criterion = {"score": "disagreement", "threshold": [0.5, 0, 0.5, 0, 0.5]}
    assert model(**batch, exit_criterion=criterion).exit_layers.tolist() == expected


def test_the_short_form_is_the_entropy():
    model, batch = make_model(), make_batch()
    for threshold in (0.4, [0.3, 0.5, 0.2]):
        short = model(**batch, early_exit_entropy=threshold)
        long = model(**batch, exit_criterion=ExitCriterion("entropy", threshold))
        assert torch.equal(short.exit_layers, long.exit_layers)
        assert torch.equal(short.logits, long.logits)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_score_of_ones_own_with_a_memory(family):
    """A function of a candidate is all that it takes; its memory follows its row through compaction."""

    def agreement(candidate):
        answers = candidate.logits.argmax(-1)
        previous = candidate.memory.get("mine", torch.full_like(answers, -1))
        candidate.memory["mine"] = answers
        return (answers != previous).float()

    model, batch = make_model(family), make_batch(family)
    own = model(**batch, exit_criterion={"score": agreement, "threshold": 0.5}).exit_layers
    built_in = model(**batch, exit_criterion={"score": "disagreement", "threshold": 0.5}).exit_layers
    assert len(own.unique()) >= 3
    assert torch.equal(own, built_in)


def test_a_score_of_ones_own_reads_the_pooled_vector_and_the_layer():
    model, batch = make_model(off_ramp_head="linear"), make_batch()
    seen = []

    def score(candidate):
        seen.append((candidate.layer, candidate.logits, candidate.pooled))
        return torch.ones(len(candidate.logits))

    assert model(**batch, exit_criterion={"score": score, "threshold": 1.0}).exit_layers.eq(NUM_LAYERS).all()
    assert [layer for layer, *_ in seen] == list(range(1, NUM_LAYERS))
    for layer, logits, pooled in seen:
        assert torch.equal(logits, model.bert.off_ramps[layer - 1].classifier(pooled))


class Lookalike:
    """As a criterion of another copy of the module, after a load of remote code."""

    score, threshold, patience = "margin", 0.4, 1


def test_what_a_call_and_a_configuration_take():
    model, batch = make_model(), make_batch()
    expected = model(**batch, exit_criterion=ExitCriterion("margin", 0.4)).exit_layers
    assert len(expected.unique()) >= 3
    assert torch.equal(model(**batch, exit_criterion=Lookalike()).exit_layers, expected)
    model.config.exit_criterion = ExitCriterion("margin", 0.4).to_dict()
    assert torch.equal(model(**batch).exit_layers, expected)
    # Any of the three in a call overrides all of the configuration.
    assert model(**batch, early_exit_entropy=0).exit_layers.eq(NUM_LAYERS).all()
    assert model(**batch, exit_layer=2).exit_layers.eq(2).all()
    again = type(model.config).from_dict(model.config.to_dict())
    assert again.exit_criterion == {"score": "margin", "threshold": 0.4, "patience": 1}


@pytest.mark.parametrize(
    ("criterion", "words"),
    [
        ({"score": "margin"}, "missing .'threshold'"),
        ({"score": "margin", "threshold": 0.1, "patence": 2}, "unknown .'patence'"),
        ({"score": "sharpness", "threshold": 0.1}, "one of entropy, least_confidence, margin, disagreement"),
        ({"score": "margin", "threshold": -1}, "finite and not negative"),
        ({"score": "margin", "threshold": [0.1, 0.2]}, "2 thresholds, but the model has 3 off-ramps"),
        ({"score": "margin", "threshold": 0.1, "patience": 0}, "`patience` must be"),
        ("margin", "must be an `ExitCriterion` or a dict"),
        ({"score": lambda candidate: 0.0, "threshold": 0.1}, "tensor of shape"),
    ],
)
def test_criteria_that_are_refused(criterion, words):
    with pytest.raises(ValueError, match=words):
        make_model()(**make_batch(), exit_criterion=criterion)


def test_settings_that_exclude_each_other():
    model, batch = make_model(), make_batch()
    criterion = {"score": "margin", "threshold": 0.1}
    with pytest.raises(ValueError, match="`early_exit_entropy` .* and `exit_criterion` .* exclude each other"):
        model(**batch, early_exit_entropy=0.1, exit_criterion=criterion)
    with pytest.raises(REFUSED, match="exclude each other"):
        DeeBertConfig(exit_layer=1, exit_criterion=criterion)
    with pytest.raises(REFUSED, match="which no configuration can hold"):
        DeeBertConfig(exit_criterion={"score": len, "threshold": 0.1})
    model.train()
    with pytest.raises(ValueError, match="`exit_criterion` .* cannot be used in training mode"):
        model(**batch, exit_criterion=criterion)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_scores_that_do_not_fit_the_problem_are_refused(problem):
    model, batch = make_model(problem_type=problem), make_batch()
    for name in SCORES:
        with pytest.raises(ValueError, match=f"score '{name}' needs a model that chooses one of several classes"):
            model(**batch, exit_criterion={"score": name, "threshold": 0.1})
    own = {"score": lambda candidate: candidate.logits.abs().sum(-1), "threshold": 1e9}
    assert model(**batch, exit_criterion=own).exit_layers.eq(1).all()
