"""Exported classifiers with exits, on any runtime: called like the PyTorch model, the layers run elsewhere."""

import os
import shutil
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from ..models.exit_loop_deebert import run_call
from ..models.exit_plan_deebert import ExitPlan, make_exit_plan
from ..models.exit_scores_deebert import ExitCandidate
from ..models.inputs_deebert import check_labels, prepare_tokens
from ..models.layer_state_deebert import LayerState
from ..models.outputs_deebert import EarlyExitSequenceClassifierOutput


HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")


class ExportedEarlyExitModel(PreTrainedModel):
    """
    A classifier with exits whose layers are run by another runtime, a [`LayerRunner`]. It has no parameters and is for
    inference on the host. A runtime is a subclass with [`run_layer`] and a way to load.

    In front of layer 1, which embeds the tokens as well, a state holds the tokens themselves.

    Args:
        config (`PreTrainedConfig`): Of the exported model.
        folder (`Path`): The exported files.
        max_tokens (`int`, *optional*): Number of tokens that the position table holds.
        temperatures (`list[float]`, *optional*): Of the off-ramps, applied in the exported graphs.
    """

    base_model_prefix = ""
    main_input_name = "input_ids"
    has_head = True
    token_inputs: tuple[str, ...] = ("input_ids", "token_type_ids")

    def __init__(
        self, config: PreTrainedConfig, folder: Path, max_tokens: int | None, temperatures: list[float] | None
    ) -> None:
        super().__init__(config)
        self.folder = folder
        self.token_limit = max_tokens
        self.exported_temperatures = temperatures
        self.loss_type = "ForSequenceClassification"
        self.eval()

    def run_layer(
        self, index: int, tensors: dict[str, torch.Tensor], evaluate: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        Runs layer `index` (0-based) and, where `evaluate`, the exit behind it.

        Args:
            index (`int`): Of the layer.
            tensors (`dict[str, torch.Tensor]`):
                `attention_mask`, and for layer 1 the tokens, else the states `hidden` in front of it.
            evaluate (`bool`): Whether the exit is evaluated.

        Returns:
            The states behind the layer, `None` behind the last, and the exit's logits `(rows, labels)`.
        """
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:  # type: ignore[override]
        """Copies the exported folder, with the configuration as it is now."""
        shutil.copytree(self.folder, save_directory, dirs_exist_ok=True)
        self.config.to_json_file(Path(save_directory) / "config.json")

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    # ---- the runner

    def max_tokens(self) -> int | None:
        return self.token_limit

    def vocabulary(self) -> int:
        return self.config.vocab_size

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return self.config.exit_layers

    def make_plan(self, **settings: Any) -> ExitPlan:
        """Temperatures are in the graphs."""
        return replace(make_exit_plan(self.config, False, **settings), temperatures=None)

    def begin(self, **inputs: Any) -> tuple[LayerState, torch.Tensor | None]:
        mask, tokens, columns = prepare_tokens(inputs, self.token_limit, {"input_ids": self.vocabulary()})
        return LayerState.begin(torch.empty(*mask.shape, 0), mask, **tokens), columns

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        tensors = {"hidden": state.hidden, "attention_mask": state.mask, **state.tokens}
        hidden, state.exit_logits = self.run_layer(state.layer, tensors, evaluate)
        state.hidden = state.hidden if hidden is None else hidden
        state.tokens = {}
        state.layer += 1

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        return ExitCandidate(state.exit_logits, None, state.memory, state.layer)

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | np.ndarray | None = None,
        attention_mask: torch.Tensor | np.ndarray | None = None,
        token_type_ids: torch.Tensor | np.ndarray | None = None,
        labels: torch.Tensor | np.ndarray | None = None,
        early_exit_entropy: float | list[float] | None = None,
        exit_criterion: Any = None,
        exit_layer: int | None = None,
        output_off_ramp_logits: bool | None = None,
    ) -> EarlyExitSequenceClassifierOutput:
        """
        As [`EarlyExitClassifier.forward`], with torch tensors or numpy arrays; what comes back are torch tensors on
        the CPU. `off_ramp_temperatures` are those that were exported, whatever the configuration says now.
        """
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        plan = self.make_plan(
            early_exit_entropy=early_exit_entropy,
            exit_criterion=exit_criterion,
            exit_layer=exit_layer,
            output_off_ramp_logits=output_off_ramp_logits,
        )
        with torch.no_grad():
            output = run_call(self, plan, {name: as_tensor(name, value) for name, value in inputs.items()})
        answers, loss = output.answers, None
        if (targets := as_tensor("labels", labels)) is not None:
            targets = check_labels(targets, self.config, len(answers.logits), training=False)
            # The stock loss notes the kind of problem in the configuration it is given: a call must leave no trace.
            loss = self.loss_function(targets, answers.logits, copy(self.config))
        return EarlyExitSequenceClassifierOutput(
            loss=loss,
            logits=answers.logits,
            exit_layers=answers.exit_layers,
            off_ramp_logits=output.off_ramp_logits,
        )


def as_tensor(name: str, value: Any) -> torch.Tensor | None:
    """Integers as exported graphs want them, int64 on the CPU; everything else is left to the checks as it is."""
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    if not isinstance(value, torch.Tensor):
        raise ValueError(
            f"`{name}` must be a torch tensor or a numpy array, got a `{type(value).__name__}`: use "
            '`tokenizer(..., return_tensors="pt")`.'
        )
    if name in ("input_ids", "token_type_ids"):
        if value.is_floating_point() or value.dtype == torch.bool:
            raise ValueError(f"`{name}` must hold integers, got {value.dtype}.")
        return value.to("cpu", torch.long)
    return value.cpu()


def find_folder(name: str | os.PathLike, subfolder: str = "", **hub: Any) -> Path:
    """
    The folder of an exported model: a local one, or the files of a repository on the Hub, downloaded to the cache.

    Args:
        name (`str` or `os.PathLike`): Folder, or id of a repository.
        subfolder (`str`, *optional*): Of either.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`, as for `from_pretrained`.

    Raises:
        ValueError: for what is neither a folder nor a repository that can be reached; for unknown arguments.
    """
    unknown = sorted(set(hub) - set(HUB_ARGUMENTS))
    if unknown:
        raise ValueError(f"`{unknown[0]}` is no argument here: choose from {', '.join(HUB_ARGUMENTS)}.")
    folder = Path(name)
    if not folder.is_dir():
        try:
            patterns = [f"{subfolder}/*" if subfolder else "*"]
            folder = Path(snapshot_download(str(name), allow_patterns=patterns, **hub))
        except (HFValidationError, OSError) as error:
            raise ValueError(
                f"{str(name)!r} is neither a folder nor a repository on the Hub that can be loaded ({error})."
            ) from error
    return folder / subfolder
