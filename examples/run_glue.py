"""
DeeBERT's experiment on GLUE (Xin et al., ACL 2020, section 4): two-stage fine-tuning, the score of every layer, the
trade-off between score and saving at many thresholds from one pass, and wall-clock runs at batch size 1.

    accelerate launch examples/run_glue.py --model_name_or_path google-bert/bert-base-uncased --task_name sst2 \
        --output_dir out

It takes SST-2, MRPC, QNLI, RTE, QQP, MNLI, CoLA and WNLI, from the Hub or from files of one's own with the keys `text`
or `sentence1` and `sentence2`, and `label`:

    accelerate launch --cpu examples/run_glue.py --model_name_or_path path/to/bert --task_name sst2 \
        --train_file train.jsonl --validation_file validation.jsonl --max_train_samples 8000 --off_ramp_pooling mean \
        --seeds 5 --output_dir out

Several processes on CPU: `accelerate launch --multi_gpu --num_processes 2 examples/run_glue.py --use_cpu …`, or with
`torchrun` alike. (With `--cpu --num_processes 2` accelerate starts one process, unless it is given MPI's host file.)

`--recipe` chooses how the exits are trained: in two stages as in the paper (`two_stage`), with off-ramps that learn
half from the model's own head (`two_stage_distilled`; `--distillation_weight`, `--distillation_temperature`), or with
joint training between the stages (`joint_weighted`, `joint_alternating`, `joint_distilled`; see `JointTrainer`), of as
many epochs as stage 1. `--shallow 3 4` adds what a user would take instead: the encoder's first 3 and 4 layers,
fine-tuned like stage 1, whose layer saving is 1 - k/L.

Any option of `DeeBertTrainingArguments` may be given; the defaults are the paper's. `output_dir` gets `results.json`,
`table.csv`, `layers.csv`, `operating_points.csv`, pictures, the models in `seed_*`, and with `--do_predict` the first
model's answers for GLUE's server in `submission`, at full depth and at its operating points.
"""

import logging
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path

import glue_report
import numpy as np
from accelerate import PartialState
from glue_tasks import GlueTask, get_score, get_task, load_data, write_submission
from glue_training import (
    RECIPES,
    check_shallow,
    default_epochs,
    encode_task,
    layer_logits,
    sample,
    train_early_exit,
    train_stock,
)
from transformers import HfArgumentParser, PreTrainedModel

from transformers_deebert import DeeBertTrainingArguments, analysis


MAX_DROPS = (0.0, 0.01, 0.03)  # allowed losses of score that an operating point is chosen for
THRESHOLDS = (0.0, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)


