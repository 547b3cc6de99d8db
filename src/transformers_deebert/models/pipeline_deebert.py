"""Text classification in a pipeline whose rows exit on their own."""

from transformers import TextClassificationPipeline

from .configuration_early_exit_deebert import check_exit_layer, check_thresholds
from .outputs_deebert import EarlyExitSequenceClassifierOutput


# What configurations call the class below: its file in a repository, and its name.
PIPELINE_CODE = "pipeline_deebert.EarlyExitTextClassificationPipeline"


class EarlyExitTextClassificationPipeline(TextClassificationPipeline):
    """
    [`~transformers.TextClassificationPipeline`] for models with off-ramps and, exactly as before, for all others.

    Takes two more arguments, when it is made or with each call; those of a call come first, and without any the
    model's configuration decides:

    - **early_exit_entropy** (`float` or `list[float]`, *optional*): threshold S in nats.
    - **exit_layer** (`int`, *optional*): the layer that answers every text, 1 … L.

    Each result of a model with off-ramps has one more key, **exit_layer** (`int`): the 1-based layer that the text
    left at, L at full depth.

    Raises:
        ValueError: for these arguments with a model that has no off-ramps, out of range, or both given.

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
            self.model.eval()  # one that was just trained is in training mode, where nobody exits

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
        return hasattr(model.base_model, "off_ramps")

    def check_model_type(self, supported_models):
        """Logs an error for models whose class is not known to classify; one with off-ramps and a head does."""
        if not self.exits_early or self.model.base_model is self.model:
            super().check_model_type(supported_models)

    def _sanitize_parameters(self, early_exit_entropy=None, exit_layer=None, **kwargs):
        preprocess, forward, postprocess = super()._sanitize_parameters(**kwargs)
        settings = {"early_exit_entropy": early_exit_entropy, "exit_layer": exit_layer}
        given = [name for name, value in settings.items() if value is not None]
        if given and not self.exits_early:
            raise ValueError(
                f"`{given[0]}` ({settings[given[0]]!r}) was given, but {type(self.model).__name__} has no off-ramps: "
                "leave it out, or load the model with `transformers_deebert.from_backbone` and train it."
            )
        if len(given) == 2:
            raise ValueError(
                f"`early_exit_entropy` ({early_exit_entropy!r}) and `exit_layer` ({exit_layer!r}) exclude each other: "
                "set one of them."
            )
        if early_exit_entropy is not None:
            check_thresholds(early_exit_entropy, self.model.config.num_hidden_layers - 1)
        if exit_layer is not None:
            check_exit_layer(exit_layer, self.model.config.num_hidden_layers)
        # Both or none: one of a call replaces the other that the pipeline was made with.
        return preprocess, forward | settings if given else forward, postprocess

    def _forward(self, model_inputs, **settings):
        if not self.exits_early:
            return super()._forward(model_inputs, **settings)
        if self.model.training:
            raise ValueError(
                "The pipeline's model is in training mode, where nobody exits early: call `model.eval()` first."
            )
        output = self.model(**model_inputs, output_off_ramp_logits=False, **settings)
        # What is not told in the results would only be taken apart row by row.
        return EarlyExitSequenceClassifierOutput(logits=output.logits, exit_layers=output.exit_layers)

    def postprocess(self, model_outputs, *args, **kwargs):
        results = super().postprocess(model_outputs, *args, **kwargs)
        if not self.exits_early:
            return results
        exit_layer = {"exit_layer": model_outputs["exit_layers"].item()}
        return results | exit_layer if isinstance(results, dict) else [result | exit_layer for result in results]


def empty_pipeline() -> EarlyExitTextClassificationPipeline:
    """A pipeline whose attributes come from a pickle."""
    return EarlyExitTextClassificationPipeline.__new__(EarlyExitTextClassificationPipeline)
