"""Kinds of off-ramps compared on a frozen encoder: its pooled states once, then every kind in seconds."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from tqdm.auto import tqdm
from transformers import set_seed

from ..analysis.exit_curve import mean_saving
from ..analysis.exit_table import ExitTable
from ..analysis.row_windows import data_columns, run_windows
from .multi_exit_trainer import divergence
from .off_ramp_cache import run_backbone


LARGEST = 2**31  # bytes of pooled states that are held in memory


def kinds_of(depth: int) -> dict[str, dict[str, Any]]:
    """The kinds that are compared by default, by name: fields of the configuration of a model with so many layers."""
    every = {"off_ramp_layers": list(range(depth))}  # behind the embeddings as well, where an exit costs no layer
    return {
        f"{head}{' past' if context == 'past' else ''}": {"off_ramp_head": head, "off_ramp_context": context} | every
        for head in ("linear", "mlp")
        for context in ("own", "past")
    }


@dataclass(frozen=True)
class PooledRows:
    """
    Everything that off-ramps read of rows and learn from.

    Args:
        vectors (`torch.FloatTensor` of shape `(rows, layers, hidden)`): Pooled states behind layers 0 … L-1.
        head (`torch.FloatTensor` of shape `(rows, labels)`): Logits of the model's own head.
        labels (`torch.LongTensor` of shape `(rows,)`): Class indices; the head's answers where there are no labels.
    """

    vectors: torch.Tensor
    head: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, rows: torch.Tensor) -> "PooledRows":
        return PooledRows(self.vectors[rows], self.head[rows], self.labels[rows])

    def to(self, device: torch.device) -> "PooledRows":
        return PooledRows(self.vectors.to(device), self.head.to(device), self.labels.to(device))

    def split(self, share: float, seed: int) -> "tuple[PooledRows, PooledRows]":
        """A random share of the rows behind the others."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        cut = len(self) - max(1, round(share * len(self)))
        return self.select(order[:cut]), self.select(order[cut:])


