"""Two-stage fine-tuning in one run."""

import copy
import json
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import HfApi
from transformers import set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from ..folders import write_text
from ..hub.card_data import CardData
from ..hub.model_card import write_model_card
from .adapters import refuse_adapters
from .backbone_trainer import BackboneTrainer
from .card_numbers import card_arguments, run_numbers, score_numbers, stage_numbers
from .joint_trainer import JointTrainer
from .off_ramp_trainer import OffRampTrainer
from .stage_trainer import StageTrainer, has_trainer_state, last_complete_checkpoint
from .training_arguments import DeeBertTrainingArguments


logger = logging.get_logger(__name__)

HUB_ARGUMENTS = ("hub_model_id", "hub_token", "hub_private_repo", "hub_revision")
STAGE_NUMBERS_FILE = "stage_numbers.json"


TRAINERS: dict[str, Any] = {"backbone": BackboneTrainer, "joint": JointTrainer, "off_ramps": OffRampTrainer}
# The stages by `second_stage`, each with a folder of its name.
STAGES = {"off_ramps": ("backbone", "off_ramps"), "joint": ("backbone", "joint", "off_ramps")}
# Checkpoints, what is pickled, and what is for this machine alone.
NOT_PUSHED = ("checkpoint-*", "*.bin", "*.pt", "*.pth", "_*", ".*")


