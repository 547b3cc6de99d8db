"""A Trainer for one stage of the training."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import unwrap_peft_model
from transformers.utils import logging

from ..analysis.row_windows import data_columns
from ..hub.model_card import write_model_card
from ..models.inputs_deebert import check_labels
from .adapters import check_adapters_hold_all, has_adapters
from .card_numbers import card_arguments, hub_id, run_numbers
from .exit_status import ExitStatusCallback
from .training_arguments import DeeBertTrainingArguments


logger = logging.get_logger(__name__)

TRAINING_ARGUMENTS_FILE = "training_arguments.json"
# Places on this machine and the account that pushes: not for a checkpoint that is shared.
LOCAL_ARGUMENTS = (
    "output_dir",
    "logging_dir",
    "run_name",
    "resume_from_checkpoint",
    "deepspeed",
    "fsdp_config",
    "hub_token",
    "report_file",
)


def last_complete_checkpoint(folder) -> str | None:
    """
    The newest checkpoint of `folder` whose writing was finished, `None` if there is none. Trainer writes
    `trainer_state.json` last, so the folder of a run killed while saving has no readable one.
    """
    prefix = "checkpoint-"
    found = {path.name.removeprefix(prefix): str(path) for path in Path(folder).glob(f"{prefix}*")}
    steps = sorted((step for step in found if step.isdigit()), key=int, reverse=True)
    return next((found[step] for step in steps if has_trainer_state(found[step])), None)


def has_trainer_state(folder) -> bool:
    """Whether `folder` holds a complete `trainer_state.json`."""
    try:
        TrainerState.load_from_json(os.path.join(folder, "trainer_state.json"))
    except (OSError, ValueError):
        return False
    return True


def first_rows(dataset: Any, count: int) -> list:
    """The first items of a data set; none of a stream that can be read only once."""
    if not isinstance(dataset, IterableDataset):
        return [dataset[index] for index in range(min(count, len(dataset)))]
    once = iter(dataset) is iter(dataset)
    return [] if once else list(islice(dataset, count))


@contextlib.contextmanager
def kept_weights(model: nn.Module) -> Iterator[None]:
    """Undoes any `model.to(...)` of the block, to the bit."""
    parameters = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(module, dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for module, own in buffers:
            module._buffers.update(own)


class StageTrainer(Trainer):
    """
    A [`~transformers.Trainer`] for one stage. When training starts it freezes what the stage does not train, and takes
    the first batch of every data set through collator, checks and model. It resumes from the last checkpoint that was
    written completely, evaluates at full depth whatever exit the configuration sets, and saves nothing pickled.
    """

    trained_part: str  # what `set_trainable` is given
    _signature_columns: Any

    def __init__(self, model=None, args=None, **kwargs):
        args = DeeBertTrainingArguments(output_dir="tmp_trainer") if args is None else args
        super().__init__(model, args, **kwargs)
        self.check_model()
        # Before a folder that the model came from can be gone and look like a repository.
        self.base_model_id = hub_id(self.early_exit_model.name_or_path)
        # A column named like a setting of a call, such as `exit_layer`, is no input.
        self._signature_columns = [*data_columns(self.early_exit_model), "label", "label_ids", *self.label_names]
        self.freeze()
        self.add_callback(ExitStatusCallback(self))

    @property
    def early_exit_model(self):
        """The classifier inside whatever wraps it."""
        return unwrap_peft_model(self.accelerator.unwrap_model(self.model))

    def check_model(self) -> None:
        """Raises `ValueError` for a model, or arguments, that this stage cannot train with."""
        if not callable(getattr(self.early_exit_model, "set_trainable", None)):
            raise ValueError(
                f"`model` is a `{type(self.early_exit_model).__name__}`, which has no off-ramps: load it with "
                "`DeeBertForSequenceClassification` or the class of its family."
            )

    def freeze(self) -> None:
        """Sets `requires_grad` of every parameter; beside adapters, PEFT's choice stands and the off-ramps freeze."""
        if not has_adapters(self.model):
            self.early_exit_model.set_trainable(self.trained_part)
            return
        self.early_exit_model.base_model.off_ramps.requires_grad_(False)
        check_adapters_hold_all(self.model)

    # ---- data

    def check_data(self) -> None:
        """
        Takes the first batch of each data set through the data collator, the checks of the stage and the model, so
        that an evaluation set that is refused does not cost an epoch.
        """
        datasets = {"train_dataset": self.train_dataset, "eval_dataset": self.eval_dataset}
        if isinstance(self.eval_dataset, dict):
            datasets |= {"eval_dataset": None} | {f"eval_dataset[{k!r}]": v for k, v in self.eval_dataset.items()}
        collator = self._get_collator_with_removed_columns(self.data_collator)
        training = self.model.training
        with torch.random.fork_rng(devices=[]):
            self.model.eval()
            for name, dataset in datasets.items():
                rows = [] if dataset is None else first_rows(dataset, self.args.eval_batch_size)
                if rows:
                    self.check_batch(name, collator(rows))
            self.model.train(training)

    def check_batch(self, name: str, batch: Mapping) -> None:
        """Raises `ValueError` for a batch of the data set `name` that cannot be trained on or evaluated."""
        if batch.get("labels") is not None:
            check_labels(batch["labels"], self.early_exit_model.config, len(batch["labels"]), training=False)
        # A model that is sharded or offloaded is not where its batches go before training has begun.
        if next(self.model.parameters()).device == self.args.device:
            self.prediction_step(self.model, dict(batch), prediction_loss_only=True)

    # ---- training

    def train(self, resume_from_checkpoint=None, **kwargs):
        """
        As `Trainer.train`. The metrics it returns also hold `off_ramp_parameter_share`, the share of the model's
        parameters that are off-ramps.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir) or True
        output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        share = self.off_ramp_parameter_share()
        logger.info(f"{share:.2%} of the parameters are off-ramps.")
        output.metrics["off_ramp_parameter_share"] = share
        return output

    def begin_training(self) -> None:
        """Checks and freezes, once a model of `model_init` and the arguments of a trial are there."""
        self.check_model()
        self.freeze()
        self.check_data()

    def get_train_dataloader(self):
        if self.is_in_train:  # the first that Trainer does with the model that it trains
            self.begin_training()
        return super().get_train_dataloader()

    def off_ramp_parameter_share(self) -> float:
        """Number of the off-ramps' parameters divided by that of all."""
        model = self.early_exit_model
        off_ramps = sum(parameter.numel() for parameter in model.base_model.off_ramps.parameters())
        return off_ramps / sum(parameter.numel() for parameter in model.parameters())

    # ---- evaluation

    def evaluation_loop(self, *args, **kwargs):
        # Trainer casts the model for `bf16_full_eval`, and does not cast it back.
        rounds = (self.args.bf16_full_eval or self.args.fp16_full_eval) and not self.is_in_train
        with kept_weights(self.model) if rounds else contextlib.nullcontext():
            output = super().evaluation_loop(*args, **kwargs)
        if self.args.world_size > 1 and not self.is_in_train:
            # accelerate would take a model that it prepared for an evaluation as prepared for training as well, and
            # several processes would train without exchanging their gradients.
            vars(self.model).pop("_is_accelerate_prepared", None)
        return output

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = {**inputs, "early_exit_entropy": 0.0}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)

    # ---- saving

    def _save(self, output_dir=None, state_dict=None):
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return  # every process comes here, one of them saves
        # A checkpoint that is shared holds nothing pickled, and no folders of this machine.
        folder = Path(output_dir or self.args.output_dir)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
        arguments = json.loads(self.args.to_json_string())
        shared = {name: value for name, value in arguments.items() if name not in LOCAL_ARGUMENTS}
        (folder / TRAINING_ARGUMENTS_FILE).write_text(json.dumps(shared, indent=2), encoding="utf-8")

    def create_model_card(self, language=None, license=None, tags=None, model_name=None, **kwargs):
        """
        Writes the card of this stage's model to `output_dir`, from what the run knows; nothing is looked up.

        Args:
            language, license, model_name (`str`, *optional*): As for `Trainer`.
            tags (`str` or `list[str]`, *optional*): Tags besides `deebert` and `early-exit`.
            kwargs: `dataset`, `dataset_tags` (its id on the Hub) and `finetuned_from`, as for `Trainer`.
        """
        if not self.is_world_process_zero():
            return
        card = run_numbers({self.trained_part: self}) | card_arguments(language, model_name, **kwargs)
        model_id = getattr(self, "hub_model_id", None)
        write_model_card(self.args.output_dir, card, model_id=model_id, license=license, tags=tags)