@dataclass(frozen=True)
class FitSettings:
    """
    How off-ramps are fitted.

    Args:
        epochs (`int`): At most; an off-ramp keeps the epoch after which its loss on the rows held out was lowest.
        learning_rate (`float`): Of AdamW; it rises over the first tenth of the steps and falls to 0, linearly.
        batch_size (`int`): Rows of a step.
        distillation_weight, distillation_temperature (`float`): As of [`DeeBertTrainingArguments`]. Off-ramps that
            learn from the head's answers alone save more than such that learn from labels (docs/strategies.md).
        held_out (`float`): Share of the training rows that kinds are compared and epochs selected on.
        patience (`int`): Epochs without a lower loss of any off-ramp after which fitting ends.
        seed (`int`): Of parameters, order of the rows and split.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    batch_size: int = 32
    distillation_weight: float = 1.0
    distillation_temperature: float = 1.0
    held_out: float = 0.2
    patience: int = 2
    seed: int = 0


@dataclass(frozen=True)
class FittedKind:
    """
    A kind of off-ramp and how it did on the rows held out.

    Args:
        name (`str`), fields (`dict`): Of the configuration.
        mean_saving (`float`): [`mean_saving`] on the rows held out.
        epochs (`tuple[int, ...]`): After which each off-ramp is kept.
        seconds (`float`): That fitting took.
        state (`dict[str, torch.Tensor]`): Of the off-ramps.
    """

    name: str
    fields: dict[str, Any]
    mean_saving: float
    epochs: tuple[int, ...]
    seconds: float
    state: dict[str, torch.Tensor]


def search_off_ramps(
    model: Any,
    dataset: Any,
    data_collator: Callable[[list[dict]], dict[str, torch.Tensor]],
    settings: FitSettings | None = None,
    kinds: Mapping[str, Mapping[str, Any]] | None = None,
    batch_size: int = 32,
    progress: bool = True,
) -> list[FittedKind]:
    """
    Fits several kinds of off-ramps on a part of the rows, and gives the model the kind of largest [`mean_saving`] on
    the others. Everything but the off-ramps stays as it is.

    Args:
        model (`PreTrainedModel`): An early-exit classifier with `"cls"` or `"mean"` pooling, on its device.
        dataset: Map-style, of encoded rows; without labels the off-ramps learn from the model's own head.
        data_collator (`Callable`): From a list of rows to tensors.
        settings ([`FitSettings`], *optional*): How they are fitted.
        kinds (`Mapping`, *optional*): Fields of the configuration by name; by default those of [`kinds_of`].
        batch_size (`int`, *optional*, defaults to 32): Rows of one pass of the encoder.
        progress (`bool`, *optional*, defaults to `True`): Whether bars are shown.

    Returns:
        `list[FittedKind]`: the kept kind first.

    Raises:
        ValueError: for attention pooling, whose vectors change with every step.
    """
    settings = settings or FitSettings()
    kinds = kinds_of(model.config.num_hidden_layers) if kinds is None else kinds
    fitted_on, held_out = pool_rows(model, dataset, data_collator, batch_size, settings.seed, progress).split(
        settings.held_out, settings.seed
    )
    found = []
    with tqdm(total=len(kinds), desc="Kinds of off-ramps", disable=not progress) as bar:
        for name, fields in kinds.items():
            found.append(fit_kind(model, name, fields, fitted_on, held_out, settings))
            bar.update()
    found.sort(key=lambda kind: -kind.mean_saving)
    install(model, found[0])
    return found


def pool_rows(
    model: Any,
    dataset: Any,
    data_collator: Callable[[list[dict]], dict[str, torch.Tensor]],
    batch_size: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> PooledRows:
    """One pass of the encoder over rows; of more than fit into 2 GiB of pooled states, over a random sample."""
    config = model.config
    if config.off_ramp_pooling == "attention":
        raise ValueError("`off_ramp_pooling` is 'attention', which learns what it reads: use 'mean' or 'cls'.")
    model.base_model.set_off_ramps(off_ramp_layers=list(range(config.num_hidden_layers)), off_ramp_context="own")
    number = min(len(dataset), LARGEST // (4 * config.hidden_size * config.num_hidden_layers))
    sample = (
        torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))[:number].sort().values.tolist()
    )
    taken = {*data_columns(model), "label"}

    @torch.no_grad()
    def run(items: list[dict], indices: list[int]) -> dict[str, np.ndarray]:
        items = [{name: value for name, value in item.items() if name in taken} for item in items]
        inputs = {name: value.to(model.device) for name, value in data_collator(items).items()}
        labels = inputs.pop("labels", inputs.pop("label", None))
        columns = run_backbone(model, inputs, reads_head=True)
        answers = columns["head_logits"].argmax(-1) if labels is None else labels.cpu().numpy()
        return columns | {"labels": answers.astype(np.int64)}

    model.eval()
    rows = [dataset[index] for index in sample] if number < len(dataset) else dataset
    text = "States" if progress else None
    windows = list(run_windows(run, rows, range(number), batch_size, text))
    names = ("off_ramp_inputs", "head_logits", "labels")
    return PooledRows(*(torch.from_numpy(np.concatenate([window[name] for window in windows])) for name in names))


def fit_kind(
    model: Any,
    name: str,
    fields: Mapping[str, Any],
    rows: PooledRows,
    held_out: PooledRows,
    settings: FitSettings,
) -> FittedKind:
    """Fits off-ramps of one kind, which the model then has."""
    start = time.perf_counter()
    set_seed(settings.seed)
    model.base_model.set_off_ramps(**fields)
    off_ramps = model.base_model.off_ramps
    layers = list(model.exit_layers[:-1])
    rows, held_out = rows.to(model.device), held_out.to(model.device)
    order = torch.Generator().manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(off_ramps.parameters(), lr=settings.learning_rate, weight_decay=0.0, fused=True)
    steps = settings.epochs * -(-len(rows) // settings.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / max(1, 0.1 * steps), (steps - step) / (0.9 * steps))
    )
    lowest, epochs = torch.full((len(layers),), torch.inf), [0] * len(layers)
    state = {key: value.clone() for key, value in off_ramps.state_dict().items()}
    for epoch in range(1, settings.epochs + 1):
        off_ramps.train()
        for batch in torch.randperm(len(rows), generator=order).split(settings.batch_size):
            exit_losses(model, rows.select(batch), layers, settings).sum().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        off_ramps.eval()
        with torch.no_grad():
            losses = exit_losses(model, held_out, layers, settings).cpu()
        for place in (losses < lowest).nonzero()[:, 0].tolist():
            lowest[place], epochs[place] = losses[place], epoch
            own = off_ramps[place].state_dict(prefix=f"{place}.")
            state |= {key: value.clone() for key, value in own.items()}
        if epoch - max(epochs) >= settings.patience:
            break
    off_ramps.load_state_dict(state)
    saving = mean_saving(table_of(model, held_out))
    return FittedKind(name, dict(fields), saving, tuple(epochs), time.perf_counter() - start, state)


def exit_losses(model: Any, rows: PooledRows, layers: Sequence[int], settings: FitSettings) -> torch.Tensor:
    """`(off-ramps,)`: mean losses of rows, as of [`OffRampTrainer`]."""
    logits = off_ramp_logits(model, rows, layers)
    weight, temperature = settings.distillation_weight, settings.distillation_temperature
    losses = []
    for one in logits:
        loss = (1 - weight) * functional.cross_entropy(one.float(), rows.labels)
        if weight > 0:
            loss = loss + weight * temperature**2 * divergence(one, rows.head, temperature).mean()
        losses.append(loss)
    return torch.stack(losses)


def off_ramp_logits(model: Any, rows: PooledRows, layers: Sequence[int]) -> tuple[torch.Tensor, ...]:
    return model(off_ramp_inputs=rows.vectors[:, layers]).off_ramp_logits


@torch.no_grad()
def table_of(model: Any, rows: PooledRows) -> ExitTable:
    """The exits of pooled rows."""
    rows = rows.to(model.device)
    logits = [one.float() for one in off_ramp_logits(model, rows, model.exit_layers[:-1])]
    table = ExitTable.from_logits(torch.stack([*logits, rows.head], 1).cpu().numpy(), rows.labels.cpu().numpy())
    return replace(table, exit_layers=model.exit_layers)


def install(model: Any, kind: FittedKind) -> None:
    """Gives the model the off-ramps of a kind."""
    model.base_model.set_off_ramps(**kind.fields)
    model.base_model.off_ramps.load_state_dict(kind.state)
    model.config.off_ramps_trained, model.config.off_ramp_temperatures = True, None
