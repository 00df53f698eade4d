"""Models to be used: what a run leaves as one ONNX model, checked and quantised; a teacher that labels."""
