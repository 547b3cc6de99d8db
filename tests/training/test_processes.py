"""Two processes train and evaluate as one does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


pytestmark = pytest.mark.gradients
SCRIPT = str(Path(__file__).parents[1] / "tiny_task.py")


@pytest.mark.slow
def test_both_stages_and_the_card(tmp_path):
    """One process writes; the numbers are those of all rows."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT]
    result = subprocess.run(
        [*command, "--output_dir", str(tmp_path), "--what", "both"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr[-3000:]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["rows_scored"] == 31
    assert numbers["training"]["backbone"]["batch_size"] == 16
    assert "### Every layer alone" in (tmp_path / "README.md").read_text()


def launch(processes, folder, *options):
    # `accelerate launch --cpu` starts several processes through MPI only; under torchrun the script is the same.
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    result = subprocess.run(
        [*command, SCRIPT, "--output_dir", str(folder), "--dropout", "0", *options],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "find_unused_parameters" not in result.stderr
    numbers = json.loads((folder / "numbers.json").read_text())
    assert numbers["processes"] == processes
    return numbers, load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("what", "mode"),
    [
        pytest.param("backbone", "cached", marks=pytest.mark.slow),
        pytest.param("off_ramps", "cached", marks=pytest.mark.slow),
        pytest.param("off_ramps", "through_backbone", marks=pytest.mark.slow),
        pytest.param("joint", "alternating", marks=pytest.mark.slow),
        pytest.param("joint", "distilled", marks=pytest.mark.slow),
    ],
)
def test_two_processes_are_one(tmp_path, what, mode):
    options = ("--what", what, "--strategy" if what == "joint" else "--mode", mode)
    one, weights_one = launch(1, tmp_path / "one", *options, "--batch", "8")
    two, weights_two = launch(2, tmp_path / "two", *options, "--batch", "4")
    losses = [[entry["loss"] for entry in run["log"] if "loss" in entry] for run in (one, two)]
    assert len(losses[0]) == 16
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    for name, value in one["metrics"].items():
        if "accuracy" in name:
            assert two["metrics"][name] == pytest.approx(value), name
    for name, tensor in weights_one.items():
        if name.endswith("key.bias"):
            continue  # cancels in the softmax: its gradient is rounding, which Adam blows up
        torch.testing.assert_close(weights_two[name], tensor, atol=1e-5, rtol=1e-3)


def test_fewer_rows_than_processes(tmp_path):
    """The share of a process may be empty; the others go on."""
    numbers, _ = launch(2, tmp_path, "--what", "off_ramps", "--mode", "cached", "--rows", "1")
    assert len([entry for entry in numbers["log"] if "loss" in entry]) == 2
