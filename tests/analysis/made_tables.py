"""Exit tables for tests: of any number of classes, and whose later layers know more."""

import numpy as np

from transformers_deebert import ExitTable


def class_table(rows=600, layers=6, classes=3, seed=0, strength=(0.5, 3.5), lengths=True):
    """Random logits of which more and more points to the true class; rows differ in how hard they are."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, rows)
    hardness = generator.normal(size=(rows, 1))
    pull = np.linspace(*strength, layers) + hardness + 0.4 * generator.normal(size=(rows, layers))
    logits = generator.normal(size=(rows, layers, classes)) + 2 * pull[..., None] * np.eye(classes)[labels][:, None]
    tokens = generator.integers(3, 40, rows) if lengths else None
    return ExitTable.from_logits(logits.astype(np.float32), labels, tokens)


def table_of(probabilities, labels, **more):
    """A table of the probability of class 1, `(rows, layers)`, of two."""
    of_one = np.asarray(probabilities, dtype=np.float64)
    return ExitTable.from_logits(np.log(np.stack([1 - of_one, of_one], -1)), np.array(labels), **more)


def cuts(entropies):
    """All thresholds that differ in what they let out: 0, between two neighbours, and above all."""
    values = np.unique(entropies[np.isfinite(entropies)])
    # Scores are computed in float32: equal rows may differ by rounding.
    values = values[np.append(True, np.diff(values) > 1e-6)] if len(values) else values
    return [0.0, *((values[1:] + values[:-1]) / 2).tolist(), 9.0]
