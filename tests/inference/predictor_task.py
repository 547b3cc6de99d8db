"""Predicts as one of several processes; for the test that starts them."""

import os
import sys

import torch
from accelerate import PartialState
from conftest import LENGTHS, make_batch, make_model

from transformers_deebert import EarlyExitPredictor


def make_rows():
    batch = make_batch(lengths=(*LENGTHS, *LENGTHS, *LENGTHS, 4))
    return [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


SIZES = (0, 1, 2, 37)  # nothing, fewer rows than processes, as many as two, and an uneven share


def message_of(predictor, items):
    """What `predict` raises."""
    try:
        predictor.predict(items, early_exit_entropy=0.6)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


class Unreadable(list):
    def __getitem__(self, index):
        if index == len(self) - 1:
            raise OSError("the disk is gone")
        return super().__getitem__(index)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[2] == "cpu":
        PartialState(cpu=True)
    predictor = EarlyExitPredictor(make_model(off_ramp_pooling="mean"), batch_size=4)
    rows = make_rows()
    answers = [predictor.predict(rows[:size], early_exit_entropy=0.6) for size in SIZES]
    counts = predictor.exit_counts()
    bad = [*rows[:30], None, *rows[31:]]  # in the share of the last process
    returned = predictor.predict(bad, early_exit_entropy=0.6, errors="return")
    seen = {
        "logits": [one.logits for one in answers],
        "exit_layers": [one.exit_layers for one in answers],
        "labels": [one.labels for one in answers],
        "counts": counts,
        "bad": message_of(predictor, bad),
        "all bad": message_of(predictor, [None]),
        "unreadable": message_of(predictor, Unreadable(rows)),
        "endless": message_of(predictor, iter(rows)),
        "failed": list(returned.errors),
        "others": returned.exit_layers,
    }
    torch.save(seen, f"{sys.argv[1]}/seen-by-{os.environ['RANK']}")
    PartialState().destroy_process_group()
