"""The configuration fields that every early-exit family shares."""

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar


OFF_RAMP_POOLINGS = ("cls", "mean", "attention")
OFF_RAMP_HEADS = ("pooler", "linear")
# Logits are divided in float32 or less: what it cannot hold would be a division by 0 or by infinity.
TEMPERATURE_RANGE = (2.0**-126, 2.0**127)


def check_thresholds(value, num_off_ramps: int) -> tuple[float, ...]:
    """
    Checks entropy thresholds and spells them out, one for each off-ramp.

    Args:
        value (`float` or `list[float]`):
            One threshold for all off-ramps or one for each, in nats; finite and not negative, without upper bound.
        num_off_ramps (`int`):
            Number of off-ramps, the number of layers minus one.

    Returns:
        `tuple[float, ...]` of length `num_off_ramps`.

    Raises:
        ValueError: where a threshold is not a number, is negative or not finite, or their number is wrong.
    """
    if isinstance(value, (list, tuple)):
        thresholds = tuple(value)
        if len(thresholds) != num_off_ramps:
            raise ValueError(
                f"`early_exit_entropy` has {len(thresholds)} thresholds, but the model has {num_off_ramps} off-ramps: "
                "give one number for all of them, or exactly one number for each."
            )
    else:
        thresholds = (value,)
    for threshold in thresholds:
        if isinstance(threshold, bool) or not isinstance(threshold, Real):
            raise ValueError(
                f"`early_exit_entropy` must be a number or a list of numbers, got {threshold!r} "
                f"({type(threshold).__name__}): pass a float such as 0.4."
            )
        if not math.isfinite(threshold) or threshold < 0:
            raise ValueError(
                f"`early_exit_entropy` must be finite and not negative, got {threshold!r}: entropies lie between 0 "
                "and ln(num_labels); 0 never exits, a value above ln(num_labels) leaves at the first off-ramp."
            )
    thresholds = tuple(float(threshold) for threshold in thresholds)
    return thresholds if isinstance(value, (list, tuple)) else thresholds * num_off_ramps


def check_temperatures(value, num_off_ramps: int) -> tuple[float, ...]:
    """
    Checks the temperatures of the off-ramps.

    Args:
        value (`list[float]`): One temperature for each off-ramp; finite and above 0, within the range of float32.
        num_off_ramps (`int`): Number of off-ramps, the number of layers minus one.

    Returns:
        `tuple[float, ...]` of length `num_off_ramps`.

    Raises:
        ValueError: where a temperature is not a number, is not above 0 or not finite, or their number is wrong.
    """
    if not isinstance(value, (list, tuple)):
        raise ValueError(
            f"`off_ramp_temperatures` must be a list of {num_off_ramps} numbers, one for each off-ramp, or `None`, "
            f"got {value!r} ({type(value).__name__})."
        )
    if len(value) != num_off_ramps:
        raise ValueError(
            f"`off_ramp_temperatures` has {len(value)} temperatures, but the model has {num_off_ramps} off-ramps: "
            "give exactly one number for each, or `None`."
        )
    low, high = TEMPERATURE_RANGE
    for temperature in value:
        if isinstance(temperature, bool) or not isinstance(temperature, Real):
            raise ValueError(
                f"`off_ramp_temperatures` must hold numbers, got {temperature!r} ({type(temperature).__name__}): give "
                "floats such as 1.5, or `None` for no temperatures."
            )
        if not temperature <= high or temperature < low:
            raise ValueError(
                f"`off_ramp_temperatures` must be finite, above 0 and within the range of float32, got "
                f"{temperature!r}: logits are divided by them, and 1 changes nothing."
            )
    return tuple(float(temperature) for temperature in value)


