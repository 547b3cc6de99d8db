"""Stage 2: training of the off-ramps on a frozen backbone."""

import shutil
from pathlib import Path

import torch
from transformers import default_data_collator

from ..analysis.row_windows import write_windows
from .adapters import refuse_adapters
from .multi_exit_trainer import MultiExitTrainer
from .off_ramp_cache import CachedInputs, cache_windows, cached_arguments, check_free_space, check_map_style
from .training_arguments import OFF_RAMP_MODES, DeeBertTrainingArguments


class OffRampTrainer(MultiExitTrainer):
    """
    Stage 2 (DeeBERT, section 3.1): trains the off-ramps, with the plain sum of their losses (cross-entropy unless
    `compute_loss_func` is given, and distillation from the model's own head by `args.distillation_weight`); everything
    else is frozen and stays as it is. Metrics and predictions are those of every exit, see [`MultiExitTrainer`].

    - `args.off_ramp_mode` chooses whether the backbone runs at every step; see [`DeeBertTrainingArguments`].
    - Training drops `config.off_ramp_temperatures`, which were fitted to the off-ramps as they were before.

    Raises:
        ValueError: for a model with PEFT adapters or one that does not choose one of several classes, or for
            `"cached"` with attention pooling.
    """

    trained_part = "off_ramps"
    cached_inputs: CachedInputs | None = None

    @property
    def reads_head(self) -> bool:
        """Whether the loss reads the head's logits: cached training then keeps them beside the off-ramps' inputs."""
        return self.distillation[0] > 0

    @property
    def needs_labels(self) -> bool:
        return self.distillation[0] < 1

    @property
    def off_ramp_mode(self) -> str:
        """By arguments (in a search, those of the trial) and model; raises `ValueError` where they disagree."""
        mode, attention = self.args.off_ramp_mode, self.early_exit_model.config.off_ramp_pooling == "attention"
        if mode not in (None, *OFF_RAMP_MODES):  # a trial sets the field unchecked
            raise ValueError(f"`off_ramp_mode` must be one of {OFF_RAMP_MODES} or None, got {mode!r}.")
        if attention and mode == "cached":
            raise ValueError(
                "`off_ramp_mode` is 'cached', but attention pooling learns what it reads from all token states: use "
                "'through_backbone'."
            )
        return mode or ("through_backbone" if attention else "cached")

    def check_model(self) -> None:
        refuse_adapters(self.model)
        if not isinstance(self.args, DeeBertTrainingArguments):
            raise ValueError(f"`args` must be `DeeBertTrainingArguments`, got `{type(self.args).__name__}`.")
        super().check_model()
        self.args.check_distillation()
        _ = self.off_ramp_mode  # raises

    def combined_loss(self, off_ramps, head, labels, num_items_in_batch=None) -> torch.Tensor:
        """Sum of the off-ramps' losses, (1 - g) CE_i + g T² KL(p_L ‖ p_i); g = 0: the head does not take part."""
        (weight, _), losses = self.distillation, []
        for logits in off_ramps:
            if weight < 1:
                losses.append((1 - weight) * self.exit_loss(logits, labels, num_items_in_batch))
            if weight > 0:
                losses.append(weight * self.distillation_loss(logits, head, labels, num_items_in_batch))
        return torch.stack(losses).sum()

    # ---- cached inputs

    @property
    def cache_folder(self) -> Path:
        return Path(self.args.output_dir) / "_off_ramp_inputs"  # Trainer pushes nothing of such a name

    def train(self, *args, **kwargs):
        given = self.args
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args, self.cached_inputs, self.is_in_train = given, None, False
            if self.args.should_save:
                shutil.rmtree(self.cache_folder, ignore_errors=True)

    def check_data(self) -> None:
        if self.off_ramp_mode == "cached":
            check_map_style(self.train_dataset)
        super().check_data()

    def begin_training(self) -> None:
        super().begin_training()
        if self.off_ramp_mode == "through_backbone":
            return
        self.args = cached_arguments(self.args)
        if self.cached_inputs is None:  # else a smaller batch size is tried
            self.cached_inputs = self.compute_cached_inputs()
        self.train_dataset, self.data_collator = self.cached_inputs, default_data_collator
        self._signature_columns = [*self.cached_inputs.columns]

    def get_train_dataloader(self):
        given = self.train_dataset, self.data_collator, self._signature_columns
        try:
            return super().get_train_dataloader()  # begins the training
        finally:
            self.train_dataset, self.data_collator, self._signature_columns = given

    def compute_cached_inputs(self) -> CachedInputs:
        """Runs the frozen backbone once over the training data, each process its share of the rows."""
        model, folder, rows = self.early_exit_model, self.cache_folder, check_map_style(self.train_dataset)
        world, rank = self.args.world_size, self.args.process_index
        shares = [range(rows * one // world, rows * (one + 1) // world) for one in range(world)]
        files = [folder / f"{one:05d}-of-{world:05d}.arrow" for one in range(world)]
        if self.args.should_save:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        num_off_ramps = len(model.base_model.off_ramps)
        numbers = num_off_ramps * model.config.hidden_size + self.reads_head * model.config.num_labels
        check_free_space(folder, rows * (4 * numbers + 8))
        self.accelerator.wait_for_everyone()
        model.eval()  # a training step sets it back
        progress = not self.args.disable_tqdm and self.is_local_process_zero()
        with self.accelerator.autocast():
            if shares[rank]:  # there may be fewer rows than processes
                write_windows(files[rank], cache_windows(self, shares[rank], progress))
        self.accelerator.wait_for_everyone()
        return CachedInputs([file for file, share in zip(files, shares, strict=True) if share], num_off_ramps)
