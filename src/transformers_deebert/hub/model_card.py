"""
The model card, written from measured numbers.

`python -m transformers_deebert.hub.model_card NUMBERS.json CARD.md` writes a card from a stored numbers file.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..analysis.plots import plot_trade_off
from ..analysis.sweep import OperatingPoint
from ..analysis.tables import THRESHOLD, format_table, threshold_text
from ..folders import whole_file
from .card_data import CardData, criterion_words


NUMBERS_FILE, PICTURE_FILE, CARD_FILE = "numbers.json", "trade_off.png", "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")

HYPER_PARAMETERS = {
    "kind": "kind",
    "epochs": "epochs",
    "learning_rate": "learning rate",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "warm_up": "warm-up",
    "weight_decay": "weight decay",
    "max_grad_norm": "gradient clipping",
    "dropout": "dropout",
    "seed": "seed",
    "distillation_weight": "distillation weight",
    "off_ramp_mode": "off-ramp mode",
    "strategy": "strategy",
    "full_depth_before": "full depth before",
    "full_depth_after": "full depth after",
    "trained_share": "parameters trained",
    "seconds": "seconds",
}
TRADE_OFF_COLUMNS = {
    "threshold": ("threshold", THRESHOLD),
    "score": ("score", ".1%"),
    "score_change": ("points", "+.1f"),
    "layer_saving": ("layer saving", ".1%"),
    "runtime_saving": ("runtime saving", ".1%"),
    "speed_up": ("speed-up", ".2f"),
    "ideal_speed_up": ("ideal speed-up", ".2f"),
    "note": ("", ""),
}
LIMITS = (
    "A low entropy shows that a classifier is confident, not that it is correct.",
    "Saving and score hold for texts like those they were measured on; harder texts run more layers.",
)
TIMING_LIMIT = (
    "The measured speed-up belongs to the machine and the batch size named here; the layer saving does not depend on "
    "them."
)


def create_model_card(
    numbers: CardData | Mapping[str, Any],
    *,
    model_id: str | None = None,
    picture: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> ModelCard:
    """
    Make a model card. What `numbers` does not hold is left out of the card; nothing is guessed or looked up.

    Args:
        numbers ([`CardData`] or `Mapping[str, Any]` of its fields):
            What is known.
        model_id (`str`, *optional*):
            What the usage example gives to `from_pretrained`: the place on the Hub, as in `"org/name"`, or a folder.
            By default the folder that the card lies in.
        picture (`str`, *optional*):
            Path of the trade-off picture, relative to the card.
        license (`str`, *optional*):
            Identifier of the model's license.
        tags (`str` or sequence of `str`, *optional*):
            Tags besides `deebert` and `early-exit`.

    Returns:
        [`~huggingface_hub.ModelCard`]: the card; `card.save(path)` writes it.
    """
    card = CardData.from_dict(numbers)
    chosen = card.chosen or {}
    labels = [" ".join(str(label).split()) for label in card.labels or []]
    trained = card.off_ramps_trained is not False
    metric_name = card.metric.replace("_", " ").capitalize() if card.metric else "Score"
    title = card.model_name or (model_id or "").split("/")[-1] or "DeeBERT classifier"
    return ModelCard.from_template(
        card_data=_metadata(card, title, license, [tags] if isinstance(tags, str) else list(tags or [])),
        template_path=str(TEMPLATE),
        title=title,
        card=card,
        labels=labels,
        max_entropy=math.log(len(labels)) if len(labels) > 1 else None,
        model_id=model_id,
        picture=picture,
        # As Python code.
        example=json.dumps(card.example or "A sentence to classify.", ensure_ascii=False),
        trained=trained,
        suggested=_suggested(chosen) if trained else None,
        default=_default(card),
        temperatures=", ".join(f"{value:.3g}" for value in card.off_ramp_temperatures or []),
        headline=_headline(card, metric_name) if trained else None,
        facts=_facts(card, labels),
        training=_training_table(card.training or {}),
        joint="joint" in (card.training or {}),
        metric_name=metric_name,
        layer_table=_layer_table(card, metric_name),
        trade_off=_trade_off_table(card.trade_off, metric_name),
        has_ideal=any("ideal_speed_up" in row for row in card.trade_off or []),
        timed_on=_timed_on(card.timing),
        how_chosen=chosen.get("how"),
        limits=[*(card.limits or []), *LIMITS, *([TIMING_LIMIT] if card.timing else [])],
        sources=_sources(card.packages or {}),
    )


def write_model_card(
    folder: str | Path,
    numbers: CardData | Mapping[str, Any] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    model_id: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> ModelCard:
    """
    Write the card of the checkpoint in a folder: `README.md`, `trade_off.png` where the trade-off is known and
    matplotlib is installed, and `numbers.json`, from which the card can be written again. Nothing is looked up.

    Args:
        folder (`str` or `Path`):
            Holds the checkpoint's `config.json`; what that says of the model goes into the card.
        numbers ([`CardData`] or `Mapping[str, Any]`, *optional*):
            What is known besides, as for [`create_model_card`]; by default what `numbers.json` holds.
        config (`Mapping[str, Any]`, *optional*):
            The checkpoint's configuration where it is about to change; by default that in the folder.
        model_id, license, tags:
            As for [`create_model_card`].

    Returns:
        [`~huggingface_hub.ModelCard`]: the card that was written.

    Raises:
        ValueError: for a folder without a configuration.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"`folder` ({str(folder)!r}) has no config.json: save a model there first.")
    stored = folder / NUMBERS_FILE
    if numbers is None:
        known = CardData.read(stored) if stored.is_file() else CardData()
    else:
        known = CardData.from_dict(numbers)
    shown = CardData.from_config(config or json.loads(path.read_text(encoding="utf-8"))) | known
    try:
        picture = _draw(shown)
        name = None if picture is None else PICTURE_FILE
        card = create_model_card(shown, model_id=model_id, picture=name, license=license, tags=tags)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`numbers`, as in {str(stored)!r}, cannot be shown in a card ({type(error).__name__}: {error}): see "
            "`CardData` for what it takes, or remove the file."
        ) from error
    # All is made before any of it is replaced.
    if picture is not None:
        with whole_file(folder / PICTURE_FILE) as new:
            new.write_bytes(picture)
    save_card(card, folder / CARD_FILE)
    if numbers is not None:
        known.write(stored)
        if picture is None:
            (folder / PICTURE_FILE).unlink(missing_ok=True)  # of earlier numbers
    return card


