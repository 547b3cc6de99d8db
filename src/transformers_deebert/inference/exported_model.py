"""Exported classifiers with off-ramps, on any runtime but PyTorch."""

import os
import shutil
import threading
from collections.abc import Callable
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.utils import PushToHubMixin
from transformers.utils.generic import can_return_tuple

from ..models.exit_loop_deebert import run_call
from ..models.exit_plan_deebert import ExitPlan, make_exit_plan
from ..models.exit_scores_deebert import ExitCandidate
from ..models.inputs_deebert import check_labels, prepare_tokens
from ..models.layer_state_deebert import LayerState
from ..models.outputs_deebert import EarlyExitSequenceClassifierOutput
from .exported_folder import ExportNotes, damage_of, find_folder, read_config, read_notes, write_config


class SingleFile(Protocol):
    """
    A loaded file with all layers, and the exits inside.

    Attributes:
        inputs (`list[str]`): Names of its inputs.
    """

    inputs: list[str]

    def run(self, tensors: dict[str, torch.Tensor], thresholds: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(rows, labels)` and exit layers `(rows,)`, from token arguments and a threshold an off-ramp."""


class Segment(Protocol):
    """
    A loaded file: a layer, or the embeddings, with the exit behind it, if there is one.

    Attributes:
        inputs (`list[str]`): Names of its inputs.
        has_exit (`bool`): Whether there is an exit.
    """

    inputs: list[str]
    has_exit: bool

    def run(self, tensors: dict[str, torch.Tensor], evaluate: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """
        The states, `None` behind the last layer, and the exit's logits, `None` unless `evaluate`.

        Args:
            tensors (`dict[str, torch.Tensor]`): `attention_mask`, and token arguments or `hidden`.
            evaluate (`bool`): Whether the exit is evaluated.
        """


class ExportedEarlyExitModel(PushToHubMixin):
    """
    A classifier with off-ramps whose layers are files of another runtime, a [`LayerRunner`]: called like the PyTorch
    model, it gives the same answers and exits. A call that the single file knows is one run of that; others go from
    segment to segment, which are loaded when the first such call comes. It has no parameters and is for inference on
    the host. A runtime defines how files are opened and `runtime`, the name of its package beside this module.

    Args:
        config (`PreTrainedConfig`): Of the exported model.
        notes ([`ExportNotes`]): Of the exported folder.
        folder (`Path`): The exported folder.
        open_segment (`Callable`): From a file to its [`Segment`].
        open_single_file (`Callable`): From a file to its [`SingleFile`].
    """

    runtime: ClassVar[str]
    has_head = True
    training = False
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(
        self,
        config: PreTrainedConfig,
        notes: ExportNotes,
        folder: Path,
        open_segment: Callable[[Path], Segment],
        open_single_file: Callable[[Path], SingleFile],
    ) -> None:
        self.config: Any = config
        self.notes = notes
        self.folder = folder
        self.exported_temperatures = notes.temperatures
        self.token_limit = notes.max_tokens
        self.open_segment = open_segment
        self.lock = threading.Lock()
        self.single_file: SingleFile | None = None
        self.loaded_segments: dict[int, Segment] | None = None
        if notes.single_file is None:
            known = self.segments[min(self.segments)].inputs
        else:
            with damage_of(folder / notes.single_file.file):
                self.single_file = open_single_file(folder / notes.single_file.file)
            known = self.single_file.inputs
        self.token_inputs = tuple(name for name in ("input_ids", "token_type_ids") if name in known)

    @classmethod
    def load(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        open_segment: Callable[[Path], Segment],
        open_single_file: Callable[[Path], SingleFile],
        **hub: Any,
    ) -> Any:
        """
        Loads an exported folder.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Local folder, or repository on the Hub.
            open_segment (`Callable`):
                From a file to its [`Segment`].
            open_single_file (`Callable`):
                From a file to its [`SingleFile`].
            hub:
                `subfolder`, `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`, as of
                `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: for a folder or repository that is not there, without files to run, or with a file that is
                missing, damaged or does not fit the others.
        """
        folder = find_folder(pretrained_model_name_or_path, **hub)
        notes = read_notes(folder / f"{cls.runtime}.json")
        names = notes.files if notes.single_file is None else [*notes.files, notes.single_file.file]
        missing = [name for name in names if not (folder / name).is_file()]
        if missing or not names:
            lacking = ", ".join(missing) or "segments"
            raise ValueError(f"{str(folder)!r} lacks {lacking}: export the model again.")
        with damage_of(folder / "config.json"):
            config = read_config(folder)
            config.exit_layers  # noqa: B018  # computed from several fields
        return cls(config, notes, folder, open_segment, open_single_file)

    @property
    def segments(self) -> dict[int, Segment]:
        """By layer; 0, the embeddings, where an exit stands behind them."""
        with self.lock:
            if self.loaded_segments is None:
                self.loaded_segments = self.load_segments()
            return self.loaded_segments

    def load_segments(self) -> dict[int, Segment]:
        """Raises `ValueError` where there are none, or for files that are damaged or do not fit the configuration."""
        folder, exit_layers = self.folder, self.config.exit_layers
        if not self.notes.files:
            raise ValueError(
                f"{str(folder)!r} has no segments, which other exit criteria than that of its single file, "
                "`exit_layer`, tables of all exits and the predictor need: export the model again, with "
                "`segments=True`."
            )
        segments = {}
        for layer, name in enumerate(self.notes.files, start=min(1, *exit_layers)):
            with damage_of(folder / name):
                segments[layer] = self.open_segment(folder / name)
        exits = tuple(layer for layer, segment in segments.items() if segment.has_exit)
        embedding = [layer for layer, segment in segments.items() if "input_ids" in segment.inputs]
        if (max(segments), exits, embedding) != (exit_layers[-1], exit_layers, [min(segments)]):
            raise ValueError(
                f"The {len(segments)} segments in {str(folder)!r}, with exits behind the layers {exits}, do not fit "
                f"its config.json, with exits behind {exit_layers}: export the model again."
            )
        return segments

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Copies the exported files, with the configuration as it is now; `kwargs` of other models are ignored."""
        target = Path(save_directory)
        if not (target.exists() and target.samefile(self.folder)):
            shutil.copytree(self.folder, target, dirs_exist_ok=True)
        write_config(self.config, target)

    def to(self, *args: Any, **kwargs: Any) -> "ExportedEarlyExitModel":
        """Stays where it is: its runtime chooses the device."""
        return self

    def eval(self) -> "ExportedEarlyExitModel":
        return self

    def train(self, mode: bool = True) -> "ExportedEarlyExitModel":
        if mode:
            raise ValueError(f"`mode` is True, but a `{type(self).__name__}` cannot be trained: train the checkpoint.")
        return self

    # ---- the runner

    def max_tokens(self) -> int | None:
        return self.token_limit

    def table_sizes(self) -> dict[str, int]:
        sizes = {"input_ids": self.config.vocab_size}
        if "token_type_ids" in self.token_inputs:
            sizes["token_type_ids"] = self.config.type_vocab_size
        return sizes

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return self.config.exit_layers

    def make_plan(self, **settings: Any) -> ExitPlan:
        """Temperatures are in the files."""
        return replace(make_exit_plan(self.config, False, **settings), temperatures=None)

    def begin(self, **inputs: Any) -> tuple[LayerState, torch.Tensor | None]:
        """The tokens wait in `hidden` for the first segment, which embeds them: int64 `(rows, width, arguments)`."""
        mask, tokens, columns = prepare_tokens(inputs, self.token_limit, self.table_sizes())
        # Those that were not given are zeros, as in the stock models.
        stacked = [tokens[name] if name in tokens else torch.zeros_like(mask) for name in self.token_inputs]
        return LayerState.begin(torch.stack(stacked, -1), mask), columns

    def apply(self, segment: int, state: LayerState, evaluate: bool) -> None:
        """Runs a segment, in place."""
        tensors = {"attention_mask": state.mask, "hidden": state.hidden}
        if not state.hidden.is_floating_point():
            tensors |= zip(self.token_inputs, state.hidden.unbind(-1), strict=True)
        hidden, state.exit_logits = self.segments[segment].run(tensors, evaluate)
        state.hidden = state.hidden if hidden is None else hidden

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        if 0 in self.segments and not state.hidden.is_floating_point():
            self.apply(0, state, evaluate=False)
        state.layer += 1
        self.apply(state.layer, state, evaluate)

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        if state.layer == 0:
            self.apply(0, state, evaluate=True)
        return ExitCandidate(state.exit_logits, None, state.memory, state.layer)

    def carry_exit(self, state: LayerState) -> None:
        """Segments carry nothing from exit to exit: what would need it is not exported as segments."""

    def readout(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden

    # ---- calls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

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
        the CPU. `off_ramp_temperatures` are those that were exported, whatever the configuration states now. A score
        of the caller's own reads logits; pooled vectors are not exported.
        """
        tokens = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: as_tensor(name, value) for name, value in tokens.items()}
        targets = as_tensor("labels", labels)
        ids = inputs["input_ids"]
        if targets is not None and ids is not None:
            targets = check_labels(targets, self.config, len(ids), training=False)
        plan = self.make_plan(
            early_exit_entropy=early_exit_entropy,
            exit_criterion=exit_criterion,
            exit_layer=exit_layer,
            output_off_ramp_logits=output_off_ramp_logits,
        )
        off_ramp_logits = None
        if self.single_file is not None and self.notes.single_file.knows(plan):
            logits, exit_layers = self.run_single_file(plan, inputs)
        else:
            with torch.no_grad():
                output = run_call(self, plan, inputs)
            logits, exit_layers, off_ramp_logits = (
                output.answers.logits,
                output.answers.exit_layers,
                output.off_ramp_logits,
            )
        return EarlyExitSequenceClassifierOutput(
            # The loss notes the kind of problem in the configuration it is given.
            loss=None if targets is None else ForSequenceClassificationLoss(targets, logits, copy(self.config)),
            logits=logits,
            exit_layers=exit_layers,
            off_ramp_logits=off_ramp_logits,
        )

    def run_single_file(self, plan: ExitPlan, inputs: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and exit layers of a call, from its token arguments."""
        mask, tokens, _ = prepare_tokens(inputs, self.token_limit, self.table_sizes())
        rows = len(mask)
        if not rows:  # as the layer loop does: one row whose answer is dropped
            mask, tokens = torch.ones(1, 1, dtype=torch.long), {}
        # Those that were not given are zeros, as in the stock models.
        tensors = {name: tokens[name] if name in tokens else torch.zeros_like(mask) for name in self.token_inputs}
        thresholds = [plan.thresholds.get(layer, 0.0) for layer in plan.exit_layers[:-1]]
        logits, exit_layers = self.single_file.run(tensors | {"attention_mask": mask}, thresholds or [0.0])
        return logits[:rows], exit_layers[:rows]


def as_tensor(name: str, value: Any) -> torch.Tensor | None:
    """An argument of `forward` on the CPU, token ids as int64; raises `ValueError` for what is no tensor or array."""
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
