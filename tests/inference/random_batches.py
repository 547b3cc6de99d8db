"""Random batches and thresholds through `model.onnx` and the PyTorch model."""

import numpy as np
import onnxruntime
import torch
from conftest import make_batch

from transformers_deebert.inference.onnx.model import session_options
from transformers_deebert.models.exit_scores_deebert import SCORES, ExitCandidate


LONGEST = 20  # tokens that the position tables hold
NEAR = 1e-5  # scores so close to a threshold may be on either side of it
FEW, MANY = 300, 10_000


def open_file(path):
    options = session_options(1)
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def feeds_of(session, batch, thresholds=None):
    """What a file takes of a batch; without thresholds it runs its default."""
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    arrays = {"token_type_ids": np.zeros_like(arrays["input_ids"])} | arrays
    feeds = {value.name: arrays[value.name] for value in session.get_inputs()}
    return feeds if thresholds is None else feeds | {"exit_threshold": np.array(thresholds, np.float32)}


def run_file(session, batch, thresholds=None):
    """Logits and exit layers."""
    return session.run(["logits", "exit_layer"], feeds_of(session, batch, thresholds))


def scores_of(off_ramp_logits, score):
    """Scores of the off-ramps, `(off-ramps, rows)`, where each is evaluated, and how far each is from another side."""
    *logits, _ = off_ramp_logits
    if score == "disagreement":  # of whole numbers, but two labels may be equally probable
        gaps = torch.stack(logits).topk(2).values
        return torch.ones(gaps.shape[:2]), (gaps[..., 0] - gaps[..., 1]).abs()
    values = torch.stack([SCORES[score].function(ExitCandidate(one)) for one in logits])
    return values, None


def check_random_batches(path, model, cases, family="bert", score="entropy", patience=1):
    """
    Batches of 1 … 12 rows and 1 … 20 tokens, padded on either side, and thresholds that leave some off-ramps switched
    off: the file gives the exit layers of the PyTorch model, but where a score is at its threshold, and its logits.
    """
    session, numbers = open_file(path), np.random.default_rng(0)
    every = model(**make_batch(family), output_off_ramp_logits=True).off_ramp_logits
    usual = scores_of(every, score)[0].sort().values.numpy()
    usual = np.concatenate([usual, usual[:, -1:] + 1], 1)  # one that all rows are below
    seen, excused = set(), 0
    for case in range(cases):
        lengths = numbers.integers(1, LONGEST + 1, numbers.integers(1, 13)).tolist()
        width, side = int(numbers.integers(max(lengths), LONGEST + 1)), str(numbers.choice(["left", "right"]))
        batch = make_batch(family, lengths=lengths, width=width, side=side, seed=case)
        thresholds = numbers.choice(usual.T, len(usual)).diagonal() * numbers.uniform(0.9, 1.1, len(usual))
        on = (numbers.random(len(usual)) < 0.7) & (thresholds > 100 * NEAR)
        thresholds = (thresholds * on).astype(np.float32)
        if numbers.random() < 0.2:
            thresholds = thresholds[:1]
        given = [float(value) for value in thresholds]
        criterion = {"score": score, "threshold": given if len(given) > 1 else given[0], "patience": patience}
        expected = model(**batch, exit_criterion=criterion, output_off_ramp_logits=True)
        logits, layers = run_file(session, batch, thresholds)
        scores, gaps = scores_of(expected.off_ramp_logits, score)
        if gaps is None:
            gaps = (scores - torch.from_numpy(thresholds)[:, None]).abs()
        gaps = gaps.where(torch.from_numpy(thresholds)[:, None] > 0, torch.inf)
        clear = ~(gaps < NEAR).any(0).numpy()
        assert layers[clear].tolist() == expected.exit_layers[clear].tolist(), case
        torch.testing.assert_close(torch.from_numpy(logits)[clear], expected.logits[clear], atol=1e-4, rtol=1e-4)
        seen |= set(layers.tolist())
        excused += int((~clear).sum())
    assert excused <= cases / 10
    first = patience if score == "disagreement" else patience - 1
    assert seen == set(model.exit_layers[first:])
    return seen
