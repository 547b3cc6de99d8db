"""The report page of an evaluation of all exits."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers.utils import logging

from ..analysis.exit_table import ExitTable
from ..analysis.metrics import EXACT
from ..analysis.report import LEAST_ROWS, make_report
from ..analysis.row_windows import token_count
from ..models.configuration_early_exit_deebert import class_names


logger = logging.get_logger(__name__)


def write_evaluation_page(trainer, output, dataset, prefix: str) -> None:
    """
    Writes `args.report_file` from the logits and labels of an evaluation, or warns why there is none.

    Args:
        trainer ([`MultiExitTrainer`]): Has evaluated.
        output (`EvalLoopOutput`): Of its evaluation.
        dataset: The evaluated rows.
        prefix (`str`): `eval`, or `eval_NAME` for one of several named data sets, which has a page of its own.
    """
    path = Path(trainer.args.output_dir) / trainer.args.report_file
    path = path.with_name(f"{path.stem}{prefix.removeprefix('eval')}{path.suffix}")
    if trainer.preprocess_logits_for_metrics is not None or output.predictions is None or output.label_ids is None:
        logger.warning(f"No report is written to {path}: the evaluation keeps no logits of labelled rows.")
        return
    labels = np.asarray(output.label_ids)
    known = labels != -100
    if known.sum() < LEAST_ROWS:
        logger.warning(f"No report is written to {path}: it needs {LEAST_ROWS} labelled rows.")
        return
    try:
        make_page(trainer, np.stack(list(output.predictions), axis=1), labels, known, dataset).save(path)
    except OSError as error:  # not worth a training
        logger.warning(f"No report is written to {path}: {error}.")


def make_page(trainer, logits: np.ndarray, labels: np.ndarray, known: np.ndarray, dataset):
    """The report about the rows `known`; `logits` `(rows, exits, labels)`."""
    config, args = trainer.early_exit_model.config, trainer.args
    # Grouped by length, rows come in another order than that of the data set.
    in_order = args.train_sampling_strategy != "group_by_length" and len(dataset) == len(labels)
    lengths = np.array([token_count(item) for item in dataset])[known] if in_order else None
    names = class_names(config)
    table = replace(
        ExitTable.from_logits(logits[known], labels[known], lengths, names),
        temperatures=config.off_ramp_temperatures and tuple(config.off_ramp_temperatures),
        exit_layers=trainer.exit_layers,
    )
    step = f"step {trainer.state.global_step:,} of stage 2" if trainer.state.global_step else "not trained here"
    facts = {"model": type(trainer.early_exit_model).__name__, "training": step, "rows": f"{len(table):,}"}
    metric = (args.metric_for_best_model or "").removeprefix("eval_")
    title = f"Early exit: {trainer.base_model_id or config.model_type}"
    return make_report(table, title=title, facts=facts, metric=metric if metric in EXACT else "accuracy")
