"""Joint training: the backbone, its head and the off-ramps at once."""

import torch
from transformers import EvalPrediction
from transformers.utils import logging

from .adapters import refuse_adapters
from .card_numbers import choose_metric
from .multi_exit_trainer import MultiExitTrainer
from .training_arguments import DeeBertTrainingArguments


logger = logging.get_logger(__name__)


class JointTrainer(MultiExitTrainer):
    """
    Trains everything at once, from a finished stage 1 ("mixed" regime; Kubaty et al., ICML 2025), by
    `args.joint_strategy`; CE_i is the loss of the exit behind layer i, L the model's own head:

    - `"weighted"`: sum of i CE_i over all exits, divided by the sum of i (PABEE, Zhou et al., 2020, equation 5); an
      exit behind the embeddings counts as much as that behind layer 1.
    - `"alternating"`: CE_L at even steps, the sum of CE_i over all exits at odd ones (BERxiT, Xin et al., 2021, 3.2).
    - `"distilled"`: CE_L + sum over off-ramps of (1 - g) CE_i + g T² KL(p_L ‖ p_i), p of logits / T (RomeBERT, Geng et
      al., 2021), g = 0.9 and T = 3 unless the arguments have others. With `args.project_conflicts` the off-ramps'
      gradient of the parameters that they share with the head is projected onto the normal plane of CE_L's where it
      opposes that (PCGrad, Yu et al., 2020): for each batch of each process alone, also with gradient accumulation,
      and with two more backward passes.

    `args.layer_dropout` skips whole layers (LayerDrop, Fan et al., 2020). Off-ramps need epochs of their own: train
    them with [`OffRampTrainer`] afterwards, or use `TwoStageTrainer(second_stage="joint")`. Unlike stage 2 this
    changes the answers at full depth: with an `eval_dataset` the log has its metric before and after.

    Raises:
        ValueError: as for [`MultiExitTrainer`], for a model with PEFT adapters, or without `args.joint_strategy`.
    """

    trained_part = "all"
    default_distillation = (0.9, 3.0)
    full_depths: dict | None = None  # the metric at full depth before and after training

    def check_model(self) -> None:
        refuse_adapters(self.model)
        if not isinstance(self.args, DeeBertTrainingArguments):
            raise ValueError(f"`args` must be `DeeBertTrainingArguments`, got `{type(self.args).__name__}`.")
        self.args.check_joint()
        if self.args.joint_strategy is None:
            raise ValueError("`joint_strategy` is not set: choose 'weighted', 'alternating' or 'distilled'.")
        super().check_model()

    def combined_loss(self, off_ramps, head, labels, num_items_in_batch=None) -> torch.Tensor:
        own = self.exit_loss(head, labels, num_items_in_batch)
        strategy = self.args.joint_strategy
        if strategy == "alternating" and self.model.training and self.state.global_step % 2 == 0:
            # Several processes wait for a gradient of every parameter that the outputs depend on.
            return own + 0 * torch.stack([logits.sum() for logits in off_ramps]).sum()
        losses = [self.exit_loss(logits, labels, num_items_in_batch) for logits in off_ramps]
        if strategy == "alternating":
            return torch.stack([*losses, own]).sum()
        if strategy == "weighted":
            weights = torch.tensor([float(max(layer, 1)) for layer in self.exit_layers], device=own.device)
            return (weights * torch.stack([*losses, own])).sum() / weights.sum()
        weight, _ = self.distillation
        others = torch.stack(
            [
                (1 - weight) * loss + weight * self.distillation_loss(logits, head, labels, num_items_in_batch)
                for loss, logits in zip(losses, off_ramps, strict=True)
            ]
        ).sum()
        loss = own + others
        return loss + self.conflict(own, others) if self.args.project_conflicts and self.model.training else loss

    def conflict(self, own: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """
        The number 0, whose gradient takes the part of that of `others` away which opposes the gradient of `own`, of
        the parameters that both depend on.
        """
        off_ramps = {id(parameter) for parameter in self.early_exit_model.base_model.off_ramps.parameters()}
        shared = [one for one in self.early_exit_model.base_model.parameters() if id(one) not in off_ramps]
        gradients = [torch.autograd.grad(loss, shared, retain_graph=True, allow_unused=True) for loss in (own, others)]
        used = [both for both in zip(shared, *gradients, strict=True) if not any(one is None for one in both)]
        product = sum((of_own * of_others).sum() for _, of_own, of_others in used)
        norm = sum((of_own * of_own).sum() for _, of_own, _ in used)
        share = torch.where(product < 0, -product / norm, 0.0)
        term = share * sum((of_own * parameter).sum() for parameter, of_own, _ in used)
        return term - term.detach()

    def begin_training(self) -> None:
        super().begin_training()
        # Here, because `model_init` has made another model since and a trial other arguments.
        self.early_exit_model.base_model.layer_dropout = self.args.layer_dropout
        if self.args.layer_dropout:
            self.args.ddp_find_unused_parameters = True  # not every step uses every parameter

    def train(self, *args, **kwargs):
        """As `Trainer.train`; with `eval_dataset` the metrics also hold `full_depth_before` and `full_depth_after`."""
        before = self.full_depth()
        try:
            output = super().train(*args, **kwargs)
        finally:
            self.early_exit_model.base_model.layer_dropout = 0.0
        if before is not None and (after := self.full_depth()) is not None:
            (metric, first), (_, last) = before, after
            logger.warning(
                f"{metric} at full depth on `eval_dataset`: {first:.4f} before joint training, {last:.4f} now."
            )
            self.full_depths = {"metric": metric, "before": first, "after": last}
            output.metrics.update(full_depth_before=first, full_depth_after=last)
        return output

    def full_depth(self) -> tuple[str, float] | None:
        """Name and value of the first metric of the model's own head on `eval_dataset`, `None` without labels."""
        if self.eval_dataset is None or isinstance(self.eval_dataset, dict):
            return None
        prediction = self.predict(self.eval_dataset)
        if prediction.label_ids is None:
            return None
        metrics = self.layer_metrics(EvalPrediction(prediction.predictions[-1], prediction.label_ids))
        metric = choose_metric(metrics, self.args)
        return None if metric is None else (metric, float(metrics[metric]))
