"""Exported files in other tools (optimisers, converters, OpenVINO), and damaged ones."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import EXPORTED, NUM_LAYERS, make_batch, make_model, off_ramp_answers, spread_thresholds
from random_batches import open_file, run_file

from transformers_deebert import OnnxEarlyExitModel
from transformers_deebert.analysis import entropy
from transformers_deebert.inference.onnx.thresholds import set_default_threshold


EARLIER = Path(__file__).parents[1] / "fixtures" / "release_0_1" / "onnx"


@pytest.fixture(scope="module")
def case(exported_bert):
    """The single file, a batch, thresholds, and the answers of the PyTorch model, with them and without."""
    model, batch = make_model(**EXPORTED), make_batch(side="left", width=15)
    logits = off_ramp_answers(model, **batch)[0] / torch.tensor([*EXPORTED["off_ramp_temperatures"], 1.0])[:, None]
    thresholds = spread_thresholds(entropy(logits))
    expected = model(**batch, early_exit_entropy=thresholds)
    assert len(expected.exit_layers.unique()) >= 3
    return exported_bert / "model.onnx", batch, [(thresholds, expected), (None, model(**batch))]


def check(model, case, tolerance=1e-4):
    """Answers of a model (bytes or path) in ONNX Runtime, also where the thresholds are the file's own."""
    session = open_file(model)
    for thresholds, expected in case[2]:
        logits, layers = run_file(session, case[1], thresholds)
        assert layers.tolist() == expected.exit_layers.tolist()
        torch.testing.assert_close(torch.from_numpy(logits), expected.logits, atol=tolerance, rtol=tolerance)


def every_node(graph):
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from every_node(attribute.g)


def test_constants_are_tensors(case):
    for path in case[0].parent.glob("*.onnx"):
        constants = [node for node in every_node(onnx.load(path).graph) if node.op_type == "Constant"]
        assert {attribute.name for node in constants for attribute in node.attribute} <= {"value"}


def test_shape_inference(case):
    model = onnx.shape_inference.infer_shapes(onnx.load(case[0]), check_type=True, strict_mode=True, data_prop=True)
    check(model.SerializeToString(), case)


def test_optimised_ahead(case, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(case[0], options)
    check(tmp_path / "optimised.onnx", case)


def test_onnxslim(case, tmp_path):
    """It takes inputs with a default for constants: the thresholds that a file has."""
    onnxslim = pytest.importorskip("onnxslim")
    path, batch, [(thresholds, expected), _] = case
    copy = Path(shutil.copy(path, tmp_path))
    set_default_threshold(copy, thresholds)
    check(onnxslim.slim(str(copy)).SerializeToString(), (copy, batch, [(None, expected)]))


@pytest.mark.parametrize("prepared", [True, False])
def test_quantisation_tools_of_onnx_runtime(case, tmp_path, prepared):
    pytest.importorskip("onnxruntime", minversion="1.23")  # before, its shape inference fails in branches of `If`
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = case[0]
    if prepared:
        path = tmp_path / "processed.onnx"
        quant_pre_process(str(case[0]), str(path), auto_merge=True)
        check(path, case)
    quantize_dynamic(str(path), str(tmp_path / "int8.onnx"), extra_options={"EnableSubgraph": True})
    kinds = [node.op_type for node in every_node(onnx.load(tmp_path / "int8.onnx").graph)]
    assert kinds.count("MatMulInteger") >= 6 * NUM_LAYERS
    check_roughly(tmp_path / "int8.onnx", case, 0.1)


def check_roughly(model, case, tolerance):
    """In a smaller type scores are others: exits by thresholds that all rows are on one side of."""
    session = open_file(model)
    _, batch, [_, (_, expected)] = case
    for thresholds, layer in ((None, 4), ([0.0], 4), ([9.0], 1), ([0.0, 0.0, 9.0], 3)):
        logits, layers = run_file(session, batch, thresholds)
        assert layers.tolist() == [layer] * len(layers)
        if layer == NUM_LAYERS:
            torch.testing.assert_close(torch.from_numpy(logits), expected.logits, atol=tolerance, rtol=tolerance)


def test_float16(case):
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(case[0]), keep_io_types=True)
    check(model.SerializeToString(), case, tolerance=2e-2)


def test_openvino(case):
    """It takes inputs with a default for constants, too; without the default they are inputs."""
    openvino = pytest.importorskip("openvino")
    path, batch, answers = case
    model = onnx.load(path)
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    arrays["token_type_ids"] = np.zeros_like(arrays["input_ids"])
    for thresholds, expected in reversed(answers):
        if thresholds is not None:
            (default,) = (one for one in model.graph.initializer if one.name == "exit_threshold")
            model.graph.initializer.remove(default)
            arrays["exit_threshold"] = np.array(thresholds, np.float32)
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(model.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        answer = compiled(arrays)
        assert answer["exit_layer"].tolist() == expected.exit_layers.tolist()
        torch.testing.assert_close(torch.tensor(answer["logits"]), expected.logits, atol=1e-3, rtol=1e-3)


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
