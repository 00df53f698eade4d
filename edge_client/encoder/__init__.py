"""The encoder on ONNX Runtime."""
