"""Training of the GLUE experiment: the early-exit model in both stages, a stock model alike. Used by run_glue.py."""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from glue_tasks import GlueTask
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    Trainer,
    set_seed,
)

from transformers_deebert import DeeBertTrainingArguments, TwoStageTrainer, from_backbone
from transformers_deebert.families import find_family


def default_epochs(model_name_or_path: str) -> float:
    """Epochs a stage, as in the paper: 10 for RoBERTa and its kind, 3 for BERT."""
    family = find_family(AutoConfig.from_pretrained(model_name_or_path).model_type, model_name_or_path)
    return 10.0 if family.config.backbone_type in ("roberta", "xlm-roberta", "camembert") else 3.0


@dataclass
class EncodedTask:
    """
    A task's rows as one tokenizer encodes them.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer.
        train (`Dataset`): Rows to train on.
        evaluated, tests (`dict[str, Dataset]`): Sets to evaluate on, with labels, and to predict, without.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    evaluated: dict[str, Dataset]
    tests: dict[str, Dataset]

    def timing_inputs(self, number: int, seed: int) -> list[dict]:
        """Random rows of the first evaluated set, as a model takes them."""
        rows = sample(next(iter(self.evaluated.values())), number, seed)
        return rows.select_columns([n for n in self.tokenizer.model_input_names if n in rows.column_names]).to_list()

    def trainer_keywords(self, task: GlueTask) -> dict:
        return {
            "train_dataset": self.train,
            "data_collator": DataCollatorWithPadding(self.tokenizer),
            "processing_class": self.tokenizer,
            "compute_metrics": lambda result: task.score(result.predictions.argmax(-1), result.label_ids),
        }


def sample(rows: Dataset, number: int | None, seed: int) -> Dataset:
    """So many random rows, or all."""
    return rows if number is None else rows.shuffle(seed=seed).select(range(min(number, len(rows))))


def encode_task(model_name_or_path: str, task: GlueTask, max_length: int, train, evaluated, tests) -> EncodedTask:
    tokenizer = AutoTokenizer.from_pretrained(model_name_or_path)

    def encode(rows: Dataset) -> Dataset:
        return task.encode(rows, tokenizer, max_length)

    return EncodedTask(
        tokenizer,
        encode(train),
        {name: encode(rows) for name, rows in evaluated.items()},
        {name: encode(rows) for name, rows in tests.items()},
    )


def arguments_of(training: DeeBertTrainingArguments, folder: str, seed: int, **changes) -> DeeBertTrainingArguments:
    """A copy for one run; changes to `None` are none."""
    arguments = copy.copy(training)
    changes |= {"output_dir": str(Path(training.output_dir) / folder), "seed": seed}
    for name, value in changes.items():
        if value is not None:
            setattr(arguments, name, value)
    return arguments


def train_early_exit(experiment, training, task: GlueTask, data: EncodedTask, seed: int) -> TwoStageTrainer:
    """Fine-tunes the early-exit model in both stages."""
    options = {name: getattr(experiment, name) for name in ("off_ramp_pooling", "off_ramp_head")}
    options = {name: value for name, value in options.items() if value is not None} | task.label_maps
    stage_2 = {"num_train_epochs": experiment.off_ramp_epochs, "learning_rate": experiment.off_ramp_learning_rate}
    trainer = TwoStageTrainer(
        model_init=lambda: from_backbone(experiment.model_name_or_path, **options),
        backbone_args=arguments_of(training, f"seed_{seed}", seed),
        off_ramp_args=arguments_of(training, f"seed_{seed}", seed, **stage_2),
        **data.trainer_keywords(task),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint is not None)
    return trainer


def train_baseline(experiment, training, task: GlueTask, data: EncodedTask, seed: int) -> Trainer:
    """Fine-tunes the stock model alike: same rows, batches, learning rate and epochs as stage 1."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        experiment.baseline_model_name_or_path, **task.label_maps
    )
    arguments = arguments_of(training, f"baseline_seed_{seed}", seed)
    trainer = Trainer(model, arguments, **data.trainer_keywords(task))
    trainer.train()
    trainer.save_model()
    return trainer


def layer_logits(trainer: TwoStageTrainer, rows: Dataset) -> np.ndarray:
    """Logits of every layer from one pass, of shape `(rows, layers, labels)`."""
    return np.stack(trainer.predict(rows).predictions, axis=1)
