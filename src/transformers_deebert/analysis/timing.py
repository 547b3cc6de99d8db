"""Measured run time of early exit, against the same model at full depth and against the stock class."""

import copy
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..checks import check_count
from ..models.exit_criteria_deebert import ExitCriterion
from .collect import as_criterion
from .decisions import Threshold, check_threshold, normalize_threshold


Collate = Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
QUIET = 0.03  # how far apart two runs of one model may be
BLOCK = 16  # batches that one contender runs before the next has its turn: short against a machine's moods


@dataclass(frozen=True)
class RuntimeFigure:
    """
    Measured run time at one threshold.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            Of the criterion's score (entropy: in nats).
        rows (`int`):
            Number of rows in a pass.
        batch_size (`int`):
            Rows a batch.
        seconds (`tuple[float, ...]`):
            Wall clock of each repeated pass over all rows.
        seconds_median (`float`):
            Their median.
        full_seconds (`float`):
            Median seconds of the same model at full depth (S = 0).
        speed_up (`float`):
            `full_seconds / seconds_median`.
        runtime_saving (`float`):
            `1 - seconds_median / full_seconds`.
        layer_cost_ratio (`float`):
            Layers run over layers in a full pass, counted in the timed runs.
        layer_saving (`float`):
            `1 - layer_cost_ratio`.
        stock_seconds (`float`, *optional*):
            Median seconds of the stock model, T; `None` without one.
        stock_speed_up (`float`, *optional*):
            `stock_seconds / seconds_median`.
        efficiency (`float`, *optional*):
            `(t0 + r (T - t0)) / t` with r the layer cost ratio, t the median seconds here and t0 those of the stock
            class with no layers; 1 means that every saved layer became saved time.
        control_gap (`float`):
            How far apart two runs of the very same model were in the same rotation (the stock model, or without one
            the model at full depth), as a fraction of the shorter. Above 0.03 the machine was too busy for a verdict.
        spread (`float`):
            How far the repeats at this threshold lie apart: slowest minus fastest, as a fraction of their median.
    """

    threshold: float | tuple[float, ...]
    rows: int
    batch_size: int
    seconds: tuple[float, ...]
    seconds_median: float
    full_seconds: float
    speed_up: float
    runtime_saving: float
    layer_cost_ratio: float
    layer_saving: float
    stock_seconds: float | None
    stock_speed_up: float | None
    efficiency: float | None
    control_gap: float
    spread: float

    @property
    def machine_was_quiet(self) -> bool:
        """Whether the two control runs agree within 3 %."""
        return self.control_gap <= QUIET

    def to_dict(self) -> dict:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return asdict(self)


def time_thresholds(
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    thresholds: Sequence[Threshold],
    batch_size: int = 1,
    repeats: int = 5,
    stock_model: PreTrainedModel | None = None,
    collate: Collate | None = None,
    warm_up: int = 8,
    progress: bool = False,
    criterion: Any = "entropy",
) -> list[RuntimeFigure]:
    """
    Time a model at several thresholds, all in one rotation with full depth and a control.

    They take turns as in [`time_models`]; each repeat passes once over all rows, and medians over the repeats are
    reported. Use rows that the model was not trained on: those exit early. The model runs where it is, in evaluation
    mode, and returns to its mode afterwards.

    Args:
        model (`PreTrainedModel`):
            An early-exit classifier.
        rows (sequence of `Mapping[str, Any]`):
            Encoded inputs, one mapping a row, not padded (`input_ids`, `attention_mask`, …). `label` and `labels` are
            left out.
        thresholds (sequence of `float` or of sequences of floats):
            Of the criterion's score (entropy: in nats).
        batch_size (`int`, *optional*, defaults to 1):
            Rows a batch.
        repeats (`int`, *optional*, defaults to 5):
            Timed passes over all rows.
        stock_model (`PreTrainedModel`, *optional*):
            The stock class with the same weights, on the same device. With it, the stock speed-up and the efficiency
            are reported, and it is the control.
        collate (`Callable`, *optional*):
            Makes a batch of tensors from a list of rows, such as `DataCollatorWithPadding(tokenizer)`; needed when the
            rows of a batch differ in length.
        warm_up (`int`, *optional*, defaults to 8):
            Batches that each contender runs before the clock starts.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.
        criterion (`str`, `Callable`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            The score and the patience that the thresholds go with; a threshold of its own is ignored.

    Returns:
        `list[RuntimeFigure]`: one a threshold, in the order given.

    Raises:
        `ValueError`: if `rows` or `thresholds` is empty, a threshold is malformed, `batch_size` or `repeats` is below
            1, or rows of different lengths meet in a batch and there is no `collate`.
    """
    plain = plain_thresholds(thresholds, len(model.config.exit_layers) - 1)
    keywords = [_keywords(threshold, as_criterion(criterion)) for threshold in [0.0, *plain]]
    contenders: list[tuple[PreTrainedModel, Sequence[Mapping[str, Any]], dict[str, Any]]]
    contenders = [(model, rows, settings) for settings in keywords]
    if stock_model is None:
        contenders.append((model, rows, keywords[0]))
    else:
        contenders += [(stock_model, rows, {})] * 2 + [(without_layers(stock_model), rows, {})]
    seconds = time_models(contenders, batch_size, repeats, collate, warm_up, progress)

    medians = [statistics.median(values) for values in seconds]
    full = medians[0]
    controls = (full, medians[-1]) if stock_model is None else (medians[-3], medians[-2])
    stock = None if stock_model is None else statistics.mean(controls)
    figures = []
    for index, threshold in enumerate(plain, start=1):
        here = medians[index]
        ratio = _layer_cost_ratio(model, rows, keywords[index], batch_size, collate)
        figures.append(
            RuntimeFigure(
                threshold=threshold,
                rows=len(rows),
                batch_size=batch_size,
                seconds=seconds[index],
                seconds_median=here,
                full_seconds=full,
                speed_up=full / here,
                runtime_saving=1 - here / full,
                layer_cost_ratio=ratio,
                layer_saving=1 - ratio,
                stock_seconds=stock,
                stock_speed_up=None if stock is None else stock / here,
                efficiency=None if stock is None else (medians[-1] + ratio * (stock - medians[-1])) / here,
                control_gap=max(controls) / min(controls) - 1,
                spread=(max(seconds[index]) - min(seconds[index])) / here,
            )
        )
    return figures


