"""Models to be used: what a run leaves as one ONNX model, checked and quantised; and a teacher that labels."""
