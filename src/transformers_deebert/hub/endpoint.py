"""Serving a checkpoint by a Hugging Face Inference Endpoint."""

import shutil
from pathlib import Path


def write_endpoint_handler(folder: str | Path) -> Path:
    """
    Puts a `handler.py` beside a saved model, so that an Inference Endpoint of the repository that the folder is pushed
    to takes `{"inputs": …, "parameters": {"early_exit_entropy": 0.4}}` and returns `exit_layer` with every answer.

    Args:
        folder (`str` or `Path`): Holds the saved model.

    Returns:
        `Path`: the handler.

    Raises:
        ValueError: for a folder without a model.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` ({str(folder)!r}) has no config.json: save a model there first.")
    return Path(shutil.copyfile(Path(__file__).with_name("handler.py"), folder / "handler.py"))
