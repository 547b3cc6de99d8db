"""Exported models on ONNX Runtime."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from ..exported_model import ExportedEarlyExitModel
from .single_file import THRESHOLD
from .thresholds import criterion_of, default_thresholds, set_default_threshold


FLAGS = {evaluate: np.array([evaluate]) for evaluate in (False, True)}


class OnnxSegment:
    """
    A [`Segment`] in a session of ONNX Runtime.

    Args:
        session (`onnxruntime.InferenceSession`): Of the file.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs = [value.name for value in session.get_inputs()]
        outputs = [value.name for value in session.get_outputs()]
        self.states = [name for name in outputs if name == "states"]
        self.has_exit = "logits" in outputs

    def run(self, tensors: dict[str, torch.Tensor], evaluate: bool) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        # What is no tensor is the flag: `evaluate`, or `consult` in files of version 0.1.
        feeds = {
            name: np.ascontiguousarray(tensors[name].numpy()) if name in tensors else FLAGS[evaluate]
            for name in self.inputs
        }
        names = [*self.states, "logits"] if evaluate else self.states
        found = dict(zip(names, map(torch.from_numpy, self.session.run(names, feeds)), strict=True))
        return found.get("states"), found.get("logits")


class OnnxSingleFile:
    """
    A [`SingleFile`] in a session of ONNX Runtime.

    Args:
        session (`onnxruntime.InferenceSession`): Of the file.
    """

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session = session
        self.inputs = [value.name for value in session.get_inputs()]

    def run(self, tensors: dict[str, torch.Tensor], thresholds: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
        feeds = {name: np.ascontiguousarray(tensors[name].numpy()) for name in self.inputs}
        feeds[THRESHOLD] = np.array(thresholds, np.float32)
        logits, exit_layers = self.session.run(["logits", "exit_layer"], feeds)
        return torch.from_numpy(logits), torch.from_numpy(exit_layers)


class OnnxEarlyExitModel(ExportedEarlyExitModel):
    """
    A classifier with off-ramps whose layers are run by ONNX Runtime: called like the PyTorch model, it gives the same
    answers and exits. A plain call with thresholds of the criterion in `model.onnx` is one run of that file; another
    criterion, `exit_layer`, all exits and [`EarlyExitPredictor`] take the segments, which are loaded when they are
    first needed. It has no parameters and is for inference on the host; on a provider with a memory of its own, states
    are copied between segments. Goes where the PyTorch model goes that is only called: `pipeline`,
    [`EarlyExitPredictor`], `collect_exits`, `time_thresholds`.

    ```python
    >>> from transformers_deebert import OnnxEarlyExitModel, export_onnx

    >>> export_onnx("org/deebert-sst2", "onnx")  # doctest: +SKIP
    >>> model = OnnxEarlyExitModel.from_pretrained("onnx")  # doctest: +SKIP
    >>> model(**tokenizer("A warm film.", return_tensors="pt"), early_exit_entropy=0.3).exit_layers  # doctest: +SKIP
    tensor([2])

    ```
    """

    runtime = "onnx"

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        providers: Sequence[str | tuple[str, dict]] | None = None,
        num_threads: int | None = None,
        **kwargs: Any,
    ) -> "OnnxEarlyExitModel":
        """
        Loads a folder that [`export_onnx`] wrote.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Local folder, or repository on the Hub.
            providers (`list`, *optional*, defaults to `["CPUExecutionProvider"]`):
                Execution providers of ONNX Runtime in order of preference, as for its `InferenceSession`.
            num_threads (`int`, *optional*):
                Threads that compute one operator; by default as many as PyTorch would use. They sleep while no layer
                runs: threads of several layers that wait awake would take the cores from the one at work.
            kwargs:
                `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` and `subfolder`, as of
                `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: for a folder or repository that is not there, without files to run, or with files that are
                missing, damaged or do not fit together; providers that this ONNX Runtime lacks; a number of threads
                below 1.
        """
        options, known = session_options(num_threads), check_providers(providers)
        # On the CPU the fused operator is slower than its parts.
        slower = ["SkipLayerNormFusion"] if known == ["CPUExecutionProvider"] else []

        def open_segment(path: Path) -> OnnxSegment:
            return OnnxSegment(
                onnxruntime.InferenceSession(path, options, providers=known, disabled_optimizers=slower)
            )

        def open_single_file(path: Path) -> OnnxSingleFile:
            quiet = session_options(num_threads)
            quiet.log_severity_level = 3  # or it warns of each input that is optional
            return OnnxSingleFile(
                onnxruntime.InferenceSession(path, quiet, providers=known, disabled_optimizers=slower)
            )

        return cls.load(pretrained_model_name_or_path, open_segment, open_single_file, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Copies the exported files, with the configuration as it is now; `kwargs` of other models are ignored."""
        super().save_pretrained(save_directory, **kwargs)
        single_file = self.notes.single_file
        if single_file is not None:
            criterion = criterion_of(self.config.early_exit_entropy, self.config.exit_criterion)
            thresholds = default_thresholds(criterion, single_file.score, single_file.patience)
            set_default_threshold(Path(save_directory, single_file.file), thresholds)


def session_options(num_threads: int | None) -> onnxruntime.SessionOptions:
    """The same for all segments."""
    if num_threads is not None and (
        isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1
    ):
        raise ValueError(f"`num_threads` must be an integer of 1 or more, got {num_threads!r}.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def check_providers(providers: Sequence[str | tuple[str, dict]] | None) -> list:
    """The providers as a list; raises `ValueError` for those that are not there, which ONNX Runtime would skip."""
    if providers is None:
        return ["CPUExecutionProvider"]
    there = onnxruntime.get_available_providers()
    given = [provider if isinstance(provider, str) else provider[0] for provider in providers]
    unknown = [name for name in given if name not in there]
    if isinstance(providers, str) or not given or unknown:
        raise ValueError(
            f"`providers` must be a list of execution providers that this ONNX Runtime has ({', '.join(there)}), got "
            f"{providers!r}."
        )
    return list(providers)
