"""
The model card, written from measured numbers.

`python -m transformers_deebert.hub.model_card NUMBERS.json CARD.md` writes a card from a stored numbers file.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..analysis.plots import plot_trade_off
from ..analysis.sweep import OperatingPoint
from ..analysis.tables import THRESHOLD, format_table, threshold_text, write_json
from ..folders import whole_file


NUMBERS_FILE, PICTURE_FILE, CARD_FILE = "numbers.json", "trade_off.png", "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")

HYPER_PARAMETERS = {
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
    "off_ramp_mode": "off-ramp mode",
    "trained_share": "parameters trained",
    "seconds": "seconds",
}
TRADE_OFF_COLUMNS = {
    "threshold": ("S", THRESHOLD),
    "score": ("score", ".1%"),
    "score_change": ("points", "+.1f"),
    "layer_saving": ("layer saving", ".1%"),
    "runtime_saving": ("runtime saving", ".1%"),
    "speed_up": ("speed-up", ".2f"),
    "ideal_speed_up": ("ideal speed-up", ".2f"),
    "note": ("", ""),
}
LIMITS = (
    "A low entropy says that a classifier is sure, not that it is right: an off-ramp can be sure and wrong.",
    "Saving and score hold for texts like those they were measured on; harder texts run more layers.",
)
TIMING_LIMIT = (
    "The measured speed-up belongs to the machine and the batch size named here; the layer saving does not depend on "
    "them."
)


def create_model_card(
    numbers: Mapping[str, Any],
    *,
    model_id: str | None = None,
    picture: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
) -> ModelCard:
    """
    Make a model card. What `numbers` does not hold is left out of the card; nothing is guessed or looked up.

    Args:
        numbers (`Mapping[str, Any]`):
            What is known, all of it optional; scores, savings and shares are fractions:

            - `model_name`, `model_class`, `language`, `layers`, `off_ramp_pooling`, `off_ramp_head`, `max_length`,
              `off_ramps_trained` (`False` for a model that stage 2 has not seen), `labels` (list of names),
              `default_threshold` (the checkpoint's S), `off_ramp_temperatures` (list), `example` (a sentence), `seed`
            - `base_model`: `name`, and `hub_id` where it has one
            - `data`: `name`, `hub_id` where it has one, `description`, `rows` (list of `name`, `rows`, `use`)
            - `training`: `backbone` and `off_ramps`, each a mapping of `HYPER_PARAMETERS`
            - `metric` (its name), `rows_scored`, `full_depth` (score), `layer_scores` (the model's own head last)
            - `trade_off`: list of mappings of `TRADE_OFF_COLUMNS`
            - `chosen`: the mapping of `TRADE_OFF_COLUMNS` at the threshold chosen, and `how` (a sentence or two)
            - `timing`: `batch_size`, `rows`, `repeats`, `control_gap`
            - `machine` (mapping), `limits` (list of sentences)
            - `packages`: `versions` (name to version), `sha256` (file name to digest)
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
    metric = numbers.get("metric")
    data = numbers.get("data") or {}
    chosen = numbers.get("chosen") or {}
    labels = [" ".join(str(label).split()) for label in numbers.get("labels") or []]
    trained = numbers.get("off_ramps_trained", True)
    metric_name = metric.replace("_", " ").capitalize() if metric else "Score"
    title = numbers.get("model_name") or (model_id or "").split("/")[-1] or "DeeBERT classifier"
    return ModelCard.from_template(
        card_data=_metadata(numbers, title, license, [tags] if isinstance(tags, str) else list(tags or [])),
        template_path=str(TEMPLATE),
        title=title,
        model_class=numbers.get("model_class"),
        layers=numbers.get("layers"),
        labels=labels,
        max_entropy=math.log(len(labels)) if len(labels) > 1 else None,
        model_id=model_id,
        picture=picture,
        # As Python code.
        example=json.dumps(numbers.get("example") or "A sentence to classify.", ensure_ascii=False),
        trained=trained,
        suggested=threshold_text(chosen["threshold"])
        if trained and isinstance(chosen.get("threshold"), float)
        else None,
        default_threshold=_threshold(numbers.get("default_threshold")),
        temperatures=", ".join(f"{value:.3g}" for value in numbers.get("off_ramp_temperatures") or []),
        headline=_headline(numbers, metric_name) if trained else None,
        facts=_facts(numbers, labels),
        data=data,
        training=_training_table(numbers.get("training") or {}),
        seed=numbers.get("seed"),
        metric_name=metric_name,
        scored_on=_scored_on(numbers),
        layer_table=_layer_table(numbers.get("layer_scores"), metric_name),
        trade_off=_trade_off_table(numbers.get("trade_off"), metric_name),
        has_ideal=any("ideal_speed_up" in row for row in numbers.get("trade_off") or []),
        timed_on=_timed_on(numbers.get("timing")),
        how_chosen=chosen.get("how"),
        machine=list((numbers.get("machine") or {}).items()),
        limits=[*(numbers.get("limits") or []), *LIMITS, *([TIMING_LIMIT] if numbers.get("timing") else [])],
        sources=_sources(numbers.get("packages") or {}),
    )


def write_model_card(
    folder: str | Path,
    numbers: Mapping[str, Any] | None = None,
    *,
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
        numbers (`Mapping[str, Any]`, *optional*):
            What is known besides, as for [`create_model_card`]; by default what `numbers.json` holds.
        model_id, license, tags:
            As for [`create_model_card`].

    Returns:
        [`~huggingface_hub.ModelCard`]: the card that was written.

    Raises:
        ValueError: for a folder without a configuration.
    """
    folder = Path(folder)
    config = folder / "config.json"
    if not config.is_file():
        raise ValueError(f"`folder` ({str(folder)!r}) has no config.json: save a model there first.")
    stored = folder / NUMBERS_FILE
    known = (read_numbers(stored) if stored.is_file() else {}) if numbers is None else numbers
    told = {**_of_config(json.loads(config.read_text(encoding="utf-8"))), **known}
    try:
        if numbers is not None:
            (folder / PICTURE_FILE).unlink(missing_ok=True)  # of earlier numbers
        picture = _draw(told, folder / PICTURE_FILE)
        card = create_model_card(told, model_id=model_id, picture=picture, license=license, tags=tags)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"`numbers`, as in {str(stored)!r}, cannot be told in a card ({type(error).__name__}: {error}): see "
            "`create_model_card` for what it takes, or remove the file."
        ) from error
    with whole_file(folder / CARD_FILE) as new:
        card.save(new)
    if numbers is not None:
        write_json(stored, numbers)
    return card


def read_numbers(path: Path) -> Mapping[str, Any]:
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}): remove it, or write the card from numbers.") from error
    if not isinstance(numbers, dict):
        raise ValueError(f"{str(path)!r} holds a {type(numbers).__name__} instead of numbers by name: remove it.")
    return numbers


def _of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's own configuration says."""
    labels = [config.get("id2label", {}).get(str(label)) for label in range(len(config.get("id2label", {})))]
    named = labels and not all(str(label).startswith("LABEL_") for label in labels)
    known = {
        "model_class": next(iter(config.get("architectures") or []), None),
        "layers": config.get("num_hidden_layers", config.get("n_layers")),
        "off_ramp_pooling": config.get("off_ramp_pooling"),
        "off_ramp_head": config.get("off_ramp_head"),
        "off_ramps_trained": config.get("off_ramps_trained"),
        "labels": labels if named else None,
        "default_threshold": config.get("early_exit_entropy"),
        "off_ramp_temperatures": config.get("off_ramp_temperatures"),
    }
    return {key: value for key, value in known.items() if value is not None}


def _draw(numbers: Mapping[str, Any], path: Path) -> str | None:
    """Draws the trade-off and returns the picture's name; `None` where there is nothing to draw, or to draw with."""
    rows = numbers.get("trade_off") or []
    if len(rows) < 2 or numbers.get("full_depth") is None:
        return None
    metric = numbers.get("metric") or "score"
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
    chosen = [point for point in points if point.threshold == (numbers.get("chosen") or {}).get("threshold")]
    title = f"{numbers['rows_scored']:,} rows" if "rows_scored" in numbers else None
    try:
        plot_trade_off(points, path, metric, numbers["full_depth"], chosen=chosen, title=title)
    except ImportError:
        return None
    return path.name


def _metadata(numbers: Mapping[str, Any], model_name: str, license: str | None, tags: list[str]) -> ModelCardData:
    metric, data, chosen = numbers.get("metric"), numbers.get("data") or {}, numbers.get("chosen") or {}
    results = []
    if metric and "name" in data:
        scores = {"full depth": numbers.get("full_depth")}
        if "threshold" in chosen:
            scores[str(_threshold(chosen["threshold"]))] = chosen.get("score")
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
        language=numbers.get("language"),
        license=license,
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=list(dict.fromkeys(["deebert", "early-exit", *tags])),
        datasets=data.get("hub_id"),
        base_model=(numbers.get("base_model") or {}).get("hub_id"),
        metrics=[metric] if metric else None,
    )


def _suggested(chosen: Mapping[str, Any]) -> str | None:
    """One number for all off-ramps, as Python code."""
    return threshold_text(chosen["threshold"]) if isinstance(chosen.get("threshold"), float) else None


def _threshold(value: float | Sequence[float] | None) -> str | None:
    if value is None or isinstance(value, (int, float)):
        return None if value is None else f"S = {threshold_text(value)}"
    return f"S = {threshold_text(value)} (one for each off-ramp)"


def _headline(numbers: Mapping[str, Any], metric_name: str) -> str | None:
    chosen, full_depth = numbers.get("chosen") or {}, numbers.get("full_depth")
    batch_size = (numbers.get("timing") or {}).get("batch_size")
    if full_depth is None or not {"score", "layer_saving"} <= chosen.keys():
        return None
    faster = f", {chosen['speed_up']:.2f} times as fast" if "speed_up" in chosen else ""
    if faster and batch_size is not None:
        faster += f" at batch size {batch_size}"
    # Where the threshold was read on rows of their own, full depth on these.
    full_depth = chosen["score"] - chosen.get("score_change", chosen["score"] - full_depth)
    return (
        f"{chosen['layer_saving']:.0%} of the layers saved{faster}: {metric_name.lower()} {chosen['score']:.1%}, "
        f"{full_depth:.1%} at full depth."
    )


def _facts(numbers: Mapping[str, Any], labels: list[str]) -> list[tuple[str, Any]]:
    facts = {
        "base model": (numbers.get("base_model") or {}).get("name"),
        "layers": numbers.get("layers"),
        "off-ramp pooling": numbers.get("off_ramp_pooling"),
        "off-ramp head": numbers.get("off_ramp_head"),
        "labels": ", ".join(labels) or None,
        "longest input": f"{numbers['max_length']} tokens" if "max_length" in numbers else None,
    }
    return [(name, value) for name, value in facts.items() if value is not None]


def _training_table(training: Mapping[str, Mapping[str, Any]]) -> str | None:
    backbone, off_ramps = training.get("backbone") or {}, training.get("off_ramps") or {}
    rows = [
        {"what": words, "backbone": _words(backbone.get(key)), "off_ramps": _words(off_ramps.get(key))}
        for key, words in HYPER_PARAMETERS.items()
        if key in backbone or key in off_ramps
    ]
    columns = {"what": ("", ""), "backbone": ("stage 1", ""), "off_ramps": ("stage 2", "")}
    return format_table(rows, columns, markdown=True) if rows else None


def _words(value: Any) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else format(value, "g")


def _scored_on(numbers: Mapping[str, Any]) -> str | None:
    if "rows_scored" not in numbers:
        return None
    return f"Scored on {numbers['rows_scored']:,} rows; one row is worth {1 / numbers['rows_scored']:.2%}."


def _layer_table(scores: list[float] | None, metric_name: str) -> str | None:
    if not scores:
        return None
    rows = [{"layer": layer, "score": score} for layer, score in enumerate(scores, start=1)]
    return format_table(rows, {"layer": ("layer", "d"), "score": (metric_name.lower(), ".1%")}, markdown=True)


def _trade_off_table(rows: list[Mapping[str, Any]] | None, metric_name: str) -> str | None:
    if not rows:
        return None
    columns = {key: column for key, column in TRADE_OFF_COLUMNS.items() if any(key in row for row in rows)}
    columns["score"] = (metric_name.lower(), ".1%")
    rows = [
        {**row, "score_change": 100 * row["score_change"]} if "score_change" in row else row for row in rows
    ]  # a change of a percentage is told in points
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
    numbers = json.loads(arguments.numbers.read_text(encoding="utf-8"))
    card = create_model_card(
        numbers, model_id=arguments.model_id, picture=arguments.picture, license=arguments.license
    )
    card.save(arguments.card)


if __name__ == "__main__":
    main()
