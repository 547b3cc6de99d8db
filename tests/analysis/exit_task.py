"""Collects exits as one of several processes; for the test that starts them."""

import os
import sys

import torch
from conftest import make_model
from test_exit_table import collate, make_rows

from transformers_deebert import collect_exits


if __name__ == "__main__":
    torch.set_num_threads(1)
    table = collect_exits(make_model(off_ramp_pooling="mean"), make_rows(), collate, output_dir=sys.argv[1])
    table.save(f"{sys.argv[1]}-seen-by-{os.environ['RANK']}")
    torch.distributed.destroy_process_group()