def check_exit_layer(value, num_layers: int) -> int:
    """Checks that `value` is a layer, `1 … num_layers`, and returns it; raises `ValueError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= num_layers:
        raise ValueError(
            f"`exit_layer` must be an integer from 1 (the first off-ramp) to {num_layers} (the model's own head), "
            f"got {value!r}."
        )
    return int(value)


# `init=False` leaves the constructor to the leaf's `@strict`; `repr=False, eq=False` keep those of PreTrainedConfig.
@dataclass(kw_only=True, repr=False, eq=False, init=False)
class EarlyExitConfigMixin:
    """
    What an early-exit family adds to its stock configuration. Bases: this mixin first, then the stock configuration.

    Args:
        early_exit_entropy (`float` or `list[float]`, *optional*):
            Default threshold S of the entropy criterion in nats, or one for each of the L-1 off-ramps: a row leaves at
            the first off-ramp whose prediction has entropy < S (DeeBERT, Algorithm 1). `None` and 0 never exit.
        exit_layer (`int`, *optional*):
            Default static truncation: every row is answered by layer `exit_layer` (1 … L).
        output_off_ramp_logits (`bool`, *optional*, defaults to `False`):
            Whether every call runs all layers and returns the logits of all exits.
        off_ramp_pooling (`str`, *optional*, defaults to `"cls"`):
            How an off-ramp reads its layer: `"cls"`, the state of the first token, as in the paper; `"mean"`, the mean
            over the attended tokens; `"attention"`, their mean weighted by a learned query.
        off_ramp_head (`str`, *optional*, defaults to `"pooler"`):
            What stands between pooling and labels: `"pooler"` (dense, the family head's activation, dropout, linear),
            as in the paper, or `"linear"` (dropout, linear).
        off_ramps_trained (`bool`, *optional*, defaults to `False`):
            Whether the off-ramps have been trained. Set by [`OffRampTrainer`].
        off_ramp_temperatures (`list[float]`, *optional*):
            Temperature T_i > 0 of each of the L-1 off-ramps: in eval mode its logits are divided by T_i before their
            entropy is taken and they are an answer (temperature scaling; Guo et al., 2017, section 4.2). The model's
            own head has none, so the full depth is that of the stock model. `None`: all are 1.
    """

    early_exit_entropy: float | int | list[float | int] | None = None
    exit_layer: int | None = None
    output_off_ramp_logits: bool = False
    off_ramp_pooling: str = "cls"
    off_ramp_head: str = "pooler"
    off_ramps_trained: bool = False
    off_ramp_temperatures: list[float | int] | None = None

    # Whether other early-exit implementations wrote checkpoints of the family, and model types that they gave them.
    other_layouts = False
    other_types: ClassVar[tuple[str, ...]] = ()

    # Extra outputs that Trainer would otherwise gather as predictions.
    keys_to_ignore_at_inference = ["exit_layers", "off_ramp_logits"]

    @property
    def max_entropy(self):
        """
        `float`: ln(num_labels) in nats, the entropy of a prediction that is spread evenly over the classes and so the
        largest there is. Thresholds can be given as a share of it: `0.3 * model.config.max_entropy`.

        Raises:
            ValueError: for a model with fewer than two labels.
        """
        if self.num_labels < 2:
            raise ValueError(
                f"`max_entropy` needs a model that chooses one of several classes, this one has num_labels="
                f"{self.num_labels}: use `exit_layer` in place of an entropy threshold."
            )
        return math.log(self.num_labels)

    @classmethod
    def get_config_dict(cls, *args, **kwargs):
        # A plain checkpoint of the family is a valid start, so its model type is not worth a warning.
        config, kwargs = super().get_config_dict(*args, **kwargs)
        if config.get("model_type") in (cls.backbone_type, *cls.other_types):
            config["model_type"] = cls.model_type
        return config, kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        # Off-ramps that are made to read something else than what they were trained on are untrained, and
        # temperatures are fitted to trained ones.
        for name in ("off_ramp_pooling", "off_ramp_head"):
            if name in kwargs and name in config_dict and kwargs[name] != config_dict[name]:
                kwargs.setdefault("off_ramps_trained", False)
                kwargs.setdefault("off_ramp_temperatures", None)
        return super().from_dict(config_dict, **kwargs)

    def forget_off_ramps(self):
        """Notes that the off-ramps are untrained: new, or no longer fit for what they read."""
        self.off_ramps_trained = False
        self.off_ramp_temperatures = None

    def validate_off_ramps(self):
        if self.off_ramp_pooling not in OFF_RAMP_POOLINGS:
            raise ValueError(f"`off_ramp_pooling` must be one of {OFF_RAMP_POOLINGS}, got {self.off_ramp_pooling!r}.")
        if self.off_ramp_head not in OFF_RAMP_HEADS:
            raise ValueError(f"`off_ramp_head` must be one of {OFF_RAMP_HEADS}, got {self.off_ramp_head!r}.")

    def validate_exit_defaults(self):
        if self.early_exit_entropy is not None:
            check_thresholds(self.early_exit_entropy, self.num_hidden_layers - 1)
        if self.exit_layer is not None:
            check_exit_layer(self.exit_layer, self.num_hidden_layers)
        if self.early_exit_entropy is not None and self.exit_layer is not None:
            raise ValueError(
                f"`early_exit_entropy` ({self.early_exit_entropy!r}) and `exit_layer` ({self.exit_layer!r}) exclude "
                "each other: keep one of them in the configuration."
            )
        if self.off_ramp_temperatures is not None:
            check_temperatures(self.off_ramp_temperatures, self.num_hidden_layers - 1)
