"""Segments run by ONNX Runtime, with the exits of the PyTorch model."""

import os
import shutil
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import can_return_tuple

from ..models.early_exit_deebert import EarlyExitBackbone
from ..models.exit_loop_deebert import run_call
from ..models.exit_plan_deebert import ExitPlan, make_exit_plan
from ..models.exit_scores_deebert import ExitCandidate
from ..models.inputs_deebert import check_labels
from ..models.layer_state_deebert import LayerState
from ..models.outputs_deebert import EarlyExitSequenceClassifierOutput
from .onnx_folder import read_notes


CONSULT, SKIP = np.array([True]), np.array([False])


class OnnxBackbone(EarlyExitBackbone, PreTrainedModel):
    """
    The layer loop over ONNX segments. In front of layer 1, whose segment embeds the tokens, a state holds the tokens
    themselves; the loop, the dropping of rows and the exits are those of the PyTorch model.

    Args:
        config (`PreTrainedConfig`): Of the exported model.
        sessions (`list[onnxruntime.InferenceSession]`): One for each layer.
        max_tokens (`int`, *optional*): Number of tokens that the position table holds.
    """

    embedding_inputs = ()
    layer_inputs = ("input_ids", "token_type_ids")

    def __init__(
        self, config: PreTrainedConfig, sessions: list[onnxruntime.InferenceSession], max_tokens: int | None
    ) -> None:
        PreTrainedModel.__init__(self, config)  # no modules are made
        self.sessions = sessions
        self.inputs = [[value.name for value in session.get_inputs()] for session in sessions]
        # Behind the last layer nobody wants the states.
        self.outputs = [["states", "logits"]] * (len(sessions) - 1) + [["logits"]]
        self.token_limit = max_tokens
        self.off_ramps = range(1, config.num_hidden_layers)  # the layers that have one

    def max_tokens(self) -> int | None:
        return self.token_limit

    def vocabulary(self) -> int:
        return self.config.vocab_size

    def embed(self, mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        return torch.empty(*mask.shape, 0)

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        """Runs one segment; the logits of its exit, if it is evaluated, are kept in the state's context."""
        index = state.layer
        tensors = {"hidden": state.hidden, "attention_mask": state.mask, **state.tokens}
        arrays = {name: np.ascontiguousarray(tensor.numpy()) for name, tensor in tensors.items()}
        arrays["consult"] = CONSULT if evaluate else SKIP
        # Tokens that nobody gave are zeros, as in the stock models.
        feeds = {
            name: arrays[name] if name in arrays else np.zeros_like(arrays["attention_mask"])
            for name in self.inputs[index]
        }
        *states, logits = self.sessions[index].run(self.outputs[index], feeds)
        if states:
            state.hidden = torch.from_numpy(states[0])
        state.tokens = {}
        state.context = {"logits": torch.from_numpy(logits)}
        state.layer += 1

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        return ExitCandidate(state.context["logits"], None, state.memory, state.layer)


class OnnxEarlyExitModel(PreTrainedModel):
    """
    A classifier with off-ramps whose layers are run by ONNX Runtime: called like the PyTorch model, it gives the same
    answers and exits. It has no parameters and is for inference on the host; on a provider with a memory of its own,
    states are copied between layers. Goes where the PyTorch model goes that is only called: `pipeline`,
    [`EarlyExitPredictor`], `collect_exits`, `time_thresholds`.

    ```python
    >>> from transformers_deebert import OnnxEarlyExitModel, export_onnx

    >>> export_onnx("org/deebert-sst2", "onnx")  # doctest: +SKIP
    >>> model = OnnxEarlyExitModel.from_pretrained("onnx")  # doctest: +SKIP
    >>> model(**tokenizer("A warm film.", return_tensors="pt"), early_exit_entropy=0.3).exit_layers  # doctest: +SKIP
    tensor([2])

    ```
    """

    base_model_prefix = "backbone"
    main_input_name = "input_ids"

    def __init__(self, config: PreTrainedConfig, backbone: OnnxBackbone, folder: Path, temperatures: Any) -> None:
        super().__init__(config)
        self.backbone = backbone
        self.folder = folder
        self.exported_temperatures = temperatures  # a list, or `None`: those in the graphs
        self.loss_type = "ForSequenceClassification"
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        folder: str | os.PathLike,
        providers: Sequence[str | tuple[str, dict]] | None = None,
        num_threads: int | None = None,
    ) -> "OnnxEarlyExitModel":
        """
        Loads the segments that [`export_onnx`] wrote.

        Args:
            folder (`str` or `os.PathLike`):
                Local folder.
            providers (`list`, *optional*, defaults to `["CPUExecutionProvider"]`):
                Execution providers of ONNX Runtime in order of preference, as for its `InferenceSession`.
            num_threads (`int`, *optional*):
                Threads that compute one operator; by default as many as PyTorch would use. They sleep while no layer
                runs: threads of several layers that wait awake would take the cores from the one at work.

        Raises:
            ValueError: for a folder without segments, or with some missing; providers that this ONNX Runtime lacks;
                a number of threads below 1.
        """
        folder = Path(folder)
        notes = read_notes(folder)
        options = session_options(num_threads)
        providers = check_providers(providers)
        config: Any = AutoConfig.from_pretrained(folder)
        layers = config.num_hidden_layers if hasattr(config, "off_ramp_pooling") else 0
        if layers != len(notes["segments"]):
            raise ValueError(
                f"`folder` ({str(folder)!r}) has {len(notes['segments'])} segments, which do not fit its config.json: "
                "export the model again."
            )
        # On the CPU the fused operator is slower than its parts.
        slower = ["SkipLayerNormFusion"] if providers == ["CPUExecutionProvider"] else []
        sessions = [
            onnxruntime.InferenceSession(
                folder / entry["file"], options, providers=providers, disabled_optimizers=slower
            )
            for entry in notes["segments"]
        ]
        backbone = OnnxBackbone(config, sessions, notes["max_tokens"])
        return cls(config, backbone, folder, notes["off_ramp_temperatures"]).eval()

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

    @property
    def exit_layers(self) -> tuple[int, ...]:
        return self.config.exit_layers

    def make_plan(self, **settings: Any) -> ExitPlan:
        """Temperatures are in the graphs."""
        return replace(make_exit_plan(self.config, False, **settings), temperatures=None)

    def begin(self, **inputs: Any) -> tuple[LayerState, torch.Tensor | None]:
        return self.backbone.begin(**inputs)

    def advance(self, state: LayerState, evaluate: bool = True) -> None:
        self.backbone.advance(state, evaluate)

    def evaluate_exit(self, state: LayerState) -> ExitCandidate:
        return self.backbone.evaluate_exit(state)

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
        targets = as_tensor("labels", labels)
        if targets is not None:
            targets = check_labels(targets, self.config, len(input_ids), training=False)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        plan = self.make_plan(
            early_exit_entropy=early_exit_entropy,
            exit_criterion=exit_criterion,
            exit_layer=exit_layer,
            output_off_ramp_logits=output_off_ramp_logits,
        )
        with torch.no_grad():
            output = run_call(self, plan, {name: as_tensor(name, value) for name, value in inputs.items()})
        answers = output.answers
        return EarlyExitSequenceClassifierOutput(
            loss=None if targets is None else self.loss_function(targets, answers.logits, copy(self.config)),
            logits=answers.logits,
            exit_layers=answers.exit_layers,
            off_ramp_logits=output.off_ramp_logits,
        )


def as_tensor(name: str, value: Any) -> torch.Tensor | None:
    """Integers as the graphs want them, int64 on the CPU; everything else is told to the checks as it is."""
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
