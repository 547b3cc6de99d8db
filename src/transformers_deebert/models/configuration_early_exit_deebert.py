"""The configuration fields that every early-exit family shares."""

import math
import re
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, ClassVar

from huggingface_hub.errors import StrictDataclassError

from .exit_criteria_deebert import check_threshold_values, check_thresholds, read_criterion


OFF_RAMP_POOLINGS = ("cls", "mean", "attention")
OFF_RAMP_HEADS = ("pooler", "linear", "mlp")
OFF_RAMP_CONTEXTS = ("own", "past")
# Fields on which it depends what off-ramps read and what they make of it.
OFF_RAMP_FIELDS = ("off_ramp_pooling", "off_ramp_head", "off_ramp_context")
# Fields that are numbers or lists of numbers: arrays, tuples and numpy numbers are turned into what JSON has.
PLAIN_FIELDS = ("early_exit_entropy", "exit_criterion", "exit_layer", "off_ramp_layers", "off_ramp_temperatures")
# Logits are divided in float32 or less: what it cannot hold would be a division by 0 or by infinity.
TEMPERATURE_RANGE = (2.0**-126, 2.0**127)


def class_names(config) -> list[str]:
    """
    The names of a model's classes in the order of their indices: those of `config.id2label`, which pipelines answer
    with. `config.label2id` counts for nothing where it is missing or holds transformers' own names (LABEL_0, …).

    Raises:
        ValueError: where `label2id` has other names, or gives them to other indices.
    """
    id2label = {int(index): str(name) for index, name in (config.id2label or {}).items()}
    names = [id2label.get(index, f"LABEL_{index}") for index in range(config.num_labels)]
    label2id = {str(name): int(index) for name, index in (config.label2id or {}).items()}
    named = {name: index for name, index in label2id.items() if not re.fullmatch(r"LABEL_\d+", name)}
    for name, index in named.items():
        if not 0 <= index < len(names) or names[index] != name:
            raise ValueError(
                f"`config.label2id` gives {name!r} the index {index}, `config.id2label` is {id2label}: they "
                "contradict each other; make `label2id` the reverse of `id2label`, which the model answers with."
            )
    return names


def to_plain(value):
    """Numbers and lists of numbers as JSON has them, from tuples, numpy numbers, arrays and tensors."""
    if hasattr(value, "tolist"):
        return value.tolist()
    return [to_plain(one) for one in value] if isinstance(value, (list, tuple, range)) else value


def check_temperatures(value, num_off_ramps: int) -> tuple[float, ...]:
    """
    Checks the temperatures of the off-ramps.

    Args:
        value (`list[float]`): One temperature for each off-ramp; finite and above 0, within the range of float32.
        num_off_ramps (`int`): Number of off-ramps.

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


def check_exit_layer(value, exit_layers: tuple[int, ...]) -> int:
    """Checks that `value` is one of the layers that an exit stands behind; raises `ValueError` otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) not in exit_layers:
        raise ValueError(
            f"`exit_layer` must be one of the layers {', '.join(map(str, exit_layers))} (the last: the model's own "
            f"head), got {value!r}."
        )
    return int(value)


def check_off_ramp_layers(value, num_layers: int) -> None:
    """Raises `ValueError` unless `value` is a rising list of layers before the last."""
    whole = isinstance(value, (list, tuple)) and all(
        isinstance(layer, Integral) and not isinstance(layer, bool) for layer in value
    )
    if not whole or list(value) != sorted({layer for layer in value if 0 <= layer < num_layers}):
        raise ValueError(
            f"`off_ramp_layers` must be a rising list of layers from 0 (the embeddings) to {num_layers - 1}, got "
            f"{value!r}: the model's own head stands behind layer {num_layers}."
        )


def layers_of_exits(off_ramp_layers, num_layers: int) -> tuple[int, ...]:
    """The layers that an exit stands behind, the head's last; without a list an off-ramp behind every layer before."""
    return (*(range(1, num_layers) if off_ramp_layers is None else off_ramp_layers), num_layers)


def readings(layers: tuple[int, ...], context: str | None) -> tuple:
    """What each off-ramp reads: its layer, or with the context "past" the layers of the off-ramps up to it."""
    return tuple(layers[: place + 1] if context == "past" else layer for place, layer in enumerate(layers))


def move_to_layers(values, old: tuple, new: tuple, default: float):
    """Thresholds or temperatures of the off-ramps with the readings `old`, for those with `new`; numbers stay."""
    if not isinstance(values, (list, tuple)):
        return values
    known = dict(zip(old, values, strict=False))
    return [known.get(reading, default) for reading in new]


