"""Loss, metrics and predictions of every exit."""

import numpy as np
import torch
from torch import nn
from transformers import EvalPrediction
from transformers.modeling_outputs import SequenceClassifierOutput

from ..analysis.report import check_report_packages
from ..checks import check_single_label
from ..models.inputs_deebert import check_labels
from .evaluation_page import write_evaluation_page
from .stage_trainer import StageTrainer
from .training_arguments import DeeBertTrainingArguments


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


class MultiExitTrainer(StageTrainer):
    """
    Base of the trainers whose loss is about several exits. A strategy sets what it trains, `trained_part`, and its
    loss, [`combined_loss`]. Takes what [`~transformers.Trainer`] takes, with these differences:

    - `compute_metrics` is called once for each exit. Evaluation reports its numbers for the model's own head under
      their names, and for the exit at layer i as `layer_{i}_{name}`; accuracy when it is not given. The loss is that
      of the strategy. Without labels, where the loss needs none, it reports `layer_{i}_agreement`, the share of the
      rows whose class at the exit is that of the head.
    - `compute_loss_func(outputs, labels, num_items_in_batch=None)` is called for one exit at a time.
    - `predict(…).predictions` is a tuple of arrays `(rows, labels)`, one for each exit.

    Raises:
        ValueError: for a model without off-ramps, or that does not choose one of several classes.
    """

    args: DeeBertTrainingArguments
    default_distillation = (0.0, 1.0)

    @property
    def distillation(self) -> tuple[float, float]:
        """Weight and temperature of the distillation: those of the arguments, or the strategy's own."""
        given = self.args.distillation_weight, self.args.distillation_temperature
        weight, temperature = (
            own if one is None else one for one, own in zip(given, self.default_distillation, strict=True)
        )
        return weight, temperature

    @property
    def needs_labels(self) -> bool:
        """Whether the loss does."""
        return True

    def __init__(self, model=None, args=None, *, compute_metrics=None, compute_loss_func=None, **kwargs):
        self.layer_metrics = compute_metrics or accuracy
        self.exit_loss_func = compute_loss_func or self.cross_entropy
        own = {"compute_metrics": self.metrics_of_exits, "compute_loss_func": self.loss_of_batch}
        super().__init__(model, args, **own, **kwargs)
        if (preprocess := self.preprocess_logits_for_metrics) is not None:
            self.preprocess_logits_for_metrics = lambda exits, labels: tuple(preprocess(one, labels) for one in exits)
        if getattr(self.args, "report_file", None) is not None:
            check_report_packages()

    @property
    def exit_layers(self) -> tuple[int, ...]:
        """The layers that the exits stand behind, the model's own head last."""
        return self.early_exit_model.config.exit_layers

    def check_model(self) -> None:
        super().check_model()
        for name, good in (("batch_eval_metrics", False), ("eval_do_concat_batches", True)):
            if getattr(self.args, name) is not good:
                raise ValueError(f"`{name}` is {not good}, but metrics are computed for each exit: set it to {good}.")
        if not len(self.early_exit_model.base_model.off_ramps):
            raise ValueError(
                f"`model` has no off-ramps to train: it has the exit layers {self.exit_layers}, so load it with more "
                "than one layer, or another `off_ramp_layers`."
            )
        check_single_label("`model`", self.early_exit_model.config)

    def check_batch(self, name, batch):
        labels, preprocess = batch.get("labels"), self.preprocess_logits_for_metrics
        check_class_indices(name, labels, required=name == "train_dataset" and self.needs_labels)
        super().check_batch(name, batch)
        if labels is not None and preprocess is not None and self.layer_metrics is accuracy:
            logits = torch.zeros(len(labels), self.early_exit_model.config.num_labels)
            accuracy(EvalPrediction(preprocess((logits,), labels)[0], labels))

    # ---- loss

    def combined_loss(self, off_ramps, head, labels, num_items_in_batch=None) -> torch.Tensor:
        """
        The loss of a batch. A strategy overrides this, and calls [`exit_loss`] where it means that of one exit.

        Args:
            off_ramps (`tuple[torch.Tensor, ...]`): Logits `(rows, labels)` of the off-ramps, lowest first.
            head (`torch.Tensor`, *optional*):
                Logits of the model's own head, which can teach the off-ramps. `None` only in cached training whose
                trainer does not set `reads_head`.
            labels (`torch.Tensor` of shape `(rows,)`, *optional*): Class indices; without `needs_labels` `None`.
            num_items_in_batch (*optional*): Labels in the whole accumulated batch, to divide sums by.
        """
        raise NotImplementedError

    def exit_loss(self, logits, labels, num_items_in_batch=None) -> torch.Tensor:
        """The loss of one exit: `compute_loss_func`, or the cross-entropy."""
        outputs = SequenceClassifierOutput(logits=logits)
        return self.exit_loss_func(outputs, labels, num_items_in_batch=num_items_in_batch)

    def distillation_loss(self, logits, head, labels, num_items_in_batch=None) -> torch.Tensor:
        """
        T² KL(softmax(head / T) ‖ softmax(logits / T)), the gradient of `head` stopped: of the labelled rows, of all
        where there are no labels. Arguments as of [`combined_loss`].
        """
        if labels is not None:
            logits, head = logits[labels != -100], head[labels != -100]
        (_, temperature), count = self.distillation, num_items_in_batch
        total = temperature**2 * divergence(logits, head, temperature).sum()
        return total / (len(logits) if count is None else count)

    def cross_entropy(self, outputs, labels, num_items_in_batch=None) -> torch.Tensor:
        count, reduction = (1, "mean") if num_items_in_batch is None else (num_items_in_batch, "sum")
        logits, smoothing = outputs.logits.float(), self.args.label_smoothing_factor
        return nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction=reduction) / count

    def loss_of_batch(self, outputs, targets, num_items_in_batch=None) -> torch.Tensor:
        """What Trainer calls; `targets` are the labels and the head's logits where those are cached."""
        labels, head = targets
        off_ramps = outputs.off_ramp_logits[: len(self.early_exit_model.base_model.off_ramps)]
        if labels is not None:
            labels = check_labels(labels, self.early_exit_model.config, len(off_ramps[0]), self.model.training)
        head = outputs.logits if head is None else head
        loss = self.combined_loss(off_ramps, head, labels, num_items_in_batch=num_items_in_batch)
        if num_items_in_batch is None and self.model.training:
            # Trainer takes a loss of `compute_loss_func` as divided by the labels of all accumulated batches.
            loss = loss / self.current_gradient_accumulation_steps
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {**inputs, "return_dict": True}
        if "off_ramp_inputs" not in inputs:
            inputs["output_off_ramp_logits"] = True
        labels = inputs.get("labels")
        if not self.needs_labels:  # Trainer counts no rows but those that have one
            labels, num_items_in_batch = None, None
        # Trainer hands on as labels whatever is under their name.
        inputs["labels"] = (labels, inputs.pop("head_logits", None))
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    # ---- evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = {**inputs, "output_off_ramp_logits": True, "return_dict": True}
        ignore_keys = ["logits", "exit_layers", "hidden_states", "attentions"]
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    def evaluation_loop(self, dataloader, *args, metric_key_prefix="eval", **kwargs):
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        if output.label_ids is None and not self.needs_labels and self.preprocess_logits_for_metrics is None:
            agreement = self.agreement_with_head(output.predictions)
            output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in agreement.items()})
        wanted = getattr(self.args, "report_file", None) is not None and metric_key_prefix.startswith("eval")
        if wanted and self.is_world_process_zero():
            write_evaluation_page(self, output, dataloader.dataset, metric_key_prefix)
        return output

    def agreement_with_head(self, exits: tuple[np.ndarray, ...]) -> dict[str, float]:
        """For each exit, the share of the rows whose class by its logits `(rows, labels)` is that of the head."""
        head = exits[-1].argmax(-1)
        return {
            f"layer_{layer}_agreement": float((logits.argmax(-1) == head).mean())
            for layer, logits in zip(self.exit_layers, exits, strict=True)
        }

    def metrics_of_exits(self, prediction: EvalPrediction) -> dict[str, float]:
        """The metrics of the model's own head, then those of every exit by its layer."""
        exits = [
            self.layer_metrics(EvalPrediction(logits, prediction.label_ids, prediction.inputs, prediction.losses))
            for logits in prediction.predictions
        ]
        metrics = dict(exits[-1])
        for layer, numbers in zip(self.exit_layers, exits, strict=True):
            metrics.update({f"layer_{layer}_{name}": value for name, value in numbers.items()})
        return metrics


def divergence(logits: torch.Tensor, head: torch.Tensor, temperature: float) -> torch.Tensor:
    """`(rows,)`: KL(softmax(head / T) ‖ softmax(logits / T)), without a gradient of `head`."""
    student, teacher = ((one.float() / temperature).log_softmax(-1) for one in (logits, head.detach()))
    return nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(-1)


def check_class_indices(name: str, labels, required: bool) -> None:
    """Raises `ValueError` unless the labels of a batch of the data set `name` are class indices `(rows,)`."""
    if labels is None and not required:
        return
    if labels is None or labels.is_floating_point() or labels.dim() != 1:
        shown = "none" if labels is None else f"{labels.dtype} of the shape {tuple(labels.shape)}"
        raise ValueError(
            f"`{name}` must give integer `labels` (rows,) through the data collator, got {shown}: give the index of "
            "each row's class."
        )
