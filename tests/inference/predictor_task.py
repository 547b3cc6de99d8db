"""Predicts as one of several processes; for the test that starts them."""

import os
import sys

import torch
from conftest import LENGTHS, make_batch, make_model

from transformers_deebert import EarlyExitPredictor


def make_rows():
    batch = make_batch(lengths=(*LENGTHS, *LENGTHS, *LENGTHS, 4))
    return [
        {"input_ids": ids[mask == 1].tolist()}
        for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    predictor = EarlyExitPredictor(make_model(off_ramp_pooling="mean"), batch_size=4)
    rows = make_rows()
    answers = predictor.predict(rows, early_exit_entropy=0.6)
    rows[30] = None  # in the share of the second process
    message = None
    try:
        predictor.predict(rows, early_exit_entropy=0.6)
    except ValueError as error:
        message = str(error)
    seen = {"logits": answers.logits, "exit_layers": answers.exit_layers, "message": message}
    torch.save(seen, f"{sys.argv[1]}/seen-by-{os.environ['RANK']}")
    torch.distributed.destroy_process_group()