def time_models(
    contenders: Sequence[tuple[PreTrainedModel, Sequence[Mapping[str, Any]], Mapping[str, Any]]],
    batch_size: int = 1,
    repeats: int = 5,
    collate: Collate | None = None,
    warm_up: int = 8,
    progress: bool = False,
) -> list[tuple[float, ...]]:
    """
    Time any models in one rotation, each on its own encoding of the same texts.

    Every contender runs a block of batches, then the next one does, in an order that moves on by one each block, so
    that a change of the machine's speed meets all alike.

    Args:
        contenders (sequence of `tuple[PreTrainedModel, Sequence[Mapping[str, Any]], Mapping[str, Any]]`):
            A model, its rows as in [`time_thresholds`], and further keywords of its forward.
        batch_size (`int`, *optional*, defaults to 1):
            Rows a batch.
        repeats (`int`, *optional*, defaults to 5):
            Timed passes over all rows.
        collate (`Callable`, *optional*):
            Makes a batch of tensors from a list of rows.
        warm_up (`int`, *optional*, defaults to 8):
            Batches that each contender runs before the clock starts.
        progress (`bool`, *optional*, defaults to `False`):
            Whether to show a progress bar.

    Returns:
        `list[tuple[float, ...]]`: seconds of each repeated pass, one tuple a contender.

    Raises:
        `ValueError`: if rows are empty, `batch_size` or `repeats` is below 1, `warm_up` below 0, or rows of different
            lengths meet in a batch and there is no `collate`.
    """
    check_count("batch_size", batch_size)
    check_count("repeats", repeats)
    check_count("warm_up", warm_up, least=0)
    turns = [
        Turn(model, _batches(rows, batch_size, collate or _stack, model.device), dict(keywords))
        for model, rows, keywords in contenders
    ]
    with evaluating(turn.model for turn in turns):
        for turn in turns:
            turn.run(0, warm_up)
        blocks = range(0, len(turns[0].batches), BLOCK)
        with tqdm(total=repeats * len(blocks), desc="Timing", disable=not progress) as bar:
            passes = [_one_pass(turns, repeat, blocks, bar) for repeat in range(repeats)]
    return list(zip(*passes, strict=True))


