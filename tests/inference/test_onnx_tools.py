"""Exported files in other tools (optimisers, converters, OpenVINO), and damaged ones."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import EXPORTED, NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds

from transformers_deebert import OnnxEarlyExitModel
from transformers_deebert.analysis import entropy


EARLIER = Path(__file__).parents[1] / "fixtures" / "release_0_1" / "onnx"


@pytest.fixture(scope="module")
def case(exported_bert):
    """An exported folder, feeds of single rows, and the answers of the PyTorch model."""
    model, batch, folder = make_model(**EXPORTED), make_batch(), exported_bert
    logits = off_ramp_answers(model, **batch)[0] / torch.tensor([*EXPORTED["off_ramp_temperatures"], 1.0])[:, None]
    thresholds = spread_thresholds(entropy(logits))
    feeds = [
        {
            "input_ids": batch["input_ids"][row : row + 1].numpy(),
            "attention_mask": batch["attention_mask"][row : row + 1].numpy(),
            "token_type_ids": np.zeros_like(batch["input_ids"][row : row + 1]),
            "early_exit_entropy": np.array(thresholds, dtype=np.float32),
        }
        for row in range(12)
    ]
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    return folder, feeds, expected


def check(model, case, tolerance=1e-4):
    """Answers of a model (bytes or path) in ONNX Runtime."""
    _, feeds, expected = case
    session = onnxruntime.InferenceSession(model)
    answers = [session.run(["logits", "exit_layer"], one) for one in feeds]
    assert [int(layer[0]) for _, layer in answers] == expected.exit_layers.tolist()
    logits = torch.tensor(np.concatenate([logits for logits, _ in answers]))
    torch.testing.assert_close(logits, expected.logits, atol=tolerance, rtol=tolerance)


def every_node(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def test_constants_are_tensors(case):
    for path in case[0].glob("*.onnx"):
        constants = [node for node in every_node(onnx.load(path).graph) if node.op_type == "Constant"]
        assert {attribute.name for node in constants for attribute in node.attribute} <= {"value"}


def test_onnxslim(case):
    onnxslim = pytest.importorskip("onnxslim")
    check(onnxslim.slim(str(case[0] / "model.onnx")).SerializeToString(), case)


def test_quantisation_tools_of_onnx_runtime(case, tmp_path):
    pytest.importorskip("onnxruntime", minversion="1.23")  # before, its shape inference fails in branches of `If`
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(case[0] / "model.onnx"), str(tmp_path / "processed.onnx"), auto_merge=True)
    check(tmp_path / "processed.onnx", case)
    quantize_dynamic(str(tmp_path / "processed.onnx"), str(tmp_path / "int8.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "int8.onnx")
    for one, exact in zip(case[1], case[2].logits, strict=True):
        logits, layer = session.run(["logits", "exit_layer"], one | {"early_exit_entropy": np.zeros(3, np.float32)})
        assert layer.tolist() == [NUM_LAYERS]
        assert np.isfinite(logits).all()
        assert logits.shape == (1, len(exact))


def test_float16(case):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(case[0] / "model.onnx"), keep_io_types=True)
    check(model.SerializeToString(), case, tolerance=2e-2)


def test_openvino(case):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(str(case[0] / "model.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answers = [compiled(one) for one in case[1]]
    assert [int(answer["exit_layer"][0]) for answer in answers] == case[2].exit_layers.tolist()
    logits = torch.tensor(np.concatenate([answer["logits"] for answer in answers]))
    torch.testing.assert_close(logits, case[2].logits, atol=1e-3, rtol=1e-3)


CONFIG = (EARLIER / "config.json").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("onnx.json", b"{"),
        ("onnx.json", b"[]"),
        ("onnx.json", b"\xff"),
        ("onnx.json", b'{"segments": [{"file": "segment_01.onnx"}]}'),
        ("onnx.json", b'{"segments": [{"file": 1}], "max_tokens": 9, "off_ramp_temperatures": null}'),
        ("onnx.json", b'{"segments": [], "max_tokens": "many", "off_ramp_temperatures": null}'),
        ("onnx.json", b'{"segments": [], "max_tokens": 9, "off_ramp_temperatures": [0.0]}'),
        ("config.json", b'{"model_type": '),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "bert"}'),
        ("config.json", CONFIG.replace('"num_hidden_layers": 3', '"num_hidden_layers": 2').encode()),
        ("config.json", CONFIG.replace("{", '{"off_ramp_layers": [0, 2],', 1).encode()),
        ("segment_02.onnx", b"no protobuf"),
        ("segment_02.onnx", b""),
        ("segment_02.onnx", (EARLIER / "segment_02.onnx").read_bytes()[:1000]),
        ("segment_02.onnx", (EARLIER / "segment_01.onnx").read_bytes()),
        ("segment_01.onnx", (EARLIER / "segment_02.onnx").read_bytes()),
        ("segment_03.onnx", None),
    ],
)
def test_damaged_folders(tmp_path, name, content):
    copy = Path(shutil.copytree(EARLIER, tmp_path / "copy"))
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"(?s)copy.*({name}|config\.json).*export the model again"):
        OnnxEarlyExitModel.from_pretrained(copy)


@pytest.mark.parametrize("name", ["nowhere/at-all/really", "org/model"])
def test_places_that_are_none(name):
    with pytest.raises(ValueError, match=rf"\('{name}'\) is neither a folder nor a repository.*check the name"):
        OnnxEarlyExitModel.from_pretrained(name, local_files_only=True)


def test_unknown_arguments():
    with pytest.raises(TypeError, match="num_thread"):
        OnnxEarlyExitModel.from_pretrained(EARLIER, num_thread=1)
