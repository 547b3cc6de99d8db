"""
Checkpoints. Loading: plain ones as a start, early-exit ones whole or not at all, those of other codes as well. Saving:
with the code that others need to load them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

from transformers import PreTrainedConfig

from .configuration_early_exit_deebert import OFF_RAMP_FIELDS, layers_of_exits
from .original_layouts_deebert import PLACE, find_original_tensors, is_original, modern_tensors
from .pipeline_deebert import PIPELINE_CODE


# Fields of a configuration that have one number for each off-ramp, or name one.
EXIT_DEFAULTS = ("early_exit_entropy", "exit_criterion", "exit_layer", "off_ramp_temperatures")


@contextmanager
def postponed_checkpointing(config) -> Iterator[None]:
    """
    `config.gradient_checkpointing` is honoured, once and for all, by the first `post_init` that sees it: not that of a
    stock class while it is being made, before the loop that does the checkpointing is there.
    """
    wanted = vars(config).pop("gradient_checkpointing", None)
    try:
        yield
    finally:
        if wanted is not None:
            config.gradient_checkpointing = wanted


class EarlyExitLoading:
    """What base models and classifiers share in loading and saving. Bases: before the stock class."""

    has_head = False

    @classmethod
    def is_custom_code(cls):
        # transformers initialises composite modules of custom code without their `_init_weights`; ours use
        # `transformers.initialization`, which leaves loaded tensors alone, so they can be treated like its own.
        return False

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """
        As `PreTrainedModel.from_pretrained`, for early-exit checkpoints and for plain ones of the family: a plain one
        lacks all off-ramps, which then start as new.

        BERT, RoBERTa and ALBERT classifiers of the original DeeBERT code, BERxiT, PABEE and ElasticBERT are recognised
        by the names of their tensors and load as well; [`save_pretrained`] writes them in this library's form. Their
        off-ramps count as trained.

        With another `off_ramp_layers` than the checkpoint's, off-ramps of the layers that both name are kept.

        Raises:
            ValueError: for a checkpoint with some off-ramps missing or superfluous, or any tensor of another shape
                without `ignore_mismatched_sizes=True`, naming them.
        """
        name = pretrained_model_name_or_path
        saved = read_config(name, kwargs)
        if isinstance(kwargs.get("config"), PreTrainedConfig):
            kwargs["config"] = cls.own_config(kwargs["config"], saved)
        want_info = kwargs.pop("output_loading_info", False)
        allow_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        original = cls.find_original(name, saved, kwargs)
        moved = None
        if original is not None or saved.get("model_type") == cls.config_class.model_type:
            kwargs, moved = cls.with_saved_layers(name, saved, kwargs)
        if original is not None:
            kwargs = cls.original_arguments(name, original, kwargs)
        model, info = super().from_pretrained(
            name if original is None else None,
            *model_args,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # to name them in the error below
            **kwargs,
        )
        if info["mismatched_keys"] and not allow_mismatch:
            raise_mismatch(info["mismatched_keys"], name)
        if original is not None:
            model.name_or_path = model.config.name_or_path = str(name)
            check_whole(model, info, name)
        check_off_ramp_keys(model, info, name, poolers_only=original is not None)
        if moved is not None:
            move_off_ramps(model, moved)
        return (model, info) if want_info else model

    @classmethod
    def own_config(cls, config, saved: dict):
        """A configuration object of the user, in this class and for the off-ramps that the checkpoint has."""
        if config.model_type == cls.config_class.backbone_type:
            return cls.config_class.from_dict(config.to_dict() | {"model_type": cls.config_class.model_type})
        if config.off_ramps_trained and reads_otherwise(vars(config), saved):
            config = deepcopy(config)
            config.forget_off_ramps()
        return config

    @classmethod
    def with_saved_layers(cls, name, saved: dict, kwargs: dict):
        """
        Arguments that load the off-ramps behind the layers that they were saved for, and the configuration that is
        wanted where its layers are others (otherwise `None`).
        """
        config, arguments = kwargs.get("config"), dict(kwargs)
        if "off_ramp_layers" in kwargs and not isinstance(config, PreTrainedConfig):
            # Of these the configuration has values of its own.
            kept = {key: arguments.pop(key) for key in ("dtype", "torch_dtype") if key in arguments}
            source = arguments.pop("config", None) or name
            config, arguments = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **arguments)
            arguments |= kept | {"config": config}
        if not isinstance(config, PreTrainedConfig):
            return kwargs, None
        layers = saved.get("off_ramp_layers")
        if layers_of_exits(layers, config.num_hidden_layers) == config.exit_layers:
            return arguments, None
        as_saved = deepcopy(config)
        for field in EXIT_DEFAULTS:
            setattr(as_saved, field, None)
        as_saved.off_ramp_layers = layers
        return arguments | {"config": as_saved}, config

    @classmethod
    def find_original(cls, name, saved: dict, kwargs: dict) -> dict | None:
        """The tensors of another implementation's checkpoint, `None` where it is none."""
        if not cls.config_class.other_layouts:
            return None
        if kwargs.get("state_dict") is not None:
            return kwargs["state_dict"] if is_original(kwargs["state_dict"]) else None
        if name is None or saved.get("model_type") == cls.config_class.model_type:
            return None
        return find_original_tensors(name, **kwargs)

    @classmethod
    def original_arguments(cls, name, tensors, kwargs: dict) -> dict:
        """Arguments that load the tensors of another implementation's checkpoint in place of its file."""
        kwargs = dict(kwargs)
        # Of these the configuration has its own idea.
        kept = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
        trained = kwargs.get("off_ramps_trained")
        config = kwargs.pop("config", None)
        if isinstance(config, PreTrainedConfig):
            config = deepcopy(config)
        else:
            source = name if config is None else config
            config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        tensors = modern_tensors(tensors, cls.base_model_prefix, config.num_hidden_layers, cls.has_head)
        if trained is None:
            config.off_ramps_trained = config.off_ramp_pooling == "cls" and any(
                "off_ramps." in key and ".classifier." in key for key in tensors
            )
        return kwargs | kept | {"config": config, "state_dict": tensors}

    def save_pretrained(self, save_directory, *args, **kwargs):
        """
        As `PreTrainedModel.save_pretrained`. The folder also gets the code of the model, so that it loads and exits
        early, in a pipeline too, where this library is not installed (`trust_remote_code=True`).
        """
        # transformers notes only the saved class itself and copies what its file imports, which is all of this.
        module, family = type(self).__module__.rsplit(".", 1)[-1], type(self.config).__name__.removesuffix("Config")
        self.config.auto_map = {
            "AutoConfig": f"{module}.{family}Config",
            "AutoModel": f"{module}.{family}Model",
            "AutoModelForSequenceClassification": f"{module}.{family}ForSequenceClassification",
        }
        task = {"impl": PIPELINE_CODE, "pt": ["AutoModelForSequenceClassification"], "type": "text"}
        self.config.custom_pipelines = {"text-classification": task}
        super().save_pretrained(save_directory, *args, **kwargs)


