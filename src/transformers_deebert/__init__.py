"""
DeeBERT early exit for transformers. Importing it registers configurations, models and tokenizers with the Auto
classes, and the pipeline.

Inference needs torch and transformers only. Names of training and analysis load on access and need an extra.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

from .families import (
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
from .hub.endpoint import write_endpoint_handler
from .inference.predictor import EarlyExitPredictor
from .models.exit_criteria_deebert import ExitCriterion
from .models.exit_scores_deebert import ExitCandidate, entropy
from .models.outputs_deebert import EarlyExitModelOutput, EarlyExitSequenceClassifierOutput
from .models.pipeline_deebert import EarlyExitTextClassificationPipeline
from .registration import register


if TYPE_CHECKING:
    from .analysis.calibration import TemperatureFit, fit_temperatures
    from .analysis.collect import collect_exits
    from .analysis.decisions import exit_layers
    from .analysis.exit_curve import ExitCurve, exit_curve
    from .analysis.exit_table import ExitTable
    from .analysis.latency import LatencyProfile, measure_latency
    from .analysis.layer_report import LayerReport, layer_report
    from .analysis.plots import plot_trade_off
    from .analysis.report import Report, make_report
    from .analysis.runtime import RuntimeBenchmark, benchmark_runtime
    from .analysis.slices import Slice, slice_report
    from .analysis.stock import stock_model
    from .analysis.sweep import OperatingPoint, layer_scores, sweep_thresholds
    from .analysis.threshold_choice import ThresholdChoice, pick_threshold
    from .analysis.timing import describe_machine, time_thresholds
    from .hub.applied_threshold import apply_threshold
    from .hub.model_card import create_model_card, write_model_card
    from .inference.onnx_export import export_onnx
    from .inference.onnx_model import OnnxEarlyExitModel
    from .training.backbone_trainer import BackboneTrainer
    from .training.off_ramp_trainer import OffRampTrainer
    from .training.training_arguments import DeeBertTrainingArguments
    from .training.two_stage_trainer import TwoStageTrainer

__version__ = version("transformers-deebert")

# Where names live that need more than torch and transformers, and the extra that brings it.
_LAZY = {
    **dict.fromkeys(("TemperatureFit", "fit_temperatures"), ("analysis.calibration", "analysis")),
    "exit_layers": ("analysis.decisions", "analysis"),
    **dict.fromkeys(("ExitCurve", "exit_curve"), ("analysis.exit_curve", "analysis")),
    "collect_exits": ("analysis.collect", "analysis"),
    "ExitTable": ("analysis.exit_table", "analysis"),
    **dict.fromkeys(("LatencyProfile", "measure_latency"), ("analysis.latency", "analysis")),
    **dict.fromkeys(("LayerReport", "layer_report"), ("analysis.layer_report", "analysis")),
    **dict.fromkeys(("Report", "make_report"), ("analysis.report", "analysis")),
    **dict.fromkeys(("RuntimeBenchmark", "benchmark_runtime"), ("analysis.runtime", "analysis")),
    **dict.fromkeys(("Slice", "slice_report"), ("analysis.slices", "analysis")),
    "stock_model": ("analysis.stock", "analysis"),
    **dict.fromkeys(("OperatingPoint", "layer_scores", "sweep_thresholds"), ("analysis.sweep", "analysis")),
    **dict.fromkeys(("ThresholdChoice", "pick_threshold"), ("analysis.threshold_choice", "analysis")),
    **dict.fromkeys(("describe_machine", "time_thresholds"), ("analysis.timing", "analysis")),
    **dict.fromkeys(("create_model_card", "write_model_card"), ("hub.model_card", "analysis")),
    "apply_threshold": ("hub.applied_threshold", "analysis"),
    "plot_trade_off": ("analysis.plots", "analysis"),
    "export_onnx": ("inference.onnx_export", "onnx"),
    "OnnxEarlyExitModel": ("inference.onnx_model", "onnx"),
    "BackboneTrainer": ("training.backbone_trainer", "train"),
    "DeeBertTrainingArguments": ("training.training_arguments", "train"),
    "OffRampTrainer": ("training.off_ramp_trainer", "train"),
    "TwoStageTrainer": ("training.two_stage_trainer", "train"),
}

__all__ = [
    "BackboneTrainer",
    "DeeAlbertConfig",
    "DeeAlbertForSequenceClassification",
    "DeeAlbertModel",
    "DeeBertConfig",
    "DeeBertForSequenceClassification",
    "DeeBertModel",
    "DeeBertTrainingArguments",
    "DeeCamembertConfig",
    "DeeCamembertForSequenceClassification",
    "DeeCamembertModel",
    "DeeDebertaV2Config",
    "DeeDebertaV2ForSequenceClassification",
    "DeeDebertaV2Model",
    "DeeDistilBertConfig",
    "DeeDistilBertForSequenceClassification",
    "DeeDistilBertModel",
    "DeeElectraConfig",
    "DeeElectraForSequenceClassification",
    "DeeElectraModel",
    "DeeMPNetConfig",
    "DeeMPNetForSequenceClassification",
    "DeeMPNetModel",
    "DeeModernBertConfig",
    "DeeModernBertForSequenceClassification",
    "DeeModernBertModel",
    "DeeRobertaConfig",
    "DeeRobertaForSequenceClassification",
    "DeeRobertaModel",
    "DeeXLMRobertaConfig",
    "DeeXLMRobertaForSequenceClassification",
    "DeeXLMRobertaModel",
    "EarlyExitModelOutput",
    "EarlyExitPredictor",
    "EarlyExitSequenceClassifierOutput",
    "EarlyExitTextClassificationPipeline",
    "ExitCandidate",
    "ExitCriterion",
    "ExitCurve",
    "ExitTable",
    "LatencyProfile",
    "LayerReport",
    "OffRampTrainer",
    "OnnxEarlyExitModel",
    "OperatingPoint",
    "Report",
    "RuntimeBenchmark",
    "Slice",
    "TemperatureFit",
    "ThresholdChoice",
    "TwoStageTrainer",
    "__version__",
    "apply_threshold",
    "benchmark_runtime",
    "collect_exits",
    "convert_checkpoint",
    "create_model_card",
    "describe_machine",
    "entropy",
    "exit_curve",
    "exit_layers",
    "export_onnx",
    "fit_temperatures",
    "from_backbone",
    "layer_report",
    "layer_scores",
    "make_report",
    "measure_latency",
    "pick_threshold",
    "plot_trade_off",
    "slice_report",
    "stock_model",
    "sweep_thresholds",
    "time_thresholds",
    "write_endpoint_handler",
    "write_model_card",
]

register()


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, extra = _LAZY[name]
    try:
        return getattr(import_module(f".{module}", __name__), name)
    except ImportError as error:
        raise ImportError(
            f"`{name}` needs more packages: pip install 'transformers-deebert[{extra}]' ({error})"
        ) from error


def __dir__():
    return sorted(set(globals()) | set(__all__))
