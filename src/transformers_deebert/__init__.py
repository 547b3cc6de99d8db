"""
DeeBERT early exit for transformers. Importing it registers configurations, models and tokenizers with the Auto
classes, and the pipeline.

Inference needs torch and transformers only. Names of training and analysis load on access and need an extra.
"""

import warnings
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from .families import (
    FAMILIES,
    DeeAlbertConfig,
    DeeAlbertForSequenceClassification,
    DeeAlbertModel,
    DeeBertConfig,
    DeeBertForSequenceClassification,
    DeeBertModel,
    DeeCamembertConfig,
    DeeCamembertForSequenceClassification,
    DeeCamembertModel,
    DeeDebertaV2Config,
    DeeDebertaV2ForSequenceClassification,
    DeeDebertaV2Model,
    DeeDistilBertConfig,
    DeeDistilBertForSequenceClassification,
    DeeDistilBertModel,
    DeeElectraConfig,
    DeeElectraForSequenceClassification,
    DeeElectraModel,
    DeeModernBertConfig,
    DeeModernBertForSequenceClassification,
    DeeModernBertModel,
    DeeMPNetConfig,
    DeeMPNetForSequenceClassification,
    DeeMPNetModel,
    DeeRobertaConfig,
    DeeRobertaForSequenceClassification,
    DeeRobertaModel,
    DeeXLMRobertaConfig,
    DeeXLMRobertaForSequenceClassification,
    DeeXLMRobertaModel,
    from_backbone,
)
from .hub.conversion import convert_checkpoint
from .inference.online import OnlinePredictor
from .inference.predictor import EarlyExitPredictor
from .models.exit_criteria_deebert import ExitCriterion
from .models.exit_scores_deebert import ExitCandidate
from .models.outputs_deebert import EarlyExitModelOutput, EarlyExitSequenceClassifierOutput
from .models.pipeline_deebert import EarlyExitTextClassificationPipeline
from .registration import register


if TYPE_CHECKING:
    from .analysis.calibration import fit_temperatures
    from .analysis.choice import ThresholdChoice
    from .analysis.collect import collect_exits
    from .analysis.exit_table import ExitTable
    from .analysis.latency import measure_latency
    from .analysis.report import make_report
    from .analysis.runtime import benchmark_runtime
    from .analysis.selection import pick_threshold
    from .analysis.stock import stock_model
    from .analysis.sweep import sweep_thresholds
    from .hub.applied_threshold import apply_threshold
    from .hub.model_card import write_model_card
    from .inference.onnx.export import export_onnx
    from .inference.onnx.model import OnnxEarlyExitModel
    from .training.backbone_trainer import BackboneTrainer
    from .training.joint_trainer import JointTrainer
    from .training.multi_exit_trainer import MultiExitTrainer
    from .training.off_ramp_trainer import OffRampTrainer
    from .training.training_arguments import DeeBertTrainingArguments
    from .training.two_stage_trainer import TwoStageTrainer
    from .workflow import add_exits

__version__ = version("transformers-deebert")

# Modules that need more than torch and transformers: the extra that brings it, and their public names.
_LAZY = {
    "analysis.calibration": ("analysis", ["fit_temperatures"]),
    "analysis.collect": ("analysis", ["collect_exits"]),
    "analysis.exit_table": ("analysis", ["ExitTable"]),
    "analysis.latency": ("analysis", ["measure_latency"]),
    "analysis.report": ("analysis", ["make_report"]),
    "analysis.runtime": ("analysis", ["benchmark_runtime"]),
    "analysis.stock": ("analysis", ["stock_model"]),
    "analysis.sweep": ("analysis", ["sweep_thresholds"]),
    "analysis.choice": ("analysis", ["ThresholdChoice"]),
    "analysis.selection": ("analysis", ["pick_threshold"]),
    "hub.applied_threshold": ("analysis", ["apply_threshold"]),
    "hub.model_card": ("analysis", ["write_model_card"]),
    "inference.onnx.export": ("onnx", ["export_onnx"]),
    "inference.onnx.model": ("onnx", ["OnnxEarlyExitModel"]),
    "training.backbone_trainer": ("train", ["BackboneTrainer"]),
    "training.joint_trainer": ("train", ["JointTrainer"]),
    "training.multi_exit_trainer": ("train", ["MultiExitTrainer"]),
    "training.off_ramp_trainer": ("train", ["OffRampTrainer"]),
    "training.training_arguments": ("train", ["DeeBertTrainingArguments"]),
    "training.two_stage_trainer": ("train", ["TwoStageTrainer"]),
    "workflow": ("examples", ["add_exits"]),
}
# Names that were here until version 0.1, and the modules that have them.
_MOVED = {
    "analysis": [
        "ExitCurve",
        "LatencyProfile",
        "LayerReport",
        "OperatingPoint",
        "Report",
        "RuntimeBenchmark",
        "Slice",
        "TemperatureFit",
        "describe_machine",
        "entropy",
        "exit_curve",
        "exit_layers",
        "layer_report",
        "layer_scores",
        "plot_trade_off",
        "slice_report",
        "time_thresholds",
    ],
    "hub.endpoint": ["write_endpoint_handler"],
    "hub.model_card": ["create_model_card"],
}

__all__ = [
    "EarlyExitModelOutput",
    "EarlyExitPredictor",
    "EarlyExitSequenceClassifierOutput",
    "EarlyExitTextClassificationPipeline",
    "ExitCandidate",
    "ExitCriterion",
    "OnlinePredictor",
    "__version__",
    "convert_checkpoint",
    "from_backbone",
]
__all__ += [part.__name__ for family in FAMILIES for part in family]
__all__ += [name for _, names in _LAZY.values() for name in names]

register()


def __getattr__(name: str):
    for module, (extra, names) in _LAZY.items():
        if name in names:
            return _load(name, module, extra)
    for module, names in _MOVED.items():
        if name in names:
            warnings.warn(
                f"`transformers_deebert.{name}` will be removed: import it from `transformers_deebert.{module}`.",
                FutureWarning,
                stacklevel=2,
            )
            return _load(name, module, "analysis")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _load(name: str, module: str, extra: str):
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ImportError as error:
        raise ImportError(
            f"`{name}` needs more packages: pip install 'transformers-deebert[{extra}]' ({error})"
        ) from error


def __dir__():
    return sorted(set(globals()) | set(__all__))
