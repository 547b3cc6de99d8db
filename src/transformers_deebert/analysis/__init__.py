"""What early exit does to a model: exits of all rows, trade-offs, the choice of a threshold, measured run times."""

from .decisions import entropies, exit_layers
from .exit_curve import ExitCurve, exit_curve
from .exit_table import ExitTable, collect_exits
from .plots import plot_trade_off
from .sweep import OperatingPoint, layer_scores, sweep_thresholds
from .tables import format_table, write_csv, write_json
from .threshold_choice import ThresholdChoice, pick_threshold
from .timing import RuntimeFigure, describe_machine, time_models, time_thresholds


__all__ = [
    "ExitCurve",
    "ExitTable",
    "OperatingPoint",
    "RuntimeFigure",
    "ThresholdChoice",
    "collect_exits",
    "describe_machine",
    "entropies",
    "exit_curve",
    "exit_layers",
    "format_table",
    "layer_scores",
    "pick_threshold",
    "plot_trade_off",
    "sweep_thresholds",
    "time_models",
    "time_thresholds",
    "write_csv",
    "write_json",
]