# `init=False` leaves the constructor to the leaf's `@strict`; `repr=False, eq=False` keep those of PreTrainedConfig.
@dataclass(kw_only=True, repr=False, eq=False, init=False)
class EarlyExitConfigMixin:
    """
    What an early-exit family adds to its stock configuration. Bases: this mixin first, then the stock configuration.

    Args:
        early_exit_entropy (`float` or `list[float]`, *optional*):
            Default threshold S of the entropy in nats, or one for each off-ramp: a sample exits at the first off-ramp
            whose prediction has entropy < S (DeeBERT, Algorithm 1). `None` and 0 never exit. The short form of the
            `exit_criterion` with the score `"entropy"` and patience 1.
        exit_criterion (`dict`, *optional*):
            Default exit criterion, the fields of an [`ExitCriterion`] with a score of the library:
            `{"score": "margin", "threshold": 0.1, "patience": 2}`. At most one of `early_exit_entropy`,
            `exit_criterion` and `exit_layer` is set.
        exit_layer (`int`, *optional*):
            Default static truncation: the exit behind layer `exit_layer` answers every sample.
        output_off_ramp_logits (`bool`, *optional*, defaults to `False`):
            Whether every call runs all layers and returns the logits of all exits.
        off_ramp_layers (`list[int]`, *optional*):
            Rising list of the layers that an off-ramp stands behind, 0 … L-1; 0 are the embeddings, and an exit there
            costs no layer. `None`: 1 … L-1. `off_ramps.{i}` in a checkpoint is the i-th of the list, and lists of
            thresholds and temperatures have one number an entry.
        off_ramp_pooling (`str`, *optional*, defaults to `"cls"`):
            How an off-ramp reads its layer: `"cls"`, the state of the first token, as in the paper; `"mean"`, the mean
            over the attended tokens; `"attention"`, their mean weighted by a learned query.
        off_ramp_head (`str`, *optional*, defaults to `"pooler"`):
            What stands between pooling and labels: `"pooler"` (dense, the family head's activation, dropout, linear),
            as in the paper, `"linear"` (dropout, linear), or `"mlp"` (dense hidden -> hidden, gelu, dropout, linear).
        off_ramp_context (`str`, *optional*, defaults to `"own"`):
            Which layers an off-ramp reads: `"own"`, the one that it stands behind, as in the paper; `"past"`, the
            pooled vectors of all off-ramps' layers up to its own, side by side (with `"linear"` or `"mlp"`).
        off_ramps_trained (`bool`, *optional*, defaults to `False`):
            Whether the off-ramps have been trained. Set by [`OffRampTrainer`].
        off_ramp_temperatures (`list[float]`, *optional*):
            Temperature T_i > 0 of each off-ramp: in eval mode its logits are divided by T_i before their
            score is computed and they are an answer (temperature scaling; Guo et al., 2017, section 4.2). The model's
            own head has none, so the full depth is that of the stock model. `None`: all are 1.
    """

    # `Any`: [`__setattr__`] takes what calls take, and checks it.
    early_exit_entropy: Any = None
    exit_criterion: Any = None
    exit_layer: Any = None
    output_off_ramp_logits: bool = False
    off_ramp_layers: Any = None
    off_ramp_pooling: str = "cls"
    off_ramp_head: str = "pooler"
    off_ramp_context: str = "own"
    off_ramps_trained: bool = False
    off_ramp_temperatures: Any = None

    # Whether other early-exit implementations wrote checkpoints of the family, and model types that they gave them.
    other_layouts = False
    other_types: ClassVar[tuple[str, ...]] = ()

    # Extra outputs that Trainer would otherwise gather as predictions.
    keys_to_ignore_at_inference = ["exit_layers", "off_ramp_logits"]

    def __setattr__(self, name, value):
        if value is not None and name in PLAIN_FIELDS:
            value = to_plain(value)
            if name == "early_exit_entropy":
                check_threshold_values(value, name)
            elif name == "exit_criterion":
                value = read_criterion(value, "config.exit_criterion").to_dict()
        super().__setattr__(name, value)

    @property
    def exit_layers(self):
        """`tuple[int, ...]`: the layers that an exit stands behind, those of the off-ramps and, last, the head's."""
        return layers_of_exits(self.off_ramp_layers, self.num_hidden_layers)

    @property
    def off_ramp_readings(self):
        """`tuple`: what each off-ramp reads, equal for two off-ramps that can stand in for each other."""
        return readings(self.exit_layers[:-1], self.off_ramp_context)

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
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        config, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        kwargs["read_from"] = str(pretrained_model_name_or_path)
        # A plain checkpoint of the family is a valid start, so its model type is not worth a warning.
        if config.get("model_type") in (cls.backbone_type, *cls.other_types):
            config["model_type"] = cls.model_type
        return config, kwargs

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        place = kwargs.pop("read_from", kwargs.get("name_or_path"))
        # Off-ramps that are made to read something else than what they were trained on are untrained, and
        # temperatures are fitted to trained ones.
        for name in OFF_RAMP_FIELDS:
            if name in kwargs and kwargs[name] != config_dict.get(name, kwargs[name]):
                kwargs.setdefault("off_ramps_trained", False)
                kwargs.setdefault("off_ramp_temperatures", None)
        if "off_ramp_layers" in kwargs and config_dict.get("model_type") == cls.model_type:
            config_dict = cls.with_off_ramp_layers(config_dict, kwargs["off_ramp_layers"])
        try:
            return super().from_dict(config_dict, **kwargs)
        except (StrictDataclassError, ValueError) as error:  # the former is no ValueError
            cause = error.__cause__ if isinstance(error, StrictDataclassError) else error
            raise ValueError(
                f"The configuration{f' of {place!r}' if place else ''} cannot be used: {cause}"
            ) from error

    @classmethod
    def with_off_ramp_layers(cls, config_dict, off_ramp_layers):
        """
        A saved configuration with other off-ramp layers: thresholds and temperatures of the off-ramps that both have
        stay; an off-ramp that is new is untrained, and switched off where each has a threshold of its own.
        """
        depth = cls.from_dict(config_dict).num_hidden_layers
        if off_ramp_layers is not None:
            check_off_ramp_layers(off_ramp_layers, depth)
        context = config_dict.get("off_ramp_context")
        layers = layers_of_exits(off_ramp_layers, depth)[:-1]
        old = readings(layers_of_exits(config_dict.get("off_ramp_layers"), depth)[:-1], context)
        new = readings(layers, context)
        moved = dict(config_dict, off_ramp_layers=None if off_ramp_layers is None else list(off_ramp_layers))
        if config_dict.get("exit_criterion"):
            criterion = config_dict["exit_criterion"]
            threshold = move_to_layers(criterion.get("threshold"), old, new, 0.0)
            moved["exit_criterion"] = criterion | {"threshold": threshold}
        for name, default in (("early_exit_entropy", 0.0), ("off_ramp_temperatures", 1.0)):
            moved[name] = move_to_layers(config_dict.get(name), old, new, default)
        if not set(new) <= set(old):
            moved["off_ramps_trained"] = False
        if config_dict.get("exit_layer") not in (None, *layers, depth):
            moved["exit_layer"] = None
        return moved

    def forget_off_ramps(self):
        """Notes that the off-ramps are untrained: new, or no longer fit for what they read."""
        self.off_ramps_trained = False
        self.off_ramp_temperatures = None

    def validate_off_ramps(self):
        if self.off_ramp_pooling not in OFF_RAMP_POOLINGS:
            raise ValueError(f"`off_ramp_pooling` must be one of {OFF_RAMP_POOLINGS}, got {self.off_ramp_pooling!r}.")
        if self.off_ramp_head not in OFF_RAMP_HEADS:
            raise ValueError(f"`off_ramp_head` must be one of {OFF_RAMP_HEADS}, got {self.off_ramp_head!r}.")
        if self.off_ramp_context not in OFF_RAMP_CONTEXTS:
            raise ValueError(f"`off_ramp_context` must be one of {OFF_RAMP_CONTEXTS}, got {self.off_ramp_context!r}.")
        if (self.off_ramp_context, self.off_ramp_head) == ("past", "pooler"):
            raise ValueError(
                "`off_ramp_context` is 'past', but a pooler reads one vector: use `off_ramp_head` 'linear' or 'mlp'."
            )
        if self.off_ramp_layers is not None:
            check_off_ramp_layers(self.off_ramp_layers, self.num_hidden_layers)

    def validate_exit_defaults(self):
        off_ramps = len(self.exit_layers) - 1
        names = ("early_exit_entropy", "exit_criterion", "exit_layer")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            values = " and ".join(f"`{name}` ({getattr(self, name)!r})" for name in given)
            raise ValueError(f"{values} exclude each other: keep one of them in the configuration.")
        if self.early_exit_entropy is not None:
            check_thresholds(self.early_exit_entropy, off_ramps)
        if self.exit_criterion is not None:
            check_thresholds(self.exit_criterion["threshold"], off_ramps, "config.exit_criterion")
        if self.exit_layer is not None:
            check_exit_layer(self.exit_layer, self.exit_layers)
        if self.off_ramp_temperatures is not None:
            check_temperatures(self.off_ramp_temperatures, off_ramps)
