"""Output folders and files: checked before the work, and there whole or not at all."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """
    A new folder to write into, which takes the place of `folder` (absent or empty) when the block ends; when the block
    fails, nothing is left of it.

    Raises:
        OSError: for what cannot be written, naming `folder`.
    """
    folder = Path(folder).absolute()
    with errors_that_name(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as unfinished:
            whole = Path(unfinished) / folder.name
            whole.mkdir()
            yield whole
            if folder.exists():
                folder.rmdir()
            whole.rename(folder)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """
    A file to write, which takes the place of `path` when the block ends; when it fails, what was there stays. The
    folder is made. What is no file (a pipe, a terminal) is written in place.

    Raises:
        OSError: for what cannot be written, naming `path`.
    """
    path = Path(path)
    with errors_that_name(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():
            yield path
            return
        new = path.with_name(f".{path.stem}.{os.getpid()}.unfinished{path.suffix}")
        try:
            yield new
            os.replace(new, path)
        finally:
            new.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a file whole or not at all, see [`whole_file`]."""
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8")


def check_new_folder(name: str, folder: str | Path, ignored: Iterable[str] = ()) -> None:
    """
    Raises `ValueError` unless the folder of the argument `name` is empty, but for files in `ignored`, and can be
    written; before anything is made for it. A folder that is not there is not made.
    """
    folder = Path(folder)
    ignored = set(ignored)
    try:
        if folder.exists() and any(path.name not in ignored for path in folder.iterdir()):
            raise ValueError(
                f"`{name}` ({str(folder)!r}) is not empty, and nothing is overwritten: choose another folder."
            )
        check_writable(folder if folder.exists() else folder.parent)
    except OSError as error:
        raise ValueError(
            f"`{name}` ({str(folder)!r}) cannot be written ({error.strerror}): choose another folder."
        ) from error


def check_new_file(name: str, path: str | Path) -> None:
    """Raises `ValueError` unless the file of the argument `name` can be written, before anything is made for it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise IsADirectoryError(None, "it is a folder")
        if path.exists() and not os.access(path, os.W_OK):
            raise PermissionError(None, "no permission")
        check_writable(path.parent)
    except OSError as error:
        raise ValueError(
            f"`{name}` ({str(path)!r}) cannot be written ({error.strerror}): choose another file."
        ) from error


def check_writable(folder: Path) -> None:
    """Makes the folder, and writes and removes a file there; raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@contextmanager
def errors_that_name(path: Path) -> Iterator[None]:
    """A full disk is reported without any name by the system, and by safetensors as an error of its own."""
    try:
        yield
    except SafetensorError as error:
        raise OSError(None, f"cannot be written: {error}", str(path)) from error
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