def describe_machine(device: torch.device | str = "cpu") -> dict[str, str | int]:
    """
    What a timing needs beside it: processor, threads and versions. Names no user and no host.

    Args:
        device (`torch.device` or `str`, *optional*, defaults to `"cpu"`):
            Where the model ran.

    Returns:
        `dict[str, str | int]`: `device`, `processor`, `cores`, `threads`, `system`, `python`, `torch`, `transformers`.
    """
    device = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def plain_thresholds(thresholds: Sequence[Threshold], off_ramps: int) -> list[float | tuple[float, ...]]:
    """Thresholds as plain numbers and tuples; raises `ValueError` for none, or one that does not fit the model."""
    if not isinstance(thresholds, Sequence | np.ndarray) or isinstance(thresholds, str):
        raise ValueError(
            f"`thresholds` must be a list of thresholds, got {thresholds!r}. Pass a list such as [0, 0.3]."
        )
    if len(thresholds) == 0:
        raise ValueError(f"`thresholds` must not be empty, got {thresholds!r}. Pass at least one.")
    return [normalize_threshold(check_threshold(threshold, off_ramps)) for threshold in thresholds]  # type: ignore[arg-type]


@contextmanager
def evaluating(models: Iterable[PreTrainedModel]) -> Iterator[None]:
    """Models in evaluation mode without autograd; they return to their modes afterwards, whatever happens."""
    modes = {model: model.training for model in models}
    try:
        for model in modes:
            model.eval()
        with torch.inference_mode():
            yield
    finally:
        for model, mode in modes.items():
            model.train(mode)


@dataclass(frozen=True)
class Turn:
    """What one contender runs when it is its turn."""

    model: PreTrainedModel
    batches: list[dict[str, torch.Tensor]]
    keywords: dict[str, Any]

    def run(self, start: int, stop: int) -> float:
        """Seconds for batches `start` to `stop`."""
        self._synchronize()
        begin = time.perf_counter()
        for batch in self.batches[start:stop]:
            self.model(**batch, **self.keywords)
        self._synchronize()
        return time.perf_counter() - begin

    def _synchronize(self) -> None:
        if self.model.device.type != "cpu":
            torch.accelerator.synchronize(self.model.device)


def _one_pass(turns: list[Turn], repeat: int, blocks: range, bar: Any) -> list[float]:
    """Seconds of each contender over all its batches, block by block in turn."""
    seconds = [0.0] * len(turns)
    for block, start in enumerate(blocks):
        for place in range(len(turns)):
            index = (place + block + repeat) % len(turns)
            seconds[index] += turns[index].run(start, start + BLOCK)
        bar.update()
    return seconds


def _layer_cost_ratio(
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    keywords: Mapping[str, Any],
    batch_size: int,
    collate: Collate | None,
) -> float:
    with evaluating([model]):
        batches = _batches(rows, batch_size, collate or _stack, model.device)
        exits = torch.cat([model(**batch, **keywords).exit_layers.cpu() for batch in batches])  # (rows,)
    return exits.double().mean().item() / model.config.num_hidden_layers


def _batches(
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    collate: Collate,
    device: torch.device,
) -> list[dict[str, torch.Tensor]]:
    if len(rows) == 0:
        raise ValueError(f"`rows` must not be empty, got {rows!r}. Pass at least one.")
    inputs = [{key: value for key, value in row.items() if key not in ("label", "labels")} for row in rows]
    groups = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    return [{key: value.to(device) for key, value in collate(group).items()} for group in groups]


def _stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    lengths = {len(value) for row in rows for value in row.values()}
    if len(lengths) > 1:
        raise ValueError(
            f"`rows` of lengths {sorted(lengths)} meet in one batch. Pass collate=DataCollatorWithPadding(tokenizer), "
            "or batch_size=1."
        )
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


def _keywords(threshold: Any, criterion: ExitCriterion) -> dict[str, Any]:
    # A configuration that asks for the logits of all off-ramps would have all layers run.
    threshold = list(threshold) if isinstance(threshold, tuple) else threshold
    if (criterion.score, criterion.patience) == ("entropy", 1):
        return {"early_exit_entropy": threshold, "output_off_ramp_logits": False}
    return {"exit_criterion": replace(criterion, threshold=threshold), "output_off_ramp_logits": False}


def without_layers(stock_model: PreTrainedModel) -> PreTrainedModel:
    """The stock class with embeddings and head alone; its weights do not matter to the clock."""
    config = copy.deepcopy(stock_model.config)
    config.num_hidden_layers = 1  # ModernBERT cannot be made with none
    model = type(stock_model)(config)
    config.num_hidden_layers = 0  # ALBERT counts in each pass
    for layers in [module for module in model.base_model.modules() if isinstance(module, torch.nn.ModuleList)]:
        if config.model_type == "deberta-v2":  # cannot run with none
            layers[0] = _PassThrough()
        else:
            del layers[:]
    return torch.nn.Module.to(model, device=stock_model.device, dtype=stock_model.dtype)


class _PassThrough(torch.nn.Module):
    """A layer of DeBERTa-v2 that does nothing."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
