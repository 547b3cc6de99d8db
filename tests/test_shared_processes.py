"""Who takes part where several processes were launched; what they share is tested with them."""

import pytest
import torch
from accelerate import PartialState

from transformers_deebert.processes import joins_processes, shared_state


def test_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert shared_state() is None
    monkeypatch.setenv("WORLD_SIZE", "2")  # somebody else's: no launcher names this process
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert shared_state() is None


def test_processes_that_accelerate_does_not_know_of(monkeypatch):
    PartialState(cpu=True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(ValueError, match=r"2 processes were launched .* accelerate knows 1"):
        shared_state()


@pytest.mark.skipif(torch.accelerator.is_available(), reason="is about machines without an accelerator")
def test_no_accelerator(monkeypatch):
    assert not joins_processes()
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)  # torch 2.6 takes no arguments there
    assert not joins_processes()
