"""What is in an exported folder."""

import json
from pathlib import Path
from typing import Any


NOTES_FILE = "onnx.json"
SINGLE_FILE = "model.onnx"


def segment_file(layer: int) -> str:
    """Name of the file of layer 1 … L."""
    return f"segment_{layer:02d}.onnx"


def read_notes(folder: Path) -> dict[str, Any]:
    """`onnx.json` of a folder whose segments are all there."""
    path = folder / NOTES_FILE
    if not path.is_file():
        raise ValueError(f"`folder` ({str(folder)!r}) has no {NOTES_FILE}: write it with `export_onnx`.")
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
        names = [entry["file"] for entry in notes["segments"]]
        _ = notes["max_tokens"], notes["off_ramp_temperatures"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged ({error!r}): export the model again.") from error
    if not names:
        raise ValueError(f"`folder` ({str(folder)!r}) has no segments: export it with `segments=True`.")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"`folder` ({str(folder)!r}) lacks {', '.join(missing)}: export the model again.")
    return notes
