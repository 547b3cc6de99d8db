"""Loading: plain checkpoints as a start, early-exit checkpoints whole or not at all, those of other codes as well."""

from transformers import PreTrainedConfig

from .original_layouts_deebert import find_original_tensors, modern_tensors


class EarlyExitLoading:
    """Loading behaviour shared by base models and classifiers. Bases: before the stock class."""

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

        Raises:
            ValueError: for a checkpoint with some off-ramps missing or superfluous, or any tensor of another shape
                without `ignore_mismatched_sizes=True`, naming them.
        """
        name = pretrained_model_name_or_path
        config = kwargs.get("config")
        if isinstance(config, PreTrainedConfig) and config.model_type == cls.config_class.backbone_type:
            kwargs["config"] = cls.config_class.from_dict(
                config.to_dict() | {"model_type": cls.config_class.model_type}
            )
        want_info = kwargs.pop("output_loading_info", False)
        allow_mismatch = kwargs.pop("ignore_mismatched_sizes", False)
        original = None
        if cls.config_class.other_layouts and name is not None and kwargs.get("state_dict") is None:
            original = find_original_tensors(name, cls.config_class.model_type, **kwargs)
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
        check_off_ramp_keys(model, info, name, poolers_only=original is not None)
        return (model, info) if want_info else model

    @classmethod
    def original_arguments(cls, name, tensors, kwargs: dict) -> dict:
        """Arguments that load the tensors of another implementation's checkpoint in place of its file."""
        config = kwargs.pop("config", None)
        if config is None:
            config, kwargs = cls.config_class.from_pretrained(name, return_unused_kwargs=True, **kwargs)
        tensors = modern_tensors(tensors, cls.base_model_prefix, config.num_hidden_layers)
        config.off_ramps_trained = config.off_ramp_pooling == "cls" and any(
            "off_ramps." in key and ".classifier." in key for key in tensors
        )
        return kwargs | {"config": config, "state_dict": tensors}


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
            "incomplete, or `off_ramp_head`, `off_ramp_pooling` or the number of layers differ from what it was "
            "trained with."
        )
    if missing or any("off_ramps." in key[0] for key in info["mismatched_keys"]):
        model.config.off_ramps_trained = False
