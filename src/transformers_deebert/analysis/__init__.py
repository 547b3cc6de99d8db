"""Trade-off curves, operating points and measured run times of an early-exit model."""

from .exit_curve import ExitCurve, exit_curve
from .exit_table import ExitTable, collect_exits
from .latency import LatencyProfile, measure_latency
from .plots import plot_trade_off
from .runtime import RUNTIME_COLUMNS, RuntimeBenchmark, benchmark_runtime
from .stock import stock_model
from .sweep import (
    HeldOutPoint,
    OperatingPoint,
    entropies,
    exit_layers,
    layer_scores,
    pick_operating_points,
    row_worth,
    sweep_thresholds,
)
from .tables import format_table, write_csv, write_json
from .threshold_choice import ThresholdChoice, pick_threshold
from .timing import RuntimeFigure, describe_machine, time_models, time_thresholds


__all__ = [
    "RUNTIME_COLUMNS",
    "ExitCurve",
    "ExitTable",
    "HeldOutPoint",
    "LatencyProfile",
    "OperatingPoint",
    "RuntimeBenchmark",
    "RuntimeFigure",
    "ThresholdChoice",
    "benchmark_runtime",
    "collect_exits",
    "describe_machine",
    "entropies",
    "exit_curve",
    "exit_layers",
    "format_table",
    "layer_scores",
    "measure_latency",
    "pick_operating_points",
    "pick_threshold",
    "plot_trade_off",
    "row_worth",
    "stock_model",
    "sweep_thresholds",
    "time_models",
    "time_thresholds",
    "write_csv",
    "write_json",
]
