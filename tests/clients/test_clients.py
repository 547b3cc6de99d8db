"""
`model.onnx` in programs that know nothing of this library. Each needs what it runs; where that is not there, its tests
are skipped. Everything at once, outside of the repository (and a Chromium, on PATH or in DEEBERT_CHROMIUM):

    npm install onnxruntime-node onnxruntime-web @huggingface/transformers
    python -m venv openvino && openvino/bin/pip install openvino
    python -m venv optimum
    optimum/bin/pip install torch==2.13.0 "transformers<5" optimum-onnx==0.1.0 onnxruntime
    export DEEBERT_NODE_MODULES=$PWD/node_modules
    export DEEBERT_OPENVINO_PYTHON=$PWD/openvino/bin/python DEEBERT_OPTIMUM_PYTHON=$PWD/optimum/bin/python
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from client_case import make_case

from transformers_deebert.inference.onnx.thresholds import set_default_threshold


pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
ROWS = [slice(None), slice(3, 8), slice(0, 1)]  # one file, batches of several sizes


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    return make_case(tmp_path_factory.mktemp("clients"))


def node_command(package, script):
    """Of a script that imports a package from npm, and what its environment needs."""
    node, modules = shutil.which("node"), os.environ.get("DEEBERT_NODE_MODULES")
    if node is None:
        pytest.skip("needs Node.js (`node`) on PATH")
    if modules is None:
        pytest.skip(f"needs `npm install {package}` in some folder, and DEEBERT_NODE_MODULES with its node_modules")
    return [node, str(HERE / script)], {"NODE_PATH": modules}


def browser_command(package, script):
    """Of a script for Node.js that opens a browser."""
    command, environment = node_command(package, script)
    browser = os.environ.get("DEEBERT_CHROMIUM") or shutil.which("chromium")
    if browser is None:
        pytest.skip(
            "needs Chromium, as `chromium` on PATH or in DEEBERT_CHROMIUM (Debian: `apt-get install chromium`)"
        )
    return [*command, browser], environment


def python_command(variable, script, install, here=False):
    """Of a script in an environment of its own, or `here`, in this one."""
    python = os.environ.get(variable, sys.executable if here else None)
    if python is None:
        pytest.skip(f"needs `pip install {install}` in an environment of its own, and {variable} with its python")
    return [python, str(HERE / script)], {}


def runtime_command(runtime):
    """Of a program that takes batches through a file."""
    if runtime == "browser":
        return browser_command("onnxruntime-web", "run_browser.mjs")
    if runtime == "onnxruntime":
        command, environment = python_command("DEEBERT_ONNXRUNTIME_PYTHON", "run_file.py", "onnxruntime", here=True)
    elif runtime == "openvino":
        here = importlib.util.find_spec("openvino") is not None
        command, environment = python_command("DEEBERT_OPENVINO_PYTHON", "run_file.py", "openvino", here)
    else:
        command, environment = node_command(runtime, "run_file.mjs")
    return [*command, runtime], environment


def start(command, arguments, given):
    """What a program writes for what it is given, both JSON, a line each; its environment has no path of this one."""
    command, environment = command
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DEEBERT"))}
    done = subprocess.run(
        [*command, *map(str, arguments)],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        env=inherited | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"} | environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sys.stderr.write(done.stderr)  # versions; shown by `pytest -rP`
    return [json.loads(line) for line in done.stdout.splitlines()]


def take(tokens, rows):
    return {name: values[rows] for name, values in tokens.items()}


def check(case, given, expected, rows=slice(None)):
    """One batch of a program against the model in PyTorch."""
    logits, layers = expected
    assert given[1] == layers[rows]
    torch.testing.assert_close(torch.tensor(given[0]), logits[rows], **CLOSE)


RUNTIMES = pytest.mark.parametrize(
    "runtime", ["onnxruntime", "onnxruntime-node", "onnxruntime-web", "browser", "openvino"]
)


@RUNTIMES
def test_tokens_alone(case, runtime):
    """The default threshold holds."""
    command = runtime_command(runtime)
    answers = start(command, [case.float32 / "model.onnx"], [take(case.tokens, rows) for rows in ROWS])
    for answer, rows in zip(answers, ROWS, strict=True):
        check(case, answer, case.answers[0], rows)


@RUNTIMES
def test_another_default(case, runtime, tmp_path):
    command = runtime_command(runtime)
    path = Path(shutil.copy(case.float32 / "model.onnx", tmp_path))
    set_default_threshold(path, [0.0])
    (answer,) = start(command, [path], [case.tokens])
    check(case, answer, case.answers[1])


def test_threshold_of_a_call(case):
    """ONNX Runtime for Python takes one although there is a default; for JavaScript it does not, nor does OpenVINO."""
    tokens = [case.tokens | setting for setting in ({}, {"exit_threshold": [0.0]}, {"exit_threshold": [0.0] * 3})]
    answers = start(runtime_command("onnxruntime"), [case.float32 / "model.onnx"], tokens)
    for answer, expected in zip(answers, [case.answers[0], case.answers[1], case.answers[1]], strict=True):
        check(case, answer, expected)


@RUNTIMES
def test_threshold_of_a_call_without_a_default(case, runtime, tmp_path):
    """Without its default the threshold is an input like others, for every client."""
    command = runtime_command(runtime)
    model = onnx.load(case.float32 / "model.onnx")
    (default,) = (tensor for tensor in model.graph.initializer if tensor.name == "exit_threshold")
    model.graph.initializer.remove(default)
    onnx.save(model, tmp_path / "model.onnx")
    threshold = onnx.numpy_helper.to_array(default).tolist()
    settings = [threshold, [0.0], threshold * 3]
    answers = start(
        command, [tmp_path / "model.onnx"], [case.tokens | {"exit_threshold": values} for values in settings]
    )
    for answer, expected in zip(answers, [case.answers[0], case.answers[1], case.answers[0]], strict=True):
        check(case, answer, expected)


def check_labels(case, results):
    """Results of a pipeline against the model in PyTorch, at its default threshold."""
    assert [result["label"] for result in results] == case.labels[0]
    scores = case.answers[0][0].softmax(-1).max(-1).values
    torch.testing.assert_close(torch.tensor([result["score"] for result in results]), scores, **CLOSE)


def check_int8(case, results, batch_size):
    """Results of a pipeline against the file in int8, in which scales depend on a row's batch mates."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(case.int8 / "model.onnx", options)
    logits, count = [], len(case.texts)
    for begin in range(0, count, batch_size):
        batch = take(case.tokens, slice(begin, begin + batch_size))
        logits.append(session.run(["logits"], {name: np.array(values) for name, values in batch.items()})[0])
    found = torch.from_numpy(np.concatenate(logits)).softmax(-1).max(-1)
    names = json.loads((case.hub / "config.json").read_text(encoding="utf-8"))["id2label"]
    assert [result["label"] for result in results] == [names[str(index)] for index in found.indices.tolist()]
    torch.testing.assert_close(torch.tensor([result["score"] for result in results]), found.values, atol=0.02, rtol=0)
    assert sum(a["label"] == b for a, b in zip(results, case.labels[0], strict=True)) >= 0.8 * count


