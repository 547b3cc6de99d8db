"""Rows and columns that accelerators keep so that shapes come again: a test on the CPU that rounds as they do."""

import pytest
import torch
from conftest import LENGTHS, NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds

from transformers_deebert.models import exit_answers_deebert
from transformers_deebert.models.exit_answers_deebert import usual_size


def test_usual_sizes():
    cuda = torch.device("cuda")
    assert sorted({usual_size(size, cuda) for size in range(1, 33)}) == [
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        10,
        12,
        14,
        16,
        20,
        24,
        28,
        32,
    ]
    assert all(size <= usual_size(size, cuda) <= 1.25 * size for size in range(1, 1000))
    assert usual_size(37, torch.device("cpu")) == 37


@pytest.mark.parametrize("side", ["right", "left"])
def test_exited_rows_kept_for_a_usual_size_change_nothing(monkeypatch, side):
    lengths = LENGTHS * 3
    model, batch = make_model(off_ramp_pooling="mean"), make_batch(lengths=lengths, side=side)
    thresholds = spread_thresholds(off_ramp_answers(model, **batch)[1])
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) == NUM_LAYERS
    kept = []

    def rounded(size, device):
        kept.append(usual_size(size, torch.device("cuda")) - size)
        return size + kept[-1]

    monkeypatch.setattr(exit_answers_deebert, "usual_size", rounded)
    output = model(**batch, early_exit_entropy=thresholds)
    assert any(kept)
    assert output.exit_layers.tolist() == expected.exit_layers.tolist()
    torch.testing.assert_close(output.logits, expected.logits)