def move_off_ramps(model, config) -> None:
    """Moves a loaded model's off-ramps to the layers of another configuration, and takes its defaults over."""
    known = set(model.config.off_ramp_readings)
    model.base_model.set_off_ramps(off_ramp_layers=config.off_ramp_layers)
    for field in EXIT_DEFAULTS:
        setattr(model.config, field, getattr(config, field))
    if not set(model.config.off_ramp_readings) <= known:
        model.config.off_ramps_trained = False


def read_config(name, kwargs: dict) -> dict:
    """What a checkpoint's own configuration file says, empty without one; loading goes on and says what is missing."""
    if name is None:
        return {}
    place = {key: kwargs[key] for key in (*PLACE, "_commit_hash") if key in kwargs}
    try:
        return PreTrainedConfig.get_config_dict(name, **place)[0]
    except OSError:
        return {}


def reads_otherwise(wanted: dict, saved: dict) -> bool:
    """Whether off-ramps are to read something else than what the checkpoint's were trained on."""
    return any(name in saved and wanted[name] != saved[name] for name in OFF_RAMP_FIELDS)


def raise_mismatch(mismatched, name) -> None:
    shapes = "; ".join(
        f"{key}: {tuple(saved)} in the checkpoint, {tuple(wanted)} in the model"
        for key, saved, wanted in sorted(mismatched)
    )
    raise ValueError(
        f"Tensors in {name!r} have other shapes than in this model ({shapes}): load it as it was saved (for example "
        "with the same `num_labels`), or pass `ignore_mismatched_sizes=True` to start these anew and train both "
        "stages again."
    )


def check_whole(model, info, name) -> None:
    """Refuses a trained checkpoint of another implementation that lacks parts of the model itself."""
    missing = sorted(key for key in info["missing_keys"] if "off_ramps." not in key)
    if missing and model.config.off_ramps_trained:
        raise ValueError(
            f"The checkpoint {name!r} is in the layout of another early-exit implementation, but lacks parts of "
            f"{type(model).__name__} ({', '.join(missing[:8])}{', …' if len(missing) > 8 else ''}): it is incomplete, "
            "or of another family."
        )


def check_off_ramp_keys(model, info, name, poolers_only: bool) -> None:
    """
    Refuses a checkpoint with damaged or foreign off-ramps; notes in the configuration when they are new.
    `poolers_only`: off-ramps without any classifiers are a start as well (ElasticBERT's pre-trained poolers).
    """
    missing = sorted(key for key in info["missing_keys"] if "off_ramps." in key)
    unexpected = sorted(key for key in info["unexpected_keys"] if "off_ramps." in key)
    expected = [key for key in model.state_dict() if "off_ramps." in key]
    if poolers_only and missing and all(".classifier." in key for key in missing):
        expected = [key for key in expected if ".classifier." in key]
    if unexpected or (missing and len(missing) < len(expected)):
        listed = [f"missing: {', '.join(missing)}"] * bool(missing) + [
            f"not in this model: {', '.join(unexpected)}"
        ] * bool(unexpected)
        raise ValueError(
            f"The checkpoint {name!r} has off-ramps, but not those of this model ({'; '.join(listed)}): it is "
            "incomplete, or `off_ramp_head`, `off_ramp_pooling`, `off_ramp_context` or the number of layers differ "
            "from what it was trained with."
        )
    if missing or any("off_ramps." in key[0] for key in info["mismatched_keys"]):
        model.config.forget_off_ramps()