@pytest.mark.parametrize("place", ["node", "browser"])
@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("hub", {}),  # float32 in Node.js, int8 in browsers
        ("hub", {"dtype": "fp32"}),
        ("hub", {"dtype": "q8"}),
        ("float32", {"dtype": "fp32", "subfolder": ""}),
        ("int8", {"dtype": "fp32", "subfolder": ""}),  # of files it chooses model.onnx
    ],
)
def test_transformers_js(case, folder, options, place):
    package = "@huggingface/transformers"
    if place == "browser":
        command = browser_command(package, "classify_browser.mjs")
    else:
        command = node_command(package, "classify.mjs")
    (results,) = start(command, [getattr(case, folder), json.dumps(options)], case.texts)
    dtype = options.get("dtype", "fp32" if place == "node" else "q8")
    if folder == "int8" or dtype == "q8":
        check_int8(case, results, len(case.texts))
    else:
        check_labels(case, results)


@pytest.mark.parametrize(
    ("folder", "options"),
    [
        ("float32", {}),
        ("hub", {"subfolder": "onnx"}),
        ("hub", {"subfolder": "onnx", "file_name": "model_quantized.onnx"}),
        ("float32", None),
    ],
)
def test_optimum(case, folder, options):
    """A stock pipeline in batches of eight; without options the pipeline loads the folder itself."""
    install = '"torch==2.13.0" "transformers<5" "optimum-onnx==0.1.0" onnxruntime'
    command = python_command("DEEBERT_OPTIMUM_PYTHON", "classify_optimum.py", install)
    (results,) = start(command, [getattr(case, folder), json.dumps(options)], case.texts)
    if options and "quantized" in options.get("file_name", ""):
        check_int8(case, results, 8)
    else:
        check_labels(case, results)
