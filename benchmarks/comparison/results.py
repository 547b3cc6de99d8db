"""From seconds to the lines of a table, and the file that keeps them."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transformers_deebert.analysis.rotation import median_ratio, time_rotation
from transformers_deebert.analysis.tables import to_plain
from transformers_deebert.analysis.timing import QUIET

from .contender import CONTROL, NO_LAYERS, PYTORCH, STOCK, Contender


LEAST_ROUNDS = 3


def compare(
    contenders: Sequence[Contender], rows: int, layers: int, seconds: float, exits: dict[Any, Any] | None = None
) -> dict[str, Any]:
    """
    Times contenders in one rotation.

    Args:
        contenders (`Sequence[Contender]`): Among them the stock class in PyTorch, twice.
        rows (`int`): Rows of a pass.
        layers (`int`): Of the model.
        seconds (`float`): Budget for each contender.
        exits (`dict`, *optional*): By contender, the exit layers that are expected of the timed rows, `(rows,)`.

    Returns:
        `dict`: what belongs into a group, under the names of the JSON file.
    """
    functions = {contender.key: contender.run for contender in contenders}
    outputs = {key: run() for key, run in functions.items()}  # compilers and caches warm up
    shares, differ = {}, {}
    for contender in contenders:
        shares[contender.key] = 1.0
        if contender.exits is not None:
            found = contender.exits(outputs[contender.key])
            shares[contender.key] = found.double().mean().item() / layers
            if exits is not None and contender.key in exits:
                differ[contender.key] = int((found.numpy() != np.asarray(exits[contender.key])).sum())
    del outputs
    taken = time_rotation(functions, LEAST_ROUNDS, warm_up=0, seconds=seconds, progress=False)
    gap = median_ratio(taken[PYTORCH, CONTROL], taken[PYTORCH, STOCK])
    gap = max(gap, 1 / gap) - 1
    return {
        "rows": rows,
        "rounds": len(taken[PYTORCH, STOCK]),
        "control_gap": gap,
        "verdict": gap <= QUIET,
        "contenders": [
            line(contender, taken, shares[contender.key], rows) | {"exits_that_differ": differ.get(contender.key)}
            for contender in contenders
        ],
    }


def line(contender: Contender, taken: dict[Any, list[float]], share: float, rows: int) -> dict[str, Any]:
    """One contender's figures; ratios are taken within each round, then their median."""
    own = taken[contender.key]
    base, bare = (contender.runtime, STOCK), (contender.runtime, NO_LAYERS)
    median = statistics.median(own)
    low, high = np.percentile(own, [25, 75])
    efficiency = None
    if base in taken and bare in taken and contender.name not in (STOCK, CONTROL, NO_LAYERS):
        efficiency = statistics.median(
            (none + share * (full - none)) / here
            for none, full, here in zip(taken[bare], taken[base], own, strict=True)
        )
    return {
        "name": contender.name,
        "runtime": contender.runtime,
        "threshold": contender.threshold,
        "saving": contender.saving,
        "timed_saving": 1 - share,
        "accuracy": contender.accuracy,
        "ms_per_row": 1e3 * median / rows,
        "spread": (high - low) / median,
        "faster_than_stock": median_ratio(taken[PYTORCH, STOCK], own),
        "faster_than_same_runtime": median_ratio(taken[base], own) if base in taken else None,
        "efficiency": efficiency,
        "seconds": own,
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """The whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(json.dumps(to_plain(results), indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)
