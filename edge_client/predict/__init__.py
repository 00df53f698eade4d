"""An exported model at work: images in, label maps and overlays out; ONNX Runtime, numpy and OpenCV alone."""
