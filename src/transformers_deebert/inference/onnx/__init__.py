"""ONNX files of classifiers with exits, and ONNX Runtime."""