def save_card(card: ModelCard, path: Path) -> None:
    with whole_file(path) as new:
        card.save(new)


def _draw(card: CardData) -> bytes | None:
    """The picture of the trade-off; `None` where there is nothing to draw, or to draw with."""
    rows = card.trade_off or []
    if len(rows) < 2 or card.full_depth is None:
        return None
    metric = card.metric or "score"
    points = [
        OperatingPoint(
            threshold=row["threshold"],
            scores={metric: row["score"]},
            layer_cost_ratio=1 - row["layer_saving"],
            layer_saving=row["layer_saving"],
            exit_counts=(),
        )
        for row in rows
    ]
    chosen = [point for point in points if point.threshold == (card.chosen or {}).get("threshold")]
    title = None if card.rows_scored is None else f"{card.rows_scored:,} rows"
    picture = BytesIO()
    try:
        plot_trade_off(points, picture, metric, card.full_depth, chosen=chosen, title=title, form="png")
    except ImportError:
        return None
    return picture.getvalue()


def _metadata(card: CardData, model_name: str, license: str | None, tags: list[str]) -> ModelCardData:
    metric, data, chosen = card.metric, card.data or {}, card.chosen or {}
    results = []
    if metric and "name" in data:
        scores = {"full depth": card.full_depth}
        if "threshold" in chosen:
            scores[str(_exits_at(chosen["threshold"], chosen.get("criterion")))] = chosen.get("score")
        results = [
            EvalResult(
                task_type="text-classification",
                dataset_type=data.get("hub_id") or data["name"].lower().replace(" ", "-"),
                dataset_name=data["name"],
                metric_type=metric,
                metric_name=f"{metric} ({where})",
                metric_value=round(score, 4),
            )
            for where, score in scores.items()
            if score is not None
        ]
    return ModelCardData(
        model_name=model_name if results else None,
        eval_results=results or None,
        language=card.language,
        license=license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=list(dict.fromkeys(["deebert", "early-exit", *tags])),
        datasets=data.get("hub_id"),
        base_model=(card.base_model or {}).get("hub_id"),
        metrics=[metric] if metric else None,
    )


def _suggested(chosen: Mapping[str, Any]) -> str | None:
    """The argument that exits as chosen, as Python code; `None` for thresholds per off-ramp, which are many."""
    if "criterion" in chosen:
        return f"exit_criterion={chosen['criterion']!r}"
    one = isinstance(chosen.get("threshold"), float)
    return f"early_exit_entropy={threshold_text(chosen['threshold'])}" if one else None


def _default(card: CardData) -> str | None:
    """Where the checkpoint exits by default."""
    if card.default_threshold is None and card.default_criterion is None:
        return None
    return _exits_at(card.default_threshold, card.default_criterion)


def _exits_at(threshold: float | Sequence[float] | None, criterion: Mapping[str, Any] | None) -> str | None:
    if criterion is not None:
        return criterion_words(criterion)
    if threshold is None or isinstance(threshold, (int, float)):
        return None if threshold is None else f"S = {threshold_text(threshold)}"
    return f"S = {threshold_text(threshold)} (one for each off-ramp)"


