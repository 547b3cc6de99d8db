"""Measured run time of early exit, against the same model at full depth and against the stock class."""

import copy
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel

from ..checks import check_count, renamed_arguments
from .decisions import Threshold, as_criterion, check_threshold, exit_settings, normalize_threshold, score_name
from .rotation import QUIET, efficiency, gap_between, in_blocks, time_rotation


DataCollator = Callable[[list[dict[str, Any]]], Mapping[str, torch.Tensor]]
BLOCK = 16  # batches that one contender runs before the next has its turn: short against a machine's moods


@dataclass(frozen=True)
class RuntimeFigure:
    """
    Measured run time at one threshold.

    Args:
        threshold (`float` or `tuple[float, ...]`):
            Of the exit criterion's score (entropy: in nats).
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
        exit_score (`str`): Name of the exit criterion's score.
        patience (`int`): Of the exit criterion.
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
    exit_score: str = "entropy"
    patience: int = 1

    @property
    def machine_was_quiet(self) -> bool:
        """Whether the two control runs agree within 3 %."""
        return self.control_gap <= QUIET

    def to_dict(self) -> dict:
        """The fields as plain Python numbers, lists and dicts, ready for JSON."""
        return asdict(self)


@renamed_arguments(collate="data_collator")
def time_thresholds(
    model: PreTrainedModel,
    rows: Sequence[Mapping[str, Any]],
    thresholds: Sequence[Threshold],
    batch_size: int = 1,
    repeats: int = 5,
    stock_model: PreTrainedModel | None = None,
    data_collator: DataCollator | None = None,
    warm_up: int = 8,
    progress: bool = True,
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
        data_collator (`Callable`, *optional*):
            Makes a batch of tensors from a list of rows, such as `DataCollatorWithPadding(tokenizer)`; needed when the
            rows of a batch differ in length.
        warm_up (`int`, *optional*, defaults to 8):
            Batches that each contender runs before the clock starts.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar after ten seconds.
        criterion (`str`, `Callable`, [`ExitCriterion`] or `dict`, *optional*, defaults to `"entropy"`):
            The score and the patience; a threshold in it is ignored.

    Returns:
        `list[RuntimeFigure]`: one a threshold, in the order given.

    Raises:
        `ValueError`: if `rows` or `thresholds` is empty, a threshold is malformed, `batch_size` or `repeats` is below
            1, or rows of different lengths meet in a batch and there is no `data_collator`.
    """
    criterion = as_criterion(criterion)
    plain = plain_thresholds(thresholds, len(model.config.exit_layers) - 1)
    # A configuration that asks for the logits of all off-ramps would have all layers run.
    settings = [
        exit_settings(threshold, criterion.score, criterion.patience) | {"output_off_ramp_logits": False}
        for threshold in [0.0, *plain]
    ]
    contenders: list[tuple[PreTrainedModel, Sequence[Mapping[str, Any]], dict[str, Any]]]
    contenders = [(model, rows, keywords) for keywords in settings]
    if stock_model is None:
        contenders.append(contenders[0])
    else:
        contenders += [(stock_model, rows, {})] * 2 + [(without_layers(stock_model), rows, {})]
    seconds = time_models(contenders, batch_size, repeats, data_collator, warm_up, progress)

    full, *medians = [statistics.median(values) for values in seconds]
    controls = (full, medians[-1]) if stock_model is None else (medians[-3], medians[-2])
    stock = None if stock_model is None else statistics.mean(controls)
    batches = _batches(rows, batch_size, data_collator, model.device)
    figures = []
    for threshold, keywords, passes, here in zip(plain, settings[1:], seconds[1:], medians, strict=False):
        ratio = _layer_cost_ratio(model, batches, keywords)
        figures.append(
            RuntimeFigure(
                threshold=threshold,
                rows=len(rows),
                batch_size=batch_size,
                seconds=passes,
                seconds_median=here,
                full_seconds=full,
                speed_up=full / here,
                runtime_saving=1 - here / full,
                layer_cost_ratio=ratio,
                layer_saving=1 - ratio,
                stock_seconds=stock,
                stock_speed_up=None if stock is None else stock / here,
                efficiency=None if stock is None else efficiency(here, stock, medians[-1], ratio),
                control_gap=gap_between(*controls),
                spread=(max(passes) - min(passes)) / here,
                exit_score=score_name(criterion.score),
                patience=criterion.patience,
            )
        )
    return figures


@renamed_arguments(collate="data_collator")
def time_models(
    contenders: Sequence[tuple[PreTrainedModel, Sequence[Mapping[str, Any]], Mapping[str, Any]]],
    batch_size: int = 1,
    repeats: int = 5,
    data_collator: DataCollator | None = None,
    warm_up: int = 8,
    progress: bool = True,
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
        data_collator (`Callable`, *optional*):
            Makes a batch of tensors from a list of rows.
        warm_up (`int`, *optional*, defaults to 8):
            Batches that each contender runs before the clock starts.
        progress (`bool`, *optional*, defaults to `True`):
            Whether to show a progress bar after ten seconds.

    Returns:
        `list[tuple[float, ...]]`: seconds of each repeated pass, one tuple a contender.

    Raises:
        `ValueError`: if rows are empty, `batch_size` or `repeats` is below 1, `warm_up` below 0, or rows of different
            lengths meet in a batch and there is no `data_collator`.
    """
    check_count("batch_size", batch_size)
    check_count("repeats", repeats)
    check_count("warm_up", warm_up, least=0)
    calls = [
        [partial(model, **batch, **keywords) for batch in _batches(rows, batch_size, data_collator, model.device)]
        for model, rows, keywords in contenders
    ]
    blocks = -(-len(calls[0]) // BLOCK)
    models = {model for model, _, _ in contenders}
    turns = {place: in_blocks(one, warm_up, BLOCK) for place, one in enumerate(calls)}
    with evaluating(models):
        taken = time_rotation(turns, repeats * blocks, devices={one.device for one in models}, progress=progress)
    return [tuple(np.reshape(seconds, (repeats, blocks)).sum(1).tolist()) for seconds in taken.values()]


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


def _layer_cost_ratio(
    model: PreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], keywords: dict[str, Any]
) -> float:
    with evaluating([model]):
        exits = torch.cat([model(**batch, **keywords).exit_layers.cpu() for batch in batches])  # (rows,)
    return exits.double().mean().item() / model.config.num_hidden_layers


def _batches(
    rows: Sequence[Mapping[str, Any]], batch_size: int, data_collator: DataCollator | None, device: torch.device
) -> list[dict[str, torch.Tensor]]:
    if len(rows) == 0:
        raise ValueError(f"`rows` must not be empty, got {rows!r}. Pass at least one.")
    inputs = [{key: value for key, value in row.items() if key not in ("label", "labels")} for row in rows]
    groups = [inputs[start : start + batch_size] for start in range(0, len(inputs), batch_size)]
    return [{key: value.to(device) for key, value in (data_collator or _stack)(group).items()} for group in groups]


def _stack(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    lengths = {len(value) for row in rows for value in row.values()}
    if len(lengths) > 1:
        raise ValueError(
            f"`rows` of lengths {sorted(lengths)} meet in one batch. Pass "
            "data_collator=DataCollatorWithPadding(tokenizer), or batch_size=1."
        )
    return {key: torch.stack([torch.as_tensor(row[key]) for row in rows]) for key in rows[0]}


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
