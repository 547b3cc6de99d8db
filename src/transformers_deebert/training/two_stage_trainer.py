"""Both stages, one behind the other."""

import copy
from pathlib import Path

from accelerate import PartialState
from transformers import set_seed
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import TrainOutput
from transformers.utils import logging

from .backbone_trainer import BackboneTrainer
from .off_ramp_trainer import OffRampTrainer, check_map_style, choose_mode
from .stage_trainer import StageTrainer, has_trainer_state, is_peft, last_complete_checkpoint
from .training_arguments import DeeBertTrainingArguments


logger = logging.get_logger(__name__)


class TwoStageTrainer:
    """
    Two-stage fine-tuning (DeeBERT, section 3.1): [`BackboneTrainer`], then [`OffRampTrainer`], each with its own
    arguments and a fresh seed, optimizer and schedule.

    `output_dir` gets the finished model; `output_dir/backbone` and `output_dir/off_ramps` get the stages' checkpoints.

    Args:
        model (`PreTrainedModel`, *optional*): An early-exit classifier; or `model_init`.
        backbone_args, off_ramp_args ([`DeeBertTrainingArguments`]): The stages' arguments, with the same `output_dir`.
        model_init (`Callable`, *optional*): Makes the model, from the seed of `backbone_args`.
        callbacks (`list`, *optional*): For both stages; those with a state of their own, such as early stopping, start
            stage 2 as they were given.
        trainer_kwargs:
            Whatever else [`~transformers.Trainer`] takes, for both stages: `train_dataset`, `eval_dataset`,
            `data_collator`, `processing_class`, `compute_metrics`, `compute_loss_func`, ….

    Raises:
        ValueError: for different output folders, a PEFT model, both or none of `model` and `model_init`.

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
        model_init=None,
        callbacks=None,
        **trainer_kwargs,
    ):
        for name, args in (("backbone_args", backbone_args), ("off_ramp_args", off_ramp_args)):
            if not isinstance(args, DeeBertTrainingArguments):
                raise ValueError(f"`{name}` must be `DeeBertTrainingArguments`, got {type(args).__name__}.")
        if Path(backbone_args.output_dir) != Path(off_ramp_args.output_dir):
            raise ValueError(
                f"`backbone_args` and `off_ramp_args` must have one `output_dir`, got {backbone_args.output_dir!r} "
                f"and {off_ramp_args.output_dir!r}."
            )
        if (model is None) == (model_init is None):
            raise ValueError("Give exactly one of `model` and `model_init`.")
        if is_peft(model):
            raise ValueError(
                "`model` is a PEFT model: train it with `BackboneTrainer`, then `model.merge_and_unload()` with "
                "`OffRampTrainer`."
            )
        if "optimizers" in trainer_kwargs:
            raise ValueError(
                "`optimizers` is given, but each stage needs an optimizer and a schedule of its own: choose them in "
                "the stages' arguments, or run `BackboneTrainer` and `OffRampTrainer` one after the other."
            )
        self.model = model
        self.model_init = model_init
        self.output_dir = Path(backbone_args.output_dir)
        self.backbone_args = stage_arguments(backbone_args, "backbone")
        self.off_ramp_args = stage_arguments(off_ramp_args, "off_ramps")
        self.callbacks = {"backbone": callbacks, "off_ramps": fresh_callbacks(callbacks)}
        self.trainer_kwargs = trainer_kwargs
        self.backbone_trainer: BackboneTrainer | None = None
        self.off_ramp_trainer: OffRampTrainer | None = None

    def train(self, resume_from_checkpoint: bool | None = None) -> dict[str, TrainOutput]:
        """
        Runs both stages and saves the finished model.

        Args:
            resume_from_checkpoint (`bool`, *optional*):
                Continues a run that was interrupted, in whichever stage. Without any checkpoint it starts afresh.

        Returns:
            `dict` of each stage's `TrainOutput`, under `"backbone"` (absent when it was finished before) and
            `"off_ramps"`.

        Raises:
            ValueError: for an output folder that is not empty (unless resuming) or cannot be written to.
        """
        if not (resume_from_checkpoint is None or isinstance(resume_from_checkpoint, bool)):
            raise ValueError(
                f"`resume_from_checkpoint` must be True or False, got {resume_from_checkpoint!r}: the stage and its "
                "last checkpoint are found in `output_dir`."
            )
        check_output_dir(self.output_dir, may_have_files=bool(resume_from_checkpoint))
        # What stage 2 would refuse is better said before stage 1 has run.
        if choose_mode(self.off_ramp_args, self.get_model().config) == "cached":
            check_map_style(self.trainer_kwargs.get("train_dataset"))
        PartialState().wait_for_everyone()  # nobody writes before all have looked
        outputs = {}
        if not (resume_from_checkpoint and self.backbone_is_trained()):
            self.backbone_trainer = self.make_trainer(BackboneTrainer, self.backbone_args)
            outputs["backbone"] = run_stage(self.backbone_trainer, resume_from_checkpoint)
        elif last_complete_checkpoint(self.off_ramp_args.output_dir) is None:
            self.load_backbone()
        self.off_ramp_trainer = self.make_trainer(OffRampTrainer, self.off_ramp_args)
        outputs["off_ramps"] = run_stage(self.off_ramp_trainer, resume_from_checkpoint)
        self.save_model()
        return outputs

    def backbone_is_trained(self) -> bool:
        """Whether stage 1 was finished: its folder then holds the trainer state, written behind the model."""
        return has_trainer_state(self.backbone_args.output_dir)

    def load_backbone(self) -> None:
        """Takes the weights that stage 1 left, in place."""
        model = self.get_model()
        model.load_state_dict(type(model).from_pretrained(self.backbone_args.output_dir).state_dict())

    def get_model(self):
        if self.model is None:
            set_seed(self.backbone_args.seed)
            self.model = self.model_init()
        return self.model

    def make_trainer(self, trainer_class, args):
        """The trainer of one stage; making it sets the seed again."""
        stage = Path(args.output_dir).name
        return trainer_class(model=self.get_model(), args=args, callbacks=self.callbacks[stage], **self.trainer_kwargs)

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """[`OffRampTrainer.evaluate`]: metrics of every exit, at full depth."""
        return self.get_off_ramp_trainer().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        """[`OffRampTrainer.predict`]: logits of every exit, from one pass."""
        return self.get_off_ramp_trainer().predict(*args, **kwargs)

    def get_off_ramp_trainer(self) -> OffRampTrainer:
        if self.off_ramp_trainer is None:
            self.off_ramp_trainer = self.make_trainer(OffRampTrainer, self.off_ramp_args)
        return self.off_ramp_trainer

    def save_model(self, output_dir: str | None = None) -> None:
        """Saves model and tokenizer, by default to `output_dir`."""
        self.get_off_ramp_trainer().save_model(str(output_dir or self.output_dir))


def stage_arguments(args: DeeBertTrainingArguments, stage: str) -> DeeBertTrainingArguments:
    """A copy whose output goes to the stage's folder."""
    args = copy.copy(args)
    args.output_dir = str(Path(args.output_dir) / stage)
    return args


def fresh_callbacks(callbacks):
    """Callbacks with a state of their own as copies, the others as they are."""
    if callbacks is None:
        return None
    return [copy.deepcopy(callback) if isinstance(callback, ExportableState) else callback for callback in callbacks]


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
    """Trains one stage, from its last checkpoint if there is one to resume, and leaves its model and state."""
    checkpoint = last_complete_checkpoint(trainer.args.output_dir) if resume else None
    output = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    trainer.save_state()
    return output
