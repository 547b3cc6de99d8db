"""Exit tables, curves, choices and defaults under other criteria than the entropy, against the model itself."""

import numpy as np
import pytest
from conftest import make_model
from made_tables import class_table
from test_exit_table import collate, make_rows

from transformers_deebert import (
    ExitCriterion,
    ExitTable,
    apply_threshold,
    collect_exits,
    pick_threshold,
    sweep_thresholds,
)
from transformers_deebert.analysis import LatencyProfile, exit_curve
from transformers_deebert.models.exit_scores_deebert import SCORES


LAYERS = 6
CRITERIA = [(score, patience) for score in SCORES for patience in (1, 2)]


def collected(criterion="entropy", **settings):
    model = make_model(num_layers=LAYERS, off_ramp_pooling="mean", **settings)
    rows = make_rows()
    return model, rows, collect_exits(model, rows, collate, criterion=criterion, progress=False)


def exits_of(model, rows, criterion):
    batch = collate(rows)
    batch.pop("labels")
    return model(**batch, exit_criterion=criterion).exit_layers.tolist()


@pytest.mark.parametrize("layers", [None, [0, 1, 2, 4, 5]])
@pytest.mark.parametrize(("score", "patience"), CRITERIA)
def test_a_table_decides_as_the_model(score, patience, layers):
    model, rows, table = collected(off_ramp_layers=layers)
    table = table.with_score(score, patience)
    assert table.exit_layers == (*(layers or range(1, LAYERS)), LAYERS)
    scores = table.scores[np.isfinite(table.scores)]
    cut = 0.5 if score == "disagreement" else float(np.quantile(scores, 0.5)) + 1e-4
    labelled = [rows[place] for place in table.ids]
    seen = set()
    ramps = len(table.exit_layers) - 1
    for threshold in (cut, [cut, 0.0, *[cut] * (ramps - 2)], [cut / 2, cut, *[2 * cut] * (ramps - 2)]):
        expected = exits_of(model, labelled, ExitCriterion(score, threshold, patience))
        assert table.exits_at(threshold)[0].tolist() == expected
        seen |= set(expected)
    assert len(seen) >= 3


@pytest.mark.parametrize(("score", "patience"), CRITERIA)
def test_the_curve_is_the_sweep(score, patience):
    table = class_table(rows=80).with_score(score, patience)
    curve = exit_curve(table)
    points = sweep_thresholds(table, curve.thresholds.tolist())
    np.testing.assert_allclose(curve.layer_saving, [point.layer_saving for point in points], atol=1e-12)
    np.testing.assert_allclose(curve.accuracy, [point.scores["accuracy"] for point in points], atol=1e-12)
    assert curve.layer_saving[-1] > 0.3


@pytest.mark.parametrize(("score", "patience"), CRITERIA)
def test_a_choice_becomes_the_default(score, patience):
    model, rows, table = collected()
    table = table.with_score(score, patience)
    choice = pick_threshold(table, target_saving=0.05, evaluate_on=table)
    assert choice.met
    assert (choice.exit_score, choice.patience) == (score, patience)
    apply_threshold(model, choice)
    assert (model.config.early_exit_entropy is not None) == ((score, patience) == ("entropy", 1))
    default = exits_of(model, [rows[place] for place in table.ids], None)
    assert 1 - np.mean(default) / LAYERS == pytest.approx(choice.layer_saving)
    assert type(choice).from_dict(choice.to_dict()) == choice


def test_a_guarantee_tests_fractions_of_the_largest_score():
    table = class_table(rows=2000, strength=(1.0, 3.0)).with_score("margin")
    choice = pick_threshold(table, max_metric_drop=0.05, confidence=0.9)
    assert choice.met
    assert round(choice.threshold * 200, 6) == int(round(choice.threshold * 200, 6))
    with pytest.raises(ValueError, match="`confidence` needs a score whose largest value is known"):
        pick_threshold(table.with_score(lambda c: c.logits[:, 0].exp()), max_metric_drop=0.05, confidence=0.9)


def distance(candidate):
    """A score of one's own that needs the pooled vector."""
    return candidate.pooled.norm(dim=-1)


def test_a_score_of_ones_own_that_needs_more_than_logits(tmp_path):
    model, rows, table = collected(distance)
    loaded = collect_exits(model, rows, collate, criterion=distance, output_dir=tmp_path, progress=False)
    assert table.score_name == loaded.score_name == "distance"
    threshold = [float(np.quantile(of_exit, 0.3)) for of_exit in table.scores.T]
    expected = exits_of(model, [rows[place] for place in table.ids], ExitCriterion(distance, threshold))
    assert len(set(expected)) >= 3
    for one in (table, loaded, ExitTable.load(tmp_path)):
        assert one.exits_at(threshold)[0].tolist() == expected
    half, _ = table.split()
    assert np.array_equal(half.scores, table.scores[np.searchsorted(table.ids, half.ids)])
    with pytest.raises(ValueError, match="`temperatures` cannot be changed"):
        table.with_temperatures([2.0] * (LAYERS - 1))
    choice = pick_threshold(table, target_saving=0.1, evaluate_on=table)
    assert choice.fraction is None
    with pytest.raises(ValueError, match="a function that no configuration can hold"):
        apply_threshold(model, choice)


def test_thresholds_per_layer_need_exits_that_do_not_depend_on_each_other():
    for score, patience in (("entropy", 2), ("disagreement", 1)):
        with pytest.raises(ValueError, match="use one threshold for all off-ramps"):
            pick_threshold(class_table(rows=50).with_score(score, patience), target_saving=0.1, per_layer=True)
    assert pick_threshold(class_table(rows=50).with_score("margin"), target_saving=0.1, per_layer=True).met


def test_a_profile_of_more_exits_than_the_table_has():
    _, _, table = collected(off_ramp_layers=[0, 2])
    profile = LatencyProfile((3, 40), np.array([[1.0, 2, 3, 4, 5]] * 2), 1, {}, (0, 1, 2, 5, 6))
    assert (profile.of(table) == [1.0, 3, 5]).all()
    assert LatencyProfile.from_dict(profile.to_dict()).exit_layers == profile.exit_layers


def test_tables_of_other_scores_are_not_alike():
    table = class_table(rows=50)
    with pytest.raises(ValueError, match="another score"):
        pick_threshold(table, target_saving=0.1, evaluate_on=table.with_score("margin"))
