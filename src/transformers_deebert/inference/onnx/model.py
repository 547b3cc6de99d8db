"""Exported segments run by ONNX Runtime, with the exits of the PyTorch model."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoConfig

from ..exported_model import ExportedEarlyExitModel, find_folder
from .folder import read_notes


CONSULT, SKIP = np.array([True]), np.array([False])


class OnnxEarlyExitModel(ExportedEarlyExitModel):
    """
    A classifier with off-ramps whose layers are run by ONNX Runtime: called like the PyTorch model, it gives the same
    answers and exits. On a provider with a memory of its own, states are copied between layers. Goes where the PyTorch
    model goes that is only called: `pipeline`, [`EarlyExitPredictor`], `collect_exits`, `time_thresholds`.

    ```python
    >>> from transformers_deebert import OnnxEarlyExitModel, export_onnx

    >>> export_onnx("org/deebert-sst2", "onnx")  # doctest: +SKIP
    >>> model = OnnxEarlyExitModel.from_pretrained("onnx")  # doctest: +SKIP
    >>> model(**tokenizer("A warm film.", return_tensors="pt"), early_exit_entropy=0.3).exit_layers  # doctest: +SKIP
    tensor([2])

    ```
    """

    def __init__(self, config: Any, folder: Path, notes: dict[str, Any], sessions: list) -> None:
        super().__init__(config, folder, notes["max_tokens"], notes["off_ramp_temperatures"])
        self.sessions = sessions
        self.inputs = [[value.name for value in session.get_inputs()] for session in sessions]
        # Nothing reads the states behind the last layer.
        self.outputs = [["states", "logits"]] * (len(sessions) - 1) + [["logits"]]

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        providers: Sequence[str | tuple[str, dict]] | None = None,
        num_threads: int | None = None,
        **hub: Any,
    ) -> "OnnxEarlyExitModel":
        """
        Loads the segments that [`export_onnx`] wrote.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`):
                Local folder, or repository on the Hub that the exported folder was pushed to.
            providers (`list`, *optional*, defaults to `["CPUExecutionProvider"]`):
                Execution providers of ONNX Runtime in order of preference, as for its `InferenceSession`.
            num_threads (`int`, *optional*):
                Threads that compute one operator; by default as many as PyTorch would use. They sleep while no layer
                runs: threads of several layers that wait awake would take the cores from the one at work.
            hub:
                `subfolder`, `revision`, `cache_dir`, `token`, `local_files_only`, `force_download`.

        Raises:
            ValueError: for what is neither a folder nor a repository, is damaged, or has no segments, naming the file;
                providers that this ONNX Runtime lacks; a number of threads below 1.
        """
        folder = find_folder(pretrained_model_name_or_path, **hub)
        notes = read_notes(folder)
        options = session_options(num_threads)
        providers = check_providers(providers)
        try:
            config: Any = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError) as error:
            raise ValueError(f"{str(folder / 'config.json')!r} cannot be read ({error}): export again.") from error
        layers = config.num_hidden_layers if hasattr(config, "off_ramp_pooling") else 0
        if layers != len(notes["segments"]):
            raise ValueError(
                f"`folder` ({str(folder)!r}) has {len(notes['segments'])} segments, which do not fit its config.json: "
                "export the model again."
            )
        files = [folder / entry["file"] for entry in notes["segments"]]
        return cls(config, folder, notes, [make_session(path, options, providers) for path in files])

    def run_layer(
        self, index: int, tensors: dict[str, torch.Tensor], evaluate: bool
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        arrays["consult"] = CONSULT if evaluate else SKIP
        # Tokens that were not given are zeros, as in the stock models.
        feeds = {
            name: arrays[name] if name in arrays else np.zeros_like(arrays["attention_mask"])
            for name in self.inputs[index]
        }
        *states, logits = self.sessions[index].run(self.outputs[index], feeds)
        return torch.from_numpy(states[0]) if states else None, torch.from_numpy(logits)


def make_session(path: Path, options: onnxruntime.SessionOptions, providers: list) -> onnxruntime.InferenceSession:
    """Of one file; raises `ValueError` for a damaged one, for which ONNX Runtime has errors of many types."""
    # On the CPU the fused operator is slower than its parts.
    slower = ["SkipLayerNormFusion"] if providers == ["CPUExecutionProvider"] else []
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=slower)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{str(path)!r} cannot be loaded ({reason}): export the model again.") from error


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
