"""Thresholds that make given rows leave by a schedule, in any runtime."""

import numpy as np
import torch

from transformers_deebert.analysis import entropy


ALWAYS_ASKED = 1e-12  # nats; below the entropy of any row here, but the off-ramp is computed


def scheduled_exits(rows: int, layers: int, saving: float) -> np.ndarray:
    """
    Number of rows that leave at each layer, `(layers,)`: the same share of those that are left leaves at every
    off-ramp, the rest at the last layer, and `saving` of all layers is saved, as nearly as whole rows can.
    """
    low, high = 0.0, 1.0  # the share that stays
    for _ in range(60):
        stay = (low + high) / 2
        low, high = (stay, high) if (stay ** np.arange(layers)).sum() < (1 - saving) * layers else (low, stay)
    left = np.append(stay ** np.arange(layers), 0.0)
    # The middle of each row's place among all of them.
    exits = np.searchsorted(1 - left[1:], (np.arange(rows) + 0.5) / rows, side="right")
    exits = np.minimum(exits, layers - 1)
    return np.bincount(exits, minlength=layers)


def thresholds_for(entropies: np.ndarray, counts: np.ndarray) -> tuple[float, ...]:
    """
    A threshold for each off-ramp at which as many rows leave as the schedule says.

    Args:
        entropies (`np.ndarray` of shape `(rows, layers - 1)`): Nats, of each off-ramp, without ties.
        counts (`np.ndarray` of shape `(layers,)`): From [`scheduled_exits`].

    Returns:
        `tuple` of `layers - 1` floats, nats: each lies halfway between the surest row that stays and the one before.
    """
    left = np.arange(len(entropies))
    thresholds = []
    for layer, count in enumerate(counts[:-1]):
        left = left[np.argsort(entropies[left, layer], kind="stable")]
        values = entropies[left, layer]
        if count == 0:
            thresholds.append(ALWAYS_ASKED)
        elif count == len(left):
            thresholds.append(float(values[-1]) + 1e-3 if len(left) else ALWAYS_ASKED)
        else:
            thresholds.append(float(values[count - 1] + values[count]) / 2)
        left = left[count:]
    return tuple(thresholds)


@torch.inference_mode()
def off_ramp_entropies(model, batches) -> np.ndarray:
    """Nats, `(rows, layers - 1)`."""
    outputs = [model(**batch, early_exit_entropy=0.0, output_off_ramp_logits=True) for batch in batches]
    logits = [torch.stack(output.off_ramp_logits[:-1], 1) for output in outputs]
    return entropy(torch.cat(logits)).double().numpy()