def _headline(card: CardData, metric_name: str) -> str | None:
    chosen, full_depth = card.chosen or {}, card.full_depth
    batch_size = (card.timing or {}).get("batch_size")
    if full_depth is None or not {"score", "layer_saving"} <= chosen.keys():
        return None
    faster = f", {chosen['speed_up']:.2f} times as fast" if "speed_up" in chosen else ""
    if faster and batch_size is not None:
        faster += f" at batch size {batch_size}"
    # Where the threshold was evaluated on rows of its own, full depth on these.
    full_depth = chosen["score"] - chosen.get("score_change", chosen["score"] - full_depth)
    return (
        f"{chosen['layer_saving']:.0%} of the layers saved{faster}: {metric_name.lower()} {chosen['score']:.1%}, "
        f"{full_depth:.1%} at full depth."
    )


def _facts(card: CardData, labels: list[str]) -> list[tuple[str, Any]]:
    facts = {
        "base model": (card.base_model or {}).get("name"),
        "layers": card.layers,
        "exits behind the layers": ", ".join(map(str, card.exit_layers or [])) or None,
        "off-ramp pooling": card.off_ramp_pooling,
        "off-ramp head": card.off_ramp_head,
        "off-ramps read the layers": card.off_ramp_context and "up to their own",
        "labels": ", ".join(labels) or None,
        "longest input": None if card.max_length is None else f"{card.max_length} tokens",
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _training_table(training: Mapping[str, Mapping[str, Any]]) -> str | None:
    stages = {"backbone": "stage 1", "joint": "joint", "off_ramps": "stage 2"}
    known = {stage: training.get(stage) or {} for stage in stages if stage != "joint" or training.get(stage)}
    rows = [
        {"what": words} | {stage: _words(numbers.get(key)) for stage, numbers in known.items()}
        for key, words in HYPER_PARAMETERS.items()
        if any(key in numbers for numbers in known.values())
    ]
    columns = {"what": ("", "")} | {stage: (stages[stage], "") for stage in known}
    return format_table(rows, columns, markdown=True) if rows else None


def _words(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, "g")


def _layer_table(card: CardData, metric_name: str) -> str | None:
    if not card.layer_scores:
        return None
    layers = card.exit_layers or range(1, len(card.layer_scores) + 1)
    rows = [{"layer": layer, "score": score} for layer, score in zip(layers, card.layer_scores, strict=True)]
    return format_table(rows, {"layer": ("layer", "d"), "score": (metric_name.lower(), ".1%")}, markdown=True)


def _trade_off_table(rows: Sequence[Mapping[str, Any]] | None, metric_name: str) -> str | None:
    if not rows:
        return None
    columns = {key: column for key, column in TRADE_OFF_COLUMNS.items() if any(key in row for row in rows)}
    columns["score"] = (metric_name.lower(), ".1%")
    rows = [
        {**row, "score_change": 100 * row["score_change"]} if "score_change" in row else row for row in rows
    ]  # a change of a percentage is shown in points
    return format_table(rows, columns, markdown=True)


def _timed_on(timing: Mapping[str, Any] | None) -> str | None:
    if not timing:
        return None
    parts = [
        f"batch size {timing['batch_size']}" if "batch_size" in timing else None,
        f"{timing['rows']:,} rows" if "rows" in timing else None,
        f"median of {timing['repeats']} alternating passes" if "repeats" in timing else None,
        f"two runs of the full model in the same rotation differed by {timing['control_gap']:.1%}"
        if "control_gap" in timing
        else None,
    ]
    return ", ".join(part for part in parts if part)


def _sources(packages: Mapping[str, Mapping[str, str]]) -> str | None:
    rows = [{"what": name, "version": version} for name, version in (packages.get("versions") or {}).items()]
    tables = [format_table(rows, {"what": ("package", ""), "version": ("version", "")}, markdown=True)] if rows else []
    rows = [{"what": f"`{name}`", "sha256": f"`{digest}`"} for name, digest in (packages.get("sha256") or {}).items()]
    tables += [format_table(rows, {"what": ("file", ""), "sha256": ("SHA-256", "")}, markdown=True)] if rows else []
    return "\n\n".join(tables) or None


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Write a model card from a numbers file.")
    parser.add_argument("numbers", type=Path, help="JSON file of the numbers")
    parser.add_argument("card", type=Path, help="Markdown file to write")
    parser.add_argument("--picture", help="path of the trade-off picture, relative to the card")
    parser.add_argument("--model_id", help="place of the model on the Hub, or its folder")
    parser.add_argument("--license", help="identifier of the model's license")
    arguments = parser.parse_args(argv)
    card = create_model_card(
        CardData.read(arguments.numbers),
        model_id=arguments.model_id,
        picture=arguments.picture,
        license=arguments.license,
    )
    save_card(card, arguments.card)


if __name__ == "__main__":
    main()