class TwoStageTrainer:
    """
    Two-stage fine-tuning (DeeBERT, section 3.1): [`BackboneTrainer`], then [`OffRampTrainer`], each with its own
    arguments and a fresh seed, optimizer and schedule.

    `output_dir` gets the finished model, its card and the numbers in it; `output_dir/backbone`,
    `output_dir/off_ramps` and `output_dir/joint` get the stages' checkpoints. With `push_to_hub=True` in any stage's
    arguments the finished model is pushed to `hub_model_id` at the end; nothing is pushed before.

    Args:
        model (`PreTrainedModel`, *optional*): An early-exit classifier; or `model_init`.
        backbone_args, off_ramp_args ([`DeeBertTrainingArguments`]): The stages' arguments, with the same `output_dir`.
        model_init (`Callable`, *optional*): Makes the model, from the seed of `backbone_args`.
        second_stage (`str`, *optional*, defaults to `"off_ramps"`):
            `"joint"`: between the stages everything is trained at once, by [`JointTrainer`] with `joint_args`, which
            changes the answers at full depth; stage 2 then trains the off-ramps on the new encoder.
        joint_args ([`DeeBertTrainingArguments`], *optional*): Of joint training, with `second_stage="joint"`.
        callbacks (`list`, *optional*): For all stages; those with a state of their own, such as early stopping, start
            stage 2 as they were given.
        trainer_kwargs:
            Whatever else [`~transformers.Trainer`] takes, for both stages: `train_dataset`, `eval_dataset`,
            `data_collator`, `processing_class`, `compute_metrics`, `compute_loss_func`, ….

    Raises:
        ValueError: for different output folders, a model with adapters, both or none of `model` and `model_init`.

    ```python
    >>> trainer = TwoStageTrainer(
    ...     model=model, backbone_args=args, off_ramp_args=args, train_dataset=train, eval_dataset=validation
    ... )  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP
    ```
    """

    def __init__(
        self,
        model=None,
        backbone_args: DeeBertTrainingArguments | None = None,
        off_ramp_args: DeeBertTrainingArguments | None = None,
        *,
        second_stage: str = "off_ramps",
        joint_args: DeeBertTrainingArguments | None = None,
        model_init=None,
        callbacks=None,
        **trainer_kwargs,
    ):
        if second_stage not in STAGES:
            raise ValueError(f"`second_stage` must be one of {', '.join(STAGES)}, got {second_stage!r}.")
        if (joint_args is not None) != (second_stage == "joint"):
            raise ValueError(
                f"`joint_args` belong to `second_stage` 'joint', which is {second_stage!r}: give both or none."
            )
        given = {"backbone_args": backbone_args, "joint_args": joint_args, "off_ramp_args": off_ramp_args}
        given = {name: args for name, args in given.items() if name != "joint_args" or second_stage == "joint"}
        for name, args in given.items():
            if not isinstance(args, DeeBertTrainingArguments):
                raise ValueError(f"`{name}` must be `DeeBertTrainingArguments`, got {type(args).__name__}.")
            if Path(args.output_dir) != Path(backbone_args.output_dir):
                raise ValueError(
                    f"`backbone_args` and `{name}` must have one `output_dir`, got {backbone_args.output_dir!r} "
                    f"and {args.output_dir!r}."
                )
        if (model is None) == (model_init is None):
            raise ValueError("Give exactly one of `model` and `model_init`.")
        if model is not None:
            refuse_adapters(model)
        if "optimizers" in trainer_kwargs:
            raise ValueError(
                "`optimizers` is given, but each stage needs an optimizer and a schedule of its own: choose them in "
                "the stages' arguments, or run `BackboneTrainer` and `OffRampTrainer` one after the other."
            )
        self.hub = {name: common_value(name, *given.values()) for name in HUB_ARGUMENTS}
        self.push_at_the_end = any(args.push_to_hub for args in given.values())
        self.card_data = CardData()  # what is known of the finished model
        self.card_options: dict = {}  # what the user has given for its card
        self.model = model
        self.model_init = model_init
        self.output_dir = Path(backbone_args.output_dir)
        self.stages = STAGES[second_stage]
        self.stage_args = {
            stage: stage_arguments(args, stage) for stage, args in zip(self.stages, given.values(), strict=True)
        }
        self.callbacks = {
            stage: fresh_callbacks(callbacks) if place else callbacks for place, stage in enumerate(self.stages)
        }
        self.trainer_kwargs = trainer_kwargs
        self.trainers: dict[str, Any] = {}  # of the stages that this object has run

    def train(self, resume_from_checkpoint: bool | None = None) -> dict[str, TrainOutput]:
        """
        Runs all stages and saves the finished model.

        Args:
            resume_from_checkpoint (`bool`, *optional*):
                Continues a run that was interrupted, in whichever stage. Without any checkpoint it starts afresh.

        Returns:
            `dict` of each stage's `TrainOutput`, under `"backbone"`, `"joint"` and `"off_ramps"`; absent are stages
            that were finished before.

        Raises:
            ValueError: for an output folder that is not empty (unless resuming) or cannot be written to.
        """
        if not (resume_from_checkpoint is None or isinstance(resume_from_checkpoint, bool)):
            raise ValueError(
                f"`resume_from_checkpoint` must be True or False, got {resume_from_checkpoint!r}: the stage and its "
                "last checkpoint are found in `output_dir`."
            )
        check_output_dir(self.output_dir, may_have_files=bool(resume_from_checkpoint))
        self.check_later_stages()
        PartialState().wait_for_everyone()  # no process writes before all have looked
        outputs, finished = {}, None
        for stage in self.stages:
            folder = self.stage_args[stage].output_dir
            # A stage that was finished: its folder holds the trainer state, written behind the model.
            if resume_from_checkpoint and stage != "off_ramps" and has_trainer_state(folder):
                finished = stage
                continue
            if finished is not None:  # also with a checkpoint: joint training compares with where it began
                self.load_stage(finished)
            finished = None
            self.trainers[stage] = self.make_trainer(stage)
            outputs[stage] = run_stage(self.trainers[stage], resume_from_checkpoint)
        self.off_ramp_trainer.save_model(str(self.output_dir))  # before anything else can fail
        self.card_data = self.collect_card_data()
        if self.off_ramp_trainer.is_world_process_zero():
            self.write_card(str(self.output_dir))
        if self.push_at_the_end:
            self.push_to_hub()
        return outputs

    def check_later_stages(self) -> None:
        """Lets later stages check model and data before stage 1 has run, in trainers that are thrown away."""
        for stage in self.stages[1:]:
            args = copy.copy(self.stage_args[stage])
            args.report_to = []
            TRAINERS[stage](model=self.get_model(), args=args, **self.trainer_kwargs).check_data()

    def hyperparameter_search(self, *args, **kwargs):
        """Not for both stages at once: raises `NotImplementedError` with what to do."""
        raise NotImplementedError(
            "`TwoStageTrainer` does not search over hyper-parameters: search stage 1 with `BackboneTrainer(model_init="
            "…).hyperparameter_search(…)`, then stage 2 in the same way with `OffRampTrainer`, whose `model_init` "
            "loads the best model of stage 1."
        )

    def collect_card_data(self) -> CardData:
        """What the run knows of the model, with scores from one pass over `eval_dataset`, if there is one."""
        card = run_numbers({"off_ramps": self.off_ramp_trainer})
        assert card.training is not None
        for args in self.stage_args.values():  # those of an earlier process as well
            path = Path(args.output_dir) / STAGE_NUMBERS_FILE
            if path.is_file():
                card.training[path.parent.name] = json.loads(path.read_text(encoding="utf-8"))
        rows = self.trainer_kwargs.get("eval_dataset")
        if rows is None or isinstance(rows, dict):
            return card
        try:
            return card | score_numbers(self.off_ramp_trainer, rows)
        except Exception as error:  # metrics and data are the user's; the trained model is not to be lost for a card
            logger.warning(f"The model card has no scores: `eval_dataset` cannot be scored ({error}).")
            return card

    def load_stage(self, stage: str) -> None:
        """Loads the weights that a stage has saved, in place."""
        model = self.get_model()
        model.load_state_dict(type(model).from_pretrained(self.stage_args[stage].output_dir).state_dict())

    def get_model(self):
        if self.model is None:
            set_seed(self.stage_args["backbone"].seed)
            self.model = self.model_init()
        return self.model

    def make_trainer(self, stage: str):
        """The trainer of one stage; making it sets the seed again."""
        settings = {"args": self.stage_args[stage], "callbacks": self.callbacks[stage]}
        return TRAINERS[stage](model=self.get_model(), **settings, **self.trainer_kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """[`OffRampTrainer.evaluate`]: metrics of every exit, at full depth."""
        return self.off_ramp_trainer.evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """[`OffRampTrainer.predict`]: logits of every exit, from one pass."""
        return self.off_ramp_trainer.predict(*args, **kwargs)

    @property
    def backbone_trainer(self) -> BackboneTrainer | None:
        """The trainer of stage 1, once it has run."""
        return self.trainers.get("backbone")

    @property
    def off_ramp_trainer(self) -> OffRampTrainer:
        """The trainer of stage 2."""
        if "off_ramps" not in self.trainers:
            self.trainers["off_ramps"] = self.make_trainer("off_ramps")
        return self.trainers["off_ramps"]

    def save_model(self, output_dir: str | None = None, **card) -> None:
        """
        Saves model, tokenizer and model card, by default to `output_dir`.

        Args:
            output_dir (`str`, *optional*): Another folder.
            card: Further facts for the card, as in [`push_to_hub`].
        """
        folder, trainer = str(output_dir or self.output_dir), self.off_ramp_trainer
        trainer.save_model(folder)
        if trainer.is_world_process_zero():
            self.write_card(folder, **card)

    def write_card(self, folder: str, model_id: str | None = None, **options) -> None:
        options = self.card_options | {name: value for name, value in options.items() if value is not None}
        of_numbers = {name: value for name, value in options.items() if name not in ("license", "tags")}
        card = self.card_data | card_arguments(**of_numbers)
        self.card_options = options  # also the next time
        write_model_card(folder, card, model_id=model_id, license=options.get("license"), tags=options.get("tags"))

    def push_to_hub(
        self,
        commit_message: str = "End of training",
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card,
    ):
        """
        Pushes the finished model to the Hub in one commit: weights, configuration, code, tokenizer and card; no
        checkpoints of the stages, nothing pickled.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`): The commit's message.
            token, revision, private: As for `Trainer.push_to_hub`.
            card:
                Further facts for the card: `language`, `license`, `tags`, `model_name`, `finetuned_from`, `dataset`
                and `dataset_tags` (its id on the Hub), as for `Trainer.push_to_hub`.

        Returns:
            `CommitInfo` on the main process, `None` on others.
        """
        token, revision = token or self.hub["hub_token"], revision or self.hub["hub_revision"]
        private = self.hub["hub_private_repo"] if private is None else private
        # Mistakes in the card's facts show before anything is pushed.
        card_arguments(**{name: value for name, value in card.items() if name not in ("license", "tags")})
        if not self.off_ramp_trainer.is_world_process_zero():
            self.save_model()
            return None
        api = HfApi(token=token)
        name = self.hub["hub_model_id"] or self.output_dir.absolute().name
        repo_id = api.create_repo(name, private=private, exist_ok=True).repo_id
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        self.card_options.setdefault("model_name", repo_id.split("/")[-1])
        self.save_model(model_id=repo_id, **card)
        return api.upload_folder(
            repo_id=repo_id,
            folder_path=self.output_dir,
            commit_message=commit_message,
            revision=revision,
            ignore_patterns=[*(f"{stage}/*" for stage in TRAINERS), *NOT_PUSHED],
        )


def common_value(name: str, *stages: DeeBertTrainingArguments):
    """What both stages' arguments give for one field, if any does; raises `ValueError` where they differ."""
    values = {getattr(args, name) for args in stages} - {None, False}
    if len(values) > 1:
        shown = sorted(values) if name != "hub_token" else "different ones"
        raise ValueError(f"`backbone_args` and `off_ramp_args` must have one `{name}`, got {shown}.")
    return next(iter(values), None)


def stage_arguments(args: DeeBertTrainingArguments, stage: str) -> DeeBertTrainingArguments:
    """A copy whose output goes to the stage's folder, and nowhere else."""
    args = copy.copy(args)
    if args.report_file is not None:
        args.report_file = str((Path(args.output_dir) / args.report_file).absolute())
    args.output_dir = str(Path(args.output_dir) / stage)
    args.push_to_hub = False  # what is finished is pushed by both together
    return args


def fresh_callbacks(callbacks):
    """Callbacks with a state of their own as copies, the others as they are."""
    return callbacks and [copy.deepcopy(one) if isinstance(one, ExportableState) else one for one in callbacks]


def check_output_dir(folder: Path, may_have_files: bool) -> None:
    """Raises `ValueError` unless `folder` is, or can be made, a writable folder that is empty if it must be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{PartialState().process_index}"
        files = any(path.is_file() and not path.name.startswith(".writable-") for path in folder.rglob("*"))
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(
            f"`output_dir` ({str(folder)!r}) cannot be written to ({error}): choose another one."
        ) from error
    if files and not may_have_files:
        raise ValueError(
            f"`output_dir` ({str(folder)!r}) is not empty: choose another one, empty it, or continue an interrupted "
            "run with `train(resume_from_checkpoint=True)`."
        )


def run_stage(trainer: StageTrainer, resume: bool | None) -> TrainOutput:
    """Trains one stage, from its last checkpoint if there is one to resume, and saves its model and state."""
    checkpoint = last_complete_checkpoint(trainer.args.output_dir) if resume else None
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    if trainer.is_world_process_zero():
        path, numbers = Path(trainer.args.output_dir) / STAGE_NUMBERS_FILE, stage_numbers(trainer)
        if checkpoint is not None:  # the seconds are those of a part
            numbers.pop("seconds", None)
            numbers = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}) | numbers
        write_text(path, json.dumps(numbers, indent=2))
    return output
