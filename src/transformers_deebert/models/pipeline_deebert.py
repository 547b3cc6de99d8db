"""Text classification pipeline with early exit."""

import inspect
import os
from difflib import get_close_matches
from functools import cache
from threading import Lock

from transformers import PreTrainedTokenizerBase, TextClassificationPipeline

from .exit_loop_deebert import has_exits
from .exit_plan_deebert import given_settings, make_exit_plan
from .outputs_deebert import EarlyExitSequenceClassifierOutput


# What configurations call the class below: its file in a repository, and its name.
PIPELINE_CODE = "pipeline_deebert.EarlyExitTextClassificationPipeline"
# Truncation and padding are state of a fast tokenizer, set by one call and read by the next step of it: threads take
# turns. One lock a process, because a forked one must not inherit a lock that a thread holds.
TOKENIZER_LOCKS: dict[int, Lock] = {}


class EarlyExitTextClassificationPipeline(TextClassificationPipeline):
    """
    [`~transformers.TextClassificationPipeline`] for models with off-ramps and, exactly as before, for all others.

    Takes three more arguments, at most one of them, when it is made or with each call; that of a call comes first, and
    without any the model's configuration decides:

    - **early_exit_entropy** (`float` or `list[float]`, *optional*): threshold S in nats.
    - **exit_criterion** ([`ExitCriterion`] or `dict` of its fields, *optional*): score, threshold and patience.
    - **exit_layer** (`int`, *optional*): the layer whose exit answers every text, L: the model's own head.

    Each result of a model with off-ramps has one more key, **exit_layer** (`int`): the layer that the text exited at,
    L at full depth.

    Raises:
        ValueError: for these arguments with a model that has no off-ramps, out of range, or several given.

    ```python
    >>> import transformers_deebert
    >>> from transformers import pipeline

    >>> pipe = pipeline("text-classification", model="org/deebert-sst2", early_exit_entropy=0.4)  # doctest: +SKIP
    >>> pipe("A warm, funny and charming film.")  # doctest: +SKIP
    [{'label': 'positive', 'score': 0.98, 'exit_layer': 4}]

    ```
    """

    # Tools recognise transformers' pipelines by the module of their class (gradio does).
    __module__ = TextClassificationPipeline.__module__

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.exits_early:
            self.model.eval()  # one that was just trained is in training mode, where no text exits

    def __reduce_ex__(self, protocol):
        if type(self) is not EarlyExitTextClassificationPipeline:
            return super().__reduce_ex__(protocol)
        # The class is not where its module name says, so pickled pipelines name a function of this file.
        return empty_pipeline, (), vars(self)

    @property
    def exits_early(self) -> bool:
        """Whether the model, or the one that PEFT has wrapped, has off-ramps."""
        unwrap = getattr(self.model, "get_base_model", None)
        model = self.model if unwrap is None else unwrap()
        return has_exits(model)

    def check_model_type(self, supported_models):
        """Logs an error for models whose class is not known to classify; one with off-ramps and a head does."""
        if not self.exits_early:
            super().check_model_type(supported_models)

    def _sanitize_parameters(self, early_exit_entropy=None, exit_criterion=None, exit_layer=None, **kwargs):
        if self.exits_early:
            check_names(kwargs, type(self.tokenizer))
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        settings = {
            "early_exit_entropy": early_exit_entropy,
            "exit_criterion": exit_criterion,
            "exit_layer": exit_layer,
        }
        given = given_settings(**settings)
        if not given:
            return preprocess, forward, postprocess
        if not self.exits_early:
            ((name, value),) = given.items()
            raise ValueError(
                f"`{name}` ({value!r}) was given, but {type(self.model).__name__} has no off-ramps: leave it out, or "
                "load the model with `transformers_deebert.from_backbone` and train it."
            )
        make_exit_plan(self.model.config, False, **given)  # refuses what is out of range
        # All or none: one of a call replaces another that the pipeline was made with.
        return preprocess, forward | settings, postprocess

    def preprocess(self, inputs, **tokenizer_kwargs):
        with TOKENIZER_LOCKS.setdefault(os.getpid(), Lock()):
            return super().preprocess(inputs, **tokenizer_kwargs)

    def _forward(self, model_inputs, **settings):
        if not self.exits_early:
            return super()._forward(model_inputs, **settings)
        if self.model.training:
            raise ValueError(
                "The pipeline's model is in training mode, where no text exits early: call `model.eval()` first."
            )
        output = self.model(**model_inputs, output_off_ramp_logits=False, **settings)
        # What the results do not hold would only be taken apart row by row.
        return EarlyExitSequenceClassifierOutput(logits=output.logits, exit_layers=output.exit_layers)

    def postprocess(self, model_outputs, *args, **kwargs):
        results = super().postprocess(model_outputs, *args, **kwargs)
        if not self.exits_early:
            return results
        exit_layer = {"exit_layer": model_outputs["exit_layers"].item()}
        return results | exit_layer if isinstance(results, dict) else [result | exit_layer for result in results]


def check_names(arguments: dict, tokenizer_class: type) -> None:
    """Raises `ValueError` for arguments that neither the pipeline nor its tokenizer knows."""
    known = known_arguments(tokenizer_class)
    for name in sorted(set(arguments) - known):
        near = get_close_matches(name, known, 1)
        raise ValueError(
            f"`{name}` ({arguments[name]!r}) is no argument of this pipeline or its tokenizer"
            f"{f': do you mean `{near[0]}`?' if near else ': leave it out.'}"
        )


@cache
def known_arguments(tokenizer_class: type) -> frozenset[str]:
    functions = (
        EarlyExitTextClassificationPipeline._sanitize_parameters,
        TextClassificationPipeline._sanitize_parameters,
        PreTrainedTokenizerBase.__call__,
        tokenizer_class.__call__,
    )
    parameters = [parameter for one in functions for parameter in inspect.signature(one).parameters.values()]
    return frozenset(one.name for one in parameters if one.kind is not one.VAR_KEYWORD) - {"self"}


def empty_pipeline() -> EarlyExitTextClassificationPipeline:
    """A pipeline whose attributes come from a pickle."""
    return EarlyExitTextClassificationPipeline.__new__(EarlyExitTextClassificationPipeline)
