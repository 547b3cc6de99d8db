"""Calibration error by hand, temperatures that are known, and the model that takes them."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import NUM_LAYERS, make_model, spread_thresholds
from made_tables import class_table, table_of
from test_exit_table import collate, make_rows

from transformers_deebert import ExitTable, collect_exits, fit_temperatures
from transformers_deebert.analysis import expected_calibration_error, reliability_bins
from transformers_deebert.analysis.calibration import cross_entropies


TRUE = (0.5, 2.5)


def known_table(rows=6000, classes=4, seed=0):
    """Labels are drawn from the own head's probabilities; the off-ramps say the same, too sure or not sure enough."""
    generator = np.random.default_rng(seed)
    logits = 1.5 * generator.normal(size=(rows, classes))
    noise = generator.gumbel(size=(rows, classes))
    labels = (logits + noise).argmax(-1)  # a draw from softmax(logits)
    return ExitTable.from_logits(np.stack([logits * TRUE[0], logits * TRUE[1], logits], 1), labels)


def test_the_error_by_hand():
    # Confidences .9 .9 .55 .55; right, wrong, right, right.
    table = table_of([[0.9, 0.5], [0.1, 0.5], [0.55, 0.5], [0.45, 0.5]], [1, 1, 1, 0])
    low, high = reliability_bins(table, 1, bins=5)
    assert (low.low, low.high, low.rows, low.accuracy) == (0.4, 0.6, 2, 1.0)
    assert (high.low, high.high, high.rows, high.accuracy) == (0.8, 1.0, 2, 0.5)
    assert (low.confidence, high.confidence) == pytest.approx((0.55, 0.9))
    assert expected_calibration_error(table, 1, bins=5) == pytest.approx(0.5 * 0.45 + 0.5 * 0.4)
    # In one bin what is too sure makes up for what is not: 0.725 against 0.75.
    assert expected_calibration_error(table, 1, bins=1) == pytest.approx(0.025)


def test_certainty_is_in_the_last_bin_and_broken_rows_in_none():
    logits = np.array([[[1e4, 0.0]] * 2, [[np.nan, 0.0]] * 2, [[np.inf, 0.0]] * 2])
    table = ExitTable.from_logits(logits, np.array([1, 0, 0]))
    (only,) = reliability_bins(table, 2)
    assert (only.low, only.high, only.rows, only.confidence, only.accuracy) == (14 / 15, 1.0, 1, 1.0, 0.0)
    assert expected_calibration_error(table, 1) == 1.0
    assert expected_calibration_error(table.select([1, 2]), 1) == 0.0


def test_known_temperatures_are_found():
    table = known_table()
    fit = fit_temperatures(table)
    assert fit.temperatures == pytest.approx(TRUE, rel=0.08)
    assert (fit.fitted_rows, fit.read_rows) == (3000, 3000)
    scaled = table.with_temperatures(fit.temperatures)
    assert np.array_equal(scaled.answers, table.answers)
    assert np.array_equal(scaled.logits[:, -1], table.logits[:, -1].astype(scaled.logits.dtype))
    fitting, reading = table.split(0)
    for ramp, temperature in enumerate(fit.temperatures):

        def loss(one, on, ramp=ramp):
            return cross_entropies(on.logits[:, ramp] / one, on.labels).mean()

        assert all(loss(temperature, fitting) <= loss(other, fitting) + 1e-9 for other in np.geomspace(0.05, 20, 200))
        assert fit.loss_before[ramp] == pytest.approx(loss(1, reading))
        assert fit.loss_after[ramp] == pytest.approx(loss(temperature, reading))
        assert fit.loss_after[ramp] < fit.loss_before[ramp] - 0.01
        assert fit.error_before[ramp] == pytest.approx(expected_calibration_error(reading, ramp + 1))
        assert fit.error_after[ramp] < fit.error_before[ramp] / 2
    assert fit.to_dict()["temperatures"] == list(fit.temperatures)


