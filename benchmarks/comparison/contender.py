"""What takes part in a comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


PYTORCH = "PyTorch"
COMPILED = "torch.compile"
AHEAD = "AOTInductor"
TEXTS = "PyTorch, from texts"
ONNX = {"float32": "ONNX Runtime", "int8": "ONNX Runtime, int8"}
OPENVINO = {"float32": "OpenVINO", "int8": "OpenVINO, int8 by NNCF"}

# What a runtime's times are measured against: its stock model, the first one of PyTorch once more, and no layers.
STOCK, CONTROL, NO_LAYERS = "stock", "stock again", "stock without layers"


@dataclass(frozen=True)
class Point:
    """
    A threshold, and what is known of it.

    Args:
        name (`str`): What tables call it.
        threshold (`float` or `tuple[float, ...]`): S in nats, 0 for the full depth.
        saving (`float`, *optional*): Share of the layers that it saves on the rows that scores are read on.
        accuracy (`float`, *optional*): On the same rows.
    """

    name: str
    threshold: float | tuple[float, ...]
    saving: float | None = None
    accuracy: float | None = None

    @property
    def argument(self) -> float | list[float]:
        """As a model takes it."""
        return list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold


@dataclass(frozen=True)
class Contender:
    """
    One way to answer the timed rows.

    Args:
        name (`str`): Its line in the table.
        runtime (`str`): Times are compared within it, and with stock PyTorch.
        run (`Callable[[], Any]`): Answers all timed rows once and returns what came out.
        exits (`Callable[[Any], torch.Tensor]`, *optional*):
            From what came out to exit layers, `(rows,)`, in the order of the rows; `None`: all layers are run.
        threshold, saving, accuracy: As in [`Point`].
    """

    name: str
    runtime: str
    run: Callable[[], Any]
    exits: Callable[[Any], torch.Tensor] | None = None
    threshold: float | tuple[float, ...] | None = None
    saving: float | None = 0.0
    accuracy: float | None = None

    @classmethod
    def at(cls, point: Point, name: str, runtime: str, run: Callable[[], Any], exits: Callable) -> "Contender":
        """Early exit at a threshold."""
        return cls(f"{name}, {point.name}", runtime, run, exits, point.threshold, point.saving, point.accuracy)

    @property
    def key(self) -> tuple[str, str]:
        return self.runtime, self.name


def exits_of_outputs(outputs: list[Any]) -> torch.Tensor:
    """Exit layers of a model's outputs, batch by batch."""
    return torch.cat([output.exit_layers for output in outputs])
