"""Processes that share the work."""

import os
from typing import Any

import torch


def shared_state() -> Any:
    """
    The [`~accelerate.PartialState`] of several processes that a launcher (`accelerate launch`, `torchrun`) started
    together, made now where there is none; `None` in a process that is alone.

    Raises:
        ValueError: where accelerate was begun in such a way that each of the processes takes itself for the only one.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or "LOCAL_RANK" not in os.environ:
        return None
    from accelerate import PartialState

    # Without an accelerator accelerate connects processes only when it knows that they run on the CPU.
    state = PartialState(cpu=not joins_processes())
    if state.num_processes != world:
        raise ValueError(
            f"{world} processes were launched (WORLD_SIZE), but accelerate knows {state.num_processes}, so that each "
            "would do all the work: on the CPU, make its first state with `PartialState(cpu=True)`."
        )
    return state


def joins_processes() -> bool:
    """Whether this machine has an accelerator through which accelerate connects processes."""
    if not torch.accelerator.is_available():
        return False
    accelerator = torch.accelerator.current_accelerator()
    return accelerator is not None and accelerator.type != "mps"
