"""The servers of examples/, with real requests on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
import torch
import uvicorn
from conftest import make_model
from transformers import AutoModelForSequenceClassification, BertTokenizer

from transformers_deebert import OnlinePredictor


EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = [f"word{number}" for number in range(95)]
TEXTS = [" ".join(WORDS[(7 * row + 3 * place) % 95] for place in range(1 + row % 9)) for row in range(40)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    make_model(off_ramp_pooling="mean", early_exit_entropy=0.75).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint):
    model, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(checkpoint).eval(),
        BertTokenizer.from_pretrained(checkpoint),
    )
    with torch.no_grad():
        output = model(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    exits = output.exit_layers.tolist()
    assert len(set(exits)) >= 3
    return exits, [model.config.id2label[label] for label in output.logits.argmax(-1).tolist()]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def classify_all(url, expected):
    with httpx.Client(trust_env=False, timeout=60) as client, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda text: client.post(url, json={"text": text}), TEXTS))
        refused = client.post(url, json={"text": 3})
    assert [answer.status_code for answer in found] == [200] * len(TEXTS)
    exits, labels = expected
    assert [answer.json()["exit_layer"] for answer in found] == exits
    assert [answer.json()["label"] for answer in found] == labels
    assert refused.status_code == 422
    assert "text" in json.dumps(refused.json())


def test_fastapi(checkpoint, expected, monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import serve_fastapi

    predictor = OnlinePredictor(serve_fastapi.load_model(str(checkpoint)), BertTokenizer.from_pretrained(checkpoint))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(serve_fastapi.make_app(predictor), port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        classify_all(f"http://127.0.0.1:{port}/classify", expected)
        health = httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).json()
    finally:
        server.should_exit = True
        thread.join(60)
    exits, _ = expected
    assert health == {"status": "ok", "exits": {str(layer): exits.count(layer) for layer in range(1, 5)}}
    assert not predictor.thread.is_alive()  # the server closed it


@pytest.mark.slow
@pytest.mark.parametrize(("script", "path"), [("serve_fastapi.py", "classify"), ("serve_litserve.py", "predict")])
def test_as_a_program(checkpoint, expected, script, path, tmp_path):
    port = free_port()
    command = [sys.executable, EXAMPLES / script, checkpoint, "--port", str(port), "--threads", "1"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.3)
        classify_all(f"http://127.0.0.1:{port}/{path}", expected)
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with the workers that LitServe starts
        process.wait(60)