def test_temperatures_of_a_scaled_table_are_absolute():
    table = known_table(rows=1000)
    first = fit_temperatures(table)
    again = fit_temperatures(table.with_temperatures((3.0, 0.7)))
    assert again.temperatures == pytest.approx(first.temperatures, rel=1e-3)
    assert again.loss_after == pytest.approx(first.loss_after, rel=1e-5)
    assert again.loss_before[0] != pytest.approx(first.loss_before[0], rel=1e-3)


def test_other_rows_to_read_on():
    table, reading = known_table(rows=800), known_table(rows=500, seed=1)
    fit = fit_temperatures(table, evaluate_on=reading)
    assert (fit.fitted_rows, fit.read_rows) == (800, 500)
    assert fit.error_before[0] == expected_calibration_error(reading, 1)
    relabelled = replace(reading, labels=(reading.labels + 1) % 4)
    assert fit_temperatures(table, evaluate_on=relabelled).temperatures == fit.temperatures


def test_broken_rows_have_no_part():
    table = known_table(rows=500)
    logits = table.logits.copy()
    logits[::5, 0, 1] = np.nan
    broken = replace(table, logits=logits)
    sound = table.select(np.arange(500) % 5 > 0)
    expected = fit_temperatures(sound, evaluate_on=sound)
    found = fit_temperatures(broken, evaluate_on=broken)
    assert found.temperatures[0] == pytest.approx(expected.temperatures[0])
    assert found.loss_after[0] == pytest.approx(expected.loss_after[0])

    logits[:, 0] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        nothing = fit_temperatures(replace(table, logits=logits))
    assert (nothing.temperatures[0], nothing.error_after[0], nothing.loss_after[0]) == (1.0, 0.0, 0.0)


def test_the_model_takes_the_temperatures():
    """Row by row: what `with_temperatures` says is what the model does."""
    model, rows = make_model(off_ramp_pooling="mean"), make_rows()
    table = collect_exits(model, rows, collate, progress=False)
    assert table.temperatures is None
    fit = fit_temperatures(table)
    scaled = table.with_temperatures(fit.temperatures)
    model.config.off_ramp_temperatures = list(fit.temperatures)
    again = collect_exits(model, rows, collate, progress=False)
    assert again.temperatures == scaled.temperatures == fit.temperatures
    np.testing.assert_allclose(again.logits, scaled.logits, rtol=1e-4, atol=1e-5)
    thresholds = spread_thresholds(torch.tensor(scaled.entropies))
    exits, answers = scaled.exits_at(thresholds)
    assert again.exits_at(thresholds)[0].tolist() == exits.tolist()
    outputs = [model(input_ids=torch.tensor([row["input_ids"]]), early_exit_entropy=thresholds) for row in rows]
    assert [output.exit_layers.item() for output in outputs] == exits.tolist()
    assert [output.logits.argmax().item() for output in outputs] == answers.tolist()
    assert len(set(exits)) == NUM_LAYERS
    assert (table.exits_at(thresholds)[0] != exits).any()  # the temperatures matter
    np.testing.assert_allclose(again.with_temperatures(None).logits, table.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda table: fit_temperatures(table.select([0, 1, 2])), "`table` has 3 rows"),
        (lambda table: reliability_bins(table, 0), "`layer` must be one of 1, 2, 3, 4, 5, 6, got 0"),
        (lambda table: expected_calibration_error(table, 7), "`layer` must be one of 1, 2, 3, 4, 5, 6, got 7"),
        (lambda table: reliability_bins(table, 1, bins=2.5), "`bins` must be a whole number >= 1, got 2.5"),
        (lambda table: table.with_temperatures([1.0] * 4 + [0.0]), "`temperatures` must hold 5 numbers above 0"),
        (lambda table: table.with_temperatures([1.0] * 4 + [np.inf]), "`temperatures` must hold 5 numbers above 0"),
        (lambda table: table.with_temperatures(2.0), "`temperatures` must hold 5 numbers above 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call(class_table(rows=20))
