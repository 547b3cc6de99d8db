"""Stage 2."""

import shutil
from collections.abc import Sized
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset, RandomSampler
from transformers import EvalPrediction, default_data_collator
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import logging

from ..analysis.exit_table import ExitTable
from ..analysis.report import LEAST_ROWS, check_report_packages, make_report
from ..analysis.row_windows import token_count, write_windows
from ..analysis.scores import EXACT
from ..models.inputs_deebert import check_labels
from .off_ramp_inputs import OffRampInputs, check_free_space, pooled_windows
from .stage_trainer import StageTrainer, is_peft
from .training_arguments import DeeBertTrainingArguments


logger = logging.get_logger(__name__)


def accuracy(prediction: EvalPrediction) -> dict[str, float]:
    """The metric when none is given: share of the labelled rows (not -100) whose highest logit is the label."""
    logits, labels = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    if logits.ndim != 2:
        raise ValueError(
            f"`compute_metrics` is not given and predictions have the shape {logits.shape} instead of (rows, labels): "
            "accuracy needs logits, so give `compute_metrics` with this `preprocess_logits_for_metrics`."
        )
    known = labels != -100
    return {"accuracy": float((logits.argmax(-1) == labels)[known].mean())}


def choose_mode(args, config) -> str:
    """The mode of stage 2; raises `ValueError` for arguments or a model that it cannot train with."""
    if not isinstance(args, DeeBertTrainingArguments):
        raise ValueError(f"`args` must be `DeeBertTrainingArguments`, got `{type(args).__name__}`.")
    for name, good in (("batch_eval_metrics", False), ("eval_do_concat_batches", True)):
        if getattr(args, name) is not good:
            raise ValueError(f"`{name}` is {not good}, but metrics are computed for each layer: set it to {good}.")
    if config.num_hidden_layers < 2:
        raise ValueError("`model` has one layer, so it has no off-ramps to train.")
    if config.num_labels < 2 or config.problem_type in ("regression", "multi_label_classification"):
        raise ValueError(
            f"`model` has num_labels={config.num_labels} and problem_type={config.problem_type!r}, but off-ramps are "
            "trained to choose one of several classes: load it as such a classifier."
        )
    attention = config.off_ramp_pooling == "attention"
    if attention and args.off_ramp_mode == "cached":
        raise ValueError(
            "`off_ramp_mode` is 'cached', but attention pooling learns what it reads from all token states: use "
            "'through_backbone'."
        )
    return args.off_ramp_mode or ("through_backbone" if attention else "cached")


def check_map_style(dataset) -> int:
    """Number of rows; raises `ValueError` for data that cannot be run through once and then read in any order."""
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized) or not len(dataset):
        raise ValueError(
            f"`train_dataset` ({type(dataset).__name__}) has no rows or no length, but its off-ramp inputs are "
            "computed once and read in any order: give a map-style data set, or train with "
            "off_ramp_mode='through_backbone'."
        )
    return len(dataset)


