"""A teacher's labels for frames that have none: by any ONNX model that segments, where it is sure."""
