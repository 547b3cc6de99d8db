"""Layers in 8-bit integers, exits in float32."""

import tempfile
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from .graph import needed_for


HIDDEN = ("hidden", "HiddenGemm")  # an operator that the quantiser does not know


def quantize_layers(flat: onnx.ModelProto, output: str = "states") -> onnx.ModelProto:
    """
    Quantises the products with weights that an output comes from, with ONNX Runtime's dynamic quantiser: weights in
    8 bits, one scale for each output channel, what they are multiplied with as it comes. Embedding tables stay in
    float32 (a product that widens their vectors is one of the layers'), and so do off-ramps and head, whose entropies
    decide.

    Args:
        flat (`onnx.ModelProto`): Without branches. It is changed.
        output (`str`, *optional*, defaults to `"states"`): By default the states behind the last layer.
    """
    producers = {name: node for node in flat.graph.node for name in node.output}
    layers = needed_for([output], producers)
    products = [node for node in flat.graph.node if node.op_type == "MatMul" and node.output[0] in layers]
    del flat.graph.value_info[:]  # the exporter's shapes are not always those that ONNX infers
    add_pre_process_metadata(flat)  # or the quantiser advises to prepare the graph, which the exporter has done
    # The quantiser would turn every `Gemm` into a product and a sum, whether it quantises it or not.
    rename_operator(flat, ("", "Gemm"), HIDDEN)
    flat.opset_import.append(onnx.helper.make_opsetid(HIDDEN[0], 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        quantize_dynamic(
            flat,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=[node.name for node in products],
            per_channel=True,
            reduce_range=True,  # processors without VNNI sum pairs of products in 16 bits: 7 do not overflow
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(path)
    rename_operator(model, HIDDEN, ("", "Gemm"))
    known = [opset for opset in model.opset_import if opset.domain != HIDDEN[0]]
    del model.opset_import[:], model.metadata_props[:]
    model.opset_import.extend(known)
    return model


def rename_operator(model: onnx.ModelProto, before: tuple[str, str], after: tuple[str, str]) -> None:
    """Operators are domain and type."""
    for node in model.graph.node:
        if (node.domain, node.op_type) == before:
            node.domain, node.op_type = after