class OffRampTrainer(StageTrainer):
    """
    Stage 2 (DeeBERT, section 3.1): trains the off-ramps, with the plain sum of their cross-entropies; everything else
    is frozen and stays as it is. Takes what [`~transformers.Trainer`] takes, with these differences:

    - `compute_metrics` is called once for each exit. Evaluation reports its numbers for the model's own head under
      their names, and for layer i as `layer_{i}_{name}`; accuracy when it is not given. The loss is the stage's own.
    - `compute_loss_func(outputs, labels, num_items_in_batch=None)` is called once for each off-ramp and summed.
    - `predict(…).predictions` is a tuple of L arrays `(rows, labels)`, one for each exit.
    - `args.off_ramp_mode` chooses whether the backbone runs at every step; see [`DeeBertTrainingArguments`].
    - Training drops `config.off_ramp_temperatures`, which were fitted to the off-ramps as they were before.

    Raises:
        ValueError: for a PEFT model, a model that does not choose one of several classes, or `"cached"` with attention
            pooling.
    """

    trained_part = "off_ramps"

    def __init__(
        self,
        model=None,
        args=None,
        *,
        compute_metrics=None,
        compute_loss_func=None,
        preprocess_logits_for_metrics=None,
        **kwargs,
    ):
        self.layer_metrics = compute_metrics or accuracy
        self.off_ramp_loss_func = compute_loss_func or self.cross_entropy
        self.off_ramp_inputs = None
        super().__init__(
            model,
            args,
            compute_metrics=self.all_layer_metrics,
            compute_loss_func=self.off_ramp_loss,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics
            and (lambda logits, labels: tuple(preprocess_logits_for_metrics(layer, labels) for layer in logits)),
            **kwargs,
        )
        if is_peft(self.model):
            raise ValueError(
                "`model` is a PEFT model, whose checkpoints would not hold the off-ramps: pass "
                "`model.merge_and_unload()` for stage 2."
            )
        self.off_ramp_mode = choose_mode(self.args, self.early_exit_model.config)
        if getattr(self.args, "report_file", None) is not None:
            check_report_packages()

    # ---- loss

    def cross_entropy(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        smoothing = self.args.label_smoothing_factor
        if num_items_in_batch is None:
            return nn.functional.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing)
        total = nn.functional.cross_entropy(outputs.logits.float(), labels, label_smoothing=smoothing, reduction="sum")
        return total / num_items_in_batch

    def off_ramp_loss(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        """Sum of the off-ramps' losses; the model's own head does not take part."""
        check_labels(labels, self.early_exit_model.config, self.model.training)
        off_ramps = outputs.off_ramp_logits[: len(self.early_exit_model.base_model.off_ramps)]
        losses = [
            self.off_ramp_loss_func(
                SequenceClassifierOutput(logits=logits), labels, num_items_in_batch=num_items_in_batch
            )
            for logits in off_ramps
        ]
        return torch.stack(losses).sum()

    def compute_loss(self, model, inputs, *args, **kwargs):
        if "off_ramp_inputs" not in inputs:
            inputs = {**inputs, "output_off_ramp_logits": True}
        return super().compute_loss(model, {**inputs, "return_dict": True}, *args, **kwargs)

    # ---- training

    def train(self, *args, **kwargs):
        output = super().train(*args, **kwargs)
        if self.state.global_step:  # also where resuming found nothing left to do
            self.early_exit_model.config.off_ramps_trained = True
        return output

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        self.early_exit_model.config.off_ramps_trained = True
        return loss

    def drop_temperatures(self) -> None:
        """Temperatures belong to the off-ramps that they were fitted to, which are now trained on."""
        config = self.early_exit_model.config
        if config.off_ramp_temperatures is not None:
            logger.warning(
                f"`off_ramp_temperatures` ({config.off_ramp_temperatures}) were fitted to off-ramps that are now "
                "trained on, and are dropped: fit them again after training."
            )
            config.off_ramp_temperatures = None

    def _inner_training_loop(self, *args, **kwargs):
        self.drop_temperatures()  # here a model of `model_init` is there
        if self.off_ramp_mode == "through_backbone" or self.off_ramp_inputs is not None:
            return super()._inner_training_loop(*args, **kwargs)
        folder = Path(self.args.output_dir) / "_off_ramp_inputs"  # Trainer pushes nothing of such a name
        try:
            self.off_ramp_inputs = self.compute_off_ramp_inputs(folder)
            return super()._inner_training_loop(*args, **kwargs)
        finally:
            self.off_ramp_inputs = None
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)

    def compute_off_ramp_inputs(self, folder: Path) -> OffRampInputs:
        """Runs the frozen backbone once over the training data, each process its share of the rows."""
        model, rows = self.early_exit_model, check_map_style(self.train_dataset)
        num_off_ramps = len(model.base_model.off_ramps)
        files = [folder / f"{rank:05d}-of-{self.args.world_size:05d}.arrow" for rank in range(self.args.world_size)]
        rank = self.args.process_index
        share = range(rows * rank // self.args.world_size, rows * (rank + 1) // self.args.world_size)
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            check_free_space(folder, rows * (num_off_ramps * model.config.hidden_size * 4 + 8))
        self.accelerator.wait_for_everyone()
        training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                windows = pooled_windows(
                    model.base_model,
                    self.train_dataset,
                    share,
                    self._get_collator_with_removed_columns(self.data_collator, description="training"),
                    self.args.eval_batch_size,
                    self.args.device,
                    progress=not self.args.disable_tqdm and self.is_local_process_zero(),
                )
                write_windows(files[rank], windows)
        finally:
            model.train(training)
        self.accelerator.wait_for_everyone()
        return OffRampInputs(files, num_off_ramps)

    def get_train_dataloader(self):
        if self.off_ramp_inputs is None:
            return super().get_train_dataloader()
        dataset, collator = self.train_dataset, self.data_collator
        self.train_dataset, self.data_collator = self.off_ramp_inputs, default_data_collator
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset, self.data_collator = dataset, collator

    def _get_train_sampler(self, train_dataset=None):
        # Cached rows have one size: there is nothing to group by length.
        if self.off_ramp_inputs is None or self.args.train_sampling_strategy in ("random", "sequential"):
            return super()._get_train_sampler(train_dataset)
        return RandomSampler(self.off_ramp_inputs)

    # ---- evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = {**inputs, "output_off_ramp_logits": True, "return_dict": True}
        ignore_keys = ["logits", "exit_layers", "hidden_states", "attentions"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        file = getattr(self.args, "report_file", None)
        if file is not None and metric_key_prefix.startswith("eval") and self.is_world_process_zero():
            path = Path(self.args.output_dir) / file
            # Of several evaluation sets each has its own page: `report_matched.html`.
            path = path.with_name(f"{path.stem}{metric_key_prefix.removeprefix('eval')}{path.suffix}")
            self.write_report(path, output, dataloader.dataset)
        return output

    def write_report(self, path: Path, output, dataset) -> None:
        """Writes the page of what an evaluation found."""
        logits, labels = output.predictions, output.label_ids
        if self.preprocess_logits_for_metrics is not None or logits is None or labels is None:
            logger.warning(f"No report is written to {path}: the evaluation keeps no logits of labelled rows.")
            return
        config = self.early_exit_model.config
        logits, labels = np.stack(list(logits), axis=1), np.asarray(labels)
        known = labels != -100
        if known.sum() < LEAST_ROWS:
            logger.warning(f"No report is written to {path}: it needs {LEAST_ROWS} labelled rows.")
            return
        # Grouped by length, rows come in another order than that of the data set.
        in_order = self.args.train_sampling_strategy != "group_by_length" and len(dataset) == len(labels)
        lengths = np.array([token_count(item) for item in dataset])[known] if in_order else None
        metric = (self.args.metric_for_best_model or "").removeprefix("eval_")
        table = ExitTable.from_logits(
            logits[known], labels[known], lengths, [config.id2label[label] for label in range(config.num_labels)]
        )
        table = replace(table, temperatures=config.off_ramp_temperatures and tuple(config.off_ramp_temperatures))
        step = f"step {self.state.global_step:,} of stage 2" if self.state.global_step else "not trained here"
        facts = {"model": type(self.early_exit_model).__name__, "training": step, "rows": f"{len(table):,}"}
        title = f"Early exit: {self.base_model_id or config.model_type}"
        report = make_report(table, title=title, facts=facts, metric=metric if metric in EXACT else "accuracy")
        try:
            report.save(path)
        except OSError as error:  # not worth a training
            logger.warning(f"No report is written to {path}: {error}.")

    def all_layer_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the model's own head, then those of every layer."""
        layers = [
            self.layer_metrics(EvalPrediction(logits, prediction.label_ids, prediction.inputs, prediction.losses))
            for logits in prediction.predictions
        ]
        metrics = dict(layers[-1])
        for layer, numbers in enumerate(layers, start=1):
            metrics.update({f"layer_{layer}_{name}": value for name, value in numbers.items()})
        return metrics
