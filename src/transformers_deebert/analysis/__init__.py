"""What early exit does to a model: exits of all rows, trade-offs, the choice of a threshold, measured run times."""

from ..models.exit_scores_deebert import entropy
from .calibration import ReliabilityBin, TemperatureFit, expected_calibration_error, fit_temperatures, reliability_bins
from .choice import ThresholdChoice
from .collect import collect_exits
from .decisions import entropies, exit_layers
from .exit_curve import ExitCurve, exit_curve, thresholds_by_saving
from .exit_table import ExitTable
from .latency import LatencyProfile, measure_latency
from .layer_report import LayerReport, layer_report
from .layer_thresholds import search_layer_thresholds
from .plots import plot_exit_depths, plot_layer_scores, plot_reliability, plot_slices, plot_trade_off
from .report import Report, make_report
from .runtime import RUNTIME_COLUMNS, RuntimeBenchmark, benchmark_runtime
from .selection import pick_threshold
from .slices import Slice, slice_report
from .stock import stock_model
from .sweep import OperatingPoint, layer_scores, sweep_thresholds
from .tables import format_table, write_csv, write_json
from .timing import RuntimeFigure, describe_machine, time_models, time_thresholds


__all__ = [
    "RUNTIME_COLUMNS",
    "ExitCurve",
    "ExitTable",
    "LatencyProfile",
    "LayerReport",
    "OperatingPoint",
    "ReliabilityBin",
    "Report",
    "RuntimeBenchmark",
    "RuntimeFigure",
    "Slice",
    "TemperatureFit",
    "ThresholdChoice",
    "benchmark_runtime",
    "collect_exits",
    "describe_machine",
    "entropies",
    "entropy",
    "exit_curve",
    "exit_layers",
    "expected_calibration_error",
    "fit_temperatures",
    "format_table",
    "layer_report",
    "layer_scores",
    "make_report",
    "measure_latency",
    "pick_threshold",
    "plot_exit_depths",
    "plot_layer_scores",
    "plot_reliability",
    "plot_slices",
    "plot_trade_off",
    "reliability_bins",
    "search_layer_thresholds",
    "slice_report",
    "stock_model",
    "sweep_thresholds",
    "thresholds_by_saving",
    "time_models",
    "time_thresholds",
    "write_csv",
    "write_json",
]
