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


# What a recipe changes in the arguments of stage 2 and of joint training (`None`: there is none).
RECIPES: dict[str, tuple[dict, dict | None]] = {
    "two_stage": ({}, None),
    "two_stage_distilled": ({"distillation_weight": 0.5}, None),
    "joint_weighted": ({}, {"joint_strategy": "weighted"}),
    "joint_alternating": ({}, {"joint_strategy": "alternating"}),
    # Options of distillation are those of joint training; stage 2 behind it is plain.
    "joint_distilled": ({"distillation_weight": 0.0}, {"joint_strategy": "distilled"}),
}


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
    """Fine-tunes the early-exit model by `experiment.recipe`."""
    options = {name: getattr(experiment, name) for name in ("off_ramp_pooling", "off_ramp_head")}
    options = {name: value for name, value in options.items() if value is not None} | task.label_maps
    stage_2 = {"num_train_epochs": experiment.off_ramp_epochs, "learning_rate": experiment.off_ramp_learning_rate}
    of_recipe, joint = RECIPES[experiment.recipe]
    if experiment.recipe == "two_stage_distilled" and training.distillation_weight is not None:
        of_recipe = {}  # the user's
    trainer = TwoStageTrainer(
        model_init=lambda: from_backbone(experiment.model_name_or_path, **options),
        backbone_args=arguments_of(training, f"seed_{seed}", seed),
        off_ramp_args=arguments_of(training, f"seed_{seed}", seed, **stage_2, **of_recipe),
        second_stage="off_ramps" if joint is None else "joint",
        joint_args=None if joint is None else arguments_of(training, f"seed_{seed}", seed, **joint),
        **data.trainer_keywords(task),
    )
    trainer.train(resume_from_checkpoint=training.resume_from_checkpoint is not None)
    return trainer


def train_stock(
    model_name_or_path: str,
    training,
    task: GlueTask,
    data: EncodedTask,
    seed: int,
    folder: str,
    layers: int | None = None,
) -> Trainer:
    """
    Fine-tunes a stock model, or the first `layers` layers of it, like stage 1: same rows, batches, learning rate and
    epochs.
    """
    set_seed(seed)
    config = AutoConfig.from_pretrained(model_name_or_path, **task.label_maps)
    if layers is not None:
        if getattr(config, "layer_types", None):  # one entry a layer
            config.layer_types = config.layer_types[:layers]
        config.num_hidden_layers = layers
    model = AutoModelForSequenceClassification.from_pretrained(model_name_or_path, config=config)
    trainer = Trainer(model, arguments_of(training, f"{folder}_seed_{seed}", seed), **data.trainer_keywords(task))
    trainer.train()
    trainer.save_model()
    return trainer


def check_shallow(model_name_or_path: str, shallow: list[int]) -> None:
    """Raises `ValueError` unless each of `shallow` is a number of layers below the encoder's."""
    depth = AutoConfig.from_pretrained(model_name_or_path).num_hidden_layers
    if not all(1 <= layers < depth for layers in shallow):
        raise ValueError(f"`shallow` must be numbers of layers from 1 to {depth - 1}, got {shallow}.")


def layer_logits(trainer: TwoStageTrainer, rows: Dataset) -> np.ndarray:
    """Logits of every layer from one pass, of shape `(rows, layers, labels)`."""
    return np.stack(trainer.predict(rows).predictions, axis=1)
