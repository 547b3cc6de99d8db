"""
Batches through model.onnx in Python: reads [{name: rows}, …] from stdin, writes [logits, exit layers] a line.

    pip install onnxruntime && python run_file.py onnxruntime model.onnx < batches.json
"""

import importlib
import json
import sys

import numpy as np


ABSENT = ("torch", "transformers", "transformers_deebert", "onnx")
for name in ABSENT:
    sys.modules[name] = None  # importing it is an error


def open_onnxruntime(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    print([value.name for value in session.get_overridable_initializers()], file=sys.stderr)
    return lambda feeds: session.run(["logits", "exit_layer"], feeds)


def open_openvino(path):
    import openvino

    model = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    print([value.any_name for value in model.inputs], file=sys.stderr)

    def run(feeds):
        answer = model(feeds)
        return answer["logits"], answer["exit_layer"]

    return run


def main():
    runtime, path = sys.argv[1:]
    run = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}[runtime](path)
    print(runtime, importlib.import_module(runtime).__version__, file=sys.stderr)
    for batch in json.load(sys.stdin):
        feeds = {
            name: np.array(values, np.float32 if name == "exit_threshold" else np.int64)
            for name, values in batch.items()
        }
        logits, layers = run(feeds)
        print(json.dumps([logits.tolist(), layers.tolist()]))


main()
