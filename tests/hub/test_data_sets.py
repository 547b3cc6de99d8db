"""Data sets that the command line reads from a Hub."""

import os
import subprocess
import sys

import pytest
from loopback import LoopbackHub, Repository


CARD = b"""---
configs:
- config_name: one
  data_files:
  - split: validation
    path: one/validation.jsonl
  - split: train
    path: one/train.jsonl
- config_name: two
  data_files: two/train.jsonl
---
"""
FILES = {
    "README.md": CARD,
    "one/validation.jsonl": b'{"text": "x", "label": 1}\n',
    "one/train.jsonl": b'{"text": "y", "label": 0}\n',
    "two/train.jsonl": b'{"text": "z", "label": 0}\n',
}
CODE = """
import sys
from transformers_deebert.cli.data import load_rows
for source in sys.argv[1:]:
    try:
        print(load_rows(source)[:])
    except ValueError as error:
        print(error)
"""


@pytest.fixture
def read(tmp_path):
    """What is said of sources, one line each."""

    def read(*sources, **settings):
        settings = {"HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_TELEMETRY": "1", **settings}
        process = subprocess.run(
            [sys.executable, "-c", CODE, *sources],
            env={**os.environ, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1,localhost", **settings},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert process.returncode == 0, process.stderr[-3000:]
        return process.stdout.splitlines(), process.stderr

    return read


def test_data_sets_by_id(read):
    with LoopbackHub() as hub:
        hub.repositories["org/rows"] = Repository()
        hub.repositories["org/rows"].commit("main", FILES)
        lines, notes = read("org/rows:one", "org/rows:two", "org/rows", "org/nothing", HF_ENDPOINT=hub.url)
    assert lines[:2] == ["{'text': ['x'], 'label': [1]}", "{'text': ['z'], 'label': [0]}"]
    assert "Config name is missing" in lines[2]
    assert "['one', 'two']" in lines[2]
    assert "'org/nothing' is neither a file nor a folder" in lines[3]
    assert len(lines) == 4
    assert "reads the split 'validation' of org/rows:one" in notes


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached(read):
    lines, _ = read("org/rows:one", "rows", HF_HUB_OFFLINE="1")
    assert "Couldn't reach 'org/rows' on the Hub" in lines[0]
    assert len(lines) == 2