@dataclass
class ExperimentArguments:
    """What to run; `DeeBertTrainingArguments` say how to train."""

    model_name_or_path: str = field(metadata={"help": "Checkpoint of any supported encoder."})
    task_name: str = field(metadata={"help": "sst2, mrpc, qnli, rte, qqp, mnli, cola or wnli."})
    train_file: str | None = field(default=None, metadata={"help": "A .jsonl or .csv file instead of the Hub's rows."})
    validation_file: str | None = field(default=None, metadata={"help": "The same for validation (MNLI: matched)."})
    validation_mismatched_file: str | None = field(default=None, metadata={"help": "MNLI's second validation set."})
    test_file: str | None = field(default=None, metadata={"help": "Rows for --do_predict (MNLI: matched)."})
    test_mismatched_file: str | None = field(default=None, metadata={"help": "MNLI's second test set."})
    max_length: int = field(default=128, metadata={"help": "Longest input in tokens; longer ones are cut."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many random rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on so many random rows."})
    seeds: int = field(default=1, metadata={"help": "Number of runs, with seeds from --seed on."})
    off_ramp_pooling: str | None = field(default=None, metadata={"help": "cls (the paper's), mean or attention."})
    off_ramp_head: str | None = field(default=None, metadata={"help": "pooler (the paper's) or linear."})
    off_ramp_epochs: float | None = field(default=None, metadata={"help": "Of stage 2, if not the same."})
    off_ramp_learning_rate: float | None = field(default=None, metadata={"help": "Of stage 2, if not the same."})
    timing_rows: int = field(default=200, metadata={"help": "Time so many validation rows; 0: none."})
    timing_repeats: int = field(default=3, metadata={"help": "Timed passes over those rows."})
    timing_thresholds: list[float] = field(
        default_factory=lambda: [0.1, 0.4], metadata={"help": "To time beside the operating points' thresholds."}
    )
    recipe: str = field(default="two_stage", metadata={"help": "How the exits are trained.", "choices": list(RECIPES)})
    shallow: list[int] = field(
        default_factory=list,
        metadata={"help": "Numbers of layers: the encoder's first, fine-tuned alike, are added to the table."},
    )
    baseline_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Any stock checkpoint, fine-tuned alike and added to the table."}
    )

    def __post_init__(self):
        get_task(self.task_name)
        if self.recipe not in RECIPES:
            raise ValueError(f"`recipe` must be one of {list(RECIPES)}, got {self.recipe!r}.")
        if not all(0 <= threshold < math.inf for threshold in self.timing_thresholds):
            raise ValueError(f"`timing_thresholds` must be finite and >= 0, got {self.timing_thresholds}.")
        if self.timing_rows < 0:
            raise ValueError(f"`timing_rows` must be >= 0, got {self.timing_rows}.")
        for name in ("max_length", "max_train_samples", "max_eval_samples", "seeds", "timing_repeats"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"`{name}` must be 1 or more, got {value}.")


@dataclass
class Runs:
    """
    What the trained models say of the evaluated sets.

    Args:
        train_rows (`int`): Number of rows that they were trained on.
        labels (`dict[str, np.ndarray]`): True classes of each set.
        logits (`dict[str, list[np.ndarray]]`): Of each set and seed, for all layers: `(rows, layers, labels)`.
        answers (`dict[str, list[np.ndarray]]`): The baseline's classes of each set and seed.
        shallow (`dict[str, dict[int, list[np.ndarray]]]`): Those of the shallower models, by number of layers.
        model, inputs: The first seed's model and encoded rows to time it on.
        baseline (`tuple`, *optional*): The first seed's baseline and its own encoding of the same rows.
    """

    train_rows: int
    labels: dict[str, np.ndarray]
    logits: dict[str, list[np.ndarray]]
    answers: dict[str, list[np.ndarray]]
    shallow: dict[str, dict[int, list[np.ndarray]]]
    model: PreTrainedModel | None = None
    inputs: list[dict] = field(default_factory=list)
    baseline: tuple[PreTrainedModel, list[dict]] | None = None


def choose(table: analysis.ExitTable, task: GlueTask) -> dict[float, analysis.ThresholdChoice]:
    """The choice for each allowed loss of the task's first metric."""
    return {
        drop: analysis.pick_threshold(table, max_metric_drop=drop, metric=task.metrics[0], compute_metric=task.score)
        for drop in MAX_DROPS
    }


def measure(runs: Runs, thresholds: list[float], repeats: int):
    """Wall clock at batch size 1: figures of each threshold, and seconds of the baseline and of ours at full depth."""
    model, inputs, seconds = runs.model, runs.inputs, None
    if not inputs or not thresholds:
        return {}, None
    stock = analysis.stock_model(model)
    print(
        f"Times {len(thresholds)} thresholds on {len(inputs)} rows, one at a time, {repeats} passes each.", flush=True
    )
    figures = analysis.time_thresholds(model, inputs, thresholds, repeats=repeats, stock_model=stock, progress=True)
    if runs.baseline is not None:
        full_depth = (model, inputs, {"early_exit_entropy": 0.0})
        before, theirs, after = analysis.time_models([full_depth, (*runs.baseline, {}), full_depth], repeats=repeats)
        seconds = {"full_depth": statistics.median(before + after), "baseline": statistics.median(theirs)}
    return {figure.threshold: figure for figure in figures}, seconds


def report(experiment: ExperimentArguments, training: DeeBertTrainingArguments, runs: Runs) -> set[float]:
    """Chooses operating points, times the first seed's model, writes all down; returns the chosen thresholds."""
    task, labels, logits = get_task(experiment.task_name), runs.labels, runs.logits
    score, scores_from = get_score(task)
    seeds, first = list(range(training.seed, training.seed + experiment.seeds)), next(iter(labels))
    tables = {name: [analysis.ExitTable.from_logits(one, labels[name]) for one in logits[name]] for name in labels}
    choices = {name: [choose(table, task) for table in tables[name]] for name in labels}
    chosen = {choice.threshold for choice in choices[first][0].values()}
    timed = sorted({*chosen, *experiment.timing_thresholds} - {0.0})
    figures, seconds = measure(runs, timed, experiment.timing_repeats)

    folder, sets = Path(training.output_dir), {}
    for name in labels:
        curves = [analysis.sweep_thresholds(table, sorted({*THRESHOLDS, *timed}), score) for table in tables[name]]
        layers = [analysis.layer_scores(table, score) for table in tables[name]]
        theirs = [score(one, labels[name]) for one in runs.answers[name]]
        shallow = {k: [score(one, labels[name]) for one in answers] for k, answers in runs.shallow[name].items()}
        times = (figures, seconds) if name == first else ({}, None)
        sets[name] = glue_report.summarize(
            task, seeds, curves, layers, choices[name], *times, experiment.baseline_model_name_or_path, theirs, shallow
        )
        glue_report.print_tables(task, name, sets[name])
        glue_report.draw(folder / f"trade_off_{name}.png", task, name, curves, chosen, sets[name])
    glue_report.write_tables(folder, sets)
    reported = (
        "num_train_epochs",
        "learning_rate",
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "bf16",
    )
    reported += ("distillation_weight", "distillation_temperature", "project_conflicts", "layer_dropout")
    analysis.write_json(
        folder / "results.json",
        {
            "experiment": asdict(experiment),
            "training": {name: getattr(training, name) for name in (*reported, "off_ramp_mode", "world_size")},
            "train_rows": runs.train_rows,
            "scores_from": scores_from,
            "machine": analysis.describe_machine(runs.model.device),
            "sets": sets,
        },
    )
    return chosen


def main(command: list[str] | None = None) -> None:
    parser = HfArgumentParser((ExperimentArguments, DeeBertTrainingArguments))
    parser.set_defaults(num_train_epochs=None, save_strategy="no", report_to="none")
    experiment, training = parser.parse_args_into_dataclasses(command)
    is_main, task = training.process_index == 0, get_task(experiment.task_name)
    logging.basicConfig(level=logging.WARNING)
    for name in ("glue_tasks", "transformers_deebert"):
        logging.getLogger(name).setLevel(logging.INFO if is_main else logging.WARNING)
    if training.num_train_epochs is None:
        training.num_train_epochs = default_epochs(experiment.model_name_or_path)
    check_shallow(experiment.model_name_or_path, experiment.shallow)

    train, evaluated, tests = load_data(
        task,
        experiment.train_file,
        (experiment.validation_file, experiment.validation_mismatched_file),
        (experiment.test_file, experiment.test_mismatched_file),
        with_test=training.do_predict,
    )
    train = sample(train, experiment.max_train_samples, training.seed)
    evaluated = {name: sample(rows, experiment.max_eval_samples, training.seed) for name, rows in evaluated.items()}
    runs = Runs(
        train_rows=len(train),
        labels={name: np.array(rows["label"]) for name, rows in evaluated.items()},
        logits={name: [] for name in evaluated},
        answers={name: [] for name in evaluated},
        shallow={name: {layers: [] for layers in experiment.shallow} for name in evaluated},
    )
    seeds = range(training.seed, training.seed + experiment.seeds)

    data = encode_task(experiment.model_name_or_path, task, experiment.max_length, train, evaluated, tests)
    for seed in seeds:
        trainer = train_early_exit(experiment, training, task, data, seed)
        for name, rows in data.evaluated.items():
            runs.logits[name].append(layer_logits(trainer, rows))
        if runs.model is None:  # the first seed's model stands for all in timing and submission
            runs.model, runs.inputs = trainer.model, data.timing_inputs(experiment.timing_rows, training.seed)
            test_logits = {name: layer_logits(trainer, rows) for name, rows in data.tests.items()}
        for layers in experiment.shallow:
            folder = f"layers_{layers}"
            stock = train_stock(experiment.model_name_or_path, training, task, data, seed, folder, layers)
            for name, rows in data.evaluated.items():
                runs.shallow[name][layers].append(stock.predict(rows).predictions.argmax(-1))
    if baseline := experiment.baseline_model_name_or_path:
        data = encode_task(baseline, task, experiment.max_length, train, evaluated, {})
        for seed in seeds:
            trainer = train_stock(baseline, training, task, data, seed, "baseline")
            for name, rows in data.evaluated.items():
                runs.answers[name].append(trainer.predict(rows).predictions.argmax(-1))
            if runs.baseline is None:
                runs.baseline = trainer.model, data.timing_inputs(experiment.timing_rows, training.seed)

    if is_main:  # alone: the other processes are done, and do not disturb the clock
        chosen = report(experiment, training, runs)
        for name, one in test_logits.items():
            for threshold in {0.0, *chosen}:
                picked = one.argmax(-1)[np.arange(len(one)), analysis.exit_layers(one, threshold) - 1]
                folder = Path(training.output_dir) / "submission" / f"S_{threshold:.4g}"
                write_submission(folder, task, name, picked)


if __name__ == "__main__":
    main()
    PartialState().destroy_process_group()  # else an exit may abort: gloo's threads still run
