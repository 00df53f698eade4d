"""Architectures of what vehicles run, and their ONNX graphs."""
