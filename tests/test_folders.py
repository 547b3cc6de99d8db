"""Output folders and files: whole or not at all, also where the disk is full."""

import contextlib
import errno
import os
import resource

import pytest
import torch
from safetensors.torch import save_file

from transformers_deebert.analysis.plots import new_figure, save_figure
from transformers_deebert.analysis.tables import write_csv, write_json
from transformers_deebert.folders import check_new_file, check_new_folder, whole_folder, write_text


@contextlib.contextmanager
def files_of_at_most(size):
    """What a full disk does: writing fails in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "x" * 10_000),
        lambda path: write_json(path, list(range(5000))),
        lambda path: write_csv(path, [{"number": number} for number in range(5000)]),
        lambda path: save_figure(new_figure(), path, "svg"),
    ],
    ids=["text", "json", "csv", "picture"],
)
def test_a_file_that_cannot_be_written_leaves_what_was_there(write, tmp_path):
    path = tmp_path / "out"
    path.write_text("before")
    with files_of_at_most(300), pytest.raises(OSError, match="out'") as caught:
        write(path)
    assert caught.value.errno == errno.EFBIG
    assert path.read_text() == "before"
    assert os.listdir(tmp_path) == ["out"]
    write(path)
    assert path.stat().st_size > 300


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "new" / "folder"

    def write():
        with whole_folder(folder) as whole:
            (whole / "first").write_text("1")
            save_file({"weights": torch.zeros(1000)}, whole / "model.safetensors")

    with files_of_at_most(300), pytest.raises(OSError, match=r"new/folder"):
        write()
    assert list(tmp_path.rglob("*")) == [tmp_path / "new"]
    write()
    assert sorted(os.listdir(folder)) == ["first", "model.safetensors"]
    assert os.listdir(folder.parent) == ["folder"]


@pytest.mark.parametrize("place", ["file", "full", "/proc/new"])
def test_folders_that_are_refused(place, tmp_path):
    (tmp_path / "full").mkdir()
    for path in (tmp_path / "file", tmp_path / "full" / "precious"):
        path.write_text("")
    with pytest.raises(ValueError, match=rf"`output` .*{place}'.*choose another folder"):
        check_new_folder("output", tmp_path / place)
    check_new_folder("output", tmp_path / "full", ignored=["precious"])
    check_new_folder("output", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("place", ["", "/proc/report.html"])
def test_files_that_are_refused(place, tmp_path):
    with pytest.raises(ValueError, match="`output` .*choose another file"):
        check_new_file("output", tmp_path / place)
    check_new_file("output", tmp_path / "report.html")
    assert not list(tmp_path.iterdir())
