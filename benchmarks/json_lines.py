"""Rows of files with one JSON object a line."""

import json
from pathlib import Path
from typing import Any


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
