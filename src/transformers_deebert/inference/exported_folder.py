"""Folders of exported classifiers, of any runtime: what they state of their files, and their configuration."""

import json
import os
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from transformers import PreTrainedConfig

from ..families import find_family
from ..folders import write_text
from ..messages import first_line
from ..models.configuration_early_exit_deebert import check_temperatures
from ..models.exit_plan_deebert import ExitPlan
from ..models.exit_scores_deebert import SCORES, find_score


@dataclass(frozen=True)
class SingleFileNotes:
    """
    What an exported folder states of its single file.

    Args:
        file (`str`): Its name.
        score (`str`): Of the exit criterion inside.
        patience (`int`): Of the exit criterion inside.
    """

    file: str
    score: str
    patience: int

    def knows(self, plan: ExitPlan) -> bool:
        """Whether the answers of a plan are those of the file."""
        same = plan.score is SCORES[self.score].function and plan.patience == self.patience
        depth = plan.exit_layers[-1]
        return (
            plan.final_layer == plan.last_layer == depth and not plan.all_off_ramps and (same or not plan.thresholds)
        )


@dataclass(frozen=True)
class ExportNotes:
    """
    What an exported folder states of its files.

    Args:
        files (`list[str]`): Names of the segments, in order.
        single_file ([`SingleFileNotes`], *optional*): Of a file with all layers, for any number of rows.
        max_tokens (`int`, *optional*): Number of tokens that the position table holds.
        temperatures (`list[float]`, *optional*): Of the off-ramps, part of the graphs.
    """

    files: list[str]
    single_file: SingleFileNotes | None
    max_tokens: int | None
    temperatures: list[float] | None


def find_folder(
    name: str | os.PathLike,
    subfolder: str = "",
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> Path:
    """A local folder, or the files of a repository on the Hub, downloaded into the cache unless they are there."""
    folder = Path(name)
    if not folder.is_dir():
        try:
            place = snapshot_download(
                str(name),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=[str(Path(subfolder, pattern)) for pattern in ("*.json", "segment_*", "model.onnx*")],
            )
        except (OSError, HFValidationError) as error:
            raise ValueError(
                f"`pretrained_model_name_or_path` ({str(name)!r}) is neither a folder nor a repository on the Hub "
                f"that can be loaded ({first_line(error)}): check the name, `revision` and `token`."
            ) from error
        folder = Path(place)
    return folder / subfolder


def read_notes(path: Path) -> ExportNotes:
    """The notes in a file; raises `ValueError` where there are none."""
    if not path.is_file():
        raise ValueError(f"{str(path.parent)!r} has no {path.name}: export the model there first.")
    with damage_of(path):
        notes = json.loads(path.read_text(encoding="utf-8"))
        files = [Path(entry["file"]).name for entry in notes["segments"]]
        limit, temperatures = notes["max_tokens"], notes["off_ramp_temperatures"]
        if limit is not None and not isinstance(limit, int):
            raise TypeError(f"`max_tokens` is {limit!r}")
        if temperatures is not None:
            check_temperatures(temperatures, len(temperatures))
        # Files of earlier versions, which take one row, have no patience: segments run in their place.
        single = notes.get("single_file") or {}
        single_file = None
        if "patience" in single:
            find_score(single["score"])
            single_file = SingleFileNotes(Path(single["file"]).name, single["score"], single["patience"])
    return ExportNotes(files, single_file, limit, temperatures)


def read_config(folder: Path) -> Any:
    """The early-exit configuration of an exported folder, whose `model_type` may be the stock one."""
    values, _ = PreTrainedConfig.get_config_dict(folder)
    return find_family(values.get("model_type"), str(folder)).config.from_pretrained(folder)


def write_config(config: Any, folder: Path) -> None:
    """
    Writes config.json with the stock `model_type`, which other libraries know, and the exits' fields besides, without
    the code that `save_pretrained` takes along and without what refers to it: a stock `pipeline` would ask for it.
    """
    stock = {"model_type": config.backbone_type}
    if config.architectures:
        stock["architectures"] = [name.removeprefix("Dee") for name in config.architectures]
    values = config.to_diff_dict() | stock
    for name in ("auto_map", "custom_pipelines"):
        values.pop(name, None)
    write_text(folder / "config.json", json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def find_notes(folder: Path) -> ExportNotes | None:
    """The notes of an exported folder, of whichever runtime; `None` for other folders."""
    runtimes = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)]) if module.ispkg]
    found = [path for name in runtimes if (path := folder / f"{name}.json").is_file()]
    return read_notes(found[0]) if found else None


@contextmanager
def damage_of(path: Path) -> Iterator[None]:
    """Whatever a file's parser raises, as a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{str(path)!r} cannot be loaded ({type(error).__name__}: {first_line(error)}): it is damaged or of "
            "another model; export the model again, or copy the file again."
        ) from error
